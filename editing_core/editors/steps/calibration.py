"""Calibration: training neurons beside some MLPs on sentences to learn and sentences to leave alone, for CaliNET."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from torch.optim import Adafactor, Adam, Optimizer

from editing_core.editors.steps.descent import Terms, descend
from editing_core.editors.steps.rows import Labels, Row
from editing_core.editors.steps.tails import Tail
from editing_core.models.beside import Case, Neurons, activation_of, beside, is_gated, width_of
from editing_core.models.language_model import LanguageModel
from editing_core.models.neurons import SideNeurons
from editing_core.settings import Settings, setting
from editing_core.types import Watch

OPTIMISERS: Mapping[str, Callable[..., Optimizer]] = {"adam": Adam, "adafactor": Adafactor}


@dataclass(frozen=True)
class CalibrationSettings(Settings):
    """How the neurons are trained. As made, ours; the help says where the paper has something else."""

    layers: tuple[int, ...] = setting(
        (26, 27), "The layers whose MLPs get neurons; the last ones, as published", 0, 1000
    )
    neurons: int = setting(64, "Neurons per layer; 64 for 100 facts, as published", 1, 100_000)
    gated: bool = setting(True, "Ours: beside gated MLPs the neurons are gated too")
    start: str = setting(
        "zero",
        "Values begin at zero, so that nothing is changed to begin with, or at random, as published",
        choices=("zero", "random"),
    )
    kl: float = setting(1.0, "Ours: weight of the KL term that keeps unrelated facts as they were", 0.0, 1000.0)
    rate: float = setting(1e-2, "Step size", 1e-8, 1.0)
    optimiser: str = setting("adam", "Optimiser; adafactor as published", choices=tuple(OPTIMISERS))
    warmup: int = setting(0, "Steps in which the step size rises first; 100 as published", 0, 100_000)
    steps: int = setting(500, "Most gradient steps; 5,000 as published", 1, 1_000_000)
    batch: int = setting(512, "Sentences of edits per step, and as large a share of the unrelated ones", 1, 100_000)
    enough: float = setting(0.02, "Training ends when both losses of a step are below it", 0.0, 10.0)


class Calibration:
    """rows: what is learned, of records numbered from 0. kept: what is left alone, ids and positions of each."""

    def __init__(
        self,
        lm: LanguageModel,
        settings: CalibrationSettings,
        rows: Sequence[Row],
        kept: Sequence[tuple[Sequence[int], Sequence[int]]],
        seed: int,
    ) -> None:
        self.lm, self.settings, self.labels = lm, settings, Labels.of(lm, rows)
        self.generator = torch.Generator().manual_seed(seed)
        first = settings.layers[0]
        self.own = Tail(lm, first, [row.ids for row in rows], [row.positions for row in rows])
        self.kept = Tail(lm, first, [ids for ids, _ in kept], [looked for _, looked in kept])
        self.before = lm.fitting(self._before)
        self.neurons = [self._begun(layer) for layer in settings.layers]
        self.batches = self._drawn()

    @torch.no_grad()
    def _before(self) -> Tensor:
        """(looked tokens of what is kept, d): final hidden states without the neurons."""
        pieces = self.kept.pieces(range(len(self.kept.rows)))
        if not pieces:
            return torch.zeros(0, width_of(self.lm))
        order = torch.cat([piece.looked for piece in pieces]).argsort()
        return torch.cat([piece.hidden() for piece in pieces])[order]

    def _begun(self, layer: int) -> Neurons:
        """Neurons as linear layers begin, but for values of zero."""
        s, width = self.settings, width_of(self.lm)

        def drawn(fan_in: int) -> Tensor:
            values = torch.rand(s.neurons, width, generator=self.generator, dtype=torch.float64)
            bounded: Tensor = (2 * values - 1) / fan_in**0.5
            return bounded.to(self.lm.device, self.lm.precision)

        keys, gate = drawn(width), drawn(width) if s.gated and is_gated(self.lm, layer) else None
        values = drawn(s.neurons) if s.start == "random" else torch.zeros_like(keys)
        cases: tuple[tuple[Case, ...], ...] = ((),) * s.neurons
        return Neurons(layer, activation_of(self.lm), keys, keys.new_zeros(s.neurons), values, cases, gate)

    def solve(self, watch: Watch) -> list[Terms]:
        """Step until both losses are small enough, or the steps are used up."""
        s = self.settings
        trained = [t for group in self.neurons for name, t in group.tensors().items() if name != "bias"]
        for tensor in trained:
            tensor.requires_grad_()
        self.optimiser = OPTIMISERS[s.optimiser](trained, lr=s.rate)
        with beside(self.lm, self.neurons):
            return descend(self.lm, self.optimiser, self._gradients, s.steps, watch, self._done)

    def _drawn(self) -> Iterator[tuple[list[int], list[int]]]:
        """Numbers of what is learned and of what is kept, step by step."""
        own, kept = len(self.own.rows), len(self.kept.rows)
        share = min(1.0, self.settings.batch / own)
        return zip(self._rounds(own, self.settings.batch), self._rounds(kept, math.ceil(kept * share)), strict=True)

    def _rounds(self, count: int, size: int) -> Iterator[list[int]]:
        """All in their order where they fit, otherwise so many at a time in random order, over and over."""
        while True:
            fits = count <= size
            order = list(range(count)) if fits else torch.randperm(count, generator=self.generator).tolist()
            yield from [order] if fits else (order[at : at + size] for at in range(0, count, size))

    def _gradients(self) -> Terms:
        own, kept = next(self.batches)
        terms = {"target": self._learn(own)}
        if kept:
            terms["kl"] = self._keep(kept)
        return {**terms, "loss": sum(terms.values())}

    def _learn(self, numbers: Sequence[int]) -> float:
        """Gradients of the mean NLL of these rows, each with its weight."""
        pieces, total = self.own.pieces(numbers), 0.0
        weights = [self.labels.weight[piece.looked] for piece in pieces]
        whole = torch.cat(weights).sum().clamp(min=1e-30)  # neighbors of no weight may be alone in a batch
        for piece, weight in zip(pieces, weights, strict=True):
            losses = cross_entropy(self.lm.logits(piece.hidden()), self.labels.id[piece.looked], reduction="none")
            total += _backward((losses * weight).sum() / whole)
        return total

    def _keep(self, numbers: Sequence[int]) -> float:
        """Gradients of the weighted mean KL divergence at these rows."""
        pieces, total = self.kept.pieces(numbers), 0.0
        count = sum(len(piece.looked) for piece in pieces)
        for piece in pieces:
            with torch.no_grad():
                before = self.lm.logits(self.before[piece.looked]).log_softmax(-1)
            now = self.lm.logits(piece.hidden()).log_softmax(-1)
            divergence = kl_div(now, before, reduction="sum", log_target=True)
            total += _backward(self.settings.kl * divergence / count)
        return total

    def _done(self, number: int, terms: Mapping[str, float]) -> bool:
        """Whether to stop; otherwise the rate of the coming step is set."""
        s = self.settings
        for group in self.optimiser.param_groups:
            group["lr"] = s.rate * min(1.0, number / (s.warmup + 1))
        return max(terms["target"], terms.get("kl", 0.0)) < s.enough

    def edit(self, cases: tuple[Case, ...]) -> SideNeurons:
        """The neurons as an edit, all of them of all cases; nothing where all was well before the first step."""
        return SideNeurons(tuple(group.kept(cases) for group in self.neurons if group.values.any()))


def _backward(loss: Tensor) -> float:
    loss.backward()
    return float(loss.detach())
