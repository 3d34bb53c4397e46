"""Models spread over several devices, and weights that are on none between forwards."""

import pytest
import torch
from accelerate import dispatch_model

from editing_core.data.encoder import encoder_of
from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadRequest
from editing_core.evaluation.generation import sample_texts
from editing_core.evaluation.scoring import free_choices, generate, next_tokens, score_objects, text_perplexities
from editing_core.export.merged import write_merged
from editing_core.export.origin import described
from editing_core.models.language_model import LanguageModel
from editing_core.models.slots import Slot
from editing_core.registry import EDITORS
from editing_core.session import run_edit
from editing_core.statistics.covariance import CovarianceStore
from tests.conftest import tiny_model
from tests.engine.conftest import EVALUATOR, asked_of, plan, same_edit, small
from tests.engine.two_devices import FIRST, SECOND, TwoDevices, split

FAMILIES = ("gpt2", "gptj", "llama", "opt", "gemma2")
# Every editor on one family, and PMET, which looks at attention and MLP, on all. Slow: what others are composed of.
CASES = [("llama", editor) for editor in EDITORS if editor not in ("emmet", "alphaedit", "r-rome")]
CASES += [(family, "pmet") for family in FAMILIES if family != "llama"]
CASES += [pytest.param("llama", editor, marks=pytest.mark.slow) for editor in ("emmet", "alphaedit", "r-rome")]


def edited(lm, requests, editor, store, corpus, layers=(0, 1)):
    settings = small(editor, layers=layers, layer=layers[-1])
    store.remember(lm, corpus)
    store.collect(lm, list(layers), corpus)
    how = plan("memit")
    how = type(how)(editor, settings, StopSettings(iterations=2, stop="none"), how.seed)
    return run_edit(lm, asked_of(editor, requests), how, store, evaluator=EVALUATOR)


def same(here, there):
    same_edit(here, there)
    for column in ("p_new", "p_true"):
        own, plain = (result.probes[column].to_numpy(float) for result in (here, there))
        assert own == pytest.approx(plain, abs=1e-5, rel=1e-3)


def test_devices_that_are_none_are_told_apart():
    with TwoDevices() as mode:
        one, two = torch.zeros(3, device="cuda:0"), torch.zeros(3, device="cuda:1")
        assert (one.device, two.device, one.cpu().device.type) == (FIRST, SECOND, "cpu")
        assert (two + 1).device == two[0].device == torch.zeros_like(two).device == SECOND
        assert (one.to(two.device) + two).device == SECOND
        assert two[torch.tensor([0])].device == SECOND
        here = torch.ones(3)
        for meet in (lambda: one + two, lambda: torch.cat([one, two]), lambda: one[two.long()], lambda: one + here):
            with pytest.raises(RuntimeError, match="tensors on"):
                meet()
        assert mode.used >= {FIRST, SECOND}


@pytest.fixture
def cards(monkeypatch):
    """What is asked of the cards themselves."""
    forked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (80 * 10**9, 80 * 10**9))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _device: 0)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: forked.append(device))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda _state, _device: None)
    return forked


@pytest.mark.parametrize(("family", "editor"), CASES)
@pytest.mark.usefixtures("cards")
def test_over_two_devices_no_tensors_of_both_meet(family, editor, requests_, corpus, tmp_path):
    """The edited layers lie on both sides of the border."""
    plain = edited(tiny_model(family), requests_, editor, CovarianceStore(tmp_path / "plain"), corpus)
    lm = tiny_model(family)
    with TwoDevices() as mode:
        split(lm, mode, 1)
        assert lm.device == FIRST
        lm.verify()
        found = edited(lm, requests_, editor, CovarianceStore(tmp_path / "split"), corpus)
        assert mode.used >= {FIRST, SECOND}
    same(found, plain)


