"""The norm behind an MLP: changes pulled back through it, as algebra in float64 and in models that have one."""

from dataclasses import replace

import pytest
import torch

from editing_core.editors.memit import Memit, MemitSettings
from editing_core.editors.pmet import Pmet, PmetSettings
from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.keys import SubjectRows, states_at_subject
from editing_core.editors.steps.rows import Objective, log_perplexity
from editing_core.editors.steps.spread import Ridge, Spread
from editing_core.models.delta import WeightDelta
from editing_core.models.hooks import steering
from editing_core.models.norms import at_down, gain_of, in_stream, pulled_back
from tests.conftest import FAMILIES, WIDTH, bit_equal, left_alone, snapshot, tiny_model

NORMED = ("gemma2", "gemma3_text", "olmo2", "olmo3")
D = 12


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


GAIN, STATES, CHANGES = normal(D, seed=1), 3 * normal(4, D, seed=2), normal(4, D, seed=3)


def rms_norm(state, gain=GAIN):
    return gain * state / state.square().mean(-1, keepdim=True).sqrt()


def jacobian(state, gain=GAIN):
    """(d, d) by autograd."""
    return torch.autograd.functional.jacobian(lambda s: rms_norm(s, gain), state)


def test_it_is_the_pseudo_inverse_of_the_jacobian():
    found = pulled_back(CHANGES, STATES, rms_norm(STATES), GAIN)
    for state, change, step in zip(STATES, CHANGES, found, strict=True):
        matrix = jacobian(state)
        assert int(torch.linalg.matrix_rank(matrix, rtol=1e-9)) == D - 1
        torch.testing.assert_close(step, torch.linalg.pinv(matrix, rtol=1e-9) @ change, atol=1e-11, rtol=1e-11)


