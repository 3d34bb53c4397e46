"""The trade-off: specificity against efficacy, for the bundled comparison and for the page's own runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from components.definitions import scrolling
from components.run_store import StoredRun
from editing_core import charts
from editing_core.evaluation.tradeoff import Curve, matched, measured

OWN = "runs of this page"
REFERENCE = "off"


@dataclass(frozen=True)
class TradeoffView:
    """Widgets: what is shown, the chart, and the table at matched efficacy."""

    source: gr.Radio
    chart: gr.Plot
    table: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        """What changes with the source."""
        return [self.chart, self.table]


def build() -> TradeoffView:
    """Place the widgets, with the first comparison there is."""
    names = [*(f"N = {count}" for count in measured()), OWN]
    with gr.Accordion("Trade-off: what methods cost their neighbors", open=False, elem_id="tradeoff-box"):
        source = gr.Radio(names, value=names[0], label="Shown", elem_id="tradeoff-source")
        curves = curves_of(names[0], ())
        chart = gr.Plot(charts.tradeoff(curves), show_label=False, container=False, elem_id="plot-tradeoff")
        table = gr.HTML(table_html(curves), elem_id="tradeoff-table")
    return TradeoffView(source, chart, table)


def show(view: TradeoffView, source: str, runs: Iterable[StoredRun]) -> dict[Any, Any]:
    """Chart and table of a source."""
    curves = curves_of(source, runs)
    return {view.chart: charts.tradeoff(curves), view.table: table_html(curves)}


def curves_of(source: str, runs: Iterable[StoredRun]) -> dict[str, Curve]:
    """The curves by the name they are shown under."""
    if source != OWN:
        return next((curves for count, curves in measured().items() if source == f"N = {count}"), {})
    found: dict[str, Curve] = {}
    for number, stored in enumerate(runs, start=1):
        run = stored.run
        if any(request.neighbors for request in run.requests):
            name = f"{number}. {run.plan.editor} {run.plan.assist.name or 'off'}, {len(run.requests)} facts"
            found[name] = Curve.of(run.probes)
    return found


def table_html(curves: dict[str, Curve]) -> str:
    """Specificity at matched efficacy, with the paired difference to no assistance where there is that line."""
    if REFERENCE not in curves:
        return ""
    table = matched(curves, REFERENCE)
    rows = []
    for name, own in table.groupby("method", sort=False):
        cells = "".join(f"<td>{_cell(row)}</td>" for row in own.to_dict("records"))
        rows.append(f"<tr><td>{escape(str(name))}</td>{cells}</tr>")
    heads = "".join(f"<th>at efficacy {level:g} %</th>" for level in table["efficacy"].unique())
    note = "Neighbors answered as before, in percent; in brackets the paired difference to no assistance ± its "
    shown = f"<table class='es-table'><tr><th>method</th>{heads}</tr>{''.join(rows)}</table>"
    return (
        f"{scrolling(shown, 'Specificity at matched efficacy')}"
        f"<div class='es-hint'>{note}standard error over records. Controls put random facts in the neighbors' place."
        "</div>"
    )


def _cell(row: dict[str, Any]) -> str:
    if row["specificity"] != row["specificity"]:
        return "not reached"
    if row["method"] == REFERENCE or row["difference"] != row["difference"]:
        return f"{row['specificity']:.1f}"
    return f"{row['specificity']:.1f} ({row['difference']:+.1f} ± {row['se']:.1f})"