@torch.no_grad()
def measured(lm):
    """What is asked of a model beside editing it."""
    prompts = ["Mary Walker was born in", "The river runs through the old"]
    pairs = [(prompt, word) for prompt in prompts for word in ("Paris", "the old city")]
    scores = score_objects(lm, pairs)
    return {
        "scores": [score.logp for score in (*scores, *score_objects(lm, pairs, groups=[0] * 4))],
        "choices": free_choices(lm, pairs, scores),
        "next": [chance.probability for chance in next_tokens(lm, prompts[0])],
        "perplexities": text_perplexities(lm, EVALUATOR.texts),
        "greedy": generate(lm, prompts[0]),
        "texts": sample_texts(lm, prompts, length=20),
        "encoded": encoder_of(lm, own=True).encode(prompts).flatten().tolist(),
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("cards")
def test_over_two_devices_everything_is_measured_the_same(family):
    plain, lm = measured(tiny_model(family)), tiny_model(family)
    with TwoDevices() as mode:
        split(lm, mode, 2)
        found = measured(lm)
        assert lm.devices == [FIRST, SECOND]
    assert found.keys() == plain.keys()
    for name, value in found.items():
        assert value == (
            plain[name]
            if isinstance(value, str) or name in ("texts", "choices")
            else pytest.approx(plain[name], abs=1e-5, rel=1e-4)
        ), name


@pytest.mark.usefixtures("cards")
def test_all_devices_of_a_model_keep_their_random_numbers(requests_, corpus, tmp_path, cards):
    lm = tiny_model("llama")
    with TwoDevices() as mode:
        split(lm, mode, 1)
        edited(lm, requests_, "finetuning", CovarianceStore(tmp_path), corpus)
    assert set(cards) == {FIRST, SECOND}


def offloaded(family, folder, at=1):
    """Blocks from `at` on lie on disk and are on no device between forwards."""
    lm = tiny_model(family)
    names = {lm.architecture.block(layer): "disk" if layer >= at else "cpu" for layer in range(lm.layers)}
    root = lm.architecture.blocks.rpartition(".")[0]
    beside = [f"{root}.{name}" for name, _ in lm.model.get_submodule(root).named_children()]
    top = [name for name, _ in lm.model.named_children() if not root.startswith(name)]
    places = names | {name: "cpu" for name in [*beside, *top] if name != lm.architecture.blocks}
    dispatch_model(lm.model, places, main_device="cpu", offload_dir=str(folder), skip_keys="past_key_values")
    return lm


@pytest.mark.parametrize(("family", "editor"), CASES)
def test_edits_of_weights_on_disk_are_those_of_weights_at_hand(family, editor, requests_, corpus, tmp_path):
    plain = edited(tiny_model(family), requests_, editor, CovarianceStore(tmp_path / "plain"), corpus)
    lm = offloaded(family, tmp_path)
    lm.verify()
    found = edited(lm, requests_, editor, CovarianceStore(tmp_path / "spread"), corpus)
    down = f"{lm.architecture.down(1)}.weight"
    assert Slot.of(lm.model, f"{lm.architecture.down(0)}.weight").plain
    assert not Slot.of(lm.model, down).plain
    spread_out = editor not in ("rome", "r-rome") and not EDITORS[editor].beside
    assert not spread_out or down in found.delta_at(2).updates
    if editor == "finetuning":  # an adapter begins with other random numbers where weights are on no device
        before, after = (found.probes_at(k, requests_[0].case_id).iloc[0]["p_new"] for k in (0, 2))
        assert after > 1.05 * before
        return
    same(found, plain)
    for here, there in zip(found.proofs[-1], plain.proofs[-1], strict=True):
        assert (here.parameter, here.total) == (there.parameter, there.total)
        assert here.relative_norm == pytest.approx(there.relative_norm, rel=1e-3)


def test_a_device_map_is_loaded(tmp_path, requests_, corpus):
    """By transformers, from a folder whose weights stay on disk."""
    plain = tiny_model("llama")
    plain.model.save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    parts = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.0", "model.layers.2")
    places = {**dict.fromkeys(parts, "cpu"), "model.layers.1": "disk"}
    lm = LanguageModel.load("mine", device=places, folder=tmp_path)
    assert lm.device.type == "cpu"
    assert not Slot.of(lm.model, "model.layers.1.mlp.down_proj.weight").plain
    same(
        edited(lm, requests_, "memit", CovarianceStore(tmp_path / "a"), corpus),
        edited(plain, requests_, "memit", CovarianceStore(tmp_path / "b"), corpus),
    )


def test_weights_on_disk_are_not_merged(tmp_path, requests_, corpus):
    lm = offloaded("llama", tmp_path / "disk")
    result = edited(lm, requests_, "memit", CovarianceStore(tmp_path / "store"), corpus)
    with pytest.raises(BadRequest, match=r"packed or offloaded .* export an adapter"):
        write_merged(lm, described(result), tmp_path / "merged")
