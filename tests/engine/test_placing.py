"""A model on another device for a while: the very tensors it had are back afterwards."""

from contextlib import suppress

import pytest
import torch

from editing_core.models.delta import LowRank, WeightDelta
from editing_core.models.host import ModelHost
from editing_core.models.placing import placed
from editing_core.session import look
from tests.conftest import bit_equal, snapshot

# "meta" holds no numbers, so that this works without an accelerator; it replaces parameters, which a GPU does not.
OTHERS = ["meta", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def tensors(model):
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


@pytest.mark.parametrize("device", OTHERS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_very_tensors_are_back(tiny_models, family, device):
    model = tiny_models(family).model
    before, places = snapshot(model), {name: (tensor, tensor.data_ptr()) for name, tensor in tensors(model)}
    with suppress(ZeroDivisionError), placed(model, device):
        assert {tensor.device.type for _, tensor in tensors(model)} == {device}
        raise ZeroDivisionError
    assert bit_equal(model, before)
    found = dict(tensors(model))
    assert found.keys() == places.keys()
    assert all(found[name] is tensor and found[name].data_ptr() == at for name, (tensor, at) in places.items())


def test_on_its_own_device_nothing_happens(pocket):
    places = [tensor.data_ptr() for _, tensor in tensors(pocket.model)]
    with placed(pocket.model, "cpu"):
        assert [tensor.data_ptr() for _, tensor in tensors(pocket.model)] == places


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_on_a_gpu_says_the_same(pocket):
    name = f"{pocket.architecture.down(2)}.weight"
    here, shape = look(pocket, "The capital of France is", WeightDelta()), pocket.model.get_parameter(name).T.shape
    left, right = (
        torch.randn(size, generator=torch.Generator().manual_seed(1)) for size in ((shape[0], 1), (1, shape[1]))
    )
    delta = WeightDelta({name: LowRank(left, right)})
    with placed(pocket.model, "cuda"):
        there = look(pocket, "The capital of France is", WeightDelta())
        assert look(pocket, "The capital of France is", delta).text != there.text
    assert [chance.token for chance in there.top][:3] == [chance.token for chance in here.top][:3]


def test_a_forked_host_has_the_same_models_and_its_own_lock(pocket):
    host = ModelHost(device="cpu")
    host._loaded["pocket-gpt2"] = pocket
    with host._lock:
        own = host.forked()
        assert own.get("pocket-gpt2") is pocket
    assert (own.capacity, own.device, own.dtype) == (host.capacity, host.device, host.dtype)
