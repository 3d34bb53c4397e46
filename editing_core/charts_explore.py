"""Charts of Explore: where a fact is, and what every layer would say.

Pure functions, as in `charts`. Amounts without a meaning of their own are drawn in one scale that colour-blind people
read too.
"""

from collections.abc import Sequence
from html import escape
from math import isnan

import plotly.graph_objects as go
from torch import Tensor

from editing_core.charts import HEIGHT, INK, ITERATION, ITERATION_DARK, NEW, OLD, empty, finish
from editing_core.explore.average import Average
from editing_core.explore.lens import Lens
from editing_core.explore.trace import KINDS, LAST_SUBJECT, ROLES, Trace

SCALE = "Cividis"
PALE = [[0, "#F5F5F5"], [1, "#56B4E9"]]  # words can be read on all of it
ROW, LENS_ROW, AROUND = 17, 24, 110  # pixels of a heatmap's row, of one with words, and of all around the rows
TOP = 40  # pixels above a chart without a legend
SKY = "#56B4E9"
KIND_NAMES = {"hidden": "Hidden state", "mlp": "MLP", "attention": "Attention"}
KIND_LINES = {"hidden": (INK, "circle", "solid"), "mlp": (SKY, "square", "dash")}
KIND_LINES |= {"attention": (ITERATION_DARK, "triangle-up", "dot")}
SHOWN_TOKENS = 24  # columns of a lens, the last ones of the prompt
LETTERS = 150  # of all tokens of a row of cells
WORDS = {"size": 11}


def trace_heatmap(found: Trace | Average | None, kind: str) -> go.Figure:
    """Indirect effect of one kind of state: tokens of a fact, or roles of tokens in several, by layer.

    The three kinds of one trace share their scale. The largest effect is marked.
    """
    title = KIND_NAMES[kind]
    if found is None:
        return empty(title, "Press Trace to see where<br>the fact comes back.")
    if isinstance(found, Trace):
        labels, effects = _labels(found), {name: found.effect(name) for name in KINDS}
        of = f"{found.window} layers together" if found.window > 1 and kind != "hidden" else ""
    else:
        labels, effects = list(ROLES), dict(found.mean)
        of = f"mean of {found.facts} fact{'s' if found.facts > 1 else ''}"
    rows = _rows(effects[kind])
    shown = [value for name in KINDS for row in _rows(effects[name]) for value in row if value is not None]
    figure = go.Figure()
    figure.add_heatmap(
        z=rows,
        zmin=min(0.0, *shown),
        zmax=max(1e-6, *shown),
        colorscale=SCALE,
        colorbar={"thickness": 8, "outlinewidth": 0, "x": 1.0, "xpad": 4, "tickformat": ".2~f"},
        hovertext=_trace_hover(found, kind, labels),
        hoverinfo="text",
        xgap=1,
        ygap=1,
    )
    cells = [(y, x, value) for y, line in enumerate(rows) for x, value in enumerate(line) if value is not None]
    row, layer, top = max(cells, key=lambda cell: cell[2])
    if top > 0:
        figure.add_scatter(
            x=[layer],
            y=[row],
            mode="markers",
            marker={"symbol": "diamond", "size": 9, "color": "white", "line": {"color": "black", "width": 1.5}},
            name="largest",
            hoverinfo="skip",
            showlegend=False,
        )
    figure.update_xaxes(**_layer_axis(len(rows[0])))
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(
        autorange="reversed", showgrid=False, tickvals=list(range(len(labels))), ticktext=labels, zeroline=False
    )
    figure.update_layout(margin_t=TOP)
    return finish(figure, f"{title}{', ' * bool(of)}{of}", max(HEIGHT, AROUND + ROW * len(rows)))


def _labels(found: Trace) -> list[str]:
    return [token_text(text) + ("*" if at in found.subject else "") for at, text in enumerate(found.tokens)]


def _rows(effect: Tensor) -> list[list[float | None]]:
    """(layers, rows) as rows over layers; None for what nobody has."""
    return [[None if isnan(value) else value for value in row] for row in effect.T.tolist()]


