"""Fixtures: the bundled model, and a tiny random model of every supported family.

The environment is set before anything of EditScope is imported: tests write into a folder of their own
and never reach the network.
"""

import os
import tempfile

_HOME = tempfile.TemporaryDirectory(prefix="editscope-tests-")
os.environ["EDITSCOPE_HOME"] = _HOME.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from contextlib import contextmanager  # noqa: E402
from functools import cache  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from editing_core import paths  # noqa: E402
from editing_core.errors import Cancelled  # noqa: E402
from editing_core.models.language_model import LanguageModel  # noqa: E402
from editing_core.types import EditRequest, Probe  # noqa: E402

torch.set_num_threads(1)

BLOCKS, WIDTH, HEADS, CONTEXT = 3, 32, 4, 128


@cache
def pocket_tokenizer():
    return AutoTokenizer.from_pretrained(paths.assets() / "models" / "pocket-gpt2")


GPT = {"n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": BLOCKS, "n_head": HEADS, "initializer_range": 0.15}
GPT |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
PLAIN = {"max_position_embeddings": CONTEXT, "hidden_size": WIDTH, "num_hidden_layers": BLOCKS}
PLAIN |= {"num_attention_heads": HEADS}
WIDE = {**PLAIN, "intermediate_size": 2 * WIDTH, "initializer_range": 0.15, "tie_word_embeddings": False}
LLAMA = {**WIDE, "num_key_value_heads": 2}
SLIDING = {**LLAMA, "sliding_window": CONTEXT}
# Caps so low that they show.
GEMMA = {**SLIDING, "head_dim": WIDTH // HEADS, "query_pre_attn_scalar": WIDTH // HEADS, "pad_token_id": None}
GEMMA |= {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "tie_word_embeddings": True}
S, F = "sliding_attention", "full_attention"
CONFIGS = {
    "gpt2": (GPT2Config, GPT),
    "gptj": (GPTJConfig, {**GPT, "rotary_dim": 4}),
    "llama": (LlamaConfig, LLAMA),
    "qwen2": (Qwen2Config, LLAMA),
    "qwen3": (Qwen3Config, {**LLAMA, "head_dim": WIDTH // HEADS, "tie_word_embeddings": True}),
    "gpt_neox": (GPTNeoXConfig, WIDE),
    "gpt_neox-serial": (GPTNeoXConfig, {**WIDE, "use_parallel_residual": False}),
    "opt": (OPTConfig, {**PLAIN, "ffn_dim": 2 * WIDTH, "init_std": 0.15, "dropout": 0.0, "pad_token_id": None}),
    "phi": (PhiConfig, WIDE),
    "mistral": (MistralConfig, SLIDING),
    "olmo2": (Olmo2Config, {**LLAMA, "pad_token_id": None}),
    "olmo3": (Olmo3Config, {**SLIDING, "layer_types": [S, F, S], "pad_token_id": None}),
    "gemma2": (Gemma2Config, GEMMA),
    "gemma3_text": (Gemma3TextConfig, {**GEMMA, "layer_types": [S, S, F]}),
    "gemma": (GemmaConfig, {**LLAMA, "head_dim": WIDTH // HEADS, "pad_token_id": None}),
    "phi3": (Phi3Config, {**LLAMA, "pad_token_id": None}),
    "smollm3": (SmolLM3Config, {**LLAMA, "pad_token_id": None}),
}
FAMILIES = tuple(CONFIGS)
# For tests of whole edits, which take long: one family of each kind of block, that is with transposed weights, with
# attention and MLP in parallel, as most are today, without an MLP module, and with a norm behind the MLP. The others
# differ from one of these in their attention or in names only, and what rests on those (hooks, the self-test, replay,
# staged rows, reading) is tested on all of them.
THREE = ("gpt2", "gptj", "llama")
DISTINCT = ("gpt2", "gptj", "llama", "opt", "gemma2")
ROUGH = ("gptj", "gemma2")  # families whose attention works in float32 whatever the model's precision


def tiny_config(family: str) -> PretrainedConfig:
    """Three blocks of width 32. The embeddings are large enough for the states to differ between tokens."""
    kind, values = CONFIGS[family]
    return kind(vocab_size=len(pocket_tokenizer()), bos_token_id=0, eos_token_id=0, **values)


def tiny_model(family: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A fresh tiny model with weights from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(tiny_config(family))
        for name, weight in model.named_parameters():
            if "post_feedforward" in name:  # as drawn all are one, which hides what they do
                weight.data += 0.3 * torch.randn_like(weight)
    return LanguageModel(model.to(dtype), pocket_tokenizer(), f"tiny-{family}")


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def bit_equal(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    """Whether every parameter and buffer is what it was, to the bit."""
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def cancel_after(count: int):
    """A watch that lets `count` steps pass and raises Cancelled at the next."""
    left = count

    def stop(_step):
        nonlocal left
        if left == 0:
            raise Cancelled
        left -= 1

    return stop


@pytest.fixture(scope="session")
def pocket() -> LanguageModel:
    return LanguageModel.load("pocket-gpt2", device="cpu")


@pytest.fixture(scope="session")
def tiny_models():
    """A function from family to its model, made once."""
    return cache(tiny_model)


@contextmanager
def left_alone(lm: LanguageModel):
    """A shared model must be as it was afterwards, without hooks."""
    before = snapshot(lm.model)
    yield lm
    assert bit_equal(lm.model, before), "a test left the shared model changed"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules()), "a hook was left behind"


def seldom(values, often):
    """Parameters of which only those of `often` are met by `make test`, the others among the slow tests."""
    return [value if value in often else pytest.param(value, marks=pytest.mark.slow) for value in values]


def each_of(families):
    """A fixture: a tiny model of each of these families in turn. It is shared: leave it as it was."""

    @pytest.fixture(params=families)
    def found(request, tiny_models) -> LanguageModel:
        with left_alone(tiny_models(request.param)) as lm:
            yield lm

    return found


tiny_lm = each_of(FAMILIES)


@pytest.fixture
def requests_() -> tuple[EditRequest, EditRequest]:
    """Two edits with paraphrases and neighbors, subjects of different lengths."""
    return (
        EditRequest(
            subject="Mary Walker",
            prompt="{} was born in",
            target_new="London",
            target_true="Paris",
            paraphrases=("The birthplace of Mary Walker is", "Mary Walker comes from"),
            neighbors=(Probe("Peter Smith was born in", "Paris"), Probe("The river runs through", "Paris")),
            case_id=1,
        ),
        EditRequest(
            subject="The old bridge over the river",
            prompt="Everybody knows that {} was built by",
            target_new="the French",
            target_true="German",
            paraphrases=("The builder of the old bridge over the river was",),
            neighbors=(Probe("The new tower was built by", "German"),),
            case_id="two",
        ),
    )
