"""Charts: pure functions from results to plotly figures, the same for the page and for HTML files.

One meaning per colour (Okabe-Ito), and never colour alone: shape, dash or label says the same. Backgrounds
are transparent and the ink is a middle grey, so light and dark pages both work.
"""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from editing_core.evaluation.metrics import CARDS, PERCENT
from editing_core.evaluation.tradeoff import Curve
from editing_core.evaluation.verdict import lost_neighbors
from editing_core.runs.record import RunResult
from editing_core.runs.tables import Finished
from editing_core.session import Look

NEW, OLD, KEPT, LOST = "#0072B2", "#E69F00", "#009E73", "#D55E00"
ITERATION, ITERATION_DARK = "#CC79A7", "#A2457F"  # the iteration shade: optimised lighter, spread darker
INK, GRID = "#808080", "rgba(128,128,128,0.25)"
HEIGHT = 300
FLOOR = 1e-6  # the lowest value a log axis shows; zeros and less are drawn here
CLEAR = "rgba(0,0,0,0)"
# A template is checked once; the same values set on every figure take twenty times as long.
LOOK = go.layout.Template(
    layout={
        "autosize": True,
        "margin": {"l": 46, "r": 14, "t": 62, "b": 36},
        "title": {"x": 0.01, "y": 0.98, "yanchor": "top", "font": {"size": 13}},
        "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "font": {"size": 11}},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": {"color": INK, "size": 11},
        "hoverlabel": {"align": "left", "namelength": -1},
        "xaxis": {"gridcolor": GRID, "zeroline": False, "automargin": True},
        "yaxis": {"gridcolor": GRID, "zerolinecolor": GRID, "automargin": True},
    }
)
Lines = Sequence[tuple[str, str, str, str, str]]  # column, label, colour, symbol, dash


def probabilities(run: RunResult, case_id: int | str, k: int, log: bool = False) -> go.Figure:
    """p(new) and p(old) of edit prompt, paraphrases and neighbors, before and after iteration k."""
    before, now = run.probes_at(0, case_id), run.probes_at(k, case_id)
    if now.empty:
        return empty("Probabilities", "Press Edit to see how likely both objects are.")
    names = _names(now)
    figure = go.Figure()
    for table, when, faded in ((before, "before", True), (now, f"k = {k}", False)):
        for column, what, colour in (("p_new", "new", NEW), ("p_true", "old", OLD)):
            hover = [_hover(row, row[column]) for _, row in table.iterrows()]
            pattern = {"shape": "/", "fgcolor": colour, "fillmode": "overlay", "size": 5} if faded else None
            marker = {"color": "rgba(128,128,128,0.12)" if faded else colour, "line": {"color": colour, "width": 1}}
            style = {"marker": {**marker, "pattern": pattern}, "hovertext": hover, "hoverinfo": "text"}
            figure.add_bar(x=names, y=_clip(table[column], log), name=f"{what}, {when}", **style)
    figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.0)
    axis = {"type": "log", "range": [-6, 0.1], "dtick": 1, "exponentformat": "power"} if log else {"range": [0, 1.02]}
    figure.update_yaxes(**axis)
    return finish(figure, "Probability of the new and the old object (neighbors: of their own answer)")


def next_token(before: Look | None, after: Look | None, new: str = "", old: str = "") -> go.Figure:
    """The ten most likely next tokens, before beside after; the two objects keep their colours."""
    title = "Next token, top 10"
    if before is None or after is None:
        return empty(title, "Press Edit to see what the model would say next.")
    figure = make_subplots(1, 2, horizontal_spacing=0.24, subplot_titles=("before", "after"))
    for column, seen in ((1, before), (2, after)):
        labels = [f"{i + 1}. {escape(t.token.strip() or repr(t.token), quote=False)}" for i, t in enumerate(seen.top)]
        colours = [_token_colour(t.token, new, old) for t in seen.top]
        chances = [t.probability for t in seen.top]
        figure.add_bar(
            x=chances,
            y=labels,
            orientation="h",
            marker={"color": colours},
            text=[f"{p:.3g}" for p in chances],
            textposition="outside",
            cliponaxis=False,
            showlegend=False,
            hovertemplate="%{y}: %{x:.3g}<extra></extra>",
            row=1,
            col=column,
        )
    figure.update_xaxes(range=[0, 1.5], tickvals=[0, 0.5, 1])
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return finish(figure, f"{title} (blue: new object, orange: old object)")


