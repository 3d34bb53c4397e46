"""Stored runs read back: from a folder to what tables, comparisons and charts need, and to a result like a fresh one.

A folder may come from anyone: whatever is missing, damaged or of another run is told in one sentence. iterations.csv
is written last and read first, so what it has a row for stands in the other files, also of a run that goes on.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from editing_core.bench import files
from editing_core.bench.config import RunConfig
from editing_core.bench.index import entry_of
from editing_core.editors.stopping import Decision, every_rule
from editing_core.errors import BadRequest, EditingError
from editing_core.models.delta import Update, WeightDelta
from editing_core.models.edit import Edit
from editing_core.models.edits import load, of_weights
from editing_core.runs.bundle import unpack
from editing_core.runs.folder import HEAD, RECORDS, ROUNDS, RunFolder
from editing_core.runs.record import EditPlan, Rounds, RunResult, new_id, plain_rows
from editing_core.runs.tables import Finished
from editing_core.session import plan_of
from editing_core.types import EditRequest

PERPLEXITIES = ("collapse_ppl", "ppl_optimised", "ppl_spread", "delta_ppl")
TARGETS = ("p_optimised", "p_spread", "steps", "norm", "clamped")
SO_FAR = {"running": "goes on", "queued": "waits to go on", "failed": "failed", "cancelled": "was cancelled"}


def read_finished(folder: RunFolder) -> Finished:
    """A run with at least one finished iteration; of one that ended early the last iteration stands for the result.

    Its probes are read when first asked for, with a BadRequest where they cannot be.
    """
    head = folder.head()
    config, rows = _config(folder, head), _iterations(folder)
    with _sound(folder, HEAD):
        result = head.get("result", {})
        return Finished(
            id=folder.id,
            name=config.name,
            model=config.model,
            editor=config.editor,
            assist=config.plan.assist.name or "off",
            dataset=str(result.get("dataset", config.dataset)),
            protocol=config.sharing.label,
            trial=config.trial,
            n_edits=int(result["n_edits"]) if "n_edits" in result else _measured(folder),
            chosen=int(result.get("chosen", rows["k"].max())),
            iterations=rows,
            probes=partial(_probes, folder, rows),
            variant=config.variant,
            recipe=config.recipe_label,
        )


def read_all(found: Iterable[RunFolder]) -> tuple[list[Finished], list[str]]:
    """Every run that has something to show, and why the others have not."""
    runs, problems = [], []
    for folder in found:
        try:
            runs.append(read_finished(folder))
        except EditingError as error:
            problems.append(str(error))
    return runs, problems


def read_cases(folder: RunFolder) -> tuple[pd.DataFrame, int]:
    """What became of every record at every k, whatever the protocol, and the k that is the result.

    Columns as in `evaluation.cases.case_rows` and more; case ids are texts.
    """
    head, iterations = folder.head(), _iterations(folder)
    if len(iterations) == 1:
        raise _unfinished(folder)
    with _sound(folder, files.CASES):
        cases = _up_to(iterations, files.read_case_rows(folder.path))
    with _sound(folder, HEAD):
        return cases, int(head.get("result", {}).get("chosen", len(iterations) - 1))


def read_result(folder: RunFolder) -> RunResult:
    """A batch run with at least one finished iteration, as `run_edit` would have given it.

    Of its edits only the chosen iteration's is kept, and none before there is a result. BadRequest for the other
    protocols: a RunResult is one edit of all its records.
    """
    head = folder.head()
    config, iterations = _config(folder, head), _iterations(folder)
    if config.protocol != "batch":
        got = f"Run {folder.id} is of the protocol {config.sharing.label}, only the one edit of a batch can be opened"
        raise BadRequest(f"{got}; compare its tables, or run its records as a batch.")
    if (last := len(iterations) - 1) == 0:
        raise _unfinished(folder)
    requests = _requests(folder)
    with _sound(folder, HEAD):
        plan = plan_of(head["plan"]) if "plan" in head else config.plan
    with _sound(folder, files.ITERATIONS):
        fired = _fired(iterations, plan)
    with _sound(folder, files.PROBES):
        probes = _with_ids(_up_to(iterations, files.read_probes(folder.path)), requests, last)
    with _sound(folder, files.CASES):
        cases = _cases(_up_to(iterations, files.read_case_rows(folder.path)), requests, last)
    with _sound(folder, ROUNDS):
        rounds = _first(files.read_rounds(folder.path), last)
    with _sound(folder, HEAD):
        decision = fired or _undecided(folder.standing(head["status"]), last, plan)
        told = {**_so_far(head, decision, rounds), **head.get("result", {})}
        return RunResult(
            plan=plan,
            requests=requests,
            model=config.model,
            iterations=iterations,
            probes=probes,
            cases=cases,
            deltas=tuple(_deltas(folder, head, last)),
            proofs=rounds.proofs,
            histories=rounds.histories,
            id=folder.id,
            created=str(head["created"]),
            **_ending(told, last),
        )


def import_run(bundle: Path, root: Path, owner: str = "", most: int = sys.maxsize) -> RunFolder:
    """Import a bundle below `root` under an id of its own; BadRequest when anything in it is wrong.

    owner: as in `RunFolder.create`; it is there before the run can be seen. most: bytes it may take, unpacked.
    """

    def check(folder: Path) -> None:
        _check_entry(RunFolder(folder))
        _check_records(folder)
        if owner:
            RunFolder(folder).update(owner=owner)

    return RunFolder(unpack(bundle, root, new_id(), check, most))


def _check_entry(folder: RunFolder) -> None:
    """It can be listed."""
    try:
        entry_of(folder.id, folder.head())
    except EditingError as error:
        got = f"The bundle's {HEAD} says what no run says of itself, a configuration that is read here is needed"
        raise BadRequest(f"{got}; choose a run bundle that EditScope packed.") from error


def _check_records(folder: Path) -> None:
    """Every record can be read, of a run that has any."""
    if not (folder / RECORDS).exists():
        return
    try:
        files.read_records(folder)
    except BadRequest as error:
        got = f"The bundle's {RECORDS} holds what is no record, those of an own table are needed"
        raise BadRequest(f"{got}; choose a run bundle that EditScope packed.") from error


@dataclass(frozen=True)
class StoredUpdates(Mapping[str, Update]):
    """The updates of an edit in a file, read when first asked for: of a large model they take hundreds of megabytes."""

    path: Path

    @cached_property
    def _read(self) -> Mapping[str, Update]:
        return load(self.path).updates

    def __getitem__(self, name: str) -> Update:
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


@contextmanager
def _sound(folder: RunFolder, name: str) -> Iterator[None]:
    """Errors of reading a file of the run as a refusal. Only reading belongs into the block."""
    try:
        yield
    except EditingError:
        raise
    except Exception as error:
        # What the libraries that read tables raise on damaged input has no common base.
        raise _damaged(folder, name) from error


def _damaged(folder: RunFolder, name: str) -> BadRequest:
    got = f"The {name} of run {folder.id} is missing, damaged or of another run"
    return BadRequest(f"{got}; put the right one back, or do the run again.")


def _unfinished(folder: RunFolder) -> BadRequest:
    return BadRequest(f"Run {folder.id} has finished no iteration yet; wait, or resume it.")


def _config(folder: RunFolder, head: Mapping[str, Any]) -> RunConfig:
    with _sound(folder, HEAD):
        return RunConfig.of(head["config"])


def _requests(folder: RunFolder) -> tuple[EditRequest, ...]:
    if not (folder.path / RECORDS).is_file():
        got = f"Run {folder.id} has no {RECORDS}, without which its cases cannot be opened"
        raise BadRequest(f"{got}; compare its tables, or do the run again.")
    try:
        return files.read_records(folder.path)
    except BadRequest as error:
        raise _damaged(folder, RECORDS) from error


def _iterations(folder: RunFolder) -> pd.DataFrame:
    """One row per k from 0."""
    if not (folder.path / files.ITERATIONS).is_file():
        raise _unfinished(folder)
    with _sound(folder, files.ITERATIONS):
        table = files.read_rows(folder.path / files.ITERATIONS, files.NAMED).drop(
            columns=list(files.NAMED), errors="ignore"
        )
        files.check_numbers(table, table)
        if table.empty or table["k"].tolist() != list(range(len(table))):
            raise ValueError("not one row per k")
    return table


def _probes(folder: RunFolder, iterations: pd.DataFrame) -> pd.DataFrame:
    """The probes of these iterations."""
    with _sound(folder, files.PROBES):
        return _up_to(iterations, files.read_probes(folder.path))


def _measured(folder: RunFolder) -> int:
    """How many records have probes so far. Two columns tell, which are read a hundred times faster than all."""
    with _sound(folder, files.PROBES):
        edits = [("k", "==", 0), ("kind", "==", "edit")]
        return len(pd.read_parquet(folder.path / files.PROBES, columns=["k"], filters=edits))


def _up_to(iterations: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of iterations that have finished."""
    return table[table["k"] < len(iterations)].reset_index(drop=True)


