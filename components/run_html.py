"""Stored runs as HTML: one line each with its state and how far it is, and what a run was asked."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from components.definitions import scrolling
from components.result_html import number
from editing_core.bench.config import RunConfig
from editing_core.bench.progress import Tracker, clock
from editing_core.errors import EditingError
from editing_core.evaluation.metrics import CARDS, PERCENT
from editing_core.runs.folder import CANCELLED, DONE, FAILED, INTERRUPTED, QUEUED, RUNNING, RunFolder
from editing_core.runs.tables import Finished, differences

SIGNS = {QUEUED: "◷", RUNNING: "▶", DONE: "✔", FAILED: "✖", CANCELLED: "■", INTERRUPTED: "↯"}
TOLD = ("created", "started", "finished", "device", "place", "commit")


def sign(status: str) -> str:
    """The status with its sign."""
    return f"{SIGNS.get(status, '?')} {status}"


def line_html(folder: RunFolder, tracker: Tracker, place: int | None = None) -> str:
    """A run's line. place: in the queue, from 1, where it waits."""
    try:
        head = folder.head()
        status, name = folder.standing(head["status"]), RunConfig.of(head["config"]).name
        progress = tracker.look(folder)
    except EditingError as error:
        return _line(FAILED, "?", folder.id, str(error), 0.0)
    told = {
        RUNNING: " · ".join(progress.pieces),
        QUEUED: f"place {place} in the queue" if place else "waits for its turn",
        DONE: _stopped(head.get("result")),
        INTERRUPTED: "its process died; Resume goes on from the last finished iteration",
        CANCELLED: "finished iterations are kept; Resume goes on",
        FAILED: str(head.get("error", "")),
    }
    return _line(status, sign(status), name, told.get(status, ""), 1.0 if status == DONE else progress.fraction)


def _stopped(result: Any) -> str:
    """Why a run ended; what stands in a run that was imported may be anything."""
    return str(result.get("stopped", "")) if isinstance(result, dict) else ""


def _line(status: str, shown: str, name: str, text: str, fraction: float) -> str:
    return (
        f"<div class='es-run es-run-{escape(status)}'><b>{escape(shown)}</b> {escape(name)} "
        f"<span class='es-note'>{escape(text)}</span>"
        f"<div class='es-bar'><div style='width:{100 * fraction:.0f}%'></div></div></div>"
    )


def lines_html(lines: Sequence[str], hint: str) -> str:
    """All lines, or what to do while there is none."""
    return (
        f"<div class='es-queue' role='status'>{''.join(lines)}</div>" if lines else f"<div class='es-hint'>{hint}</div>"
    )


def asked_html(folder: RunFolder) -> str:
    """What a run was asked, where and how it ran; why not, where it cannot be read."""
    try:
        head, standard = folder.head(), RunConfig().to_json()
        config, status = RunConfig.of(head["config"]), folder.standing(head["status"])
    except EditingError as error:
        return f"<div class='es-hint'>{escape(str(error))}</div>"
    asked = {name: value for name, value in config.to_json().items() if value != standard.get(name)}
    told = {name: head[name] for name in TOLD if name in head}
    memory, result, versions = (head.get(name) for name in ("memory", "result", "versions"))
    if isinstance(memory, int | float):
        told["memory"] = f"{memory / 2**20:,.0f} MB at most"
    if isinstance(result, dict) and isinstance(result.get("seconds"), int | float):
        told["time"] = clock(result["seconds"])
    told |= versions if isinstance(versions, dict) else {}
    rows = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>"
        for name, value in {"id": folder.id, **asked, **told}.items()
    )
    shown = f"{escape(sign(status))} {escape(config.name)}"
    return f"<details class='es-proof'><summary>{shown}</summary><dl>{rows}</dl></details>"


def file_name(folder: RunFolder) -> str:
    """What a file with the run is called; the id is not for everybody's eyes."""
    head = folder.head()
    config = RunConfig.of(head["config"])
    parts = ("editscope", config.model, config.editor, config.dataset.partition(":")[0], str(head["created"])[:10])
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def runs(count: int) -> str:
    """So many runs, in words."""
    return "1 run" if count == 1 else f"{count} runs"


def cancelled(count: int) -> str:
    """What a cancel did."""
    return f"{runs(count)} cancelled; what was finished is kept." if count else "None of these runs waits or goes on."


def resumed(count: int) -> str:
    """What a resume did."""
    return f"{runs(count)} resumed." if count else "None of these runs ended early."


def differences_html(runs: Sequence[Finished], reference: str) -> str:
    """Every other run's metrics minus the reference's, at the results, and what ± is."""
    table = differences(runs, reference)
    metrics = [metric for metric in CARDS if metric in set(table["metric"])]
    head = "".join(f"<th title='{escape(CARDS[m].definition)}'>{escape(CARDS[m].label)}</th>" for m in metrics)
    rows = []
    for _, own in table.groupby("id", sort=False):
        cells = own.set_index("metric").to_dict("index")
        told = "; ".join(dict.fromkeys(own["error"][own["error"] != ""]))
        values = "".join(f"<td>{_difference(m, cells[m]) if m in cells else ''}</td>" for m in metrics)
        rows.append(f"<tr><td>{escape(own['name'].iloc[0])}</td><td>{escape(told)}</td>{values}</tr>")
    shown = f"<table class='es-table'><tr><th>run</th><th>± is</th>{head}</tr>{''.join(rows)}</table>"
    return scrolling(shown, "Differences between runs")


def _difference(metric: str, found: Mapping[str, Any]) -> str:
    """A difference with its standard error; percentages as points."""
    tell = "{:.1f}".format if CARDS[metric].range == PERCENT else number
    more = "+" if found["difference"] > 0 else ""
    error = "" if pd.isna(found["se"]) else f" <small>± {tell(found['se'])}</small>"
    return f"{more}{tell(found['difference'])}{error}"
