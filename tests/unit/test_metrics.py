"""Metrics on tables whose values were worked out by hand."""

import math

import pandas as pd
import pytest

from editing_core.conventions import Conventions
from editing_core.errors import BadSetting
from editing_core.evaluation.metrics import (
    CARDS,
    accuracy,
    card,
    generality,
    half_width,
    harmonic_mean,
    locality,
    over_trials,
    per_token,
    percent,
    portability,
    record_means,
    reliability,
    specificity_gold,
    standard_error,
    success,
    summarize,
)

PARTS = [f"{part}_{kind}" for part in ("efficacy", "generalization", "specificity") for kind in ("accuracy", "success")]


def probe(kind, case=0, new=0.5, true=0.25, hit_new=1.0, choices=(1,), **columns):
    """One row of a probe table, as far as metrics read it; true=None is a probe without an old object."""
    return {
        "case_id": case,
        "kind": kind,
        "number": 0,
        "logp_new": math.log(new),
        "logp_true": math.nan if true is None else math.log(true),
        "hit_new": hit_new,
        "hit_true": 0.0,
        "choices": list(choices),
        **columns,
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
    columns = summarize(rows, rows, 1)
    assert set(columns) - {f"{part}_se" for part in PARTS} <= set(CARDS)
    for its in (*CARDS.values(), *map(card, columns)):
        assert its.label
        assert its.definition
        assert its.better in ("higher", "lower", "")
        assert its.range
        assert its.source.startswith("arXiv:")


def test_the_card_of_an_error_names_its_metric():
    assert CARDS["efficacy_success"].label in card("efficacy_success_se").definition
    assert card("efficacy_success") is CARDS["efficacy_success"]
    with pytest.raises(KeyError):
        card("no_such_metric_se")


def test_harmonic_mean_of_nothing_is_missing():
    assert harmonic_mean([]) is None


def test_harmonic_mean_may_drop_zeros_like_published_scores():
    assert harmonic_mean([0.0, 0.0, 67.0], drop_zeros=True) == pytest.approx(67)
    assert harmonic_mean([0.0, 50.0, 100.0], drop_zeros=True) == pytest.approx(2 / 0.03)
    assert harmonic_mean([0.0, 0.0, 0.0], drop_zeros=True) == 0.0
    assert harmonic_mean([0.0, None, 67.0], drop_zeros=True) is None


def test_without_an_old_object_success_is_blank_not_lost():
    rows = table(probe("edit", true=None), probe("paraphrase", true=None), probe("neighbor", true=None))
    assert success(rows).isna().all()
    row = summarize(rows, rows, 1)
    assert [row[f"{part}_success"] for part in ("efficacy", "generalization", "specificity", "score")] == [None] * 4
    assert row["efficacy_accuracy"] == 100.0


def test_success_drops_only_the_probes_without_an_old_object():
    rows = table(
        probe("edit", 1, new=0.5, true=None),
        probe("edit", 2, new=0.5, true=0.1),
        probe("edit", 3, new=0.1, true=0.5),
    )
    assert summarize(rows, rows, 1)["efficacy_success"] == pytest.approx(50)  # of records 2 and 3; 33 with 1 as lost


def test_a_broken_model_fails_instead_of_being_dropped():
    rows = table(probe("edit", new=0.5, true=0.1), probe("neighbor", new=0.5, true=0.1))
    rows["logp_new"] = math.nan
    assert success(rows).tolist() == [0.0, 0.0]


def test_other_kinds_have_no_success():
    rows = table(probe("portability", new=0.9, true=0.1), probe("locality", new=0.9, true=0.1))
    assert success(rows).isna().all()


def test_accuracy_of_all_tokens():
    now = table(
        probe("edit", hit_new=2 / 3, choices=(4, 5, 6)),
        probe("edit", hit_new=1.0, choices=(4, 5, 6)),
        probe("neighbor", choices=(7, 8, 9)),
        probe("neighbor", choices=(7, 8, 9)),
        probe("locality", choices=(7, 8)),
        probe("portability", hit_new=1.0, hit_true=0.5, choices=(1, 2)),
        probe("portability", hit_new=0.0, hit_true=1.0, choices=(1, 2)),
    )
    before = now.assign(choices=[[0] * 3, [0] * 3, [7, 8, 9], [7, 0, 9], [0, 8], [0, 0], [0, 0]])
    assert accuracy(now, before).tolist() == pytest.approx([2 / 3, 1, 1, 2 / 3, 0.5, 0.5, 1])
    assert accuracy(now, before, "all_tokens").tolist() == [0, 1, 1, 0, 0, 0, 1]


def test_greedy_match_compares_what_was_said_freely():
    now = table(probe("edit", hit_new=2 / 3, choices=(4, 0, 6)), probe("neighbor"), probe("portability", hit_true=1.0))
    now = now.assign(labels=[[4, 5, 6], [7, 8], [1, 2]], generated=[[4, 0, 0], [7, 9], [1, 2]])
    before = now.assign(generated=[[0, 0, 0], [7, 8], [0, 0]])
    assert accuracy(now, before, "greedy_match").tolist() == pytest.approx([1 / 3, 0.5, 1])


def test_other_definitions_of_accuracy_are_refused():
    rows = table(probe("edit"))
    with pytest.raises(BadSetting, match="token_mean, all_tokens, greedy_match"):
        accuracy(rows, rows, "exact")
    with pytest.raises(BadSetting, match="needs generated text"):
        accuracy(rows, rows, "greedy_match")


def test_standard_error_by_hand():
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)  # deviation sqrt(2), over sqrt(2)
    assert standard_error([0.0, 0.0, 100.0, 100.0]) == pytest.approx(math.sqrt(10000 / 3) / 2)
    assert half_width([1.0, 3.0]) == pytest.approx(1.96)
    assert standard_error(pd.Series([1.0, math.nan, 3.0])) == pytest.approx(1.0)


