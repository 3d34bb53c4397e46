"""Verdict: what became of one edit, in one word and one sentence.

UnderEdit and OverEdit as in Baghel et al. 2025 (https://arxiv.org/abs/2503.11895); a neighbor counts as
lost when it was answered correctly before and is not any more, or now prefers the new object.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

COLLAPSE_FACTOR = 10.0


@dataclass(frozen=True)
class Verdict:
    """states: any of edited, UnderEdit, OverEdit, collapsed, undecidable. lost: prompts of lost neighbors."""

    states: tuple[str, ...]
    reason: str
    lost: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The states in words."""
        return " and ".join(self.states)


def lost_neighbors(now: pd.DataFrame, before: pd.DataFrame) -> pd.Series:
    """Per row whether it is a neighbor that was right before and is lost now. Tables share their rows."""
    neighbor = (now["kind"] == "neighbor").to_numpy()
    right_before = (before["hit_true"] >= 1.0).to_numpy()
    preferred = before["logp_new"].to_numpy() < before["logp_true"].to_numpy()
    wrong_now = (now["hit_true"] < 1.0).to_numpy() | (now["logp_new"] >= now["logp_true"]).to_numpy()
    return pd.Series(neighbor & right_before & preferred & wrong_now, index=now.index)


def judge(now: pd.DataFrame, before: pd.DataFrame, collapse_now: float, collapse_before: float) -> Verdict:
    """The verdict on one case. now, before: that case's probe rows, in the same order."""
    lost = tuple(now["prompt"][lost_neighbors(now, before)])
    edit, first = (table[table["kind"] == "edit"].iloc[0].to_dict() for table in (now, before))
    return _judge(edit, first, lost, int((now["kind"] == "neighbor").sum()), collapse_now, collapse_before)


def judge_all(
    now: pd.DataFrame, before: pd.DataFrame, collapse_now: float, collapse_before: float
) -> dict[int | str, Verdict]:
    """The verdict on every case, in the tables' order. now, before: probe rows of all cases, in the same order."""
    lost: dict[int | str, list[str]] = {}
    gone = now[lost_neighbors(now, before).to_numpy()]
    for case, prompt in zip(gone["case_id"], gone["prompt"], strict=True):
        lost.setdefault(case, []).append(prompt)
    asked = now["case_id"][now["kind"] == "neighbor"].value_counts().to_dict()
    edits, firsts = (table[table["kind"] == "edit"].to_dict("records") for table in (now, before))
    return {
        edit["case_id"]: _judge(
            edit,
            first,
            tuple(lost.get(edit["case_id"], ())),
            int(asked.get(edit["case_id"], 0)),
            collapse_now,
            collapse_before,
        )
        for edit, first in zip(edits, firsts, strict=True)
    }


def _judge(
    edit: Mapping[str, Any],
    first: Mapping[str, Any],
    lost: tuple[str, ...],
    neighbors: int,
    collapse_now: float,
    collapse_before: float,
) -> Verdict:
    """From the edit prompt's row after and before, the lost neighbors, and how many there are."""
    if not collapse_now < COLLAPSE_FACTOR * collapse_before:
        return Verdict(
            ("collapsed",),
            f"The model is broken: perplexity of held-out text went from {collapse_before:.3g} to {collapse_now:.3g}.",
        )
    if first["rank_new"] == 1 and first["hit_new"] >= 1.0:
        return Verdict(
            ("undecidable",),
            f"The model already answered “{edit['target_new']}” before the edit; choose another new object.",
        )
    under = _under(edit)
    states, reasons = (["UnderEdit"], [under]) if under else ([], [])
    if lost:
        states.append("OverEdit")
        named = "; ".join(f"“{prompt}”" for prompt in lost[:3])
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        reasons.append(f"{len(lost)} of {neighbors} neighbors changed: {named}{more}.")
    if not states:
        counted = "the one neighbor" if neighbors == 1 else f"all {neighbors} neighbors"
        tail = f", and {counted} kept their answer" if neighbors else "; no neighbors were given to check"
        return Verdict(
            ("edited",), f"“{edit['target_new']}” is now the first answer with p = {edit['p_new']:.3g}{tail}."
        )
    if states == ["OverEdit"]:
        reasons.insert(0, f"“{edit['target_new']}” is now the first answer with p = {edit['p_new']:.3g}, but")
    return Verdict(tuple(states), " ".join(reasons), lost)


def _under(edit: Mapping[str, Any]) -> str:
    """Why the edit prompt is under-edited; empty when it is not."""
    new, old = edit["target_new"], edit["target_true"]
    if edit["p_new"] <= edit["p_true"]:
        return (
            f"The fact did not take: “{old}” (p = {edit['p_true']:.3g}) is still at least as likely as “{new}” "
            f"(p = {edit['p_new']:.3g})."
        )
    if edit["hit_new"] < 1.0:
        beaten = f"beats “{old}” but" if old else "is there, but"
        return f"The fact took only partly: “{new}” (p = {edit['p_new']:.3g}) {beaten} “{edit['answer']}” comes first."
    return ""
