"""Pure functions from the probe table to the metrics of the field, and a card for each metric.

Shares are in percent. A record's value is the mean over its probes, the data set's value the mean over
records. Definitions: ROME (arXiv:2202.05262), UnderEdit & OverEdit (arXiv:2503.11895).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import pandas as pd

from editing_core.conventions import CLEAN, Conventions
from editing_core.errors import BadSetting

PERCENT = "0-100 %"
KNOWEDIT, MEMIT, ROME = "arXiv:2401.01286", "arXiv:2210.07229", "arXiv:2202.05262"


@dataclass(frozen=True)
class Card:
    """What a reader needs beside a number."""

    label: str
    definition: str
    better: str  # "higher", "lower" or "" where neither is
    source: str = "arXiv:2503.11895"
    range: str = PERCENT


def _perplexity(label: str, definition: str) -> Card:
    return Card(label, definition, "lower", range=">= 1")


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
    "collapse_ppl": _perplexity(
        "Collapse perplexity", "Mean perplexity of held-out texts; a jump means the model is broken."
    ),
    "ppl_optimised": _perplexity(
        "p optimised", "Perplexity of the new objects with the optimised states injected, mean over facts."
    ),
    "ppl_spread": _perplexity("p spread", "Perplexity of the new objects under the edited weights, mean over facts."),
    "delta_ppl": replace(
        _perplexity("delta p", "p spread - p optimised; iteration stops when its size is at most the tolerance."),
        range="any; best at 0",
    ),
    "ppl_optimised_median": _perplexity(
        "p optimised, median", "As p optimised, median over facts: not ruled by the worst one."
    ),
    "ppl_spread_median": _perplexity("p spread, median", "As p spread, median over facts: not ruled by the worst one."),
    "specificity_gold": Card(
        "Specificity (own objects)", "Share of neighbors answered with their own object.", "higher", MEMIT
    ),
    "underedit_now": Card(
        "Under-edited now",
        "Records whose new object is not likelier than the old one, or not the first answer.",
        "lower",
        range="0 to records",
    ),
    "underedit_cohort": Card(
        "Under-edited since k = 1",
        "Of the records under-edited after iteration 1, those that still are.",
        "lower",
        range="0 to records",
    ),
    "reliability": Card("Reliability", "Share of edit prompts answered with the new object.", "higher", KNOWEDIT),
    "generality": Card("Generality", "Share of paraphrases answered with the new object.", "higher", KNOWEDIT),
    "locality": Card(
        "Locality", "Share of facts to be kept answered as before the edit; blank before any edit.", "higher", KNOWEDIT
    ),
    "portability": Card(
        "Portability", "Share of questions about what follows from the edit answered right.", "higher", KNOWEDIT
    ),
    "fluency": Card(
        "Fluency",
        "Entropy (bits x 100) of generated texts' word pairs and triples, low: loops; of k = 0 and the result.",
        "higher",
        ROME,
        ">= 0",
    ),
    "consistency": Card(
        "Consistency",
        "TF-IDF cosine of generated texts and texts about things with the new object, if any; of k = 0 and the result.",
        "higher",
        ROME,
    ),
}

GENERATED = ("fluency", "consistency")  # measured on texts that the model writes
PARTS = {"efficacy": "edit", "generalization": "paraphrase", "specificity": "neighbor"}
KEPT = ("neighbor", "locality")  # probes whose answer must not change
DEFINITIONS = ("token_mean", "all_tokens", "greedy_match")
ERROR = "_se"


def card(column: str) -> Card:
    """The card of a column; that of `<metric>_se` is made from the metric's. KeyError for other columns."""
    metric = column.removesuffix(ERROR)
    if metric == column:
        return CARDS[column]
    label = CARDS[metric].label
    return replace(
        CARDS[metric],
        label=f"{label}, standard error",
        definition=f"Standard error over records of: {label}; 1.96 times it is a 95 % half-width.",
        better="",
        range="0-50 %",
    )


def record_means(values: pd.Series, cases: pd.Series) -> pd.Series:
    """Mean per record, so that records with many probes do not weigh more; NaN for records of NaN only."""
    return values.astype(float).groupby(cases).mean()


def percent(values: pd.Series, cases: pd.Series) -> float | None:
    """100 x the mean over records of the mean over a record's probes; NaN are dropped, None if none is left."""
    means = record_means(values, cases).dropna()
    return None if means.empty else float(100 * means.mean())


def standard_error(values_per_record: Sequence[float] | pd.Series) -> float | None:
    """Sample standard deviation (n - 1) / sqrt(n), in the values' unit; NaN are dropped, None for fewer than two."""
    values = np.asarray(values_per_record, dtype=float)
    values = values[~np.isnan(values)]
    return None if len(values) < 2 else float(values.std(ddof=1) / sqrt(len(values)))


