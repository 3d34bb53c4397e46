"""Evaluator: the model as it is now, requests -> the tidy probe table and the collapse perplexity."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import exp, nan

import pandas as pd

from editing_core import paths
from editing_core.conventions import CLEAN, Conventions
from editing_core.errors import BadRequest
from editing_core.evaluation.scoring import ObjectScore, free_choices, score_objects, text_perplexities
from editing_core.evaluation.unedited import IN_THIS_PROCESS, Unedited
from editing_core.models.language_model import LanguageModel
from editing_core.types import EditRequest, Probe

PROBE_COLUMNS = ["case_id", "kind", "family", "number", "prompt", "target_new", "target_true", "p_new", "p_true"]
PROBE_COLUMNS += ["logp_new", "logp_true", "rank_new", "rank_true", "hit_new", "hit_true", "answer"]
PROBE_COLUMNS += ["labels", "choices"]
UNRELATED = "nq"  # family of a question that has nothing to do with the edit
KEEPING = ("neighbor", "locality", "portability")  # kinds whose own answer is asked for, not the new object


@cache
def bundled_texts() -> tuple[str, ...]:
    """The held-out texts that come with EditScope."""
    return tuple(json.loads((paths.assets() / "benchmark" / "heldout.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Evaluator:
    """Scores requests under the current weights.

    texts: what the collapse perplexity is measured on. unedited: where measurements of unedited models are kept.
    """

    texts: Sequence[str] = field(default_factory=bundled_texts)
    conventions: Conventions = CLEAN
    unedited: Unedited = field(default=IN_THIS_PROCESS)

    def score(self, lm: LanguageModel, requests: Sequence[EditRequest]) -> pd.DataFrame:
        """One row per probe: the edit prompt, paraphrases, neighbors, locality and portability, in this order.

        p_* are exp of the mean token log-probability, NaN where there is no old object; choices the model's
        first choice at each position of `labels`, the probe's own answer (the new object for edit prompts and
        paraphrases), and answer their text. generated, with accuracy "greedy_match" only: what the model says by
        itself over the length of labels.
        """
        asked = [probe for request in requests for probe in _probes(request)]
        compared = [a for a in asked if a.true]
        # Together, because both objects of a prompt mostly share one forward row.
        others = [(a, alias) for a in asked for alias in a.aliases]
        pairs = [(a.prompt, a.request.target_new) for a in asked] + [(a.prompt, a.true) for a in compared]
        pairs += [(a.prompt, alias) for a, alias in others]
        groups = None
        if self.conventions.padding == "left":
            groups = [(a.request.case_id, a.kind, "new") for a in asked]
            groups += [(a.request.case_id, a.kind, "true") for a in compared]
            groups += [(a.request.case_id, a.kind, alias) for a, alias in others]
        scores = iter(score_objects(lm, pairs, self.conventions.objects, groups))
        new = [next(scores) for _ in asked]
        true = {id(a): next(scores) for a in compared}
        for a, _ in others:  # an alias counts as right as well; probabilities stay those of the answer
            true[id(a)] = replace(true[id(a)], hit=max(true[id(a)].hit, next(scores).hit))
        rows = [_row(lm, a, n, true.get(id(a))) for a, n in zip(asked, new, strict=True)]
        table = pd.DataFrame(rows, columns=PROBE_COLUMNS)
        if self.conventions.accuracy == "greedy_match":
            own = [_wanted(a, n, true.get(id(a))) for a, n in zip(asked, new, strict=True)]
            pairs = [(a.prompt, answer) for a, (answer, _) in zip(asked, own, strict=True)]
            said = free_choices(lm, pairs, [score for _, score in own], self.conventions.objects)
            table = table.assign(generated=[list(tokens) for tokens in said])
        return table

    def collapse(self, lm: LanguageModel) -> float:
        """Arithmetic mean over texts of their perplexity."""
        values = text_perplexities(lm, self.texts, self.conventions.perplexity_terms)
        return sum(values) / len(values)

    def score_unedited(self, lm: LanguageModel, requests: Sequence[EditRequest]) -> pd.DataFrame:
        """As `score`, of the model without an edit: measured once for good where its revision is known."""
        asked = [
            [a.request.case_id, a.kind, a.number, a.family, a.prompt, a.request.target_new, a.true, *a.aliases]
            for request in requests
            for a in _probes(request)
        ]
        return self.unedited.table(lm, self.conventions, ["probes", asked], lambda: self.score(lm, requests))

    def collapse_unedited(self, lm: LanguageModel) -> float:
        """As `collapse`, of the model without an edit."""
        asked = ["collapse", list(self.texts)]
        table = self.unedited.table(lm, self.conventions, asked, lambda: pd.DataFrame({"ppl": [self.collapse(lm)]}))
        return float(table["ppl"].iloc[0])

    def prepared(self, lm: LanguageModel, requests: Sequence[EditRequest]) -> tuple[EditRequest, ...]:
        """Requests whose neighbors are asked and answered as the conventions want.

        Unrelated questions are cut into one probe per token, and answers are what the model itself says now,
        where they are to be.
        """
        if self.conventions.unrelated == "per_token":
            requests = [replace(r, neighbors=tuple(p for n in r.neighbors for p in _by_token(lm, n))) for r in requests]
        if self.conventions.reference == "gold":
            return tuple(requests)
        table = self.score_unedited(lm, requests)
        said = {(r.case_id, r.number): r.answer for r in table[table["kind"] == "neighbor"].itertuples()}
        return tuple(
            replace(
                request,
                neighbors=tuple(_answering(n, said[request.case_id, i]) for i, n in enumerate(request.neighbors)),
            )
            for request in requests
        )


def _by_token(lm: LanguageModel, neighbor: Probe) -> list[Probe]:
    """An unrelated question once per token of its answer, with the answer's tokens before that behind the question.

    As published, the answer is tokenised without the space that stands before it in the text, and the question
    is followed by its tokens at once.
    """
    if neighbor.family != UNRELATED:
        return [neighbor]
    ids = lm.tokenizer(neighbor.answer, add_special_tokens=False)["input_ids"]
    words = [str(lm.tokenizer.decode([token])).strip() for token in ids]
    prompts = [neighbor.prompt + str(lm.tokenizer.decode(ids[:at])) for at in range(len(ids))]
    return [_answering(replace(neighbor, prompt=p), word) for p, word in zip(prompts, words, strict=True) if word]


def _answering(neighbor: Probe, answer: str) -> Probe:
    """The neighbor with another answer, or as it is where a model's answer is no plain text."""
    try:
        return replace(neighbor, answer=answer)
    except BadRequest:
        return neighbor


