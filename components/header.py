"""The header: product name, model picker, and one line on the state of the chosen model."""

from dataclasses import dataclass
from html import escape

import gradio as gr

from editing_core import preflight
from editing_core.models import memory
from editing_core.models.catalog import CATALOG, DEFAULT, is_hub_id, unknown
from editing_core.models.host import ModelHost
from editing_core.registry import editor_row
from editing_core.statistics.covariance import Corpus, CovarianceStore

NAME = "<h1 class='es-name'>EditScope <small>edit facts in a language model and see what else changed</small></h1>"


@dataclass(frozen=True)
class Header:
    """Widgets of the header. `load` is shown while the chosen model is not loaded.

    names: of the models on offer. open: whether others may be named by their hub id.
    """

    model: gr.Dropdown
    state: gr.HTML
    load: gr.Button
    names: tuple[str, ...]
    open: bool = False

    def check(self, name: object) -> str:
        """The name, when it may be chosen here; UnknownName otherwise. What is typed is never a path."""
        if name in self.names or (self.open and is_hub_id(str(name))):
            return str(name)
        raise unknown(str(name), "model", self.names)


def build(largest: float | None = None) -> Header:
    """Place the header's widgets. largest: parameters of the largest model on offer, None for all models."""
    with gr.Row(elem_classes="es-header"):
        gr.HTML(NAME)
        choices = [
            (f"{row.name} ({_size(row.parameters)}{', bundled' if row.bundled else ''})", row.name)
            for row in CATALOG.values()
            if largest is None or row.parameters <= largest
        ]
        model = gr.Dropdown(
            choices,
            value=DEFAULT,
            label="Model",
            show_label=False,
            container=False,
            allow_custom_value=largest is None,
            elem_id="model",
            min_width=265,
            scale=0,
        )
        load = gr.Button("Load", size="sm", visible=False, elem_id="load", scale=0, min_width=70)
        state = gr.HTML(elem_id="state", elem_classes="es-state")
    return Header(model, state, load, tuple(name for _, name in choices), largest is None)


def state_html(host: ModelHost, store: CovarianceStore, model: str, editor: str, busy: str = "") -> str:
    """Ready or not, what loading would take, and whether the editor's statistics are at hand."""
    row = CATALOG.get(model)
    note = row.note if row else "by its hub id; presets are suggestions"
    if busy:
        return _line("busy", "◐", busy)
    if not host.is_loaded(model):
        return _line("off", "○", f"not loaded; {_memory(host, model, editor)}. {note}")
    return _line(
        "ready",
        "●",
        f"model ready on {host.get(model).device} · {_statistics(host, store, model, editor)} · {note}",
    )


def _memory(host: ModelHost, model: str, editor: str) -> str:
    """What one fact would take, and what is free."""
    device = host.device or preflight.device_here()
    found = preflight.Undertaking(model, editor, place=preflight.Place(host.dtype, device)).need()
    return f"{found}; {memory.told(preflight.free_here(device))} are free"


def _statistics(host: ModelHost, store: CovarianceStore, model: str, editor: str) -> str:
    lm, row = host.get(model), editor_row(editor)
    settings = row.preset(model, depth=lm.layers).settings
    layers = [layer for layer in row.layers(settings) if layer < lm.layers]
    if not layers or not row.needs_statistics(settings):
        return "no statistics needed"
    corpus = store.text_of(lm)
    if corpus is not None and store.has(lm, layers, corpus):
        return "statistics cached"
    return "statistics collected at first edit" if Corpus.bundled(lm.name) else "statistics not collected"


def _line(kind: str, sign: str, text: str) -> str:
    return f"<span class='es-dot es-dot-{kind}'>{sign}</span> {escape(text)}"


def _size(parameters: float) -> str:
    return f"{parameters / 1e9:.3g} B" if parameters >= 1e9 else f"{parameters / 1e6:.3g} M"
