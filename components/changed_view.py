"""What the edit changed: size and shape of the update, and which prompts' keys it answers to."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
import pandas as pd

from components.follow import Bar
from components.types import Shown, Values
from editing_core import charts_changed as charts
from editing_core.explore.changed import Change
from editing_core.runs.record import RunResult

HINT = "Measure looks at the edit on show in the Edit tab: where it sits, and whom else it moves."
BY = [("cosine of keys", "cosine"), ("moved at once", "moved")]
NOTHING = pd.DataFrame()
MOST_MEASURED = 50  # facts of an edit whose keys are measured


@dataclass(frozen=True)
class Measured:
    """What was measured of a run: its id, and the keys as `key_table` has them."""

    run: str
    keys: pd.DataFrame


@dataclass(frozen=True)
class ChangedView:
    """Widgets. measured: the last `Measured`, None before."""

    bar: Bar
    about: gr.HTML
    layer: gr.Dropdown
    by: gr.Radio
    norms: gr.Plot
    values: gr.Plot
    drift: gr.Plot
    measured: gr.State

    @property
    def outputs(self) -> list[Any]:
        """What a measurement fills."""
        return [*self.bar.outputs, self.about, self.layer, self.norms, self.values, self.drift, self.measured]


def build() -> ChangedView:
    """Place the widgets."""
    with gr.Row(elem_classes="es-main"):
        with gr.Column(scale=2, min_width=300, elem_classes="es-left"):
            bar = Bar.build("changed", {"changed": "Measure"}, HINT)
            about = gr.HTML("<div class='es-hint'>No edit was measured yet.</div>", elem_id="changed-about")
            layer = gr.Dropdown([], label="Layer of the keys", interactive=False, elem_id="changed-layer")
            by = gr.Radio(BY, value="cosine", label="Against", elem_id="changed-by")
        with gr.Column(scale=5, min_width=300, elem_classes="es-right"):
            with gr.Row(elem_classes="es-plots"):
                norms = _plot(charts.change_norms(()), "plot-changed-norms")
                values = _plot(charts.change_values(()), "plot-changed-values")
            drift = gr.Plot(
                charts.key_drift(None, NOTHING, NOTHING, 0, "cosine"),
                show_label=False,
                container=False,
                elem_id="plot-changed-drift",
            )
    return ChangedView(bar, about, layer, by, norms, values, drift, gr.State(None))


def _plot(figure: Any, name: str) -> gr.Plot:
    with gr.Column(min_width=300):
        return gr.Plot(figure, show_label=False, container=False, elem_id=name)


def show(view: ChangedView, run: RunResult, found: tuple[Sequence[Change], pd.DataFrame], by: str) -> Shown:
    """A newly measured run; the keys of the highest layer that was changed. found: changes and `key_table`."""
    changes, keys = found
    layers = sorted(set(keys["layer"].tolist()))
    last = layers[-1] if layers else None
    return {
        view.about: about_html(run),
        view.norms: charts.change_norms(changes),
        view.values: charts.change_values(changes),
        view.drift: drift(run, keys, last, by),
        view.layer: gr.Dropdown(choices=[(f"layer {i}", i) for i in layers], value=last, interactive=bool(layers)),
        view.measured: Measured(run.id, keys),
    }


def about_html(run: RunResult) -> str:
    """Which edit was measured, and how many of its facts have points."""
    first, count = run.requests[0], len(run.requests)
    more = f" and {count - 1} more" if count > 1 else ""
    shown = f"; the points are those of its first {MOST_MEASURED} facts" if count > MOST_MEASURED else ""
    told = f"{first.full_prompt} → {first.target_new}{more}, k = {run.chosen}{shown}."
    return f"<div class='es-hint'>{escape(told)}</div>"


def drift(run: RunResult, keys: pd.DataFrame, layer: int | None, by: str) -> Any:
    """The prompts' chart: keys of one layer, and what was measured before the edit and after its chosen iteration."""
    return charts.key_drift(keys, run.probes_at(0), run.probes_at(run.chosen), -1 if layer is None else layer, by)


def read(values: Values, view: ChangedView) -> tuple[int | None, str]:
    """Layer and measure that are chosen."""
    layer, by = values[view.layer], values[view.by]
    return (int(layer) if isinstance(layer, int | float) else None), (by if by in charts.MOVES else "cosine")
