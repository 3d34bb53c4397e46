"""The closed form behind MEMIT and PMET, in float64: against its objective, a direct solve and its limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editing_core.editors.steps.spread import ridge_factor
from editing_core.errors import StatisticsMissing
from editing_core.statistics.covariance import Covariance

WIDTH, FACTS, OUT = 12, 4, 6


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(3)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def problem(facts=FACTS, width=WIDTH):
    """Keys (d_in, n), residuals (d_out, n), covariance (d_in, d_in)."""
    samples = torch.randn(5 * width, width)
    return torch.randn(width, facts), torch.randn(OUT, facts), samples.T @ samples / len(samples)


def update(keys, residuals, covariance, weight, slack=1.0):
    return residuals @ ridge_factor(keys, torch.linalg.cholesky(covariance), weight, slack).T


def gram(keys, covariance, weight):
    return keys.T @ torch.linalg.solve(weight * covariance, keys)


def test_update_is_the_minimum_of_its_objective():
    keys, residuals, covariance = problem()
    delta = update(keys, residuals, covariance, 2.0).requires_grad_()
    loss = (delta @ keys - residuals).square().sum() + 2.0 * torch.trace(delta @ covariance @ delta.T)
    loss.backward()
    assert delta.grad.abs().max() < 1e-10


@settings(max_examples=25, deadline=None)
@given(facts=st.integers(1, 20), width=st.integers(2, 16), exponent=st.floats(-3, 4), seed=st.integers(0, 10**6))
def test_equals_the_direct_solve(facts, width, exponent, seed):
    torch.manual_seed(seed)
    keys, residuals, covariance = problem(facts, width)
    weight = 10.0**exponent
    direct = torch.linalg.solve(weight * covariance + keys @ keys.T, keys @ residuals.T).T
    got = update(keys, residuals, covariance, weight)
    torch.testing.assert_close(got, direct, atol=1e-9 * float(direct.abs().max()), rtol=1e-6)


def test_shortfall():
    keys, residuals, covariance = problem()
    delta = update(keys, residuals, covariance, 3.0)
    expected = residuals @ torch.linalg.inv(torch.eye(FACTS) + gram(keys, covariance, 3.0))
    torch.testing.assert_close(residuals - delta @ keys, expected, atol=1e-12, rtol=0)


def test_vanishes_as_the_weight_grows():
    keys, residuals, covariance = problem()
    norms = [float(update(keys, residuals, covariance, 10.0**e).norm()) for e in (0, 3, 6, 9)]
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 1e-7


def test_slack_zero_meets_the_targets():
    keys, residuals, covariance = problem()
    exact = update(keys, residuals, covariance, 100.0, slack=0.0)
    torch.testing.assert_close(exact @ keys, residuals, atol=1e-11, rtol=0)
    small = update(keys, residuals, covariance, 1e-9)
    torch.testing.assert_close(small, exact, atol=1e-6, rtol=0)  # both limits agree to first order in the weight
    assert (update(keys, residuals, covariance, 100.0) @ keys - residuals).abs().max() > 0.1


@pytest.mark.parametrize("passes", [1, 2, 5])
def test_iterated_passes_with_frozen_keys(passes):
    """q passes give R [I - (I + G)^-q] G^-1 K^T (lambda C)^-1: iterated Tikhonov regularisation."""
    keys, residuals, covariance = problem()
    weight, total, left = 20.0, torch.zeros(OUT, WIDTH), residuals
    for _ in range(passes):
        piece = update(keys, left, covariance, weight)
        total, left = total + piece, left - piece @ keys
    g, eye = gram(keys, covariance, weight), torch.eye(FACTS)
    decayed = torch.linalg.matrix_power(torch.linalg.inv(eye + g), passes)
    expected = residuals @ (eye - decayed) @ torch.linalg.solve(g, torch.linalg.solve(weight * covariance, keys).T)
    torch.testing.assert_close(total, expected, atol=1e-11, rtol=0)
    torch.testing.assert_close(left, residuals @ decayed, atol=1e-11, rtol=0)


def test_many_passes_reach_the_exact_solution():
    keys, residuals, covariance = problem()
    total, left = torch.zeros(OUT, WIDTH), residuals
    for _ in range(300):
        piece = update(keys, left, covariance, 1.0)
        total, left = total + piece, left - piece @ keys
    torch.testing.assert_close(total, update(keys, residuals, covariance, 1.0, slack=0.0), atol=1e-9, rtol=0)


def test_unrelated_keys_move_less_with_covariance():
    """What the statistics are for: directions that text uses are spared."""
    keys, residuals, _ = problem(1)
    used = torch.randn(WIDTH)
    used /= used.norm()
    covariance = torch.eye(WIDTH) + 1e4 * torch.outer(used, used)
    spared = (update(keys, residuals, covariance, 1e-3) @ used).norm()
    plain = (update(keys, residuals, torch.eye(WIDTH), 1e-3) @ used).norm()
    assert spared < 0.01 * plain


def test_cholesky_of_a_full_covariance_is_exact():
    _, _, matrix = problem()
    factor = Covariance(matrix, 10_000).cholesky
    torch.testing.assert_close(factor @ factor.T, matrix, atol=1e-13, rtol=0)


def test_cholesky_of_too_few_tokens_gets_the_least_jitter():
    key = torch.randn(WIDTH, 3)
    matrix = key @ key.T / 3
    factor = Covariance(matrix, 3).cholesky
    jitter = 1e-4 * matrix.diagonal().mean() * torch.eye(WIDTH)
    torch.testing.assert_close(factor @ factor.T, matrix + jitter, atol=1e-12, rtol=0)


def test_degenerate_covariance_is_refused():
    with pytest.raises(StatisticsMissing, match="degenerate"):
        _ = Covariance(torch.zeros(3, 3), 100).cholesky


def test_floor_bounds_the_weight_along_dead_neurons():
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1e-12]))
    floored = Covariance(matrix, 100).floored(1e-3)
    torch.testing.assert_close(floored.matrix.diagonal(), matrix.diagonal() + 1e-3 * 2 / 3, atol=1e-10, rtol=0)
    assert Covariance(matrix, 100).floored(0.0).matrix is matrix
    key, residual = torch.tensor([[1.0], [0.0], [0.1]]), torch.ones(2, 1)
    plain = update(key, residual, matrix, 1.0)
    bounded = update(key, residual, floored.matrix, 1.0)
    assert bounded[:, 2].abs().max() < 0.99 * plain[:, 2].abs().max()