def half_width(values_per_record: Sequence[float] | pd.Series) -> float | None:
    """Half of the 95 % interval, 1.96 standard errors: what the ROME and MEMIT tables print in parentheses."""
    error = standard_error(values_per_record)
    return None if error is None else 1.96 * error


def harmonic_mean(parts: Sequence[float | None], drop_zeros: bool = False) -> float | None:
    """Harmonic mean; None if a part is missing, 0 if a part is 0.

    drop_zeros: leave parts that are 0 out, as some published scores do (arXiv:2503.11895, collapsed models); 0
    only if all are. It makes a failed edit look good and is for comparison with such scores alone.
    """
    if not parts or any(part is None for part in parts):
        return None
    numbers = [float(part) for part in parts if part is not None]
    if drop_zeros:
        numbers = [n for n in numbers if n > 0] or [0.0]
    return 0.0 if min(numbers) <= 0 else len(numbers) / sum(1 / n for n in numbers)


def success(probes: pd.DataFrame) -> pd.Series:
    """Per probe 1.0 if the object that should win is strictly likelier, else 0.0; neighbors should keep theirs.

    NaN where there is no old object to compare with (logp_true is NaN), and for portability and locality
    probes. A neighbor's own object is whatever its row was scored with: the true one, as in ROME and MEMIT.
    The iterative tables of arXiv:2503.11895 keep what the model itself said before the edit, which this
    table only knows if the evaluator's conventions put it in place of the true object; they lie higher.
    """
    difference = probes["logp_new"].astype(float) - probes["logp_true"].astype(float)
    won = pd.Series(np.where(probes["kind"] == "neighbor", difference < 0, difference > 0), index=probes.index)
    compared = probes["kind"].isin(list(PARTS.values())) & probes["logp_true"].notna()
    return won.astype(float).where(compared)


def accuracy(probes: pd.DataFrame, before: pd.DataFrame, definition: str = "token_mean") -> pd.Series:
    """Per probe, from 0 to 1: how far the model's first choices, given the tokens before, are the wanted ones.

    Wanted is the new object (edit, paraphrase), the probe's own answer (portability), or what was chosen in
    `before`, which has the same rows (neighbor, locality). definition: "token_mean", the share of tokens,
    "all_tokens", 1 only if all are right, or "greedy_match", the share of tokens right in what the model says by
    itself (column `generated`). All agree on objects of one token. BadSetting for any other, and without the column.
    """
    if definition not in DEFINITIONS:
        raise BadSetting(f"The accuracy {definition!r} is none; choose among: {', '.join(DEFINITIONS)}.")
    column = "generated" if definition == "greedy_match" else "choices"
    if column not in probes:
        raise BadSetting(
            "The accuracy 'greedy_match' needs generated text, which these probes lack; measure with that convention."
        )
    same = _agreement(probes[column], before[column])
    kind = probes["kind"]
    if definition == "greedy_match":
        right = _agreement(probes[column], probes["labels"])
    else:
        right = probes["hit_new"].astype(float).where(kind != "portability", probes["hit_true"].astype(float))
    right = right.where(~kind.isin(KEPT), same)
    return (right >= 1).astype(float).where(right.notna()) if definition == "all_tokens" else right


def _agreement(one: pd.Series, other: pd.Series) -> pd.Series:
    """Per row the share of places where two lists of tokens are equal."""
    shares = [float(np.mean([a == b for a, b in zip(x, y, strict=True)])) for x, y in zip(one, other, strict=True)]
    return pd.Series(shares, index=one.index, dtype=float)


def _share(probes: pd.DataFrame, kind: str, column: str) -> float | None:
    here = probes[probes["kind"] == kind]
    return percent(here[column], here["case_id"])


def specificity_gold(probes: pd.DataFrame) -> float | None:
    """Percent of neighbor tokens answered with the neighbor's object, right before the edit or not (MEMIT, ZsRE)."""
    return _share(probes, "neighbor", "hit_true")


def reliability(probes: pd.DataFrame) -> float | None:
    """Percent of the new object's tokens that are first choice after the edit prompt."""
    return _share(probes, "edit", "hit_new")


def generality(probes: pd.DataFrame) -> float | None:
    """Percent of the new object's tokens that are first choice after the paraphrases."""
    return _share(probes, "paraphrase", "hit_new")


def locality(probes: pd.DataFrame, before: pd.DataFrame) -> float | None:
    """Percent of neighbor and locality tokens chosen as in `before` (same rows), aggregated by family."""
    return _over_families(probes, accuracy(probes, before), KEPT)


def portability(probes: pd.DataFrame) -> float | None:
    """Percent of the tokens of portability answers that are first choice, aggregated by family."""
    return _over_families(probes, probes["hit_true"], ("portability",))


