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
    "together": ("Edit together", "All facts in one edit; without it, only the one shown in the form."),
    "seed": ("Seed", "Of everything drawn by chance. The same seed and request give the same edit."),
    # The result
    "k": ("Iteration k", "Everything below shows the model after this iteration; 0 is the unedited model."),
    "case": ("Fact shown", "The fact that verdict, charts and texts are about; an edit may have many."),
    "log": ("Log scale", "Probabilities by their powers of ten, so that small ones can be told apart."),
    "drift-by": (
        "Neighbor drift",
        "By neighbor: before against after for each. By distance: how far a neighbor's prompt lies from the edit's.",
    ),
    "case-state": ("State", "What became of a fact: edited, UnderEdit, OverEdit, or both."),
    "case-text": ("Contains", "Only facts whose prompt, old or new object contains this text."),
    "case-order": ("Order", "The facts as they were given, or by one of the columns."),
    "tradeoff-source": ("Shown", "A bundled comparison of methods, or this page's own runs."),
    "comparison-source": (
        "Published figures beside",
        "The data set and model of the survey (arXiv 2305.13172) whose figures stand beside those measured here.",
    ),
    # The edit stack
    "stack-on": ("Switched on", "Edits that are on together; switched off, the model is bit for bit as before."),
    "stack-keep": (
        "Switch on at once",
        "The next edit is then made on top of the last one. Without it, each begins at what is switched on above.",
    ),
    "stack-chosen": ("One of them", "The edit that the note, Earlier, Later and Remove are about."),
    "stack-note": ("Note", "Your words about this edit; they stay with it in session files."),
    "state-first": (
        "First state",
        "Edits that are on in the first of the two compared states; none is the model as it is.",
    ),
    "state-second": ("Second state", "Edits that are on in the second of the two compared states."),
    "state-prompts": ("Prompts", "What both states are asked: sentences without {}, one per line."),
    # What leaves the page
    "take-link": ("Link", "Opens this page with the form as it is now: what was asked, not what came of it."),
    "take-command": ("Command line", "The same edit in a terminal where EditScope is installed."),
    "export-kind": (
        "Take along",
        "A LoRA adapter that peft loads, EditScope's own file, the whole model with the edit in it, or the session.",
    ),
    "export-what": ("Of", "The edit on show at the chosen k, or all that is switched on in the edit stack, as one."),
    "export-rank": ("Rank", "An adapter of at most this rank; what is lost by it is told. 0 keeps the edit exact."),
    # The Benchmark tab
    "bench-dataset": ("Data set", "Where the records come from: bundled, from the hub, or a file of your own."),
    "bench-kind": ("Format", "How the file is laid out; the templates show the plain table."),
    "bench-file": ("Records", "Your file; it is read as data and nothing in it is executed."),
    "bench-limit": ("Edits per run", "How many records each run edits; the shuffled order is the same for every run."),
    "bench-trials": ("Trials", "Blocks of records that share none; each gives a run with a seed of its own."),
    "bench-first": ("First trial", "Where to begin counting, so that later trials may be added to earlier ones."),
    "bench-editors": ("Editors", "A run for each. Together with trials and assistance they make a grid of runs."),
    "bench-iterations": (
        "Iterations",
        "How often optimising and writing are repeated at most; the stop rule may end a run before.",
    ),
    "bench-protocol": (
        "Protocol",
        "All records in one edit, each alone on the unedited model, or chunk after chunk on the edited weights.",
    ),
    "bench-chunk": ("Chunk", "With the sequential protocol, how many records are edited at once before the next ones."),
    "bench-direction": ("ZsRE edits towards", "The true answer, as usual, or the alternative answer of the record."),
    "bench-eligible": (
        "Only eligible records",
        "Records of whose neighbors the model knows enough, so that methods with and without assistance meet the same.",
    ),
    "bench-skip-bad": (
        "Malformed records",
        "Leaves them out and counts them; without it, the first one ends the run with its row and field.",
    ),
    "bench-settings": (
        "Settings",
        "Tables of a grid file, in TOML: settings of single editors, and what all runs have in common.",
    ),
    "bench-shown": ("Runs shown", "The runs in the charts and tables below; Cancel and Resume act on the same ones."),
    # The Runs tab
    "runs-text": ("Contains", "Only runs whose name, id or error contains this text."),
    "runs-status": ("Status", "Only runs that wait, are at work, are done, failed, were cancelled or interrupted."),
    "runs-opened": ("Runs opened", "The runs in the charts and tables below; click a row of the list to add it."),
    "runs-reference": ("Compared with", "The run that the others' results are subtracted from."),
    "runs-cases-run": ("Of the run", "The run whose records are listed."),
    "runs-state": ("State", "What became of a record: edited, UnderEdit, OverEdit, or both."),
    "runs-when": ("When", "In the iteration that counts as the run's result, or at any iteration."),
    "runs-cases-text": ("Contains", "Only records whose prompt, old or new object contains this text."),
    # The Explore tab
    "trace-prompt": ("Prompt", "The sentence whose next word is traced, with {} where the subject stands."),
    "trace-subject": ("Subject", "What the fact is about; its tokens are blurred with noise."),
    "trace-answer": ("Answer", "The word whose probability is followed; left empty, what the model says by itself."),
    "trace-facts": ("Facts", "How many facts that the model knows are traced and averaged, token by token's role."),
    "lens-prompt": ("Prompt", "The text whose every token is read after every block."),
    "lens-source": ("After", "Which edit the second grid has: the one on show in the Edit tab, or the edit stack's."),
    "changed-layer": (
        "Layer",
        "Whose keys are compared: the input of its down-projection at each subject's last token.",
    ),
    "changed-by": (
        "Against",
        "How alike a prompt's key is to the edit's, or which share of the layer's output the update changes there.",
    ),
    "talk-prompt": ("Prompt", "What both models go on writing from."),
}
SHARED: tuple[tuple[str, type[Settings], str], ...] = (
    ("stop-rule", StopSettings, "stop"),
    ("tolerance", StopSettings, "tolerance"),
    ("collapse-factor", StopSettings, "collapse_factor"),
    ("assistance", Assist, "neighbors"),
    ("chat", Conventions, "chat"),
    ("bench-stop", StopSettings, "stop"),
    ("bench-neighbors", Assist, "neighbors"),
)
SAME = {"bench-conventions": "conventions", "bench-texts": "also-texts"}  # a setting that stands in two places


def definitions() -> dict[str, tuple[str, str]]:
    """Name and one line, by the id of an element of the page."""
    found = dict(WIDGETS)
    for element, settings, name in SHARED:
        text = next(f.metadata["help"] for f in fields(settings) if f.name == name)
        found[element] = (name.replace("_", " "), f"{text}.".replace("..", "."))
    found |= {copy: found[original] for copy, original in SAME.items()}
    plots = {"losses": CHARTS["losses"], **{f"plot-{n}": card for n, card in CHARTS.items() if n != "losses"}}
    return found | plots


def head(script: Path = SCRIPT) -> str:
    """What the page's head has to hold: the definitions, and the script that shows them."""
    told = json.dumps(definitions(), ensure_ascii=False).replace("</", "<\\/")
    return f"<script type='application/json' id='es-tips'>{told}</script>\n<script>{script.read_text('utf-8')}</script>"


def scrolling(table: str, label: str) -> str:
    """A table that may be wider than its place, so that it can be reached and moved by keyboard."""
    return f"<div class='es-scroll' tabindex='0' role='region' aria-label='{escape(label, quote=True)}'>{table}</div>"
