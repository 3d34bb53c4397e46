"""Specificity at matched efficacy, on probe tables small enough to check by hand; and its chart."""

from math import isnan, nan, sqrt

import pandas as pd
import pytest

from editing_core import charts
from editing_core.evaluation.tradeoff import Curve, matched, pooled


def probe(k, case, kind, won, choices=(1,), number=0):
    """One row of a probe table; won: whether the new object is likelier than the old one, None: nothing to compare."""
    return {
        "k": k,
        "case_id": case,
        "kind": kind,
        "number": number,
        "logp_new": -1.0 if won else -3.0,
        "logp_true": nan if won is None else -2.0,
        "hit_new": float(bool(won)),
        "hit_true": 1.0,
        "choices": list(choices),
    }


def course(*steps):
    """A probe table. steps: per k a dict from case to (edit won, paraphrases won, neighbors' first choices)."""
    rows = []
    for k, cases in enumerate(steps):
        for case, (edit, paraphrases, neighbors) in cases.items():
            rows.append(probe(k, case, "edit", edit))
            rows += [probe(k, case, "paraphrase", won, number=i) for i, won in enumerate(paraphrases)]
            rows += [probe(k, case, "neighbor", False, choices, i) for i, choices in enumerate(neighbors)]
    return pd.DataFrame(rows)


# Two records: "a" has two paraphrases and two neighbors, "b" one neighbor of two tokens and no paraphrase.
BEFORE = {"a": (False, (False, False), ((5,), (6,))), "b": (False, (), ((7, 8),))}
MIDDLE = {"a": (True, (True, False), ((5,), (6,))), "b": (False, (), ((7, 9),))}
AFTER = {"a": (True, (True, True), ((5,), (0,))), "b": (True, (), ((9, 9),))}
TABLE = course(BEFORE, MIDDLE, AFTER)


def curve(efficacy, records, generalization=None):
    """A curve from lists over k = 0, 1, ...; records: case -> list."""
    table = pd.DataFrame(records).T
    table.columns = range(table.shape[1])
    series = pd.Series(efficacy, dtype=float)
    other = series if generalization is None else pd.Series(generalization, dtype=float)
    return Curve(series, other, table.mean(), table)


def test_of_a_probe_table():
    found = Curve.of(TABLE)
    assert found.efficacy.to_dict() == {0: 0.0, 1: 50.0, 2: 100.0}
    assert found.generalization.to_dict() == {0: 0.0, 1: 50.0, 2: 100.0}
    assert found.records.to_dict("index") == {"a": {0: 100.0, 1: 100.0, 2: 50.0}, "b": {0: 100.0, 1: 50.0, 2: 0.0}}
    assert found.specificity.to_dict() == {0: 100.0, 1: 75.0, 2: 25.0}


def test_records_weigh_the_same_however_many_probes_they_have():
    table = course(
        {"a": (False, (False,), ((1,),)), "b": (False, (False,) * 3, ((1,),) * 4)},
        {"a": (True, (True,), ((1,),)), "b": (True, (True, False, False), ((1,), (2,), (2,), (2,)))},
    )
    found = Curve.of(table)
    assert found.generalization[1] == pytest.approx(100 * (1 + 1 / 3) / 2)
    assert found.specificity[1] == pytest.approx((100 + 25) / 2)


def test_of_a_table_in_another_order_of_rows_and_index():
    later_first = pd.concat([TABLE[TABLE["k"] == k] for k in (2, 0, 1)])
    found, wanted = Curve.of(later_first), Curve.of(TABLE)
    pd.testing.assert_series_equal(found.efficacy, wanted.efficacy)
    pd.testing.assert_frame_equal(found.records, wanted.records)


def test_old_objects_that_are_not_compared_leave_the_efficacy_open():
    found = Curve.of(course({"a": (None, (), ((1,),))}, {"a": (None, (), ((1,),))}))
    assert isnan(found.efficacy[1])
    assert found.place(80) is None


@pytest.mark.parametrize(
    ("efficacies", "wanted", "place"),
    [
        ((0, 50, 100), 75, 1.5),
        ((0, 50, 100), 50, 1.0),
        ((0, 50, 100), 60, 1.2),
        ((0, 50, 100), 0, 0.0),
        ((0, 100, 100), 90, 0.9),
        ((95, 96, 97), 90, 0.0),  # the unedited model is there already
        ((0, 80, 60, 90), 80, 1.0),  # reached first, lost, and reached again
        ((0, 70, 60, 90), 80, 2 + 2 / 3),
        ((0, 50, 89.9), 90, None),
    ],
)
def test_place_of_an_efficacy(efficacies, wanted, place):
    found = curve(efficacies, {"a": [100.0] * len(efficacies)}).place(wanted)
    assert found == (None if place is None else pytest.approx(place))


