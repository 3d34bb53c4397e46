"""The Benchmark tab: what to run, the queue as it is worked off, and the curves and tables as they grow.

Runs are folders that processes of their own work on, so nothing here is lost with the page: it only enters runs,
asks them to stop or go on, and reads what they have written so far.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from components import bench_form, progress_view, run_html, runs_view
from components.visitor import Visitor
from editing_core.bench.desk import Desk, Entered
from editing_core.bench.progress import Tracker
from editing_core.bench.stored import read_all
from editing_core.errors import EditingError
from editing_core.models.catalog import CATALOG, unknown
from editing_core.runs.folder import CANCELLED, FAILED, INTERRUPTED, OPEN, QUEUED, RunFolder

Values = Mapping[Any, Any]
Shown = dict[Any, Any]
AWAKE, ASLEEP = 1.0, 5.0  # seconds between two looks: while something shown goes on, and while nothing does
MOST_SHOWN = 60  # runs; a page that shows more is read by nobody
HINT = "Press Start: curves grow with the runs."


@dataclass(eq=False)
class BenchTab:
    """Widgets and handlers. desk: the stored runs, shared by all pages; who asks is told by the visitor's key."""

    desk: Desk
    visitor: Visitor
    model: gr.Dropdown
    tracker: Tracker = field(default_factory=Tracker)

    def build(self) -> None:
        """Place the widgets; call inside the tab."""
        self.stamp = gr.State("")
        self.timer = gr.Timer(ASLEEP, active=False)
        with gr.Row(elem_classes="es-main"):
            with gr.Column(scale=2, min_width=330, elem_classes="es-left"):
                self.form = bench_form.build(self.desk.limits)
                with gr.Row(elem_classes="es-buttons"):
                    self.start = gr.Button("Start", variant="primary", elem_id="bench-start", min_width=80)
                    self.cancel = gr.Button("Cancel", variant="stop", elem_id="bench-cancel", min_width=70)
                    self.resume = gr.Button("Resume", elem_id="bench-resume", min_width=70)
                self.message = gr.HTML(elem_id="bench-message")
            with gr.Column(scale=5, min_width=330, elem_classes="es-right"):
                self.shown = gr.Dropdown(
                    [],
                    value=[],
                    multiselect=True,
                    allow_custom_value=True,
                    label="Runs shown; Cancel and Resume act on these",
                    elem_id="bench-shown",
                )
                self.queue = gr.HTML(run_html.lines_html([], HINT), elem_id="bench-queue")
                self.view = runs_view.build("bench", HINT)

    @property
    def inputs(self) -> set[Any]:
        """What Start reads."""
        return {self.visitor.key, self.model, self.shown, *self.form.inputs}

    @property
    def looks(self) -> set[Any]:
        """What a look at the shown runs reads."""
        return {self.visitor.key, self.shown, self.stamp}

    @property
    def following(self) -> list[Any]:
        """What a look may change; curves and table follow from the stamp."""
        return [self.queue, self.stamp, self.timer]

    def on_dataset(self, values: Values) -> Shown:
        """Another data set: the file's widgets come and go."""
        own = values[self.form.dataset] == bench_form.OWN
        return {self.form.own: gr.Group(visible=own)}

    def on_start(self, values: Values) -> Shown:
        """Enter the form's runs."""
        try:
            model = values[self.model]
            if model not in CATALOG:
                raise unknown(str(model), "model", CATALOG)
            dataset, file = bench_form.read_dataset(values, self.form)
            bench_form.read_grid(values, self.form, model, dataset)  # what is wrong is told before a file is kept
            if file:
                dataset = self.desk.accept(file, dataset, skip_bad=bool(values[self.form.skip_bad]))
            grid, text = bench_form.read_grid(values, self.form, model, dataset)
            entered = self.desk.enter(values[self.visitor.key], grid)
        except EditingError as error:
            return {self.message: progress_view.error_html(str(error))}
        ids = [folder.id for folder in entered.runs][:MOST_SHOWN]
        return {
            self.message: progress_view.note_html(_told(entered)),
            self.form.text: text,
            **self._choose(values, ids),
        }

    def on_enter(self, values: Values) -> Shown:
        """The tab was opened, or the page loaded: runs that go on are found again."""
        try:
            entries = self.desk.entries(values[self.visitor.key])
        except EditingError as error:
            return {self.message: progress_view.error_html(str(error)), self.timer: gr.Timer(active=False)}
        going = [entry.id for entry in entries if entry.status in OPEN]
        return self._choose(values, [*dict.fromkeys([*_ids(values[self.shown]), *reversed(going)])][:MOST_SHOWN])

    def on_leave(self) -> Shown:
        """Another tab is shown: nobody looks."""
        return {self.timer: gr.Timer(active=False)}

    def on_look(self, values: Values) -> Shown:
        """The shown runs as they are now."""
        folders = self._folders(values)
        waiting = self.desk.waiting() if any(_status(folder) == QUEUED for folder in folders) else []
        places = {name: number for number, name in enumerate(waiting, start=1)}
        lines = [run_html.line_html(folder, self.tracker, places.get(folder.id)) for folder in folders]
        going = any(_status(folder) in OPEN for folder in folders)
        stamp = " ".join(_stamp(folder) for folder in folders)
        changed = {self.stamp: stamp} if stamp != values[self.stamp] else {}
        return {
            self.queue: run_html.lines_html(lines, HINT),
            self.timer: gr.Timer(AWAKE if going else ASLEEP, active=True),
            **changed,
        }

    def on_view(self, values: Values) -> Shown:
        """Curves and table of what the shown runs have finished."""
        folders = self._folders(values)
        runs, problems = read_all(folders)
        waiting = {folder.id for folder in folders if _status(folder) in OPEN}
        told = [p for p in problems if not any(name in p for name in waiting)]
        return dict(runs_view.show(self.view, runs, values, told))

    def on_cancel(self, values: Values) -> Shown:
        """Ask the shown runs that wait or go on to stop."""
        try:
            count = self.desk.cancel(values[self.visitor.key], [folder.id for folder in self._folders(values)])
        except EditingError as error:
            return {self.message: progress_view.error_html(str(error))}
        told = f"{_runs(count)} cancelled; what was finished is kept." if count else "None of the runs shown goes on."
        return {self.message: progress_view.note_html(told)}

    def on_resume(self, values: Values) -> Shown:
        """Put the shown runs that ended early back into the queue."""
        early = [f for f in self._folders(values) if _status(f) in (CANCELLED, FAILED, INTERRUPTED)]
        try:
            for folder in early:
                self.desk.resume(values[self.visitor.key], folder.id)
        except EditingError as error:
            return {self.message: progress_view.error_html(str(error))}
        told = f"{_runs(len(early))} resumed." if early else "None of the runs shown ended early."
        return {self.message: progress_view.note_html(told)}

    def _choose(self, values: Values, ids: list[str]) -> Shown:
        """Show these runs, beside everything there is to choose from."""
        entries = self.desk.entries(values[self.visitor.key])
        there = {entry.id for entry in entries}
        choices = [(f"{entry.name} · {entry.created[5:16].replace('T', ' ')}", entry.id) for entry in entries]
        shown = [name for name in ids if name in there]
        return {self.shown: gr.Dropdown(choices, value=shown), self.timer: gr.Timer(AWAKE, active=True)}

    def _folders(self, values: Values) -> list[RunFolder]:
        """The shown runs that are still there and the visitor's own."""
        found = []
        for name in _ids(values[self.shown]):
            try:
                found.append(self.desk.folder(values[self.visitor.key], name))
            except EditingError:
                continue
        return found


def _ids(value: Any) -> list[str]:
    return [str(name) for name in value[:MOST_SHOWN]] if isinstance(value, list) else []


def _status(folder: RunFolder) -> str:
    try:
        return folder.status
    except EditingError:
        return ""


def _stamp(folder: RunFolder) -> str:
    """Changes when there is more to draw."""
    try:
        written = (folder.path / "iterations.csv").stat().st_mtime_ns
    except OSError:
        written = 0
    return f"{folder.id}:{_status(folder)}:{written}"


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _told(entered: Entered) -> str:
    """What became of the form's runs."""
    going = len(entered.runs) - entered.new - entered.done
    parts = [f"{_runs(entered.new)} entered"] if entered.new else []
    parts += [f"{_runs(going)} underway already"] if going else []
    parts += [f"{_runs(entered.done)} done before and not run again"] if entered.done else []
    return f"{', '.join(parts)}."