def _fired(iterations: pd.DataFrame, plan: EditPlan) -> Decision | None:
    """What the plan's rule or guard said of these rows, once it is sure that every rule can read them."""
    files.check_numbers(iterations, PERPLEXITIES)
    rows = plain_rows(iterations)
    every_rule(rows, plan.stop.tolerance)
    return plan.stop.decide(rows)


def _with_ids(probes: pd.DataFrame, requests: Sequence[EditRequest], last: int) -> pd.DataFrame:
    """Probes with the records' own case ids: a file has numbers and texts as texts. ValueError for other probes."""
    asked = [(r.case_id, kind, i) for r in requests for kind, count in _counts(r) for i in range(count)]
    expected = [(k, str(case_id), kind, i) for k in range(last + 1) for case_id, kind, i in asked]
    found = zip(probes["k"], probes["case_id"].map(str), probes["kind"], probes["number"], strict=True)
    if list(found) != expected:
        raise ValueError("probes of other records")
    return probes.assign(case_id=[case_id for case_id, *_ in asked] * (last + 1))


def _counts(request: EditRequest) -> list[tuple[str, int]]:
    """How many probes of each kind an evaluator makes of a record, in its order."""
    first = [("edit", 1), ("paraphrase", len(request.paraphrases)), ("neighbor", len(request.neighbors))]
    return [*first, ("locality", len(request.locality)), ("portability", len(request.portability))]


