"""Models in 8 and 4 bits, packed by bitsandbytes for real; skipped where it is missing."""

import math

import pytest
import torch

from editing_core import cli
from editing_core.data.examples import load_examples
from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadRequest, BadSetting, ModelUnavailable
from editing_core.export.exporting import export
from editing_core.export.importing import import_edit
from editing_core.export.origin import described
from editing_core.models.delta import LowRank, WeightDelta
from editing_core.models.language_model import LanguageModel
from editing_core.models.slots import Slot
from editing_core.models.weights import weight_bytes
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import run_edit
from editing_core.statistics.covariance import CovarianceStore
from tests.conftest import bit_equal, pocket_tokenizer, snapshot, tiny_model

bitsandbytes = pytest.importorskip("bitsandbytes")

QUANTISED = ("int8", "nf4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama whose sizes no kernel likes: 4-bit blocks end in the middle of a row."""
    place = tmp_path_factory.mktemp("llama")
    tiny_model("llama").model.save_pretrained(place)
    pocket_tokenizer().save_pretrained(place)
    return place


def loaded(folder, quantised):
    return LanguageModel.load("tiny", device="cpu", folder=folder, quantised=quantised)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return CovarianceStore(tmp_path_factory.mktemp("statistics"))


@torch.no_grad()
def logits(lm):
    return lm.model(input_ids=torch.tensor([[5, 6, 7, 8, 9]]), use_cache=False).logits


def edited(lm, store, requests, editor, changes=None):
    row = editor_row(editor)
    settings = row.preset(lm.name).settings.changed(changes or {})
    if corpus := store.text_of(lm):
        layers = list(row.layers(settings))
        store.collect(lm, layers, corpus)
    return run_edit(lm, requests, EditPlan(editor, settings, StopSettings(iterations=1, stop="none"), 0), store)


@pytest.mark.parametrize("quantised", QUANTISED)
def test_packed_layers_carry_an_edit_and_lose_it_again(folder, quantised):
    lm = loaded(folder, quantised)
    assert (lm.quantised, lm.numbers) == (quantised, f"float32-{quantised}")
    name = f"{lm.architecture.down(1)}.weight"
    slot = Slot.of(lm.model, name)
    assert not slot.plain
    assert slot.shape == (32, 64)
    assert slot.parameter.dtype in (torch.uint8, torch.int8)
    before, kept = logits(lm), snapshot(lm.model)
    delta = WeightDelta({name: LowRank(torch.ones(32, 1), torch.ones(1, 64) / 64)})
    module = lm.model.get_submodule(lm.architecture.down(1))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    plain = module(x)
    with delta.applied(lm):
        torch.testing.assert_close(module(x), plain + x.mean(1, keepdim=True), atol=1e-5, rtol=1e-5)
        assert (logits(lm) - before).abs().max() > 1e-3
    assert torch.equal(logits(lm), before)
    assert bit_equal(lm.model, kept)


@pytest.mark.parametrize("quantised", QUANTISED)
def test_proofs_are_of_the_unpacked_weights(folder, quantised):
    lm, plain = loaded(folder, quantised), loaded(folder, "none")
    name = f"{lm.architecture.down(1)}.weight"
    rows = torch.cat([rows for _, rows in Slot.of(lm.model, name).rows()]).T
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    module = lm.model.get_submodule(lm.architecture.down(1))
    theirs = dequantize_bnb_weight(module.weight, state=getattr(module, "state", None)).float()
    torch.testing.assert_close(rows, theirs, atol=2e-4, rtol=2e-3)
    whole = plain.model.get_parameter(name)
    assert (rows - whole).norm() / whole.norm() < (0.01 if quantised == "int8" else 0.12)
    delta = WeightDelta({name: LowRank(torch.ones(32, 1), torch.ones(1, 64))})
    (proof,) = delta.proofs(lm.model)
    assert proof.relative_norm == pytest.approx((32 * 64) ** 0.5 / float(theirs.norm()), rel=1e-3)
    assert (proof.total, proof.rank) == (32 * 64, 1)


@pytest.mark.parametrize("quantised", QUANTISED)
def test_gradients_pass_packed_layers_after_a_forward_without(folder, quantised):
    """On processors with bfloat16 arithmetic the library otherwise repacks weights at the first, and has none then."""
    lm = loaded(folder, quantised)
    module = lm.model.get_submodule(lm.architecture.down(1))
    rows = torch.cat([rows for _, rows in Slot.of(lm.model, f"{lm.architecture.down(1)}.weight").rows()])  # (64, 32)
    x = torch.randn(1, 64, requires_grad=True)
    module(x).sum().backward()
    torch.testing.assert_close(x.grad[0], rows.sum(1), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("quantised", QUANTISED)
@pytest.mark.parametrize("name", ["pocket-llama", "pocket-gpt2"])
def test_bytes_are_told_before_loading(name, quantised):
    model = LanguageModel.load(name, device="cpu", quantised=quantised).model
    tensors = {t.data_ptr(): t.numel() * t.element_size() for t in model.state_dict().values()}
    assert weight_bytes(model.config, torch.float32, quantised) == pytest.approx(sum(tensors.values()), rel=0.02)


FACT = load_examples()[0].requests


def probabilities(result):
    """Of the new object, before and after."""
    return [result.probes_at(k, FACT[0].case_id).iloc[0]["p_new"] for k in (0, result.last)]


@pytest.mark.parametrize("quantised", QUANTISED)
@pytest.mark.parametrize(
    ("name", "editor"), [("pocket-llama", "rome"), ("pocket-llama", "memit"), ("pocket-gpt2", "rome")]
)
def test_an_edit_of_a_packed_model_does_what_it_does_to_the_plain_one(name, editor, quantised, store):
    """GPT-2 stores its weights the other way round, and bitsandbytes does not."""
    results = []
    for form in ("none", quantised):
        lm = LanguageModel.load(name, device="cpu", quantised=form)
        before = snapshot(lm.model)
        results.append(edited(lm, store, FACT, editor))
        assert bit_equal(lm.model, before)
    plain, packed = ([math.log(p) for p in probabilities(result)] for result in results)
    assert packed[1] > packed[0] + 2
    assert packed[1] - packed[0] == pytest.approx(plain[1] - plain[0], rel=0.15)
    for here, there in zip(*(result.proofs[-1] for result in results), strict=True):
        assert (here.parameter, here.rank, here.total) == (there.parameter, there.rank, there.total)
        assert here.relative_norm == pytest.approx(there.relative_norm, rel=0.25)


def test_statistics_of_packed_models_are_their_own(folder, store):
    plain, packed = loaded(folder, "none"), loaded(folder, "nf4")
    text = store.text_of(LanguageModel.load("pocket-gpt2", device="cpu"))
    assert store.key(plain, 0, text) != store.key(packed, 0, text)
    assert store.key(plain, 0, text).dtype == "float32"


@pytest.mark.parametrize("quantised", QUANTISED)
def test_adapters_are_trained_beside_packed_weights_and_whole_weights_are_not(quantised, store):
    lm = LanguageModel.load("pocket-llama", device="cpu", quantised=quantised)
    before = snapshot(lm.model)
    changes = {"epochs": 8, "paraphrases": 2, "random_facts": 0, "rank": 4, "rate": 3e-3}
    start, end = probabilities(edited(lm, store, FACT, "finetuning", changes))
    assert end > 100 * start
    assert bit_equal(lm.model, before)
    with pytest.raises(BadSetting, match="packed or offloaded, where they cannot be trained; train an adapter"):
        edited(lm, store, FACT, "finetuning", {**changes, "lora": False, "where": "down"})
    assert bit_equal(lm.model, before)


@pytest.mark.parametrize("quantised", QUANTISED)
def test_exports_of_packed_models(quantised, store, tmp_path):
    """Adapters and edit files do elsewhere what the edit does here; merged models cannot be made."""
    lm = LanguageModel.load("pocket-llama", device="cpu", quantised=quantised)
    delta = described(edited(lm, store, FACT, "rome"))
    for kind, place in (("adapter", tmp_path / "adapter"), ("edit", tmp_path / "edit.safetensors")):
        check = export(lm, delta, kind, place)
        assert check.ok, check.told()
        assert check.change > 100 * check.bound
    assert f"packed in {quantised}" in (tmp_path / "adapter" / "README.md").read_text()
    with pytest.raises(BadRequest, match=r"nothing can be added there; export an adapter"):
        export(lm, delta, "merged", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    back = import_edit(lm, tmp_path / "adapter")
    assert back.updates.keys() == delta.updates.keys()


def test_a_checkpoint_that_is_packed_already(folder, tmp_path):
    lm = loaded(folder, "nf4")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    again = LanguageModel.load("packed", device="cpu", folder=tmp_path)
    assert again.quantised == "nf4"
    torch.testing.assert_close(logits(again), logits(lm), atol=1e-5, rtol=1e-5)
    name = f"{again.architecture.down(0)}.weight"
    with WeightDelta({name: LowRank(torch.ones(32, 1), torch.ones(1, 64))}).applied(again):
        assert (logits(again) - logits(lm)).abs().max() > 1e-3
    with pytest.raises(ModelUnavailable, match=r"is packed already \(nf4\)"):
        LanguageModel.load("packed", device="cpu", folder=tmp_path, quantised="int8")


def test_the_command_line_edits_a_packed_model(capsys):
    command = ["edit", "--example", "1", "--model", "pocket-llama", "--editor", "rome", "--iterations", "1"]
    assert cli.run([*command, "--quantised", "nf4", "--device", "cpu"]) == 0
    assert "relative norm" in capsys.readouterr().out