def _trace_hover(found: Trace | Average, kind: str, labels: Sequence[str]) -> list[list[str]]:
    if isinstance(found, Trace):
        restored, effects = found.restored[kind].T.tolist(), found.effect(kind).T.tolist()
        told = [
            [f"p restored {p:.3g}, effect {e:.3g}" for p, e in zip(*row, strict=True)]
            for row in zip(restored, effects, strict=True)
        ]
    else:
        means, errors = _rows(found.mean[kind]), _rows(found.error[kind])
        told = [[_mean_text(*pair) for pair in zip(*row, strict=True)] for row in zip(means, errors, strict=True)]
    named = zip(labels, told, strict=True)
    return [[f"{label}, layer {i}<br>{text}" for i, text in enumerate(row)] for label, row in named]


def _mean_text(mean: float | None, error: float | None) -> str:
    if mean is None:
        return "no fact has such a token"
    return f"effect {mean:.3g}" + ("" if error is None else f" ± {error:.2g} (standard error)")


def trace_curves(found: Average | None) -> go.Figure:
    """Effect at the subject's last token by layer, a line for each kind, with its standard error over facts."""
    title = "Effect at the subject's last token"
    if found is None:
        return empty(title, "Press Average over facts to see which layers carry facts.")
    figure = go.Figure()
    for kind in KINDS:
        colour, symbol, dash = KIND_LINES[kind]
        mean, error = (part.tolist() for part in found.curve(kind, LAST_SUBJECT))
        layers = list(range(len(mean)))
        if found.facts > 1:
            around = [m + e for m, e in zip(mean, error, strict=True)]
            around += [m - e for m, e in zip(reversed(mean), reversed(error), strict=True)]
            shade = {"fill": "toself", "fillcolor": colour, "opacity": 0.2, "line": {"width": 0}, "hoverinfo": "skip"}
            figure.add_scatter(x=layers + layers[::-1], y=around, mode="lines", showlegend=False, name=kind, **shade)
        figure.add_scatter(
            x=layers,
            y=mean,
            mode="lines+markers",
            name=KIND_NAMES[kind],
            line={"color": colour, "dash": dash},
            marker={"symbol": symbol, "size": 8, "color": colour},
            customdata=error,
            hovertemplate=f"{KIND_NAMES[kind]}, layer %{{x}}: %{{y:.3g}}"
            + (" ± %{customdata:.2g}" if found.facts > 1 else "")
            + "<extra></extra>",
        )
    of = f" (mean of {found.facts} facts, shaded: standard error)" if found.facts > 1 else ""
    figure.update_xaxes(**_layer_axis(len(layers), of))
    figure.update_yaxes(title_text="indirect effect")
    return finish(figure, title)


