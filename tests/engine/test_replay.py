"""Replay: kept states give what running whole rows would give, forward and backward, in every family."""

import pytest
import torch

from editing_core.models.hooks import steering
from editing_core.models.replay import Replay
from tests.conftest import FAMILIES, WIDTH, tiny_model

ROWS = [[5, 9, 11, 40, 3, 8, 2], [7, 7, 21], [30, 12, 13, 14, 90], [4], [50, 51, 52, 53, 54, 55]]
STARTS = torch.tensor([2, 1, 4, 0, 0])  # within, at the end, alone, at the beginning
SITES = {"block": lambda a: (a.block(1),), "below": lambda a: (a.block(0),), "first": lambda a: (a.down(0),)}
SITES |= {"two": lambda a: (a.attention_out_of(1), a.down(1))}


def close(lm):
    """Sums are taken in another order; GPT-J's attention works in float32 whatever the model's precision."""
    return {"atol": 1e-6, "rtol": 1e-5} if lm.architecture.family == "gptj" else {"atol": 1e-9, "rtol": 1e-9}


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request):
    return tiny_model(request.param, torch.float64)


def shifting(shift, at):
    """Add (rows, d) to each row's token `at`."""
    index = torch.arange(len(at))
    return lambda state: state.index_put((index, at), shift, accumulate=True)


def behind(hidden, starts, lengths):
    """The tokens of whole rows from their starts on, as a list of (tokens, d)."""
    return [hidden[i, s:n] for i, (s, n) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True))]


def replayed(replay):
    """The same from a replay."""
    return [row[:n] for row, n in zip(replay.run(), replay.batch.lengths.tolist(), strict=True)]


@pytest.mark.parametrize("kind", SITES)
def test_a_replay_gives_what_whole_rows_give(lm, kind):
    sites = SITES[kind](lm.architecture)
    batch = lm.batch(ROWS)
    replay = Replay(lm, sites)
    whole = replay.record(batch, STARTS)
    assert torch.equal(whole, lm.hidden(batch))
    torch.manual_seed(0)
    shift = torch.randn(len(ROWS), WIDTH, dtype=torch.float64, requires_grad=True)
    weigh = torch.randn(WIDTH, dtype=torch.float64)
    with torch.enable_grad():
        with steering(lm.model, {site: shifting(shift, STARTS) for site in sites}):
            wanted = behind(lm.hidden(batch), STARTS, batch.lengths)
        with steering(lm.model, {site: shifting(shift, torch.zeros_like(STARTS)) for site in sites}):
            found = replayed(replay)
        (gradient,) = torch.autograd.grad(sum((row @ weigh).sum() for row in wanted), shift)
        (other,) = torch.autograd.grad(sum((row @ weigh).sum() for row in found), shift)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(wanted, behind(whole, STARTS, batch.lengths), strict=True))
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(b, a, **close(lm))
    torch.testing.assert_close(other, gradient, **close(lm))


def test_selected_rows_replay_as_before_and_as_often_as_wanted(lm):
    replay = Replay(lm, (lm.architecture.block(1),))
    replay.record(lm.batch(ROWS), STARTS)
    before = replayed(replay)
    again = replayed(replay)
    keep = torch.tensor([False, True, True, False, True])
    replay.select(keep)
    after = replayed(replay)
    assert len(after) == 3
    for a, b in zip(before, again, strict=True):
        assert torch.equal(a, b)
    for a, b in zip([row for row, kept in zip(before, keep, strict=True) if kept], after, strict=True):
        torch.testing.assert_close(b, a, **close(lm))
    assert not any("forward" in vars(block) for block in replay.blocks)


def test_the_blocks_below_run_no_more(lm):
    replay = Replay(lm, (lm.architecture.block(1),))
    replay.record(lm.batch(ROWS), STARTS)

    def fail(*_):
        raise AssertionError("a kept block was run")

    handles = [lm.model.get_submodule(lm.architecture.down(i)).register_forward_pre_hook(fail) for i in (0, 1)]
    try:
        replay.run()
    finally:
        for handle in handles:
            handle.remove()
