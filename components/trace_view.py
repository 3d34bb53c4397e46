"""Where is the fact: a causal trace as three heatmaps, curves by layer, and the layer that they suggest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from typing import Any

import gradio as gr

from components import settings_form
from components.follow import Bar
from components.result_html import number
from components.settings_form import SettingsForm, widget_for
from components.types import Shown, Values
from editing_core import charts_explore as charts
from editing_core.depths import ending_at
from editing_core.errors import BadSetting, EditingError
from editing_core.explore.average import average
from editing_core.explore.facts import MOST_FACTS
from editing_core.explore.trace import KINDS, Trace, TraceSettings
from editing_core.registry import EDITORS, editor_row
from editing_core.settings import default_of
from editing_core.types import EditRequest

HINT = "Trace blurs the subject and puts one state back at a time: where the answer returns, the fact passes."
SENTENCE = "<div class='es-hint'>The layer that carries most is named here.</div>"
ANY = "any"  # stands in where only subject and prompt matter
LITTLE = 0.05  # of the probability: less cannot be brought back in a way that tells layers apart


@dataclass(frozen=True)
class TraceView:
    """Widgets. facts: how many are averaged. located: the model and the layer that its last trace suggests."""

    prompt: gr.Textbox
    subject: gr.Textbox
    answer: gr.Textbox
    facts: gr.Number
    settings: dict[str, Any]
    bar: Bar
    sentence: gr.HTML
    use: gr.Button
    used: gr.HTML
    plots: dict[str, gr.Plot]
    curves: gr.Plot
    located: gr.State

    @property
    def inputs(self) -> list[Any]:
        """What a trace is asked by."""
        return [self.prompt, self.subject, self.answer, self.facts, *self.settings.values()]

    @property
    def outputs(self) -> list[Any]:
        """What a trace fills."""
        return [*self.bar.outputs, self.sentence, self.use, self.used, *self.plots.values(), self.curves, self.located]


def build() -> TraceView:
    """Place the widgets."""
    with gr.Row(elem_classes="es-main"):
        with gr.Column(scale=2, min_width=300, elem_classes="es-left"):
            prompt = gr.Textbox(
                label="Prompt with {}", placeholder="{} is located in", max_lines=1, elem_id="trace-prompt"
            )
            with gr.Row(elem_classes="es-fields"):
                subject = gr.Textbox(label="Subject", max_lines=1, min_width=120, scale=2, elem_id="trace-subject")
                answer = gr.Textbox(
                    label="Answer", placeholder="the model's", max_lines=1, min_width=80, elem_id="trace-answer"
                )
            with gr.Row(elem_classes="es-fields es-beside"):
                facts = gr.Number(
                    10, label=f"Facts (1 to {MOST_FACTS})", precision=0, min_width=115, elem_id="trace-facts"
                )
                several = gr.Button("Average over facts", size="md", min_width=150, scale=2, elem_id="trace-average")
            with gr.Accordion("Noise, runs and window", open=False, elem_id="trace-settings"):
                settings = {f.name: widget_for(f, default_of(f)) for f in fields(TraceSettings)}
            bar = Bar.build("trace", {"trace": "Trace"}, HINT, {"trace-average": several})
            sentence = gr.HTML(SENTENCE, elem_id="trace-sentence")
            use = gr.Button("Use this layer", size="sm", interactive=False, elem_id="trace-use")
            used = gr.HTML("", elem_id="trace-used")
        with gr.Column(scale=5, min_width=300, elem_classes="es-right"):
            with gr.Row(elem_classes="es-plots"):
                plots = {kind: _plot(charts.trace_heatmap(None, kind), f"plot-trace-{kind}") for kind in KINDS}
            curves = gr.Plot(charts.trace_curves(None), show_label=False, container=False, elem_id="plot-trace-curves")
    named: dict[str, Any] = {"prompt": prompt, "subject": subject, "answer": answer, "facts": facts, "use": use}
    drawn: dict[str, Any] = {"plots": plots, "curves": curves, "sentence": sentence, "used": used}
    return TraceView(**named, **drawn, settings=settings, bar=bar, located=gr.State(()))


def _plot(figure: Any, name: str) -> gr.Plot:
    with gr.Column(min_width=270):
        return gr.Plot(figure, show_label=False, container=False, elem_id=name)


def read_fact(values: Values, view: TraceView) -> EditRequest:
    """The fact to trace; its new object is the answer that is asked for, or stands in for the model's own."""
    prompt, subject, answer = (str(values[w] or "").strip() for w in (view.prompt, view.subject, view.answer))
    return EditRequest(subject, prompt, answer or ANY)


