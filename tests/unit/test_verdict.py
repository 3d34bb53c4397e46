"""Every state of a verdict, from tables small enough to read."""

import math

import pandas as pd
import pytest

from editing_core.evaluation.verdict import COLLAPSE_FACTOR, judge, lost_neighbors


def row(kind, prompt, new, true, hit_new=0.0, hit_true=0.0, answer="?"):
    return {
        "kind": kind,
        "prompt": prompt,
        "target_new": "Rome",
        "target_true": "Paris",
        "p_new": new,
        "p_true": true,
        "logp_new": math.log(new),
        "logp_true": math.log(true),
        "hit_new": hit_new,
        "hit_true": hit_true,
        "rank_new": 1 if answer == "Rome" else 5,
        "answer": answer,
    }


BEFORE = pd.DataFrame(
    [
        row("edit", "The Louvre is in", 0.01, 0.9, hit_true=1.0, answer="Paris"),
        row("paraphrase", "Find the Louvre in", 0.01, 0.8, hit_true=1.0),
        row("neighbor", "The Eiffel tower is in", 0.02, 0.9, hit_true=1.0),
        row("neighbor", "Notre Dame is in", 0.02, 0.7, hit_true=1.0),
        row("neighbor", "Nobody knew this one", 0.3, 0.2, hit_true=0.0),
    ]
)


def after(edit=None, neighbors=None):
    """The table after a clean edit, with the edit row or some neighbors replaced."""
    now = BEFORE.copy()
    edit = edit or row("edit", "The Louvre is in", 0.95, 0.01, hit_new=1.0, answer="Rome")
    for number, values in {0: edit, **(neighbors or {})}.items():
        now.loc[number] = values
    return now


UNDER = row("edit", "The Louvre is in", 0.1, 0.6, answer="Paris")
PARTLY = row("edit", "The Louvre is in", 0.3, 0.1, hit_new=0.5, answer="Berlin")
LOST = row("neighbor", "The Eiffel tower is in", 0.8, 0.1, hit_new=1.0, hit_true=0.0)


def verdict(now, collapse=4.0, before=BEFORE):
    return judge(now, before, collapse, 4.0)


def test_edited():
    found = verdict(after())
    assert found.states == ("edited",)
    assert found.lost == ()
    assert "“Rome” is now the first answer with p = 0.95" in found.reason
    assert "all 3 neighbors kept their answer" in found.reason


def test_edited_without_neighbors_says_that_nothing_was_checked():
    alone = BEFORE["kind"] != "neighbor"
    found = verdict(after()[alone], before=BEFORE[alone])
    assert found.states == ("edited",)
    assert "no neighbors were given to check" in found.reason


def test_under_edit():
    found = verdict(after(UNDER))
    assert found.states == ("UnderEdit",)
    assert "The fact did not take: “Paris” (p = 0.6)" in found.reason


def test_a_tie_is_under_edit():
    assert verdict(after(row("edit", "x", 0.4, 0.4, hit_new=1.0))).states == ("UnderEdit",)


def test_under_edit_when_only_some_tokens_come_first():
    found = verdict(after(PARTLY))
    assert found.states == ("UnderEdit",)
    assert "took only partly" in found.reason
    assert "“Berlin” comes first" in found.reason


def test_over_edit_names_the_lost_neighbor():
    found = verdict(after(neighbors={2: LOST}))
    assert found.states == ("OverEdit",)
    assert found.lost == ("The Eiffel tower is in",)
    assert "1 of 3 neighbors changed: “The Eiffel tower is in”." in found.reason
    assert found.reason.startswith("“Rome” is now the first answer")


def test_both():
    found = verdict(after(UNDER, {2: LOST}))
    assert found.states == ("UnderEdit", "OverEdit")
    assert found.label == "UnderEdit and OverEdit"
    assert "did not take" in found.reason
    assert "1 of 3 neighbors changed" in found.reason


@pytest.mark.parametrize("collapse", [4.0 * COLLAPSE_FACTOR, 1e9, float("inf"), float("nan")])
def test_collapsed_goes_before_everything(collapse):
    found = verdict(after(UNDER, {2: LOST}), collapse)
    assert found.states == ("collapsed",)
    assert "from 4 to" in found.reason


def test_just_below_the_factor_is_not_collapsed():
    assert verdict(after(), 4.0 * COLLAPSE_FACTOR - 1e-6).states == ("edited",)


def test_undecidable_when_the_new_object_was_already_the_answer():
    before = BEFORE.copy()
    before.loc[0] = row("edit", "The Louvre is in", 0.9, 0.01, hit_new=1.0, answer="Rome")
    found = verdict(after(), before=before)
    assert found.states == ("undecidable",)
    assert "already answered “Rome” before the edit" in found.reason


@pytest.mark.parametrize(
    ("number", "values", "lost"),
    [
        (2, row("neighbor", "a", 0.02, 0.9, hit_true=1.0), False),
        (2, row("neighbor", "a", 0.1, 0.3, hit_true=0.0), True),  # another answer comes first
        (2, row("neighbor", "a", 0.5, 0.5, hit_true=1.0), True),  # the new object is as likely
        (4, row("neighbor", "a", 0.9, 0.1, hit_true=0.0), False),  # was wrong before
        (1, row("paraphrase", "a", 0.9, 0.1, hit_true=0.0), False),  # no neighbor
    ],
)
def test_which_neighbors_are_lost(number, values, lost):
    assert lost_neighbors(after(neighbors={number: values}), BEFORE)[number] == lost


def test_more_than_three_lost_are_counted():
    rows = [BEFORE.loc[0].to_dict(), *(row("neighbor", f"fact {i}", 0.02, 0.9, hit_true=1.0) for i in range(5))]
    before = pd.DataFrame(rows)
    now = before.copy()
    now.loc[0] = after().loc[0]
    for i in range(1, 6):
        now.loc[i] = row("neighbor", f"fact {i - 1}", 0.9, 0.05)
    found = verdict(now, before=before)
    assert len(found.lost) == 5
    assert "5 of 5 neighbors changed" in found.reason
    assert "and 2 more" in found.reason
