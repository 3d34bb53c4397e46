"""Finished runs as the tables people publish and compare: pure functions to data frames, CSV, Markdown and LaTeX.

The layout is that of Tables 1 and 6 of UnderEdit & OverEdit (arXiv:2503.11895): a block per model and data set, in it
the unedited model, then a row per editor and iteration, with efficacy, generalization, specificity and score by
accuracy and by success, and perplexities.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from math import hypot, isclose, isfinite, isnan, nan
from string import ascii_lowercase
from typing import TypeAlias

import pandas as pd

from editing_core.errors import BadRequest
from editing_core.evaluation.metrics import (
    CARDS,
    DEFINITIONS,
    ERROR,
    PARTS,
    PERCENT,
    accuracy,
    record_means,
    standard_error,
    success,
)
from editing_core.evaluation.reference import METRICS, UNEDITED

ROWS = ("all", "chosen")
BLOCK = ["model", "dataset", "n_edits"]  # what is compared with one another
METHOD = ["editor", "recipe", "assist", "protocol"]
NUMBERS = [column for metric in METRICS for column in (metric, metric + ERROR)]
COLUMNS = [*BLOCK, *METHOD, "name", "k", "n", "results", *NUMBERS, "error", "note"]
DIFFERENCES = ["id", "name", "k", "metric", "value", "reference", "difference", "se", "error"]
SAME = 1e-3  # percent: rounding, as against another definition
USUAL = "defaults"  # the variant of runs in which nothing departs from them, where others stand beside it
Probes: TypeAlias = pd.DataFrame | Callable[[], pd.DataFrame] | None


class _AtFirstUse:
    """A field of a dataclass, None by default, that is given as a table or as a function.

    The function is called when the field is first asked for: the probes of a large run take seconds to read, and of
    all that is made of finished runs only differences need them.
    """

    def __get__(self, owner: object, kind: type | None = None) -> pd.DataFrame | None:
        if owner is None:  # the dataclass asks for the default
            return None
        kept = vars(owner)
        if callable(kept["_probes"]):
            kept["_probes"] = kept["_probes"]()
        return kept["_probes"]

    def __set__(self, owner: object, given: Probes) -> None:
        vars(owner)["_probes"] = given


@dataclass(frozen=True, eq=False)
class Finished:
    """What a table needs of one run.

    name: a short label. assist: "off" where nothing assists. dataset, protocol: as a reader knows them. chosen: the
    k that is the result. iterations: one row per k from 0, metric columns as in `metrics.CARDS`, with `<metric>_se`
    over records; NaN is blank. probes: columns as in `evaluator.PROBE_COLUMNS` after k, or a function that gives them.
    variant: settings and conventions that depart from the defaults; runs that differ in it are never pooled. recipe:
    what the editor's recipe is called, "" for its preset. BadRequest where the rows do not count from 0, or lack the
    chosen one.
    """

    id: str
    name: str
    model: str
    editor: str
    assist: str
    dataset: str
    protocol: str
    trial: int
    n_edits: int
    chosen: int
    iterations: pd.DataFrame
    probes: _AtFirstUse = _AtFirstUse()
    variant: str = ""
    recipe: str = ""

    def __post_init__(self) -> None:
        found = self.iterations["k"].tolist() if "k" in self.iterations else []
        if not found or found != list(range(len(found))) or self.chosen not in found:
            raise BadRequest(
                f"The run {self.name!r} has rows for k = {found or 'nothing'}, a table needs one for each k from 0 to "
                f"at least its chosen one, {self.chosen}; load the whole run again."
            )

    @property
    def last(self) -> int:
        """The last iteration."""
        return len(self.iterations) - 1

    def at(self, k: int, columns: Sequence[str]) -> pd.Series:
        """Numbers of one iteration, NaN where there are none."""
        row = self.iterations.reindex(columns=columns).iloc[k]
        return pd.to_numeric(row, errors="coerce").astype(float)


def method(editor: str, recipe: str = "", assist: str = "") -> str:
    """What edits, as a reader knows it: "memit + NA", "finetuning: FT + Mask". assist: "off" or "" for nothing."""
    named = f"{editor}: {recipe}" if recipe else editor
    return named if assist in ("", "off") else f"{named} + {assist}"


def layout(runs: Sequence[Finished], rows: str = "all") -> pd.DataFrame:
    """One row per model, data set, number of edits, editor with its recipe, assistance and protocol, and k: COLUMNS.

    Each model, data set and number of edits begins with the row of the unedited model, k = 0, to which a trial
    contributes once however many runs it has. rows: "all" for every k from 1, "chosen" for each run's result.

    Runs that differ only in the trial are one row: n counts them, <metric> is the mean, <metric>_se the standard
    error over trials, `results` how many have that k as their result. With n = 1, <metric>_se is over records, where
    known; `error` says which. Where runs of an editor differ in more than the trial, `name` tells them apart: by their
    variants, and where one has a trial twice by their own names, or each by itself if names do not tell. A trial that
    ended counts from there on with the iteration it chose, so that late rows are not about the slowest trials alone.
    Chosen rows of trials that differ in k stand at the largest. `note` says so in both cases, and where not every
    trial has a value; such values are means over those that have one.
    """
    _check(runs)
    if rows not in ROWS:
        raise BadRequest(f"The rows {rows!r} are none of a table's; choose among: {', '.join(ROWS)}.")
    made = []
    for block in _alike(runs, BLOCK):
        made.append(_unedited(block))
        for method in _alike(block, METHOD):
            for name, pool in _pools(method).items():
                ks = [run.chosen for run in pool]
                for found in (_all if rows == "all" else _chosen)(pool):
                    results = ks.count(found[0]) if rows == "all" else len(ks)
                    made.append({**_row(pool[0], name, *found), "results": results})
    return pd.DataFrame(made, columns=COLUMNS)


def _check(runs: Sequence[Finished]) -> None:
    if not runs:
        raise BadRequest("No run came, a table is made of at least one; choose one or more finished runs.")


def _alike(runs: Sequence[Finished], fields: Sequence[str]) -> list[list[Finished]]:
    """Runs that share fields, in the order they came."""
    found: dict[tuple[object, ...], list[Finished]] = {}
    for run in runs:
        found.setdefault(tuple(getattr(run, field) for field in fields), []).append(run)
    return list(found.values())


def _pools(runs: Sequence[Finished]) -> dict[str, list[Finished]]:
    """Runs of one method as pools of trials, none of them twice, by what tells them apart: "" for a single pool."""
    variants = _alike(runs, ["variant"])
    if len(variants) == 1 and _distinct(runs):
        return {"": list(runs)}
    pools: dict[str, list[Finished]] = {}
    for variant in variants:
        for label, pool in _labelled(variant):
            while label in pools:  # a run may be called what a number makes of another's name
                label += "'"
            pools[label] = pool
    return pools


def _labelled(runs: list[Finished]) -> Iterator[tuple[str, list[Finished]]]:
    """Pools of one variant with what to call them."""
    if _distinct(runs):
        yield runs[0].variant or USUAL, runs
        return
    for named in _alike(runs, ["name"]):
        for number, pool in enumerate([named] if _distinct(named) else [[run] for run in named], start=1):
            yield named[0].name if number == 1 else f"{named[0].name} ({number})", pool


def _distinct(runs: Sequence[Finished]) -> bool:
    return len({run.trial for run in runs}) == len(runs)


def _unedited(block: Sequence[Finished]) -> dict[str, object]:
    """The row of the model before any edit."""
    trials, differ = [], False
    for runs in _alike(block, ["trial"]):
        found = pd.DataFrame([run.at(0, NUMBERS) for run in runs])
        # Protocols do not all measure the same columns, so blanks are filled from the trial's other runs.
        trials.append(found.bfill().iloc[0])
        differ |= bool((found.max() - found.min() > 1e-3 * found.abs().max()).any())
    note = "Runs of one trial differ before any edit, and the first one's numbers are shown" if differ else ""
    told = {"editor": UNEDITED, "recipe": "", "assist": "off", "protocol": ""}
    return {**_row(block[0], "", 0, pd.DataFrame(trials), note), **told}


def _all(pool: Sequence[Finished]) -> Iterator[tuple[int, pd.DataFrame, str]]:
    """(k, numbers with a row per trial, note) for every k from 1."""
    for k in range(1, max(1, *(run.last for run in pool)) + 1):
        ended = sum(run.last < k for run in pool)
        note = (
            f"{ended} of {len(pool)} trials have no iteration so late and count with the one they chose"
            if ended
            else ""
        )
        yield k, _held(pool, [k if k <= run.last else run.chosen for run in pool]), note


def _chosen(pool: Sequence[Finished]) -> Iterator[tuple[int, pd.DataFrame, str]]:
    """The same for the chosen k alone."""
    ks = [run.chosen for run in pool]
    yield max(ks), _held(pool, ks), f"The trials chose k = {_listed(sorted(set(ks)))}" if len(set(ks)) > 1 else ""


def _held(pool: Sequence[Finished], ks: Sequence[int]) -> pd.DataFrame:
    return pd.DataFrame([run.at(k, NUMBERS) for run, k in zip(pool, ks, strict=True)])


def _row(about: Finished, name: str, k: int, trials: pd.DataFrame, note: str) -> dict[str, object]:
    """A row of the layout from numbers with a row per trial."""
    n = len(trials)
    told = {field: getattr(about, field) for field in (*BLOCK, *METHOD)}
    means = {metric: float(trials[metric].mean()) for metric in METRICS}
    errors = {m + ERROR: float(trials[m + ERROR].iloc[0]) if n == 1 else _over(trials[m].dropna()) for m in METRICS}
    error = "" if all(map(isnan, errors.values())) else "over trials" if n > 1 else "over records"
    some = [CARDS[metric].label for metric in METRICS if 0 < trials[metric].count() < n]
    notes = [note] if note else []
    notes += [f"Not every trial has a value of {_listed(some)}"] if some else []
    told |= {"name": name, "k": k, "n": n, "results": 0}
    return {**told, **means, **errors, "error": error, "note": ". ".join(notes)}


def _over(values: pd.Series) -> float:
    """Standard error over trials; NaN where there are too few, or one is infinite."""
    error = standard_error(values) if all(map(isfinite, values)) else None
    return nan if error is None else error


def differences(runs: Sequence[Finished], reference: str) -> pd.DataFrame:
    """Every other run against the one with the id `reference`, each at its chosen k: a row per run and metric.

    Columns are DIFFERENCES: value - reference = difference, in the metric's unit, and its standard error. Whoever
    holds an id may see its run: leave that column out of what is published. Metrics neither run has are left out.

    `error` says what the standard error is. "paired over N records": of the differences of shares record by record,
    where both runs have probes of the same records that yield the runs' own numbers, by whichever definition of
    accuracy. "independent": sqrt(se1^2 + se2^2) of the errors over records. "": there is none, as for perplexities.
    """
    _check(runs)
    found = [run for run in runs if run.id == reference]
    if len(found) != 1:
        ids = ", ".join(dict.fromkeys(run.id for run in runs))
        raise BadRequest(
            f"The reference {reference!r} is the id of {len(found)} of {len(runs)} runs, it must be that of one; "
            f"choose among: {ids}."
        )
    base = _Measured.of(found[0])
    made = [row for run in runs if run is not base.run for row in _against(_Measured.of(run), base)]
    types = dict.fromkeys(("value", "reference", "difference", "se"), float)
    return pd.DataFrame(made, columns=DIFFERENCES).astype(types)


@dataclass(frozen=True, eq=False)
class _Measured:
    """A run at its chosen k. shares: per metric the percentages by record, where probes give them."""

    run: Finished
    numbers: Mapping[str, float]
    asked: frozenset[tuple[str, str, str]]
    shares: Mapping[str, pd.Series]

    @staticmethod
    def of(run: Finished) -> "_Measured":
        columns = [column for metric in CARDS for column in (metric, metric + ERROR)]
        numbers = {str(column): float(value) for column, value in run.at(run.chosen, columns).items()}
        if run.probes is None:
            return _Measured(run, numbers, frozenset(), {})
        now, before = (run.probes[run.probes["k"] == k].reset_index(drop=True) for k in (run.chosen, 0))
        edits = now[now["kind"] == "edit"]
        asked = zip(edits["case_id"].map(str), edits["prompt"], edits["target_new"], strict=True)
        return _Measured(run, numbers, frozenset(asked), _shares(now, before, numbers))


def _shares(now: pd.DataFrame, before: pd.DataFrame, numbers: Mapping[str, float]) -> dict[str, pd.Series]:
    """Per metric the percentages by record whose mean is the run's number."""
    rows = ["case_id", "kind", "number"]
    if now.empty or not now[rows].equals(before[rows]):
        return {}
    found: dict[str, pd.Series] = {}
    for name, values in _values(now, before):
        for part, kind in PARTS.items():
            here = now["kind"] == kind
            # A parquet file holds ids as text where some are text and some are numbers.
            means = 100 * record_means(values[here], now["case_id"][here].map(str)).dropna()
            metric = f"{part}_{name}"
            if len(means) and isclose(means.mean(), numbers[metric], abs_tol=SAME):
                found.setdefault(metric, means)
    return found