def read_answer(values: Values, view: TraceView) -> str | None:
    """The answer asked for; None for the model's own."""
    return str(values[view.answer] or "").strip() or None


def read_settings(values: Values, view: TraceView) -> TraceSettings:
    """How to trace."""
    return settings_form.read_fields(values, view.settings, TraceSettings())


def read_facts(values: Values, view: TraceView) -> int:
    """How many facts to average."""
    count = values[view.facts]
    if not isinstance(count, int | float) or int(count) != count or not 1 <= count <= MOST_FACTS:
        raise BadSetting(
            f"The number of facts is {count!r}, allowed are whole numbers from 1 to {MOST_FACTS}; choose one of them."
        )
    return int(count)


def show(view: TraceView, traces: Sequence[Trace], model: str, alone: bool) -> Shown:
    """Heatmaps and curves. alone: of the one fact there is, token by token; otherwise of the mean, role by role."""
    mean = average(traces)
    return {
        **{plot: charts.trace_heatmap(traces[0] if alone else mean, kind) for kind, plot in view.plots.items()},
        view.curves: charts.trace_curves(mean),
        view.sentence: sentence_html(traces, model, alone),
        view.located: (model, mean.layer),
        view.use: gr.Button(interactive=True),
        view.used: "",
    }


def sentence_html(traces: Sequence[Trace], model: str, alone: bool) -> str:
    """What was taken away, what came back, and which layer that suggests."""
    mean, first = average(traces), traces[0]
    top = number(float(mean.curve("mlp")[0][mean.layer]))
    if alone:
        answer = escape(first.answer.strip() or repr(first.answer))
        said = f"p(“{answer}”) is {number(first.clean)}, with the subject blurred {number(first.blurred)}."
    else:
        said = f"Over {mean.facts} facts the model knows, blurring the subject takes away {number(mean.total)} of p."
    if mean.total < LITTLE:
        said += " There is hardly anything to bring back: choose a fact the model knows, or more noise."
    preset = _layers(editor_row("rome").preset(model).settings)
    where = f"<b>layer {mean.layer}</b>, where the MLP at the subject's last token brings back most ({top})"
    caution = (
        f"ROME's preset here edits layer {preset[-1]}. Where a fact comes back is not always where editing it works "
        "best (arXiv:2301.04213)."
    )
    return f"<div class='es-said'>{said} Suggested: {where}.</div><div class='es-hint'>{caution}</div>"


def _layers(settings: Any) -> tuple[int, ...]:
    return tuple(settings.layers) if hasattr(settings, "layers") else (settings.layer,)


def use_layer(form: SettingsForm, values: Values, model: str, last: int) -> tuple[Shown, str]:
    """Layers of editors of weights as they end there, as many as the preset has; what that is for the chosen one."""
    conventions, chosen = str(values[form.conventions]), str(values[form.editor])
    shown: Shown = {}
    said = f"{editor_row(chosen).label} does not edit where a fact comes back; the other editors' layers were set."
    for name, row in EDITORS.items():
        widgets: Mapping[str, Any] = form.widgets[name]
        several = "layers" in widgets
        if row.beside or not (several or "layer" in widgets):
            continue
        layers = ending_at(last, len(_layers(row.preset(model, conventions).settings)))
        shown[widgets["layers" if several else "layer"]] = ", ".join(map(str, layers)) if several else last
        if name == chosen:
            which = f"layers {', '.join(map(str, layers))}" if len(layers) > 1 else f"layer {last}"
            said = f"{row.label} now edits {which}. Another editor's preset comes back when you choose that editor."
    return {**shown, **settings_form.show_ingredients(form, {**values, **shown}, model)}, said


def check_located(located: object, model: str) -> int:
    """The layer the last trace suggests; EditingError where there is none of this model."""
    if not (isinstance(located, tuple) and len(located) == 2):
        raise EditingError("No layer was found yet; press Trace or Average over facts first.")
    traced, layer = located
    if traced != model:
        raise EditingError(f"The layer was found in {traced}, but {model} is chosen now; trace again.")
    return int(layer)
