"""Tables of cases: the same verdicts as one by one, narrowed, ordered and counted."""

import math

import pandas as pd
import pytest

from editing_core.errors import BadRequest
from editing_core.evaluation.cases import STATES, case_rows, filter_cases, sort_cases, underedit_counts
from editing_core.evaluation.verdict import judge, judge_all

NAN = float("nan")


def probe(case, kind, prompt, new, true, **more):
    """A probe row; without an old object where true is NaN."""
    row = {"case_id": case, "kind": kind, "prompt": prompt, "target_new": "Rome", "target_true": "Paris"}
    row |= {"p_new": new, "p_true": true, "logp_new": math.log(new), "logp_true": math.log(true)}
    row |= {"rank_new": 3, "hit_new": 0.0, "hit_true": 0.0, "answer": "Berlin"}
    return row | more | ({"target_true": "", "hit_true": NAN} if math.isnan(true) else {})


def edit(case, new, true, hit_new=1.0, rank=1):
    return probe(case, "edit", f"{case} is in", new, true, hit_new=hit_new, rank_new=rank)


def neighbor(case, number, new, true, hit_true=1.0):
    return probe(case, "neighbor", f"friend {number} of {case} is in", new, true, hit_true=hit_true)


def unedited(case, neighbors, true=0.9, hit_new=0.0, rank=4):
    rows = [edit(case, 0.01, true, hit_new, rank), probe(case, "paraphrase", f"find {case} in", 0.01, true)]
    return rows + [neighbor(case, i, 0.02, 0.8) for i in range(neighbors)]


def after(case, edit_row, *neighbors):
    return [edit_row, probe(case, "paraphrase", f"find {case} in", 0.3, 0.1), *neighbors]


BEFORE = [
    *unedited("louvre", 3),
    *unedited(7, 1),
    *unedited("opera", 0),
    *unedited("tower", 2),
    *unedited("known", 1, hit_new=1.0, rank=1),
    *unedited("zsre", 1, true=NAN),
    *unedited("missed", 0, true=NAN),
]
NOW = [
    *after(
        "louvre",
        edit("louvre", 0.9, 0.05),
        neighbor("louvre", 0, 0.5, 0.1),  # prefers the new object
        neighbor("louvre", 1, 0.02, 0.7),
        neighbor("louvre", 2, 0.02, 0.7, hit_true=0.0),  # another answer comes first
    ),
    *after(7, edit(7, 0.2, 0.6, hit_new=0.0, rank=2), neighbor(7, 0, 0.02, 0.7)),
    *after("opera", edit("opera", 0.95, 0.01)),
    *after("tower", edit("tower", 0.1, 0.7, 0.0, 5), neighbor("tower", 0, 0.7, 0.1), neighbor("tower", 1, 0.1, 0.7)),
    *after("known", edit("known", 0.99, 0.001), neighbor("known", 0, 0.9, 0.1)),
    *after("zsre", edit("zsre", 0.8, NAN), neighbor("zsre", 0, 0.02, 0.9)),
    *after("missed", edit("missed", 0.1, NAN, hit_new=0.5, rank=1)),
]
WANTED = {
    "louvre": ("OverEdit", 2, 3),
    7: ("UnderEdit", 0, 1),
    "opera": ("edited", 0, 0),
    "tower": ("UnderEdit and OverEdit", 1, 2),
    "known": ("undecidable", 0, 1),
    "zsre": ("edited", 0, 1),
    "missed": ("UnderEdit", 0, 0),
}
BROKEN = [1.0, 9.99, 10.0, float("inf"), NAN]


@pytest.fixture
def tables():
    return pd.DataFrame(NOW), pd.DataFrame(BEFORE)


@pytest.mark.parametrize("collapse", BROKEN)
def test_together_is_one_by_one(tables, collapse):
    now, before = tables
    together = judge_all(now, before, collapse, 1.0)
    assert list(together) == list(WANTED)
    for case, verdict in together.items():
        mine = now["case_id"] == case
        assert verdict == judge(now[mine], before[mine], collapse, 1.0)
        expected = WANTED[case][0] if collapse < 10 else "collapsed"
        assert verdict.label == expected
        assert set(verdict.states) <= set(STATES)


def test_together_does_not_look_at_the_index(tables):
    now, before = tables
    shuffled = now.set_index(pd.Index(range(100, 100 + len(now))))
    assert judge_all(shuffled, before, 1.0, 1.0) == judge_all(now, before, 1.0, 1.0)


def test_rows_of_cases(tables):
    now, before = tables
    rows, verdicts = case_rows(2, now, before, 1.0, 1.0)
    assert verdicts == judge_all(now, before, 1.0, 1.0)
    assert [row["case_id"] for row in rows] == list(WANTED)
    for row in rows:
        assert (row["state"], row["lost"], row["neighbors"]) == WANTED[row["case_id"]]
        assert row["k"] == 2
        assert row["reason"] == verdicts[row["case_id"]].reason
        assert row["prompt"] == f"{row['case_id']} is in"
    assert (rows[0]["p_new"], rows[0]["p_true"], rows[0]["rank_new"]) == (0.9, 0.05, 1)
    assert (rows[5]["target_true"], math.isnan(rows[5]["p_true"])) == ("", True)
    assert verdicts["louvre"].lost == ("friend 0 of louvre is in", "friend 2 of louvre is in")


