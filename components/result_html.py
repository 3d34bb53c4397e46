"""The worded parts of a result as HTML: verdict, proof of change, generations, iteration table."""

import difflib
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

from components.definitions import scrolling
from editing_core.data.datasets import FORMATS
from editing_core.evaluation.metrics import CARDS, GENERATED, card
from editing_core.evaluation.reference import FINETUNING, UNDEREDIT, beside
from editing_core.evaluation.verdict import Verdict
from editing_core.models.edit import Findings, Proof
from editing_core.registry import editor_row
from editing_core.runs.record import RunResult
from editing_core.runs.tables import method
from editing_core.session import Look

SIGNS = {"edited": "✔", "UnderEdit": "▽", "OverEdit": "△", "collapsed": "✖", "undecidable": "?"}
NAMES = {"edited": "Edited", "collapsed": "Collapsed", "undecidable": "Undecidable"}
EMPTY = (
    "<div class='es-verdict es-verdict-none'><b>No edit yet.</b> Choose an example or write a fact, then press Edit: "
    "here you will see whether it took and what else changed.</div>"
)


def verdict_html(verdict: Verdict) -> str:
    """The banner: colour, sign, word and reason."""
    worst = verdict.states[-1] if verdict.states else "undecidable"
    label = " and ".join(NAMES.get(state, state) for state in verdict.states)
    sign = "".join(SIGNS.get(state, "?") for state in verdict.states)
    return (
        f"<div class='es-verdict es-verdict-{escape(worst)}' role='status'><span class='es-sign'>{sign}</span> "
        f"<b>{escape(label)}</b> {escape(verdict.reason)}</div>"
    )


def unedited_html() -> str:
    """The banner at k = 0."""
    text = "<b>Unedited model</b> (k = 0). Move the slider to the right to see the edit."
    return f"<div class='es-verdict es-verdict-none' role='status'>{text}</div>"


def proof_html(run: RunResult, k: int) -> str:
    """Proof of change in one line, per layer on request, and why the iterations ended."""
    proofs = run.proofs[k - 1] if 0 < k <= len(run.proofs) else ()
    changed, total = sum(p.changed for p in proofs), sum(p.total for p in proofs)
    largest = max((p.relative_norm for p in proofs), default=0.0)
    told = (
        f"{changed:,} of {total:,} entries in {len(proofs)} matrices changed, largest relative norm {number(largest)}"
        if proofs
        else "no weight is changed"
    )
    times = f" · edit {run.edit_seconds:.1f} s, with measuring {run.seconds:.1f} s · {escape(run.stopped)}"
    head = f"{told}{times}" if k else f"k = 0: {told}. {escape(run.stopped)}"
    notes = "".join(f"<br>{escape(note)}" for note in dict.fromkeys(run.notes))
    rows = "".join(_proof_row(p) for p in proofs)
    columns = "".join(f"<th>{c}</th>" for c in ("parameter", "|ΔW| / |W|", "rank", "changed entries"))
    table = f"<table class='es-table'><tr>{columns}</tr>{rows}</table>"
    table = scrolling(table, "Change of every matrix") if proofs else ""
    return f"<details class='es-proof'><summary>{head}</summary>{table}{notes}</details>"


def _proof_row(proof: Proof) -> str:
    rank = "-" if proof.rank is None else proof.rank
    return (
        f"<tr><td>{escape(proof.parameter)}</td><td>{number(proof.relative_norm)}</td><td>{rank}</td>"
        f"<td>{proof.changed:,} of {proof.total:,}</td></tr>"
    )


def generations_html(before: Look | None, after: Look | None, k: int) -> str:
    """Free continuation before and after, differing words marked."""
    if before is None or after is None:
        return "<div class='es-hint'>Press Edit to compare what the model writes before and after.</div>"
    left, right = diff_html(before.text, after.text)
    prompt = escape(before.prompt)
    return (
        "<div class='es-generations'>"
        f"<div><h2>Generation before</h2><p><i>{prompt}</i>{left}</p></div>"
        f"<div><h2>Generation after k = {k}</h2><p><i>{prompt}</i>{right}</p></div></div>"
    )


