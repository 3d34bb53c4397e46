"""Editors of every kind side by side: what the bundled run measured, and what the survey printed of its own.

`measured` gives what is in `assets/comparison.json`, which `scripts/measure_editors.py` writes; `published` the tables
of Yao et al. 2023 (https://arxiv.org/abs/2305.13172): 2 (reliability, generality, locality), 3 (portability), 4
(seconds), and from table 1 what an editor changes. Shares are in percent.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from editing_core import paths
from editing_core.evaluation.metrics import percent, record_means, standard_error

SHARES = ("reliability", "generality", "locality", "portability")
UNEDITED = "unedited"
PRESERVE, MODIFY = GROUPS = ("Preserve parameters", "Modify parameters")  # as in the survey's table 1
ANSWERABLE = 20.0  # points by which a model must know the true answers better than it guesses the new ones
OURS = {
    "FT": "finetuning",
    "CaliNET": "calinet",
    "T-Patcher": "t-patcher",
    "KN": "kn",
    "ROME": "rome",
    "MEMIT": "memit",
}  # the survey's editors that are here; SERAC, KE and MEND, which train a model of their own first, are not
SOURCES = tuple((dataset, model) for dataset in ("ZsRE", "COUNTERFACT") for model in ("GPT-J", "T5-XL"))


@dataclass(frozen=True)
class Kind:
    """One kind of portability question: right answers in percent, standard error over records, questions asked."""

    value: float
    error: float | None
    questions: int


@dataclass(frozen=True)
class Row:
    """What an editor did to the records, each edited alone.

    group: one of GROUPS, "" for the unedited model. kinds: by the survey's name. controls: the same questions about the
    true objects, of the unedited model only. seconds: of one edit, without measuring. preparing: seconds before the
    first edit, statistics and examples. kept: bytes of one edit, mean. peak: most bytes of the process. machine: where.
    """

    editor: str
    label: str
    model: str
    group: str
    records: int
    reliability: float | None
    generality: float | None
    locality: float | None
    kinds: Mapping[str, Kind]
    controls: Mapping[str, Kind] = field(default_factory=dict)
    seconds: float | None = None
    preparing: float | None = None
    kept: float | None = None
    peak: float | None = None
    machine: str = ""

    @staticmethod
    def of(stored: Mapping[str, Any]) -> "Row":
        """From plain values as the script writes them."""
        kinds = {name: {k: Kind(**v) for k, v in stored.get(name, {}).items()} for name in ("kinds", "controls")}
        return Row(**{**stored, **kinds})


@dataclass(frozen=True)
class Comparison:
    """All rows of one number of records, and what the portability of each model can mean."""

    rows: tuple[Row, ...]

    def unedited(self, model: str) -> Row | None:
        """The row of a model without an edit."""
        return next((row for row in self.rows if (row.editor, row.model) == (UNEDITED, model)), None)

    def answerable(self, model: str) -> tuple[str, ...]:
        """The kinds of question that a model answers about true facts, so that an edit could follow through."""
        before = self.unedited(model)
        controls = before.controls if before else {}
        return tuple(k for k, c in controls.items() if before and c.value - before.kinds[k].value >= ANSWERABLE)

    def portability(self, row: Row) -> float | None:
        """Right answers among the questions of answerable kinds; None where no kind is."""
        kinds = [row.kinds[name] for name in self.answerable(row.model) if name in row.kinds]
        asked = sum(kind.questions for kind in kinds)
        return sum(kind.value * kind.questions for kind in kinds) / asked if asked else None

    def overall(self, row: Row) -> float | None:
        """Right answers among all questions, whether or not the model could answer such before."""
        asked = sum(kind.questions for kind in row.kinds.values())
        return sum(kind.value * kind.questions for kind in row.kinds.values()) / asked if asked else None

    def values(self, row: Row) -> dict[str, float | None]:
        """The columns of the survey's tables for a row."""
        own = {name: getattr(row, name) for name in SHARES[:3]}
        return {**own, "portability": self.portability(row), "seconds": row.seconds}


