"""When iterating stops: the paper's rules and our guards, as pure functions over finished rows.

The same functions decide live, after every row, and later over the rows of a stored run. A row is a mapping
with `k` (1, 2, ...), `ppl_spread`, `delta_ppl`, and where measured `collapse_ppl` and a score; row 0, the
unedited model, may be there or not. Rules: Baghel et al. 2025, https://arxiv.org/abs/2503.11895.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Any

from editing_core.settings import Settings, setting

MAX_ROUNDS = 10
SCORE = "score_success"
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Decision:
    """Iteration `k` is the result, because of `rule`; `reason` says so in one sentence."""

    k: int
    rule: str
    reason: str


def perplexity_rule(rows: Rows, tolerance: float = 1.0) -> Decision | None:
    """The paper's rule: the first k with |delta p| <= tolerance."""
    for row in _edited(rows):
        gap = abs(row["delta_ppl"])
        if gap <= tolerance:
            why = f"|delta p| = {gap:.3g} is at most {tolerance:g}"
            return Decision(row["k"], "perplexity", f"Stopped after iteration {row['k']}: {why}.")
    return None


def monotone_rule(rows: Rows, _tolerance: float = 1.0) -> Decision | None:
    """Go on while |delta p| falls; at the first rise the iteration before it is the result."""
    edited = _edited(rows)
    for before, row in pairwise(edited):
        if abs(row["delta_ppl"]) >= abs(before["delta_ppl"]):
            why = f"|delta p| did not fall any more in iteration {row['k']}"
            return Decision(before["k"], "monotone", f"Stopped: {why}, so iteration {before['k']} is kept.")
    return None


def small_change_rule(rows: Rows, tolerance: float = 1.0) -> Decision | None:
    """The first k >= 2 whose spread perplexity differs by at most the tolerance from the one before."""
    edited = _edited(rows)
    for before, row in pairwise(edited):
        change = abs(row["ppl_spread"] - before["ppl_spread"])
        if change <= tolerance:
            why = f"the spread perplexity changed by {change:.3g}, at most {tolerance:g}"
            return Decision(row["k"], "small-change", f"Stopped after iteration {row['k']}: {why}.")
    return None


def no_rule(_rows: Rows, _tolerance: float = 1.0) -> None:
    """Never stops."""


RULES: dict[str, Callable[[Rows, float], Decision | None]] = {
    "perplexity": perplexity_rule,
    "monotone": monotone_rule,
    "small-change": small_change_rule,
    "none": no_rule,
}


def best_score(rows: Rows, score: str = SCORE) -> Decision | None:
    """The iteration with the best score so far, the earliest of equals; None where no score was measured."""
    scored = [row for row in _edited(rows) if row.get(score) is not None and isfinite(row[score])]
    if not scored:
        return None
    best = max(scored, key=lambda row: (row[score], -row["k"]))
    return Decision(best["k"], "best", f"Iteration {best['k']} has the best score so far, {best[score]:.1f}.")


def collapse_guard(rows: Rows, factor: float) -> Decision | None:
    """Rolls back when the held-out perplexity grew by more than `factor` over the row before; 0 is off."""
    for number in range(1, len(rows)):
        before, row = rows[number - 1].get("collapse_ppl"), rows[number].get("collapse_ppl")
        if factor and before is not None and row is not None and not row <= factor * before:
            return _roll_back(
                rows[:number],
                "collapse",
                f"Iteration {rows[number]['k']} broke the model: perplexity of held-out text grew from "
                f"{before:.3g} to {row:.3g}",
            )
    return None


def not_finite(rows: Rows, k: int) -> Decision:
    """Rolls back after iteration k gave infinities or not-a-numbers; `rows` are those before it."""
    return _roll_back(rows, "not finite", f"Iteration {k} gave numbers that are not finite")


def _roll_back(rows: Rows, rule: str, why: str) -> Decision:
    """The best finished iteration: by score where there is one, else the last; 0 when there is none."""
    best = best_score(rows)
    k = best.k if best else max((row["k"] for row in rows), default=0)
    return Decision(k, rule, f"{why}; the edit was rolled back to {_named(k)}.")


def _named(k: int) -> str:
    return f"iteration {k}" if k else "the unedited model"


@dataclass(frozen=True)
class StopSettings(Settings):
    """How long to iterate."""

    iterations: int = setting(5, "Most iterations", 1, MAX_ROUNDS)
    stop: str = setting(
        "perplexity",
        "perplexity: stop when |delta p| <= tolerance; monotone: when it no longer falls; small-change: when p spread "
        "moves by no more than the tolerance; none: all iterations",
        choices=tuple(RULES),
    )
    tolerance: float = setting(1.0, "epsilon: the largest |delta p| that counts as agreement", 0.0, 1e6)
    collapse_factor: float = setting(
        3.0, "Roll back when held-out perplexity grows by more than this factor in one iteration; 0 is off", 0.0, 1e6
    )

    def decide(self, rows: Rows) -> Decision | None:
        """What the guard or the rule says about the rows so far; None to go on."""
        return collapse_guard(rows, self.collapse_factor) or RULES[self.stop](rows, self.tolerance)

    def conclude(self, rows: Rows) -> Decision:
        """The result when all iterations are used up."""
        last = _edited(rows)[-1]
        count = self.iterations
        reason = f"All {count} iterations were used." if count > 1 else "The one iteration asked for was used."
        if self.stop == "perplexity":
            reason += f" |delta p| = {abs(last['delta_ppl']):.3g} is still above {self.tolerance:g}."
        return Decision(last["k"], "iterations", reason)


def every_rule(rows: Rows, tolerance: float = 1.0) -> dict[str, Decision | None]:
    """What each rule, and the best score, would have chosen among the rows of a finished run."""
    found = {name: rule(rows, tolerance) for name, rule in RULES.items() if name != "none"}
    return {**found, "best": best_score(rows)}


def _edited(rows: Rows) -> list[Mapping[str, Any]]:
    """Rows after the unedited one that have a |delta p|: the paper prints none for a run's last row."""
    return [row for row in rows if row["k"] >= 1 and row.get("delta_ppl") is not None]
