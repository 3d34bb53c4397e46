"""Benchmark protocols: all records together, each on its own, or chunk after chunk on the running weights.

    batch        one edit of all records; one row per iteration
    single       every record alone on the unedited model, taken off before the next; row k holds every record
                 as it is after iteration k, or where it stopped before
    sequential   chunks of records on top of each other, never taken off; row 0 is the unedited model, row 1 the
                 end, and checkpoints tell how it got there

Definitions: MEMIT (arXiv:2210.07229), AlphaEdit (arXiv:2410.02355), Yao et al. 2023 (arXiv:2305.13172).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pandas as pd

from editing_core.conventions import Conventions
from editing_core.editors.iterative import Iterative, Round
from editing_core.evaluation.cases import case_rows, underedit_counts
from editing_core.evaluation.evaluator import Evaluator
from editing_core.evaluation.metrics import in_order, summarize
from editing_core.making import check_asked
from editing_core.models.delta import WeightDelta
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel
from editing_core.runs.journal import NOTHING_KEPT, Journal, Tables, Unit, Within
from editing_core.runs.record import EditPlan, RunResult
from editing_core.session import finished, run_stage, set_stage
from editing_core.settings import Settings, setting
from editing_core.statistics.covariance import CovarianceStore
from editing_core.story import Stage, has_begun
from editing_core.types import EditRequest, Probe, Row, Watch, ignore, noting

PROTOCOLS = ("batch", "single", "sequential")
PERPLEXITIES = ("ppl_optimised", "ppl_spread")
SHOWN = 20  # times that tables of many single records are shown on the way


@dataclass(frozen=True)
class Protocol(Settings):
    """How records share the model."""

    name: str = setting(
        "batch",
        "batch: all together; single: each alone; sequential: chunk after chunk without taking any off",
        choices=PROTOCOLS,
    )
    chunk: int = setting(1, "Records per chunk in the sequential protocol", 1, 100_000)

    @property
    def label(self) -> str:
        """The protocol in short, for tables."""
        return f"sequential, chunks of {self.chunk}" if self.name == "sequential" else self.name

    def shares(self, records: int) -> tuple[int, int]:
        """How many of so many records are edited at once, and in how many chunks on top of each other."""
        chunk = min(self.chunk, records)
        return {"batch": (records, 1), "single": (1, 1), "sequential": (chunk, -(-records // chunk))}[self.name]


@dataclass(frozen=True, eq=False)
class Benchmark:
    """What a protocol gave: tables as in RunResult, over all records.

    delta: the whole edit, None for `single`, which has none. chosen: the row that is the result. stops: per
    edited group its record ids, the iteration kept and the rule. checkpoints: sequential only, one row per
    measured moment: n_edits, when (just after: the chunk; so far: all records yet), and the metrics.
    """

    plan: EditPlan
    protocol: Protocol
    requests: tuple[EditRequest, ...]
    iterations: pd.DataFrame
    probes: pd.DataFrame
    cases: pd.DataFrame
    stops: tuple[Row, ...]
    chosen: int
    stopped: str
    seconds: float
    edit_seconds: float
    contexts: tuple[str, ...]
    delta: Edit | None = None
    run: RunResult | None = None
    checkpoints: pd.DataFrame | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def states(self) -> dict[str, int]:
        """How many records ended in which state."""
        last = self.cases[self.cases["k"] == self.chosen]
        if last.empty:  # a guard went back to the unedited model
            first = self.probes[self.probes["k"] == 0].reset_index(drop=True)
            last = pd.DataFrame(case_rows(0, first, first, 1.0, 1.0)[0])
        counts: dict[str, int] = last["state"].value_counts().to_dict()
        return counts

    @property
    def known(self) -> int:
        """For how many records the unedited model gave the old object."""
        first = self.probes[(self.probes["k"] == 0) & (self.probes["kind"] == "edit")]
        return int((first["hit_true"] >= 1.0).sum())


Begun = Callable[[Stage], None]
"""Told once everything is final that is edited and measured, before the first of that is done."""


def unheard(_stage: Stage) -> None:
    """The Begun of someone who does not listen."""


@dataclass(frozen=True, eq=False)
class Tools:
    """What a benchmark works with: statistics, how it measures, where finished pieces are kept, who hears of its start.

    What the journal holds already, iterations or chunks, is not done again. pool: known facts that are not edited, for
    editors that train on such. notes: remarks on all this, for the result.
    """

    store: CovarianceStore = field(default_factory=CovarianceStore)
    evaluator: Evaluator = field(default_factory=Evaluator)
    journal: Journal = NOTHING_KEPT
    begun: Begun = unheard
    pool: Sequence[Probe] = ()
    notes: tuple[str, ...] = ()


def run_benchmark(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    plan: EditPlan,
    protocol: Protocol | None = None,
    watch: Watch = ignore,
    tools: Tools | None = None,
) -> Benchmark:
    """Edit records under a protocol and measure them all. The model is bit-equal before and after."""
    protocol, tools = protocol or Protocol(), tools or Tools()
    run = {"batch": _batch, "single": _single, "sequential": _sequential}[protocol.name]
    check_asked(plan, *protocol.shares(len(requests)))
    lm = lm.framed(plan.conventions.chat)
    with lm.lock:
        started = time.perf_counter()
        stage = set_stage(lm, requests, plan, tools.store, watch, tools.evaluator, tools.pool)
        stage = replace(stage, notes=(*stage.notes, *tools.notes))
        tools.begun(stage)
        result = run(stage, plan, protocol, watch, tools.journal)
        return replace(result, seconds=time.perf_counter() - started)


def _batch(stage: Stage, plan: EditPlan, protocol: Protocol, watch: Watch, journal: Journal) -> Benchmark:
    run = finished(run_stage(stage, plan, watch, journal=journal))
    return Benchmark(
        plan,
        protocol,
        run.requests,
        run.iterations,
        run.probes,
        run.cases,
        ({"case_ids": [r.case_id for r in run.requests], "k": run.chosen, "rule": run.decision.rule},),
        run.chosen,
        run.stopped,
        run.seconds,
        run.edit_seconds,
        run.contexts,
        run.delta_at(run.chosen),
        run,
        notes=run.notes,
    )


def _single(stage: Stage, plan: EditPlan, protocol: Protocol, watch: Watch, journal: Journal) -> Benchmark:
    runs: list[RunResult] = []
    together, every = partial(_together, runs, stage.evaluator.conventions), max(1, len(stage.requests) // SHOWN)
    for number, request in enumerate(stage.requests):
        stage.editor.forget()
        at = f"record {number + 1} of {len(stage.requests)}"
        alone, own = replace(stage, requests=(request,), notes=()), Within(journal, f"record-{number}")
        # While records are only recalled, their tables are shorter than those shown before the interruption.
        new = not has_begun(own)
        runs.append(run_stage(alone, plan, noting(watch, at), journal=own))
        # Counted from the end, so that what is shown last is of all records.
        if new and (len(stage.requests) - len(runs)) % every == 0:
            journal.show(together)
    fired = sum(run.converged for run in runs)
    return _benchmark(
        stage,
        plan,
        protocol,
        together(),
        stops=tuple({"case_ids": [r.requests[0].case_id], "k": r.chosen, "rule": r.decision.rule} for r in runs),
        stopped=f"The rule fired for {fired} of {len(runs)} records, each edited alone.",
        seconds=sum(run.seconds for run in runs),
        edit_seconds=sum(run.edit_seconds for run in runs),
        contexts=runs[0].contexts,
        notes=tuple(dict.fromkeys((*stage.notes, *(note for run in runs for note in run.notes)))),
    )


def _together(runs: Sequence[RunResult], conventions: Conventions) -> Tables:
    """The tables of records that were each edited alone, any number of them from 1."""
    probes, cases, rows = [], [], []
    for k in range(max(1, *(run.last for run in runs)) + 1):
        # A record that stopped stays as it is; one that a guard took back is unedited.
        now = pd.concat([run.probes_at(_held(run, k)) for run in runs], ignore_index=True).assign(k=k)
        probes.append(now)
        rows.append({"k": k, **summarize(now, probes[0], k, conventions), **_perplexities(runs, k)})
        if k:
            cases += [row for run in runs for row in _case_at(run, k)]
    told = pd.DataFrame(cases)
    table = pd.DataFrame(rows).merge(underedit_counts(told), on="k", how="left")
    return Tables(in_order(table), pd.concat(probes, ignore_index=True), told)


def _held(run: RunResult, k: int) -> int:
    """The iteration at which a record is while others are at k."""
    return k if k < run.last else run.chosen


def _perplexities(runs: Sequence[RunResult], k: int) -> Row:
    """Means over records, each at its own iteration."""
    held = [run.iterations.iloc[_held(run, k)] for run in runs]
    columns = [c for c in (*PERPLEXITIES, "delta_ppl", "collapse_ppl") if k or c in ("ppl_spread", "collapse_ppl")]
    return {c: float(pd.Series([row.get(c) for row in held], dtype=float).mean()) for c in columns}


def _case_at(run: RunResult, k: int) -> list[Row]:
    """The case row of a run's one record while others are at k."""
    held = _held(run, k)
    if held:
        return [{**row, "k": k} for row in run.cases[run.cases["k"] == held].to_dict("records")]
    collapse = float(run.iterations["collapse_ppl"].iloc[0])
    return case_rows(k, run.probes_at(0), run.probes_at(0), collapse, collapse)[0]


