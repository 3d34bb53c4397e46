"""What a benchmark leaves on disk: tables, the edit itself, and a summary with all that decided the numbers."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from editing_core.bench.protocols import Benchmark
from editing_core.editors.stopping import every_rule
from editing_core.models.language_model import LanguageModel
from editing_core.runs.export import whole, write_text
from editing_core.runs.record import SCHEMA, plain_rows, versions

OPTIONAL = ("delta.safetensors", "checkpoints.csv", "beside_paper.csv")


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
    named = {
        "model": lm.name,
        "editor": result.plan.editor,
        "assist": result.plan.assist.name or "off",
        "protocol": result.protocol.label,
        "preset": told.get("preset", ""),
        "n_edits": len(result.requests),
    }
    for name in OPTIONAL:  # an earlier run's in the same folder would be read as this one's
        (folder / name).unlink(missing_ok=True)
    write_text(folder / "iterations.csv", result.iterations.assign(**named).to_csv(index=False))
    write_text(folder / "cases.csv", result.cases.to_csv(index=False))
    write_probes(result.probes, folder)
    if result.delta is not None:
        with whole(folder / "delta.safetensors") as part:
            result.delta.save(part)
    for name, table in (("checkpoints.csv", result.checkpoints), ("beside_paper.csv", beside)):
        if table is not None:
            write_text(folder / name, table.to_csv(index=False))


def write_probes(probes: pd.DataFrame, folder: Path) -> None:
    """Write probes.parquet, whole or not at all."""
    if probes["case_id"].map(type).nunique() > 1:  # a column of a parquet file has one type
        probes = probes.assign(case_id=probes["case_id"].map(str))
    with whole(folder / "probes.parquet") as part:
        probes.to_parquet(part, index=False)


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
