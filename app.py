"""EditScope's page: assembles the parts, wires what is pressed to what happens, and serves it."""

import argparse
import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from components import (
    definitions,
    explore_tab,
    export_view,
    header,
    learn_tab,
    progress_view,
    stack_panel,
    takeaway,
    visitor,
    zerogpu,
)
from components.bench_tab import BenchTab
from components.edit_tab import EditTab
from components.explore_tab import ExploreTab
from components.export_view import ExportView
from components.jobs import Jobs
from components.ladder import Ladder
from components.learn_tab import LearnTab
from components.runs_tab import RunsTab
from components.stack_panel import StackPanel
from components.takeaway import Takeaway
from editing_core import paths
from editing_core.bench.desk import Desk, Limits
from editing_core.bench.executors import LOOK, Dispatcher, executor_of
from editing_core.errors import EditingError
from editing_core.evaluation.evaluator import Evaluator
from editing_core.models.catalog import DEFAULT
from editing_core.models.host import ModelHost
from editing_core.registry import editor_row
from editing_core.statistics.covariance import Corpus, CovarianceStore

log = logging.getLogger(__name__)

MODEL_QUEUE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
CSS = Path(__file__).with_name("assets") / "theme.css"
LAUNCH: dict[str, Any] = {
    "run_history": False,
    "show_error": False,
    "footer_links": [],
    "css_paths": [CSS],
    "head": definitions.head(),
    # One shade darker than usual, so that white words can be read on it.
    "theme": gr.themes.Base(
        primary_hue="blue", spacing_size="sm", text_size="sm", font=["system-ui", "sans-serif"]
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
    ),
}
# The file was named in the answer that has just arrived; the link has to be drawn before it can be followed.
DOWNLOAD = "() => setTimeout(() => document.querySelector('#runs-file')?.click(), 300)"
PATIENCE = 600.0  # seconds that one visitor of a public page may keep the model
UPLOADS = {False: "512mb", True: "5mb"}  # the largest file taken, by whether the page is public


@dataclass(frozen=True, eq=False)
class Parts:
    """The page and its tabs, for who wants to find widgets by name."""

    page: gr.Blocks
    edit: EditTab
    ladder: Ladder
    stack: StackPanel
    take: Takeaway
    export: ExportView
    bench: BenchTab
    runs: RunsTab
    explore: ExploreTab
    learn: LearnTab


def build(host: ModelHost | None = None) -> gr.Blocks:
    """The whole page, on a host of models that every visitor shares."""
    return assemble(host).page


def assemble(host: ModelHost | None = None, desk: Desk | None = None) -> Parts:
    """The page with its tabs. desk: the stored runs, by default all of this machine's."""
    lending, store = zerogpu.spaces(), CovarianceStore()
    host, desk = host or ModelHost(device="cpu" if lending else None), desk or Desk(paths.runs())
    gpu = zerogpu.ZeroGPU(lending, host, store) if lending else None
    largest = zerogpu.LARGEST if gpu else desk.limits.parameters if desk.limits else None
    kept = (600, 3600) if desk.public else (3600, 86400)  # seconds: how often to look, and how old files may be
    with gr.Blocks(title="EditScope", analytics_enabled=False, delete_cache=kept, fill_width=True) as page:
        top, who = header.build(largest), visitor.build()
        edit = EditTab(host, store, top, jobs=Jobs(PATIENCE if desk.public else None), gpu=gpu)
        ladder, stack, take, export = Ladder(edit), StackPanel(edit), Takeaway(edit), ExportView(edit, desk.public)
        bench, runs, explore = BenchTab(desk, who, top.model), RunsTab(desk, who), ExploreTab(edit)
        learn = LearnTab(edit)
        with gr.Tabs(selected="edit") as tabs:
            with gr.Tab("Edit", id="edit") as first:
                edit.build()
                with edit.right:
                    for build_panel in (stack.build, take.build, export.build, ladder.build):
                        build_panel()
            with gr.Tab("Benchmark", id="bench") as second:
                if gpu:
                    gr.HTML(progress_view.note_html(zerogpu.BENCHMARKS), elem_id="bench-processor")
                bench.build()
            with gr.Tab("Runs", id="runs") as third:
                runs.build()
            with gr.Tab("Explore", id="explore") as fourth:
                explore.build()
            with gr.Tab("Learn", id="learn") as fifth:
                learn.build()
        _wire_form(page, edit, take)
        _wire_edit(edit, ladder)
        _wire_view(edit)
        stack_panel.wire(stack, MODEL_QUEUE)
        takeaway.wire(take)
        export_view.wire(export, MODEL_QUEUE)
        explore_tab.wire(explore, fourth, MODEL_QUEUE)
        learn_tab.wire(learn, tabs, _outputs(edit), MODEL_QUEUE)
        _wire_bench(page, bench, second, [first, third, fourth, fifth])
        _wire_runs(runs, third, [first, second, fourth, fifth])
        _wire_case(edit, runs, tabs)
    page.queue(max_size=100)
    return Parts(page, edit, ladder, stack, take, export, bench, runs, explore, learn)


