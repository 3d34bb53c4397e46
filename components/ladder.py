"""The ladder: the same facts by one recipe after the other, as one chart and one table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import isnan
from typing import Any

import gradio as gr

from components import settings_form
from components.definitions import scrolling
from components.edit_tab import EditTab
from components.jobs import Job
from components.result_html import number
from components.run_store import StoredRun
from components.types import Shown, Values
from components.work import climbing
from editing_core import charts_ladder
from editing_core.editors.finetuning import COUNTS
from editing_core.evaluation.metrics import CARDS
from editing_core.ladder import MORE, SUCCESSES, Rung, ladder_table, printed_row
from editing_core.runs.record import EditPlan
from editing_core.types import EditRequest, Watch

HINT = "Choose fine-tuning and press Compare ingredients: every fact is trained by each recipe in turn."


@dataclass(eq=False)
class Ladder:
    """Widgets and handlers of the comparison; its runs join the history of the Edit tab."""

    edit: EditTab

    def build(self) -> None:
        """Place the widgets."""
        with gr.Accordion("Ladder: what each ingredient buys", open=False, elem_id="ladder-box") as self.box:
            self.chart = gr.Plot(charts_ladder.ladder(()), show_label=False, container=False, elem_id="plot-ladder")
            self.table = gr.HTML(table_html(()), elem_id="ladder-table")

    @property
    def button(self) -> gr.Button:
        """What starts it."""
        return self.edit.settings.ingredients.ladder

    @property
    def running(self) -> list[Any]:
        """What changes while it runs and when it ends."""
        return [*self.edit.running, self.box, self.chart, self.table]

    def on_ladder(self, values: Values) -> Iterator[Shown]:
        """Train the form's facts by every recipe, then show chart and table."""
        yield from self.edit.perform(values, self.work, self._shown, rounds=1)

    def work(self, values: Values, requests: list[EditRequest], plan: EditPlan, watch: Watch) -> list[Rung]:
        """Have every rung done, each kept as a run, and a closer look taken at the last."""
        name = self.edit.check_model(values)
        references = settings_form.read_references(values, self.edit.settings)
        rungs, last = self.edit.do(climbing(name, requests, plan, references), watch)
        for stored in (*(StoredRun(rung.run) for rung in rungs[:-1]), last):
            self.edit.runs.add(stored)
        found: list[Rung] = rungs
        return found

    def _shown(self, job: Job, values: Values) -> Shown:
        edit, rungs = self.edit, job.result
        ids = [rung.run.id for rung in rungs]
        told = f"{len(rungs)} recipes, compared below; the last one is shown, Undo goes back."
        return {
            **edit.idle(values, "", f"Done in {job.seconds:.1f} s: {told}"),
            edit.history: [*values[edit.history], *ids][-20:],
            edit.undo: gr.Button(interactive=True),
            self.box: gr.Accordion(open=True),
            self.chart: charts_ladder.ladder(rungs),
            self.table: table_html(rungs),
        }


def table_html(rungs: Sequence[Rung]) -> str:
    """One row per recipe, and in small letters what the paper printed for ten thousand facts."""
    if not rungs:
        return f"<div class='es-hint'>{HINT}</div>"
    table = ladder_table(rungs)
    columns = [name for name in (*SUCCESSES, "score_accuracy", *MORE) if table[name].notna().any()]
    heads = "".join(f"<th title='{escape(CARDS[c].definition)}'>{escape(CARDS[c].label)}</th>" for c in columns)
    rows = []
    for row in table.to_dict("records"):
        cells = "".join(f"<td>{_cell(row[name], name)}</td>" for name in columns)
        seconds = "-" if isnan(row["seconds"]) else f"{row['seconds']:.1f}"
        rows.append(f"<tr><td>{escape(str(row['recipe']))}</td>{cells}<td>{seconds}</td></tr>")
        told, printed = printed_row(str(row["recipe"]))
        if printed:
            cells = "".join(f"<td>{_cell(printed[name], name) if name in printed else ''}</td>" for name in columns)
            rows.append(f"<tr class='es-printed'><td>{told}</td>{cells}<td></td></tr>")
    facts = len(rungs[0].run.requests)
    notes = dict.fromkeys(note for rung in rungs for note in rung.run.notes if not note.startswith(COUNTS))
    note = (
        f"{facts} fact{'s' if facts > 1 else ''}; success counts an object that beats the other one, as the paper does."
    )
    note = " ".join([note, *map(escape, notes)])
    shown = f"<table class='es-table'><tr><th>recipe</th>{heads}<th>seconds</th></tr>{''.join(rows)}</table>"
    return f"{scrolling(shown, 'What each recipe brought')}<div class='es-hint'>{note}</div>"


def _cell(value: float, name: str) -> str:
    if isnan(value):
        return "-"
    return f"{value:.1f}" if CARDS[name].range.endswith("%") else number(value)
