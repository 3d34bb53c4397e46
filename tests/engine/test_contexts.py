"""Context templates are drawn from the model with a seed of their own."""

import pytest
import torch

from editing_core.editors.steps.contexts import STARTERS, Contexts, draw_prefixed


def test_same_seed_same_texts(tiny_lm):
    first = draw_prefixed(tiny_lm, ((10, 5),), 3)
    torch.rand(7)  # the global generator plays no part
    assert draw_prefixed(tiny_lm, ((10, 5),), 3) == first
    assert draw_prefixed(tiny_lm, ((10, 5),), 4) != first


def test_drawing_leaves_the_global_generator_alone(tiny_lm):
    before = torch.random.get_rng_state()
    draw_prefixed(tiny_lm, ((5, 2),), 0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_counts_starters_and_form(pocket):
    texts = draw_prefixed(pocket, ((5, 10), (10, 10)), 0)
    assert len(texts) == 20
    for number, text in enumerate(texts):
        assert text.startswith(STARTERS[number % 5])
        assert text.endswith(". {}")
        assert text.count("{}") == 1
        assert "\n" not in text
    tokens = [len(pocket.coder.encode(text.removesuffix(". {}"))) for text in texts]
    assert max(tokens[:10]) < max(tokens[10:])


@pytest.mark.parametrize("prefixed", [(), ("A. {}",), tuple(f"Text {i}. {{}}" for i in range(7))])
def test_weights_sum_to_one(prefixed):
    for contexts in (Contexts.flat(prefixed), Contexts.grouped(prefixed)):
        assert sum(contexts.weights) == pytest.approx(1, abs=1e-12)
        assert len(contexts) == len(contexts.weights) == len(prefixed) + 1
        assert contexts.templates[0] == "{}"
        assert contexts.prefix(0) == ""
    assert len(set(Contexts.flat(prefixed).weights)) == 1
    assert Contexts.grouped(prefixed).weights[0] == (0.5 if prefixed else 1.0)


def test_prefix():
    assert Contexts.flat(("The day. {}",)).prefix(1) == "The day. "