def _values(now: pd.DataFrame, before: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    yield "success", success(now)
    for definition in DEFINITIONS:
        if definition != "greedy_match" or "generated" in now:
            yield "accuracy", accuracy(now, before, definition)


def _against(own: _Measured, base: _Measured) -> list[dict[str, object]]:
    """One run's rows of `differences`."""
    rows: list[dict[str, object]] = []
    for metric in CARDS:
        value, other = own.numbers[metric], base.numbers[metric]
        if isnan(value) and isnan(other):
            continue
        row: dict[str, object] = {"id": own.run.id, "name": own.run.name, "k": own.run.chosen, "metric": metric}
        row |= {"value": value, "reference": other, "difference": value - other}
        row["se"], row["error"] = (nan, "") if isnan(value - other) else _error(own, base, metric)
        rows.append(row)
    return rows


def _error(own: _Measured, base: _Measured, metric: str) -> tuple[float, str]:
    """The standard error of a difference, and what it is."""
    mine, theirs = own.shares.get(metric), base.shares.get(metric)
    if mine is not None and theirs is not None and own.asked == base.asked and set(mine.index) == set(theirs.index):
        error = standard_error(mine - theirs)
        return (nan, "") if error is None else (error, f"paired over {len(mine)} records")
    independent = hypot(own.numbers[metric + ERROR], base.numbers[metric + ERROR])
    return (nan, "") if isnan(independent) else (independent, "independent")


def csv(table: pd.DataFrame) -> str:
    """A layout for programs: all its columns, numbers in full, blank cells empty."""
    text: str = table.to_csv(index=False, lineterminator="\n")
    return text


def markdown(table: pd.DataFrame) -> str:
    """A layout as a Markdown table below its caption; numbers as in `_cell`, the best in bold."""
    sheet = _Sheet.of(table, _MARKDOWN)
    metrics = [f"{CARDS[metric].label} {_arrow(metric)}" for metric in sheet.metrics]
    rule = ["---"] * len(sheet.labels) + ["---:"] * len(metrics)
    lines = [[*sheet.labels, *metrics], rule, *sheet.rows]
    return "\n".join([sheet.caption, "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def latex(table: pd.DataFrame) -> str:
    """A layout as a LaTeX table for the packages booktabs and graphicx; numbers as in `_cell`, the best in bold."""
    sheet = _Sheet.of(table, _LATEX)
    lines = [
        r"% \usepackage{booktabs,graphicx}",
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{sheet.caption}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{'l' * len(sheet.labels)}{'r' * len(sheet.metrics)}}}",
        r"\toprule",
        *_latex_head(sheet),
    ]
    above: list[str] = []
    until = sheet.labels.index("k")
    for at, row in enumerate(sheet.rows):
        if at in sheet.starts:
            lines.append(r"\midrule")
            above = []
        cells = ["" if i < until and row[: i + 1] == above[: i + 1] else cell for i, cell in enumerate(row)]
        lines.append(" & ".join(cells) + r" \\")
        above = row
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table*}", ""])


