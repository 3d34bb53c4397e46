"""Integrated gradients: scores add up to what the probability gains, and find the neuron that was planted."""

import pytest
import torch

from editing_core.editors.steps.attribution import (
    GRIDS,
    Path,
    Site,
    before_activation,
    first_choice,
    inner_scores,
    integrated_gradients,
    probabilities,
    questions,
    states_at,
)
from tests.conftest import DISTINCT, each_of, tiny_model

tiny_lm = each_of((*DISTINCT, "phi3"))
LAYER = 1


@pytest.fixture
def ids(tiny_lm):
    return tiny_lm.coder.encode("Mary Walker was born in")


def probability(lm, ids, token):
    """By the plainest way there is."""
    with torch.no_grad():
        return float(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].float().softmax(-1)[token])


def sites(lm):
    return {"inner": Site.inner(lm, LAYER), "before": before_activation(lm, LAYER), "embedding": Site.embedding(lm)}


def normed(lm, name):
    """Whether a norm stands right behind the state, which is the same again however small it is scaled."""
    family = lm.name.removeprefix("tiny-")
    return family in ("gptj", "llama", "gemma2", "phi3") if name == "embedding" else family == "gemma2"


@pytest.mark.parametrize("name", ["inner", "before", "embedding"])
def test_scores_of_a_path_add_up_to_what_the_probability_gains(tiny_lm, ids, name):
    """200 points: what is left is the sum's error, half a step of the slope."""
    site, token = sites(tiny_lm)[name], first_choice(tiny_lm, ids)
    at = (0, 1) if name == "embedding" else (len(ids) - 1,)
    path = Path(ids, token, at)
    (state,) = states_at(tiny_lm, [path], site)
    (zero, one), _ = probabilities(tiny_lm, [path, path], site, [torch.zeros_like(state), state])
    assert float(one) == pytest.approx(probability(tiny_lm, ids, token), rel=1e-4)
    assert abs(float(one - zero)) > 1e-4  # otherwise nothing would be tested
    if normed(tiny_lm, name):
        (scores,) = integrated_gradients(tiny_lm, [path], site, 20)
        assert abs(float(scores.sum())) < abs(float(one - zero))  # most is gained next to zero, before the first point
        return
    (scores,) = integrated_gradients(tiny_lm, [path], site, 200)
    assert scores.shape == state.shape
    assert float(scores.sum()) == pytest.approx(float(one - zero), rel=0.05)
    (coarse,) = integrated_gradients(tiny_lm, [path], site, 1)
    assert abs(float(coarse.sum() - (one - zero))) > abs(float(scores.sum() - (one - zero)))


def test_the_gradient_is_the_probabilitys(tiny_lm, ids):
    """Taken by way of the logarithm; here by finite differences, in double precision."""
    lm = tiny_model(tiny_lm.name.removeprefix("tiny-"), torch.float64)
    site, path = Site.inner(lm, LAYER), Path(ids, first_choice(lm, ids), (len(ids) - 1,))
    (state,) = states_at(lm, [path], site)
    _, (gradient,) = probabilities(lm, [path], site, [state])
    direction = torch.randn(state.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-3  # some families norm and rotate in float32 whatever the precision, which a smaller one would show
    (up, down), _ = probabilities(lm, [path, path], site, [state + step * direction, state - step * direction])
    assert float((gradient * direction).sum()) == pytest.approx(float((up - down) / (2 * step)), rel=1e-2)


def test_only_the_named_position_is_replaced(tiny_lm, ids):
    """What stands before it is computed as ever, so an earlier token's probability stays."""
    site, earlier = Site.inner(tiny_lm, LAYER), ids[:-1]
    path = Path(ids, 5, (len(ids) - 1,))
    (state,) = states_at(tiny_lm, [path], site)
    other = Path(earlier, 5, (len(earlier) - 1,))
    (before,) = states_at(tiny_lm, [other], site)
    (together, alone), _ = probabilities(tiny_lm, [path, other], site, [state, before])
    assert float(together) == pytest.approx(probability(tiny_lm, ids, 5), rel=1e-4)
    assert float(alone) == pytest.approx(probability(tiny_lm, earlier, 5), rel=1e-4)


def test_how_much_runs_at_once_does_not_matter(tiny_lm, ids, monkeypatch):
    site = Site.embedding(tiny_lm)
    paths = [Path(ids, 5, (0,)), Path(ids[:3], 9, (1, 2))]
    once = integrated_gradients(tiny_lm, paths, site, 7)
    monkeypatch.setattr(tiny_lm, "divisor", 2**20)
    one_by_one = integrated_gradients(tiny_lm, paths, site, 7)
    for a, b in zip(once, one_by_one, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-3)


def test_a_planted_neuron_is_ranked_first(tiny_models):
    """Large activation, and an output that points where the head reads the token."""
    lm, unit = tiny_model("gpt2"), 17
    ids = lm.coder.encode("Mary Walker was born in")
    token = first_choice(lm, ids)
    block = lm.model.get_submodule(lm.architecture.block(lm.layers - 1))
    with torch.no_grad():
        block.mlp.c_fc.bias[unit] = 6.0
        block.mlp.c_proj.weight[unit] = 0.5 * lm.head.weight[token]

    def best(model):
        asked = [(ids, token)]
        rows = [inner_scores(model, asked, Site.inner(model, layer), 20) for layer in range(model.layers)]
        return divmod(int(torch.stack(rows).argmax()), len(rows[0]))

    assert best(lm) == (lm.layers - 1, unit)
    assert best(tiny_models("gpt2")) != (lm.layers - 1, unit)


def test_grids():
    assert GRIDS["right"](4).tolist() == [0.25, 0.5, 0.75, 1.0]
    assert GRIDS["ends"](5).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_an_answer_is_asked_for_token_by_token(pocket):
    prompt, answer = "The city is called", "Eberhard Diepgen"
    asked = questions(pocket, prompt, answer)
    prompt_ids = pocket.coder.encode(prompt)
    tokens = [token for _, token in asked]
    assert len(tokens) > 2
    assert [ids for ids, _ in asked] == [(*prompt_ids, *tokens[:n]) for n in range(len(tokens))]
    free = questions(pocket, prompt, answer, follow="choice")
    assert [token for _, token in free] == tokens
    assert free[1][0] == (*prompt_ids, first_choice(pocket, prompt_ids))
    assert questions(pocket, prompt, None) == [(prompt_ids, first_choice(pocket, prompt_ids))]
