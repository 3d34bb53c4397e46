"""Verdict: what became of one edit, in one word and one sentence.

UnderEdit and OverEdit as in Baghel et al. 2025 (https://arxiv.org/abs/2503.11895); a neighbor counts as
lost when it was answered correctly before and is not any more, or now prefers the new object.
"""

from dataclasses import dataclass

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
    edit, first = now[now["kind"] == "edit"].iloc[0], before[before["kind"] == "edit"].iloc[0]
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
    states, reasons = [], [_under(edit)] if _under(edit) else []
    if reasons:
        states.append("UnderEdit")
    lost = tuple(now["prompt"][lost_neighbors(now, before)])
    if lost:
        states.append("OverEdit")
        named = "; ".join(f"“{prompt}”" for prompt in lost[:3])
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        reasons.append(f"{len(lost)} of {int((now['kind'] == 'neighbor').sum())} neighbors changed: {named}{more}.")
    if not states:
        kept = int((now["kind"] == "neighbor").sum())
        counted = "the one neighbor" if kept == 1 else f"all {kept} neighbors"
        tail = f", and {counted} kept their answer" if kept else "; no neighbors were given to check"
        return Verdict(
            ("edited",), f"“{edit['target_new']}” is now the first answer with p = {edit['p_new']:.3g}{tail}."
        )
    if states == ["OverEdit"]:
        reasons.insert(0, f"“{edit['target_new']}” is now the first answer with p = {edit['p_new']:.3g}, but")
        return Verdict(("OverEdit",), " ".join(reasons), lost)
    return Verdict(tuple(states), " ".join(reasons), lost)


def _under(edit: pd.Series) -> str:
    """Why the edit prompt is under-edited; empty when it is not."""
    new, old = edit["target_new"], edit["target_true"]
    if edit["p_new"] <= edit["p_true"]:
        return (
            f"The fact did not take: “{old}” (p = {edit['p_true']:.3g}) is still at least as likely as “{new}” "
            f"(p = {edit['p_new']:.3g})."
        )
    if edit["hit_new"] < 1.0:
        return (
            f"The fact took only partly: “{new}” (p = {edit['p_new']:.3g}) beats “{old}” but “{edit['answer']}” "
            "comes first."
        )
    return ""
