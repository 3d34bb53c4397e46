"""The stored runs picked in a tab: which of them are the visitor's, and the buttons that act on them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from components import progress_view, run_html
from components.types import Shown, Values
from components.visitor import Visitor
from editing_core.bench.desk import Desk
from editing_core.errors import EditingError
from editing_core.runs.folder import RunFolder

MOST = 60  # runs side by side; more are read by nobody


def build(label: str, name: str) -> gr.Dropdown:
    """Place the widget that holds their ids. name: its id."""
    # Runs come and go on other pages too, so what is picked may be none of the choices for a moment.
    return gr.Dropdown([], value=[], multiselect=True, allow_custom_value=True, label=label, elem_id=name)


@dataclass(frozen=True)
class PickedRuns:
    """What the widget holds, as far as it is there for the visitor.

    message: where a button's effect is told. nothing: what is said to a button while no run is picked; without it
    the button's own words.
    """

    desk: Desk
    visitor: Visitor
    widget: gr.Dropdown
    message: gr.HTML
    nothing: str = ""

    def folders(self, values: Values) -> list[RunFolder]:
        """The picked runs that are still there and the visitor's own."""
        try:
            return self.desk.folders(values[self.visitor.key], self.ids(values))
        except EditingError:
            return []

    def ids(self, values: Values) -> list[str]:
        """What is picked, there or not."""
        return ids_of(values[self.widget])

    def on_cancel(self, values: Values) -> Shown:
        """Ask those that wait or go on to stop."""
        return self._do(values, lambda key, ids: run_html.cancelled(self.desk.cancel(key, ids)))

    def on_resume(self, values: Values) -> Shown:
        """Put those that ended early back into the queue."""
        return self._do(values, lambda key, ids: run_html.resumed(self.desk.resume(key, ids)))

    def _do(self, values: Values, action: Callable[[str, list[str]], str]) -> Shown:
        ids = self.ids(values)
        try:
            told = self.nothing if self.nothing and not ids else action(values[self.visitor.key], ids)
        except EditingError as error:
            return {self.message: progress_view.error_html(str(error))}
        return {self.message: progress_view.note_html(told)}


def ids_of(value: Any) -> list[str]:
    """Ids of runs, whatever a browser sends."""
    return [str(name) for name in value[:MOST]] if isinstance(value, list) else []
