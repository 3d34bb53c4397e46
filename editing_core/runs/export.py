"""What a run leaves on disk: tables for a benchmark, JSON and HTML for a single edit."""

import html
import json
import math
import os
from pathlib import Path
from typing import Any

from plotly.graph_objects import Figure

from editing_core.errors import BadRequest
from editing_core.runs.record import RunResult


def write_text(path: Path, text: str) -> None:
    """A whole file or none: written beside its place, then moved there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise BadRequest(f"{path.name} could not be written ({error.strerror}); choose another place.") from error


def write_tables(run: RunResult, folder: Path, dataset: str) -> None:
    """iterations.csv (one row per k), probes.parquet, delta.safetensors and summary.json."""
    write_text(folder / "iterations.csv", run.iterations.to_csv(index=False))
    run.probes.to_parquet(folder / "probes.parquet.part", index=False)
    os.replace(folder / "probes.parquet.part", folder / "probes.parquet")
    run.delta_at(run.last).save(folder / "delta.safetensors")
    write_text(folder / "summary.json", json.dumps(summary(run, dataset), indent=1))


def summary(run: RunResult, dataset: str) -> dict[str, Any]:
    """The record of a benchmark run without its tables: what ran, when it stopped, its last row."""
    record = run.to_json()
    kept = ["schema", "id", "created", "model", "revision", "editor", "settings", "stop", "seed", "stopped"]
    kept += ["converged", "contexts", "delta", "notes", "seconds", "edit_seconds", "versions"]
    counts: dict[str, int] = {}
    for request in run.requests:
        label = run.verdict(request.case_id).label
        counts[label] = counts.get(label, 0) + 1
    last = {key: value for key, value in record["iterations"][-1].items() if not _missing(value)}
    return {"dataset": dataset, "n_edits": len(run.requests), "verdicts": counts, "last": last} | {
        key: record[key] for key in kept
    }


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def html_page(title: str, lead: str, figures: dict[str, Figure]) -> str:
    """One self-contained page: the plotting library is inside, nothing is fetched."""
    parts = []
    for number, (name, figure) in enumerate(figures.items()):
        plot = figure.to_html(full_html=False, include_plotlyjs="inline" if number == 0 else False)
        parts.append(f"<section><h2>{html.escape(name)}</h2>{plot}</section>")
    style = "body{font-family:system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{style}</style><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>{''.join(parts)}</html>\n"
    )