@dataclass(frozen=True, eq=False)
class _Asked:
    """One probe of a request: its kind, number and family, the prompt, and the answer beside the new object."""

    request: EditRequest
    kind: str
    number: int
    prompt: str
    true: str
    family: str = ""
    aliases: tuple[str, ...] = ()


def _probes(request: EditRequest) -> list[_Asked]:
    """Everything asked about a request."""
    true = request.target_true or ""
    asked = [_Asked(request, "edit", 0, request.full_prompt, true)]
    asked += [_Asked(request, "paraphrase", i, prompt, true) for i, prompt in enumerate(request.paraphrases)]
    for kind, some in (
        ("neighbor", request.neighbors),
        ("locality", request.locality),
        ("portability", request.portability),
    ):
        asked += [_Asked(request, kind, i, p.prompt, p.answer, p.family, p.aliases) for i, p in enumerate(some)]
    return asked


def _wanted(a: _Asked, new: ObjectScore, true: ObjectScore | None) -> tuple[str, ObjectScore]:
    """What a probe asks for and how it fares: its own answer, or the new object."""
    return (a.true, true) if a.kind in KEEPING and true else (a.request.target_new, new)


def _row(lm: LanguageModel, a: _Asked, new: ObjectScore, true: ObjectScore | None) -> tuple[object, ...]:
    _, shown = _wanted(a, new, true)
    said = str(lm.tokenizer.decode(list(shown.choices))).strip()
    told = (a.request.case_id, a.kind, a.family, a.number, a.prompt, a.request.target_new, a.true)
    tokens = (said, list(shown.labels), list(shown.choices))
    if true is None:
        return (*told, exp(new.logp), nan, new.logp, nan, new.rank, nan, new.hit, nan, *tokens)
    chances = (exp(new.logp), exp(true.logp), new.logp, true.logp, new.rank, true.rank, new.hit, true.hit)
    return (*told, *chances, *tokens)
