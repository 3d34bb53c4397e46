"""Measurements of unedited models: found again bit by bit, and never where anything differs."""

import os
from dataclasses import replace

import pandas as pd
import pytest
import torch

from editing_core.conventions import CONVENTIONS
from editing_core.evaluation import unedited as module
from editing_core.evaluation.evaluator import Evaluator
from editing_core.evaluation.unedited import Unedited
from editing_core.models.delta import Dense, WeightDelta
from editing_core.types import EditRequest, Probe
from tests.conftest import tiny_model

REQUESTS = (
    EditRequest("Mary Walker", "{} works in", "London", "Rome", case_id="7", paraphrases=("Mary Walker lives in",)),
    EditRequest("Paris", "{} is in", "the city of Rome", "France", case_id=8, neighbors=(Probe("Rome is", "it"),)),
)


class Counting(Evaluator):
    """Counts how often it really measures."""

    measured = 0

    def score(self, lm, requests):
        Counting.measured += 1
        return super().score(lm, requests)

    def collapse(self, lm):
        Counting.measured += 1
        return super().collapse(lm)


@pytest.fixture
def lm():
    found = tiny_model("gpt2")
    found.revision = "1234abc"
    return found


@pytest.fixture
def evaluator(tmp_path):
    Counting.measured = 0
    return Counting(("A text of some words.", "Another text."), unedited=Unedited(tmp_path))


def both(evaluator, lm, requests=REQUESTS):
    return evaluator.score_unedited(lm, requests), evaluator.collapse_unedited(lm)


@pytest.mark.parametrize("conventions", CONVENTIONS.values(), ids=CONVENTIONS)
def test_a_second_time_nothing_is_measured(lm, evaluator, conventions, tmp_path):
    evaluator = replace(evaluator, conventions=replace(conventions, accuracy="greedy_match"))
    first, ppl = both(evaluator, lm)
    assert Counting.measured == 2
    later = replace(evaluator, unedited=Unedited(tmp_path))  # as another process finds it
    for which in (evaluator, later, later):
        again, same = both(which, lm)
        pd.testing.assert_frame_equal(again, first, check_exact=True)
        assert again["choices"].tolist() == first["choices"].tolist()
        assert same == ppl
    assert Counting.measured == 2
    assert ppl == Evaluator(evaluator.texts, evaluator.conventions).collapse(lm)


def test_who_changes_the_table_changes_it_for_nobody_else(lm, evaluator):
    table, _ = both(evaluator, lm)
    table["p_new"] = 0.0
    assert both(evaluator, lm)[0]["p_new"].gt(0).all()


def test_whatever_differs_is_measured_anew(lm, evaluator):
    both(evaluator, lm)
    other = tiny_model("gpt2")
    other.revision = "other"
    named = tiny_model("gpt2")
    named.revision, named.name = lm.revision, "another"
    double = tiny_model("gpt2", torch.float64)
    double.revision = lm.revision
    asked = [
        (evaluator, other, REQUESTS),
        (evaluator, named, REQUESTS),
        (evaluator, double, REQUESTS),
        (replace(evaluator, conventions=CONVENTIONS["faithful"]), lm, REQUESTS),
        (replace(evaluator, texts=("A text of other words.",)), lm, REQUESTS[:1]),
        (evaluator, lm, (replace(REQUESTS[0], target_new="Paris"),)),
        (evaluator, lm, (replace(REQUESTS[0], case_id="9"),)),
    ]
    tables = len(list(evaluator.unedited.root.iterdir()))
    for which, model, requests in asked:
        before = Counting.measured
        which.score_unedited(model, requests)
        assert Counting.measured == before + 1
    assert len(list(evaluator.unedited.root.iterdir())) == tables + len(asked)


def test_a_model_that_carries_an_edit_is_measured(lm, evaluator):
    first, _ = both(evaluator, lm)
    name = f"{lm.architecture.down(1)}.weight"
    edit = WeightDelta({name: Dense(torch.ones(lm.model.get_parameter(name).shape).T)})
    with edit.applied(lm):
        assert lm.edited
        with edit.applied(lm):
            pass
        assert lm.edited
        changed, _ = both(evaluator, lm)
    assert not lm.edited
    with WeightDelta().applied(lm):
        assert not lm.edited
    assert Counting.measured == 4
    assert not changed["logp_new"].equals(first["logp_new"])
    assert both(evaluator, lm)[0]["logp_new"].equals(first["logp_new"])


def test_models_of_no_known_revision_are_measured(evaluator):
    lm = tiny_model("gpt2")
    assert lm.revision == "local"
    both(evaluator, lm)
    both(evaluator, lm)
    assert Counting.measured == 4


def test_a_damaged_file_is_measured_anew_and_replaced(lm, evaluator, tmp_path):
    first, _ = both(evaluator, lm)
    for path in tmp_path.iterdir():
        path.write_bytes(b'{"columns": ["p"]')
    later = replace(evaluator, unedited=Unedited(tmp_path))
    pd.testing.assert_frame_equal(both(later, lm)[0], first, check_exact=True)
    assert Counting.measured == 4
    both(replace(evaluator, unedited=Unedited(tmp_path)), lm)
    assert Counting.measured == 4


def test_the_least_used_files_go_first(lm, evaluator, tmp_path, monkeypatch):
    kept = []
    for i in range(3):
        evaluator.score_unedited(lm, (replace(REQUESTS[0], case_id=str(i)),))
        (new,) = set(tmp_path.iterdir()) - set(kept)
        kept.append(new)
        os.utime(new, (i, i))
    evaluator.unedited._tables.clear()
    evaluator.score_unedited(lm, (replace(REQUESTS[0], case_id="0"),))  # used once more
    monkeypatch.setattr(module, "ON_DISK", int(3.5 * kept[0].stat().st_size))
    for i in (3, 4):
        evaluator.score_unedited(lm, (replace(REQUESTS[0], case_id=str(i)),))
    left = set(tmp_path.iterdir())
    assert len(left) == 3
    assert kept[0] in left
    assert not {kept[1], kept[2]} & left
