"""The edit stack's handlers: what a finished edit, a switch or a button makes of the page's stack."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from components import progress_view, stack_view
from components.edit_tab import EditTab
from components.types import Shown, Values
from components.work import comparing
from editing_core.comparing import Asked, prompts_of
from editing_core.errors import EditingError
from editing_core.stack import Stack, StackedEdit, Timeline

NOTHING = "The stack is empty; press Edit first."


@dataclass(eq=False)
class StackPanel:
    """Widgets and handlers of the stack below the results; the stack itself is a State of the Edit tab."""

    edit: EditTab

    def build(self) -> None:
        """Place the widgets."""
        self.view = stack_view.build()

    @property
    def inputs(self) -> set[Any]:
        """What its handlers read."""
        view = self.view
        widgets = [view.on, view.keep, view.chosen, view.note, view.first, view.second, view.prompts]
        chosen = [self.edit.header.model, self.edit.settings.editor, self.edit.settings.chat]
        return {self.edit.stack, self.edit.made, *chosen, *widgets}

    @property
    def changed(self) -> list[Any]:
        """What its handlers change; the view follows from the stack."""
        return [self.edit.stack, self.edit.progress.message]

    def on_made(self, values: Values) -> Shown:
        """An edit was finished or brought in: it comes on top, switched on where that is wanted."""
        line, made = self._line(values), values[self.edit.made]
        if not made or made in line.now.ids:
            return {self.edit.stack: line}
        return self._changed(line, lambda: line.now.add(made).switch(made, bool(values[self.view.keep])))

    def on_stack(self, values: Values) -> Shown:
        """The stack is another one: show it."""
        line = self._line(values)
        return stack_view.show(self.view, line, self._edits(line.now), values[self.view.chosen])

    def on_switch(self, values: Values) -> Shown:
        """Edits were switched on or off."""
        line = self._line(values)
        return self._changed(line, lambda: line.now.only(values[self.view.on] or ()))

    def on_note(self, values: Values) -> Shown:
        """The chosen edit's note was written."""
        line = self._line(values)
        return self._changed(line, lambda: line.now.note(values[self.view.chosen], str(values[self.view.note] or "")))

    def on_chosen(self, values: Values) -> Shown:
        """Another edit is acted on: its note."""
        entries = self._line(values).now.entries
        return {self.view.note: next((e.note for e in entries if e.id == values[self.view.chosen]), "")}

    def on_act(self, name: str, values: Values) -> Shown:
        """One of the buttons."""
        line, chosen = self._line(values), values[self.view.chosen]
        if name in ("undo", "redo"):
            return {self.edit.stack: line.undo() if name == "undo" else line.redo(), self.edit.progress.message: ""}
        acts = {
            "earlier": lambda: line.now.move(chosen, -1),
            "later": lambda: line.now.move(chosen, 1),
            "remove": lambda: line.now.remove(chosen),
        }
        return self._changed(line, acts[name])

    def on_compare(self, values: Values) -> Iterator[Shown]:
        """Both states on the same prompts."""
        stack, tab = self._line(values).now, self.edit
        try:
            name = tab.check_model(values)
            typed = [Asked(text.strip()) for text in str(values[self.view.prompts] or "").splitlines() if text.strip()]
            first, second = (tab.shelf.sum(values[side] or (), name) for side in (self.view.first, self.view.second))
            asked = typed or prompts_of([r for edit in self._edits(stack).values() for r in edit.requests])
            if not asked:
                raise EditingError(NOTHING)
            yield {self.view.compared: progress_view.note_html("One moment.")}
            task = comparing(name, asked, first.delta, second.delta, str(values[tab.settings.chat]))
            rows = tab.jobs.thread.call(lambda: tab.do(task))
        except EditingError as error:
            yield {self.view.compared: progress_view.error_html(str(error))}
            return
        yield {self.view.compared: stack_view.compared_html(rows), **tab.readiness(values)}

    def _line(self, values: Values) -> Timeline:
        line: Timeline = values[self.edit.stack]
        return line

    def _edits(self, stack: Stack) -> dict[str, StackedEdit]:
        return self.edit.shelf.having(stack.ids)

    def _changed(self, line: Timeline, change: Any) -> Shown:
        """The line with a change, or why there is none."""
        try:
            return {self.edit.stack: line.to(change()), self.edit.progress.message: ""}
        except EditingError as error:
            return {self.edit.stack: line, self.edit.progress.message: progress_view.error_html(str(error))}


def wire(panel: StackPanel, queue: dict[str, Any]) -> None:
    """What is pressed to what happens. queue: that of handlers which use a model."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "undocumented"}
    view, inputs, changed = panel.view, panel.inputs, panel.changed
    compared = [view.compared, panel.edit.header.state, panel.edit.header.load]
    panel.edit.made.change(panel.on_made, inputs, changed, **quiet)
    panel.edit.stack.change(panel.on_stack, inputs, view.outputs, **quiet)
    view.on.input(panel.on_switch, inputs, changed, trigger_mode="always_last", **quiet)
    gr.on([view.note.submit, view.note.blur], panel.on_note, inputs, changed, **quiet)
    view.chosen.input(panel.on_chosen, inputs, [view.note], **quiet)
    for name, button in view.acting.items():
        button.click(_act(panel, name), inputs, changed, **quiet)
    view.compare.click(panel.on_compare, inputs, compared, api_name="compare", show_progress="hidden", **queue)


def _act(panel: StackPanel, name: str) -> Any:
    return lambda values: panel.on_act(name, values)
