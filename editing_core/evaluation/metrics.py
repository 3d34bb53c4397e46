"""Pure functions from the probe table to the metrics of the field, and a card for each metric.

Everything is in percent. A record's value is the mean over its probes, the data set's value the mean over
records. Definitions: ROME (arXiv:2202.05262), UnderEdit & OverEdit (arXiv:2503.11895).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Card:
    """What a reader needs beside a number."""

    label: str
    definition: str
    better: str  # "higher", "lower" or "" where neither is
    source: str = "arXiv:2503.11895"


CARDS = {
    "efficacy_accuracy": Card(
        "Efficacy accuracy", "Share of edit prompts now answered with the new object (mean over its tokens).", "higher"
    ),
    "efficacy_success": Card(
        "Efficacy success", "Share of edit prompts where the new object is likelier than the old one.", "higher"
    ),
    "generalization_accuracy": Card(
        "Generalization accuracy", "Share of paraphrases answered with the new object.", "higher"
    ),
    "generalization_success": Card(
        "Generalization success", "Share of paraphrases where the new object is likelier than the old one.", "higher"
    ),
    "specificity_accuracy": Card(
        "Specificity accuracy", "Share of neighbors answered as before the edit; blank before any edit.", "higher"
    ),
    "specificity_success": Card(
        "Specificity success", "Share of neighbors where their true object is likelier than the new one.", "higher"
    ),
    "score_accuracy": Card("Score (accuracy)", "Harmonic mean of the three accuracies.", "higher"),
    "score_success": Card("Score (success)", "Harmonic mean of the three successes.", "higher"),
    "ppl_optimised": Card(
        "p optimised", "Perplexity of the new objects with the optimised states injected, mean over facts.", "lower"
    ),
    "ppl_spread": Card("p spread", "Perplexity of the new objects under the edited weights, mean over facts.", "lower"),
    "delta_ppl": Card(
        "delta p", "p spread - p optimised; iteration stops when its size is at most the tolerance.", "lower"
    ),
    "ppl_optimised_median": Card(
        "p optimised, median", "As p optimised, median over facts: not ruled by the worst one.", "lower"
    ),
    "ppl_spread_median": Card(
        "p spread, median", "As p spread, median over facts: not ruled by the worst one.", "lower"
    ),
    "collapse_ppl": Card(
        "Collapse perplexity", "Mean perplexity of held-out texts; a jump means the model is broken.", "lower"
    ),
}

PARTS = {"efficacy": "edit", "generalization": "paraphrase", "specificity": "neighbor"}


def record_means(values: pd.Series, cases: pd.Series) -> pd.Series:
    """Mean per record, so that records with many probes do not weigh more."""
    return values.astype(float).groupby(cases).mean()


def percent(values: pd.Series, cases: pd.Series) -> float | None:
    """100 x the mean over records of the mean over a record's probes; None without probes."""
    return None if values.empty else float(100 * record_means(values, cases).mean())


def harmonic_mean(parts: Sequence[float | None]) -> float | None:
    """Harmonic mean; None if a part is missing, 0 if a part is 0 (never dropped)."""
    if any(part is None for part in parts):
        return None
    numbers = [float(part) for part in parts if part is not None]
    return 0.0 if min(numbers) <= 0 else len(numbers) / sum(1 / n for n in numbers)


def success(probes: pd.DataFrame) -> pd.Series:
    """Per probe: is the object that should win strictly likelier? Neighbors should keep the true one."""
    keeps = probes["kind"] == "neighbor"
    difference = probes["logp_new"] - probes["logp_true"]
    return pd.Series(np.where(keeps, difference < 0, difference > 0), index=probes.index)


def accuracy(probes: pd.DataFrame, before: pd.DataFrame) -> pd.Series:
    """Per probe: share of right tokens; for neighbors, of tokens answered as in `before` (same rows)."""
    same = [
        float(np.mean([a == b for a, b in zip(now, then, strict=True)]))
        for now, then in zip(probes["choices"], before["choices"], strict=True)
    ]
    return probes["hit_new"].where(probes["kind"] != "neighbor", pd.Series(same, index=probes.index))


def summarize(probes: pd.DataFrame, before: pd.DataFrame, k: int) -> dict[str, float | None]:
    """The percent columns of one iteration. probes, before: probe tables with the same rows."""
    won, right = success(probes), accuracy(probes, before)
    row: dict[str, float | None] = {}
    for part, kind in PARTS.items():
        here = probes["kind"] == kind
        cases = probes["case_id"][here]
        # Compared with itself the unedited model is always right: not a finding, so left blank.
        row[f"{part}_accuracy"] = None if (part == "specificity" and k == 0) else percent(right[here], cases)
        row[f"{part}_success"] = percent(won[here], cases)
    for kind in ("accuracy", "success"):
        row[f"score_{kind}"] = harmonic_mean([row[f"{part}_{kind}"] for part in PARTS])
    return row