@pytest.mark.parametrize("values", [[], [5.0], [5.0, math.nan]])
def test_one_value_has_no_standard_error(values):
    assert standard_error(values) is None
    assert half_width(values) is None


def test_errors_of_a_summary_are_over_records_not_probes():
    rows = table(
        probe("edit", 1, hit_new=1.0),
        probe("edit", 2, hit_new=0.0),
        *(probe("paraphrase", 1, hit_new=1.0) for _ in range(9)),
        probe("paraphrase", 2, hit_new=0.0),
        probe("neighbor", 1),
    )
    row = summarize(rows, rows, 1)
    assert row["efficacy_accuracy_se"] == pytest.approx(50)  # of 100 and 0
    assert row["generalization_accuracy_se"] == pytest.approx(50)  # 10 if every probe counted
    assert row["efficacy_success_se"] == 0.0
    assert row["specificity_accuracy_se"] is None  # of one record
    assert summarize(rows, rows, 0)["specificity_accuracy_se"] is None


def test_conventions_of_neighbors_and_zeros():
    now = table(
        probe("edit", hit_new=0.5),
        probe("paraphrase", hit_new=0.0),
        probe("neighbor", choices=(7, 8)),
        probe("neighbor", choices=(7, 8)),
    )
    before = now.assign(choices=[[1], [1], [7, 0], [7, 8]])
    clean = summarize(now, before, 1)
    assert (clean["specificity_accuracy"], clean["score_accuracy"]) == (75.0, 0.0)
    strict = summarize(now, before, 1, Conventions(neighbor_accuracy="all_tokens"))
    assert (strict["specificity_accuracy"], strict["efficacy_accuracy"]) == (50.0, 50.0)
    assert strict["score_accuracy"] == 0.0
    dropped = summarize(now, before, 1, Conventions(zeros="dropped"))
    assert dropped["score_accuracy"] == pytest.approx(60)  # of 50 and 75


def test_specificity_gold_asks_for_the_truth_not_for_sameness():
    before = table(probe("neighbor", 1, choices=(5,)), probe("neighbor", 2, choices=(3, 4)))
    now = table(
        probe("edit", 1, hit_true=1.0),
        probe("neighbor", 1, hit_true=0.0, choices=(5,)),  # as wrong as before
        probe("neighbor", 2, hit_true=0.5, choices=(3, 9)),
    )
    assert specificity_gold(now) == pytest.approx(25)
    assert summarize(now.iloc[1:], before, 1)["specificity_gold"] == pytest.approx(25)
    assert specificity_gold(table(probe("edit"))) is None


def test_locality_is_by_family_then_by_record():
    now = table(
        probe("edit", 1),
        probe("neighbor", 1, choices=(1,), family=""),
        probe("neighbor", 1, choices=(2,), family=""),
        probe("locality", 1, choices=(3, 4), family="Forgetfulness"),
        probe("locality", 1, choices=(5,), family="Relation_Specificity"),
        probe("locality", 1, choices=(6,), family="Relation_Specificity"),
        probe("locality", 1, choices=(7,), family="Relation_Specificity"),
        probe("locality", 1, choices=(8,), family="Relation_Specificity"),
        probe("neighbor", 2, choices=(9,), family=""),
        probe("edit", 3),
    )
    before = now.assign(choices=[[0], [1], [0], [3, 0], [5], [6], [7], [0], [9], [0]])
    # Record 1: mean of 1/2, 1/2 and 3/4; record 2: 1; record 3 has none.
    assert locality(now, before) == pytest.approx(100 * (7 / 12 + 1) / 2)
    # Without families: neighbors 1/2, locality 3.5/5.
    assert locality(now.drop(columns="family"), before) == pytest.approx(100 * (0.6 + 1) / 2)
    assert locality(now.assign(family=[f or None for f in now["family"]]), before) == pytest.approx(
        100 * (7 / 12 + 1) / 2
    )
    assert locality(table(probe("edit")), table(probe("edit"))) is None