def test_without_an_old_object_only_the_new_one_decides(tables):
    now, before = tables
    found = judge_all(now, before, 1.0, 1.0)
    assert "“Rome” is now the first answer with p = 0.8" in found["zsre"].reason
    assert "nan" not in found["missed"].reason
    assert "took only partly" in found["missed"].reason


def test_without_an_old_object_none_is_named(tables):
    assert "“”" not in judge_all(*tables, 1.0, 1.0)["missed"].reason


@pytest.fixture
def cases(tables):
    """Iteration 1 as above; in iteration 2 everything has turned out well but for `opera`."""
    now, before = tables
    better = now.copy()
    some = (better["kind"] == "edit") & (better["case_id"] != "opera")
    better.loc[some, ["p_new", "hit_new", "rank_new"]] = [0.95, 1.0, 1]
    better.loc[(better["kind"] == "edit") & (better["case_id"] == "opera"), ["p_new", "hit_new"]] = [0.001, 0.0]
    neighbors = better["kind"] == "neighbor"
    better.loc[neighbors, ["logp_new", "hit_true"]] = [-9.0, 1.0]
    return pd.DataFrame([row for k, t in enumerate((now, better), 1) for row in case_rows(k, t, before, 1.0, 1.0)[0]])


def ids(cases, **how):
    return filter_cases(cases, **how)["case_id"].tolist()


def test_filter(cases):
    assert len(filter_cases(cases)) == 2 * len(WANTED)
    assert ids(cases, k=1) == list(WANTED)
    assert ids(cases, k=1, states=["UnderEdit"]) == [7, "tower", "missed"]
    assert ids(cases, k=1, states=["OverEdit"]) == ["louvre", "tower"]
    assert ids(cases, k=1, states=["OverEdit", "edited"]) == ["louvre", "opera", "tower", "zsre"]
    assert ids(cases, k=2, states=["UnderEdit"]) == ["opera"]
    assert ids(cases, k=1, text="  TOWER ") == ["tower"]
    assert ids(cases, k=1, text="paris") == ["louvre", 7, "opera", "tower", "known"]
    assert ids(cases, k=1, states=["edited"], text="(") == []  # no pattern
    assert ids(cases, k=3) == []
    assert filter_cases(cases, k=2).index.tolist() == list(range(len(WANTED)))


def test_filter_of_nothing(cases):
    assert ids(cases, k=3, states=["edited"], text="Rome") == []


def test_filter_leaves_the_table_alone(cases):
    before = cases.copy()
    filter_cases(cases, 1, ["edited"], "rome")
    sort_cases(cases, "p_new")
    underedit_counts(cases)
    pd.testing.assert_frame_equal(cases, before)


def test_sort(cases):
    first = filter_cases(cases, k=1)
    assert sort_cases(first, "p_new")["case_id"].tolist() == ["tower", "missed", 7, "zsre", "louvre", "opera", "known"]
    down = sort_cases(first, "lost", descending=True)
    # Equal ones keep their order, also downwards.
    assert down["case_id"].tolist() == ["louvre", "tower", 7, "opera", "known", "zsre", "missed"]
    assert sort_cases(first, "p_true")["case_id"].tolist()[-2:] == ["zsre", "missed"]
    assert sort_cases(first, "p_true", descending=True)["case_id"].tolist()[-2:] == ["zsre", "missed"]
    assert down.index.tolist() == list(range(len(WANTED)))
    with pytest.raises(BadRequest, match="Cases have no column 'size'; sort by one of k, case_id, prompt"):
        sort_cases(first, "size")


def test_sort_by_case_id_of_both_kinds(cases):
    assert len(sort_cases(cases, "case_id")) == len(cases)


def test_underedit_counts_now_and_in_the_first_cohort(cases):
    """Of the three under-edited after iteration 1 none is left; `opera` is under-edited only later."""
    counts = underedit_counts(cases)
    assert counts.to_dict("list") == {"k": [1, 2], "underedit_now": [3, 1], "underedit_cohort": [3, 0]}


@pytest.mark.parametrize(
    ("states", "now", "cohort"),
    [
        ({1: ["UnderEdit", "edited"], 2: ["UnderEdit and OverEdit", "UnderEdit"]}, [1, 2], [1, 1]),
        ({1: ["edited", "OverEdit"], 2: ["UnderEdit", "edited"]}, [0, 1], [0, 0]),
        (
            {1: ["UnderEdit", "UnderEdit"], 2: ["collapsed", "undecidable"], 3: ["UnderEdit", "edited"]},
            [2, 0, 1],
            [2, 0, 1],
        ),
        ({2: ["UnderEdit", "edited"]}, [1], [0]),
    ],
)
def test_underedit_counts_by_hand(states, now, cohort):
    rows = [{"k": k, "case_id": ["a", 2][i], "state": s} for k, some in states.items() for i, s in enumerate(some)]
    counts = underedit_counts(pd.DataFrame(rows[::-1]))
    assert counts["k"].tolist() == sorted(states)
    assert counts["underedit_now"].tolist() == now
    assert counts["underedit_cohort"].tolist() == cohort
