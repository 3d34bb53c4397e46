"""Edits of weights that nothing can be added to: carried beside, they do what added ones do, and leave no trace."""

import pytest
import torch
from torch import nn

from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadRequest, BadSetting, ModelUnavailable
from editing_core.models import slots
from editing_core.models.delta import Dense, LowRank, WeightDelta
from editing_core.models.edit import edits_on
from editing_core.models.slots import Slot
from editing_core.models.trainable import Lora, adapted, unfrozen
from editing_core.registry import EDITORS
from editing_core.session import run_edit
from tests.conftest import bit_equal, snapshot, tiny_model
from tests.engine.conftest import EVALUATOR, asked_of, plan, same_edit, small
from tests.engine.packed import Packed, pack, unpack

FAMILIES = ("gptj", "llama", "opt", "gemma2")  # with a bias or without, in parallel, without an MLP module, normed
LORA = Lora(2, 4.0)
IDS = torch.tensor([[5, 6, 7, 8, 9], [3, 1, 4, 1, 5]])


def pair(family, also=(), dtype=torch.float32):
    """One model with packed down-projections, and one with the weights that those stand for."""
    found = []
    for _ in range(2):
        lm = tiny_model(family, dtype)
        pack(lm.model, [lm.architecture.down(layer) for layer in range(lm.layers)] + list(also))
        found.append(lm)
    unpack(found[1].model)
    found[1].name = "plain"
    return found


def low_rank(shape, rank=2, seed=1, size=0.3):
    made = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, generator=made, dtype=torch.float64) for n in ((shape[0], rank), (rank, shape[1])))
    return LowRank(size * left, right / shape[1] ** 0.5)


def edit_of(lm, layers=(0, 2), rank=2, dense=False):
    found = {}
    for layer in layers:
        name = f"{lm.architecture.down(layer)}.weight"
        update = low_rank(Slot.of(lm.model, name).shape, rank, seed=layer)
        found[name] = Dense(update.dense()) if dense else update
    return WeightDelta(found)


@torch.no_grad()
def logits(lm):
    return lm.model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [{}, {"dense": True}, {"rank": 100}], ids=["low-rank", "dense", "more-than-full"])
def test_carried_is_added(family, kind):
    packed, plain = pair(family)
    before, delta = logits(packed), edit_of(packed, **kind)
    assert not delta.added_to(packed.model)
    assert delta.added_to(plain.model)
    torch.testing.assert_close(before, logits(plain), atol=1e-6, rtol=1e-6)
    kept = snapshot(packed.model)
    with delta.applied(packed), delta.applied(plain):
        assert bit_equal(packed.model, kept), "no weight is touched"
        here, there = logits(packed), logits(plain)
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)
    assert (there - before).abs().max() > 0.1
    assert torch.equal(logits(packed), before)
    assert not any("forward" in vars(module) for module in packed.model.modules()), "nothing is left behind"


