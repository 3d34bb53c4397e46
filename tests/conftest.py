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
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from editing_core import paths  # noqa: E402
from editing_core.errors import Cancelled  # noqa: E402
from editing_core.models.language_model import LanguageModel  # noqa: E402
from editing_core.types import EditRequest, Probe  # noqa: E402

torch.set_num_threads(1)

FAMILIES = ("gpt2", "gptj", "llama", "qwen2", "qwen3")
BLOCKS, WIDTH, HEADS, CONTEXT = 3, 32, 4, 128


@cache
def pocket_tokenizer():
    return AutoTokenizer.from_pretrained(paths.assets() / "models" / "pocket-gpt2")


def tiny_config(family: str) -> PretrainedConfig:
    """Three blocks of width 32. The embeddings are large enough for the states to differ between tokens."""
    words = len(pocket_tokenizer())
    if family in ("gpt2", "gptj"):
        kind, extra = (GPT2Config, {}) if family == "gpt2" else (GPTJConfig, {"rotary_dim": 4})
        config = kind(
            vocab_size=words,
            bos_token_id=0,
            eos_token_id=0,
            n_positions=CONTEXT,
            n_embd=WIDTH,
            n_layer=BLOCKS,
            n_head=HEADS,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=0.15,
            **extra,
        )
    else:
        kind = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[family]
        extra = {"head_dim": WIDTH // HEADS} if family == "qwen3" else {}
        config = kind(
            vocab_size=words,
            bos_token_id=0,
            eos_token_id=0,
            max_position_embeddings=CONTEXT,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=BLOCKS,
            num_attention_heads=HEADS,
            num_key_value_heads=2,
            initializer_range=0.15,
            tie_word_embeddings=family == "qwen3",
            **extra,
        )
    return config


def tiny_model(family: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A fresh tiny model with weights from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(tiny_config(family))
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


@pytest.fixture(params=FAMILIES)
def tiny_lm(request, tiny_models) -> LanguageModel:
    """A tiny model of each family in turn. It is shared: leave it as it was."""
    with left_alone(tiny_models(request.param)) as lm:
        yield lm


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