def _cases(cases: pd.DataFrame, requests: Sequence[EditRequest], last: int) -> pd.DataFrame:
    """Cases with the records' own case ids. ValueError for those of other records, or of no batch."""
    files.check_numbers(cases, TARGETS)
    ids = [request.case_id for request in requests] * last
    ks = [k for k in range(1, last + 1) for _ in requests]
    if cases["k"].tolist() != ks or cases["case_id"].tolist() != list(map(str, ids)):
        raise ValueError("cases of other records")
    return cases.assign(case_id=ids)


def _first(rounds: Rounds, last: int) -> Rounds:
    """The first `last` rounds; ValueError where there are fewer."""
    if len(rounds.histories) < last:
        raise ValueError("fewer rounds than iterations")
    return replace(rounds, histories=rounds.histories[:last], proofs=rounds.proofs[:last])


def _undecided(status: str, last: int, plan: EditPlan) -> Decision:
    """What stands for the decision of a run that has none."""
    most = f"iteration {last} of at most {plan.stop.iterations} is the last that was finished"
    return Decision(last, status, f"The run {SO_FAR.get(status, 'was interrupted')}; {most}.")


def _so_far(head: Mapping[str, Any], decision: Decision, rounds: Rounds) -> dict[str, Any]:
    """What stands for the result of a run that has none."""
    return {
        "chosen": decision.k,
        "stops": [{"rule": decision.rule}],
        "stopped": decision.reason,
        "revision": head.get("revision", ""),
        "contexts": head.get("contexts", ()),
        "notes": rounds.notes,
        "seconds": rounds.seconds,
        "edit_seconds": rounds.edit_seconds,
        "versions": head.get("versions", {}),
    }


def _ending(told: Mapping[str, Any], last: int) -> dict[str, Any]:
    """The fields of a RunResult that a result tells."""
    k = int(told["chosen"])
    if not 0 <= k <= last:
        raise ValueError("another iteration was chosen")
    return {
        "decision": Decision(k, str(told["stops"][0]["rule"]), str(told["stopped"])),
        "revision": str(told["revision"]),
        "contexts": tuple(map(str, told["contexts"])),
        "notes": tuple(map(str, told["notes"])),
        "seconds": float(told["seconds"]),
        "edit_seconds": float(told["edit_seconds"]),
        "versions": {str(name): str(version) for name, version in told["versions"].items()},
    }


def _deltas(folder: RunFolder, head: Mapping[str, Any], last: int) -> Iterator[Edit | None]:
    """The edit of the chosen iteration, in the place of its k."""
    path = folder.path / files.DELTA
    chosen = head["result"]["chosen"] if "result" in head and path.is_file() else None
    for k in range(1, last + 1):
        yield _stored(path) if k == chosen else None


def _stored(path: Path) -> Edit:
    """The edit in a file: weights only when they are asked for, other kinds, which are small, at once."""
    return WeightDelta(StoredUpdates(path)) if of_weights(path) else load(path)