def _sequential(stage: Stage, plan: EditPlan, protocol: Protocol, watch: Watch, journal: Journal) -> Benchmark:
    lm, size = stage.lm, protocol.chunk
    evaluator = stage.evaluator
    before = _Moment(evaluator.score_unedited(lm, stage.requests), evaluator.collapse_unedited(lm))
    chunks = [stage.requests[i : i + size] for i in range(0, len(stage.requests), size)]
    wanted = _log_spaced(len(chunks))
    total: Edit = WeightDelta()
    edit_seconds, notes = 0.0, list(stage.notes)
    stops: list[Row] = []
    checkpoints: list[Row] = []
    for number, chunk in enumerate(chunks, start=1):
        name, so_far = f"chunk-{number}", stage.requests[: (number - 1) * size + len(chunk)]
        unit = journal.find(name)
        if unit is None:
            told = noting(watch, f"chunk {number} of {len(chunks)}")
            unit = _chunk_unit(stage, plan, chunk, total, told)
            total += unit.delta
            with total.applied(lm) as edited:
                _settle(replace(stage, lm=edited), chunk, unit)
                rows = [_checkpoint(stage, stage.evaluator.score(edited, chunk), before, len(so_far), "just after")]
                if number in wanted:
                    now = _measured(replace(stage, lm=edited), so_far)
                    row = _checkpoint(stage, now.probes, before, len(so_far), "so far")
                    rows.append({**row, "collapse_ppl": now.collapse_ppl})
                    journal.show(partial(_two_moments, stage, before, now, [*checkpoints, *rows]))
            unit = replace(unit, facts={**unit.facts, "checkpoints": rows})
            journal.keep(name, unit)
        else:
            total += unit.delta
            with total.applied(lm) as edited:
                _settle(replace(stage, lm=edited), chunk, unit)
        stops.append(dict(unit.facts["stop"]))
        checkpoints += unit.facts["checkpoints"]
        notes += unit.facts["notes"]
        edit_seconds += unit.facts["seconds"]
    with total.applied(lm) as edited:
        now = _measured(replace(stage, lm=edited), stage.requests)
        tables = _two_moments(stage, before, now, checkpoints)
    return _benchmark(
        stage,
        plan,
        protocol,
        tables,
        stops=tuple(stops),
        stopped=f"{len(chunks)} chunks were edited one after the other.",
        seconds=0.0,
        edit_seconds=edit_seconds,
        contexts=stage.editor.objective.contexts.templates,
        delta=total,
        notes=tuple(dict.fromkeys(notes)),
    )


