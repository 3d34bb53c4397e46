"""EditScope's page: assembles the parts, wires what is pressed to what happens, and serves it."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from components import header
from components.edit_tab import EditTab
from editing_core.editors.steps.covariance import Corpus, CovarianceStore
from editing_core.models.catalog import DEFAULT
from editing_core.models.host import ModelHost
from editing_core.registry import editor_row

MODEL_QUEUE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
CSS = Path(__file__).with_name("assets") / "theme.css"
LAUNCH: dict[str, Any] = {
    "run_history": False,
    "show_error": False,
    "max_file_size": "5mb",
    "footer_links": [],
    "css_paths": [CSS],
    "theme": gr.themes.Base(primary_hue="blue", spacing_size="sm", text_size="sm", font=["system-ui", "sans-serif"]),
}


def build(host: ModelHost | None = None) -> gr.Blocks:
    """The whole page, on a host of models that every visitor shares."""
    return assemble(host)[0]


def assemble(host: ModelHost | None = None) -> tuple[gr.Blocks, EditTab]:
    """The page, and its Edit tab for who wants to find widgets by name."""
    host, store = host or ModelHost(), CovarianceStore()
    with gr.Blocks(title="EditScope", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as page:
        top = header.build()
        tab = EditTab(host, store, top)
        with gr.Tabs(), gr.Tab("Edit"):
            tab.build()
        _wire_form(page, tab)
        _wire_edit(tab)
        _wire_view(tab)
    page.queue(max_size=100)
    return page, tab


def _outputs(tab: EditTab) -> list[Any]:
    """What the form's handlers may change. The charts are not among them: every widget named costs the browser."""
    form = [tab.form.story, tab.form.strip, tab.form.answers, tab.form.companions, tab.form.standing, tab.form.filled]
    model = [tab.header.state, tab.header.load, tab.progress.message]
    return _ordered({*form, *model, *tab.form.inputs, *tab.settings.inputs, *tab.settings.followers})


def _ordered(widgets: Iterable[Any]) -> list[Any]:
    """In order of creation: sets have none of their own, and an endpoint's outputs should keep their places."""
    return sorted(widgets, key=lambda widget: int(widget._id))


def _wire_form(page: gr.Blocks, tab: EditTab) -> None:
    """Examples, fields, suggestions, model and editor."""
    inputs, outputs, form = tab.inputs(), _outputs(tab), tab.form
    quiet: dict[str, Any] = {"outputs": outputs, "show_progress": "hidden", "api_visibility": "undocumented"}

    def present(event: Callable[..., Any]) -> Any:
        """Refresh what the model says now, after `event`."""
        return event(tab.on_present, inputs, trigger_mode="always_last", **quiet, **MODEL_QUEUE)

    for name, chip in form.chips.items():
        present(chip.click(_chip(tab, name), inputs, **quiet).then)
    for box in form.texts[:3]:
        present(box.blur)
    gr.on(
        [form.neighbors.input, *(widget.input for widget in tab.settings.assists.values())],
        tab.on_neighbors,
        inputs,
        trigger_mode="always_last",
        **quiet,
        **MODEL_QUEUE,
    )
    present(form.suggest.click(tab.on_suggest, inputs, **quiet).then)
    tab.settings.editor.input(tab.on_editor, inputs, **quiet)
    tab.settings.conventions.input(tab.on_conventions, inputs, **quiet)
    present(tab.header.model.input(tab.on_editor, inputs, **quiet).then)
    present(tab.header.load.click(tab.on_load, inputs, **quiet, **MODEL_QUEUE).then)
    page.load(tab.on_editor, inputs, **quiet)


def _chip(tab: EditTab, name: str) -> Callable[..., dict[Any, Any]]:
    return lambda values: tab.on_example(name, values)


def _wire_edit(tab: EditTab) -> None:
    """Edit (also by Enter), Stop and Undo."""
    inputs, history = tab.inputs(), tab.history
    pressed = [tab.edit.click, *(box.submit for box in tab.form.texts)]
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "undocumented"}
    # At once, so that a place in the queue can be given up as well.
    gr.on(pressed, lambda: gr.Button(interactive=True), None, tab.stop, **quiet)
    run = gr.on(
        pressed,
        tab.on_edit,
        inputs,
        tab.running,
        api_name="edit",
        trigger_mode="once",
        show_progress="hidden",  # we show our own; Gradio's repaints at every frame
        **MODEL_QUEUE,
    )
    own: dict[str, Any] = {"outputs": tab.running, "show_progress": "hidden"}
    tab.stop.click(tab.on_stop, tab.job, api_name="stop", queue=False, cancels=[run], **own)
    tab.undo.click(tab.on_undo, {history}, api_name="undo", **own)
    read: set[Any] = {history, tab.view.log, tab.tradeoff.source, tab.header.model, tab.settings.editor}
    history.change(tab.on_history, read, tab.shown, api_name="shown", show_progress="hidden")


def _wire_view(tab: EditTab) -> None:
    """What chooses the view: slider, fact, scale."""
    inputs, outputs = {tab.history, *tab.view.inputs}, _ordered([*tab.view.outputs, tab.progress.message])
    for name, widget in (("slide", tab.view.k), ("fact", tab.view.case), ("scale", tab.view.log)):
        moved = widget.input(
            tab.on_view, inputs, outputs, api_name=name, show_progress="hidden", trigger_mode="always_last"
        )
        moved.then(tab.on_look, inputs, outputs, api_name=f"{name}_look", show_progress="hidden", **MODEL_QUEUE)

    tab.tradeoff.source.input(
        tab.on_tradeoff,
        {tab.history, tab.tradeoff.source},
        tab.tradeoff.outputs,
        api_name="tradeoff",
        show_progress="hidden",
    )
    gr.on(
        [tab.view.state.input, tab.view.text.input, tab.view.order.input],
        tab.on_cases,
        inputs,
        outputs,
        api_name="cases",
        show_progress="hidden",
        trigger_mode="always_last",
    )


def warm(host: ModelHost, store: CovarianceStore) -> None:
    """Load the bundled model and measure its statistics, so that the first edit is fast."""
    lm, corpus, row = host.get(DEFAULT), Corpus.bundled(DEFAULT), editor_row("memit")
    if corpus:
        store.collect(lm, list(row.layers(row.preset(DEFAULT).settings)), corpus)


def main() -> None:
    """Serve the page; GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say where."""
    page, tab = assemble()
    tab.jobs.thread.call(lambda: warm(tab.host, CovarianceStore()))
    name = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    page.launch(server_name=name, server_port=port, **LAUNCH)


if __name__ == "__main__":
    main()
