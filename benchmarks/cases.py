"""What is timed: models by shape, and the same facts, prefixes and statistics for either side.

Random weights measure speed as well as trained ones; only the bundled model knows anything, though, so only there
do facts stop early.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPTJConfig, GPTJForCausalLM, PretrainedConfig

from editing_core.data.datasets import load_dataset
from editing_core.editors.base import Editor
from editing_core.editors.memit import Memit, MemitSettings
from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.rows import Objective
from editing_core.editors.steps.spread import Ridge
from editing_core.models.catalog import DEFAULT, source_of
from editing_core.models.language_model import LanguageModel
from editing_core.models.loading import DTYPES
from editing_core.registry import editor_row
from editing_core.statistics.corpus import Corpus
from editing_core.statistics.covariance import Covariance, CovarianceStore
from editing_core.types import EditRequest

DOCUMENTS = 1000  # that statistics are collected from; their numbers do not change how long anything takes


@dataclass(frozen=True)
class Shape:
    """A model's shape. preset: whose published MEMIT settings are used. config: None for the bundled model itself."""

    title: str
    preset: str
    config: PretrainedConfig | None = None


SHAPES = {
    "pocket": Shape("bundled model (6 blocks of width 256)", DEFAULT),
    "small": Shape("random, GPT-2-small-shaped (12 blocks of width 768)", "gpt2", GPT2Config()),
    "xl": Shape(
        "random, GPT-2-XL-shaped (48 blocks of width 1,600)",
        "gpt2-xl",
        GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    ),
    "gptj": Shape("random, GPT-J-shaped (28 blocks of width 4,096)", "gpt-j-6b", GPTJConfig()),
    "tiny": Shape(
        "random, for trying this out",
        "gpt2",
        GPT2Config(n_embd=32, n_layer=6, n_head=4, vocab_size=6000, bos_token_id=0, eos_token_id=0),
    ),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A model with everything an edit needs."""

    lm: LanguageModel
    requests: tuple[EditRequest, ...]
    settings: MemitSettings
    covariances: dict[int, Covariance]
    objective: Objective

    @property
    def site(self) -> str:
        """Where targets are optimised."""
        return self.lm.architecture.block(self.settings.layers[-1])

    @property
    def editor(self) -> Editor:
        """MEMIT with these statistics and prefixes."""
        return Memit(self.settings, Ridge(self.covariances, self.settings.covariance_weight), self.objective)


# As long as the five that MEMIT draws from a model, the same for every model.
CONTEXTS = Contexts.grouped(
    (
        "The country that won the last cup. {}",
        "Therefore it was very hot, so they left. {}",
        "Because the answer was clear, the judge could not. {}",
        "I do not know who moved the red book. {}",
        "You can drop the key near the kitchen. {}",
    )
)


def case(name: str, device: str = "cpu", dtype: str = "float32") -> Case:
    """The case of a shape's name."""
    shape = SHAPES[name]
    lm = LanguageModel.load(DEFAULT, device, dtype) if shape.config is None else _random(shape, device, dtype)
    row = editor_row("memit").preset(shape.preset)
    settings = row.settings
    assert isinstance(settings, MemitSettings)
    requests = tuple(r for part in ("test", "tune") for r in load_dataset(f"pocket-facts:{part}").requests)
    return Case(lm, requests, settings, _statistics(lm, settings), Objective(CONTEXTS))


def _statistics(lm: LanguageModel, settings: MemitSettings) -> dict[int, Covariance]:
    """In memory, as both sides need them once per model and not once per edit."""
    corpus = Corpus.bundled(DEFAULT)
    assert corpus is not None
    with TemporaryDirectory() as folder:
        store, some = CovarianceStore(Path(folder)), corpus.first(DOCUMENTS)
        store.collect(lm, settings.layers, some)
        kept = {layer: store.get(lm, layer, some, settings.covariance_floor) for layer in settings.layers}
        return {layer: Covariance(found.matrix.to(lm.device), found.tokens) for layer, found in kept.items()}


def _random(shape: Shape, device: str, dtype: str) -> LanguageModel:
    """Weights as transformers draws them, with the bundled tokenizer, whose tokens are among the shape's."""
    assert shape.config is not None
    kind: Any = GPTJForCausalLM if shape.config.model_type == "gptj" else GPT2LMHeadModel
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        torch.set_default_dtype(DTYPES[dtype])
        try:
            model = kind(shape.config)
        finally:
            torch.set_default_dtype(torch.float32)
    return LanguageModel(model, AutoTokenizer.from_pretrained(source_of(DEFAULT)), shape.preset, "random")