def test_half_precision_is_rounded_once():
    packed, _ = pair("llama", dtype=torch.bfloat16)
    name = packed.architecture.down(0)
    module, delta = packed.model.get_submodule(name), edit_of(packed, [0])
    x = torch.randn(3, module.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    wanted = module(x).float() + x.float() @ delta.updates[f"{name}.weight"].dense().float().T
    with delta.applied(packed):
        found = module(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted.bfloat16())


def test_biases_are_carried_where_they_are_not_there():
    plain = nn.Sequential(nn.Linear(4, 3))
    with torch.device("meta"):
        module = nn.Linear(4, 3)
    offloaded = nn.Sequential(module)
    run = plain[0].forward
    module.forward = lambda x: run(x)  # as accelerate makes the weights be there for a forward
    delta = WeightDelta({"0.bias": Dense(torch.tensor([1.0, 2, 3])), "0.weight": low_rank((3, 4))})
    x = torch.randn(2, 4)
    with delta.on(offloaded):
        found = offloaded(x)
    assert torch.equal(offloaded(x), plain(x))
    (bias, weight), told = delta.proofs(plain), delta.proofs(offloaded)
    assert [(p.parameter, p.rank, p.total) for p in told] == [("0.bias", 1, 3), ("0.weight", 2, 12)]
    assert [p.relative_norm for p in told] == pytest.approx([bias.relative_norm, weight.relative_norm], rel=1e-5)
    with delta.on(plain):
        torch.testing.assert_close(found, plain(x))


def test_shared_weights_are_carried_by_every_module_that_has_them():
    made = torch.Generator().manual_seed(0)
    numbers, update = torch.randn(10, 4, generator=made), low_rank((10, 4))

    def tied(device):
        table, head = nn.Embedding(10, 4, device=device), nn.Linear(4, 10, bias=False, device=device)
        head.weight = table.weight
        return nn.ModuleDict({"table": table, "head": head})

    plain, offloaded = tied("cpu"), tied("meta")
    with torch.no_grad():
        plain["table"].weight.copy_(numbers)
    for name in plain:
        offloaded[name].forward = plain[name].forward
    x, ids = torch.randn(2, 4, generator=made), torch.tensor([[1, 9], [3, 3]])
    for delta in (WeightDelta({"head.weight": update}), WeightDelta({"table.weight": Dense(update.dense())})):
        with delta.on(offloaded):
            found = offloaded["head"](x), offloaded["table"](ids)
        with delta.on(plain):
            torch.testing.assert_close(found, (plain["head"](x), plain["table"](ids)), atol=1e-5, rtol=1e-5)
        here, there = (delta.proofs(model)[0] for model in (offloaded, plain))
        assert here.relative_norm == pytest.approx(there.relative_norm, rel=1e-5)


def test_edits_nest_and_come_off_after_an_error():
    packed, plain = pair("llama")
    one, two = edit_of(packed, [0, 1]), edit_of(packed, [1, 2], rank=3)
    before = logits(packed)
    with one.applied(packed):
        outer = logits(packed)
        with two.applied(packed), (one + two).applied(plain):
            assert edits_on(packed.model) == 2
            torch.testing.assert_close(logits(packed), logits(plain), atol=1e-5, rtol=1e-5)
        with pytest.raises(ValueError, match="inner"), two.applied(packed):
            raise ValueError("inner")
        assert edits_on(packed.model) == 1
        assert torch.equal(logits(packed), outer)
    assert torch.equal(logits(packed), before)


def test_proofs_are_of_what_packed_weights_stand_for(monkeypatch):
    packed, plain = pair("gptj")
    delta, whole = edit_of(packed), edit_of(packed).proofs(packed.model)
    monkeypatch.setattr(slots, "TILE", 200)  # a few rows at a time
    for here, there, at_once in zip(delta.proofs(packed.model), delta.proofs(plain.model), whole, strict=True):
        assert (here.parameter, here.rank, here.total) == (there.parameter, 2, there.total)
        assert here.relative_norm == pytest.approx(there.relative_norm, rel=1e-5)
        assert here.relative_norm == pytest.approx(at_once.relative_norm, rel=1e-9)
        assert here.changed == pytest.approx(there.changed, rel=1e-3)


def test_what_cannot_be_carried_is_refused_before_anything_is_touched():
    packed, _ = pair("llama")
    before = logits(packed)
    norm = packed.model.get_submodule("model.norm")
    norm.weight = nn.Parameter(torch.empty(norm.weight.shape, device="meta"), requires_grad=False)
    delta = WeightDelta({**edit_of(packed).updates, "model.norm.weight": Dense(torch.ones(32))})
    with pytest.raises(BadRequest, match=r"changes model.norm.weight, which is packed or offloaded .* of no linear"):
        delta.applied(packed).__enter__()
    norm.weight = nn.Parameter(torch.ones(32), requires_grad=False)
    assert torch.equal(logits(packed), before)
    name = f"{packed.architecture.down(0)}.weight"
    with pytest.raises(BadRequest, match=r"has shape \(7, 64\), the model needs \(32, 64\)"):
        WeightDelta({name: low_rank((7, 64))}).applied(packed).__enter__()
    with pytest.raises(BadRequest, match="does not have"):
        WeightDelta({"model.norm.scale": Dense(torch.ones(32))}).applied(packed).__enter__()


@pytest.mark.parametrize("family", ["gptj", pytest.param("gemma2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("editor", EDITORS)
def test_every_editor_writes_the_same_into_packed_weights(editor, family, store, corpus, requests_):
    """Two iterations, so that the second is made on the first."""
    results = []
    for lm in pair(family):
        lm.name = f"{lm.name}-{family}-{editor}"
        store.remember(lm, corpus)
        store.collect(lm, [0, 1], corpus)
        how = plan("memit", iterations=2)
        how = type(how)(editor, small(editor), StopSettings(iterations=2, stop="none"), how.seed)
        before = snapshot(lm.model)
        results.append(run_edit(lm, asked_of(editor, requests_), how, store, evaluator=EVALUATOR))
        assert bit_equal(lm.model, before)
    here, there = results
    same_edit(here, there)
    for column in ("p_new", "p_true"):
        told = (result.probes[column].to_numpy(float) for result in results)
        assert next(told) == pytest.approx(next(told), abs=1e-4, rel=1e-2)
    for one, other in zip(here.proofs[-1], there.proofs[-1], strict=True):
        assert one.relative_norm == pytest.approx(other.relative_norm, rel=1e-3)


def test_kept_states_do_not_count_an_edit_twice():
    """A target optimisation keeps what projections into attention gave, with the edit in it."""
    from editing_core.models.replay import Replay, Scene

    also = [f"model.layers.{n}.self_attn.{part}_proj" for n in range(3) for part in "qkvo"]
    packed, plain = pair("llama", also)
    delta = WeightDelta({f"{name}.weight": low_rank(Slot.of(packed.model, f"{name}.weight").shape) for name in also})
    found = []
    for lm in (packed, plain):
        scenes = [Scene((5, 6, 7, 8, 9), 2, (3, 4)), Scene((3, 1, 4, 1), 1, (3,))]
        site = lm.architecture.down(0)
        with torch.no_grad(), delta.applied(lm):
            replay = Replay(lm, [site], scenes)
            found.append(replay.run({site: 0.1 * torch.ones(2, 32)}))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_weights_themselves_are_not_trained_where_they_are_packed():
    packed, _ = pair("llama")
    down = packed.architecture.down(1)
    with (
        pytest.raises(BadSetting, match=r"keeps 1 of the weights .* packed or offloaded, .* train an adapter"),
        unfrozen(packed, [f"{down}.weight", "model.norm.weight"]),
    ):
        pass


class Other(nn.Module):
    """A layer that tells nothing of itself."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_a_module_that_is_no_linear_layer_is_refused():
    lm = tiny_model("llama")
    name = lm.architecture.down(1)
    lm.model.set_submodule(name, Other(lm.model.get_submodule(name)))
    with pytest.raises(BadSetting, match=f"no adapter for {name}, a layer of type Other"), adapted(lm, [name], LORA):
        pass
    with pytest.raises(ModelUnavailable, match=f"keeps {name} as Other and not as a plain or packed weight matrix"):
        lm.verify()


@pytest.mark.parametrize("family", FAMILIES)
def test_self_test_passes_on_packed_weights(family):
    packed, _ = pair(family)
    packed.verify()
    assert isinstance(packed.model.get_submodule(packed.architecture.down(0)), Packed)