def neighbor_drift(run: RunResult, case_id: int | str, k: int) -> go.Figure:
    """One line per neighbor from its probability before to the one after; lost ones are crossed."""
    before, now = run.probes_at(0, case_id), run.probes_at(k, case_id)
    title = "Neighbor drift: probability of each neighbor's own answer"
    if now.empty or not (now["kind"] == "neighbor").any():
        return empty(title, "Add neighbors to see what else the edit changes.")
    lost = lost_neighbors(now, before)
    names = _names(now)
    figure = go.Figure()
    shown: set[bool] = set()
    for i in now.index[now["kind"] == "neighbor"]:
        gone = bool(lost[i])
        colour, symbol, word = (LOST, "x", "lost") if gone else (KEPT, "circle", "kept")
        figure.add_scatter(
            x=["before", f"after k = {k}"],
            y=[before["p_true"][i], now["p_true"][i]],
            mode="lines+markers",
            name=f"neighbor {word}",
            legendgroup=word,
            showlegend=gone not in shown,
            line={"color": colour, "dash": "solid" if gone else "dot"},
            marker={"symbol": symbol, "size": 9, "color": colour},
            hovertext=[_hover(t.loc[i], t["p_true"][i]) for t in (before, now)],
            hoverinfo="text",
        )
        shown.add(gone)
    crossed = list(now.index[lost.to_numpy()])
    for i, y in zip(crossed, _spaced([float(now["p_true"][i]) for i in crossed], 0.075), strict=True):
        figure.add_annotation(text=names[i], x=1.05, y=y, xanchor="left", showarrow=False, font={"color": LOST})
    figure.update_yaxes(range=[-0.04, 1.06])
    figure.update_xaxes(range=[-0.2, 1.3])
    return finish(figure, title)


def drift_by_distance(
    run: RunResult, case_id: int | str, k: int, distances: Mapping[str, float], encoder: str
) -> go.Figure:
    """Change of every neighbor's probability against its distance from the edited fact; lost ones are crossed.

    distances: by the neighbor's prompt, 1 - cosine. encoder: what measured them.
    """
    before, now = run.probes_at(0, case_id), run.probes_at(k, case_id)
    title = "Neighbor drift: change of each neighbor's own answer, by distance"
    if now.empty or not (now["kind"] == "neighbor").any():
        return empty(title, "Add neighbors to see what else the edit changes.")
    lost, names = lost_neighbors(now, before), _names(now)
    placed = now[(now["kind"] == "neighbor") & now["prompt"].isin(list(distances))]
    if placed.empty:
        return empty(title, "No distance was measured; look at the fact again.")
    figure = go.Figure()
    for gone, colour, symbol, word in ((False, KEPT, "circle", "kept"), (True, LOST, "x", "lost")):
        rows = placed[lost[placed.index] == gone]
        if rows.empty:
            continue
        start = before["p_true"][rows.index]
        figure.add_scatter(
            x=[distances[prompt] for prompt in rows["prompt"]],
            y=(rows["p_true"] - start).tolist(),
            mode="markers+text" if gone else "markers",
            name=f"neighbor {word}",
            showlegend=True,
            text=[names[i] for i in rows.index],
            textposition="top center",
            textfont={"color": LOST},
            marker={"symbol": symbol, "size": 9, "color": colour},
            hovertext=[
                f"{_hover(row, row['p_true'])}, before {start[i]:.3g}<br>distance {distances[row['prompt']]:.3g}"
                for i, row in rows.iterrows()
            ],
            hoverinfo="text",
        )
    figure.update_yaxes(range=[-1.06, 1.06], title_text="change of p", zeroline=True)
    figure.update_xaxes(title_text=f"1 - cosine of subjects, {escape(encoder)}")
    return finish(figure, title)


def _spaced(heights: list[float], gap: float) -> list[float]:
    """Heights moved up just so far that labels there do not cover each other; the order of the list is kept."""
    placed: dict[int, float] = {}
    least = float("-inf")
    for number in sorted(range(len(heights)), key=lambda i: heights[i]):
        least = max(heights[number], least + gap)
        placed[number] = least
    return [placed[i] for i in range(len(heights))]


