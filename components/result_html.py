"""The worded parts of a result as HTML: verdict, proof of change, generations, iteration table."""

import difflib
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

from editing_core.evaluation.metrics import CARDS
from editing_core.evaluation.verdict import Verdict
from editing_core.models.delta import Proof
from editing_core.runs.record import RunResult
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
    head = (
        f"{changed:,} of {total:,} entries in {len(proofs)} matrices changed, largest relative norm {number(largest)}"
        f" · edit {run.edit_seconds:.1f} s, with measuring {run.seconds:.1f} s · {escape(run.stopped)}"
        if proofs
        else f"k = 0: no weight is changed. {escape(run.stopped)}"
    )
    notes = "".join(f"<br>{escape(note)}" for note in dict.fromkeys(run.notes))
    rows = "".join(_proof_row(p) for p in proofs)
    columns = "".join(f"<th>{c}</th>" for c in ("parameter", "|ΔW| / |W|", "rank", "changed entries"))
    table = f"<div class='es-scroll'><table class='es-table'><tr>{columns}</tr>{rows}</table></div>" if proofs else ""
    return f"<details class='es-proof'><summary>{head}</summary>{table}{notes}</details>"


def _proof_row(proof: Proof) -> str:
    return (
        f"<tr><td>{escape(proof.parameter)}</td><td>{number(proof.relative_norm)}</td><td>{proof.rank}</td>"
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
        f"<div><h4>Generation before</h4><p><i>{prompt}</i>{left}</p></div>"
        f"<div><h4>Generation after k = {k}</h4><p><i>{prompt}</i>{right}</p></div></div>"
    )


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
    return (
        f"<div class='es-scroll'><table class='es-table' id='iteration-table'><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        f"<details class='es-proof'><summary>What the columns mean</summary><dl>{meanings}</dl></details>"
    )


def _meaning(column: str) -> str:
    card = CARDS[column]
    better = f", {card.better} is better" if card.better else ""
    return f"<dt>{escape(column)} ({escape(card.label)}{better})</dt><dd>{escape(card.definition)}</dd>"


def _head(column: str) -> str:
    title = CARDS[column].definition if column in CARDS else "iteration"
    return f"<th title='{escape(title)}'>{escape(column).replace('_', '_<wbr>')}</th>"


def cell(column: str, value: Any) -> str:
    """Percent with one decimal, everything else with three digits; blank where there is no value."""
    if column == "k":
        return str(int(value))
    if value is None or pd.isna(value):
        return ""
    if column.endswith(("_accuracy", "_success")):
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
