"""Footprint: bytes of an edit's phases, from sizes and settings alone: statistics, micro-batches, updates.

What is measured and not known from sizes stands in the constants: how long texts and facts are, and how many
copies of some states there are at once.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from editing_core.editors.load import (
    AGAIN,
    BARE_TOKENS,
    EXAMPLE_TOKENS,
    FACT_TOKENS,
    PROBE_TOKENS,
    PROBES,
    ROW_TOKENS,
    ROWS,
)
from editing_core.editors.row import EditorRow
from editing_core.evaluation.evaluator import bundled_texts
from editing_core.models import memory
from editing_core.models.memory import Sizes
from editing_core.models.tokens import runs
from editing_core.settings import Settings

TEXT_LETTERS = 4.2  # of an English token
ROME_ROWS = 21
LENGTHS = 5  # forwards that rows of all lengths are divided among
HELD = 1 / 3
LOSS_COPIES = 7  # of looked-at logits: themselves, both losses, and their gradients
VECTORS = 16  # ours: of a fact in an edit that leaves weights alone, such as keys, values, offsets


@dataclass(frozen=True)
class Footprint:
    """An edit as far as memory goes. layers: those that are edited. adapter: numbers of a trained one, or 0."""

    sizes: Sizes
    row: EditorRow
    settings: Any
    facts: int
    device: torch.device
    iterations: int
    layers: tuple[int, ...]
    adapter: int

    @staticmethod
    def of(
        sizes: Sizes, row: EditorRow, settings: Settings, facts: int, device: torch.device, iterations: int
    ) -> "Footprint":
        """That of settings for a model."""
        layers = tuple(layer for layer in row.layers(settings) if layer < sizes.depth)
        plan = Footprint(sizes, row, settings, facts, device, iterations, layers, 0)
        return replace(plan, adapter=plan.adapter_numbers()) if plan.trains and plan.settings.lora else plan

    @property
    def trains(self) -> bool:
        """Whether it is fine-tuning."""
        return self.row.name == "finetuning"

    def adapter_numbers(self) -> int:
        """Of a low-rank adapter for attention and MLP of the trained blocks."""
        s, sides = self.sizes, 4 * self.sizes.width + 2 * (self.sizes.width + self.sizes.inner)
        own = {"all": sides + 2 * s.width, "blocks": sides + 2 * s.width, "down": s.width + s.inner}
        return int((len(self.layers) or s.depth) * self.settings.rank * own[self.settings.where])

    @property
    def _rows(self) -> int:
        return ROME_ROWS if self.row.one_by_one else ROWS

    @property
    def protects(self) -> bool:
        """Whether statistics are used."""
        return bool(self.layers) and self.row.needs_statistics(self.settings)

    @property
    def statistics(self) -> int:
        """A float64 factor, or at most as large a basis, per edited layer."""
        return 8 * self.sizes.inner**2 * len(self.layers) if self.protects else 0

    @property
    def making(self) -> int:
        """Beside a factor the matrix; for a basis also its symmetric half, all eigenvectors and the solver's room."""
        return (4 if self.row.name == "alphaedit" else 1) * 8 * self.sizes.inner**2 if self.protects else 0

    @property
    def forwards(self) -> int:
        """The largest micro-batch, and what the heap still holds of the smaller kind."""
        small, large = sorted((self._measuring, self._training if self.trains else self._optimising))
        return round(large + HELD * small)

    @property
    def _measuring(self) -> int:
        s = self.sizes
        most = memory.forward_tokens(s, self.device)
        lengths = [int(len(text) / TEXT_LETTERS) for text in bundled_texts()]
        texts = max(len(run) * max(lengths[n] for n in run) for run in runs(lengths, most))
        probes = min(most, self.facts * PROBES * PROBE_TOKENS / LENGTHS)
        rows = min(most, self.facts * self._rows * ROW_TOKENS / LENGTHS)
        few = (probes / PROBE_TOKENS + 1) * s.logits
        looked = memory.bounds(self.device).losses * s.logits
        return round(max(texts * s.state + looked, probes * s.state + few, rows * s.state + few))

    @property
    def _optimising(self) -> int:
        s, blocks = self.sizes, self.sizes.depth - max(self.layers, default=0)
        most = memory.backward_tokens(s, self.device, blocks)
        each = FACT_TOKENS * self._rows // ROWS
        tokens = min(max(most, each), each * (1 if self.row.one_by_one else self.facts))
        kept = 5 * s.width * s.number + AGAIN * s.kept
        return round(tokens * (AGAIN * s.state + blocks * kept) + tokens / 10 * LOSS_COPIES * 4 * s.vocabulary)

    @property
    def _training(self) -> int:
        s = self.sizes
        blocks = (len(self.layers) and s.depth - min(self.layers)) or s.depth
        examples = int(self.settings.batch) * EXAMPLE_TOKENS
        tokens = min(memory.backward_tokens(s, self.device, blocks, trained=True), examples)
        return round(tokens * blocks * s.trained + tokens / 10 * LOSS_COPIES * 4 * s.vocabulary)

    @property
    def edits(self) -> int:
        """All that grows with the number of facts, and the replaced weights."""
        s = self.sizes
        if self.trains:
            return self._trained()
        if self.row.beside:
            return 4 * VECTORS * s.width * self.facts * self._shares
        one = 8 * (s.width + s.inner) * self.facts * (len(self.layers) or s.depth)
        kept = one * self._shares
        weight = s.number * s.width * s.inner
        if self.row.one_by_one:
            return kept + 2 * weight * (len(self.layers) or s.depth)
        keys = 8 * s.inner * self.facts * (2 * ROWS + 6)
        resting = ROWS * BARE_TOKENS * self.facts * s.number * (2 * s.width + s.inner)
        writing = keys + min(memory.room_bytes(self.device), resting)  # when micro-batches of targets are gone
        return kept + 2 * weight * len(self.layers) + max(0, writing - self.forwards)

    @property
    def _shares(self) -> int:
        """How often factors are there in the end: every iteration keeps its own and those of all so far."""
        return sum(1 + k for k in range(1, self.iterations + 1))

    def _trained(self) -> int:
        """Weights that are trained with gradient, two moments, and originals; then the deltas."""
        s = self.sizes
        if self.adapter:
            replaced = s.number * (4 * s.width**2 + 2 * s.width * s.inner) * (len(self.layers) or s.depth)
            kept = 4 * self.adapter * self._shares
            return 4 * 4 * self.adapter + kept + replaced
        own = s.width * s.inner if self.settings.where == "down" else 4 * s.width**2 + 2 * s.width * s.inner
        count = int(own * (len(self.layers) or s.depth))
        return count * (4 * s.number + 4 * (1 + self.iterations))
