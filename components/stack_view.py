"""The edit stack as widgets: switches, one edit at a time to note, move or remove, and two states side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from components.definitions import scrolling
from components.result_html import number
from editing_core.comparing import Compared, Seen
from editing_core.models.memory import told
from editing_core.stack import Stack, StackedEdit, Timeline, conflicts

HINT = (
    "Every edit of this page is listed here. Switch it on, and the next one is made on top of it; switched off, the "
    "model is bit for bit as it was."
)
EMPTY = f"<div class='es-hint'>{HINT}</div>"


@dataclass(frozen=True)
class StackView:
    """Widgets: on which edits, the words about them, one chosen edit with what can be done, and the comparison."""

    on: gr.CheckboxGroup
    keep: gr.Checkbox
    about: gr.HTML
    chosen: gr.Dropdown
    note: gr.Textbox
    earlier: gr.Button
    later: gr.Button
    remove: gr.Button
    undo: gr.Button
    redo: gr.Button
    first: gr.Dropdown
    second: gr.Dropdown
    prompts: gr.Textbox
    compare: gr.Button
    compared: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        """What follows from the stack."""
        return [self.on, self.about, self.chosen, self.note, self.undo, self.redo, self.first, self.second]

    @property
    def acting(self) -> dict[str, gr.Button]:
        """The buttons that change the stack, by what they do."""
        names = ("earlier", "later", "remove", "undo", "redo")
        return {name: getattr(self, name) for name in names}


def build() -> StackView:
    """Place the widgets."""
    with gr.Accordion("Edit stack", open=False, elem_id="stack-box"):
        about = gr.HTML(EMPTY, elem_id="stack-about")
        on = gr.CheckboxGroup([], label="Switched on", elem_id="stack-on", visible=False)
        keep = gr.Checkbox(False, label="Switch new edits on at once", container=False, elem_id="stack-keep")
        with gr.Row(elem_classes="es-stack"):
            chosen = gr.Dropdown([], label="One of them", elem_id="stack-chosen", min_width=200, scale=3)
            note = gr.Textbox(label="Note", max_lines=1, elem_id="stack-note", min_width=160, scale=2)
        with gr.Row(elem_classes="es-buttons"):
            small: dict[str, Any] = {"size": "sm", "min_width": 64}
            earlier = gr.Button("Earlier", elem_id="stack-earlier", **small)
            later = gr.Button("Later", elem_id="stack-later", **small)
            remove = gr.Button("Remove", elem_id="stack-remove", **small)
            undo = gr.Button("Undo change", interactive=False, elem_id="stack-undo", **small)
            redo = gr.Button("Redo change", interactive=False, elem_id="stack-redo", **small)
        with gr.Accordion("Compare two states", open=False, elem_id="compare-box"):
            with gr.Row(elem_classes="es-stack"):
                first = gr.Dropdown(
                    [], multiselect=True, label="First state: on are", elem_id="state-first", min_width=200
                )
                second = gr.Dropdown(
                    [], multiselect=True, label="Second state: on are", elem_id="state-second", min_width=200
                )
            prompts = gr.Textbox(
                label="Prompts, one per line; left empty: those of the facts and their neighbors",
                lines=2,
                max_lines=8,
                elem_id="state-prompts",
            )
            compare = gr.Button("Compare", size="sm", elem_id="compare")
            compared = gr.HTML("", elem_id="compared")
    return StackView(
        on, keep, about, chosen, note, earlier, later, remove, undo, redo, first, second, prompts, compare, compared
    )


def show(view: StackView, line: Timeline, edits: Mapping[str, StackedEdit], chosen: str | None) -> dict[Any, Any]:
    """Everything that follows from a stack. edits: those of it that are still kept. chosen: the edit acted on."""
    stack = line.now
    choices = [(label(stack, edits, i), entry.id) for i, entry in enumerate(stack.entries)]
    chosen = chosen if chosen in stack.ids else (stack.ids[-1] if stack.ids else None)
    note = next((entry.note for entry in stack.entries if entry.id == chosen), "")
    kept = [edit_id for edit_id in stack.on if edit_id in edits]
    return {
        view.on: gr.CheckboxGroup(choices=choices, value=kept, visible=bool(choices)),
        view.about: about_html(stack, edits),
        view.chosen: gr.Dropdown(choices=choices, value=chosen),
        view.note: note,
        view.undo: gr.Button(interactive=bool(line.past)),
        view.redo: gr.Button(interactive=bool(line.future)),
        view.first: gr.Dropdown(choices=choices, value=[], multiselect=True),
        view.second: gr.Dropdown(choices=choices, value=kept, multiselect=True),
    }


def label(stack: Stack, edits: Mapping[str, StackedEdit], place: int) -> str:
    """One entry in a line: number, fact, editor, size, what it stands on, note."""
    entry = stack.entries[place]
    if entry.id not in edits:
        return f"{place + 1}. no longer kept on the server"
    edit = edits[entry.id]
    parts = [f"{place + 1}. {edit.title}", edit.origin, edit.model, told(edit.delta.size)]
    below = [str(stack.ids.index(edit_id) + 1) if edit_id in stack.ids else "a removed one" for edit_id in edit.made_on]
    parts += [f"made on {', '.join(below)}"] if below else []
    parts += [entry.note] if entry.note else []
    return " · ".join(dict.fromkeys(parts))


def about_html(stack: Stack, edits: Mapping[str, StackedEdit]) -> str:
    """How many are on, and what is to know: conflicts, and edits whose ground was taken away."""
    if not stack.entries:
        return EMPTY
    there = stack.only([edit_id for edit_id in stack.on if edit_id in edits])
    total = told(sum(edits[edit_id].delta.size for edit_id in there.on))
    lines = [f"{len(there.on)} of {len(stack.entries)} on, {total} in all."]
    place = {edit_id: i + 1 for i, edit_id in enumerate(stack.ids)}
    for found in conflicts(there, edits):
        what = "the same" if found.same else f"“{found.objects[0]}” and “{found.objects[1]}”"
        lines.append(f"⚠ {place[found.first]} and {place[found.second]} both write {found.subject}: {what}.")
    for edit_id in there.on:
        missing = [other for other in edits[edit_id].made_on if other not in there.on]
        if missing:
            lines.append(
                f"{place[edit_id]} was made on top of edits that are not on now; it may not do what it did then."
            )
    return "<div class='es-hint'>" + "<br>".join(map(escape, lines)) + "</div>"


def compared_html(rows: Sequence[Compared]) -> str:
    """One row per prompt: first choices, then the objects' probabilities."""
    heads = "".join(f"<th>{name}</th>" for name in ("prompt", "first state", "second state", "p(new)", "p(old)"))
    body = "".join(_row(row) for row in rows)
    changed = sum(row.differs for row in rows)
    said = f"{changed} of {len(rows)} prompts have another first choice."
    shown = f"<table class='es-table'><tr>{heads}</tr>{body}</table>"
    return f"<div class='es-hint'>{said}</div>{scrolling(shown, 'Both states on every prompt')}"


def _row(row: Compared) -> str:
    sign = "≠ " if row.differs else ""
    cells = [sign + escape(row.asked.prompt), _first(row.first), _first(row.second)]
    cells += [_pair(row.first.p_new, row.second.p_new), _pair(row.first.p_old, row.second.p_old)]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _first(seen: Seen) -> str:
    best = seen.top[0]
    return f"{escape(best.token.strip() or repr(best.token))} {number(best.probability)}"


def _pair(first: float | None, second: float | None) -> str:
    return "" if first is None or second is None else f"{number(first)} → {number(second)}"
