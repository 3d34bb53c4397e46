"""Layer by layer: what every block would say next, without and with an edit, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from components.follow import Bar
from components.types import Shown
from editing_core import charts_explore as charts
from editing_core.charts import empty
from editing_core.explore.lens import Lens

HINT = "Look reads the state after every block as if it were the last one: when does an answer become readable?"
SOURCES = [("the edit on show", "run"), ("what is on in the edit stack", "stack")]


@dataclass(frozen=True)
class LensView:
    """Widgets. source: which edit the second grid has."""

    prompt: gr.Textbox
    source: gr.Radio
    bar: Bar
    before: gr.Plot
    after: gr.Plot
    chances: gr.Plot

    @property
    def outputs(self) -> list[Any]:
        """What a look fills."""
        return [*self.bar.outputs, self.before, self.after, self.chances]


def build() -> LensView:
    """Place the widgets."""
    with gr.Row(elem_classes="es-main"):
        with gr.Column(scale=2, min_width=300, elem_classes="es-left"):
            prompt = gr.Textbox(label="Prompt", max_lines=3, elem_id="lens-prompt")
            source = gr.Radio(SOURCES, value="run", label="After", elem_id="lens-source")
            bar = Bar.build("lens", {"lens": "Look"}, HINT)
        with gr.Column(scale=5, min_width=300, elem_classes="es-right"):
            before = _plot(charts.lens_grid(None, None, "before"), "plot-lens-before")
            after = _plot(charts.lens_grid(None, None, "after"), "plot-lens-after")
            figure = charts.chances_by_layer(None, None, "", "")
            chances = gr.Plot(figure, show_label=False, container=False, elem_id="plot-lens-chances")
    return LensView(prompt, source, bar, before, after, chances)


def _plot(figure: Any, name: str) -> gr.Plot:
    return gr.Plot(figure, show_label=False, container=False, elem_id=name, elem_classes="es-wide")


def show(view: LensView, lenses: Sequence[Lens], name: str, objects: tuple[str, str]) -> Shown:
    """Both grids. name: of the edit that is on in the second one, or why there is none. objects: new and old."""
    before, after = lenses[0], lenses[1] if len(lenses) > 1 else None
    title = "Logit lens after"
    grid = charts.lens_grid(after, before, f"after: {name}") if after else empty(title, escape(name))
    return {
        view.before: charts.lens_grid(before, after, "before"),
        view.after: grid,
        view.chances: charts.chances_by_layer(before, after, *objects),
    }