def _benchmark(stage: Stage, plan: EditPlan, protocol: Protocol, tables: Tables, **more: Any) -> Benchmark:
    """The result of a protocol that edits several groups: its last row counts. more: fields of Benchmark."""
    return Benchmark(
        plan=plan,
        protocol=protocol,
        requests=stage.requests,
        iterations=tables.iterations,
        probes=tables.probes,
        cases=tables.cases,
        checkpoints=tables.checkpoints,
        chosen=len(tables.iterations) - 1,
        **more,
    )


@dataclass(frozen=True, eq=False)
class _Moment:
    """What a model was at one moment: its probe table of some records, its perplexity of the held-out texts."""

    probes: pd.DataFrame
    collapse_ppl: float


def _measured(stage: Stage, requests: Sequence[EditRequest]) -> _Moment:
    """The model as it is now."""
    return _Moment(stage.evaluator.score(stage.lm, requests), stage.evaluator.collapse(stage.lm))


def _two_moments(stage: Stage, before: _Moment, now: _Moment, checkpoints: Sequence[Row]) -> Tables:
    """The unedited model as row 0, and as row 1 that with the edits so far on; of the records of `now`."""
    first = replace(before, probes=_rows_of(before.probes, now.probes))
    moments, conventions = list(enumerate((first, now))), stage.evaluator.conventions
    rows = [
        {"k": k, **summarize(m.probes, first.probes, k, conventions), "collapse_ppl": m.collapse_ppl}
        for k, m in moments
    ]
    cases, _ = case_rows(1, now.probes, first.probes, now.collapse_ppl, first.collapse_ppl)
    return Tables(
        in_order(pd.DataFrame(rows)),
        pd.concat([m.probes.assign(k=k)[["k", *m.probes.columns]] for k, m in moments], ignore_index=True),
        pd.DataFrame(cases),
        pd.DataFrame(checkpoints),
    )


