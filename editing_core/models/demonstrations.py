"""Demonstrations: an edit that is a text before every prompt, and leaves all weights alone.

Worked examples show how a new fact is to be used: repeated, carried over to other wordings, kept away from other
questions. The new facts stand behind them, the prompt last. Source: Zheng et al. 2023 (IKE),
https://arxiv.org/abs/2305.12740; its markers 'New Fact:' and 'Prompt:' are kept, as models are trained on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor

from editing_core.errors import BadRequest
from editing_core.models.edit import Edit, Findings, counted
from editing_core.models.tokens import Coder, Frame

if TYPE_CHECKING:
    from editing_core.models.language_model import LanguageModel

FACT, PROMPT = "New Fact:", "Prompt:"
KINDS = ("copy", "update", "retain")
MOST, LONGEST = 1000, 4000  # demonstrations or facts of a file, and letters of each text in one


def shown(fact: str, answered: str) -> str:
    """A worked example: a new fact, and a prompt with the answer it should have then."""
    return f"{FACT} {fact}\n{PROMPT} {answered}\n\n"


@dataclass(frozen=True)
class NewFact:
    """What is new. prompt: with `{}` for the subject."""

    subject: str
    prompt: str
    object: str

    @property
    def sentence(self) -> str:
        """The fact told."""
        return f"{self.prompt.replace('{}', self.subject)} {self.object}"

    @property
    def key(self) -> tuple[str, str]:
        """What a later fact must share to take this one's place."""
        return self.subject.casefold(), self.prompt.casefold()


@dataclass(frozen=True)
class Demonstration:
    """One worked example. kind: copy (the fact's own words), update (other words), retain (another question).

    subject: what its new fact is about. rank: 1 is most like an edited fact. similarity: its cosine, None where only
    the order is known.
    """

    kind: str
    subject: str
    fact: str
    prompt: str
    answer: str
    rank: int
    similarity: float | None = None

    @property
    def text(self) -> str:
        """As it stands before prompts."""
        return shown(self.fact, f"{self.prompt} {self.answer}")


@dataclass(frozen=True)
class Shown(Frame):
    """A frame whose head ends with demonstrations. inside: the frame without. edit: what of the edit is shown."""

    inside: Frame = field(default_factory=Frame)
    edit: Demonstrations | None = None