def html(table: pd.DataFrame) -> str:
    """A layout as an HTML table with its caption; numbers as in `_cell`, the best in bold."""
    sheet = _Sheet.of(table, _HTML)
    heads = [*sheet.labels, *(f"{escape(CARDS[m].label)} {_arrow(m)}" for m in sheet.metrics)]
    tips = [""] * len(sheet.labels) + [escape(CARDS[m].definition) for m in sheet.metrics]
    head = "".join(f"<th title='{tip}'>{name}</th>" for name, tip in zip(heads, tips, strict=True))
    results = _results(table)
    body = "".join(
        f"<tr{_row_class(at in sheet.starts, results[at])}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
        for at, row in enumerate(sheet.rows)
    )
    return f"<table><caption>{sheet.caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row_class(starts: bool, result: bool) -> str:
    names = " ".join(name for name, given in (("block", starts), ("result", result)) if given)
    return f" class='{names}'" if names else ""


def _latex_head(sheet: "_Sheet") -> list[str]:
    """Two lines of headings, and the rules between them."""
    heads = [_head(metric) for metric in sheet.metrics]
    first, rules, at = [""] * len(sheet.labels), [], len(sheet.labels) + 1
    for group, members in groupby(heads, key=lambda head: head[0]):
        width = len(list(members))
        first.append(rf"\multicolumn{{{width}}}{{c}}{{{group}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    signs = {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "→ 0": r"$\to 0$"}
    second = [f"{name} {signs[_arrow(metric)]}" for metric, (_, name) in zip(sheet.metrics, heads, strict=True)]
    return [" & ".join(first) + r" \\", " ".join(rules), " & ".join([*sheet.labels, *second]) + r" \\"]


def _head(metric: str) -> tuple[str, str]:
    """(group of columns, heading in it)."""
    part, _, kind = metric.partition("_")
    if kind in ("accuracy", "success"):
        return part.title(), kind.title()
    return "Perplexity", CARDS[metric].label.removesuffix(" perplexity")


def _arrow(metric: str) -> str:
    if _nearest_zero(metric):
        return "→ 0"
    return "↑" if CARDS[metric].better == "higher" else "↓"


def _nearest_zero(metric: str) -> bool:
    return "best at 0" in CARDS[metric].range


@dataclass(frozen=True)
class _Markup:
    """How a text language writes any text, digits with their power of ten, and (value, error or "", in bold)."""

    text: Callable[[str], str]
    number: Callable[[str, str], str]
    cell: Callable[[str, str, bool], str]


@dataclass(frozen=True)
class _Sheet:
    """A layout as text, ready to be set. labels: headings before those of the metrics. starts: each block's row."""

    caption: str
    labels: list[str]
    metrics: list[str]
    rows: list[list[str]]
    starts: frozenset[int]

    @staticmethod
    def of(table: pd.DataFrame, markup: _Markup) -> "_Sheet":
        table = table.reset_index(drop=True)
        metrics, best, labels = [m for m in METRICS if m in table], _best(table), _labels(table)
        rows = []
        for i, row in enumerate(table.to_dict("records")):
            told = [markup.text(values[i]) for values in labels.values()]
            rows.append([*told, *(_cell(row, m, markup, (i, m) in best) for m in metrics)])
        blocks = table[BLOCK].apply(tuple, axis=1).tolist()
        starts = frozenset(i for i, block in enumerate(blocks) if not i or block != blocks[i - 1])
        return _Sheet(markup.text(_caption(table)), list(labels), metrics, rows, starts)


def _labels(table: pd.DataFrame) -> dict[str, list[str]]:
    """Heading -> texts of the columns before the numbers; what is the same in all rows is left to the caption."""
    edited, marks = table[table["editor"] != UNEDITED], _marks(table)
    methods = zip(table["editor"], table["recipe"], table["assist"], strict=True)
    columns: dict[str, Iterable[object]] = {"Model": table["model"], "Data set": table["dataset"]}
    if table["n_edits"].nunique() > 1:
        columns["N"] = table["n_edits"]
    columns["Editor"] = [method(*about) for about in methods]
    if table["name"].any():
        columns["Variant"] = table["name"]
    if edited["protocol"].nunique() > 1:
        columns["Protocol"] = table["protocol"]
    ks = zip(table["k"], table["note"], strict=True)
    stars = ["*" if mark else "" for mark in _results(table)]
    columns["k"] = [f"{k}{s} ({marks[note]})" if note else f"{k}{s}" for (k, note), s in zip(ks, stars, strict=True)]
    if table["n"].nunique() > 1:
        columns["Trials"] = table["n"]
    return {heading: [str(value) for value in values] for heading, values in columns.items()}


def _results(table: pd.DataFrame) -> list[bool]:
    """Which rows to mark as a trial's result; none where all are."""
    edited = table["editor"] != UNEDITED
    some = bool((table["results"][edited] == 0).any())
    return [some and count > 0 for count in table["results"]]


def _marks(table: pd.DataFrame) -> dict[str, str]:
    """Note -> its letter."""
    notes = [note for note in table["note"].unique() if note]
    return {note: ascii_lowercase[i % 26] * (i // 26 + 1) for i, note in enumerate(notes)}


def _caption(table: pd.DataFrame) -> str:
    """Protocol, number of edits, trials, what bold and ± mean, and the notes; plain text."""
    edited = table[table["editor"] != UNEDITED]
    errors = set(table["error"]) - {""}
    meaning = f"; ± is the standard error {' or, of one trial, '.join(sorted(errors, reverse=True))}" if errors else ""
    mean = "mean of " if edited["n"].max() > 1 else ""
    sentences = [
        f"Protocol: {_listed(edited['protocol'].unique())}",
        f"Edits: N = {_listed(edited['n_edits'].unique())}",
        f"Trials: {mean}{_listed(sorted(set(edited['n'])), 'or')}{meaning}",
        "Bold: the best of the edited rows of a model and data set",
        *(["* a trial's result"] if any(_results(table)) else []),
        *(f"({mark}) {note}" for note, mark in _marks(table).items()),
    ]
    return " ".join(f"{sentence}." for sentence in sentences)


def _listed(values: Iterable[object], word: str = "and") -> str:
    texts = [str(value) for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} {word} {texts[-1]}"


def _best(table: pd.DataFrame) -> set[tuple[int, str]]:
    """(row, metric) of the best numbers of each block, all that print alike; none where there is one to choose from."""
    found = set()
    for _, group in table[table["editor"] != UNEDITED].groupby(BLOCK, sort=False, dropna=False):
        for metric in (m for m in METRICS if m in table):
            values = group[metric].abs() if _nearest_zero(metric) else group[metric]
            values = values.dropna()
            if len(values) > 1:
                best = values.max() if CARDS[metric].better == "higher" else values.min()
                found |= {(i, metric) for i, v in values.items() if _digits(v, metric) == _digits(best, metric)}
    return found


def _cell(row: Mapping[str, float], metric: str, markup: _Markup, best: bool) -> str:
    """A share with one decimal, a perplexity with three digits, from a thousand on with a power of ten; "-" if blank.

    The standard error follows ±, that of perplexities with two digits.
    """
    value, error = row[metric], row.get(metric + ERROR, nan)
    if isnan(value):
        return "-"
    known = "" if isnan(error) else markup.number(*_digits(error, metric, 2))
    return markup.cell(markup.number(*_digits(value, metric)), known, best)


def _digits(value: float, metric: str, digits: int = 3) -> tuple[str, str]:
    """(digits, power of ten or "") of a number that is not NaN."""
    if CARDS[metric].range == PERCENT or not isfinite(value):
        return f"{value:.1f}", ""
    text = f"{value:#.{digits}g}"
    if "e" in text and 1 <= abs(float(text)) < 1000:
        text = f"{float(text):.0f}"  # 680, not 6.8e2
    text, _, power = text.partition("e")
    return (f"{float(text):g}", str(int(power))) if power else (text.removesuffix("."), "")


def _markdown_number(digits: str, power: str) -> str:
    return f"{digits}e{power}" if power else digits


def _markdown_cell(value: str, error: str, best: bool) -> str:
    text = f"**{value}**" if best else value
    return f"{text} ± {error}" if error else text


def _latex_number(digits: str, power: str) -> str:
    digits = digits.replace("inf", r"\infty")
    return rf"{digits}\times10^{{{power}}}" if power else digits


def _latex_cell(value: str, error: str, best: bool) -> str:
    text = rf"$\mathbf{{{value}}}$" if best else f"${value}$"
    return rf"{text} {{\small $\pm {error}$}}" if error else text


def _plain(text: str) -> str:
    """One line of what can be seen."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


# Brackets and stars begin an option where they follow the end of a row.
_TO_LATEX = str.maketrans(
    {
        **{c: rf"\{c}" for c in "&%$#_{}"},
        **{c: f"{{{c}}}" for c in "[]*"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "|": r"\textbar{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
    }
)
_TO_MARKDOWN = str.maketrans({**{c: rf"\{c}" for c in "\\|`*_[]~$"}, "<": "&lt;", ">": "&gt;", "&": "&amp;"})


def _latex_text(text: str) -> str:
    return _plain(text).translate(_TO_LATEX)


def _markdown_text(text: str) -> str:
    return _plain(text).translate(_TO_MARKDOWN)


def _html_text(text: str) -> str:
    return escape(_plain(text))


def _html_number(digits: str, power: str) -> str:
    return f"{digits} · 10<sup>{power}</sup>" if power else digits


def _html_cell(value: str, error: str, best: bool) -> str:
    text = f"<b>{value}</b>" if best else value
    return f"{text} <small>± {error}</small>" if error else text


_HTML = _Markup(_html_text, _html_number, _html_cell)
_MARKDOWN = _Markup(_markdown_text, _markdown_number, _markdown_cell)
_LATEX = _Markup(_latex_text, _latex_number, _latex_cell)
