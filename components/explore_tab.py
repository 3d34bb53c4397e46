"""The Explore tab: where a fact is, what every layer would say, what the edit changed, and free text side by side.

All of it looks at models and edits that are there; nothing here changes an edit. Handlers follow their work in the
models' thread, as those of the Edit tab do.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from components import changed_view, follow, lens_view, result_view, talk_view, trace_view
from components.changed_view import MOST_MEASURED, Measured
from components.edit_tab import GONE, EditTab
from components.follow import Bar
from components.jobs import Work
from components.progress_view import error_html, idle_html, note_html
from components.run_store import StoredRun
from components.types import Shown, Values
from components.work import averaging, measuring, reading, talk_turns, talking, tracing
from editing_core.data.suggest import relation_of
from editing_core.errors import EditingError, UnknownName
from editing_core.explore.talk import TalkSettings
from editing_core.models.delta import WeightDelta
from editing_core.models.edit import Edit
from editing_core.runs.record import RunResult
from editing_core.tasks import Task
from editing_core.types import EditRequest, Watch

NO_RUN = "There is no edit on show; press Edit in the Edit tab first."
Made = tuple[Task, Callable[[Any], Shown]]  # what is to be done, and how its result is shown
TALKS: dict[str, Any] = {"concurrency_id": "talk", "concurrency_limit": 4}  # in pieces, between other work


@dataclass(frozen=True, eq=False)
class Sides:
    """What two sides show. states: without an edit, and with it where there is one. name: of the edit, or why none.

    request: the fact it is about, where there is one. on: how many edits make it up.
    """

    model: str
    chat: str
    states: tuple[Edit, ...]
    name: str
    request: EditRequest | None = None
    on: int = 0

    @property
    def objects(self) -> tuple[str, str]:
        """New and old object; empty where there are none."""
        return (self.request.target_new, self.request.target_true or "") if self.request else ("", "")


@dataclass(eq=False)
class ExploreTab:
    """Widgets and handlers; models, runs, stack and settings are those of the Edit tab."""

    edit: EditTab
    filled: gr.State = field(init=False)

    def build(self) -> None:
        """Place the widgets; call inside the tab."""
        self.filled = gr.State(((), ""))
        with gr.Accordion("Where is the fact", open=True, elem_id="explore-trace"):
            self.trace = trace_view.build()
        with gr.Accordion("Layer by layer", open=False, elem_id="explore-lens"):
            self.lens = lens_view.build()
        with gr.Accordion("What the edit changed", open=False, elem_id="explore-changed"):
            self.changed = changed_view.build()
        with gr.Accordion("Let it talk", open=False, elem_id="explore-talk"):
            self.talk = talk_view.build()

    @property
    def inputs(self) -> set[Any]:
        """What every handler reads of the Edit tab."""
        edit = self.edit
        form, chosen = edit.form, [edit.view.k, edit.view.case]
        settings = [edit.settings.chat, edit.settings.editor, edit.settings.conventions]
        return {edit.header.model, edit.history, edit.stack, form.prompt, form.subject, form.old, *chosen, *settings}

    @property
    def readiness(self) -> list[Any]:
        """What tells whether the model is loaded."""
        return [self.edit.header.state, self.edit.header.load]

    def on_enter(self, values: Values) -> Shown:
        """The tab is shown: the Edit tab's fact where it is another one than last time; what was typed here stays."""
        form, stored = self.edit.form, self.edit.current(values)
        fact = tuple(str(values[w] or "").strip() for w in (form.prompt, form.subject, form.old))
        text = self._request(values, stored).full_prompt if stored else fact[0].replace("{}", fact[1])
        known, known_text = values[self.filled]
        shown: Shown = {self.filled: (fact, text)}
        if fact != known:
            shown |= dict(zip((self.trace.prompt, self.trace.subject, self.trace.answer), fact, strict=True))
        if text != known_text:
            shown |= {self.lens.prompt: text, self.talk.prompt: text}
        return shown

    def on_trace(self, values: Values) -> Iterator[Shown]:
        """Trace the fact in the fields."""

        def make() -> Made:
            view, chat = self.trace, str(values[self.edit.settings.chat])
            fact, answer = trace_view.read_fact(values, view), trace_view.read_answer(values, view)
            name, settings = self.edit.check_model(values), trace_view.read_settings(values, view)
            task = tracing(name, fact.place, answer, settings, chat)
            return task, lambda found: trace_view.show(view, found, name, alone=True)

        yield from self._perform(values, self.trace.bar, make)

    def on_average(self, values: Values) -> Iterator[Shown]:
        """Trace several facts that the model knows, those of the fact's relation first."""

        def make() -> Made:
            view, chat = self.trace, str(values[self.edit.settings.chat])
            subject, prompt, answer = (str(values[w] or "").strip() for w in (view.subject, view.prompt, view.answer))
            settings, count = trace_view.read_settings(values, view), trace_view.read_facts(values, view)
            name = self.edit.check_model(values)
            task = averaging(name, count, relation_of(subject, prompt, answer), settings, chat)
            return task, lambda found: trace_view.show(view, found, name, alone=False)

        yield from self._perform(values, self.trace.bar, make)

    def on_use(self, values: Values) -> Shown:
        """Use this layer: into the settings of every editor."""
        try:
            name = self.edit.check_model(values)
            layer = trace_view.check_located(values[self.trace.located], name)
            shown, said = trace_view.use_layer(self.edit.settings, values, name, layer)
        except EditingError as error:
            return {self.trace.used: error_html(str(error))}
        return {**shown, self.trace.used: note_html(said)}

    def on_lens(self, values: Values) -> Iterator[Shown]:
        """The prompt layer by layer, without and with the edit."""

        def make() -> Made:
            sides, prompt = self._sides(values, str(values[self.lens.source])), str(values[self.lens.prompt] or "")
            objects = [text for text in sides.objects if text]
            task = reading(sides.model, prompt, objects, sides.states, sides.chat)
            return task, lambda lenses: lens_view.show(self.lens, lenses, sides.name, sides.objects)

        yield from self._perform(values, self.lens.bar, make)

    def on_measure(self, values: Values) -> Iterator[Shown]:
        """What the edit on show changed."""

        def make() -> Made:
            stored = self.edit.current(values)
            if stored is None:
                raise EditingError(GONE if values[self.edit.history] else NO_RUN)
            run, (_, by) = stored.run, changed_view.read(values, self.changed)
            requests, delta = run.requests[:MOST_MEASURED], run.delta_at(run.chosen)
            task = measuring(self._model_of(run), requests, delta, run.plan.conventions.chat)
            return task, lambda found: changed_view.show(self.changed, run, found, by)

        yield from self._perform(values, self.changed.bar, make)

    def on_points(self, values: Values) -> Any:
        """Another layer or measure for the prompts that were measured."""
        measured: Measured | None = values[self.changed.measured]
        if measured is None:
            return gr.skip()
        stored = self.edit.runs.get(measured.run)
        if stored is None:
            return {self.changed.bar.line: error_html(GONE)}
        layer, by = changed_view.read(values, self.changed)
        return {self.changed.drift: changed_view.drift(stored.run, measured.keys, layer, by)}

    def on_talk(self, values: Values) -> Iterator[Shown]:
        """Free text without and with what is on in the stack, as it is written."""
        bar, prompt = self.talk.bar, str(values[self.talk.prompt] or "")
        try:
            settings = talk_view.read_settings(values, self.talk)
            sides = self._sides(values, "stack")
        except EditingError as error:
            yield bar.idle(error_html(str(error)))
            return
        started = time.perf_counter()

        def show(texts: list[str]) -> Shown:
            return talk_view.show(self.talk, prompt, texts, sides.on)

        yield show([""] * len(sides.states))
        work = self._talk(sides, prompt, settings)
        texts = yield from follow.follow(self.edit.jobs, bar, work, show)
        if texts is not None:
            told = f"Written in {time.perf_counter() - started:.1f} s; the model is as it was."
            yield {**bar.idle(idle_html(told)), **show(texts), **self.edit.readiness(values)}

    def _talk(self, sides: Sides, prompt: str, settings: TalkSettings) -> Work:
        """Texts turn by turn, the model being free for others before each of them; at once on a GPU that is lent."""
        edit, task = self.edit, talking(sides.model, prompt, sides.states, settings, sides.chat)
        if edit.gpu:
            return lambda watch: edit.do(task, watch)

        def turns(watch: Watch) -> Iterator[list[str]]:
            lm = edit.host.get(sides.model).framed(sides.chat)
            yield from talk_turns(lm, watch, prompt, sides.states, settings)

        return turns

    def _perform(self, values: Values, bar: Bar, make: Callable[[], Made]) -> Iterator[Shown]:
        """Make a task of what the page holds, follow it, and show what it gave."""
        try:
            task, show = make()
        except EditingError as error:
            yield bar.idle(error_html(str(error)))
            return
        started = time.perf_counter()
        found = yield from follow.follow(self.edit.jobs, bar, lambda watch: self.edit.do(task, watch))
        if found is not None:
            done = idle_html(f"Done in {time.perf_counter() - started:.1f} s.")
            yield {**bar.idle(done), **show(found), **self.edit.readiness(values)}

    def _sides(self, values: Values, source: str) -> Sides:
        """The unedited model, and the edit of the run on show or of the stack."""
        edit, chat = self.edit, str(values[self.edit.settings.chat])
        stored = edit.current(values)
        if source == "run":
            if stored is None:
                return Sides(edit.check_model(values), chat, (WeightDelta(),), NO_RUN)
            run = stored.run
            states = (run.state_at(0), run.state_at(run.chosen))
            name = f"{run.requests[0].subject[:30]}, k = {run.chosen}"
            return Sides(self._model_of(run), run.plan.conventions.chat, states, name, self._request(values, stored), 1)
        model = edit.check_model(values)
        base = edit.shelf.base(values[edit.stack].now, model)
        if not base.ids:
            return Sides(model, chat, (WeightDelta(),), talk_view.NOTHING_ON)
        requests = edit.shelf.having(base.ids)[base.ids[-1]].requests
        name = f"{len(base.ids)} edit{'s' if len(base.ids) > 1 else ''} of the stack"
        return Sides(model, chat, (WeightDelta(), base.delta), name, requests[0] if requests else None, len(base.ids))

    def _request(self, values: Values, stored: StoredRun) -> EditRequest:
        """The fact of a run that the Edit tab shows."""
        place, _ = result_view.read_place(values, self.edit.view, stored)
        return stored.run.requests[place]

    def _model_of(self, run: RunResult) -> str:
        """The name of a run's model, where it is loaded or may be: a stored run can be of one not on offer here."""
        if not self.edit.host.is_loaded(run.model):
            try:
                self.edit.header.check(run.model)
            except UnknownName as error:
                told = f"The edit on show is of {run.model}, which is not on offer here; edit the fact again."
                raise EditingError(told) from error
        return run.model