def lens_grid(shown: Lens | None, other: Lens | None, when: str) -> go.Figure:
    """The likeliest next token behind every token and layer, its probability as colour.

    other: the same prompt under the other state; cells whose first token is another one there are framed and bold.
    """
    title = f"Logit lens {escape(when)}"
    if shown is None:
        return empty(title, "Press Look to see what every layer would say.")
    layers, start = range(len(shown.top)), max(0, len(shown.tokens) - SHOWN_TOKENS)
    columns = range(start, len(shown.tokens))
    letters = min(14, LETTERS // len(columns))
    differing = {(i, t) for i in layers for t in columns if other and _differ(shown, other, i, t)}
    figure = go.Figure()
    figure.add_heatmap(
        x=list(columns),
        z=[[shown.first(i, t).probability for t in columns] for i in layers],
        text=[[_cell(shown.first(i, t).token, letters, (i, t) in differing) for t in columns] for i in layers],
        texttemplate="%{text}",
        textfont=WORDS,
        zmin=0,
        zmax=1,
        colorscale=PALE,
        colorbar={"thickness": 8, "outlinewidth": 0, "x": 1.0, "xpad": 4},
        hovertext=[[_lens_hover(shown, i, t) for t in columns] for i in layers],
        hoverinfo="text",
        xgap=1,
        ygap=1,
    )
    if differing:
        figure.add_scatter(**_frames(sorted(differing)))
    figure.update_xaxes(
        tickvals=list(columns), ticktext=[token_text(shown.tokens[t]) for t in columns], tickangle=-40, showgrid=False
    )
    figure.update_yaxes(**_layer_axis(len(layers)))
    figure.update_yaxes(showgrid=False, zeroline=False)
    title += f", last {SHOWN_TOKENS} of {len(shown.tokens)} tokens" if start else ""
    if other:
        words = f"framed: {len(differing)} cells that say something else than on the other side"
        figure.update_xaxes(title_text=words)
    figure.update_layout(margin_t=TOP)
    return finish(figure, title, max(HEIGHT, AROUND + LENS_ROW * len(layers)))


def _differ(one: Lens, other: Lens, layer: int, token: int) -> bool:
    return one.first(layer, token).token != other.first(layer, token).token


def _cell(token: str, letters: int, bold: bool) -> str:
    text = token_text(token if len(token) <= letters else f"{token[: letters - 1]}…")
    return f"<b>{text}</b>" if bold else text


def _lens_hover(shown: Lens, layer: int, token: int) -> str:
    lines = [f"{i + 1}. {token_text(c.token)} {c.probability:.3g}" for i, c in enumerate(shown.top[layer][token])]
    return f"behind {token_text(shown.tokens[token])}, layer {layer}<br>" + "<br>".join(lines)


def _frames(cells: Sequence[tuple[int, int]]) -> dict[str, object]:
    """One line around each cell (layer, token): a figure of thousands of shapes would take seconds to draw."""
    x: list[float | None] = []
    y: list[float | None] = []
    for layer, token in cells:
        x += [token - 0.5, token + 0.5, token + 0.5, token - 0.5, token - 0.5, None]
        y += [layer - 0.5, layer - 0.5, layer + 0.5, layer + 0.5, layer - 0.5, None]
    line = {"color": ITERATION, "width": 3}
    return {"x": x, "y": y, "mode": "lines", "line": line, "hoverinfo": "skip", "showlegend": False, "name": "differs"}


def chances_by_layer(before: Lens | None, after: Lens | None, new: str, old: str) -> go.Figure:
    """Probability of both objects behind the prompt, by layer: before dashed, after solid."""
    title = "Probability of the objects' first tokens, by layer"
    if before is None:
        return empty(title, "Press Look to see where an answer becomes readable.")
    figure = go.Figure()
    for shown, when, dash in ((before, "before", "dash"), (after, "after", "solid")):
        for text, what, colour, symbol in ((new, "new", NEW, "circle"), (old, "old", OLD, "square")):
            if shown is None or text not in shown.chances:
                continue
            chances = shown.chances[text].tolist()
            figure.add_scatter(
                x=list(range(len(chances))),
                y=chances,
                mode="lines+markers",
                name=f"{what}, {when}",
                line={"color": colour, "dash": dash},
                marker={"symbol": f"{symbol}-open" if when == "before" else symbol, "size": 8, "color": colour},
                hovertemplate=f"{escape(text, quote=False)}, {when}, layer %{{x}}: %{{y:.3g}}<extra></extra>",
            )
    if not figure.data:
        return empty(title, "Without a fact there are no objects to follow; press Edit first.")
    figure.update_xaxes(**_layer_axis(len(before.top)))
    figure.update_yaxes(range=[-0.03, 1.03])
    return finish(figure, title)


def token_text(token: str) -> str:
    """A token as it is written under a chart: escaped, blanks and line ends to be seen."""
    shown = escape(token.strip(" ") or token, quote=False).replace("\n", "↵").replace(" ", "·")
    return shown or "∅"


def _layer_axis(layers: int, of: str = "") -> dict[str, object]:
    return {"title_text": f"layer{of}", "dtick": max(1, round(layers / 8)), "tick0": 0}