def perplexity(run: RunResult, k: int) -> go.Figure:
    """Edit-target perplexity per iteration, optimised and spread, and |delta p| against the tolerance."""
    table = run.iterations[run.iterations["k"] > 0]
    title = "Perplexity per iteration"
    if table.empty or "ppl_spread" not in table:
        return empty(title, "No iteration was finished; there is nothing to draw.")
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.1)
    lines = [
        ("ppl_optimised", "optimised", ITERATION, "circle-open", "solid"),
        ("ppl_spread", "spread", ITERATION_DARK, "square", "solid"),
    ]
    if len(run.requests) > 1:
        lines += [(f"{c}_median", f"{n}, median", colour, s, "dash") for c, n, colour, s, _ in lines]
        title += " (dashed: median)"
    _add_lines(figure, table, lines, floor=FLOOR, row=1, col=1)
    _add_gap(figure, run, table.assign(gap=table["delta_ppl"].abs()))
    if k:
        figure.add_vline(k, line={"color": INK, "width": 1, "dash": "dot"})
    top = float(np.log10(np.nanmax(table[["ppl_optimised", "ppl_spread"]].to_numpy(float), initial=10)))
    ticks = {"range": [-0.1, 1.1 * top], "dtick": "D2" if top < 1.5 else max(1, round(top / 4))}
    figure.update_yaxes(type="log", exponentformat="power", minor={"showgrid": False})
    figure.update_yaxes(title_text="perplexity", **ticks, row=1, col=1)
    figure.update_yaxes(title_text="|Δp|", dtick=2, row=2, col=1)
    figure.update_xaxes(dtick=1, range=[0.7, max(2, len(table)) + 0.3])
    figure.update_xaxes(title_text="iteration k", row=2, col=1)
    return finish(figure, title)


def _add_gap(figure: go.Figure, run: RunResult, gap: pd.DataFrame) -> None:
    """The lower half: |delta p|, the tolerance and the k that first meets it."""
    cell = {"row": 2, "col": 1}
    _add_lines(figure, gap, [("gap", "|Δp|", INK, "diamond", "solid")], floor=1e-4, **cell)
    figure.for_each_trace(lambda trace: trace.update(showlegend=trace.name in ("optimised", "spread")))
    tolerance = run.plan.stop.tolerance
    if tolerance > 0:
        figure.add_hline(tolerance, line={"color": INK, "dash": "dash", "width": 1}, **cell)
        place = {"x": 1, "xref": "paper", "xanchor": "right", "y": float(np.log10(tolerance)), "yref": "y2"}
        figure.add_annotation(text=f"tolerance {tolerance:g}", yanchor="bottom", showarrow=False, **place)
    if stop := stopping_k(run):
        marker = {"symbol": "star", "size": 15, "color": KEPT, "line": {"color": INK, "width": 1}}
        y = _clip(gap["gap"][gap["k"] == stop], True, 1e-4)
        figure.add_scatter(x=[stop], y=y, mode="markers", marker=marker, name=f"agree, k = {stop}", **cell)


def stopping_k(run: RunResult) -> int | None:
    """The first k at which |delta p| is at most the tolerance, whether or not the run stopped there."""
    table = run.iterations
    if "delta_ppl" not in table:
        return None
    fits = table[table["delta_ppl"].abs() <= run.plan.stop.tolerance]
    return None if fits.empty else int(fits["k"].iloc[0])


def metrics(run: RunResult, k: int) -> go.Figure:
    """Efficacy, generalization, specificity and their score, as accuracies in percent, over k."""
    lines = [
        ("efficacy_accuracy", "efficacy", NEW, "circle", "solid"),
        ("generalization_accuracy", "generalization", NEW, "triangle-up", "dot"),
        ("specificity_accuracy", "specificity", KEPT, "square", "solid"),
        ("score_accuracy", "score", INK, "diamond", "dash"),
    ]
    figure = go.Figure()
    _add_lines(figure, run.iterations, lines)
    if k:
        figure.add_vline(k, line={"color": INK, "width": 1, "dash": "dot"})
    figure.update_yaxes(range=[-4, 106], ticksuffix=" %")
    figure.update_xaxes(dtick=1, title_text="iteration k")
    return finish(figure, "Accuracy per iteration")