def test_portability_is_by_family_then_by_record():
    rows = table(
        probe("edit", 1, hit_true=1.0, family=""),
        probe("portability", 1, hit_new=1.0, hit_true=0.5, family="Reasoning"),
        probe("portability", 1, hit_new=1.0, hit_true=0.0, family="Reasoning"),
        probe("portability", 1, hit_new=1.0, hit_true=0.0, family="Reasoning"),
        probe("portability", 1, hit_new=1.0, hit_true=0.5, family="Subject_Aliasing"),
        probe("portability", 2, hit_new=0.0, hit_true=1.0, family="Reasoning"),
        probe("edit", 3, family=""),
    )
    assert portability(rows) == pytest.approx(100 * ((1 / 6 + 1 / 2) / 2 + 1) / 2)
    assert portability(table(probe("edit"))) is None


def test_knowedit_columns_only_where_something_asks_for_them():
    plain = table(probe("edit", 1, hit_new=0.5), probe("paraphrase", 1), probe("neighbor", 1))
    names = ["reliability", "generality", "locality", "portability"]
    assert not set(names) & set(summarize(plain, plain, 1))
    rows = table(probe("edit", 1, hit_new=0.5), probe("edit", 2), probe("paraphrase", 1), probe("locality", 1))
    row = summarize(rows, rows, 1)
    assert [row[name] for name in names] == [75.0, 100.0, 100.0, None]
    assert (reliability(rows), generality(rows)) == (75.0, 100.0)
    assert summarize(rows, rows, 0)["locality"] is None
    asked = table(probe("edit", 1), probe("portability", 1, hit_true=1.0))
    assert [summarize(asked, asked, 1)[name] for name in names] == [100.0, None, None, 100.0]


def test_tokens_one_by_one():
    rows = table(
        probe("edit", 1, choices=(4, 5), labels=[4, 6]),
        probe("neighbor", 2, choices=(7,), labels=[7], number=3),
    )
    tokens = per_token(rows)
    assert tokens.to_dict("list") == {
        "case_id": [1, 1, 2],
        "kind": ["edit", "edit", "neighbor"],
        "number": [0, 0, 3],
        "position": [0, 1, 0],
        "label": [4, 6, 7],
        "choice": [4, 5, 7],
        "right": [True, False, True],
    }


def test_tokens_without_labels():
    rows = table(probe("edit", 1, choices=(4, 5)))
    tokens = per_token(rows)
    assert tokens["choice"].tolist() == [4, 5]
    assert tokens[["label", "right"]].isna().all(axis=None)
    assert list(per_token(rows.iloc[:0]).columns) == list(tokens.columns)
    assert per_token(rows.iloc[:0]).empty


def trial(*values, metric="efficacy_accuracy"):
    return pd.DataFrame({"k": range(len(values)), metric: list(values)})


def test_over_trials():
    tables = [trial(0.0, 50.0, 80.0), trial(10.0, 70.0), trial(None, 90.0)]
    rows = over_trials(tables).set_index("k")
    assert set(rows["metric"]) == {"efficacy_accuracy"}
    assert rows["n"].tolist() == [2, 3, 1]
    assert rows["mean"].tolist() == pytest.approx([5, 70, 80])
    assert rows["se"][0] == pytest.approx(5)
    assert rows["se"][1] == pytest.approx(20 / math.sqrt(3))
    assert math.isnan(rows["se"][2])
    assert (rows["min"][1], rows["max"][1]) == (50, 90)


def test_over_trials_carrying_the_last_row_of_those_that_stopped():
    rows = over_trials([trial(0.0, 50.0, 80.0), trial(10.0, 70.0)], carry_forward=True).set_index("k")
    assert rows["n"].tolist() == [2, 2, 2]
    assert rows["mean"].tolist() == pytest.approx([5, 60, 75])
    assert rows["min"][2] == 70


def test_over_trials_takes_the_metrics_that_are_there():
    mixed = trial(1.0, 2.0).assign(collapse_ppl=[5.0, 7.0], efficacy_accuracy_se=[1.0, 1.0], specificity_accuracy=None)
    rows = over_trials([mixed, trial(3.0, 4.0)])
    assert list(zip(rows["k"], rows["metric"], rows["n"], strict=True)) == [
        (0, "efficacy_accuracy", 2),
        (0, "collapse_ppl", 1),
        (1, "efficacy_accuracy", 2),
        (1, "collapse_ppl", 1),
    ]


@pytest.mark.parametrize("tables", [[], [trial()]])
def test_over_no_trials(tables):
    rows = over_trials(tables, carry_forward=True)
    assert rows.empty
    assert list(rows.columns) == ["k", "metric", "n", "mean", "se", "min", "max"]
