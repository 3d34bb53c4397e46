"""The fact form: example chips, the fact, its companions, paraphrases and neighbors -> EditRequests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

import gradio as gr
import pandas as pd

from components.token_strip import answers_html, hint_html, strip_html, tokens_of
from editing_core.data.examples import Example, load_examples
from editing_core.editors.assist import Assist
from editing_core.errors import EditingError
from editing_core.evaluation.eligibility import Eligibility, eligibility, with_edit_neighbors
from editing_core.evaluation.scoring import next_tokens
from editing_core.models.language_model import LanguageModel
from editing_core.session import present_answer
from editing_core.types import EditRequest, Probe

NEIGHBOR_COLUMNS = ["prompt", "answer", "subject"]
PLACEHOLDER = "new object"  # stands in where only subject and prompt matter


@dataclass(frozen=True)
class EditForm:
    """Widgets of the fact form.

    facts: what was loaded to be edited together. filled: the old object we filled in.
    """

    chips: dict[str, gr.Button]
    story: gr.HTML
    subject: gr.Textbox
    prompt: gr.Textbox
    old: gr.Textbox
    new: gr.Textbox
    strip: gr.HTML
    answers: gr.HTML
    companions: gr.HTML
    together: gr.Checkbox
    paraphrases: gr.Dataframe
    neighbors: gr.Dataframe
    standing: gr.HTML
    suggest: gr.Button
    facts: gr.State
    filled: gr.State

    @property
    def inputs(self) -> list[Any]:
        """What a request is read from."""
        return [
            self.subject,
            self.prompt,
            self.old,
            self.new,
            self.together,
            self.paraphrases,
            self.neighbors,
            self.facts,
        ]

    @property
    def texts(self) -> list[gr.Textbox]:
        """The single-line fields, in which Enter runs."""
        return [self.subject, self.prompt, self.old, self.new]


def build() -> EditForm:
    """Place the form's widgets."""
    with gr.Row(elem_classes="es-chips"):
        chips = {
            e.name: gr.Button(e.title, size="sm", min_width=56, elem_id=f"example-{i}")
            for i, e in enumerate(load_examples())
        }
    story = gr.HTML(hint_html("Choose an example above or write your own fact."), elem_id="story")
    prompt = gr.Textbox(label="Prompt with {}", placeholder="{} is located in", max_lines=1, elem_id="prompt")
    with gr.Row(elem_classes="es-fields"):
        subject = _field("Subject", "Eiffel Tower", "subject", 2)
        old = _field("Old object", "optional", "old", 1)
        new = _field("New object", "Rome", "new", 1)
    return EditForm(
        chips=chips,
        story=story,
        subject=subject,
        prompt=prompt,
        old=old,
        new=new,
        strip=gr.HTML(elem_id="strip"),
        answers=gr.HTML(elem_id="answers"),
        companions=gr.HTML(elem_id="companions"),
        together=gr.Checkbox(True, label="Edit together", visible=False, elem_id="together", container=False),
        **_build_probes(),
        facts=gr.State(()),
        filled=gr.State(""),
    )


def _field(label: str, placeholder: str, name: str, scale: int) -> gr.Textbox:
    return gr.Textbox(
        label=label, placeholder=placeholder, max_lines=1, scale=scale, min_width=40 + 40 * scale, elem_id=name
    )


def _build_probes() -> dict[str, Any]:
    """The folded tables of paraphrases and neighbors."""
    common: dict[str, Any] = {
        "type": "array",
        "row_count": 1,
        "interactive": True,
        "wrap": True,
        "elem_classes": "es-list",
    }
    with gr.Accordion("Paraphrases and neighbors", open=False, elem_id="probes"):
        paraphrases = gr.Dataframe(
            headers=["paraphrase"],
            column_count=1,
            max_height=160,
            label="Paraphrases (whole prompts)",
            elem_id="paraphrases",
            **common,
        )
        neighbors = gr.Dataframe(
            headers=NEIGHBOR_COLUMNS,
            column_count=3,
            max_height=200,
            column_widths=["48%", "26%", "26%"],
            label="Neighbors that must not change",
            elem_id="neighbors",
            **common,
        )
        standing = gr.HTML(elem_id="standing")
        suggest = gr.Button("Suggest", size="sm", elem_id="suggest")
    return {"paraphrases": paraphrases, "neighbors": neighbors, "standing": standing, "suggest": suggest}


def show_example(form: EditForm, chosen: Example) -> dict[Any, Any]:
    """The form filled with an example's first fact; the others become its companions."""
    return {**show_requests(form, chosen.requests), form.story: hint_html(chosen.story)}


def show_requests(form: EditForm, requests: Sequence[EditRequest]) -> dict[Any, Any]:
    """The form filled with the first fact; the others are edited together with it unless that is switched off."""
    rest = requests[1:]
    listed = "".join(f"<li>{escape(r.full_prompt)} → <b>{escape(r.target_new)}</b></li>" for r in rest[:50])
    return {
        **show_request(form, requests[0]),
        form.companions: listing(listed, "Facts edited with it") if rest else "",
        form.together: gr.Checkbox(
            value=True, visible=bool(rest), label=f"Edit the {len(rest)} facts above together with it"
        ),
        form.facts: tuple(requests),
    }


def show_request(form: EditForm, request: EditRequest) -> dict[Any, Any]:
    """The form filled with one fact by itself."""
    return {
        form.story: "",
        form.subject: request.subject,
        form.prompt: request.prompt,
        form.old: request.target_true or "",
        form.new: request.target_new,
        form.companions: "",
        form.together: gr.Checkbox(value=False, visible=False),
        form.paraphrases: [[p] for p in request.paraphrases] or [[""]],
        form.neighbors: neighbor_rows((*request.edit_neighbors, *request.neighbors)),
        form.standing: "",
        form.facts: (),
        form.filled: "",
    }


