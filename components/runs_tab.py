"""The Runs tab: every stored run, several side by side, their cases, and everything that can be taken away."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from components import case_browser, picked_runs, progress_view, run_html, runs_view
from components.files import Files
from components.picked_runs import MOST, PickedRuns, ids_of
from components.types import Shown, Values
from components.visitor import Visitor
from editing_core.bench.desk import Desk
from editing_core.bench.index import BROKEN, Entry
from editing_core.bench.progress import clock
from editing_core.bench.report import report
from editing_core.bench.stored import read_all, read_result
from editing_core.errors import BadRequest, EditingError
from editing_core.files import write_text
from editing_core.runs.folder import ENDED, OPEN
from editing_core.runs.record import RunResult
from editing_core.runs.tables import Finished, csv, latex, layout, markdown

MOST_LISTED = 200
INTERVAL = 3.0  # seconds between two looks at the list while the tab is shown
NAMES = ("status", "run", "edits", "k", "efficacy", "score", "time", "created", "id")
WIDTHS: list[str | int] = ["110px", "auto", "60px", "44px", "76px", "68px", "76px", "136px", "156px"]
NONE = "Click runs in the list to open them here."
NONE_OPEN = "No run is opened; click one in the list first."
NO_RUNS = "There are no runs yet: start one in the Benchmark tab, or import a bundle."
TEXTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "CSV": ("editscope-runs.csv", csv),
    "LaTeX": ("editscope-runs.tex", latex),
    "Markdown": ("editscope-runs.md", markdown),
}
REPORT, BUNDLE = "HTML report", "Run bundle"


@dataclass(eq=False)
class RunsTab:
    """Widgets and handlers. desk: the stored runs; who asks is told by the visitor's key."""

    desk: Desk
    visitor: Visitor
    files: Files = field(default_factory=Files)

    def build(self) -> None:
        """Place the widgets; call inside the tab."""
        self.stamp, self.timer = gr.State(""), gr.Timer(INTERVAL, active=False)
        self.doomed = gr.State([])  # what Delete has asked about
        with gr.Row(elem_classes="es-fields"):
            self.text = gr.Textbox("", label="Name, id or error contains", max_lines=1, scale=3, elem_id="runs-text")
            statuses = [("all", ""), *((s, s) for s in (*OPEN, *ENDED, BROKEN))]
            self.status = gr.Dropdown(statuses, value="", label="Status", scale=1, elem_id="runs-status")
            self.upload = gr.UploadButton(
                "Import bundle", file_types=[".zip"], size="sm", scale=0, min_width=120, elem_id="runs-import"
            )
        self.message = gr.HTML(elem_id="runs-message")
        self.listing = gr.Dataframe(
            headers=list(NAMES),
            interactive=False,
            max_height=260,
            column_widths=WIDTHS,
            wrap=False,
            show_label=False,
            elem_id="runs-list",
            elem_classes="es-list es-pick",
        )
        self.count = gr.HTML(NO_RUNS, elem_id="runs-count", elem_classes="es-hint")
        self.opened = picked_runs.build("Runs opened", "runs-opened")
        self.picked = PickedRuns(self.desk, self.visitor, self.opened, self.message, NONE_OPEN)
        self._build_actions()
        self.view = runs_view.build("runs", NONE)
        with gr.Accordion("Differences between the runs' results", open=False, elem_id="runs-differences-box"):
            self.reference = gr.Dropdown([], label="Compared with", elem_id="runs-reference")
            self.differences = gr.HTML("", elem_id="runs-differences")
        self.asked = gr.HTML("", elem_id="runs-asked")
        self.cases = case_browser.build()
        if self.desk.public:
            self._build_key()

    def _build_actions(self) -> None:
        with gr.Row(elem_classes="es-buttons"):
            self.takes = {
                name: gr.Button(name, size="sm", min_width=80, elem_id=f"runs-take-{i}")
                for i, name in enumerate((*TEXTS, REPORT, BUNDLE))
            }
            self.cancel = gr.Button("Cancel", size="sm", min_width=70, elem_id="runs-cancel")
            self.resume = gr.Button("Resume", size="sm", min_width=70, elem_id="runs-resume")
            self.delete = gr.Button("Delete", size="sm", variant="stop", min_width=70, elem_id="runs-delete")
        self.file = gr.DownloadButton("Download", visible="hidden", elem_id="runs-file")
        with gr.Row(visible=False, elem_id="runs-confirm") as self.confirm:
            self.question = gr.HTML("")
            self.sure = gr.Button("Delete for good", variant="stop", size="sm", elem_id="runs-sure", min_width=120)
            self.keep = gr.Button("Keep", size="sm", elem_id="runs-keep", min_width=70)

    def _build_key(self) -> None:
        with gr.Accordion("Your key: open your runs from another browser", open=False, elem_id="runs-key-box"):
            self.key = gr.Textbox("", label="Whoever has it sees your runs", type="password", elem_id="runs-key")
            with gr.Row(elem_classes="es-buttons"):
                self.reveal = gr.Button("Show my key", size="sm", elem_id="runs-reveal")
                self.use = gr.Button("Use this key", size="sm", elem_id="runs-use")

    @property
    def asking(self) -> set[Any]:
        """What the list is read by."""
        return {self.visitor.key, self.text, self.status, self.opened, self.stamp}

    @property
    def listed(self) -> list[Any]:
        """What shows the list."""
        return [self.listing, self.count, self.opened, self.stamp, self.message, self.timer]

    @property
    def opening(self) -> set[Any]:
        """What the opened runs are shown by."""
        return {self.visitor.key, self.opened, self.reference, *self.view.inputs, *self.cases.inputs}

    @property
    def showing(self) -> list[Any]:
        """What shows the opened runs."""
        return [*self.view.outputs, self.reference, self.differences, self.asked, *self.cases.outputs]

    def on_enter(self, values: Values) -> Shown:
        """The tab was opened: look at the list from now on. Only this wakes the timer, a late tick must not."""
        return {**self.on_list(values), self.timer: gr.Timer(active=True)}

    def on_list(self, values: Values) -> Shown:
        """The list as it is now, where it changed."""
        if self.desk.public and not values[self.visitor.key]:
            return {self.count: "One moment."}  # the browser has not got its key yet
        text, status = str(values[self.text] or ""), str(values[self.status] or "")
        statuses = (status,) if status else ()
        key = values[self.visitor.key]
        try:
            shown = self.desk.entries(key, text, statuses, MOST_LISTED)
            rest = self.desk.count(key, text, statuses) - len(shown)
        except EditingError as error:
            return {self.message: progress_view.error_html(str(error))}
        stamp = str(hash((tuple(shown), rest)))
        if stamp == values[self.stamp]:
            return {self.stamp: stamp}
        more = f"{rest:,} more; narrow the list to see them." if rest > 0 else ""
        known = {entry.id for entry in shown}
        choices = [(entry.name or entry.id, entry.id) for entry in shown]
        choices += [(name, name) for name in self.picked.ids(values) if name not in known]
        return {
            self.listing: gr.Dataframe(value=[_row(entry) for entry in shown]),
            self.count: more if shown else "No run fits." if text or status else NO_RUNS,
            self.opened: gr.Dropdown(choices),
            self.stamp: stamp,
        }

    def on_leave(self) -> Shown:
        """Another tab is shown: nobody looks."""
        return {self.timer: gr.Timer(active=False)}

    def on_pick(self, values: Values, row: gr.SelectData) -> Shown:
        """A run in the list was clicked: open it, or close it."""
        name, opened = str(row.row_value[-1]), self.picked.ids(values)
        chosen = [n for n in opened if n != name] if name in opened else [*opened, name][-MOST:]
        return {self.opened: gr.Dropdown(value=chosen)}

    def on_open(self, values: Values) -> Shown:
        """Other runs were opened: show them."""
        folders = self.picked.folders(values)
        runs, problems = read_all(folders)
        ids = [run.id for run in runs]
        reference = values[self.reference] if values[self.reference] in ids else (ids[0] if ids else None)
        choices = [(f"{i}. {run.name}", run.id) for i, run in enumerate(runs, start=1)]
        return {
            **runs_view.show(self.view, runs, values, problems),
            self.reference: gr.Dropdown(choices, value=reference),
            self.differences: _differences(runs, reference),
            self.asked: "".join(run_html.asked_html(folder) for folder in folders),
            **case_browser.show_runs(self.cases, runs, values),
        }

    def on_view(self, values: Values) -> Shown:
        """Another metric or kind of rows."""
        runs, problems = read_all(self.picked.folders(values))
        return dict(runs_view.show(self.view, runs, values, problems))

    def on_reference(self, values: Values) -> Shown:
        """The runs against another one."""
        runs, _ = read_all(self.picked.folders(values))
        return {self.differences: _differences(runs, values[self.reference])}

    def on_cases(self, values: Values) -> Shown:
        """Another run's cases, or fewer of them."""
        name = values[self.cases.run]
        folder = next((folder for folder in self.picked.folders(values) if folder.id == name), None)
        return case_browser.show_cases(self.cases, folder, values)

    def case(self, values: Values, row: gr.SelectData) -> RunResult:
        """The clicked case, as a run of its own; BadRequest where it cannot be opened."""
        folder = self.desk.folder(values[self.visitor.key], str(values[self.cases.run]))
        return read_result(folder).only(str(row.row_value[-1]))

    def on_take(self, name: str, values: Values) -> Shown:
        """Write a file of the opened runs and offer it."""
        try:
            path = self._write(name, values)
        except EditingError as error:
            return {self.message: progress_view.error_html(str(error)), self.file: gr.DownloadButton(value=None)}
        return {self.message: "", self.file: gr.DownloadButton(value=str(path))}

    def _write(self, name: str, values: Values) -> Path:
        folders = self.picked.folders(values)
        if not folders:
            raise BadRequest(NONE_OPEN)
        if name == BUNDLE:
            if len(folders) > 1:
                raise BadRequest(f"{len(folders)} runs are opened, a bundle holds one; leave one open.")
            path = self.files.place(f"{run_html.file_name(folders[0])}.zip")
            self.desk.export(values[self.visitor.key], folders[0].id, path)
            return path
        runs, _ = read_all(folders)
        if not runs:
            raise BadRequest("No run opened has finished an iteration yet; wait for one.")
        if name == REPORT:
            heads = {folder.id: folder.head() for folder in folders if folder.id in {run.id for run in runs}}
            path, text = self.files.place("editscope-report.html"), report(runs, [heads[run.id] for run in runs])
        else:
            file, write = TEXTS[name]
            rows = str(values[self.view.rows])
            path, text = self.files.place(file), write(layout(runs, rows))
        write_text(path, text)
        return path

    def on_import(self, values: Values) -> Shown:
        """A bundle was given: it becomes a run, or the reason is told."""
        try:
            if not isinstance(values[self.upload], str):
                raise BadRequest("No file came; choose a run bundle, a file that ends in .zip.")
            folder = self.desk.take_in(values[self.visitor.key], Path(values[self.upload]))
        except EditingError as error:
            return {self.message: progress_view.error_html(str(error))}
        opened = [*self.picked.ids(values), folder.id][-MOST:]
        return {
            self.message: progress_view.note_html("Imported; the run is opened below."),
            self.opened: opened,
        }

    def on_delete(self, values: Values) -> Shown:
        """Delete was pressed: ask before anything is gone. What is opened meanwhile is not meant."""
        ids = self.picked.ids(values)
        if not ids:
            return {self.message: progress_view.error_html(NONE_OPEN)}
        runs = "this run" if len(ids) == 1 else f"these {len(ids)} runs"
        question = progress_view.error_html(f"Delete {runs} for good? There is no way back.")
        return {self.confirm: gr.Row(visible=True), self.question: question, self.doomed: ids}

    def on_sure(self, values: Values) -> Shown:
        """Yes, delete what was asked about."""
        ids = ids_of(values[self.doomed])
        try:
            told = f"{run_html.runs(self.desk.delete(values[self.visitor.key], ids))} deleted."
        except EditingError as error:
            return {self.confirm: gr.Row(visible=False), self.message: progress_view.error_html(str(error))}
        left = [name for name in self.picked.ids(values) if name not in ids]
        shown = {self.message: progress_view.note_html(told), self.opened: left, self.doomed: []}
        return {self.confirm: gr.Row(visible=False), **shown}

    def on_keep(self) -> Shown:
        """No, keep them."""
        return {self.confirm: gr.Row(visible=False), self.doomed: []}

    def on_key(self, values: Values) -> Shown:
        """Another key was given: from now on its runs are shown."""
        try:
            self.desk.owner(values[self.key])
        except EditingError as error:
            return {self.message: progress_view.error_html(str(error))}
        return {self.visitor.key: values[self.key], self.opened: [], self.message: ""}


def _row(entry: Entry) -> list[Any]:
    """A line of the list."""
    shares = ["" if share is None else f"{share:.1f} %" for share in (entry.efficacy, entry.score)]
    seconds = "" if entry.seconds is None else clock(entry.seconds)
    created = entry.created[:16].replace("T", " ")
    counts = ["" if n is None else n for n in (entry.n_edits, entry.chosen)]
    return [run_html.sign(entry.status), entry.name or entry.error, *counts, *shares, seconds, created, entry.id]


def _differences(runs: list[Finished], reference: Any) -> str:
    """The table of differences, or why there is none."""
    if len(runs) < 2:
        return "<div class='es-hint'>Open two runs or more to compare them.</div>"
    try:
        return run_html.differences_html(runs, str(reference))
    except EditingError as error:
        return progress_view.error_html(str(error))
