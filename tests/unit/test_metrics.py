"""Metrics on tables whose values were worked out by hand."""

import math

import pandas as pd
import pytest

from editing_core.evaluation.metrics import (
    CARDS,
    accuracy,
    harmonic_mean,
    percent,
    record_means,
    success,
    summarize,
)


def probe(kind, case=0, new=0.5, true=0.25, hit_new=1.0, choices=(1,)):
    """One row of a probe table, as far as metrics read it."""
    return {
        "case_id": case,
        "kind": kind,
        "logp_new": math.log(new),
        "logp_true": math.log(true),
        "hit_new": hit_new,
        "choices": list(choices),
    }


def table(*rows):
    return pd.DataFrame(list(rows))


def test_harmonic_mean():
    assert harmonic_mean([100.0, 50.0, 25.0]) == pytest.approx(3 / (0.01 + 0.02 + 0.04))
    assert harmonic_mean([80.0]) == pytest.approx(80)


def test_harmonic_mean_with_a_zero_component_is_zero():
    assert harmonic_mean([100.0, 0.0, 100.0]) == 0.0


def test_harmonic_mean_with_a_missing_component_is_missing():
    assert harmonic_mean([100.0, None, 0.0]) is None


def test_record_means_weigh_records_not_probes():
    values, cases = pd.Series([1.0, 0.0, 0.0, 0.0]), pd.Series(["a", "b", "b", "b"])
    assert record_means(values, cases).to_dict() == {"a": 1.0, "b": 0.0}
    assert percent(values, cases) == 50.0  # 25 if every probe weighed the same


def test_percent_without_probes():
    assert percent(pd.Series([], dtype=float), pd.Series([], dtype=object)) is None


def test_success_turns_around_for_neighbors_and_is_strict():
    rows = table(
        probe("edit", new=0.5, true=0.25),
        probe("edit", new=0.25, true=0.25),  # a tie is no success
        probe("paraphrase", new=0.1, true=0.2),
        probe("neighbor", new=0.1, true=0.2),
        probe("neighbor", new=0.2, true=0.2),
        probe("neighbor", new=0.4, true=0.2),
    )
    assert success(rows).tolist() == [True, False, False, True, False, False]


def test_accuracy_counts_tokens_and_compares_neighbors_with_before():
    now = table(
        probe("edit", hit_new=2 / 3, choices=(4, 5, 6)),
        probe("paraphrase", hit_new=0.5, choices=(4, 5)),
        probe("neighbor", hit_new=0.0, choices=(7, 8, 9)),
        probe("neighbor", hit_new=1.0, choices=(7, 8, 9, 1)),
    )
    before = table(
        probe("edit", choices=(1, 1, 1)),
        probe("paraphrase", choices=(1, 1)),
        probe("neighbor", choices=(7, 0, 9)),
        probe("neighbor", choices=(0, 8, 0, 0)),
    )
    assert accuracy(now, before).tolist() == pytest.approx([2 / 3, 0.5, 2 / 3, 0.25])


def test_summarize_two_records():
    before = table(
        probe("edit", 1, choices=(0,)),
        probe("paraphrase", 1, choices=(0,)),
        probe("neighbor", 1, choices=(3,)),
        probe("neighbor", 1, choices=(4,)),
        probe("edit", 2, choices=(0, 0)),
        probe("neighbor", 2, choices=(5,)),
    )
    now = table(
        probe("edit", 1, 0.9, 0.05, 1.0, (1,)),
        probe("paraphrase", 1, 0.1, 0.2, 0.0, (0,)),
        probe("neighbor", 1, 0.1, 0.6, 0.0, (3,)),
        probe("neighbor", 1, 0.6, 0.1, 1.0, (1,)),
        probe("edit", 2, 0.3, 0.4, 0.5, (1, 9)),
        probe("neighbor", 2, 0.1, 0.6, 0.0, (5,)),
    )
    row = summarize(now, before, 1)
    assert row["efficacy_accuracy"] == pytest.approx(75)  # (1 + 1/2) / 2
    assert row["efficacy_success"] == pytest.approx(50)
    assert row["generalization_accuracy"] == 0.0  # record 2 has no paraphrase and does not count
    assert row["generalization_success"] == 0.0
    assert row["specificity_accuracy"] == pytest.approx(75)  # (1/2 + 1) / 2
    assert row["specificity_success"] == pytest.approx(75)
    assert row["score_accuracy"] == 0.0
    assert row["score_success"] == 0.0


def test_summarize_score_is_the_harmonic_mean():
    before = table(*(probe(kind, choices=(3,)) for kind in ("edit", "paraphrase", "paraphrase", "neighbor")))
    now = table(
        probe("edit", new=0.9, true=0.1, hit_new=1.0),
        probe("paraphrase", new=0.9, true=0.1, hit_new=1.0),
        probe("paraphrase", new=0.1, true=0.9, hit_new=0.0),
        probe("neighbor", new=0.1, true=0.9, choices=(3,)),
    )
    row = summarize(now, before, 2)
    assert row["score_accuracy"] == pytest.approx(75)  # of 100, 50, 100
    assert row["score_success"] == pytest.approx(75)


def test_unedited_specificity_is_blank_and_so_is_the_score():
    rows = table(*(probe(kind) for kind in ("edit", "paraphrase", "neighbor")))
    row = summarize(rows, rows, 0)
    assert row["specificity_accuracy"] is None
    assert row["score_accuracy"] is None
    assert row["specificity_success"] == 0.0
    assert summarize(rows, rows, 1)["specificity_accuracy"] == 100.0


def test_without_probes_parts_and_score_are_missing():
    rows = table(probe("edit"))
    row = summarize(rows, rows, 1)
    assert row["efficacy_accuracy"] == 100.0
    missing = ("generalization_accuracy", "generalization_success", "specificity_accuracy", "specificity_success")
    assert [row[name] for name in (*missing, "score_accuracy", "score_success")] == [None] * 6


def test_every_column_has_a_card():
    rows = table(probe("edit"))
    assert set(summarize(rows, rows, 1)) <= set(CARDS)
    assert all(card.label and card.definition and card.better in ("higher", "lower", "") for card in CARDS.values())
