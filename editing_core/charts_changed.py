"""Charts of what an edit changed: size and shape of the update, and which prompts' keys it answers to.

Pure functions, as in `charts`.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from editing_core.charts import KEPT, LOST, NEW, SYMBOLS, TRADEOFF_COLOURS, empty, finish
from editing_core.evaluation.verdict import lost_neighbors
from editing_core.explore.changed import Change

SHOWN_LINES = 12  # of singular values
PROBE_LOOKS = {"edit": (NEW, "star"), "paraphrase": ("#56B4E9", "triangle-up"), "neighbor": (KEPT, "circle")}
MOVES = {
    "cosine": "cosine of the prompt's key and the fact's",
    "moved": "share of the layer's output that moves at once, |ΔW k| / |v|",
}


def change_norms(changes: Sequence[Change]) -> go.Figure:
    """Relative norm of the update by layer, a bar for each changed parameter of it."""
    title = "Size of the update, |ΔW| / |W|"
    if not changes:
        return empty(title, "Press Measure to see which layers the edit changed.")
    parts: dict[str, list[Change]] = {}
    for change in changes:
        parts.setdefault(_part(change), []).append(change)
    figure = go.Figure()
    for number, (name, own) in enumerate(parts.items()):
        figure.add_bar(
            x=[_place(change) for change in own],
            y=[change.relative for change in own],
            name=escape(name, quote=False),
            marker={"color": TRADEOFF_COLOURS[(number + 1) % len(TRADEOFF_COLOURS)]},
            hovertext=[
                f"{escape(c.parameter, quote=False)}<br>|ΔW| {c.norm:.3g}, relative {c.relative:.3g}" for c in own
            ],
            hoverinfo="text",
        )
    places = list(dict.fromkeys(map(_place, changes)))
    figure.update_layout(barmode="group", bargap=0.4, showlegend=True)
    figure.update_xaxes(type="category", title_text="layer", categoryorder="array", categoryarray=places)
    figure.update_yaxes(exponentformat="power")
    return finish(figure, title)


def change_values(changes: Sequence[Change]) -> go.Figure:
    """Singular values of the updates, largest first, on a log axis; of the most changed ones where there are many."""
    title = "Singular values of the update"
    told = sorted((c for c in changes if any(c.values)), key=lambda c: c.relative, reverse=True)[:SHOWN_LINES]
    if not told:
        return empty(title, "Press Measure to see how many directions the edit uses.")
    several = len(set(map(_part, changes))) > 1
    figure = go.Figure()
    for number, change in enumerate(c for c in changes if c in told):
        values = [value for value in change.values if value > 1e-9 * change.values[0]]  # the rest is rounding
        name = f"layer {_place(change)}" + (f" {_part(change)}" if several else "")
        colour = TRADEOFF_COLOURS[(number + 1) % len(TRADEOFF_COLOURS)]
        figure.add_scatter(
            x=list(range(1, len(values) + 1)),
            y=values,
            mode="lines+markers",
            name=escape(name, quote=False),
            line={"color": colour},
            marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 7, "color": colour},
            hovertemplate=f"{escape(name, quote=False)}, %{{x}}: %{{y:.3g}}<extra></extra>",
        )
    figure.update_layout(showlegend=True)
    figure.update_yaxes(type="log", exponentformat="power", minor={"showgrid": False})
    most = max(len(line.x) for line in figure.data)
    figure.update_xaxes(title_text="direction, strongest first", range=[0.5, most + 0.5], dtick=max(1, round(most / 8)))
    more = f" ({SHOWN_LINES} most changed)" if len(changes) > SHOWN_LINES else ""
    return finish(figure, title + more)


def key_drift(keys: pd.DataFrame | None, before: pd.DataFrame, now: pd.DataFrame, layer: int, by: str) -> go.Figure:
    """Every prompt by what the edit does to its key (x) and what became of its own answer (y); lost ones are crossed.

    keys: as `key_table` has them. before, now: the same probes, measured without and with the edit; y is by how much
    the log-probability of a neighbor's answer, or of the old object, changed. by: a column of MOVES.
    """
    title = "What the edit does to each prompt"
    if keys is None:
        return empty(title, "Press Measure to see why some neighbors move and others do not.")
    points = drift_points(keys[keys["layer"] == layer], before, now)
    if points.empty:
        return empty(title, "No prompt of this edit has a known subject and an old answer that was measured.")
    figure = go.Figure()
    for kind, (colour, symbol) in PROBE_LOOKS.items():
        for gone in (False, True):
            rows = points[(points["kind"] == kind) & (points["lost"] == gone)]
            if rows.empty:
                continue
            shade, sign = (LOST, "x") if gone else (colour, symbol)
            figure.add_scatter(
                x=rows[by].tolist(),
                y=rows["change"].tolist(),
                mode="markers",
                name=f"{kind} {'lost' if gone else 'kept'}" if kind == "neighbor" else kind,
                marker={"symbol": sign, "size": 10, "color": shade},
                hovertext=[_drift_hover(row) for row in rows.to_dict("records")],
                hoverinfo="text",
            )
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title_text=f"{MOVES[by]}, layer {layer}")
    figure.update_yaxes(title_text="change of log p(old answer)", zeroline=True)
    return finish(figure, title, 360)


def drift_points(keys: pd.DataFrame, before: pd.DataFrame, now: pd.DataFrame) -> pd.DataFrame:
    """Rows of `keys` with what was measured of their probes: answer, p_before, p_now, change, lost."""
    name = ["case_id", "kind", "number"]
    told = now[[*name, "target_true"]].assign(
        p_before=before["p_true"].to_numpy(),
        p_now=now["p_true"].to_numpy(),
        change=now["logp_true"].to_numpy(float) - before["logp_true"].to_numpy(float),
        lost=lost_neighbors(now, before).to_numpy(),
    )
    return keys.merge(told, on=name).dropna(subset=["change"])


def _drift_hover(row: Mapping[str, Any]) -> str:
    prompt, answer = (escape(str(row[name]), quote=False) for name in ("prompt", "target_true"))
    return (
        f"{row['kind']}: {prompt}<br>{answer}: p {row['p_before']:.3g} → {row['p_now']:.3g}"
        f"<br>cosine {row['cosine']:.3g}, moved {row['moved']:.3g}"
    )


def _place(change: Change) -> str:
    return "outside" if change.layer is None else str(change.layer)


def _part(change: Change) -> str:
    """A parameter's name inside its block."""
    return change.parameter if change.layer is None else change.parameter.split(f".{change.layer}.", 1)[1]
