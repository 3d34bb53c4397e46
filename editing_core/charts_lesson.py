"""The lesson's charts: findings of `editing_core.lesson` -> figures, with numbers and letters for a projector."""

from collections.abc import Sequence
from html import escape
from textwrap import wrap

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from editing_core.charts import INK, ITERATION_DARK, KEPT, LOST, NEW, OLD, empty, finish
from editing_core.lesson import Found
from editing_core.lesson_findings import Drift, Fact, Finding, Kept, Knowledge, Written

HEIGHT = 580
LETTERS = 15  # pixels; the other charts have 11
STRIPES = {"shape": "/", "fgcolor": "white", "fillmode": "overlay", "size": 6, "fgopacity": 0.5}
HINT = "Press the button to see it here."
EMPTY = {
    1: "Probability of the old and the new object,<br>before any edit",
    2: "Probability of the old and the new object,<br>after one iteration",
    3: "Facts and paraphrases that give the new object,<br>and |Δp|, per iteration",
    4: "Neighbors: probability of their own answer,<br>before and after the edit",
    5: "Neighbors: probability of their own answer,<br>without and with assistance",
}


def chart(number: int, found: Found) -> go.Figure:
    """The chart of a step; before it was run, its title and what to do."""
    finding = found.get(number)
    return _readable(empty(EMPTY[number], HINT, HEIGHT) if finding is None else _drawn(number, finding, found))


def _drawn(number: int, finding: Finding, found: Found) -> go.Figure:
    if isinstance(finding, Knowledge):
        return facts(finding.facts, EMPTY[number])
    if isinstance(finding, Written):
        return facts(finding.facts, EMPTY[number], marked=True) if number == 2 else agreement(finding)
    before = found.get(4)
    return both(before, finding) if number == 5 and isinstance(before, Drift) else neighbors(finding)


def facts(shown: Sequence[Fact], title: str, marked: bool = False) -> go.Figure:
    """A row per fact with p(old) and p(new). marked: whether it took stands behind its name."""
    figure = go.Figure()
    names = [_fact_name(fact, marked) for fact in shown]
    for what, colour, pattern in (("new", NEW, None), ("old", OLD, STRIPES)):
        values = [fact.p_new if what == "new" else fact.p_old for fact in shown]
        objects = [fact.new if what == "new" else fact.old for fact in shown]
        figure.add_bar(
            x=values,
            y=names,
            orientation="h",
            name=f"{what} object",
            marker={"color": colour, "pattern": pattern},
            text=[f"{escape(name, quote=False)} {_number(p)}" for name, p in zip(objects, values, strict=True)],
            textposition="outside",
            cliponaxis=False,
            hovertext=[
                f"{escape(fact.prompt, quote=False)}<br>p({what}) = {_number(fact_p)}"
                for fact, fact_p in zip(shown, values, strict=True)
            ],
            hoverinfo="text",
        )
    figure.update_layout(barmode="group", bargap=0.3, bargroupgap=0.05)
    # Horizontal bars grow from below: the axis is turned, and within a group the legend's order with it.
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(range=[0, 1.6], tickvals=[0, 0.5, 1])
    return finish(figure, title, HEIGHT)


def _fact_name(fact: Fact, marked: bool) -> str:
    mark = ("✔ " if fact.took else "▽ ") if marked else ""
    return "<br>".join(wrap(f"{mark}{escape(fact.subject, quote=False)}", 12))


def agreement(said: Written) -> go.Figure:
    """Above, per iteration, the facts and paraphrases that give the new object; below |delta p| and the tolerance."""
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.5, 0.5], vertical_spacing=0.1)
    ks = [r.k for r in said.rounds]
    for name, counts, all_, pattern in (
        ("facts", [r.facts for r in said.rounds], len(said.facts), None),
        ("paraphrases", [r.paraphrases for r in said.rounds], said.paraphrases, STRIPES),
    ):
        figure.add_bar(
            x=ks,
            y=[100 * count / all_ for count in counts],
            name=f"{name} (of {all_})",
            marker={"color": NEW, "pattern": pattern},
            text=[f"{count}" for count in counts],
            textposition="outside",
            cliponaxis=False,
            hovertemplate=f"iteration %{{x}}: %{{text}} of {all_} {name}<extra></extra>",
            row=1,
            col=1,
        )
    gaps = [abs(r.delta) for r in said.rounds]
    figure.add_scatter(
        x=ks,
        y=gaps,
        mode="lines+markers+text",
        name="|Δp|",
        text=[_number(gap) for gap in gaps],
        textposition="top right",
        cliponaxis=False,
        line={"color": ITERATION_DARK},
        marker={"symbol": "square", "size": 9},
        hovertemplate="iteration %{x}: |Δp| = %{text}<extra></extra>",
        row=2,
        col=1,
    )
    _add_tolerance(figure, said, gaps)
    figure.update_yaxes(range=[0, 125], tickvals=[0, 50, 100], ticksuffix=" %", row=1, col=1)
    figure.update_yaxes(
        type="log", exponentformat="power", dtick=1, title={"text": "|Δp|", "font": {"size": LETTERS}}, row=2, col=1
    )
    figure.update_xaxes(range=[0.4, max(ks) + 0.6])
    figure.update_xaxes(ticktext=[f"k = {k}" for k in ks], tickvals=ks)
    return finish(figure, EMPTY[3], HEIGHT)