def test_values_between_two_iterations():
    own = curve((0, 50, 100), {"a": (100, 80, 40), "b": (100, 100, 0)}, generalization=(0, 20, 80))
    assert own.at(0.0).to_dict() == {"a": 100, "b": 100}
    assert own.at(1.0).to_dict() == {"a": 80, "b": 100}
    assert own.at(1.25).to_dict() == {"a": 70, "b": 75}
    assert own.at(2.0).to_dict() == {"a": 40, "b": 0}
    assert own.generalization_at(1.25) == pytest.approx(35)
    assert own.generalization_at(0) == 0


def test_matched_by_hand():
    """The reference gets to 80 % at k = 1.6, the slower method at k = 2; differences are paired by record."""
    base = curve((0, 50, 100), {"a": (100, 90, 40), "b": (100, 80, 60), "c": (100, 50, 0)}, (0, 30, 60))
    slow = curve((0, 20, 80), {"a": (100, 100, 90), "b": (100, 90, 70), "c": (100, 60, 20)}, (0, 10, 50))
    table = matched({"base": base, "slow": slow}, "base", (80, 90))
    assert list(table.columns) == ["method", "efficacy", "k", "specificity", "generalization", "difference", "se"]
    assert table[["method", "efficacy"]].to_numpy().tolist() == [
        ["base", 80],
        ["slow", 80],
        ["base", 90],
        ["slow", 90],
    ]
    first, second, third, never = (row for _, row in table.iterrows())
    own = {"a": 90 - 0.6 * 50, "b": 80 - 0.6 * 20, "c": 50 - 0.6 * 50}
    assert first["k"] == pytest.approx(1.6)
    assert first["specificity"] == pytest.approx(sum(own.values()) / 3)
    assert first["generalization"] == pytest.approx(48)
    assert (first["difference"], first["se"]) == (pytest.approx(0), pytest.approx(0))
    gaps = [90 - own["a"], 70 - own["b"], 20 - own["c"]]
    mean = sum(gaps) / 3
    error = sqrt(sum((g - mean) ** 2 for g in gaps) / 2) / sqrt(3)
    assert second["k"] == 2
    assert second["specificity"] == pytest.approx(60)
    assert second["difference"] == pytest.approx(mean)
    assert second["se"] == pytest.approx(error)
    assert error > 1
    assert third["k"] == pytest.approx(1.8)
    assert never[["k", "specificity", "generalization", "difference", "se"]].isna().all()


def test_matched_without_a_reference_that_gets_there():
    base = curve((0, 50), {"a": (100, 90), "b": (100, 90)})
    fast = curve((0, 100), {"a": (100, 60), "b": (100, 80)})
    row = matched({"base": base, "fast": fast}, "base", (80,)).iloc[1]
    assert row["specificity"] == pytest.approx(100 - 0.8 * 30)
    assert isnan(row["difference"])
    assert isnan(row["se"])


def test_matched_pairs_only_records_both_measured():
    base = curve((0, 100), {"a": (100, 50), "b": (100, 70), "c": (100, 0)})
    other = curve((0, 100), {"a": (100, 60), "b": (100, 90), "d": (100, 10)})
    row = matched({"base": base, "other": other}, "base", (100,)).iloc[1]
    assert row["difference"] == pytest.approx(15)
    assert row["se"] == pytest.approx(5)
    single = curve((0, 100), {"a": (100, 60)})
    row = matched({"base": base, "one": single}, "base", (100,)).iloc[1]
    assert row["difference"] == pytest.approx(10)
    assert pd.isna(row["se"])


def test_default_efficacies():
    own = curve((0, 100), {"a": (100, 50)})
    assert matched({"x": own}, "x")["efficacy"].tolist() == [80, 90, 95]


