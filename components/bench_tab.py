"""The Benchmark tab: what to run, the queue as it is worked off, and the curves and tables as they grow.

Runs are folders that processes of their own work on, so nothing here is lost with the page: it only enters runs,
asks them to stop or go on, and reads what they have written so far.
"""

from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from components import bench_form, picked_runs, progress_view, run_html, runs_view
from components.picked_runs import MOST, PickedRuns
from components.types import Shown, Values
from components.visitor import Visitor
from editing_core.bench.desk import Desk, Entered
from editing_core.bench.progress import Tracker
from editing_core.bench.stored import read_all
from editing_core.errors import EditingError
from editing_core.models.catalog import CATALOG, unknown
from editing_core.runs.folder import OPEN, QUEUED, RunFolder

AWAKE, ASLEEP = 1.0, 5.0  # seconds between two looks: while something shown goes on, and while nothing does
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
                self.shown = picked_runs.build("Runs shown; Cancel and Resume act on these", "bench-shown")
                self.queue = gr.HTML(run_html.lines_html([], HINT), elem_id="bench-queue")
                self.view = runs_view.build("bench", HINT)
        self.picked = PickedRuns(self.desk, self.visitor, self.shown, self.message)

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

    def on_editors(self, values: Values) -> Shown:
        """Other editors: the choice of recipes comes and goes."""
        return {self.form.recipes: gr.Dropdown(visible=bench_form.have_recipes(values[self.form.editors]))}

    def on_start(self, values: Values) -> Shown:
        """Enter the form's runs."""
        try:
            model = values[self.model]
            if not isinstance(model, str) or model not in CATALOG:
                raise unknown(str(model), "model", CATALOG)
            dataset, file = bench_form.read_dataset(values, self.form)
            grid, _ = bench_form.read_grid(values, self.form, model, dataset)
            entered = self.desk.enter(values[self.visitor.key], grid, file)
            _, text = bench_form.read_grid(values, self.form, model, entered.grid.cells[0].dataset)
        except EditingError as error:
            return {self.message: progress_view.error_html(str(error))}
        shown = self._choose(values, [folder.id for folder in entered.runs])
        return {self.message: progress_view.note_html(_told(entered)), self.form.text: text, **shown}

    def on_enter(self, values: Values) -> Shown:
        """The tab was opened: runs that go on are found again. Only this wakes the timer, a late tick must not."""
        try:
            going = self.desk.going(values[self.visitor.key])
        except EditingError as error:
            return {self.message: progress_view.error_html(str(error))}
        return self._choose(values, [*dict.fromkeys([*self.picked.ids(values), *going])])

    def on_leave(self) -> Shown:
        """Another tab is shown: nobody looks."""
        return {self.timer: gr.Timer(active=False)}

    def on_look(self, values: Values) -> Shown:
        """The shown runs as they are now."""
        folders = self.picked.folders(values)
        waiting = self.desk.waiting() if any(_status(folder) == QUEUED for folder in folders) else []
        places = {name: number for number, name in enumerate(waiting, start=1)}
        lines = [run_html.line_html(folder, self.tracker, places.get(folder.id)) for folder in folders]
        going = any(_status(folder) in OPEN for folder in folders)
        stamp = " ".join(_stamp(folder) for folder in folders)
        changed = {self.stamp: stamp} if stamp != values[self.stamp] else {}
        return {
            self.queue: run_html.lines_html(lines, HINT),
            self.timer: gr.Timer(AWAKE if going else ASLEEP),
            **changed,
        }

    def on_view(self, values: Values) -> Shown:
        """Curves and table of what the shown runs have finished."""
        folders = self.picked.folders(values)
        runs, problems = read_all(folders)
        waiting = {folder.id for folder in folders if _status(folder) in OPEN}
        told = [p for p in problems if not any(name in p for name in waiting)]
        return dict(runs_view.show(self.view, runs, values, told))

    def _choose(self, values: Values, ids: list[str]) -> Shown:
        """Show these runs, beside everything there is to choose from."""
        key = values[self.visitor.key]
        choices = [(f"{e.name} · {e.created[5:16].replace('T', ' ')}", e.id) for e in self.desk.entries(key)]
        shown = [folder.id for folder in self.desk.folders(key, ids)][:MOST]
        return {self.shown: gr.Dropdown(choices, value=shown), self.timer: gr.Timer(AWAKE, active=True)}


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


def _told(entered: Entered) -> str:
    """What became of the form's runs."""
    going = len(entered.runs) - entered.new - entered.done
    parts = [f"{run_html.runs(entered.new)} entered"] if entered.new else []
    parts += [f"{run_html.runs(going)} underway already"] if going else []
    parts += [f"{run_html.runs(entered.done)} done before and not run again"] if entered.done else []
    rest = len(entered.runs) - MOST
    return f"{', '.join(parts)}." + (f" The first {MOST} are shown; the Runs tab has all." if rest > 0 else "")
