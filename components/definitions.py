"""Definitions: the one line behind every info mark, by the id of the widget or chart it is about.

`assets/page.js` puts the marks into the page. Settings of editors tell theirs under their label already.
"""

import json
from dataclasses import fields
from html import escape
from pathlib import Path

from editing_core import paths
from editing_core.chart_cards import CHARTS
from editing_core.conventions import Conventions
from editing_core.editors.assist import Assist
from editing_core.editors.stopping import StopSettings
from editing_core.settings import Settings

SCRIPT = paths.assets() / "page.js"
WIDGETS: dict[str, tuple[str, str]] = {
    "model": ("Model", "The language model that is edited; its weights are never left changed."),
    "prompt": ("Prompt", "A sentence that the object completes, with {} where the subject stands."),
    "subject": ("Subject", "What the fact is about; the edit acts at its last token."),
    "old": ("Old object", "The answer before the edit; left empty, what the model says now."),
    "new": ("New object", "The answer the edit should bring."),
    "paraphrases": ("Paraphrases", "Other prompts for the same fact; they should follow the edit (generalization)."),
    "neighbors": (
        "Neighbors",
        "Prompts about other subjects whose answers must stay (specificity). With the subject named, one may assist.",
    ),
    "editor": ("Editor", "The method that turns facts into a change of weights."),
    "iterations": (
        "Iterations",
        "How often optimising and writing are repeated at most; each starts from the weights the last one left.",
    ),
    "recipe": ("Recipe", "A named choice of ingredients, a row of the fine-tuning paper's tables."),
    "ingredients": ("Ingredients", "What fine-tuning trains on beside the facts, and which tokens count."),
    "also-texts": (
        "Fluency and consistency",
        "Lets the model write before and after the edit: how varied its words are, and how close to true texts about "
        "things that really have the new object.",
    ),
    "conventions": (
        "Conventions",
        "clean: as we find right. faithful: as the published code of the UnderEdit & OverEdit paper does.",
    ),
    "k": ("Iteration k", "Everything below shows the model after this iteration; 0 is the unedited model."),
    "log": ("Log scale", "Probabilities by their powers of ten, so that small ones can be told apart."),
    "case-state": ("State", "What became of a fact: edited, UnderEdit, OverEdit, or both."),
    "tradeoff-source": ("Shown", "A bundled comparison of methods, or this page's own runs."),
    "stack-on": ("Switched on", "Edits that are on together; switched off, the model is bit for bit as before."),
    "export-kind": (
        "Take along",
        "A LoRA adapter that peft loads, EditScope's own file, the whole model with the edit in it, or the session.",
    ),
    "export-rank": ("Rank", "An adapter of at most this rank; what is lost by it is told. 0 keeps the edit exact."),
    "bench-trials": ("Trials", "Blocks of records that share none; each gives a run with a seed of its own."),
    "bench-protocol": (
        "Protocol",
        "All records in one edit, each alone on the unedited model, or chunk after chunk on the edited weights.",
    ),
}
SHARED: tuple[tuple[str, type[Settings], str], ...] = (
    ("stop-rule", StopSettings, "stop"),
    ("tolerance", StopSettings, "tolerance"),
    ("collapse-factor", StopSettings, "collapse_factor"),
    ("assistance", Assist, "neighbors"),
    ("chat", Conventions, "chat"),
)


def definitions() -> dict[str, tuple[str, str]]:
    """Name and one line, by the id of an element of the page."""
    found = dict(WIDGETS)
    for element, settings, name in SHARED:
        text = next(f.metadata["help"] for f in fields(settings) if f.name == name)
        found[element] = (name.replace("_", " "), f"{text}.".replace("..", "."))
    plots = {"losses": CHARTS["losses"], **{f"plot-{n}": card for n, card in CHARTS.items() if n != "losses"}}
    return found | plots


def head(script: Path = SCRIPT) -> str:
    """What the page's head has to hold: the definitions, and the script that shows them."""
    told = json.dumps(definitions(), ensure_ascii=False).replace("</", "<\\/")
    return f"<script type='application/json' id='es-tips'>{told}</script>\n<script>{script.read_text('utf-8')}</script>"


def scrolling(table: str, label: str) -> str:
    """A table that may be wider than its place, so that it can be reached and moved by keyboard."""
    return f"<div class='es-scroll' tabindex='0' role='region' aria-label='{escape(label, quote=True)}'>{table}</div>"