def test_pooled_trials():
    first = curve((0, 40), {1: (100, 80), 2: (100, 60)}, (0, 20))
    second = curve((0, 100), {1: (100, 20), 2: (100, 30), 3: (100, 40)}, (0, 70))
    both = pooled([first, second])
    assert both.efficacy.to_dict() == {0: 0, 1: pytest.approx((2 * 40 + 3 * 100) / 5)}
    assert both.generalization[1] == pytest.approx((2 * 20 + 3 * 70) / 5)
    assert both.specificity[1] == pytest.approx((80 + 60 + 20 + 30 + 40) / 5)
    assert len(both.records) == 5  # equal numbers in two trials are different records
    assert both.records.index.is_unique
    assert matched({"x": both}, "x", (70,)).iloc[0]["k"] == pytest.approx(70 / 76)


def test_one_trial_pooled_is_itself():
    own, alone = Curve.of(TABLE), pooled([Curve.of(TABLE)])
    assert alone.efficacy.to_dict() == own.efficacy.to_dict()
    assert alone.specificity.to_dict() == own.specificity.to_dict()
    assert matched({"x": alone}, "x", (80,)).equals(matched({"x": own}, "x", (80,)))


def test_pooled_trials_of_different_length():
    """A trial that stopped at k = 1 has nothing to say about k = 2."""
    short = curve((0, 100), {1: (100, 80)})
    long = curve((0, 50, 90), {1: (100, 60, 40)})
    both = pooled([short, long])
    assert both.efficacy[1] == pytest.approx(75)
    assert both.efficacy[2] >= 90  # of the one that is there, or the other carried on


def test_records_without_neighbors_count_where_they_were_measured():
    """Three records are edited, one of them has neighbors; by records the first trial weighs three."""
    first = Curve.of(course({c: (False, (), ((1,),) if c == 1 else ()) for c in (1, 2, 3)},
                            {c: (True, (), ((1,),) if c == 1 else ()) for c in (1, 2, 3)}))  # fmt: skip
    second = Curve.of(course({1: (False, (), ((1,),))}, {1: (False, (), ((1,),))}))
    assert len(first.records) == 3
    assert first.records[1].isna().sum() == 2
    assert pooled([first, second]).efficacy[1] == pytest.approx(75)


# --- the chart -------------------------------------------------------------------------------------------------------


def test_chart_has_a_line_per_method_with_k_at_its_points():
    slow = curve((0, 20, 80), {"a": (100, 100, 90)})
    figure = charts.tradeoff({"MEMIT": Curve.of(TABLE), "NA": slow, "NA, control": slow}, "By hand")
    assert [trace.name for trace in figure.data] == ["MEMIT", "NA", "NA, control"]
    first, second, control = figure.data
    assert (list(first.x), list(first.y)) == ([50.0, 100.0], [75.0, 25.0])
    assert (list(second.x), list(second.y)) == ([20.0, 80.0], [100.0, 90.0])
    for trace in figure.data:
        assert list(trace.text) == ["1", "2"]
        assert "text" in trace.mode
        assert "lines" in trace.mode
    assert (first.line.dash, second.line.dash, control.line.dash) == ("solid", "solid", "dot")
    assert (control.line.color, control.marker.symbol) == (second.line.color, second.marker.symbol)
    assert first.line.color != second.line.color
    assert first.marker.symbol != second.marker.symbol
    assert figure.layout.title.text == "By hand"
    assert "efficacy" in figure.layout.xaxis.title.text
    assert "specificity" in figure.layout.yaxis.title.text


def test_chart_of_many_methods_keeps_them_apart():
    figure = charts.tradeoff({f"<b>{n}": Curve.of(TABLE) for n in range(12)})
    looks = [(trace.line.color, trace.marker.symbol) for trace in figure.data]
    assert len(set(looks)) == len(looks) == 12
    assert all(trace.hovertemplate.startswith("&lt;b&gt;") for trace in figure.data)


def test_chart_without_methods_says_what_to_do():
    figure = charts.tradeoff({})
    assert not figure.data
    assert "Edit several facts" in figure.layout.annotations[0].text


@pytest.mark.parametrize(
    ("heights", "spaced"),
    [
        ([], []),
        ([0.5], [0.5]),
        ([0.1, 0.9], [0.1, 0.9]),
        ([0.5, 0.5, 0.5], [0.5, 0.6, 0.7]),
        ([0.55, 0.5], [0.6, 0.5]),  # the upper one gives way, wherever it stands
        ([0.0, 0.25, 0.05], [0.0, 0.25, 0.1]),
        ([0.3, 0.0, 0.05, 0.1], [0.3, 0.0, 0.1, 0.2]),
    ],
)
def test_labels_do_not_cover_each_other(heights, spaced):
    found = charts._spaced(heights, 0.1)
    assert found == pytest.approx(spaced)
