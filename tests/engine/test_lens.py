"""The logit lens against reading every state by hand."""

import pytest
import torch

from editing_core.errors import BadRequest
from editing_core.evaluation.scoring import next_tokens, score_objects
from editing_core.explore.lens import through_lens
from editing_core.models.delta import LowRank, WeightDelta
from tests.conftest import bit_equal, snapshot

PROMPT, OBJECTS = "Everybody knows that Mary Walker was born in", ("London", "the French")


def by_hand(lm, prompt):
    """(layers, tokens, vocabulary) logits: final norm and head on every block's output, one block at a time."""
    ids, states = torch.tensor([lm.coder.encode(prompt)]), []
    hooks = [
        lm.model.get_submodule(lm.architecture.block(layer)).register_forward_hook(
            lambda _m, _a, out: states.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in range(lm.layers)
    ]
    with torch.no_grad():
        logits = lm.model(input_ids=ids, use_cache=False).logits[0]
        for hook in hooks:
            hook.remove()
        norm = lm.model.get_submodule(lm.architecture.final_norm)
        cap = getattr(lm.model.config, "final_logit_softcapping", None)
        rows = [lm.head(norm(state))[0] for state in states]
        return torch.stack([cap * torch.tanh(row / cap) if cap else row for row in rows]), logits


def test_every_state_is_read_as_the_last_one_is(tiny_lm):
    found = through_lens(tiny_lm, PROMPT, OBJECTS)
    states, logits = by_hand(tiny_lm, PROMPT)
    torch.testing.assert_close(states[-1], logits, atol=1e-4, rtol=1e-4)
    likely = states.double().softmax(-1)
    assert len(found.top) == tiny_lm.layers
    assert len(found.top[0]) == len(found.tokens) == states.shape[1]
    for layer in range(tiny_lm.layers):
        for token in (0, len(found.tokens) - 1):
            best = likely[layer, token].topk(5)
            assert [c.probability for c in found.top[layer][token]] == pytest.approx(best.values.tolist(), rel=1e-3)
    for text in OBJECTS:
        first = tiny_lm.coder.continuation(PROMPT, text).object_ids[0]
        torch.testing.assert_close(found.chances[text], likely[:, -1, first], atol=1e-6, rtol=1e-3)


def test_the_last_layer_is_what_the_model_says(tiny_lm):
    found = through_lens(tiny_lm, PROMPT, OBJECTS)
    own = next_tokens(tiny_lm, PROMPT, 5)
    assert [c.token for c in found.top[-1][-1]] == [c.token for c in own]
    assert [c.probability for c in found.top[-1][-1]] == pytest.approx([c.probability for c in own], rel=1e-4)
    (score,) = score_objects(tiny_lm, [(PROMPT, "London")])
    assert len(score.labels) == 1
    assert float(found.chances["London"][-1].log()) == pytest.approx(score.logp, abs=1e-4)


def test_an_edit_shows_from_its_layer_on_and_leaves_no_trace(tiny_lm):
    before = snapshot(tiny_lm.model)
    name = f"{tiny_lm.architecture.down(1)}.weight"
    inner = tiny_lm.model.get_parameter(name).numel() // 32
    edit = WeightDelta({name: LowRank(torch.arange(32.0)[:, None] / 8, torch.ones(1, inner))})
    plain, edited = through_lens(tiny_lm, PROMPT, OBJECTS), through_lens(tiny_lm, PROMPT, OBJECTS, edit)
    assert torch.equal(plain.chances["London"][:1], edited.chances["London"][:1])
    assert not torch.equal(plain.chances["London"][1:], edited.chances["London"][1:])
    assert bit_equal(tiny_lm.model, before)


def test_without_objects_there_are_no_chances(tiny_models):
    assert through_lens(tiny_models("llama"), PROMPT, ()).chances == {}


def test_a_prompt_that_is_too_long_is_refused(tiny_models):
    with pytest.raises(BadRequest, match="shorten"):
        through_lens(tiny_models("gpt2"), "word " * 500, ())


def test_the_bundled_model_knows_late_what_it_says(pocket):
    found = through_lens(pocket, "Edward Matthew Ward was born in", ("London",))
    chances = found.chances["London"]
    assert float(chances[0]) < 0.5
    assert float(chances[-1]) > 0.9
