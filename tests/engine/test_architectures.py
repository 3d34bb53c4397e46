"""The table of families: what a configuration decides, what is refused and why, and the self-test of a loaded model."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3MoeConfig,
    T5Config,
)

from editing_core.errors import BadRequest, ModelUnavailable
from editing_core.evaluation.scoring import score_objects
from editing_core.models import selftest
from editing_core.models.architectures import ARCHITECTURES, Architecture, window_of
from editing_core.models.language_model import LanguageModel
from editing_core.models.reading import read
from tests.conftest import CONFIGS, FAMILIES, pocket_tokenizer, tiny_config, tiny_model

PACKED = {"quant_method": "gptq", "bits": 4}


def test_every_row_has_a_tiny_model():
    assert {tiny_config(family).model_type for family in FAMILIES} == set(ARCHITECTURES)


@pytest.mark.parametrize("parallel", [True, False])
def test_what_checkpoints_differ_in_is_read_from_the_configuration(parallel):
    assert Architecture.of(GPTNeoXConfig(use_parallel_residual=parallel)).parallel == parallel


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MixtralConfig(), "'mixtral' routes each token .* choose a dense model"),
        (Qwen3MoeConfig(), "'qwen3_moe' routes each token"),
        (GptOssConfig(), "'gpt_oss' routes each token"),
        (OlmoeConfig(), "'olmoe' routes each token"),
        (BertConfig(), "'bert' fills gaps in a text"),
        (T5Config(), "'t5' reads its text with an encoder"),
        (Gemma3Config(), "'gemma3' wraps its text model for other inputs"),
        (
            LlamaConfig(quantization_config=PACKED),
            r"'llama' keeps its linear layers packed \(gptq\) .* choose a checkpoint that is plain",
        ),
        (OPTConfig(do_layer_norm_before=False), "do_layer_norm_before=False: it normalises the residual stream"),
        (Gemma3TextConfig(use_bidirectional_attention=True), "lets tokens see what stands behind them"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_what_cannot_be_edited_is_refused_before_it_is_loaded(config, words, tmp_path):
    with pytest.raises(ModelUnavailable, match=words) as found:
        Architecture.of(config)
    assert str(found.value).count(". ") == 0, "one sentence"
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match=words):
        LanguageModel.load("mine", folder=tmp_path)


def test_code_from_a_repository_is_never_run(tmp_path):
    told = {"model_type": "mine", "auto_map": {"AutoConfig": "code.MineConfig", "AutoModelForCausalLM": "code.Mine"}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    (tmp_path / "code.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ModelUnavailable, match="runs Python code of its own repository, which EditScope never does"):
        LanguageModel.load("mine", folder=tmp_path)


@pytest.mark.parametrize(
    ("config", "window"),
    [
        (GPT2Config(), None),
        (MistralConfig(sliding_window=64), 64),
        (MistralConfig(sliding_window=None), None),
        (Qwen2Config(sliding_window=64), None),
        (Gemma3TextConfig(sliding_window=64), 64),
        (Gemma3TextConfig(sliding_window=64, num_hidden_layers=1, layer_types=["full_attention"]), None),
    ],
)
def test_windows(config, window):
    assert window_of(config) == window


WINDOW = 24


@pytest.fixture(params=["mistral", "gemma2", "gemma3_text", "olmo3"])
def narrow(request, monkeypatch):
    """A family whose attention slides, with a window much shorter than its positions."""
    kind, values = CONFIGS[request.param]
    monkeypatch.setitem(CONFIGS, request.param, (kind, {**values, "sliding_window": WINDOW}))
    return tiny_model(request.param, torch.float64)


@torch.no_grad()
def test_rows_are_no_longer_than_a_window(narrow):
    assert narrow.context == WINDOW
    with pytest.raises(BadRequest, match=f"reads at most {WINDOW}"):
        narrow.batch([[1] * (WINDOW + 1)])


@torch.no_grad()
def test_shared_beginnings_of_very_different_lengths_stay_inside_a_window(narrow, monkeypatch):
    """A short beginning kept beside a long one leaves empty slots, more than the window together with its row."""
    monkeypatch.setattr("editing_core.models.reading.shared_beginnings", lambda _rows: [3, 3, 20, 20])
    long, short = tuple(range(10, 30)), (5, 6, 7)
    rows = [(*long, 40, 41), (*long, 42), (*short, *range(50, 65)), (*short, *range(70, 84))]
    asked = [[len(row) - 1] for row in rows]
    for numbers, logits in read(narrow, rows, asked):
        found = iter(logits)
        for number in numbers:
            ids = torch.tensor([rows[number]])
            own = narrow.model(input_ids=ids, use_cache=False).logits[0, -1]
            torch.testing.assert_close(next(found), own, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_capped_logits_are_the_models_own(tiny_models):
    """Also in what is scored; the head alone gives others."""
    lm = tiny_models("gemma2")
    batch = lm.batch([[3, 1, 4]])
    hidden, own = lm.hidden(batch), lm.model(input_ids=batch.ids, use_cache=False).logits
    torch.testing.assert_close(lm.logits(hidden), own)
    assert (lm.head(hidden) - own).abs().max() > 0.1
    assert own.abs().max() <= lm.model.config.final_logit_softcapping
    (score,) = score_objects(lm, [("Anna Brown plays the", "guitar")])
    text = lm.tokenizer("Anna Brown plays the guitar")["input_ids"]
    logits = lm.model(input_ids=torch.tensor([text]), use_cache=False).logits[0]
    count = len(score.labels)
    wanted = logits.log_softmax(-1)[-1 - count : -1].gather(1, torch.tensor(text[-count:])[:, None]).mean()
    assert score.logp == pytest.approx(float(wanted), abs=1e-5)


def refused(lm, words):
    with pytest.raises(ModelUnavailable, match=words) as found:
        lm.verify()
    assert str(found.value).count(". ") == 0, "one sentence"


def test_a_missing_module_is_told():
    lm = tiny_model("llama")
    lm.architecture = replace(lm.architecture, mlp_down="mlp.other")
    refused(lm, "has no module model.layers.0.mlp.other")


def test_packed_weights_are_told():
    lm = tiny_model("llama")
    down = lm.model.get_submodule(lm.architecture.down(1))
    down.weight = nn.Parameter(down.weight.to(torch.int8), requires_grad=False)
    refused(lm, "keeps model.layers.1.mlp.down_proj as Linear and not as a plain or packed weight matrix, which an")


def test_scaled_logits_are_told():
    lm = tiny_model("llama")
    lm.model.register_forward_hook(lambda _m, _i, out: setattr(out, "logits", out.logits * 2))
    refused(lm, "makes its logits in a way EditScope does not know")


def test_a_norm_that_the_row_does_not_name_is_told():
    lm = tiny_model("olmo2")
    lm.architecture = replace(lm.architecture, mlp_norm=None)
    refused(lm, "does not add its MLP output")


def test_a_norm_of_another_kind_is_told():
    lm = tiny_model("olmo2")
    block = lm.model.get_submodule(lm.architecture.block(1))
    block.post_feedforward_layernorm = nn.LayerNorm(block.hidden_size)
    nn.init.normal_(block.post_feedforward_layernorm.bias)
    refused(lm, "does not add its MLP output")


class Tokenizer(SimpleNamespace):
    """The bundled tokenizer, whose offsets can be wrong."""

    def __call__(self, text, **options):
        found = dict(pocket_tokenizer()(text, **options))
        if "offset_mapping" in found and self.off:
            found["offset_mapping"] = [(0, 0), *found["offset_mapping"][:-1]]
        return found

    def decode(self, ids):
        return pocket_tokenizer().decode(ids)


@pytest.mark.parametrize(
    ("fast", "off", "words"),
    [
        (False, False, "has a tokenizer that does not tell where"),
        (True, True, "has a tokenizer whose tokens do not stand where it says: 'Anna Brown' was looked for"),
        (True, False, ""),
    ],
)
def test_subjects_are_found_in_the_middle_of_a_prompt(fast, off, words):
    lm = tiny_model("gpt2")
    lm.tokenizer = Tokenizer(is_fast=fast, off=off, unk_token_id=None)
    if words:
        refused(lm, words)
    else:
        selftest.check_subjects(lm)
