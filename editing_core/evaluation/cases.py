"""Cases: what became of every record at every iteration, and how a list of them is narrowed and ordered."""

from collections.abc import Sequence

import pandas as pd

from editing_core.errors import BadRequest
from editing_core.evaluation.verdict import Verdict, judge_all
from editing_core.types import Row

STATES = ("UnderEdit", "OverEdit", "edited", "collapsed", "undecidable")


def case_rows(
    k: int, now: pd.DataFrame, before: pd.DataFrame, collapse_now: float, collapse_before: float
) -> tuple[list[Row], dict[int | str, Verdict]]:
    """One row per record at iteration k, and the verdicts behind them.

    Columns: k, case_id, prompt, target_new, target_true, state, reason, p_new, p_true, rank_new, neighbors, lost.
    """
    verdicts = judge_all(now, before, collapse_now, collapse_before)
    neighbors = now["case_id"][now["kind"] == "neighbor"].value_counts().to_dict()
    copied = ("case_id", "prompt", "target_new", "target_true", "p_new", "p_true", "rank_new")
    rows = []
    for edit in now[now["kind"] == "edit"].to_dict("records"):
        verdict = verdicts[edit["case_id"]]
        told = {"state": verdict.label, "reason": verdict.reason, "lost": len(verdict.lost)}
        rows.append({"k": k, **{c: edit[c] for c in copied}, **told, "neighbors": neighbors.get(edit["case_id"], 0)})
    return rows, verdicts


def filter_cases(cases: pd.DataFrame, k: int | None = None, states: Sequence[str] = (), text: str = "") -> pd.DataFrame:
    """Cases at iteration k whose state holds any of `states` and whose prompt or objects hold `text`."""
    found = cases if k is None else cases[cases["k"] == k]
    if states:
        found = found[found["state"].map(lambda label: any(s in label.split(" and ") for s in states)).astype(bool)]
    if text.strip():
        told = found["prompt"] + " " + found["target_new"] + " " + found["target_true"].fillna("")
        found = found[told.str.casefold().str.contains(text.strip().casefold(), regex=False)]
    return found.reset_index(drop=True)


def sort_cases(cases: pd.DataFrame, by: str, descending: bool = False) -> pd.DataFrame:
    """Cases ordered by a column; equal ones keep their order. BadRequest for a column that is not there."""
    if by not in cases:
        raise BadRequest(f"Cases have no column {by!r}; sort by one of {', '.join(cases.columns)}.")
    return cases.sort_values(by, ascending=not descending, kind="stable", key=_comparable).reset_index(drop=True)


def _comparable(column: pd.Series) -> pd.Series:
    """Texts for a column of numbers and texts, such as case ids."""
    mixed = column.dtype == object and column.map(type).nunique() > 1
    return column.map(str) if mixed else column


def case_stories(cases: pd.DataFrame, k: int) -> pd.DataFrame:
    """One row per record as it stands at iteration k, in the order of the cases; `story` tells its states over all k.

    A story reads "UnderEdit (1-2), edited (3)": what the record was, and during which iterations.
    """
    stories = {case_id: _story(own) for case_id, own in cases.sort_values("k").groupby("case_id", sort=False)}
    now = cases[cases["k"] == k].reset_index(drop=True)
    return now.assign(story=now["case_id"].map(stories))


def _story(own: pd.DataFrame) -> str:
    """The states of one record in the order of its iterations, equal neighbors as one."""
    spans: list[tuple[str, int, int]] = []
    for k, state in zip(own["k"], own["state"], strict=True):
        if spans and spans[-1][0] == state:
            spans[-1] = (state, spans[-1][1], k)
        else:
            spans.append((state, k, k))
    return ", ".join(f"{state} ({first if first == last else f'{first}-{last}'})" for state, first, last in spans)


def underedit_counts(cases: pd.DataFrame) -> pd.DataFrame:
    """Per k: records under-edited now, and how many of those under-edited after iteration 1 still are (the cohort)."""
    under = cases.assign(under=cases["state"].str.contains("UnderEdit", regex=False))
    first = set(under["case_id"][under["under"] & (under["k"] == 1)])
    under["cohort"] = under["under"] & under["case_id"].isin(first)
    counts = under.groupby("k")[["under", "cohort"]].sum().reset_index()
    return counts.rename(columns={"under": "underedit_now", "cohort": "underedit_cohort"})
