"""Two states of one model on the same prompts: what it says first, and how likely an edit's objects are."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from editing_core.errors import BadRequest
from editing_core.evaluation.scoring import TokenChance, next_tokens, score_objects
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel
from editing_core.types import EditRequest, check_text

MOST = 50  # prompts compared at once


@dataclass(frozen=True)
class Asked:
    """A prompt, and where it belongs to a fact the new and old object; empty where it does not."""

    prompt: str
    new: str = ""
    old: str = ""


@dataclass(frozen=True)
class Seen:
    """One prompt under one state: the likeliest next tokens, and p(new), p(old) where there are objects."""

    top: tuple[TokenChance, ...]
    p_new: float | None
    p_old: float | None


@dataclass(frozen=True)
class Compared:
    """One prompt under both states."""

    asked: Asked
    first: Seen
    second: Seen

    @property
    def differs(self) -> bool:
        """Whether the first choice is another one."""
        return self.first.top[0].token != self.second.top[0].token


def prompts_of(requests: Sequence[EditRequest]) -> list[Asked]:
    """The facts' own prompts and their neighbors', each once."""
    found = {r.full_prompt: Asked(r.full_prompt, r.target_new, r.target_true or "") for r in requests}
    for request in requests:
        for probe in request.neighbors:
            found.setdefault(probe.prompt, Asked(probe.prompt, "", probe.answer))
    return list(found.values())[:MOST]


def compare(lm: LanguageModel, asked: Sequence[Asked], first: Edit, second: Edit, chat: str = "none") -> list[Compared]:
    """Both states on all prompts, in order. The model is bit-equal before and after. chat: as in `Conventions`."""
    lm = lm.framed(chat)
    if not 1 <= len(asked) <= MOST:
        raise BadRequest(f"{len(asked)} prompts were given, 1 to {MOST} are compared at once; enter so many.")
    for one in asked:
        lm.check_text(check_text(one.prompt, "prompt", lines=True))
    with lm.lock:
        states = []
        for delta in (first, second):
            with delta.applied(lm) as edited:
                states.append(_seen(edited, asked))
    return [Compared(*row) for row in zip(asked, *states, strict=True)]


def _seen(lm: LanguageModel, asked: Sequence[Asked]) -> list[Seen]:
    pairs = [(one.prompt, text) for one in asked for text in (one.new, one.old) if text]
    chances = iter(score_objects(lm, pairs) if pairs else [])
    told = [[exp(next(chances).logp) if text else None for text in (one.new, one.old)] for one in asked]
    return [Seen(next_tokens(lm, one.prompt, 5), *p) for one, p in zip(asked, told, strict=True)]