def curves(runs: Sequence[Finished], metric: str) -> go.Figure:
    """One metric over k, a line per run; the larger point is the run's result."""
    card, figure = CARDS[metric], go.Figure()
    for number, run in enumerate(runs):
        if metric not in run.iterations:
            continue
        own = run.iterations.assign(**{metric: run.iterations[metric].abs()} if metric == "delta_ppl" else {})
        colour, symbol = TRADEOFF_COLOURS[number % len(TRADEOFF_COLOURS)], SYMBOLS[number % len(SYMBOLS)]
        dash = DASHES[number // len(SYMBOLS) % len(DASHES)]
        floor = None if card.range == PERCENT else FLOOR
        _add_lines(figure, own, [(metric, escape(run.name), colour, symbol, dash)], floor)
        figure.data[-1].marker.size = [13 if k == run.chosen else 7 for k in own["k"]]
    if not figure.data:
        return empty(card.label, "No run has this number.")
    if card.range == PERCENT:
        figure.update_yaxes(range=[-4, 106], ticksuffix=" %")
    else:
        figure.update_yaxes(type="log", exponentformat="power", minor={"showgrid": False})
    figure.update_xaxes(dtick=1, title_text="iteration k")
    return finish(figure, f"|{card.label}|" if metric == "delta_ppl" else card.label, HEIGHT + 16 * len(figure.data))


DASHES = ("solid", "dash", "dot")
TRADEOFF_COLOURS = (INK, NEW, "#56B4E9", ITERATION_DARK, ITERATION, KEPT, "#F0E442", LOST, OLD)
CONTROL = ", control"
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "triangle-down", "star", "hexagon", "pentagon")


def tradeoff(curves: Mapping[str, Curve], title: str = "Specificity against efficacy") -> go.Figure:
    """One line per method, points labelled with k: what each method keeps at the efficacy it reaches."""
    if not curves:
        return empty(title, "Edit several facts together to see what an edit costs its neighbors.")
    figure = go.Figure()
    methods = list(dict.fromkeys(name.removesuffix(CONTROL) for name in curves))
    for name, curve in curves.items():
        ks = [k for k in curve.efficacy.index if k > 0]
        number = methods.index(name.removesuffix(CONTROL))  # a control looks like its method, dotted
        colour, symbol = TRADEOFF_COLOURS[number % len(TRADEOFF_COLOURS)], SYMBOLS[number % len(SYMBOLS)]
        figure.add_scatter(
            x=[float(curve.efficacy[k]) for k in ks],
            y=[float(curve.specificity[k]) for k in ks],
            mode="lines+markers+text",
            text=[f"{k}" for k in ks],
            textposition="top center",
            textfont={"size": 9},
            name=name,
            line={"color": colour, "dash": "dot" if name.endswith(CONTROL) else "solid"},
            marker={"symbol": symbol, "size": 8, "color": colour},
            hovertemplate=f"{escape(name)}<br>efficacy %{{x:.1f}} %, specificity %{{y:.1f}} %<extra></extra>",
        )
    figure.update_xaxes(title_text="efficacy success, %")
    figure.update_yaxes(title_text="specificity accuracy, %")
    return finish(figure, title, 420)


LOSSES = {
    "target": (NEW, "circle", "solid"),
    "kl": (KEPT, "square", "dot"),
    "decay": (INK, "diamond", "dash"),
    "loss": (INK, "circle", "solid"),
    "edit": (NEW, "circle", "solid"),
    "paraphrase": ("#56B4E9", "square", "dash"),
    "random": (KEPT, "diamond", "dot"),
    "similar": (OLD, "triangle-up", "dot"),
    "neighbor": (LOST, "x", "dot"),
    "dpo": (ITERATION, "star", "dashdot"),
    "language": (OLD, "triangle-down", "dash"),
}
MOST_POINTS = 160  # of a drawn history