def neighbor_rows(probes: Sequence[Probe]) -> list[list[str]]:
    """Table rows of neighbors."""
    return [[p.prompt, p.answer, p.subject or ""] for p in probes] or [["", "", ""]]


def read_requests(values: Mapping[Any, Any], form: EditForm) -> list[EditRequest]:
    """The requests the form asks for, the one in the fields first."""
    request = EditRequest(
        subject=_text(values[form.subject]),
        prompt=_text(values[form.prompt]),
        target_new=_text(values[form.new]),
        target_true=_text(values[form.old]) or None,
        paraphrases=read_paraphrases(values[form.paraphrases]),
        neighbors=read_neighbors(values[form.neighbors]),
    )
    facts = values[form.facts]
    if not (facts and values[form.together]):
        return [request]
    first, *rest = facts
    return [replace(request, case_id=first.case_id), *rest]


def read_paraphrases(rows: object) -> tuple[str, ...]:
    """Non-empty cells of the paraphrase table."""
    return tuple(text for (text, *_) in _rows(rows, 1) if text)


def read_neighbors(rows: object) -> tuple[Probe, ...]:
    """Non-empty rows of the neighbor table; BadRequest for half-filled ones."""
    return tuple(Probe(prompt, answer, s or None) for prompt, answer, s, *_ in _rows(rows, 3) if prompt or answer)


@dataclass(frozen=True)
class Asking:
    """How the form's prompts are asked: the assistance and seed of the choice of neighbors, and the chat template."""

    assist: Assist = field(default_factory=Assist)
    seed: int = 0
    chat: str = "none"


def present(lm: LanguageModel, values: Mapping[Any, Any], form: EditForm, asking: Asking) -> dict[Any, Any]:
    """Token strip, present answers, the old object where we may fill it, and how the neighbors stand."""
    try:
        return {**_present(lm.framed(asking.chat), values, form), **stand(lm, values, form, asking)}
    except EditingError as error:
        empty = not (_text(values[form.subject]) or _text(values[form.prompt]))
        return {form.strip: "" if empty else hint_html(str(error)), form.answers: ""}


def _present(lm: LanguageModel, values: Mapping[Any, Any], form: EditForm) -> dict[Any, Any]:
    request = EditRequest(_text(values[form.subject]), _text(values[form.prompt]), PLACEHOLDER)
    lm.check_text(request.full_prompt)
    with lm.lock:
        shown: dict[Any, Any] = {
            form.strip: strip_html(tokens_of(lm, request)),
            form.answers: answers_html(next_tokens(lm, request.full_prompt, 5)),
        }
        old = _text(values[form.old])
        if not old or old == values[form.filled]:
            answer = present_answer(lm, request.full_prompt)
            shown |= {form.old: answer, form.filled: answer}
    return shown


def stand(lm: LanguageModel, values: Mapping[Any, Any], form: EditForm, asking: Asking) -> dict[Any, Any]:
    """For every neighbor whether the model knows it now, and which ones would assist. The table itself stays."""
    assist = asking.assist
    try:
        lm = lm.framed(asking.chat)
        probes = read_neighbors(values[form.neighbors])
        for probe in probes:
            lm.check_text(f"{probe.prompt} {probe.answer}")
    except EditingError as error:
        return {form.standing: hint_html(str(error))}
    if not probes:
        return {form.standing: ""}
    facts = values[form.facts]
    case_id = facts[0].case_id if facts and values[form.together] else 0
    request = EditRequest("any", "{}", PLACEHOLDER, neighbors=probes, case_id=case_id)
    with lm.lock:
        (found,) = eligibility(lm, [request], assist.minimum)
    chosen = with_edit_neighbors([request], [found], assist.count, assist.choice, asking.seed)[0].edit_neighbors
    return {form.standing: _standing_html(probes, found, chosen if assist.uses_neighbors else (), assist)}


def _standing_html(probes: Sequence[Probe], found: Eligibility, chosen: Sequence[Probe], assist: Assist) -> str:
    lines = []
    for number, (probe, known, placed) in enumerate(zip(probes, found.known, found.placed, strict=True), start=1):
        words = ["✔ known" if known else "✘ not known now"]
        if assist.uses_neighbors and known and not placed:
            words.append("cannot assist: enter the subject as it stands in the prompt")
        if probe in chosen:
            words.append("<b>★ assists the edit</b>, so it is not measured")
        lines.append(f"<li>N{number} {escape(probe.answer)}: {', '.join(words)}</li>")
    reason = found.reason if assist.uses_neighbors and found.reason else ""
    note = f"<li><b>No neighbor assists</b>: {escape(reason)}.</li>" if reason else ""
    return listing(f"{''.join(lines)}{note}", "Neighbors")


def listing(items: str, label: str) -> str:
    """A list that may be longer than its place, so that it can be reached and moved by keyboard."""
    return f"<ul class='es-companions' tabindex='0' aria-label='{label}'>{items}</ul>"


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _rows(rows: object, width: int) -> list[list[str]]:
    """Cells as stripped texts; whatever a browser sends, at least `width` columns."""
    if isinstance(rows, pd.DataFrame):
        rows = rows.to_numpy().tolist()
    if not isinstance(rows, list):
        return []
    cells = [[_text(cell) for cell in row] if isinstance(row, list) else [_text(row)] for row in rows]
    return [row + [""] * (width - len(row)) for row in cells]
