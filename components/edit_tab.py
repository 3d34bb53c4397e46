"""The Edit tab: places form, settings, progress and result, and handles what is pressed there.

Handlers that touch a model are generators in one queue ("model"); the work itself runs in the models' thread,
so a cancelled handler or a closed tab never leaves a model changed. A finished edit goes into the page's
history, and what is on show follows from that.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from components import comparison_view, edit_form, header, progress_view, result_view, settings_form, tradeoff_view
from components.jobs import Job, Jobs
from components.run_store import RunStore, StoredRun
from components.shelf import EditShelf
from components.token_strip import hint_html
from components.types import Shown, Values
from components.work import Asking, editing, looking
from components.zerogpu import ZeroGPU
from editing_core.data.encoder import Encoder, encoder_of
from editing_core.data.examples import example
from editing_core.data.suggest import Suggestion, suggest
from editing_core.errors import Cancelled, EditingError
from editing_core.models.host import ModelHost
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan, RunResult
from editing_core.stack import StackedEdit, Timeline
from editing_core.statistics.covariance import CovarianceStore
from editing_core.tasks import Task
from editing_core.types import EditRequest, Watch, ignore

log = logging.getLogger(__name__)

DEFECT = "Something went wrong inside EditScope; the model is as it was, and the server's log has the details."
STOPPED = "Stopped; the model is as it was."
NOTHING_RUN = "Nothing was run."
REDRAW = 3.0  # seconds between two drawings of the live chart, and before the first
GONE = "This run is no longer kept on the server; press Edit again."


@dataclass(eq=False)
class EditTab:
    """Widgets and handlers. `host` and the stores are shared by all pages; what a page knows is in its States.

    gpu: what does the tasks where the server itself has no GPU but is lent one.
    """

    host: ModelHost
    store: CovarianceStore
    header: header.Header
    runs: RunStore = field(default_factory=RunStore)
    shelf: EditShelf = field(default_factory=EditShelf)
    jobs: Jobs = field(default_factory=Jobs)
    gpu: ZeroGPU | None = None

    def build(self) -> None:
        """Place the widgets; call inside the tab."""
        self.history, self.job = gr.State([]), gr.State("")
        self.stack, self.made = gr.State(Timeline()), gr.State("")
        with gr.Row(elem_classes="es-main"):
            with gr.Column(scale=2, min_width=330, elem_classes="es-left"):
                self.form = edit_form.build()
                self.settings = settings_form.build()
                with gr.Row(elem_classes="es-buttons"):
                    self.edit = gr.Button("Edit", variant="primary", elem_id="edit", min_width=90)
                    self.stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop", min_width=70)
                    self.undo = gr.Button("Undo", interactive=False, elem_id="undo", min_width=70)
                self.progress = progress_view.build(progress_view.build_message())
            with gr.Column(scale=5, min_width=330, elem_classes="es-right") as self.right:
                self.view = result_view.build()
                self.tradeoff = tradeoff_view.build()
                self.comparison = comparison_view.build()

    def inputs(self) -> set[Any]:
        """What the form's handlers read. Not the slider: while a run ends it may stand beyond the new run's end."""
        widgets = [self.header.model, self.history, self.job, self.stack, self.form.filled, self.tradeoff.source]
        return {*widgets, *self.form.inputs, *self.settings.inputs, self.view.log}

    @property
    def running(self) -> list[Any]:
        """What changes while an edit runs and when it ends; all else follows from the history."""
        return [*self.progress.outputs, self.edit, self.stop, self.undo, self.job, self.history, self.made]

    @property
    def shown(self) -> list[Any]:
        """What follows from the history."""
        return [*self.view.outputs, *self.tradeoff.outputs, self.header.state, self.header.load]

    def on_example(self, name: str, values: Values) -> Shown:
        """An example's button: fill form and settings, with what the example changes in the preset."""
        chosen, model = example(name), values[self.header.model]
        return {
            **edit_form.show_example(self.form, chosen),
            **settings_form.show_preset(self.settings, chosen.editor, model, "clean", chosen.settings),
            self.header.state: header.state_html(self.host, self.store, model, chosen.editor),
            self.settings.editor: chosen.editor,
            self.settings.iterations: chosen.iterations,
            self.settings.stop: chosen.stop,
            self.settings.collapse_factor: chosen.collapse_factor,
            self.settings.conventions: "clean",
            **settings_form.show_assist(self.settings, chosen.assist),
            self.progress.message: "",
        }

    def on_editor(self, values: Values) -> Shown:
        """Another editor or model: its preset and the model's state."""
        editor, model = values[self.settings.editor], values[self.header.model]
        preset = settings_form.show_preset(self.settings, editor, model, values[self.settings.conventions])
        return {**preset, **self.readiness(values)}

    def on_recipe(self, values: Values) -> Shown:
        """Another recipe: its settings."""
        return self._chosen(settings_form.show_recipe, values)

    def on_switches(self, values: Values) -> Shown:
        """An ingredient was switched on or off."""
        return self._chosen(settings_form.show_switches, values)

    def on_ingredients(self, values: Values) -> Shown:
        """An ingredient's amount, or anything else a recipe sets, was changed by hand."""
        return self._chosen(settings_form.show_ingredients, values)

    def _chosen(self, show: Callable[..., Shown], values: Values) -> Shown:
        try:
            return {self.progress.message: "", **show(self.settings, values, values[self.header.model])}
        except EditingError as error:
            return {self.progress.message: progress_view.error_html(str(error))}

    def readiness(self, values: Values) -> Shown:
        """Whether the chosen model is loaded and the chosen editor's statistics are at hand."""
        editor, model = values[self.settings.editor], values[self.header.model]
        return {
            self.header.state: header.state_html(self.host, self.store, model, editor),
            self.header.load: gr.Button(visible=not self.host.is_loaded(model)),
        }

    def on_conventions(self, values: Values) -> Shown:
        """Clean or faithful: the preset, and the published code's fixed number of iterations."""
        faithful = values[self.settings.conventions] == "faithful"
        return {**self.on_editor(values), self.settings.stop: "none" if faithful else "perplexity"}

    def on_load(self, values: Values) -> Iterator[Shown]:
        """Load the chosen model."""
        model, editor = values[self.header.model], values[self.settings.editor]
        yield {self.header.state: header.state_html(self.host, self.store, model, editor, f"loading {model}")}
        message = ""
        try:
            self.jobs.thread.call(lambda: self.model(values))
        except EditingError as error:
            message = progress_view.error_html(str(error))
        yield {self.progress.message: message, **self.readiness(values)}

    def on_present(self, values: Values) -> Iterator[Shown]:
        """A field was left: tokens, present answers, old object, known neighbors. Loads no model by itself."""
        if self.host.is_loaded(values[self.header.model]):
            lm, asking = self.model(values), self._asking(values)
            yield self.jobs.thread.call(lambda: edit_form.present(lm, values, self.form, asking))
        else:
            yield {
                self.form.strip: hint_html("Load the model to see its tokens and present answers."),
                self.form.answers: "",
            }

    def on_neighbors(self, values: Values) -> Iterator[Any]:
        """A neighbor or the way it assists was changed: how the neighbors stand. The table is left alone."""
        if self.host.is_loaded(values[self.header.model]):
            lm, asking = self.model(values), self._asking(values)
            yield self.jobs.thread.call(lambda: edit_form.stand(lm, values, self.form, asking))
        else:
            yield gr.skip()  # as below

    def _asking(self, values: Values) -> edit_form.Asking:
        """How the form's prompts are asked; without assistance while a setting is wrong, which Edit will say."""
        chat = str(values[self.settings.chat])
        try:
            assist = settings_form.read_assist(values, self.settings)
            return edit_form.Asking(assist, int(values[self.settings.seed] or 0), chat)
        except (EditingError, ValueError, TypeError):
            return edit_form.Asking(chat=chat)

    def on_suggest(self, values: Values) -> Iterator[Shown]:
        """Paraphrases and neighbors for the fact in the form; by similarity where a loaded model can measure it."""
        subject, prompt, old = (
            str(values[w] or "").strip() for w in (self.form.subject, self.form.prompt, self.form.old)
        )
        encoder: Encoder | None = None
        try:
            if self.host.is_loaded(values[self.header.model]):
                yield {self.progress.message: progress_view.note_html("Looking for facts nearby.")}
                lm = self.model(values)
                encoder = self.jobs.thread.call(lambda: encoder_of(lm))
                found = self.jobs.thread.call(lambda: suggest(subject, prompt, old or None, encoder))
            else:
                found = suggest(subject, prompt, old or None)
        except EditingError as error:
            yield {self.progress.message: progress_view.error_html(str(error))}
            return
        yield {
            self.progress.message: progress_view.note_html(_told(found, encoder)),
            self.form.paraphrases: [[p] for p in found.paraphrases],
            self.form.neighbors: edit_form.neighbor_rows(found.neighbors),
        }

    def on_edit(self, values: Values) -> Iterator[Shown]:
        """Edit: one run of what the form asks for."""
        yield from self.perform(values, self.work, self._outcome)

    def perform(
        self,
        values: Values,
        work: Callable[[Values, list[EditRequest], EditPlan, Watch], Any],
        show: Callable[[Job, Values], Shown],
        rounds: int | None = None,
    ) -> Iterator[Shown]:
        """Read the form, do the work in a worker, stream its progress, show the result.

        rounds: iterations of the work at most, the plan's unless given.
        """
        try:
            self.check_model(values)
            requests = edit_form.read_requests(values, self.form)
            plan = settings_form.read_plan(values, self.settings)
        except EditingError as error:
            yield self.idle(values, progress_view.error_html(str(error)))
            return
        job = self.jobs.start(lambda watch: work(values, requests, plan, watch))
        try:
            yield from self._stream(job, rounds or plan.stop.iterations)
            yield self._ended(job, values) or show(job, values)
        finally:
            self.jobs.finish(job)

    def work(self, values: Values, requests: list[EditRequest], plan: EditPlan, watch: Watch) -> str:
        """Have the edit done, with a look at the first fact before and after, and keep it; gives the run's id."""
        name = self.check_model(values)
        references = settings_form.read_references(values, self.settings)
        base = self.shelf.base(values[self.stack].now, name)
        stored: StoredRun = self.do(editing(name, requests, plan, references, base), watch)
        self.shelf.add(stacked(stored.run))
        return self.runs.add(stored)

    def do(self, task: Task, watch: Watch = ignore) -> Any:
        """A task's result, computed here or on the GPU that is lent; call in the models' thread."""
        return self.gpu.do(task, watch) if self.gpu else task.run(self.host, self.store, watch)

    def on_stop(self, job_id: str) -> Shown:
        """Stop: ask the page's job to leave and wait until the model is restored.

        A job still in the queue has no id yet; there the event itself is cancelled.
        """
        self.jobs.stop(job_id)
        return {
            self.progress.line: progress_view.idle_html(STOPPED),
            self.edit: gr.Button(interactive=True),
            self.stop: gr.Button(interactive=False),
            self.job: "",
        }

    def on_undo(self, values: Values) -> Shown:
        """Back to the run before, or to the empty view. Models are never left edited, so nothing else is undone."""
        history, line = list(values[self.history]), values[self.stack]
        taken = history.pop() if history else ""
        kept = bool(history) and self.runs.get(history[-1]) is not None
        text = "Undone; the run before is shown." if kept else "Undone; the model is as it was."
        return {
            self.history: history if kept else [],
            self.stack: line.to(line.now.remove(taken)) if taken in line.now.ids else line,
            self.undo: gr.Button(interactive=kept),
            self.progress.line: progress_view.idle_html(text),
            self.progress.message: "",
        }

    def on_history(self, values: Values) -> Shown:
        """A run was added or taken back: show the newest one there is."""
        stored = self.current(values)
        own = self._own_tradeoff(values)
        if stored is None:
            return {**result_view.show_empty(self.view), **own}
        log_scale, by = bool(values[self.view.log]), str(values[self.view.drift_by])
        shown = result_view.show_run(self.view, stored, self.runs.files(stored), log_scale, by)
        return {**shown, **own, **self.readiness(values)}

    def show_case(self, values: Values, run: RunResult) -> Shown:
        """A case of a stored run: its story in the panels, and the fact in the form to be edited by itself."""
        self.runs.add(StoredRun(run))
        offered = run.model in self.header.names
        model = run.model if offered else values[self.header.model]
        other = "" if offered else f" {run.model} is not on offer here, {model} is."
        return {
            **edit_form.show_request(self.form, run.requests[0]),
            **settings_form.show_plan(self.settings, run.plan, model),
            self.header.model: model,
            self.progress.message: "",
            self.progress.line: progress_view.idle_html(
                f"A case of a stored run is shown; Edit edits it by itself.{other}"
            ),
            self.history: [*values[self.history], run.id][-20:],
            self.undo: gr.Button(interactive=True),
        }

    @property
    def case(self) -> list[Any]:
        """What `show_case` changes."""
        form = [*self.form.inputs, self.form.story, self.form.companions, self.form.standing, self.form.filled]
        plan = [*self.settings.inputs, *self.settings.followers]
        progress = [self.progress.message, self.progress.line]
        return [*dict.fromkeys([*form, *plan, *progress, self.header.model, self.history, self.undo])]

    def on_view(self, values: Values) -> Shown:
        """The slider, the fact selector or the scale moved: redraw from the kept run."""
        stored = self.current(values)
        if stored is None:
            return {self.progress.message: progress_view.error_html(GONE) if values[self.history] else ""}
        place, k = result_view.read_place(values, self.view, stored)
        cases, by = result_view.read_cases(values, self.view), str(values[self.view.drift_by])
        return result_view.show_at(self.view, stored, place, k, bool(values[self.view.log]), by, cases)

    def on_cases(self, values: Values) -> Shown:
        """The case list was narrowed or ordered anew."""
        stored = self.current(values)
        if stored is None:
            return {self.progress.message: ""}
        _, k = result_view.read_place(values, self.view, stored)
        return {self.view.cases: result_view.read_cases(values, self.view).html(stored.run, k)}

    def on_tradeoff(self, values: Values) -> Shown:
        """Another comparison, or the page's own runs."""
        return tradeoff_view.show(self.tradeoff, str(values[self.tradeoff.source]), self._kept(values[self.history]))

    def on_comparison(self, source: str) -> Shown:
        """Other published figures beside the editors measured here."""
        return comparison_view.show(self.comparison, source)

    def _own_tradeoff(self, values: Values) -> Shown:
        """The trade-off again, where it is the one of the page's own runs."""
        return self.on_tradeoff(values) if values[self.tradeoff.source] == tradeoff_view.OWN else {}

    def _kept(self, history: list[str]) -> list[StoredRun]:
        """The runs of the page that the server still has."""
        return [stored for run_id in history if (stored := self.runs.get(run_id))]

    def on_look(self, values: Values) -> Iterator[Any]:
        """After `on_view`: what a closer look at a fact and iteration brings and is not there yet."""
        stored = self.current(values)
        if stored is None:
            yield gr.skip()  # a generator that yields nothing would empty its outputs
            return
        (place, k), by = result_view.read_place(values, self.view, stored), str(values[self.view.drift_by])
        if result_view.is_looked_at(stored, place, k, by):
            yield gr.skip()
            return
        reason = ""
        try:
            if self.host.is_loaded(stored.run.model):
                self.jobs.thread.call(lambda: self.look_at(stored, place, k, by))
            else:
                reason = "Load the model of this run for a closer look."
        except EditingError as error:
            reason = str(error)
        missing = result_view.show_no_looks(self.view, reason, by) if reason else {}
        yield {**missing, **result_view.show_looks(self.view, stored, place, k, by)}

    def look_at(self, stored: StoredRun, place: int, k: int, by: str = result_view.NEIGHBOR) -> None:
        """Take the looks before and after iteration k, and the distances where asked for, that are still missing."""
        asking = Asking.of(stored, place, k, distances=by == result_view.DISTANCE)
        self.do(looking(stored.run.model, asking)).added_to(stored, asking.request)

    def check_model(self, values: Values) -> str:
        """The chosen model's name, when it may be chosen here."""
        return self.header.check(values[self.header.model])

    def model(self, values: Values) -> Any:
        """The chosen model, loaded when needed."""
        return self.host.get(self.check_model(values))

    def current(self, values: Values) -> StoredRun | None:
        """The run on show, if it is still kept."""
        history = values[self.history]
        return self.runs.get(history[-1]) if history else None

    def _stream(self, job: Job, iterations: int) -> Iterator[Shown]:
        progress = progress_view.Progress(iterations)
        yield {
            self.job: job.id,
            self.progress.message: "",
            self.edit: gr.Button(interactive=False),
            self.stop: gr.Button(interactive=True),
            **progress_view.show(self.progress, progress, 0.0, redraw=False),
        }
        drawn, changed = 0.0, False
        for steps in job.updates():
            changed |= progress.add(steps)
            # Drawing takes processor time, which on a small host the edit itself needs.
            redraw = changed and job.seconds - drawn >= REDRAW
            drawn, changed = (job.seconds, False) if redraw else (drawn, changed)
            yield progress_view.show(self.progress, progress, job.seconds, redraw)

    def _ended(self, job: Job, values: Values) -> Shown | None:
        """The page after a job that was stopped or refused, or failed."""
        told = ended(job)
        return self.idle(values, *told) if told else None

    def _outcome(self, job: Job, values: Values) -> Shown:
        """The page after an edit that went well."""
        stored = self.runs.get(job.result)
        if stored is None:
            return self.idle(values, progress_view.error_html(GONE))
        done = f"Done in {job.seconds:.1f} s; the result is shown as k = {stored.run.chosen}."
        return {
            **self.idle(values, "", done),
            self.history: [*values[self.history], stored.run.id][-20:],
            self.made: stored.run.id,
            self.undo: gr.Button(interactive=True),
        }

    def idle(self, values: Values, message: str, text: str = NOTHING_RUN) -> Shown:
        """The page while nothing runs."""
        return {
            self.progress.message: message,
            self.progress.line: progress_view.idle_html(text),
            self.edit: gr.Button(interactive=True),
            self.stop: gr.Button(interactive=False),
            self.undo: gr.Button(interactive=bool(values[self.history])),
            self.job: "",
        }


def ended(job: Job) -> tuple[str, str] | None:
    """Message and progress line after a job that was stopped, refused, or failed; defects go to the log."""
    if job.stopped or isinstance(job.error, Cancelled):
        return "", STOPPED
    if isinstance(job.error, EditingError):
        return progress_view.error_html(str(job.error)), NOTHING_RUN
    if job.error:
        log.error("the work failed", exc_info=job.error)
        return progress_view.error_html(DEFECT), NOTHING_RUN
    return None


def stacked(run: RunResult) -> StackedEdit:
    """A run's result as an edit of the stack."""
    delta, origin = run.delta_at(run.chosen), editor_row(run.plan.editor).label
    return StackedEdit(run.id, delta, run.requests, run.model, run.revision, run.base.ids, origin)


def _told(found: Suggestion, encoder: Encoder | None) -> str:
    """How the suggestion was made."""
    order = f"; the nearest facts by {encoder.name}. {encoder.note}" if encoder else "; drawn at random."
    return f"Relation: {found.relation}, found {found.how}{order}".strip()
