"""Files to take along and to bring: the edit as adapter, model or file, the stack as a session, and the way back."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from components import progress_view
from components.edit_tab import EditTab
from components.files import Files
from components.types import Shown, Values
from editing_core.errors import BadRequest, EditingError
from editing_core.export.archive import pack_adapter
from editing_core.export.exporting import export, shrunk
from editing_core.export.importing import import_edit
from editing_core.export.origin import Origin, described
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel
from editing_core.runs.record import new_id
from editing_core.session_file import is_session, load_session, save_session
from editing_core.stack import StackedEdit, Timeline

SHOWN, STACK = "the edit on show", "all that is on in the stack"
KINDS = {
    "LoRA adapter (peft)": "adapter",
    "Edit file": "edit",
    "Whole model": "merged",
    "Session (the stack)": "session",
}
MOST_RANK = 10_000
MOST_MODEL = 2**30  # bytes of a whole model made for a download


@dataclass(eq=False)
class ExportView:
    """Widgets and handlers. public: whole models are not made for visitors."""

    edit: EditTab
    public: bool = False
    files: Files = field(default_factory=lambda: Files(20))

    def build(self) -> None:
        """Place the widgets."""
        kinds = [kind for kind in KINDS if not (self.public and KINDS[kind] == "merged")]
        with gr.Accordion("Files: adapter, edit, model, session", open=False, elem_id="export-box"):
            with gr.Row(elem_classes="es-stack"):
                self.kind = gr.Radio(kinds, value=kinds[0], label="Take along", elem_id="export-kind", scale=3)
                self.what = gr.Radio([SHOWN, STACK], value=SHOWN, label="Of", elem_id="export-what", scale=2)
                self.rank = gr.Number(
                    label="Rank at most (0: exact)", value=0, precision=0, elem_id="export-rank", scale=1
                )
            with gr.Row(elem_classes="es-buttons"):
                self.make = gr.Button("Make and check", size="sm", elem_id="export", min_width=120)
                self.file = gr.DownloadButton("Download", size="sm", interactive=False, elem_id="export-file")
                self.bring = gr.UploadButton(
                    "Bring an edit or session",
                    file_types=[".safetensors", ".zip"],
                    size="sm",
                    elem_id="import",
                    min_width=120,
                )
            self.message = gr.HTML("", elem_id="export-message")

    @property
    def inputs(self) -> set[Any]:
        """What the handlers read."""
        return {self.edit.history, self.edit.stack, self.edit.header.model, self.kind, self.what, self.rank, self.bring}

    @property
    def outputs(self) -> list[Any]:
        """What making a file changes."""
        return [self.message, self.file]

    def on_make(self, values: Values) -> Iterator[Shown]:
        """Write the file, have another process load it, and offer it."""
        yield {self.message: progress_view.note_html("Writing, and loading it again without EditScope to compare.")}
        try:
            path, told, good = self._made(values)
        except EditingError as error:
            yield {self.message: progress_view.error_html(str(error)), self.file: gr.DownloadButton(interactive=False)}
            return
        note = progress_view.note_html(told) if good else progress_view.error_html(told)
        yield {self.message: note, self.file: gr.DownloadButton(value=str(path), interactive=True)}

    def _made(self, values: Values) -> tuple[Path, str, bool]:
        kind = KINDS.get(str(values[self.kind]), "adapter")
        if kind == "session":
            return self._session(values[self.edit.stack])
        if kind == "merged" and self.public:
            raise BadRequest("Whole models are not made for visitors; take the adapter or the edit file.")
        lm: LanguageModel = self.edit.model(values)
        delta = self._edit(values, lm)
        if kind == "merged" and sum(p.numel() * p.element_size() for p in lm.model.parameters()) > MOST_MODEL:
            raise BadRequest(f"{lm.name} is too large for a download; use `editscope export` on your own machine.")
        rank = values[self.rank] or 0
        if not 0 <= rank <= MOST_RANK:
            raise BadRequest(f"The rank is {rank}, allowed are whole numbers from 0 to {MOST_RANK:,}; 0 is exact.")
        place = self.files.place("editscope-edit.safetensors" if kind == "edit" else f"editscope-{kind}")

        def work() -> tuple[Path, str, bool]:
            small = shrunk(delta, int(rank) if rank else None, None)
            check = export(lm, small, kind, place)
            lost = Origin.of(small.provenance).note
            told = " ".join(filter(None, (lost, check.told() if check else "")))
            return _one_file(kind, place), told, check is None or check.ok

        done: tuple[Path, str, bool] = self.edit.jobs.thread.call(work)
        return done

    def _edit(self, values: Values, lm: LanguageModel) -> Edit:
        """What is to be taken along, with its origin."""
        if values[self.what] == SHOWN:
            stored = self.edit.current(values)
            if stored is None:
                raise BadRequest("No edit is on show; press Edit first.")
            if stored.run.model != lm.name:
                raise BadRequest(f"The edit on show is for {stored.run.model}; choose that model above.")
            return described(stored.run)
        base = self.edit.shelf.base(values[self.edit.stack].now, lm.name)
        if not base.ids:
            raise BadRequest(f"Nothing in the stack is on for {lm.name}; switch an edit on.")
        edits = self.edit.shelf.having(base.ids).values()
        facts = tuple(request for edit in edits for request in edit.requests)
        origin = Origin(lm.name, lm.revision, f"stack of {len(base.ids)} edits", facts)
        return base.delta.described(origin.texts())

    def _session(self, line: Timeline) -> tuple[Path, str, bool]:
        path = self.files.place("editscope-session.safetensors")
        save_session(path, line.now, self.edit.shelf.having(line.now.ids))
        return path, f"{len(line.now.entries)} edits with their switches and notes.", True

    def on_bring(self, values: Values) -> Shown:
        """A file was brought: its edits come into the stack, as they were switched."""
        line: Timeline = values[self.edit.stack]
        try:
            path = Path(values[self.bring])
            stack = line.now
            if is_session(path):
                brought, edits = load_session(path)
                for entry in brought.entries:
                    stack = stack.add(entry.id).switch(entry.id, entry.on).note(entry.id, entry.note)
            else:
                edit = self._imported(path, values)
                edits, stack = {edit.id: edit}, stack.add(edit.id)
            for edit in edits.values():
                self.edit.shelf.add(edit)
        except EditingError as error:
            return {self.edit.stack: line, self.message: progress_view.error_html(str(error))}
        told = " ".join(dict.fromkeys(Origin.of(edit.delta.provenance).note for edit in edits.values())).strip()
        said = f"{len(edits)} edit{'s' if len(edits) > 1 else ''} brought into the stack. {told}".strip()
        return {self.edit.stack: line.to(stack), self.message: progress_view.note_html(said)}

    def _imported(self, path: Path, values: Values) -> StackedEdit:
        lm = self.edit.model(values)
        delta = self.edit.jobs.thread.call(lambda: import_edit(lm, path))
        origin = Origin.of(delta.provenance)
        name = " · ".join(filter(None, (origin.editor, f"from {path.name[:60]}")))
        return StackedEdit(new_id(), delta, origin.requests, lm.name, lm.revision, (), name)


def _one_file(kind: str, place: Path) -> Path:
    """What is downloaded: the file itself, or a folder packed into one."""
    if kind == "edit":
        return place
    target = place.with_name(f"{place.name}.zip")
    if kind == "adapter":
        pack_adapter(place, target)
    else:
        shutil.make_archive(str(place), "zip", place)
    shutil.rmtree(place)
    return target


def wire(view: ExportView, queue: dict[str, Any]) -> None:
    """What is pressed to what happens. queue: that of handlers which use a model."""
    view.make.click(view.on_make, view.inputs, view.outputs, api_name="export", show_progress="hidden", **queue)
    changed = [view.edit.stack, view.message]
    view.bring.upload(view.on_bring, view.inputs, changed, api_name="import", show_progress="hidden", **queue)