def loss(history: Sequence[Mapping[str, float]], title: str = "Target optimisation", height: int = 190) -> go.Figure:
    """The terms of the target optimisation, step by step."""
    if not history:
        return empty(title, "The loss terms appear here while the target is optimised.", height)
    table = pd.DataFrame(history).ffill()  # a step may have no row of a kind, such as the last of an epoch
    table["k"] = range(1, len(table) + 1)
    table = table.iloc[:: max(1, len(table) // MOST_POINTS)]
    names = [name for name in table if name != "k"]
    known = [(name, name, *LOSSES.get(name, (ITERATION, "cross", "dashdot"))) for name in names]
    figure = go.Figure()
    _add_lines(figure, table, known)
    figure.update_xaxes(title_text="step", dtick=None if len(table) > MOST_POINTS // 4 else max(1, len(table) // 8))
    return finish(figure, title, height)


def all_figures(
    run: RunResult, case_id: int | str, k: int, looks: tuple[Look, Look] | None = None
) -> dict[str, go.Figure]:
    """Every chart of one case after iteration k, by title; looks: (before, after) of its edit prompt."""
    request = run.request(case_id)
    before, after = looks or (None, None)
    history = run.histories[k - 1] if 0 < k <= len(run.histories) else ()
    return {
        "Probabilities": probabilities(run, case_id, k),
        "Perplexity per iteration": perplexity(run, k),
        "Next token": next_token(before, after, request.target_new, request.target_true or ""),
        "Neighbor drift": neighbor_drift(run, case_id, k),
        "Accuracy per iteration": metrics(run, k),
        "Target optimisation": loss(history, f"Target optimisation in iteration {k}"),
    }


def _add_lines(figure: go.Figure, table: pd.DataFrame, lines: Lines, floor: float | None = None, **cell: int) -> None:
    """One line per column over k; NaN leaves a gap."""
    for column, label, colour, symbol, dash in lines:
        if column not in table:
            continue
        definition = CARDS[column].definition if column in CARDS else label
        values = pd.to_numeric(table[column], errors="coerce")
        figure.add_scatter(
            x=table["k"].tolist(),
            y=_clip(values, floor is not None, floor or FLOOR),
            mode="lines+markers",
            name=label,
            line={"color": colour, "dash": dash},
            marker={"symbol": symbol, "size": 8, "color": colour},
            customdata=values.tolist(),
            hovertemplate=f"{label}, %{{x}}: %{{customdata:.3g}}<br><i>{definition}</i><extra></extra>",
            **cell,
        )


def _clip(values: pd.Series, log: bool, floor: float = FLOOR) -> list[float | None]:
    """Plain numbers for a trace: None for what is not finite, nothing below the floor of a log axis."""
    numbers = [float(v) if v is not None and np.isfinite(v) else None for v in values]
    return [max(v, floor) if log and v is not None else v for v in numbers]


def _names(probes: pd.DataFrame) -> list[str]:
    """Short axis names: edit, paraphrase 1 -> P1, neighbor 1 -> N1, locality L1, portability question Q1."""
    short = {"paraphrase": "P", "neighbor": "N", "locality": "L", "portability": "Q"}
    return [
        "edit" if kind == "edit" else f"{short[kind]}{number + 1}"
        for kind, number in zip(probes["kind"], probes["number"], strict=True)
    ]


def _hover(row: pd.Series, value: float) -> str:
    texts = {name: escape(str(row[name]), quote=False) for name in ("prompt", "target_new", "target_true", "answer")}
    return (
        f"{row['kind']}: {texts['prompt']}<br>new: {texts['target_new']}, old: {texts['target_true']}"
        f"<br>model says: {texts['answer']}<br>p = {value:.3g}"
    )


def _token_colour(token: str, new: str, old: str) -> str:
    token = token.strip()
    if token and new.startswith(token):
        return NEW
    return OLD if token and old.startswith(token) else "rgba(128,128,128,0.6)"


def empty(title: str, text: str, height: int = HEIGHT) -> go.Figure:
    """A chart without data: its title and what to do."""
    figure = go.Figure()
    figure.add_annotation(text=text, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper", font={"size": 13})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return finish(figure, title, height)


def finish(figure: go.Figure, title: str, height: int = HEIGHT) -> go.Figure:
    """The common look and a fixed height; without one a chart in a hidden tab has none."""
    figure.update_layout(template=LOOK, title_text=title, height=height)
    if figure.layout.annotations:
        figure.update_annotations(font_size=12)
    return figure