def findings_html(findings: Findings | None) -> str:
    """What an edit did at the fact's prompts; nothing of one that changed whole layers."""
    if not findings or not findings.said:
        return ""
    head = "".join(f"<th>{escape(column)}</th>" for column in findings.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{_found(value)}</td>' for value in row)}</tr>" for row in findings.rows)
    table = f"<table class='es-table es-findings'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    told = f"<div class='es-heading'>{escape(findings.title)}</div><div class='es-said'>{escape(findings.said)}</div>"
    return told + (scrolling(table, findings.title) if findings.rows else "")


def _found(value: str | float | int) -> str:
    return escape(value) if isinstance(value, str) else number(value)


def diff_html(before: str, after: str) -> tuple[str, str]:
    """Both texts escaped, with the words that differ in <mark>."""
    old, new = before.split(), after.split()
    left, right = [""], [""]
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        left.append(_words(old[a:b], kind != "equal"))
        right.append(_words(new[c:d], kind != "equal"))
    return " ".join(filter(None, left)).join([" ", ""]), " ".join(filter(None, right)).join([" ", ""])


def _words(words: Sequence[str], marked: bool) -> str:
    text = escape(" ".join(words))
    return f"<mark>{text}</mark>" if marked and text else text


def table_html(run: RunResult, k: int) -> str:
    """The iteration table with the reference column names; the row of k is marked."""
    columns = ["k", *(c for c in CARDS if c in run.iterations)]
    head = "".join(_head(column) for column in columns)
    rows = "".join(
        f"<tr{' class=es-chosen' if int(row['k']) == k else ''}>"
        + "".join(f"<td>{cell(column, row[column])}</td>" for column in columns)
        + "</tr>"
        for row in run.iterations[columns].to_dict("records")
    )
    meanings = "".join(_meaning(column) for column in columns[1:])
    table = f"<table class='es-table' id='iteration-table'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return (
        f"{scrolling(table, 'Metrics per iteration')}"
        f"<details class='es-proof'><summary>What the columns mean</summary><dl>{meanings}</dl></details>"
    )


def rules_html(run: RunResult) -> str:
    """Which iteration each rule would have chosen, and which one was."""
    words = {"perplexity": "|Δp| within tolerance", "monotone": "|Δp| no longer falls"}
    words |= {"small-change": "p spread changes little", "best": "best score"}
    found = (f"{words[name]}: {f'k = {d.k}' if d else 'not yet'}" for name, d in run.rules().items())
    return f"<div class='es-hint'>Result: k = {run.chosen}. Every rule's choice: {escape('; '.join(found))}.</div>"


def run_paper_html(run: RunResult) -> str:
    """The published rows for what the run did, on CounterFact, or that there are none."""
    assist, editor = run.plan.assist.name or "off", run.plan.editor
    recipe = editor_row(editor).recipe_of(run.plan.settings, run.model)
    label = recipe.label if recipe else ""
    paper = FINETUNING if editor == "finetuning" else UNDEREDIT
    named = escape(f"{run.model} with {method(editor, label, assist)}")
    missing = f"<div class='es-hint'>The paper ({paper}) has no rows for {named}.</div>"
    return paper_html(run.model, editor, assist, "counterfact", label) or missing


