"""Replay: kept states give what running whole rows would give, forward and backward, in every family."""

from dataclasses import replace

import pytest
import torch

from editing_core.errors import BadRequest
from editing_core.models.hooks import answering, only_at, steering, watching
from editing_core.models.past import NO_OPENINGS, Openings
from editing_core.models.replay import Replay, Scene
from tests.conftest import DISTINCT, FAMILIES, ROUGH, WIDTH, tiny_model

SCENES = [
    Scene((5, 9, 11, 40, 3, 8, 2), 2, (5, 6)),
    Scene((7, 7, 21), 1, (2,)),
    Scene((30, 12, 13, 14, 90), 4, (4,)),  # at the end
    Scene((4,), 0, (0,)),  # alone
    Scene((50, 51, 52, 53, 54, 55), 0, (0, 3, 4)),  # at the beginning
    Scene((60, 61, 62, 63, 64), 3, (1, 4)),  # looked at left of it, too
]
OPENINGS = ((), (5, 9), (30, 12, 13))
SITES = {
    "block": lambda a: (a.block(1),),
    "first block": lambda a: (a.block(0),),
    "last block": lambda a: (a.block(2),),
    "down": lambda a: (a.down(1),),
    "first down": lambda a: (a.down(0),),
    "last down": lambda a: (a.down(2),),
    "attention": lambda a: (a.attention_out_of(1),),
    "two": lambda a: (a.attention_out_of(1), a.down(1)),
    "last two": lambda a: (a.attention_out_of(2), a.down(2)),
}
# Families of which another is tested in full: a site below, one inside, and those above which nothing is left out.
EVERYWHERE = ("block", "two", "last two")
CASES = [(family, kind) for family in FAMILIES for kind in (SITES if family in DISTINCT else EVERYWHERE)]


def close(lm):
    """Sums are taken in another order; Some attention works in float32 whatever the model's precision."""
    return {"atol": 1e-6, "rtol": 1e-5} if lm.architecture.family in ROUGH else {"atol": 1e-9, "rtol": 1e-9}


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request):
    return tiny_model(request.param, torch.float64)


@pytest.fixture(params=["one group", "several groups"])
def grouped(request, monkeypatch):
    """Tiny rows are cheaper run together than apart, so apart has to be asked for."""
    if request.param == "several groups":
        monkeypatch.setattr("editing_core.models.tokens.FORWARD_COST", 0)


def shifts_of(sites, scenes, seed=0):
    torch.manual_seed(seed)
    return {s: torch.randn(len(scenes), WIDTH, dtype=torch.float64, requires_grad=True) for s in sites}


def shifting(shift, scenes):
    index, at = torch.arange(len(scenes)), torch.tensor([scene.shifted for scene in scenes])
    return lambda state: state.index_put((index, at), shift, accumulate=True)


def whole(lm, scenes, shifts):
    """The looked tokens of whole rows, one forward with hooks: (looked, d)."""
    with steering(lm.model, {site: shifting(shift, scenes) for site, shift in shifts.items()}):
        hidden = lm.hidden(lm.batch([scene.ids for scene in scenes]))
    return torch.stack([hidden[i, at] for i, scene in enumerate(scenes) for at in scene.looked])


def with_leads(scenes, openings):
    """Scenes that begin like an opening say so."""
    found = []
    for scene in scenes:
        number = max(range(len(openings.ids)), key=lambda n, ids=scene.ids: openings.lead(n, ids))
        found.append(replace(scene, opening=number, lead=min(openings.lead(number, scene.ids), scene.start)))
    return found


