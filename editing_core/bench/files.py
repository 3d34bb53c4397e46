"""What a benchmark leaves on disk: tables, the edit itself, and a summary with all that decided the numbers.

The readers give what was written, to the bit; what they raise on a file that is damaged has no common base.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from editing_core.bench.protocols import Benchmark
from editing_core.data.datasets import load_dataset
from editing_core.data.table import write_requests
from editing_core.editors.stopping import every_rule
from editing_core.evaluation.evaluator import PROBE_COLUMNS
from editing_core.files import whole, write_text
from editing_core.models.language_model import LanguageModel
from editing_core.runs.folder import RECORDS, ROUNDS
from editing_core.runs.record import SCHEMA, Rounds, plain_rows, versions
from editing_core.types import EditRequest

ITERATIONS, CASES, PROBES, DELTA = "iterations.csv", "cases.csv", "probes.parquet", "delta.safetensors"
OPTIONAL = (DELTA, "checkpoints.csv", "beside_paper.csv")
# Columns of iterations.csv that are equal in it.
NAMED = ("model", "editor", "recipe", "assist", "protocol", "preset", "n_edits")
CASE_TEXTS = ("case_id", "prompt", "target_new", "target_true", "state", "reason")
CASE_NUMBERS = ("k", "p_new", "p_true", "rank_new", "lost", "neighbors")
PROBE_TEXTS, PROBE_LISTS = ("kind", "family", "prompt", "target_new", "target_true", "answer"), ("labels", "choices")
PROBE_NUMBERS = ("k", *(name for name in PROBE_COLUMNS if name not in ("case_id", *PROBE_TEXTS, *PROBE_LISTS)))


def write_benchmark(
    result: Benchmark, folder: Path, lm: LanguageModel, told: Mapping[str, Any], beside: pd.DataFrame | None = None
) -> None:
    """Write the tables of `write_tables` and summary.json into a folder. told: what is known of data set and trial."""
    write_tables(result, folder, lm, told, beside)
    write_text(folder / "summary.json", json.dumps(summary(result, lm, told), indent=1))


def write_tables(
    result: Benchmark, folder: Path, lm: LanguageModel, told: Mapping[str, Any], beside: pd.DataFrame | None = None
) -> None:
    """Write iterations.csv (one row per k), probes.parquet and cases.csv into a folder.

    Where there are any, also delta.safetensors, checkpoints.csv and beside_paper.csv.
    """
    plan = result.plan
    about = (lm.name, plan.editor, told.get("recipe", ""), plan.assist.name or "off", result.protocol.label)
    named = dict(zip(NAMED, (*about, told.get("preset", ""), len(result.requests)), strict=True))
    for name in OPTIONAL:  # an earlier run's in the same folder would be read as this one's
        (folder / name).unlink(missing_ok=True)
    write_text(folder / CASES, result.cases.to_csv(index=False))
    write_probes(result.probes, folder)
    if result.delta is not None:
        with whole(folder / DELTA) as part:
            result.delta.save(part)
    for name, table in (("checkpoints.csv", result.checkpoints), ("beside_paper.csv", beside)):
        if table is not None:
            write_text(folder / name, table.to_csv(index=False))
    write_text(folder / ITERATIONS, result.iterations.assign(**named).to_csv(index=False))  # readers begin with it


def write_probes(probes: pd.DataFrame, folder: Path) -> None:
    """Write probes.parquet, whole or not at all."""
    if probes["case_id"].map(type).nunique() > 1:  # a column of a parquet file has one type
        probes = probes.assign(case_id=probes["case_id"].map(str))
    with whole(folder / PROBES) as part:
        probes.to_parquet(part, index=False)


def read_rows(path: Path, texts: Sequence[str]) -> pd.DataFrame:
    """A CSV table whose other columns are numbers, blank for NaN; `texts` may be any, also "NA"."""
    blank = {column: [""] for column in pd.read_csv(path, nrows=0) if column not in texts}
    return pd.read_csv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=blank)


def read_case_rows(folder: Path) -> pd.DataFrame:
    """cases.csv, with texts for case ids."""
    table = read_rows(folder / CASES, CASE_TEXTS)
    check_numbers(table, CASE_NUMBERS)
    check_texts(table, CASE_TEXTS)
    return table


def read_probes(folder: Path) -> pd.DataFrame:
    """probes.parquet; case ids are texts where some of them are."""
    table = pd.read_parquet(folder / PROBES)
    check_numbers(table, PROBE_NUMBERS)
    check_texts(table, PROBE_TEXTS)
    for name in (*PROBE_LISTS, *table.columns.intersection(["generated"])):
        table[name] = [[int(token) for token in tokens] for tokens in table[name]]
    return table


def check_numbers(table: pd.DataFrame, columns: Iterable[str]) -> None:
    """KeyError or ValueError unless these columns hold numbers."""
    if not all(pd.api.types.is_numeric_dtype(table[name]) for name in columns):
        raise ValueError("a number is none")


def check_texts(table: pd.DataFrame, columns: Iterable[str]) -> None:
    """KeyError or ValueError unless these columns hold texts."""
    if not all(isinstance(value, str) for name in columns for value in table[name]):
        raise ValueError("a text is none")


def write_records(requests: Sequence[EditRequest], folder: Path) -> None:
    """Write records.json, whole or not at all; `load_dataset("table:PATH")` gives the requests back equal."""
    with whole(folder / RECORDS) as part:
        write_requests(requests, part)


def read_records(folder: Path) -> tuple[EditRequest, ...]:
    """What `write_records` wrote; BadRequest unless all of it can be read."""
    return load_dataset(f"table:{folder.absolute() / RECORDS}").requests


def write_rounds(rounds: Rounds, folder: Path) -> None:
    """Write rounds.json, whole or not at all."""
    write_text(folder / ROUNDS, json.dumps(rounds.to_json()))


def read_rounds(folder: Path) -> Rounds:
    """What `write_rounds` wrote."""
    return Rounds.of(json.loads((folder / ROUNDS).read_text(encoding="utf-8")))


def summary(result: Benchmark, lm: LanguageModel, told: Mapping[str, Any]) -> dict[str, Any]:
    """What ran, on what, under which protocol and conventions, how it ended, and its final row."""
    rows = plain_rows(result.iterations)
    last = {key: value for key, value in rows[result.chosen].items() if value is not None}
    single = len(result.stops) == 1
    rules = every_rule(rows, result.plan.stop.tolerance) if single else {}
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **told,
        "n_edits": len(result.requests),
        "known_before": result.known,
        "model": lm.name,
        "revision": lm.revision,
        "editor": result.plan.editor,
        "settings": asdict(result.plan.settings),
        "assist": asdict(result.plan.assist),
        "conventions": asdict(result.plan.conventions),
        "stop": asdict(result.plan.stop),
        "seed": result.plan.seed,
        "protocol": asdict(result.protocol),
        "chosen": result.chosen,
        "stopped": result.stopped,
        "converged": single and result.stops[0]["rule"] == result.plan.stop.stop,
        "rules": {name: decision.k if decision else None for name, decision in rules.items()},
        "verdicts": result.states,
        "last": last,
        "stops": [dict(stop) for stop in result.stops],
        "contexts": list(result.contexts),
        "delta": [asdict(p) for p in result.delta.proofs(lm.model)] if result.delta is not None else [],
        "notes": list(result.notes),
        "seconds": result.seconds,
        "edit_seconds": result.edit_seconds,
        "versions": versions(),
    }
