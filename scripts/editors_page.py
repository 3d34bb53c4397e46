"""The section of docs/results.md about editors of every kind, made from assets/comparison.json."""

from collections.abc import Mapping
from pathlib import Path

from editing_core.evaluation.comparison import ANSWERABLE, SHARES, SOURCES, Comparison, Kind, Line, lines, read

DATASETS = {"ZsRE": "ZsRE", "COUNTERFACT": "CounterFact"}
HEADS = (*SHARES, "seconds")
INTRO = """\
{count} records of the `test` part of `pocket-facts`, the same for every editor, each edited alone on the unedited model
and taken off again (protocol single): the preset of the editor for the model, one iteration, seed 0, conventions
`clean`. The layout is that of Tables 2 to 4 of "Editing Large Language Models" (arXiv:2305.13172), groups as in its
Table 1. Reliability is accuracy on the edit prompts, generality on paraphrases, locality the share of neighbors
answered as before, all in percent. Seconds are those of one edit without measuring; what an editor prepares once,
before the first edit, stands beside. Memory is what one edit keeps, and the most that a process took which did nothing
but this editor's run, measuring included. Measured on: {machine}."""
PORTABILITY = """\
Follow-up questions in the survey's three kinds, wordings in `assets/facts/portability.json`: the edit's own prompt with
the surname alone (subject replaced), from the object back to the subject (reversed relation), one step on from the
object (one hop). A question counts when its whole answer is first choice. The row of true objects is the control: the
unedited model, asked the same about the facts it knows; backwards any subject that has the object is right. The column
portability above has the kinds only in which it is at least {points:.0f} points better about true objects than about
new ones: {can}.
In the others a low figure says nothing about an editor, because the model can hardly answer such questions about any
fact; the survey's column holds all three kinds. Number of questions in brackets."""
PRINTED = """\
In italics what the survey prints, for other models (GPT-J with 6 billion parameters, T5-XL with 3), other data and two
V100: which editor keeps what may be compared, the numbers may not. Seconds are those of its ten edits divided by ten,
printed for GPT-J only. Rows without figures of ours are editors that are not here."""


def section(path: Path) -> list[str]:
    """The lines of the section; none before anything was measured."""
    found = read(path)
    out: list[str] = []
    for count, comparison in sorted(found.items()):
        out += ["", "## Editors of every kind", "", *_intro(count, comparison), ""]
        out += ["    python -m scripts.measure_editors" + ("" if count == 100 else f" --records {count}"), ""]
        out += [*_measured(comparison), "", "### Portability by kind", ""]
        can = ", ".join(comparison.answerable(comparison.rows[0].model)) or "none"
        out += [*PORTABILITY.format(can=can, points=ANSWERABLE).splitlines(), "", *_kinds(comparison)]
        out += ["", "### Beside the survey's figures", "", *PRINTED.splitlines()]
        for dataset, model in SOURCES:
            out += ["", f"{DATASETS[dataset]}, {model}:", "", *_beside(comparison, dataset, model)]
    return out


def _intro(count: int, comparison: Comparison) -> list[str]:
    machines = ", ".join(dict.fromkeys(row.machine for row in comparison.rows))
    return INTRO.format(count=count, machine=machines).splitlines()


def _measured(comparison: Comparison) -> list[str]:
    out = [_heads("editor", "group", *HEADS, "preparing, s", "bytes kept per edit", "process, MB")]
    for line in (line for line in _lines(comparison) if line.row):
        row = line.row
        assert row is not None
        values = [_cell(comparison.values(row)[name], name) for name in HEADS]
        values += [_cell(row.preparing, ""), "" if row.kept is None else f"{row.kept:,.0f}"]
        out.append(_row(line.label, line.group.lower(), *values, "" if row.peak is None else f"{row.peak / 1e6:.0f}"))
    return out


def _kinds(comparison: Comparison) -> list[str]:
    before = comparison.rows[0]
    kinds = [*(before.controls or before.kinds)]
    out = [_heads("editor", *kinds, "all questions")]
    for line in _lines(comparison):
        if line.row and line.row.controls:
            out.append(_row(f"{line.label}, true objects", *_shares(line.row.controls, kinds), ""))
        if line.row:
            out.append(_row(line.label, *_shares(line.row.kinds, kinds), _cell(comparison.overall(line.row), "")))
    return out


def _beside(comparison: Comparison, dataset: str, model: str) -> list[str]:
    out = [_heads("editor", *(f"{name}{which}" for name in HEADS for which in ("", ", survey")))]
    for line in lines(comparison, dataset, model):
        if not line.printed:
            continue
        own = comparison.values(line.row) if line.row else dict.fromkeys(HEADS)
        pairs = [(_cell(own[name], name), _cell(line.printed.get(name), name)) for name in HEADS]
        out.append(_row(line.label, *(cell for a, b in pairs for cell in (a, f"*{b}*" if b else ""))))
    return out


def _lines(comparison: Comparison) -> list[Line]:
    return lines(comparison, *SOURCES[0])


def _shares(found: Mapping[str, Kind], kinds: list[str]) -> list[str]:
    return [f"{found[k].value:.1f} ({found[k].questions})" if k in found else "" for k in kinds]


def _cell(value: float | None, name: str) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if name == "seconds" else f"{value:.1f}"


def _heads(*names: str) -> str:
    return f"{_row(*names)}\n|{'---|' * len(names)}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