def test_the_formula_of_the_jacobian_is_its_finite_difference():
    state, size = STATES[0], 1e-6
    unit = state / state.norm()
    formula = GAIN[:, None] / state.square().mean().sqrt() * (torch.eye(D).double() - torch.outer(unit, unit))
    columns = [(rms_norm(state + size * e) - rms_norm(state - size * e)) / (2 * size) for e in torch.eye(D).double()]
    torch.testing.assert_close(torch.stack(columns, 1), formula, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(jacobian(state), formula, atol=1e-12, rtol=1e-12)


def test_a_change_that_can_be_made_is_made_and_the_state_is_not_stretched():
    """J J^+ J = J: what the norm can give is given to first order; what is asked along the state's own way is not."""
    output = rms_norm(STATES)
    possible = torch.stack([jacobian(state) @ c for state, c in zip(STATES, CHANGES, strict=True)])
    step = pulled_back(possible, STATES, output, GAIN)
    assert ((step * STATES).sum(-1).abs() < 1e-10 * step.norm(dim=-1) * STATES.norm(dim=-1)).all()
    size = 1e-5
    moved = (rms_norm(STATES + size * step) - output) / size
    torch.testing.assert_close(moved, possible, atol=1e-3, rtol=1e-3)
    nothing = pulled_back(torch.zeros_like(CHANGES), STATES, output, GAIN)
    assert not nothing.any()


def test_no_shorter_change_comes_nearer():
    """It is the best of all in first order, and the shortest of the best."""
    state, change = STATES[0], CHANGES[0]
    (step,) = pulled_back(change[None], state[None], rms_norm(state)[None], GAIN)
    matrix = jacobian(state)
    missed = (matrix @ step - change).norm()
    for seed in range(20):
        other = step + 0.1 * normal(D, seed=seed)
        assert (matrix @ other - change).norm() > missed - 1e-12
    longer = step + 0.1 * state
    torch.testing.assert_close((matrix @ longer - change).norm(), missed, atol=1e-12, rtol=0)
    assert longer.norm() > step.norm()


def test_what_has_no_gain_is_left_alone():
    gain = GAIN.clone()
    gain[3] = 0.0
    step = pulled_back(CHANGES, STATES, rms_norm(STATES, gain), gain)
    assert step.isfinite().all()
    assert not step[:, 3].any()
    rest = [i for i in range(D) if i != 3]
    missed = (torch.stack([jacobian(s, gain) @ x for s, x in zip(STATES, step, strict=True)]) - CHANGES)[:, rest]
    assert (missed.norm(dim=-1) < CHANGES[:, rest].norm(dim=-1)).all()


@pytest.fixture(scope="module", params=NORMED)
def lm(request):
    with left_alone(tiny_model(request.param, torch.float64)) as lm:
        yield lm


@pytest.fixture
def covariances(lm, store, corpus):
    store.collect(lm, [0, 1], corpus)
    return {layer: store.get(lm, layer, corpus, 1e-3) for layer in (0, 1)}


def test_gains_are_read_off_the_module(lm):
    """Gemma stores g - 1, OLMo g."""
    norm = lm.model.get_submodule(lm.architecture.mlp_norm_of(1))
    stored = norm.weight.double() + ("gemma" in lm.architecture.family)
    # The modules themselves work in float32.
    torch.testing.assert_close(gain_of(norm, torch.zeros(3, WIDTH).double()), stored, atol=1e-6, rtol=1e-6)
    assert (stored - 1).abs().max() > 0.1


def test_the_formula_is_the_models_own_norm(lm):
    norm, states = lm.model.get_submodule(lm.architecture.mlp_norm_of(1)), normal(5, WIDTH, seed=4)
    change, gain = normal(5, WIDTH, seed=5), gain_of(norm, states)
    own = torch.stack([torch.autograd.functional.jacobian(norm, state) for state in states])
    possible = torch.einsum("nij,nj->ni", own, change)
    step = pulled_back(possible, states, norm(states), gain)
    torch.testing.assert_close(torch.einsum("nij,nj->ni", own, step), possible, atol=1e-5, rtol=1e-5)


def test_families_without_one_are_asked_for_the_change_itself(tiny_models):
    change = normal(2, WIDTH)
    for family in FAMILIES:
        lm = tiny_models(family)
        keys = normal(2, lm.model.get_submodule(lm.architecture.down(1)).weight.numel() // WIDTH)
        assert (
            (at_down(lm, 1, change, keys) is change) == (in_stream(lm, 1, change) is change) == (family not in NORMED)
        )


def places(requests):
    return [r.place for r in requests]


def shifted_targets(lm, requests, site, size):
    """(n, d) states at the subjects after layer 1's down-projection was shifted there: the layer can reach them."""
    rows = SubjectRows.of(lm, places(requests), Contexts())
    shift = size * normal(WIDTH, seed=6)
    with steering(lm.model, {lm.architecture.down(1): lambda out: out + shift}):
        return states_at_subject(lm, rows, site)[:, 0]


def still_missing(lm, requests, site, targets, delta):
    rows = SubjectRows.of(lm, places(requests), Contexts())
    with delta.applied(lm):
        return (targets - states_at_subject(lm, rows, site)[:, 0]).norm(dim=-1)


def test_repeated_passes_reach_what_a_layer_can_reach(lm, requests_, covariances):
    """Each pass is one of Newton's steps: what is missing shrinks with its square."""
    site = lm.architecture.block(1)
    targets = shifted_targets(lm, requests_, site, 0.3)
    way = Spread(site, Objective(), [1], Ridge(covariances, 1e-9), share=float)
    total = WeightDelta()
    missing = [still_missing(lm, requests_, site, targets, total)]
    for _ in range(4):
        with total.applied(lm):
            piece = way.write(lm, requests_, targets)
        total += piece
        missing.append(still_missing(lm, requests_, site, targets, total))
    assert (missing[1] < 0.7 * missing[0]).all()
    assert (missing[-1] < 1e-3 * missing[0]).all()


def test_without_pulling_back_they_do_not(lm, requests_, covariances, monkeypatch):
    """The control: a residual of the stream, written as if no norm came behind it."""
    site = lm.architecture.block(1)
    targets = shifted_targets(lm, requests_, site, 0.3)
    way = Spread(site, Objective(), [1], Ridge(covariances, 1e-9), share=float)
    right = still_missing(lm, requests_, site, targets, way.write(lm, requests_, targets))
    monkeypatch.setattr("editing_core.editors.steps.spread.at_down", lambda _lm, _layer, change, _keys: change)
    wrong = still_missing(lm, requests_, site, targets, way.write(lm, requests_, targets))
    assert (right < 0.5 * wrong).all()


SETTINGS = {"layers": (0, 1), "steps": 15, "rate": 0.3, "relative_rate": True, "clamp": 4.0, "decay": 0.0}
SETTINGS |= {"kl_factor": 0.0, "covariance_weight": 0.01}


@pytest.mark.parametrize("kind", [Memit, Pmet])
def test_editors_bring_the_object_up_and_others_hardly_move(kind, lm, requests_, covariances):
    before, objective = snapshot(lm.model), Objective()
    settings = (MemitSettings if kind is Memit else PmetSettings)(**SETTINGS)
    editor = kind(settings, Ridge(covariances, settings.covariance_weight), objective)
    request = requests_[:1]
    other = (replace(requests_[1], subject="The long river", paraphrases=()),)
    plain, beside = (log_perplexity(lm, asked, objective)[0] for asked in (request, other))
    delta = WeightDelta()
    for _ in range(2):
        with delta.applied(lm):
            piece = editor.edit(lm, request).delta
        delta += piece
    with delta.applied(lm):
        edited, still = (log_perplexity(lm, asked, objective)[0] for asked in (request, other))
    assert bit_equal(lm.model, before)
    assert edited < plain - 0.4
    assert (still - beside).abs() < 0.5 * (plain - edited)


def test_what_pmet_spreads_is_in_units_of_the_stream(lm):
    values = normal(3, WIDTH, seed=7)
    norm = lm.model.get_submodule(lm.architecture.mlp_norm_of(1))
    torch.testing.assert_close(in_stream(lm, 1, values), norm(values))
    assert lm.architecture.added(1) == lm.architecture.mlp_norm_of(1)
