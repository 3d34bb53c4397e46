"""LanguageModel: a model, its tokenizer, its architecture row and its lock.

Whoever uses the model holds `lm.lock`. The device is read from the model and nowhere a constant.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from editing_core.errors import BadRequest, OutOfMemory
from editing_core.models import memory, selftest
from editing_core.models.architectures import Architecture, window_of
from editing_core.models.catalog import alphabet_of, source_of
from editing_core.models.chat import frame_of
from editing_core.models.edit import edits_on
from editing_core.models.gates import gated, noted
from editing_core.models.hooks import answering, only_at
from editing_core.models.loading import Device, Wanted, device_of, load
from editing_core.models.tokens import PLAIN, Batch, Coder, Frame, pad, runs
from editing_core.models.weights import quantisation_of

LEAST = 64  # the most often that forwards are halved; a token row or two are left then
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(eq=False)
class LanguageModel:
    """A causal language model ready to be edited and measured."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str = "local"
    alphabet: str | None = None
    architecture: Architecture = field(init=False)
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    divisor: int = 1  # how often forwards were halved because memory ran out
    source: str = ""  # folder or hub id the weights came from; empty where they came from neither
    frame: Frame = PLAIN  # what stands around prompts

    def __post_init__(self) -> None:
        self.architecture = Architecture.of(self.model.config)
        self.model.eval()
        self.model.requires_grad_(False)

    @staticmethod
    def load(
        name: str,
        device: Device | None = None,
        dtype: str = "float32",
        folder: Path | None = None,
        quantised: str = "none",
        revision: str = "",
    ) -> "LanguageModel":
        """Load a catalog name or hub id, or `folder` under the name given, see `loading`. The rest is as in `Wanted`.

        ModelUnavailable when it cannot be had, OutOfMemory when it does not fit.
        """
        source = str(folder) if folder else source_of(name)
        found = load(Wanted(name, source, dtype, device, quantised, revision))
        place = str(folder.resolve()) if folder else source
        lm = LanguageModel(found.model, found.tokenizer, name, found.revision, alphabet_of(name), source=place)
        lm.verify()
        return lm

    def framed(self, chat: str) -> "LanguageModel":
        """The same model and lock, reading prompts in its chat template, see `chat.frame_of`. "none": as they are."""
        frame = frame_of(self.tokenizer, chat, self.name)
        if frame == self.frame:
            return self
        view = copy(self)  # not made anew: somebody may be training its weights
        view.frame = frame
        return view

    @property
    def coder(self) -> Coder:
        """Prompts as tokens, with what stands around them. Texts that are no prompts go to the tokenizer itself."""
        return Coder(self.tokenizer, self.frame)

    @property
    def device(self) -> torch.device:
        """Where inputs go, and what `hidden` and `logits` give is; blocks of a spread model may be on others."""
        return device_of(self.model.get_input_embeddings())

    @property
    def devices(self) -> list[torch.device]:
        """All that its parts compute on."""
        blocks = self.model.get_submodule(self.architecture.blocks).children()
        return list(dict.fromkeys(map(device_of, (self.model.get_input_embeddings(), *blocks, self.head))))

    @property
    def tightest(self) -> torch.device:
        """The one of them with the least free memory."""
        devices = self.devices
        return devices[0] if len(devices) == 1 else min(devices, key=memory.free_bytes)

    @property
    def edited(self) -> bool:
        """Whether it carries an edit at this moment."""
        return edits_on(self.model) > 0

    @property
    def gated(self) -> bool:
        """Whether it carries an edit that looks at prompts: rows are then read whole, with their prompts' ends told."""
        return gated(self.model)

    @property
    def precision(self) -> torch.dtype:
        """What losses are summed in and targets optimised in: float32, or float64 where the model itself is."""
        return torch.float64 if self.model.dtype == torch.float64 else torch.float32

    @property
    def quantised(self) -> str:
        """How its linear layers are packed, "none" where they are plain, see `weights.quantisation_of`."""
        return quantisation_of(self.model.config)

    @property
    def numbers(self) -> str:
        """What its weights are kept in: a dtype, and how linear layers are packed, as in "bfloat16-nf4"."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return dtype if self.quantised == "none" else f"{dtype}-{self.quantised}"

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(list(self.model.get_submodule(self.architecture.blocks).children()))

    @cached_property
    def blocks_give_tuples(self) -> bool:
        """Whether a block gives its state as the first of several values, as those of some families do."""
        width = self.model.config.get_text_config().hidden_size
        block = self.model.get_submodule(self.architecture.block(0))
        state = torch.zeros(1, 1, width, dtype=self.model.dtype, device=device_of(block))
        attention = self.model.get_submodule(self.architecture.attention_of(0))
        with torch.no_grad(), answering({attention: lambda *_, **__: (state, None)}):
            return isinstance(block(state), tuple)

    @property
    def context(self) -> int:
        """Most tokens a prompt and its object may take together.

        Where attention slides, those that each token still sees: kept keys and values are good up to there.
        """
        config = self.model.config.get_text_config()
        most = int(getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0) or 1024)
        return min(most, window_of(config) or most)

    @property
    def head(self) -> nn.Module:
        """From final hidden state to logits."""
        head: nn.Module = self.model.get_output_embeddings()
        return head

    def hidden(self, batch: Batch, cache: Cache | None = None) -> Tensor:
        """(rows, tokens, d) after the final norm. Gradients flow where the caller's tensors ask for them.

        cache: keys and values of what stands before the rows, to which theirs are added.
        """
        with noted(self.model, batch):
            state: Tensor = self.model.base_model(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                past_key_values=cache,
                use_cache=cache is not None,
            )[0]
        return state.to(self.device)

    def logits_at(self, batch: Batch, rows: Tensor, positions: Tensor, cache: Cache | None = None) -> Tensor:
        """(n, vocabulary) logits in `precision` at the given row and position pairs, and only there."""
        if self.gated:
            return self.logits(self.hidden(batch, cache)[rows, positions])
        wanted = torch.zeros_like(batch.ids, dtype=torch.bool)
        wanted[rows, positions] = True  # each token once, however often it is asked
        with self.looking_at(*wanted.nonzero(as_tuple=True)):
            return self.logits(self.hidden(batch, cache)[rows, positions])

    @contextmanager
    def looking_at(self, rows: Tensor, positions: Tensor) -> Iterator[None]:
        """Inside, final states are right at these tokens only, each named once: the last block spares the others."""
        last = self.layers - 1
        names = (self.architecture.mlp_of(last), self.architecture.attention_out_of(last))
        modules = [self.model.get_submodule(name) for name in names if name]
        with answering({module: only_at(module, rows, positions) for module in modules}):
            yield

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, vocabulary) in `precision`, of final hidden states (n, d); capped softly where the model does so."""
        found: Tensor = self.head(hidden)
        if cap := getattr(self.model.config.get_text_config(), "final_logit_softcapping", None):
            found = cap * torch.tanh(found / cap)
        return found.to(self.device, self.precision)

    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """(n,) in `precision`: minus the log-probability of each label (n,) after final hidden states (n, d).

        The logits of a few tokens at a time stay in the processor's cache, those of a whole batch would not; of too
        few, the head's weights are read over and over.
        """
        size = self.at_most(memory.bounds(self.device).losses)
        parts = zip(hidden.split(size), labels.split(size), strict=True)
        return torch.cat([nn.functional.cross_entropy(self.logits(h), label, reduction="none") for h, label in parts])

    def batch(self, rows: Sequence[Sequence[int]], left: bool = False) -> Batch:
        """Pad token rows on the model's device, on the right unless `left`."""
        self.check_length(max(len(row) for row in rows))
        return pad(rows, self.device, left)

    def check_length(self, tokens: int) -> None:
        """BadRequest when the model does not read so many."""
        if tokens > self.context:
            raise BadRequest(
                f"A prompt takes {tokens} tokens, {self.name} reads at most {self.context}; shorten the prompt."
            )

    def batches(
        self, rows: Sequence[Sequence[int]], left: bool = False, ends: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Batch]]:
        """All rows in batches of similar length, each with the numbers of its rows.

        left: every row is padded on the left to the longest of all, as in one batch: there padding is noticed.
        ends: how many tokens of each row are its prompt; all without.
        """
        prompts = torch.tensor([len(row) for row in rows] if ends is None else list(ends), device=self.device)
        if left:
            whole = self.batch(rows, left=True)
            for numbers in self.runs([whole.ids.shape[1]] * len(rows)):
                ids, mask, lengths = (part[numbers] for part in (whole.ids, whole.mask, whole.lengths))
                yield numbers, Batch(ids, mask, lengths, ends=prompts[numbers])
        else:
            for numbers in self.runs([len(row) for row in rows]):
                yield numbers, replace(self.batch([rows[n] for n in numbers]), ends=prompts[numbers])

    def runs(self, lengths: Sequence[int]) -> list[list[int]]:
        """Row numbers in runs of similar length that fit into one forward, see `tokens.runs`."""
        return runs(lengths, self.tokens_per_forward)

    @property
    def tokens_per_forward(self) -> int:
        """Most tokens of a forward that keeps nothing for a backward pass, see `memory`."""
        return self.at_most(memory.forward_tokens(memory.sizes_of(self.model), self.tightest))

    def tokens_per_backward(self, blocks: int, trained: bool = False) -> int:
        """Most tokens of a forward that keeps so many blocks' states, trained: for gradients of their weights."""
        return self.at_most(memory.backward_tokens(memory.sizes_of(self.model), self.tightest, blocks, trained))

    def tokens_per_collection(self, layers: int) -> int:
        """Most tokens of a forward that keeps the keys of so many layers, see `memory`."""
        return self.at_most(memory.key_tokens(memory.sizes_of(self.model), self.tightest, layers))

    def at_most(self, count: int) -> int:
        """So many tokens or rows at once, or fewer since memory ran out."""
        return max(1, count // self.divisor)

    def fitting(self, work: Callable[[], T]) -> T:
        """The work's result. When memory runs out it is done again with forwards half as large, and later ones stay so.

        OutOfMemory when nothing is left to halve. The work must leave nothing behind when it fails.
        """
        while True:
            try:
                return work()
            except memory.NO_MEMORY as error:
                if not memory.ran_out(error):
                    raise
            # Outside the except block, so that the failed attempt's tensors are free.
            if self.divisor >= LEAST:
                raise OutOfMemory(
                    f"{self.name} runs out of memory even with {self.tokens_per_forward} tokens at a time; "
                    "choose a smaller model, a smaller dtype such as bfloat16, or fewer layers."
                )
            self.divisor *= 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def check_text(self, text: str) -> None:
        """BadRequest when the model never saw letters like these while training."""
        if self.alphabet != "ascii":
            return
        strange = sorted({c for c in text if not c.isascii()})
        if strange:
            raise BadRequest(
                f"{self.name} was trained on plain English letters only, but {text[:40]!r} contains {strange[0]!r}; "
                "write it without, or choose a larger model."
            )

    def verify(self) -> None:
        """ModelUnavailable unless the model passes the self-test, see `selftest`."""
        selftest.check(self)


def fitted(work: Callable[Concatenate[LanguageModel, P], T]) -> Callable[Concatenate[LanguageModel, P], T]:
    """Work with a model, its first argument, always inside `LanguageModel.fitting`."""

    @wraps(work)
    def fits(lm: LanguageModel, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return lm.fitting(lambda: work(lm, *args, **kwargs))

    return fits