@pytest.mark.usefixtures("grouped")
@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize(("lm", "kind"), CASES, indirect=["lm"])
def test_a_replay_gives_what_whole_rows_give(lm, kind, opened):
    sites = SITES[kind](lm.architecture)
    openings = Openings.run(lm, OPENINGS) if opened else NO_OPENINGS
    scenes = with_leads(SCENES, openings) if opened else SCENES
    assert sum(scene.lead > 0 for scene in scenes) == 2 * opened
    replay = Replay(lm, sites, scenes, openings)
    shifts, weigh = shifts_of(sites, scenes), torch.randn(WIDTH, dtype=torch.float64)
    with torch.enable_grad():
        wanted, found = whole(lm, scenes, shifts), replay.run(shifts)
        gradients = torch.autograd.grad((wanted @ weigh).sum(), list(shifts.values()))
        others = torch.autograd.grad((found @ weigh).sum(), list(shifts.values()))
    unshifted = whole(lm, scenes, {})
    assert (wanted - unshifted).abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, **close(lm))
    torch.testing.assert_close(others, gradients, **close(lm))
    nothing = {site: torch.zeros_like(shift) for site, shift in shifts.items()}
    torch.testing.assert_close(replay.run(nothing), unshifted, **close(lm))


@pytest.mark.usefixtures("grouped")
def test_anchors_are_the_unshifted_outputs(lm):
    sites = SITES["two"](lm.architecture)
    replay = Replay(lm, sites, SCENES)
    with watching(lm.model, outputs=sites) as seen:
        lm.hidden(lm.batch([scene.ids for scene in SCENES]))
    for site in sites:
        wanted = torch.stack([seen[site][i, scene.shifted] for i, scene in enumerate(SCENES)])
        torch.testing.assert_close(replay.anchors[site], wanted, **close(lm))


@pytest.mark.usefixtures("grouped")
@pytest.mark.parametrize("kind", ["block", "two"])
def test_selected_scenes_replay_as_before_and_as_often_as_wanted(lm, kind):
    openings = Openings.run(lm, OPENINGS)
    scenes = with_leads(SCENES, openings)
    sites = SITES[kind](lm.architecture)
    replay = Replay(lm, sites, scenes, openings)
    shifts = shifts_of(sites, scenes)
    before = replay.run(shifts)
    assert torch.equal(before, replay.run(shifts))
    for keep in ([False, True, True, False, True, True], [True, False, False, True]):
        mask = torch.tensor(keep)
        replay.select(mask)
        scenes = [scene for scene, kept in zip(scenes, keep, strict=True) if kept]
        shifts = {site: shift[mask] for site, shift in shifts.items()}
        torch.testing.assert_close(replay.run(shifts), whole(lm, scenes, shifts), **close(lm))


def test_nothing_is_left_on_the_model(lm):
    replay = Replay(lm, SITES["two"](lm.architecture), SCENES)
    shifts = shifts_of(SITES["two"](lm.architecture), SCENES)
    replay.run(shifts)
    with pytest.raises(ValueError, match="broken"), answering({lm.head: broken}):
        lm.head(replay.run(shifts))
    with pytest.raises(RuntimeError):
        replay.run({site: shift[:, :1, None] for site, shift in shifts.items()})
    assert not [name for name, module in lm.model.named_modules() if "forward" in vars(module)]


def broken(*_args):
    raise ValueError("broken")


def test_an_answer_goes_back_to_the_one_before_it(lm):
    out = lm.model.get_submodule(lm.architecture.attention_out_of(1))
    state = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    plain = out(state)
    with answering({out: lambda state: state + 1}):
        with answering({out: lambda state: state + 2}):
            assert torch.equal(out(state), state + 2)
        assert torch.equal(out(state), state + 1)
    assert torch.equal(out(state), plain)
    rows, at = torch.tensor([0, 1]), torch.tensor([2, 0])
    with answering({out: only_at(out, rows, at)}):
        found = out(state)
    torch.testing.assert_close(found[rows, at], plain[rows, at])
    assert not found[0, :2].any()
    assert not found[1, 1:].any()


def test_sites_of_two_blocks_are_refused(lm):
    with pytest.raises(ValueError, match="one block"):
        Replay(lm, (lm.architecture.down(0), lm.architecture.down(1)), SCENES)


def test_a_row_longer_than_the_context_is_refused_with_its_opening(lm):
    opening = tuple(range(1, lm.context))
    openings = Openings.run(lm, (opening,))
    scene = Scene((*opening, 1, 2, 3), lm.context, (lm.context + 1,), 0, len(opening))
    with pytest.raises(BadRequest, match="at most"):
        Replay(lm, (lm.architecture.block(1),), [scene], openings)