def _outputs(tab: EditTab) -> list[Any]:
    """What the form's handlers may change. The charts are not among them: every widget named costs the browser."""
    form = [tab.form.story, tab.form.strip, tab.form.answers, tab.form.companions, tab.form.standing, tab.form.filled]
    model = [tab.header.state, tab.header.load, tab.progress.message]
    return _ordered({*form, *model, *tab.form.inputs, *tab.settings.inputs, *tab.settings.followers})


def _ordered(widgets: Iterable[Any]) -> list[Any]:
    """In order of creation: sets have none of their own, and an endpoint's outputs should keep their places."""
    return sorted(widgets, key=lambda widget: int(widget._id))


def _wire_form(page: gr.Blocks, tab: EditTab, take: Takeaway) -> None:
    """Examples, fields, suggestions, model and editor, and the case of the link the page was opened by."""
    inputs, outputs, form = tab.inputs(), _outputs(tab), tab.form
    quiet: dict[str, Any] = {"outputs": outputs, "show_progress": "hidden", "api_visibility": "undocumented"}

    def present(event: Callable[..., Any]) -> Any:
        """Refresh what the model says now, after `event`."""
        return event(tab.on_present, inputs, trigger_mode="always_last", **quiet, **MODEL_QUEUE)

    for name, chip in form.chips.items():
        present(chip.click(_chip(tab, name), inputs, **quiet).then)
    for box in form.texts[:3]:
        present(box.blur)
    present(tab.settings.chat.input)
    gr.on(
        [form.neighbors.input, *(widget.input for widget in tab.settings.assists.values())],
        tab.on_neighbors,
        inputs,
        trigger_mode="always_last",
        **quiet,
        **MODEL_QUEUE,
    )
    present(form.suggest.click(tab.on_suggest, inputs, **quiet, **MODEL_QUEUE).then)
    tab.settings.editor.input(tab.on_editor, inputs, **quiet)
    tab.settings.conventions.input(tab.on_conventions, inputs, **quiet)
    choice = tab.settings.ingredients
    choice.recipe.input(tab.on_recipe, inputs, **quiet)
    choice.switches.input(tab.on_switches, inputs, **quiet)
    changed = [widget.input for widget in tab.settings.widgets[choice.editor].values()]
    gr.on(changed, tab.on_ingredients, inputs, trigger_mode="always_last", **quiet)
    present(tab.header.model.input(tab.on_editor, inputs, **quiet).then)
    present(tab.header.load.click(tab.on_load, inputs, **quiet, **MODEL_QUEUE).then)
    # One after the other: the preset must not overwrite what the link asks for.
    linked = {**quiet, "outputs": [*outputs, tab.header.model]}
    present(page.load(tab.on_editor, inputs, **quiet).then(take.on_link, None, **linked).then)


def _chip(tab: EditTab, name: str) -> Callable[..., dict[Any, Any]]:
    return lambda values: tab.on_example(name, values)


def _wire_edit(tab: EditTab, ladder: Ladder) -> None:
    """Edit (also by Enter), the ladder, Stop and Undo."""
    inputs, history = tab.inputs(), tab.history
    pressed = [tab.edit.click, *(box.submit for box in tab.form.texts)]
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "undocumented"}
    # At once, so that a place in the queue can be given up as well.
    gr.on([*pressed, ladder.button.click], lambda: gr.Button(interactive=True), None, tab.stop, **quiet)
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
    climb = ladder.button.click(
        ladder.on_ladder,
        inputs,
        ladder.running,
        api_name="ladder",
        trigger_mode="once",
        show_progress="hidden",
        **MODEL_QUEUE,
    )
    own: dict[str, Any] = {"outputs": tab.running, "show_progress": "hidden"}
    tab.stop.click(tab.on_stop, tab.job, api_name="stop", queue=False, cancels=[run, climb], **own)
    tab.undo.click(
        tab.on_undo, {history, tab.stack}, [*tab.running, tab.stack], api_name="undo", show_progress="hidden"
    )
    read: set[Any] = {
        history,
        tab.view.log,
        tab.view.drift_by,
        tab.tradeoff.source,
        tab.header.model,
        tab.settings.editor,
    }
    shown = history.change(tab.on_history, read, tab.shown, api_name="shown", show_progress="hidden")
    looked = {tab.history, *tab.view.inputs}
    shown.then(tab.on_look, looked, _looks(tab), show_progress="hidden", api_visibility="undocumented", **MODEL_QUEUE)