@dataclass(frozen=True, eq=False)
class Demonstrations(Edit):
    """Demonstrations, the most similar first, and the new facts, the latest last.

    nearest_last: whether the most similar demonstration stands next to the facts, else first of all. repeated: each
    fact is also shown as a copy of its own, next to the facts. room: tokens left free for a prompt and its object.
    """

    demonstrations: tuple[Demonstration, ...] = ()
    new: tuple[NewFact, ...] = ()
    nearest_last: bool = True
    repeated: bool = True
    room: int = 0
    provenance: Mapping[str, str] = field(default_factory=dict)
    kind: ClassVar[str] = "demonstrations"

    @property
    def text(self) -> str:
        """What stands before a prompt."""
        step = -1 if self.nearest_last else 1
        sentences = [fact.sentence for fact in self.new]
        examples = [d.text for d in self.demonstrations[::step]]
        examples += [shown(sentence, sentence) for sentence in sentences] if self.repeated else []
        return "".join([*examples, *(f"{FACT} {sentence}\n" for sentence in sentences), f"{PROMPT} "])

    def framed(self, inside: Frame) -> Shown:
        """The frame with the text in it: it is the words of whoever says the prompt, so it stands next to it."""
        return Shown(f"{inside.head}{self.text}", inside.tail, inside.joint, inside.special, inside, self)

    def fitted(self, lm: LanguageModel) -> Demonstrations:
        """With as many demonstrations as leave room for prompts, the most similar ones; BadRequest where facts do not.

        Where none is left, facts are no longer repeated either.
        """
        inside = bare(lm.frame)
        most = lm.context - self.room

        def fits(edit: Demonstrations) -> bool:
            return edit.tokens(lm, inside) <= most

        for count in range(len(self.demonstrations), -1, -1):
            if fits(edit := replace(self, demonstrations=self.demonstrations[:count])):
                return edit
        if fits(edit := replace(self, demonstrations=(), repeated=False)):
            return edit
        raise BadRequest(
            f"The new facts take {edit.tokens(lm, inside):,} tokens and {self.room:,} stay free for a prompt, but "
            f"{lm.name} reads {lm.context:,}; show it fewer facts, or choose a model that reads more."
        )

    def tokens(self, lm: LanguageModel, inside: Frame) -> int:
        """How many tokens the frame takes."""
        return len(Coder(lm.tokenizer, self.framed(inside)).encode(""))

    @contextmanager
    def applied(self, lm: LanguageModel) -> Iterator[LanguageModel]:
        """Gives a view that reads the text before prompts. On a view of that kind, both edits are joined."""
        if self.empty:
            yield lm
            return
        on = lm.frame.edit if isinstance(lm.frame, Shown) else None
        whole = on.joined(self) if on else self
        view = copy(lm)  # not made anew: somebody may be training its weights
        view.frame = whole.fitted(lm).framed(bare(lm.frame))
        with counted(lm.model):
            yield view

    @property
    def empty(self) -> bool:
        """Without a new fact there is nothing to show."""
        return not self.new

    def tensors(self) -> dict[str, Tensor]:
        """None: it is text."""
        return {}

    def facts(self) -> dict[str, Any]:
        """All of it but the provenance."""
        return {
            "demonstrations": [asdict(d) for d in self.demonstrations],
            "new": [asdict(fact) for fact in self.new],
            "nearest_last": self.nearest_last,
            "repeated": self.repeated,
            "room": self.room,
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self:
        """What `facts` gave; KeyError, TypeError or ValueError for anything else."""
        if tensors or set(facts) != {"demonstrations", "new", "nearest_last", "repeated", "room"}:
            raise ValueError("demonstrations have no tensors, and facts of other names")
        given, new, room = facts["demonstrations"], facts["new"], facts["room"]
        if type(given) is not list or type(new) is not list or max(len(given), len(new)) > MOST:
            raise TypeError("demonstrations and new facts are lists")
        switches = facts["nearest_last"], facts["repeated"]
        if not all(type(switch) is bool for switch in switches):
            raise TypeError("an order is true or false")
        facts_ = tuple(_fact(row) for row in new)
        return cls(tuple(map(_demonstration, given)), facts_, *switches, _whole(room, 0))

    def joined(self, other: Demonstrations) -> Demonstrations:
        """Facts of both, a later one in the place of an earlier one with its subject and prompt.

        Of the demonstrations, as many of the most similar as the longer list has; none about a subject that is edited.
        """
        later = {fact.key for fact in other.new}
        new = (*(fact for fact in self.new if fact.key not in later), *other.new)
        edited = {fact.subject.casefold() for fact in new}
        both = sorted({*self.demonstrations, *other.demonstrations}, key=lambda d: (d.rank, d.text))
        # A text both have stands once, at its better rank.
        once = {d.text: d for d in reversed(both) if d.subject.casefold() not in edited}
        kept = sorted(once.values(), key=lambda d: (d.rank, d.text))
        count = max(len(self.demonstrations), len(other.demonstrations))
        return replace(
            other,
            demonstrations=tuple(kept[:count]),
            new=new,
            room=max(self.room, other.room),
            provenance={**self.provenance, **other.provenance},
        )

    def described(self, provenance: Mapping[str, str]) -> Demonstrations:
        """The same with another provenance."""
        return replace(self, provenance=provenance)

    def findings(self, lm: LanguageModel, prompts: Sequence[str]) -> Findings:
        """The text before a prompt from its beginning: every demonstration that fits, then what is new."""
        fitted = self.fitted(lm)
        own, framed = bare(lm.frame), fitted.framed(bare(lm.frame))
        step = -1 if self.nearest_last else 1
        rows: list[tuple[str | float | int, ...]] = []
        for d in fitted.demonstrations[::step]:
            cosine = "" if d.similarity is None else round(d.similarity, 3)
            rows.append((len(rows) + 1, d.kind, d.rank, cosine, d.fact, f"{d.prompt} {d.answer}"))
        for fact in self.new if fitted.repeated else ():
            rows.append((len(rows) + 1, "the new fact as a copy", "", "", fact.sentence, fact.sentence))
        rows += [(len(rows) + n, "new fact", "", "", fact.sentence, "") for n, fact in enumerate(self.new, 1)]
        lengths = [len(Coder(lm.tokenizer, framed).encode(prompt)) for prompt in prompts]
        with_it = f" With it, the prompts here take {min(lengths)} to {max(lengths)} tokens." if lengths else ""
        return Findings(
            "What stands before every prompt",
            f"{fitted.tokens(lm, own):,} tokens of the {lm.context:,} that {lm.name} reads: "
            f"{len(fitted.demonstrations)} of {len(self.demonstrations)} demonstrations, the least similar left out "
            f"first, and {len(self.new)} new fact{'s' if len(self.new) > 1 else ''}.{with_it}",
            ("place", "kind", "rank", "similarity", "new fact", "prompt and answer"),
            tuple(rows),
        )


def bare(frame: Frame) -> Frame:
    """The frame without demonstrations."""
    return frame.inside if isinstance(frame, Shown) else frame


def _fact(row: Any) -> NewFact:
    if set(row) != {"subject", "prompt", "object"} or row["prompt"].count("{}") != 1:
        raise ValueError("a new fact has a subject, an object, and a prompt with one place for the subject")
    return NewFact(*(_text(row[name]) for name in ("subject", "prompt", "object")))


def _demonstration(row: Any) -> Demonstration:
    names = ("kind", "subject", "fact", "prompt", "answer")
    if set(row) != {*names, "rank", "similarity"} or row["kind"] not in KINDS:
        raise ValueError("a demonstration of another kind, or with other parts")
    similarity = row["similarity"]
    if similarity is not None and not (type(similarity) is float and isfinite(similarity) and abs(similarity) < 2):
        raise ValueError("a similarity is a cosine")
    kind, subject, fact, prompt, answer = (_text(row[name]) for name in names)
    return Demonstration(kind, subject, fact, prompt, answer, _whole(row["rank"], 1), similarity)


def _text(value: Any) -> str:
    if type(value) is not str or not value.strip() or len(value) > LONGEST:
        raise ValueError("a text is empty, too long, or no text")
    return value


def _whole(value: Any, low: int) -> int:
    if type(value) is not int or not low <= value <= 10**9:
        raise ValueError("a number is not whole, or too large")
    return value