def _add_tolerance(figure: go.Figure, said: Written, gaps: Sequence[float]) -> None:
    """The line of the tolerance, and a star where the rule stops."""
    ks = [r.k for r in said.rounds]
    figure.add_scatter(
        x=[min(ks) - 0.6, max(ks) + 0.6],
        y=[said.tolerance] * 2,
        mode="lines",
        name=f"tolerance {said.tolerance:g}",
        line={"color": INK, "dash": "dash", "width": 2},
        hoverinfo="skip",
        row=2,
        col=1,
    )
    if said.stop:
        star = {"symbol": "star", "size": 17, "color": KEPT, "line": {"color": INK, "width": 1}}
        figure.add_scatter(
            x=[said.stop],
            y=[gaps[said.stop - 1]],
            mode="markers",
            name=f"stops at k = {said.stop}",
            marker=star,
            hoverinfo="skip",
            row=2,
            col=1,
        )


def neighbors(said: Drift) -> go.Figure:
    """A row per neighbor: the probability of its own answer before, and after one edit."""
    figure = go.Figure()
    _add_before(figure, said.neighbors)
    _add_after(figure, said.neighbors, "kept", "lost", ("circle", "x"))
    _add_numbers(figure, said.neighbors, [_number(n.after) for n in said.neighbors])
    return _rows(figure, EMPTY[4])


def both(alone: Drift, held: Drift) -> go.Figure:
    """A row per neighbor that both edits measured: before, after the one without assistance and the one with it."""
    figure, alone = go.Figure(), alone.only(held)
    _add_before(figure, held.neighbors)
    _add_after(figure, alone.neighbors, "kept without", "lost without", ("square-open", "x"))
    _add_after(figure, held.neighbors, "kept with assistance", "lost with assistance", ("circle", "circle-x"))
    pairs = zip(alone.neighbors, held.neighbors, strict=True)
    _add_numbers(figure, held.neighbors, [f"{_number(b.after)}<br>({_number(a.after)})" for a, b in pairs])
    return _rows(figure, EMPTY[5])


def _add_before(figure: go.Figure, kept: Sequence[Kept]) -> None:
    figure.add_scatter(
        x=[n.before for n in kept],
        y=_labels(kept),
        mode="markers",
        name="before",
        marker={"symbol": "line-ns", "size": 18, "color": INK, "line": {"color": INK, "width": 2}},
        hovertext=[_told(n, "before", n.before) for n in kept],
        hoverinfo="text",
    )


def _add_after(figure: go.Figure, kept: Sequence[Kept], good: str, bad: str, symbols: tuple[str, str]) -> None:
    """Marks after an edit, those of lost neighbors apart; only these have a line to where they were."""
    for gone, name, colour, symbol in ((False, good, KEPT, symbols[0]), (True, bad, LOST, symbols[1])):
        rows = [n for n in kept if n.lost == gone]
        if not rows:
            continue
        names = _labels(rows)
        if gone:
            for n, label in zip(rows, names, strict=True):
                line = {"color": LOST, "width": 2, "dash": "dot"}
                figure.add_scatter(
                    x=[n.before, n.after], y=[label] * 2, mode="lines", line=line, showlegend=False, hoverinfo="skip"
                )
        figure.add_scatter(
            x=[n.after for n in rows],
            y=names,
            mode="markers",
            name=name,
            cliponaxis=False,
            marker={"symbol": symbol, "size": 13, "color": colour, "line": {"width": 2, "color": colour}},
            hovertext=[_told(n, name, n.after) for n in rows],
            hoverinfo="text",
        )


def _add_numbers(figure: go.Figure, kept: Sequence[Kept], texts: Sequence[str]) -> None:
    """A column at the right, where numbers cover no marks."""
    figure.add_scatter(
        x=[1.07] * len(kept),
        y=_labels(kept),
        mode="text",
        text=[f"✖ {text}" if n.lost else f"✔ {text}" for n, text in zip(kept, texts, strict=True)],
        textposition="middle right",
        textfont={"color": [LOST if n.lost else KEPT for n in kept]},
        cliponaxis=False,
        showlegend=False,
        hoverinfo="skip",
    )


def _labels(kept: Sequence[Kept]) -> list[str]:
    """Subjects, in short lines."""
    return ["<br>".join(wrap(escape(n.subject, quote=False), 16)) for n in kept]


def _rows(figure: go.Figure, title: str) -> go.Figure:
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(range=[-0.06, 1.55], tickvals=[0, 0.5, 1])
    return finish(figure, title, HEIGHT)


def _told(n: Kept, when: str, p: float) -> str:
    return f"{escape(n.prompt, quote=False)} … {escape(n.answer, quote=False)}<br>{when}: p = {_number(p)}"


def _number(value: float) -> str:
    """Two digits behind the point where that says something, and otherwise that it is small."""
    if value < 0.005:
        return f"{value:.3f}" if value >= 0.0005 else "0.000"
    return f"{value:.2f}"


def _readable(figure: go.Figure) -> go.Figure:
    """Letters for a projector."""
    legend = {"font": {"size": LETTERS - 1}, "y": -0.08, "yanchor": "top"}
    figure.update_layout(font_size=LETTERS, title_font_size=LETTERS, legend=legend, margin={"t": 56, "b": 40})
    return figure.update_annotations(font_size=LETTERS)
