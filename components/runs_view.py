"""Several stored runs at once: curves of two metrics, the table with its results marked, and the paper's rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from components import result_html
from components.definitions import scrolling
from editing_core import charts
from editing_core.evaluation.metrics import CARDS
from editing_core.evaluation.reference import METRICS
from editing_core.runs.tables import ROWS, Finished, html, layout

FIRST = ("efficacy_success", "specificity_accuracy")
EMPTY = "<div class='es-hint'>{}</div>"


@dataclass(frozen=True)
class RunsView:
    """Widgets: which metrics and rows, and what shows them. hint: what to say while there is nothing to show."""

    left: gr.Dropdown
    right: gr.Dropdown
    rows: gr.Radio
    first: gr.Plot
    second: gr.Plot
    table: gr.HTML
    hint: str

    @property
    def inputs(self) -> list[Any]:
        """What chooses the view."""
        return [self.left, self.right, self.rows]

    @property
    def outputs(self) -> list[Any]:
        """What shows it."""
        return [self.first, self.second, self.table]


def build(name: str, hint: str) -> RunsView:
    """Place the widgets. name: goes in front of their ids."""
    choices = [(CARDS[metric].label, metric) for metric in METRICS]
    places = {"left": ("first", FIRST[0]), "right": ("second", FIRST[1])}
    made: dict[str, Any] = {}
    with gr.Row(elem_classes="es-plots"):
        for side, (plot, metric) in places.items():
            with gr.Column(min_width=300):
                made[side] = gr.Dropdown(
                    choices, value=metric, show_label=False, container=False, elem_id=f"{name}-{side}"
                )
                empty = charts.empty(CARDS[metric].label, hint)
                made[plot] = gr.Plot(empty, show_label=False, container=False, elem_id=f"plot-{name}-{side}")
    rows = gr.Radio(
        [("every iteration", ROWS[0]), ("results only", ROWS[1])],
        value=ROWS[0],
        show_label=False,
        container=False,
        elem_id=f"{name}-rows",
    )
    return RunsView(**made, rows=rows, table=gr.HTML(EMPTY.format(hint), elem_id=f"{name}-table"), hint=hint)


def show(view: RunsView, runs: Sequence[Finished], values: Mapping[Any, Any], problems: Sequence[str] = ()) -> Any:
    """Curves and table of the runs; problems: why others are not among them."""
    metrics = [_known(values[widget], METRICS, FIRST[0]) for widget in (view.left, view.right)]
    left_out = "".join(EMPTY.format(escape(problem)) for problem in problems)
    runs = [run for run in runs if run.last]  # of a run that has only measured the unedited model there is nothing
    if not runs:
        empty = {p: charts.empty(CARDS[m].label, view.hint) for p, m in zip(_plots(view), metrics, strict=True)}
        return {**empty, view.table: left_out or EMPTY.format(view.hint)}
    table = html(layout(runs, _known(values[view.rows], ROWS, ROWS[0])))
    listed = scrolling(f"<div class='es-runs-table'>{table}</div>", "Metrics of the runs")
    shown = f"{listed}{left_out}{paper_html(runs)}"
    return {p: charts.curves(runs, m) for p, m in zip(_plots(view), metrics, strict=True)} | {view.table: shown}


def paper_html(runs: Sequence[Finished]) -> str:
    """The paper's rows for every kind of run that it has any for."""
    kinds = dict.fromkeys(
        (run.model, run.editor, run.assist, run.dataset.partition(":")[0], run.recipe, run.protocol) for run in runs
    )
    return "".join(result_html.paper_html(*kind) for kind in kinds)


def _plots(view: RunsView) -> tuple[gr.Plot, gr.Plot]:
    return view.first, view.second


def _known(value: Any, known: Sequence[str], default: str) -> str:
    """What a browser sent, if it is on offer."""
    return value if value in known else default
