"""The story of a run: what is measured of the unedited model and after every iteration, and kept on the way.

`session.run_stage` tells it; what it collects are the tables of a RunResult.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import pandas as pd

from editing_core.editors.base import Editor, EditOutcome, TargetLog
from editing_core.editors.iterative import Round
from editing_core.editors.steps.rows import log_perplexity
from editing_core.evaluation.cases import case_rows, underedit_counts
from editing_core.evaluation.evaluator import Evaluator
from editing_core.evaluation.metrics import in_order, summarize
from editing_core.models.delta import WeightDelta
from editing_core.models.edit import Edit, Proof
from editing_core.models.language_model import LanguageModel
from editing_core.runs.journal import Journal, Tables, Unit
from editing_core.runs.record import NO_BASE, Base, Rounds
from editing_core.types import EditRequest, Row, Step, Watch

OPTIMISED, SPREAD = "log_p_optimised", "log_p_spread"


@dataclass(frozen=True, eq=False)
class Stage:
    """All that a run needs: final requests, editor, evaluator, remarks, and the edits it is made on top of."""

    lm: LanguageModel
    requests: tuple[EditRequest, ...]
    editor: Editor
    evaluator: Evaluator
    notes: tuple[str, ...]
    base: Base = NO_BASE


class Story:
    """Collects the tables of a run, one chapter per iteration.

    started: when the clock began. seconds: spent on measuring, which is not the edit's.
    """

    def __init__(self, stage: Stage, watch: Watch, journal: Journal, started: float) -> None:
        self.stage, self.lm, self.requests, self.watch = stage, stage.lm, stage.requests, watch
        self.journal, self.started, self.seconds, self.before = journal, started, 0.0, 0.0
        self.iterations: list[Row] = []
        self.probes: list[pd.DataFrame] = []
        self.cases: list[Row] = []
        self.proofs: list[tuple[Proof, ...]] = []
        self.histories: list[tuple[dict[str, float], ...]] = []
        self.notes: list[str] = list(stage.notes)

    @property
    def elapsed(self) -> float:
        """Seconds the run took so far, those before an interruption included."""
        return self.before + time.perf_counter() - self.started

    def begin(self) -> Row:
        """Measure the unedited model, or recall how it was measured."""
        if unit := self.journal.find(_name(0)):
            return self._recall(unit)
        self.watch(Step("measure", 0, 1))
        with self._clock():
            edit, every = log_perplexity(self.lm, self.requests, self.stage.editor.objective)
            log_p = every if self.stage.evaluator.conventions.edit_perplexity == "all" else edit
            columns = {"ppl_spread": float(log_p.exp().mean()), "ppl_spread_median": float(log_p.median().exp())}
        row = self._measure(0, WeightDelta(), columns)
        self._keep(0, Unit())
        return row

    def kept(self) -> list[tuple[Round, Row]]:
        """The iterations an interrupted run had finished, in order; what was measured then is recalled."""
        found: list[tuple[Round, Row]] = []
        total: Edit = WeightDelta()
        for k in count(1):
            unit = self.journal.find(_name(k))
            if unit is None:
                break
            done = _round_of(k, total, unit)
            total = done.delta
            found.append((done, self._recall(unit)))
        return found

    def add_round(self, done: Round) -> Row:
        """Measure after an iteration; gives the row, which guards and rules look at."""
        row = self._measure(done.k, done.delta, done.row())
        first, log = self.iterations[0], done.outcome.targets
        told, _ = case_rows(done.k, self.probes[-1], self.probes[0], row["collapse_ppl"], first["collapse_ppl"])
        for i, case in enumerate(told):
            case |= {
                "p_optimised": float(done.log_p_optimised[i].exp()),
                "p_spread": float(done.log_p_spread[i].exp()),
                "steps": int(log.steps[i]),
                "norm": float(log.norm[i]),
                "clamped": bool(log.clamped[i]),
            }
        self.cases += told
        self.proofs.append(tuple(done.delta.proofs(self.lm.model)))
        self.histories.append(log.history)
        self.notes += done.outcome.notes
        self._keep(done.k, _unit_of(done), told)
        self.watch(Step("iteration", done.k, done.k, round=done.k, terms={"delta_ppl": done.delta_ppl}))
        return row

    def table(self) -> pd.DataFrame:
        """One row per k, with the number of under-edited records now and among those of iteration 1."""
        table = pd.DataFrame(self.iterations)
        if self.cases:
            table = table.merge(underedit_counts(pd.DataFrame(self.cases)), on="k", how="left")
        return in_order(table)

    def rounds(self) -> Rounds:
        """What is kept of the iterations so far beside the tables."""
        elapsed, notes = self.elapsed, tuple(dict.fromkeys(self.notes))
        return Rounds(tuple(self.histories), tuple(self.proofs), notes, elapsed, elapsed - self.seconds)

    def tables(self) -> Tables:
        """All that was measured so far."""
        cases = pd.DataFrame(self.cases or {"k": []})
        return Tables(self.table(), pd.concat(self.probes, ignore_index=True), cases, rounds=self.rounds())

    def _measure(self, k: int, delta: Edit, columns: Row) -> Row:
        """Measure the model with an edit on, 0 being that without one."""
        evaluator = self.stage.evaluator
        with self._clock(), delta.applied(self.lm) as lm:
            probes = (evaluator.score if k else evaluator.score_unedited)(lm, self.requests)
            collapse = (evaluator.collapse if k else evaluator.collapse_unedited)(lm)
        before = self.probes[0] if self.probes else probes
        metrics = summarize(probes, before, k, self.stage.evaluator.conventions)
        self.iterations.append({"k": k, **metrics, **columns, "collapse_ppl": collapse})
        self.probes.append(probes.assign(k=k)[["k", *probes.columns]])
        return self.iterations[-1]

    def _keep(self, k: int, unit: Unit, cases: list[Row] | None = None) -> None:
        """Into the journal: the round's own parts with what was measured after it.

        Shown first, so that a stop in between loses no row.
        """
        self.journal.show(self.tables)
        facts = {**unit.facts, "row": self.iterations[-1], "cases": cases or []}
        facts |= {"proofs": [asdict(p) for p in self.proofs[-1]] if k else []}
        facts |= {"seconds": self.seconds, "elapsed": self.elapsed}
        self.journal.keep(_name(k), Unit(facts, {"probes": self.probes[-1]}, unit.tensors, unit.delta))

    def _recall(self, unit: Unit) -> Row:
        """Take a kept chapter in as if it had been measured now."""
        facts = unit.facts
        self.iterations.append(dict(facts["row"]))
        self.probes.append(unit.tables["probes"])
        self.cases += facts["cases"]
        if facts["row"]["k"]:
            self.proofs.append(tuple(Proof(**p) for p in facts["proofs"]))
            self.histories.append(tuple(facts["history"]))
            self.notes += facts["notes"]
        self.seconds = facts["seconds"]
        self.before, self.started = facts["elapsed"], time.perf_counter()
        return self.iterations[-1]

    @contextmanager
    def _clock(self) -> Iterator[None]:
        """Counts the time spent on measuring, which is not the edit's."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started


def has_begun(journal: Journal) -> bool:
    """Whether a story that keeps its chapters there has one to recall."""
    return journal.find(_name(0)) is not None


def _name(k: int) -> str:
    return f"iteration-{k}"


def _unit_of(done: Round) -> Unit:
    """A round without what was measured: what it added, and how its targets were found."""
    facts: dict[str, Any] = {"notes": list(done.outcome.notes), "history": list(done.outcome.targets.history)}
    log = done.outcome.targets.tensors()
    return Unit(facts, {}, {**log, OPTIMISED: done.log_p_optimised, SPREAD: done.log_p_spread}, done.outcome.delta)


def _round_of(k: int, total: Edit, unit: Unit) -> Round:
    """The round behind the rounds that gave `total`."""
    tensors = dict(unit.tensors)
    optimised, spread = tensors.pop(OPTIMISED), tensors.pop(SPREAD)
    targets = TargetLog(**tensors, history=tuple(unit.facts["history"]))
    outcome = EditOutcome(unit.delta, targets, tuple(unit.facts["notes"]))
    return Round(k, total + unit.delta, outcome, optimised, spread)
