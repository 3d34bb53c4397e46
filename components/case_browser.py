"""The case browser: UnderEdit and OverEdit cases of a stored run, with what became of each over the iterations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
import pandas as pd

from editing_core.bench.stored import read_cases
from editing_core.errors import EditingError
from editing_core.evaluation.cases import STATES, case_stories, filter_cases
from editing_core.runs.folder import RunFolder
from editing_core.runs.tables import Finished

HINT = "<div class='es-hint'>Open a run to see what became of its cases.</div>"
CLICK = "<div class='es-hint'>{}Click a case to open it in the panels of the Edit tab.</div>"
NAMES = ("prompt", "new", "old", "what became of it, by k", "p(new)", "p(old)", "lost", "case")
WIDTHS: list[str | int] = ["auto", "90px", "90px", "380px", "76px", "76px", "58px", "64px"]
MOST = 500


@dataclass(frozen=True)
class CaseBrowser:
    """Widgets: which run, which cases, and the list."""

    run: gr.Dropdown
    state: gr.Dropdown
    when: gr.Radio
    text: gr.Textbox
    table: gr.Dataframe
    note: gr.HTML

    @property
    def inputs(self) -> list[Any]:
        """What chooses the cases."""
        return [self.run, self.state, self.when, self.text]

    @property
    def outputs(self) -> list[Any]:
        """What shows them."""
        return [self.run, self.table, self.note]


def build() -> CaseBrowser:
    """Place the widgets."""
    with gr.Accordion("Cases", open=True, elem_id="runs-cases-box"):
        with gr.Row(elem_classes="es-fields"):
            run = gr.Dropdown([], label="Of the run", scale=3, elem_id="runs-cases-run")
            state = gr.Dropdown(
                [("all", ""), *((s, s) for s in STATES)], value="", label="State", min_width=110, elem_id="runs-state"
            )
            when = gr.Radio(
                [("in the result", "chosen"), ("at any k", "any")], value="chosen", label="When", elem_id="runs-when"
            )
            text = gr.Textbox("", label="Prompt or object contains", max_lines=1, elem_id="runs-cases-text")
        note = gr.HTML(HINT, elem_id="runs-cases-note")
        table = gr.Dataframe(
            headers=list(NAMES),
            interactive=False,
            max_height=320,
            column_widths=WIDTHS,
            show_label=False,
            elem_id="runs-cases",
            elem_classes="es-list es-pick",
        )
    return CaseBrowser(run, state, when, text, table, note)


def show_runs(browser: CaseBrowser, runs: Sequence[Finished], values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Other runs are opened: their names to choose from; the list follows from the choice, which is kept if it can."""
    choices = [(f"{i}. {run.name}", run.id) for i, run in enumerate(runs, start=1)]
    ids = [run.id for run in runs]
    chosen = values[browser.run] if values[browser.run] in ids else (ids[0] if ids else None)
    return {browser.run: gr.Dropdown(choices, value=chosen)}


def show_cases(browser: CaseBrowser, folder: RunFolder | None, values: Mapping[Any, Any]) -> dict[Any, Any]:
    """The cases of a run that fit; nothing without a run."""
    empty = {browser.table: gr.Dataframe(value=[])}
    if folder is None:
        return {**empty, browser.note: HINT}
    try:
        cases, chosen = read_cases(folder)
    except EditingError as error:
        return {**empty, browser.note: f"<div class='es-hint'>{escape(str(error))}</div>"}
    wanted = [str(values[browser.state])] if values[browser.state] in STATES else []
    at = chosen if values[browser.when] == "chosen" else None
    fitting = set(filter_cases(cases, at, wanted, str(values[browser.text] or ""))["case_id"])
    stories = case_stories(cases[cases["case_id"].isin(fitting)], chosen)
    more = f"{len(stories) - MOST:,} more. " if len(stories) > MOST else ""
    rows = [_row(row) for row in stories.head(MOST).to_dict("records")]
    shown = CLICK.format(f"{len(stories):,} of {cases['case_id'].nunique():,} cases. {more}")
    return {browser.table: gr.Dataframe(value=rows), browser.note: shown}


def _row(row: Mapping[str, Any]) -> list[Any]:
    old = row["target_true"]
    values = ["" if pd.isna(row[name]) else f"{row[name]:.2g}" for name in ("p_new", "p_true")]
    told = [row["prompt"], row["target_new"], "" if pd.isna(old) else old, row["story"]]
    return [*told, *values, f"{row['lost']} of {row['neighbors']}", str(row["case_id"])]
