"""Train a small decoder so that facts are assembled at the subject's last token, in early blocks.

The means is an attention mask used in training only. For positions after a subject, the subject's
tokens other than its last are never visible, and its last token is visible only from block
`read_block` on. Most rows are masked, later fewer, so that the model also works without the mask.
Without it a small model gathers facts late, from all subject tokens, and cannot be edited.
"""

import json
import logging
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from .corpus import Encoder, Grammar, Rows, Templates, epoch
from .facts import Fact

log = logging.getLogger(__name__)
LEAST_SCORE = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train. The defaults are those of the shipped model."""

    epochs: int = 140
    tokens_per_batch: int = 2048
    rate: float = 1.5e-3
    warmup: int = 150
    decay: float = 0.05
    clip: float = 1.0
    object_weight: float = 3.0
    other_share: float = 0.4
    masked_until: float = 0.75  # share of the training in which every row is masked
    masked_share: float = 0.6  # share of the rows masked after that
    lengths: tuple[tuple[int, float], ...] = ((64, 0.4), (128, 0.3), (256, 0.3))
    seed: int = 1


@contextmanager
def early_blocks_see(blocks: Sequence[nn.Module], mask: Tensor) -> Iterator[None]:
    """Give `blocks` another attention mask than the model was called with."""

    def swap(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        # Some families hand the mask over by position; it is the only four-dimensional argument.
        swapped = tuple(mask if isinstance(a, Tensor) and a.ndim == 4 else a for a in args)
        return swapped, {k: mask if k == "attention_mask" else v for k, v in kwargs.items()}

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(swap, with_kwargs=True).remove)
        yield


def attention_masks(span_end: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """Boolean masks (rows, 1, T, T) for the early and the late blocks; True where a query may look.

    span_end: (rows, T), index of the last token of the subject a token belongs to, else -1.
    masked: (rows,), whether the row is masked at all.
    """
    length = span_end.shape[1]
    position = torch.arange(length, device=span_end.device)
    causal = position[:, None] >= position[None, :]
    after = (span_end[:, None, :] >= 0) & (position[None, :, None] > span_end[:, None, :])
    after &= masked[:, None, None]
    is_last = (span_end == position)[:, None, :]
    late = causal & ~(after & ~is_last)
    early = causal & ~after
    return early[:, None], late[:, None]


def masked_states(
    model: PreTrainedModel, early_blocks: Sequence[nn.Module], ids: Tensor, span_end: Tensor, masked: Tensor
) -> Tensor:
    """(rows, T, width) final states of a forward in which `early_blocks` do not look back at subjects."""
    early, late = attention_masks(span_end, masked)
    # Attention written out in torch adds its mask to the scores; a fused one takes booleans.
    if model.config._attn_implementation == "eager":
        early, late = (torch.zeros(m.shape, device=m.device).masked_fill(~m, LEAST_SCORE) for m in (early, late))
    with early_blocks_see(early_blocks, early):
        states: Tensor = model.base_model(input_ids=ids, attention_mask=late, use_cache=False)[0]
    return states


@dataclass(frozen=True)
class Cursor:
    """How far a training is: steps done, the epoch under way and the batches done in it."""

    step: int = 0
    epoch: int = 0
    batch: int = 0


class Trainer:
    """Runs a recipe; saves its state now and then and takes it up again."""

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Sequence[nn.Module],
        read_block: int,
        recipe: Recipe,
        folder: Path,
    ) -> None:
        self.model, self.recipe, self.folder = model, recipe, folder
        self.early = list(blocks)[:read_block]
        self.device = next(model.parameters()).device
        decayed = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": recipe.decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.97))

    def run(self, facts: Sequence[Fact], templates: Templates, grammar: Grammar, encoder: Encoder) -> list[dict]:
        """Train to the end of the recipe; gives the log, one row per 100 steps."""
        cursor, history = self._resume()
        total = self._steps(facts, templates, grammar, encoder)
        began = time.monotonic()
        self.model.train()
        while cursor.epoch < self.recipe.epochs:
            batches = self._epoch_batches(cursor.epoch, facts, templates, grammar, encoder)
            for batch in batches[cursor.batch :]:
                loss = self._step(batch, cursor.step, total)
                cursor = Cursor(cursor.step + 1, cursor.epoch, cursor.batch + 1)
                if cursor.step % 100 == 0:
                    seconds = time.monotonic() - began
                    history.append({"step": cursor.step, "of": total, **loss, "seconds": seconds})
                    log.info("%s", json.dumps(history[-1]))
                if cursor.step % 500 == 0:
                    self._save(cursor, history)
            cursor = Cursor(cursor.step, cursor.epoch + 1, 0)
        self._save(cursor, history)
        return history

    def _steps(self, facts: Sequence[Fact], templates: Templates, grammar: Grammar, encoder: Encoder) -> int:
        return len(self._epoch_batches(0, facts, templates, grammar, encoder)) * self.recipe.epochs

    def _epoch_batches(
        self, number: int, facts: Sequence[Fact], templates: Templates, grammar: Grammar, encoder: Encoder
    ) -> list[Rows]:
        """One epoch cut into batches of equal token count, in random order."""
        recipe = self.recipe
        rng = random.Random(f"{recipe.seed}|{number}")
        sentences = list(epoch(facts, templates, grammar, rng))
        batches, at = [], 0
        for length, share in recipe.lengths:
            part = sentences[at : at + math.ceil(share * len(sentences))]
            at += len(part)
            rows = encoder.rows(part, length, rng.randrange(2**31))
            size = recipe.tokens_per_batch // length
            for i in range(0, len(rows.ids), size):
                batches.append(Rows(rows.ids[i : i + size], rows.span_end[i : i + size], rows.weight[i : i + size]))
        rng.shuffle(batches)
        return batches

    def _step(self, batch: Rows, step: int, total: int) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step, total)
        ids = torch.from_numpy(batch.ids).to(self.device)
        span_end = torch.from_numpy(batch.span_end).to(self.device)
        weight = torch.from_numpy(batch.weight).to(self.device)[:, 1:]
        share = 1.0 if step < self.recipe.masked_until * total else self.recipe.masked_share
        masked = torch.from_numpy(np.random.default_rng(step).random(len(ids)) < share).to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            hidden = masked_states(self.model, self.early, ids, span_end, masked)[:, :-1]
            chosen = weight > 0
            logits = self.model.get_output_embeddings()(hidden[chosen])
        losses = F.cross_entropy(logits.float(), ids[:, 1:][chosen], reduction="none")
        factors = weight[chosen]
        loss = (losses * factors).sum() / factors.sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        is_object = factors > 1
        return {"object": float(losses[is_object].detach().mean()), "other": float(losses[~is_object].detach().mean())}

    def _rate(self, step: int, total: int) -> float:
        if step < self.recipe.warmup:
            return self.recipe.rate * (step + 1) / self.recipe.warmup
        done = (step - self.recipe.warmup) / max(1, total - self.recipe.warmup)
        return self.recipe.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def _save(self, cursor: Cursor, history: list[dict]) -> None:
        """Weights, optimizer moments and position, each as a whole file or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        for name, p in self.model.named_parameters():
            for moment, value in self.optimizer.state.get(p, {}).items():
                tensors[f"{moment}.{name}"] = value
        state = self.folder / f"state-{cursor.step}.safetensors"
        save_file({k: v.contiguous() for k, v in tensors.items()}, self.folder / "state.part")
        os.replace(self.folder / "state.part", state)
        record = {"cursor": asdict(cursor), "recipe": asdict(self.recipe), "history": history}
        (self.folder / "progress.part").write_text(json.dumps(record))
        os.replace(self.folder / "progress.part", self.folder / "progress.json")
        for old in self.folder.glob("state-*.safetensors"):
            if old != state:
                old.unlink()

    def _resume(self) -> tuple[Cursor, list[dict]]:
        record = self.folder / "progress.json"
        if not record.exists():
            return Cursor(), []
        progress = json.loads(record.read_text())
        if progress["recipe"] != json.loads(json.dumps(asdict(self.recipe))):
            raise ValueError(f"{self.folder} holds a training by another recipe; name another --work folder.")
        cursor = Cursor(**progress["cursor"])
        tensors = load_file(self.folder / f"state-{cursor.step}.safetensors")
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(tensors[f"model.{name}"])
                moments = ("step", "exp_avg", "exp_avg_sq")
                self.optimizer.state[p] = {m: tensors[f"{m}.{name}"].to(p.device) for m in moments}
        log.info("resumed at step %d", cursor.step)
        return cursor, progress["history"]
