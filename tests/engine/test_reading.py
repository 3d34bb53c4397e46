"""Reading: rows that share their beginnings give the logits that each gives alone, in every family."""

from itertools import chain, combinations
from os.path import commonprefix

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editing_core.evaluation.scoring import score_objects
from editing_core.models import reading, tokens
from editing_core.models.language_model import LanguageModel
from editing_core.models.reading import read, shared_beginnings
from tests.conftest import FAMILIES, ROUGH, tiny_model

ROWS = [(5, 9, 11, 40), (5, 9, 11, 41, 3), (5, 9, 12), (7, 8), (7, 8, 9, 9, 9, 9), (5, 9, 11), (1,)]
ASKED = [(2, 3), (4,), (0, 2), (1,), (1, 3), (2,), (0,)]


def close(lm):
    """Some attention works in float32 whatever the model's precision."""
    return {"atol": 1e-6, "rtol": 1e-5} if lm.architecture.family in ROUGH else {"atol": 1e-10, "rtol": 1e-9}


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request):
    return tiny_model(request.param, torch.float64)


@pytest.fixture(params=["never", "wherever it can", "in chunks"])
def shared(request, monkeypatch):
    worth = {"never": 10**9}.get(request.param, 0)
    beginnings = []

    def spied(rows):
        beginnings.append(shared_beginnings(rows, worth))
        return beginnings[-1]

    monkeypatch.setattr(reading, "shared_beginnings", spied)
    if request.param == "in chunks":
        monkeypatch.setattr(LanguageModel, "tokens_per_forward", 3)
    monkeypatch.setattr(tokens, "FORWARD_COST", 0)
    yield request.param
    assert any(map(any, beginnings)) == (request.param != "never")


def test_logits_are_those_of_each_row_alone(lm, shared):  # noqa: ARG001
    found = {}
    with torch.no_grad():
        for numbers, logits in read(lm, ROWS, ASKED):
            parts = logits.split([len(ASKED[n]) for n in numbers])
            found |= dict(zip(numbers, parts, strict=True))
        for n, (row, asked) in enumerate(zip(ROWS, ASKED, strict=True)):
            whole = lm.model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
            torch.testing.assert_close(found[n], whole[list(asked)], **close(lm))
    assert sorted(found) == list(range(len(ROWS)))


def test_scores_do_not_depend_on_what_is_shared(lm, shared):  # noqa: ARG001
    prompts = ["Mary Walker works in", "Mary Walker works in", "Mary Walker lives in", "Paris is the capital of"]
    pairs = list(zip(prompts, ["London", "the city of Rome", "Rome", "France"], strict=True))
    with torch.no_grad():
        for score, (prompt, answer) in zip(score_objects(lm, pairs), pairs, strict=True):
            text = lm.coder.continuation(prompt, answer)
            logits = lm.model(input_ids=torch.tensor([text.ids])).logits[0, list(text.positions)].double()
            own = logits.log_softmax(-1)[range(len(text.object_ids)), text.object_ids]
            assert score.logp == pytest.approx(float(own.mean()), abs=1e-6)
            assert score.choices == tuple(logits.argmax(-1).tolist())
            assert score.rank == int((logits[0] > logits[0, text.object_ids[0]]).sum()) + 1


rows_of_tokens = st.lists(st.lists(st.integers(0, 2), max_size=5).map(tuple), max_size=7)


@given(rows_of_tokens)
def test_beginnings_are_shared_and_the_fewest_tokens_are_left(some):
    rows = sorted(some)
    leads = shared_beginnings(rows, 0)
    own = [row[:lead] for row, lead in zip(rows, leads, strict=True)]
    assert saved_by(rows, set(own)) == max(saved_by(rows, set(chosen)) for chosen in every_choice(rows))


def every_choice(rows):
    """Every set of beginnings that two rows share and no third token longer."""
    shared = {commonprefix([a, b]) for a, b in combinations(rows, 2)} - {()}  # noqa: RUF071 - of tuples
    return chain.from_iterable(combinations(shared, count) for count in range(len(shared) + 1))


def saved_by(rows, beginnings):
    """Each row takes the longest beginning it has; each beginning is computed once."""
    leads = [max((len(b) for b in beginnings if row[: len(b)] == b), default=0) for row in rows]
    return sum(leads) - sum(map(len, beginnings))


def test_little_is_not_shared():
    rows = sorted([(1, 2, 3), (1, 2, 4), (1, 2, 5)])
    assert shared_beginnings(rows, 4) == [2, 2, 2]
    assert shared_beginnings(rows, 5) == [0, 0, 0]
