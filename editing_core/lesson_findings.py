"""Findings: what the lesson's steps found, as small plain values, taken from the unedited model and from runs.

`editing_core.lesson` has the steps and what is told of these.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from editing_core.evaluation.evaluator import Evaluator
from editing_core.evaluation.scoring import TokenChance, next_tokens
from editing_core.evaluation.verdict import lost_neighbors
from editing_core.models.language_model import LanguageModel
from editing_core.runs.record import RunResult
from editing_core.types import EditRequest

TOP = 5  # next tokens that are told


@dataclass(frozen=True)
class Fact:
    """An edit prompt and how both objects fare. known: the old object is the first answer. took: the new one is."""

    subject: str
    prompt: str
    old: str
    new: str
    p_old: float
    p_new: float
    known: bool
    took: bool


@dataclass(frozen=True)
class Knowledge:
    """Step 1. top: the likeliest next tokens after the first fact's prompt. seconds: of computing."""

    facts: tuple[Fact, ...]
    top: tuple[TokenChance, ...]
    seconds: float


@dataclass(frozen=True)
class Round:
    """An iteration: facts and paraphrases that give the new object, and the perplexities of the edit targets."""

    k: int
    facts: int
    paraphrases: int
    optimised: float
    spread: float
    delta: float


@dataclass(frozen=True)
class Written:
    """Steps 2 and 3: facts as they are after the last iteration. stop: the k the paper's rule takes, None for none."""

    facts: tuple[Fact, ...]
    paraphrases: int
    rounds: tuple[Round, ...]
    tolerance: float
    stop: int | None
    seconds: float


@dataclass(frozen=True)
class Kept:
    """A neighbor and the probability of its own answer before and after. lost: as in `evaluation.verdict`."""

    subject: str
    prompt: str
    answer: str
    before: float
    after: float
    known: bool
    lost: bool


@dataclass(frozen=True)
class Drift:
    """Steps 4 and 5: one fact and its measured neighbors. assisting: how many neighbors the editor used instead.

    paraphrases: probability of the new object after each.
    """

    fact: Fact
    neighbors: tuple[Kept, ...]
    paraphrases: tuple[float, ...]
    assisting: int
    seconds: float

    @property
    def lost(self) -> int:
        """How many neighbors are lost."""
        return sum(n.lost for n in self.neighbors)

    def only(self, other: "Drift") -> "Drift":
        """The same with the neighbors that the other one measured too, in its order."""
        own = {n.prompt: n for n in self.neighbors}
        shared = tuple(own[n.prompt] for n in other.neighbors if n.prompt in own)
        return replace(self, neighbors=shared)


Finding = Knowledge | Written | Drift


def know(lm: LanguageModel, requests: Sequence[EditRequest]) -> Knowledge:
    """What the unedited model says to the edit prompts."""
    started = time.perf_counter()
    with lm.lock:
        probes = Evaluator().score_unedited(lm, requests)
        top = next_tokens(lm, requests[0].full_prompt, TOP)
    return Knowledge(_facts(probes, requests), tuple(top), time.perf_counter() - started)


def written(run: RunResult) -> Written:
    """What a run of several facts found."""
    rounds = []
    for k in range(1, run.last + 1):
        probes, row = run.probes_at(k), run.iterations.iloc[k]
        counts = (int(_took(probes[probes["kind"] == kind]).sum()) for kind in ("edit", "paraphrase"))
        rounds.append(Round(k, *counts, *(float(row[c]) for c in ("ppl_optimised", "ppl_spread", "delta_ppl"))))
    rule = run.rules()["perplexity"]
    probes = run.probes_at(run.last)
    return Written(
        _facts(probes, run.requests),
        int((probes["kind"] == "paraphrase").sum()),
        tuple(rounds),
        run.plan.stop.tolerance,
        rule.k if rule else None,
        run.seconds,
    )


def drift(run: RunResult) -> Drift:
    """What a run of one fact found."""
    request, before, now = run.requests[0], run.probes_at(0), run.probes_at(run.chosen)
    lost = lost_neighbors(now, before)
    rows = now.index[now["kind"] == "neighbor"]
    kept = tuple(
        Kept(
            probe.subject or probe.prompt,
            probe.prompt,
            probe.answer,
            float(before["p_true"][i]),
            float(now["p_true"][i]),
            bool(before["hit_true"][i] >= 1.0),
            bool(lost[i]),
        )
        for i, probe in zip(rows, request.neighbors, strict=True)
    )
    said = tuple(map(float, now["p_new"][now["kind"] == "paraphrase"]))
    return Drift(_facts(now, run.requests)[0], kept, said, len(request.edit_neighbors), run.seconds)


def _took(probes: pd.DataFrame) -> pd.Series:
    """Per row whether the new object is likelier than the old one and the first answer."""
    return (probes["p_new"] > probes["p_true"]) & (probes["hit_new"] >= 1.0)


def _facts(probes: pd.DataFrame, requests: Sequence[EditRequest]) -> tuple[Fact, ...]:
    edits = probes[probes["kind"] == "edit"]
    rows = zip(requests, edits.to_dict("records"), _took(edits), strict=True)
    return tuple(
        Fact(
            subject=request.subject,
            prompt=row["prompt"],
            old=row["target_true"],
            new=row["target_new"],
            p_old=float(row["p_true"]),
            p_new=float(row["p_new"]),
            known=bool(row["hit_true"] >= 1.0),
            took=bool(took),
        )
        for request, row, took in rows
    )