def wire(tab: ExploreTab, own: gr.Tab, queue: dict[str, Any]) -> None:
    """What is pressed to what happens. queue: that of handlers which use a model."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "undocumented"}
    trace, lens, changed, talk = tab.trace, tab.lens, tab.changed, tab.talk
    filling = [tab.filled, trace.prompt, trace.subject, trace.answer, lens.prompt, talk.prompt]
    own.select(tab.on_enter, {*tab.inputs, tab.filled}, filling, **quiet)

    works: list[tuple[Bar, str, Any, set[Any], list[Any], dict[str, Any]]] = [
        (trace.bar, "trace", tab.on_trace, {*trace.inputs}, trace.outputs, queue),
        (trace.bar, "trace-average", tab.on_average, {*trace.inputs}, trace.outputs, queue),
        (lens.bar, "lens", tab.on_lens, {lens.prompt, lens.source}, lens.outputs, queue),
        (changed.bar, "changed", tab.on_measure, {changed.layer, changed.by}, changed.outputs, queue),
        (talk.bar, "talk", tab.on_talk, {*talk.inputs}, talk.outputs, TALKS),
    ]
    bars = (trace.bar, lens.bar, changed.bar, talk.bar)
    for bar in bars:
        follow.offer_stop(bar)
    running: dict[int, list[Any]] = {}
    for bar, name, handler, read, outputs, line in works:
        event = bar.starts[name].click(
            handler,
            {*tab.inputs, *read},
            [*outputs, *tab.readiness],
            api_name=name.replace("-", "_"),
            trigger_mode="once",
            show_progress="hidden",
            **line,
        )
        running.setdefault(id(bar), []).append(event)
    for bar in bars:
        follow.wire_stop(bar, tab.edit.jobs, running[id(bar)])

    edit = tab.edit
    settings = [*edit.settings.inputs, *edit.settings.followers]
    outputs = [*dict.fromkeys([*settings, trace.used])]
    trace.use.click(tab.on_use, {*edit.inputs(), trace.located}, outputs, api_name="use_layer", show_progress="hidden")
    points = {changed.layer, changed.by, changed.measured, edit.history}
    gr.on([changed.layer.input, changed.by.input], tab.on_points, points, [changed.drift, changed.bar.line], **quiet)