def _over_families(probes: pd.DataFrame, values: pd.Series, kinds: Sequence[str]) -> float | None:
    """KnowEdit's mean: within a family, over a record's families, over records with any. Neighbors are a family."""
    here = probes["kind"].isin(kinds)
    family = probes["family"].fillna("") if "family" in probes else pd.Series("", index=probes.index)
    keys = [probes["case_id"][here], probes["kind"][here], family[here].rename("family")]
    means = values[here].astype(float).groupby(keys).mean()
    return percent(means, means.index.get_level_values("case_id"))


def summarize(
    probes: pd.DataFrame, before: pd.DataFrame, k: int, conventions: Conventions = CLEAN
) -> dict[str, float | None]:
    """The columns of one iteration. probes, before: probe tables with the same rows.

    `<metric>_se` stands beside each part of a score, in percent, over records. The four KnowEdit metrics are
    there only if a probe asks for portability or locality. conventions: accuracy, neighbor_accuracy and
    zeros are used.
    """
    right = accuracy(probes, before, conventions.accuracy)
    kept = accuracy(probes, before, conventions.neighbor_accuracy)
    right = right.where(probes["kind"] != "neighbor", kept)
    row: dict[str, float | None] = {}
    for name, values in (("accuracy", right), ("success", success(probes))):
        for part, kind in PARTS.items():
            here = probes["kind"] == kind
            means = 100 * record_means(values[here], probes["case_id"][here])
            # Compared with itself the unedited model is always right: not a finding, so left blank.
            blank = (part, name, k) == ("specificity", "accuracy", 0)
            column = f"{part}_{name}"
            row[column] = None if blank else percent(values[here], probes["case_id"][here])
            row[column + ERROR] = None if blank else standard_error(means)
    for name in ("accuracy", "success"):
        parts = [row[f"{part}_{name}"] for part in PARTS]
        row[f"score_{name}"] = harmonic_mean(parts, drop_zeros=conventions.zeros == "dropped")
    row["specificity_gold"] = specificity_gold(probes)
    if probes["kind"].isin(("portability", "locality")).any():
        row["reliability"], row["generality"] = reliability(probes), generality(probes)
        row["locality"] = None if k == 0 else locality(probes, before)
        row["portability"] = portability(probes)
    return row


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """An iteration table with k first, then metrics in the order of their cards, then their standard errors."""
    metrics = [column for column in CARDS if column in table]
    rest = [column for column in table if column != "k" and column not in metrics]
    return table[["k", *metrics, *rest]]


def per_token(probes: pd.DataFrame) -> pd.DataFrame:
    """One row per probe and token of the object asked for: the new one (edit, paraphrase) or the probe's answer.

    label: the object's token id, choice: the model's first choice there, right: whether they agree. Without
    the column "labels", label and right are missing.
    """
    columns = ["case_id", "kind", "number", "position", "label", "choice", "right"]
    labels = probes["labels"] if "labels" in probes else [[None] * len(choices) for choices in probes["choices"]]
    rows = [
        (case, kind, number, at, label, choice, None if label is None else label == choice)
        for case, kind, number, wanted, choices in zip(
            probes["case_id"], probes["kind"], probes["number"], labels, probes["choices"], strict=True
        )
        for at, (label, choice) in enumerate(zip(wanted, choices, strict=True))
    ]
    types = {"number": "int64", "position": "int64", "label": "Int64", "choice": "int64", "right": "boolean"}
    return pd.DataFrame(rows, columns=columns).astype(types)


def over_trials(tables: Sequence[pd.DataFrame], carry_forward: bool = False) -> pd.DataFrame:
    """Several runs' iteration tables as one: a row per k and metric with n, mean, se, min and max over runs.

    n counts the runs with a value; se is blank for n < 2. carry_forward: a run that stopped earlier keeps its
    last row up to the largest k of all; otherwise it counts only as far as it went.
    """
    last = max((int(table["k"].max()) for table in tables if len(table)), default=-1)
    filled = [_carried(table, last) if carry_forward else table for table in tables if len(table)]
    rows = []
    for k in range(last + 1):
        for metric in CARDS:
            at = [t.loc[t["k"] == k, metric] for t in filled if metric in t]
            values = pd.to_numeric(pd.concat(at), errors="coerce").dropna() if at else pd.Series(dtype=float)
            if len(values):
                error = standard_error(values)
                rows.append((k, metric, len(values), values.mean(), error, values.min(), values.max()))
    table = pd.DataFrame(rows, columns=["k", "metric", "n", "mean", "se", "min", "max"])
    return table.astype(dict.fromkeys(("mean", "se", "min", "max"), float))


def _carried(table: pd.DataFrame, last: int) -> pd.DataFrame:
    final = table.loc[[table["k"].idxmax()]]
    missing = range(int(table["k"].max()) + 1, last + 1)
    return pd.concat([table, *(final.assign(k=k) for k in missing)], ignore_index=True)
