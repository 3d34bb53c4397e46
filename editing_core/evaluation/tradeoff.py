"""Specificity against efficacy: what a method costs its neighbors, at the efficacy it reaches.

Methods that edit more slowly look gentler at equal k, so they are compared at matched efficacy, interpolated
over k, on the same records.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from editing_core import paths
from editing_core.evaluation.metrics import accuracy, record_means, standard_error, success


@dataclass(frozen=True, eq=False)
class Curve:
    """A method's course. Indexed by k, from the unedited model on.

    efficacy, generalization, specificity: percent. records: (case_id by k) specificity per record, in percent,
    NaN for records without measured neighbors.
    """

    efficacy: pd.Series
    generalization: pd.Series
    specificity: pd.Series
    records: pd.DataFrame

    @staticmethod
    def of(probes: pd.DataFrame) -> "Curve":
        """From a run's probe table (rows of all k): success on edits and paraphrases, accuracy on neighbors."""
        before = probes[probes["k"] == 0].reset_index(drop=True)
        parts: dict[str, dict[int, float]] = {"edit": {}, "paraphrase": {}}
        kept = {}
        for k, table in probes.groupby("k"):
            now = table.reset_index(drop=True)
            won, same = success(now), accuracy(now, before)
            for kind, values in parts.items():
                here = now["kind"] == kind
                values[int(k)] = 100 * float(record_means(won[here], now["case_id"][here]).mean())
            here = now["kind"] == "neighbor"
            kept[int(k)] = 100 * record_means(same[here], now["case_id"][here])
        records = pd.DataFrame(kept).reindex(before["case_id"].unique())
        return Curve(pd.Series(parts["edit"]), pd.Series(parts["paraphrase"]), records.mean(), records)

    def place(self, efficacy: float) -> float | None:
        """The (fractional) k at which an efficacy is first reached; None where it never is."""
        ks, values = self.efficacy.index.to_numpy(float), self.efficacy.to_numpy(float)
        reached = np.flatnonzero(values >= efficacy)
        if not len(reached):
            return None
        at = int(reached[0])
        if at == 0:
            return float(ks[0])
        low, high = values[at - 1], values[at]
        return float(ks[at - 1] + (efficacy - low) / (high - low) * (ks[at] - ks[at - 1]))

    def at(self, place: float) -> pd.Series:
        """(case_id) specificity per record at a fractional k."""
        low = int(np.floor(place))
        high = min(low + 1, int(self.records.columns.max()))
        share = place - low
        return (1 - share) * self.records[low] + share * self.records[high]

    def generalization_at(self, place: float) -> float:
        """Generalization in percent at a fractional k."""
        return float(np.interp(place, self.generalization.index, self.generalization))


def matched(curves: Mapping[str, Curve], reference: str, efficacies: tuple[float, ...] = (80, 90, 95)) -> pd.DataFrame:
    """One row per method and efficacy: k, specificity, generalization, and the paired difference to `reference`.

    difference and its se are over records both methods measured; NaN where a method never gets that far.
    """
    rows = []
    for efficacy in efficacies:
        base = curves[reference].place(efficacy)
        for name, curve in curves.items():
            place = curve.place(efficacy)
            row = {"method": name, "efficacy": efficacy, "k": place}
            if place is not None:
                own = curve.at(place)
                row |= {"specificity": float(own.mean()), "generalization": curve.generalization_at(place)}
                if base is not None:
                    gap = (own - curves[reference].at(base)).dropna()
                    row |= {"difference": float(gap.mean()), "se": standard_error(gap)}
            rows.append(row)
    columns = ["method", "efficacy", "k", "specificity", "generalization", "difference", "se"]
    return pd.DataFrame(rows).reindex(columns=columns)


def pooled(curves: list[Curve]) -> Curve:
    """Several trials of one method as one: records side by side, efficacies averaged by records.

    A trial that stopped earlier stays at its last row.
    """
    sizes = np.array([len(c.records) for c in curves], dtype=float)

    def mean(name: str) -> pd.Series:
        values = pd.concat([getattr(c, name) for c in curves], axis=1, ignore_index=True).ffill()
        return values.mul(sizes, axis=1).sum(axis=1, min_count=1) / values.notna().mul(sizes, axis=1).sum(axis=1)

    records = pd.concat([c.records for c in curves], keys=range(len(curves))).ffill(axis=1)
    return Curve(mean("efficacy"), mean("generalization"), records.mean(), records)


def stored_curve(trials: Sequence[Mapping[str, Any]]) -> Curve:
    """A method's curve from its trials as `scripts/measure_tradeoff.py` stores them."""
    curves = []
    for trial in trials:
        records = pd.DataFrame.from_dict(trial["records"], orient="index")
        efficacy, generalization = pd.Series(trial["efficacy"]), pd.Series(trial["generalization"])
        curves.append(Curve(efficacy, generalization, records.mean(), records))
    return pooled(curves)


@cache
def measured() -> dict[int, dict[str, Curve]]:
    """The bundled comparison: curves by number of records and method; empty where none was measured."""
    path = paths.assets() / "tradeoff.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {int(n): {name: stored_curve(trials) for name, trials in methods.items()} for n, methods in stored.items()}