def paper_html(model: str, editor: str, assist: str, dataset: str, recipe: str = "", protocol: str = "batch") -> str:
    """The published rows for a model, editor, assistance ("off", "NA" or "NAP") and data set; "" if there are none.

    recipe: the label of fine-tuning's.
    """
    rows = beside(model, editor, dataset, assist.lower(), recipe=recipe, protocol=protocol)
    if rows.empty:
        return ""
    extra = [name for name in ("specificity_gold", "fluency", "consistency") if rows[name].notna().any()]
    shown = ["k", *(c for c in rows if c.endswith(("_accuracy", "_success", "_ppl"))), *extra]
    head = "".join(_head(column) for column in shown)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell(column, row[column])}</td>" for column in shown) + "</tr>"
        for row in rows.to_dict("records")
    )
    last = rows.iloc[-1]
    named = escape(f"{model} with {method(editor, recipe, assist)}")
    edits = f"{int(rows['n_edits'].max()):,} {escape(FORMATS[dataset].label)} edits"
    how = "each alone" if protocol == "single" else "at once"
    note = f"<div class='es-hint'>{escape(last['note'])}</div>" if last["note"] else ""
    table = scrolling(f"<table class='es-table'><tr>{head}</tr>{body}</table>", "The paper's rows")
    return (
        f"<details class='es-proof'><summary>The paper's rows for {named}: {edits} {how} "
        f"({last['source']}, Table {int(last['table'])})</summary>"
        f"{table}{note}</details>"
    )


CASE_COLUMNS = {"prompt": "prompt", "target_new": "new", "target_true": "old", "state": "state", "p_new": "p(new)"}
CASE_COLUMNS |= {"p_true": "p(old)", "lost": "lost neighbors", "p_optimised": "p optimised", "p_spread": "p spread"}
SHOWN_CASES = 100


def cases_html(cases: pd.DataFrame) -> str:
    """The records of one iteration, each with what became of it."""
    if cases.empty:
        return "<div class='es-hint'>No record fits; choose another state, text or iteration.</div>"
    head = "".join(f"<th>{escape(title)}</th>" for title in CASE_COLUMNS.values())
    rows = "".join(
        f"<tr title='{escape(str(row['reason']), quote=True)}'>"
        + "".join(f"<td>{_case_cell(column, row[column])}</td>" for column in CASE_COLUMNS)
        + "</tr>"
        for row in cases.head(SHOWN_CASES).to_dict("records")
    )
    more = f"<div class='es-hint'>{len(cases) - SHOWN_CASES} more.</div>" if len(cases) > SHOWN_CASES else ""
    table = f"<table class='es-table' id='case-table'><tr>{head}</tr>{rows}</table>"
    return f"{scrolling(table, 'Cases')}{more}"


def _case_cell(column: str, value: Any) -> str:
    if isinstance(value, str):
        sign = "".join(SIGNS.get(state, "") for state in value.split(" and ")) if column == "state" else ""
        return f"{sign} {escape(value)}".strip()
    return "" if value is None or pd.isna(value) else number(float(value))


def assist_html(run: RunResult, place: int) -> str:
    """Which neighbors assisted the fact shown."""
    request = run.requests[place]
    if not run.plan.assist.uses_neighbors:
        return ""
    told = "; ".join(f"“{n.prompt}” {n.answer}" for n in request.edit_neighbors) or "no neighbor"
    return f"<div class='es-hint'>{escape(run.plan.assist.name)}, assisted by {escape(told)} (not measured).</div>"


def _meaning(column: str) -> str:
    card = CARDS[column]
    better = f", {card.better} is better" if card.better else ""
    return f"<dt>{escape(column)} ({escape(card.label)}{better})</dt><dd>{escape(card.definition)}</dd>"


def _head(column: str) -> str:
    title = CARDS[column].definition if column in CARDS else "iteration"
    return f"<th title='{escape(title)}'>{escape(column).replace('_', '_<wbr>')}</th>"


def cell(column: str, value: Any) -> str:
    """Percent with one decimal, everything else with three digits; blank where there is no value.

    Fluency and consistency, which only some rows are asked for, have a dash there.
    """
    if column == "k":
        return str(int(value))
    if value is None or pd.isna(value):
        return "-" if column in GENERATED else ""
    if card(column).range.endswith("%"):
        return f"{value:.1f} %"
    return number(float(value))


def number(value: float) -> str:
    """Three significant digits, with a power of ten where the number is very large or small."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    power = math.floor(math.log10(abs(value)))
    if -3 <= power <= 4:
        return f"{value:.3g}" if power < 3 else f"{value:,.0f}"
    return f"{value / 10.0**power:.2f} · 10<sup>{power}</sup>"