def kinds_of(probes: pd.DataFrame) -> dict[str, Kind]:
    """Portability by kind, as asked, from a probe table of one moment. Right is a whole answer that is first choice.

    Whole, because names have many tokens, and given the first ones the others follow without any knowledge.
    """
    here = probes[probes["kind"] == "portability"]
    right = (here["hit_true"].astype(float) >= 1).astype(float)
    found = {}
    for kind, own in right.groupby(here["family"], sort=False):
        means = 100 * record_means(own, here.loc[own.index, "case_id"])
        value = percent(own, here.loc[own.index, "case_id"])
        if value is not None:
            found[str(kind)] = Kind(value, standard_error(means), len(own))
    return found


def read(path: Path) -> dict[int, Comparison]:
    """Comparisons by number of records, from a file as the script writes it; empty where there is none."""
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {int(count): Comparison(tuple(map(Row.of, rows.values()))) for count, rows in stored.items()}


@cache
def measured() -> dict[int, Comparison]:
    """The bundled comparisons."""
    return read(paths.assets() / "comparison.json")


@cache
def published() -> pd.DataFrame:
    """One row per data set, model and editor of the survey, in the order of its table 2.

    Columns: dataset, model, editor, ours (the name here, "" where there is none), group, the four SHARES, seconds (of
    one edit: the survey times ten on two V100). NaN where nothing usable is printed.
    """
    folder = paths.assets() / "reference"
    first, second, third, fourth = (pd.read_csv(folder / f"survey_table{n}.csv") for n in (1, 2, 3, 4))
    keys = ["dataset", "model", "editor"]
    order = second[keys].drop_duplicates()
    shares = second.pivot(index=keys, columns="metric", values="value").reset_index()
    timed = fourth.assign(seconds=fourth["seconds"] / fourth["n_edits"])[[*keys, "seconds"]]
    table = order.merge(shares, on=keys, how="left").merge(third[[*keys, "portability"]], on=keys, how="left")
    table = table.merge(timed, on=keys, how="left")
    preserving = set(first["editor"][first["paradigm"] == "preserve"])
    table["group"] = [PRESERVE if editor in preserving else MODIFY for editor in table["editor"]]
    table["ours"] = table["editor"].map(OURS).fillna("")
    return table[[*keys, "ours", "group", *SHARES, "seconds"]].reset_index(drop=True)


def beside(dataset: str, model: str) -> pd.DataFrame:
    """The survey's rows of one of SOURCES."""
    table = published()
    return table[(table["dataset"] == dataset) & (table["model"] == model)].reset_index(drop=True)


@dataclass(frozen=True)
class Line:
    """One line of the table: an editor with what was measured here, what the survey printed, or both."""

    label: str
    group: str
    row: Row | None
    printed: Mapping[str, float]


def lines(comparison: Comparison, dataset: str, model: str) -> list[Line]:
    """The lines in order: the unedited model, then group by group ours as measured and, behind them, the others'."""
    table = {str(row["editor"]): row for row in beside(dataset, model).to_dict("records")}
    names = {row["ours"]: row for row in table.values() if row["ours"]}
    models = {row.model for row in comparison.rows}
    first = next((row.model for row in comparison.rows), "")
    found = []
    for row in comparison.rows:
        label = row.label if row.model == first or len(models) < 2 else f"{row.label}, {row.model}"
        printed = names.get(row.editor, {}) if row.model == first else {}
        found.append(Line(label, row.group, row, _numbers(printed)))
    here = {row.editor for row in comparison.rows}
    missing = [row for row in table.values() if row["ours"] not in here]
    found += [Line(str(row["editor"]), str(row["group"]), None, _numbers(row)) for row in missing]
    order = ("", *GROUPS)
    return sorted(found, key=lambda line: order.index(line.group))


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(row[name]) for name in (*SHARES, "seconds") if name in row and pd.notna(row[name])}
