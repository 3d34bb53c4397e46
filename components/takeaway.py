"""Take it with you: a link, Python or a command that repeats what is on show, and the edit itself as files."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from components import edit_form, progress_view, settings_form
from components.edit_tab import EditTab
from components.types import Shown, Values
from editing_core.errors import EditingError
from editing_core.share import PARAMETER, Case

# The page's own address is known in the browser only.
LINK = f"(text) => text ? `${{location.origin}}${{location.pathname}}?{PARAMETER}=${{text}}` : ''"
ALONE = "This edit was made on top of others; the link repeats it by itself, a session file holds them all."


@dataclass(eq=False)
class Takeaway:
    """Widgets and handlers."""

    edit: EditTab

    def build(self) -> None:
        """Place the widgets."""
        with gr.Accordion("Take it with you: link, Python, command", open=False, elem_id="take-box") as self.box:
            self.show = gr.Button("Show link, Python and command", size="sm", elem_id="take")
            self.message = gr.HTML("", elem_id="take-message")
            self.text = gr.Textbox(visible=False)
            self.link = gr.Textbox(label="Link", max_lines=2, interactive=False, buttons=["copy"], elem_id="take-link")
            self.python = gr.Code(label="Python", language="python", interactive=False, elem_id="take-python")
            self.command = gr.Textbox(
                label="Command line", max_lines=4, interactive=False, buttons=["copy"], elem_id="take-command"
            )

    @property
    def outputs(self) -> list[Any]:
        """What `on_show` changes."""
        return [self.text, self.python, self.command, self.message]

    def on_show(self, values: Values) -> Shown:
        """What is on show, or where nothing is what the form asks for, as texts to copy."""
        try:
            case, note = self._case(values)
        except EditingError as error:
            return {self.message: progress_view.error_html(str(error))}
        shown: Shown = {self.python: case.to_python(), self.message: progress_view.note_html(note) if note else ""}
        try:
            return {**shown, self.text: case.to_text(), self.command: case.to_command()}
        except EditingError as error:  # too much for a link; Python is as long as it has to be
            return {**shown, self.text: "", self.command: "", self.message: progress_view.error_html(str(error))}

    def _case(self, values: Values) -> tuple[Case, str]:
        if stored := self.edit.current(values):
            run = stored.run
            return Case(run.model, run.requests, run.plan), ALONE if run.base.ids else ""
        requests = tuple(edit_form.read_requests(values, self.edit.form))
        return Case(self.edit.check_model(values), requests, settings_form.read_plan(values, self.edit.settings)), ""

    def on_link(self, request: gr.Request) -> Shown:
        """The page was opened by a link: the case into the form, or why not. Nothing is run by itself."""
        text, tab = dict(request.query_params).get(PARAMETER), self.edit
        if not text:
            return {tab.progress.message: ""}
        try:
            case = Case.of_text(text)
            tab.check_model({tab.header.model: case.model})
        except EditingError as error:
            return {tab.progress.message: progress_view.error_html(str(error))}
        told = "The case of the link is in the form; press Edit to see what it does."
        return {
            **edit_form.show_requests(tab.form, case.requests),
            **settings_form.show_plan(tab.settings, case.plan, case.model),
            tab.header.model: case.model,
            tab.progress.message: progress_view.note_html(told),
        }


def wire(panel: Takeaway) -> None:
    """What is pressed to what happens."""
    shown = panel.show.click(
        panel.on_show, panel.edit.inputs(), panel.outputs, api_name="share", show_progress="hidden"
    )
    shown.then(None, panel.text, panel.link, js=LINK)
