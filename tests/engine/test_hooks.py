"""The doors to the activations, and the self-test that uses them, on every family."""

import pytest
import torch
from torch import nn
from transformers import BloomConfig, BloomForCausalLM

from editing_core.errors import BadRequest, ModelUnavailable
from editing_core.models.architectures import ARCHITECTURES, Architecture, is_transposed
from editing_core.models.hooks import state_of, steering, stopping_after, watching, with_state
from editing_core.models.language_model import LanguageModel
from tests.conftest import CONTEXT, FAMILIES, pocket_tokenizer, tiny_model


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def sites(lm, layer=1):
    a = lm.architecture
    return [a.block(layer), a.attention_out_of(layer), a.down(layer), a.final_norm]


@torch.no_grad()
def test_watching_reads_outputs_and_inputs(tiny_lm):
    batch = tiny_lm.batch([[5, 6, 7], [8, 9]])
    names = sites(tiny_lm)
    down = tiny_lm.architecture.down(1)
    with watching(tiny_lm.model, outputs=names, inputs=[down]) as seen:
        hidden = tiny_lm.hidden(batch)
    width = tiny_lm.model.config.hidden_size
    assert {name: tuple(seen[name].shape) for name in names} == dict.fromkeys(names, (2, 3, width))
    assert torch.equal(seen[tiny_lm.architecture.final_norm], hidden)
    recomputed = tiny_lm.model.get_submodule(down)(seen[f"{down}.input"])
    assert torch.equal(recomputed, seen[down])
    assert hooks(tiny_lm.model) == 0


@torch.no_grad()
def test_the_last_block_before_the_norm_is_the_hidden_state(tiny_lm):
    batch = tiny_lm.batch([[5, 6, 7]])
    last = tiny_lm.architecture.block(tiny_lm.layers - 1)
    with watching(tiny_lm.model, outputs=[last]) as seen:
        hidden = tiny_lm.hidden(batch)
    torch.testing.assert_close(tiny_lm.model.get_submodule(tiny_lm.architecture.final_norm)(seen[last]), hidden)


@torch.no_grad()
def test_steering_changes_only_what_follows(tiny_lm):
    batch = tiny_lm.batch([[5, 6, 7, 8]])
    added, block0, block1 = tiny_lm.architecture.added(1), tiny_lm.architecture.block(0), tiny_lm.architecture.block(1)

    def change(state):
        state = state.clone()
        state[:, 2] += 1.0
        return state

    with watching(tiny_lm.model, outputs=[block0, block1]) as seen:
        plain = tiny_lm.hidden(batch)
        before = dict(seen)
        with steering(tiny_lm.model, {added: change}):
            steered = tiny_lm.hidden(batch)
    assert torch.equal(seen[block0], before[block0])
    torch.testing.assert_close(seen[block1][:, 2], before[block1][:, 2] + 1, atol=1e-5, rtol=1e-5)
    assert torch.equal(seen[block1][:, [0, 1, 3]], before[block1][:, [0, 1, 3]])
    assert torch.equal(plain[:, :2], steered[:, :2])  # nothing earlier moves
    assert not torch.equal(plain[:, 2:], steered[:, 2:])
    assert torch.equal(tiny_lm.hidden(batch), plain)


def test_a_bad_name_leaves_nothing_behind(tiny_lm):
    good = tiny_lm.architecture.block(0)
    with pytest.raises(AttributeError), watching(tiny_lm.model, outputs=[good, "no.such"], inputs=[good]):
        pass
    with pytest.raises(AttributeError), steering(tiny_lm.model, {good: lambda x: x, "no.such": lambda x: x}):
        pass
    with pytest.raises(AttributeError), stopping_after(tiny_lm.model, "no.such"):
        pass
    assert hooks(tiny_lm.model) == 0


def test_an_error_inside_leaves_nothing_behind(tiny_lm):
    block = tiny_lm.architecture.block(0)

    def fail(_state):
        raise RuntimeError("inside the forward pass")

    with pytest.raises(RuntimeError), watching(tiny_lm.model, outputs=[block]), steering(tiny_lm.model, {block: fail}):
        tiny_lm.hidden(tiny_lm.batch([[1, 2]]))
    assert hooks(tiny_lm.model) == 0


@torch.no_grad()
def test_stopping_after_ends_the_forward_pass(tiny_lm):
    down, later = tiny_lm.architecture.down(0), tiny_lm.architecture.block(1)
    batch = tiny_lm.batch([[1, 2]])
    finished = False
    with watching(tiny_lm.model, outputs=[down, later]) as seen, stopping_after(tiny_lm.model, down):
        tiny_lm.hidden(batch)
        finished = True
    assert not finished
    assert set(seen) == {down}


def test_self_test_passes(tiny_lm):
    tiny_lm.verify()


@pytest.mark.parametrize("family", FAMILIES)
def test_self_test_finds_a_foreign_residual_path(family):
    """A block that scales what it gives is not what the family's row says."""
    lm = tiny_model(family)
    block = lm.model.get_submodule(lm.architecture.block(lm.layers // 2))
    block.register_forward_hook(lambda _m, _i, out: with_state(out, 2 * state_of(out)))
    with pytest.raises(ModelUnavailable, match="does not add its MLP output"):
        lm.verify()


def test_refuses_a_family_without_a_row():
    config = BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)
    known = ", ".join(sorted(ARCHITECTURES))
    message = f"Models of type 'bloom' have no row .* choose a model of one of these types: {known}."
    with pytest.raises(ModelUnavailable, match=message):
        Architecture.of(config)
    with pytest.raises(ModelUnavailable, match="'bloom'"):
        LanguageModel(BloomForCausalLM(config), pocket_tokenizer(), "bloom")


def test_refuses_such_a_folder(tmp_path):
    BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match="no row in the architecture table"):
        LanguageModel.load("mine", folder=tmp_path)


def test_a_folder_round_trip(tmp_path):
    lm = tiny_model("qwen2")
    lm.model.save_pretrained(tmp_path)
    pocket_tokenizer().save_pretrained(tmp_path)
    loaded = LanguageModel.load("mine", device="cpu", folder=tmp_path)
    assert (loaded.name, loaded.layers, loaded.context) == ("mine", lm.layers, CONTEXT)
    assert torch.equal(loaded.model.get_parameter("lm_head.weight"), lm.model.get_parameter("lm_head.weight"))
    assert loaded.revision != lm.revision


@torch.no_grad()
def test_head_parity(tiny_lm):
    batch = tiny_lm.batch([[3, 1, 4, 1, 5], [9, 2, 6]])
    rows, positions = torch.tensor([0, 0, 1]), torch.tensor([4, 1, 2])
    full = tiny_lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    torch.testing.assert_close(tiny_lm.logits_at(batch, rows, positions), full[rows, positions], atol=1e-5, rtol=1e-5)


def test_only_conv1d_is_transposed(tiny_lm):
    down = tiny_lm.model.get_submodule(tiny_lm.architecture.down(0))
    assert is_transposed(down) == (tiny_lm.architecture.family == "gpt2")


def test_too_long_a_prompt_is_refused(tiny_lm):
    with pytest.raises(BadRequest, match=f"takes {CONTEXT + 1} tokens, .* reads at most {CONTEXT}"):
        tiny_lm.batch([[1] * (CONTEXT + 1)])


def test_parameters_are_frozen(tiny_lm):
    assert not any(p.requires_grad for p in tiny_lm.model.parameters())
    assert not tiny_lm.model.training
