"""Editors side by side: every editor on the same facts, in the layout of the survey's tables, beside its figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

import gradio as gr

from components.definitions import scrolling
from editing_core.evaluation.comparison import (
    SHARES,
    SOURCES,
    UNEDITED,
    Comparison,
    Kind,
    Line,
    Row,
    lines,
    measured,
)

SURVEY = "https://arxiv.org/abs/2305.13172"
DATASETS = {"ZsRE": "ZsRE", "COUNTERFACT": "CounterFact"}
CHOICES = {f"{DATASETS[dataset]}, {model}": (dataset, model) for dataset, model in SOURCES}
SHARED = (*(name.capitalize() for name in SHARES), "Seconds per edit")
NOT_COMPARABLE = (
    "The two sides are not comparable number by number: the survey edited other models, of 3 and 6 billion parameters, "
    "on other data and other hardware (two V100). What may be compared is which editors keep what."
)
NOTHING = "No comparison of the editors is bundled yet; the survey's figures are shown alone."


@dataclass(frozen=True)
class ComparisonView:
    """Widgets: which published figures stand beside, and the tables."""

    source: gr.Radio
    table: gr.HTML


def build() -> ComparisonView:
    """Place the widgets, with the first of the survey's columns."""
    first = next(iter(CHOICES))
    with gr.Accordion("Editors side by side", open=False, elem_id="comparison-box"):
        source = gr.Radio([*CHOICES], value=first, label="Published figures beside", elem_id="comparison-source")
        table = gr.HTML(comparison_html(first), elem_id="comparison-table")
    return ComparisonView(source, table)


def show(view: ComparisonView, source: str) -> dict[Any, Any]:
    """The tables beside other published figures."""
    return {view.table: comparison_html(source)}


def comparison_html(source: str, found: Mapping[int, Comparison] | None = None) -> str:
    """Both tables of the largest comparison there is. found: as `measured` gives it, which it is unless given."""
    stored = measured() if found is None else found
    comparison = stored[max(stored)] if stored else Comparison(())
    dataset, model = CHOICES.get(source) or SOURCES[0]
    table = _editors(comparison, dataset, model)
    told = [_hint(comparison) if comparison.rows else NOTHING, NOT_COMPARABLE]
    hints = "".join(f"<p class='es-hint'>{text}</p>" for text in told)
    kinds = _portability(comparison) if comparison.rows else ""
    return f"{scrolling(table, 'Editors side by side')}{hints}{kinds}"


def _editors(comparison: Comparison, dataset: str, model: str) -> str:
    """The table of the survey: a body of rows for each group of editors."""
    count, own = len(SHARED), next((f" on {row.model}" for row in comparison.rows), "")
    told = f"{DATASETS[dataset]}, {model}"
    heads = f"<th rowspan='2' scope='col'>Editor</th><th colspan='{count + 1}' scope='colgroup'>Here{escape(own)}</th>"
    heads += f"<th colspan='{count}' scope='colgroup'><a href='{SURVEY}'>Survey</a>, {escape(told)}</th>"
    names = "".join(f"<th scope='col'>{name}</th>" for name in (*SHARED, "Memory per edit", *SHARED))
    bodies = ""
    for group, inside in groupby(lines(comparison, dataset, model), key=lambda line: line.group):
        rows = "".join(_line(line, comparison) for line in inside)
        title = f"<tr><th colspan='{2 * count + 2}' scope='rowgroup'>{group}</th></tr>" if group else ""
        bodies += f"<tbody>{title}{rows}</tbody>"
    caption = f"Every editor on the same facts, each fact alone, and the survey's figures for {escape(told)}"
    head = f"<thead><tr>{heads}</tr><tr>{names}</tr></thead>"
    return f"<table class='es-table es-editors'><caption>{caption}</caption>{head}{bodies}</table>"


def _line(line: Line, comparison: Comparison) -> str:
    count = len(SHARED)
    if line.row is None:
        own = f"<td colspan='{count + 1}'>not here</td>"
    else:
        values = comparison.values(line.row)
        own = "".join(f"<td>{_number(values[name], name)}</td>" for name in (*SHARES, "seconds"))
        own += f"<td>{'-' if line.row.kept is None else size(line.row.kept)}</td>"
    printed = "".join(f"<td>{_number(line.printed.get(name), name)}</td>" for name in (*SHARES, "seconds"))
    mark = " class='es-elsewhere'" if line.row is None else ""
    return f"<tr{mark}><th scope='row'>{escape(line.label)}</th>{own}{printed}</tr>"


def _portability(comparison: Comparison) -> str:
    """Right answers by kind of question, with the control, and what the process took."""
    before = comparison.rows[0]
    kinds = [*(before.controls or before.kinds)]
    heads = "".join(f"<th scope='col'>{escape(kind.capitalize())}</th>" for kind in kinds)
    rows = ""
    for line in lines(comparison, *SOURCES[0]):
        if line.row and line.row.controls:
            rows += _kinds(f"{line.label}, true objects", line.row.controls, kinds, None)
        if line.row:
            rows += _kinds(line.label, line.row.kinds, kinds, line.row)
    head = f"<thead><tr><th scope='col'>Editor</th>{heads}<th scope='col'>Process, most memory</th></tr></thead>"
    caption = "Portability by kind of question, in percent of whole answers (how many were asked)"
    table = f"<table class='es-table es-editors'><caption>{caption}</caption>{head}<tbody>{rows}</tbody></table>"
    return f"{scrolling(table, 'Portability by kind')}<p class='es-hint'>{finding(comparison)}</p>"


def _kinds(label: str, found: Mapping[str, Kind], kinds: list[str], row: Row | None) -> str:
    cells = [f"{found[k].value:.1f} ({found[k].questions})" if k in found else "-" for k in kinds]
    cells.append(size(row.peak) if row and row.peak else "-")
    return f"<tr><th scope='row'>{escape(label)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def finding(comparison: Comparison) -> str:
    """What the control says: which questions the unedited model can answer about true objects, and so which count."""
    model = comparison.rows[0].model
    before, can = comparison.unedited(model), comparison.answerable(model)
    if before is None or not before.controls:
        return "The unedited model was not asked, so what these figures mean is open."
    controls = ", ".join(f"{kind} {c.value:.1f} %" for kind, c in before.controls.items())
    told = f"Asked the same about true objects, the unedited model answers right: {controls}."
    cannot = [kind for kind in before.controls if kind not in can]
    if not can:
        return f"{told} It can answer none of these kinds, so portability says nothing about editors here."
    if not cannot:
        return f"{told} All kinds count in the column Portability."
    return (
        f"{told} So the column Portability has only {' and '.join(can)}; {' and '.join(cannot)} it can hardly answer "
        "even about facts it knows, and there a low figure says nothing about an editor."
    )


def _hint(comparison: Comparison) -> str:
    row = next((row for row in comparison.rows if row.editor != UNEDITED), comparison.rows[0])
    return (
        f"Here: {row.records} test records of pocket-facts, each editor's preset, one iteration; shares in percent, "
        f"seconds without measuring ({escape(row.machine)}). Memory per edit is what an edit keeps. "
        "Portability counts only questions of kinds that the model can answer, see below."
    )


def _number(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if name == "seconds" else f"{value:.1f}"


def size(count: float) -> str:
    """Bytes with two digits that count."""
    for unit, low in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= low:
            return f"{count / low:.{0 if count >= 10 * low else 1}f} {unit}"
    return f"{count:.0f} B"