def _rows_of(before: pd.DataFrame, now: pd.DataFrame) -> pd.DataFrame:
    """The rows of a probe table that another one has of some of its records."""
    return before[before["case_id"].isin(set(now["case_id"]))].reset_index(drop=True)


def _chunk_unit(stage: Stage, plan: EditPlan, chunk: Sequence[EditRequest], total: Edit, watch: Watch) -> Unit:
    """The edit of one chunk on top of `total`; the guard looks at the held-out perplexity from there."""
    started = time.perf_counter()
    with total.applied(stage.lm) as lm:

        def measure(done: Round) -> Mapping[str, Any]:
            with done.delta.applied(lm) as edited:
                return {"collapse_ppl": stage.evaluator.collapse(edited)} if plan.stop.collapse_factor else {}

        start = {"collapse_ppl": stage.evaluator.collapse(lm)} if plan.stop.collapse_factor else None
        outcome = Iterative(stage.editor, plan.stop, plan.conventions).edit(lm, chunk, watch, measure, start)
    decision = outcome.decision
    stop = {"case_ids": [r.case_id for r in chunk], "k": decision.k, "rule": decision.rule}
    notes = [note for r in outcome.rounds for note in r.outcome.notes]
    return Unit({"stop": stop, "notes": notes, "seconds": time.perf_counter() - started}, delta=outcome.delta)


def _settle(stage: Stage, chunk: Sequence[EditRequest], unit: Unit) -> None:
    """Let the editor remember a chunk, with its edit on; what was taken back is nothing to protect."""
    if unit.facts["stop"]["k"]:
        stage.editor.settle(stage.lm, chunk)


def _checkpoint(stage: Stage, now: pd.DataFrame, before: _Moment, done: int, when: str) -> Row:
    """The metrics of the records of `now`, measured with the edits so far on."""
    then = _rows_of(before.probes, now)
    return {"n_edits": done, "when": when, **summarize(now, then, 1, stage.evaluator.conventions)}


def _log_spaced(count: int, per_decade: int = 4) -> set[int]:
    """Numbers from 1 to count, evenly on a log scale, both ends included."""
    spots, value = {1, count}, 1.0
    while value < count:
        spots.add(round(value))
        value *= 10 ** (1 / per_decade)
    return spots
