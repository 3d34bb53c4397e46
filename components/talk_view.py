"""Let it talk: free text without and with the edits of the stack, written side by side."""

from dataclasses import dataclass, fields
from html import escape
from typing import Any

import gradio as gr

from components import settings_form
from components.follow import Bar
from components.result_html import diff_html
from components.settings_form import widget_for
from components.types import Shown, Values
from editing_core.explore.talk import TalkSettings
from editing_core.settings import default_of

HINT = "Both sides read the same prompt and draw the same random numbers; only the weights differ."
NOTHING_ON = "Nothing is switched on in the edit stack; switch an edit on there to hear the difference."


@dataclass(frozen=True)
class TalkView:
    """Widgets."""

    prompt: gr.Textbox
    settings: dict[str, Any]
    bar: Bar
    texts: gr.HTML

    @property
    def inputs(self) -> list[Any]:
        """What a text is asked by."""
        return [self.prompt, *self.settings.values()]

    @property
    def outputs(self) -> list[Any]:
        """What a text fills."""
        return [*self.bar.outputs, self.texts]


def build() -> TalkView:
    """Place the widgets."""
    with gr.Row(elem_classes="es-main"):
        with gr.Column(scale=2, min_width=300, elem_classes="es-left"):
            prompt = gr.Textbox(label="Prompt", lines=2, max_lines=6, elem_id="talk-prompt")
            with gr.Row(elem_classes="es-fields"):
                settings = {f.name: widget_for(f, default_of(f)) for f in fields(TalkSettings)}
            bar = Bar.build("talk", {"talk": "Talk"}, HINT)
        with gr.Column(scale=5, min_width=300, elem_classes="es-right"):
            texts = gr.HTML(texts_html("", [], 0), elem_id="talk-texts")
    return TalkView(prompt, settings, bar, texts)


def read_settings(values: Values, view: TalkView) -> TalkSettings:
    """How tokens are chosen."""
    return settings_form.read_fields(values, view.settings, TalkSettings())


def show(view: TalkView, prompt: str, texts: list[str], on: int) -> Shown:
    """What was written so far. on: how many edits the second text has."""
    return {view.texts: texts_html(prompt, texts, on)}


def texts_html(prompt: str, texts: list[str], on: int) -> str:
    """Both texts beside each other, words that differ marked; with one text, why there is no second one."""
    left, right = diff_html(*texts) if len(texts) == 2 else (escape("".join(texts)), escape(NOTHING_ON))
    head = f"with {on} edit{'s' if on > 1 else ''} of the stack" if on else "with the edit stack"
    asked = f"<i>{escape(prompt)}</i>"
    second = f"{asked}{right}" if len(texts) == 2 else f"<span class='es-hint'>{right}</span>"
    return (
        f"<div class='es-generations es-talk'><div><h4>Without edits</h4><p>{asked}{left}</p></div>"
        f"<div><h4>Text {head}</h4><p>{second}</p></div></div>"
    )