def _looks(tab: EditTab) -> list[Any]:
    """What a closer look fills."""
    return [tab.view.next_token, tab.view.findings, tab.view.generations, tab.view.drift]


def _wire_view(tab: EditTab) -> None:
    """What chooses the view: slider, fact, scale, kind of drift."""
    inputs, outputs = {tab.history, *tab.view.inputs}, _ordered([*tab.view.outputs, tab.progress.message])
    chosen: dict[str, Any] = {
        "slide": tab.view.k,
        "fact": tab.view.case,
        "scale": tab.view.log,
        "drift": tab.view.drift_by,
    }
    for name, widget in chosen.items():
        moved = widget.input(
            tab.on_view, inputs, outputs, api_name=name, show_progress="hidden", trigger_mode="always_last"
        )
        moved.then(tab.on_look, inputs, _looks(tab), api_name=f"{name}_look", show_progress="hidden", **MODEL_QUEUE)

    tab.tradeoff.source.input(
        tab.on_tradeoff,
        {tab.history, tab.tradeoff.source},
        tab.tradeoff.outputs,
        api_name="tradeoff",
        show_progress="hidden",
    )
    tab.comparison.source.input(
        tab.on_comparison,
        tab.comparison.source,
        [tab.comparison.table],
        api_name="editors_side_by_side",
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


def _wire_bench(page: gr.Blocks, bench: BenchTab, own: gr.Tab, others: list[gr.Tab]) -> None:
    """Start, Cancel, Resume, and looks at the runs shown while the tab is."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "undocumented"}
    act: dict[str, Any] = {"show_progress": "hidden"}
    said = [bench.message, bench.shown, bench.timer, bench.form.text]
    looks = {"fn": bench.on_look, "inputs": bench.looks, "outputs": bench.following, **quiet}
    page.load(bench.visitor.on_load, bench.visitor.key, bench.visitor.key, **quiet)
    bench.form.dataset.input(bench.on_dataset, {bench.form.dataset}, [bench.form.own], **quiet)
    bench.form.editors.change(bench.on_editors, {bench.form.editors}, [bench.form.recipes], **quiet)
    pressed = [bench.start.click, *(box.submit for box in (bench.form.limit, bench.form.trials))]
    gr.on(pressed, bench.on_start, bench.inputs, said, api_name="bench", trigger_mode="once", **act)
    key: set[Any] = {bench.visitor.key, bench.shown}
    own.select(bench.on_enter, key, said, **quiet)
    bench.cancel.click(bench.picked.on_cancel, key, [bench.message], api_name="bench_cancel", **act).then(**looks)
    bench.resume.click(bench.picked.on_resume, key, [bench.message], api_name="bench_resume", **act).then(**looks)
    bench.timer.tick(**looks, trigger_mode="once", concurrency_limit=4)
    bench.shown.change(**looks, trigger_mode="always_last", concurrency_limit=4)
    seen = {bench.visitor.key, bench.shown, *bench.view.inputs}
    gr.on(
        [bench.stamp.change, *(widget.input for widget in bench.view.inputs)],
        bench.on_view,
        seen,
        bench.view.outputs,
        trigger_mode="always_last",
        **quiet,
    )
    for tab in others:
        tab.select(bench.on_leave, None, [bench.timer], **quiet)


def _wire_runs(runs: RunsTab, own: gr.Tab, others: list[gr.Tab]) -> None:
    """The list, what is opened from it, and what is done with that."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "undocumented"}
    act: dict[str, Any] = {"show_progress": "hidden"}
    listing: dict[str, Any] = {"fn": runs.on_list, "inputs": runs.asking, "outputs": runs.listed, **quiet}
    own.select(runs.on_enter, runs.asking, runs.listed, **quiet)
    gr.on([runs.text.input, runs.status.input], trigger_mode="always_last", **listing)
    runs.timer.tick(**listing)
    runs.listing.select(runs.on_pick, runs.asking, [runs.opened], **quiet)
    runs.opened.change(runs.on_open, runs.opening, runs.showing, trigger_mode="always_last", **quiet)
    gr.on([w.input for w in runs.view.inputs], runs.on_view, runs.opening, runs.view.outputs, **quiet)
    runs.reference.input(runs.on_reference, runs.opening, [runs.differences], **quiet)
    gr.on(
        [runs.cases.run.change, *(w.input for w in runs.cases.inputs[1:])],
        runs.on_cases,
        runs.opening,
        runs.cases.outputs,
        trigger_mode="always_last",
        **quiet,
    )
    for name, button in runs.takes.items():
        written = button.click(_take(runs, name), runs.opening, [runs.file, runs.message], **quiet)
        written.success(None, None, None, js=DOWNLOAD)
    runs.upload.upload(
        runs.on_import, {runs.upload, *runs.asking}, [runs.message, runs.opened], api_name="runs_import", **act
    ).then(**listing)
    for button, handler in ((runs.cancel, runs.picked.on_cancel), (runs.resume, runs.picked.on_resume)):
        button.click(handler, runs.asking, [runs.message], **quiet).then(**listing)
    asked = [runs.confirm, runs.question, runs.message, runs.doomed]
    runs.delete.click(runs.on_delete, runs.asking, asked, **quiet)
    doomed = {*runs.asking, runs.doomed}
    runs.sure.click(runs.on_sure, doomed, [*asked, runs.opened], api_name="runs_delete", **act).then(**listing)
    runs.keep.click(runs.on_keep, None, [runs.confirm, runs.doomed], **quiet)
    if runs.desk.public:
        runs.reveal.click(lambda key: key, [runs.visitor.key], [runs.key], **quiet)
        used = runs.use.click(runs.on_key, {runs.key}, [runs.visitor.key, runs.opened, runs.message], **quiet)
        used.then(**listing)
    for tab in others:
        tab.select(runs.on_leave, None, [runs.timer], **quiet)


def _take(runs: RunsTab, name: str) -> Callable[..., dict[Any, Any]]:
    return lambda values: runs.on_take(name, values)


def _wire_case(edit: EditTab, runs: RunsTab, tabs: gr.Tabs) -> None:
    """A click on a stored run's case shows it in the panels of the Edit tab."""

    def open_case(values: dict[Any, Any], row: gr.SelectData) -> dict[Any, Any]:
        try:
            run = runs.case(values, row)
        except EditingError as error:
            return {runs.message: progress_view.error_html(str(error))}
        return {**edit.show_case(values, run), tabs: gr.Tabs(selected="edit")}

    outputs = [*edit.case, tabs, runs.message]
    read = {*runs.opening, edit.header.model, edit.history}
    opened = runs.cases.table.select(open_case, read, outputs, show_progress="hidden", api_visibility="undocumented")
    opened.then(None, None, None, js="() => window.scrollTo(0, 0)")


def serve_queue(dispatcher: Dispatcher) -> Callable[[], None]:
    """Start what waits in the queue of stored runs, in a thread, until the function given back is called."""
    over = threading.Event()

    def serve() -> None:
        pause = 0.0
        while not over.wait(pause):
            started = time.perf_counter()
            try:
                dispatcher.step()
            except Exception:
                log.exception("the queue of runs could not be worked off")
            # Among thousands of runs a look takes longer; nine tenths of the time are the page's in any case.
            pause = max(LOOK, 9 * (time.perf_counter() - started))

    thread = threading.Thread(target=serve, name="queue", daemon=True)
    thread.start()

    def stop() -> None:
        over.set()
        thread.join()

    return stop


def warm(host: ModelHost, store: CovarianceStore) -> None:
    """Load what the first edit needs: the bundled model, its statistics and perplexity, and what trains adapters."""
    lm, corpus, row = host.get(DEFAULT), Corpus.bundled(DEFAULT), editor_row("memit")
    if corpus:
        store.collect(lm, list(row.layers(row.preset(DEFAULT).settings)), corpus)
    Evaluator().collapse_unedited(lm)
    importlib.import_module("peft")  # takes seconds at first use


def options() -> argparse.Namespace:
    """What the page is started with."""
    parser = argparse.ArgumentParser(description="EditScope: edit facts in a language model and see what else changed.")
    space = "SPACE_ID" in os.environ  # a Hugging Face Space has visitors
    parser.add_argument(
        "--public", action="store_true", default=space, help="visitors see their own runs only, within limits"
    )
    parser.add_argument("--executor", default="local", help="what does full-scale runs: local or ray[:ADDRESS]")
    parser.add_argument("--root", type=Path, default=paths.runs(), help="where full-scale runs are kept")
    return parser.parse_args()


def main() -> None:
    """Serve the page; GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say where."""
    given = options()
    try:
        executor = executor_of(given.executor)
    except EditingError as error:
        sys.exit(f"app.py: {error}")
    parts = assemble(desk=Desk(given.root, Limits() if given.public else None))
    serve_queue(Dispatcher(given.root, executor))
    parts.edit.jobs.thread.call(lambda: warm(parts.edit.host, CovarianceStore()))
    name = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    parts.page.launch(server_name=name, server_port=port, max_file_size=UPLOADS[given.public], **LAUNCH)


if __name__ == "__main__":
    main()
