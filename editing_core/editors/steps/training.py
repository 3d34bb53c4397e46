"""Training: examples and texts in, gradient steps on trainable weights, the loss terms of every step out.

    loss = (1 - gamma) * [(1 - alpha) * NLL + alpha * DPO] + gamma * LM

NLL is the token mean over a batch's labels, DPO prefers each example's answer over its rejected one (Rafailov
et al. 2023, https://arxiv.org/abs/2305.18290), LM is the token mean over other texts. A batch is taken in as
many forwards as memory asks for; gradients add up to the same.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from editing_core.editors.steps.token_rows import Item, TokenRow, by_row, losses_of
from editing_core.errors import NotFinite
from editing_core.models.language_model import LanguageModel
from editing_core.models.tokens import runs
from editing_core.models.trainable import Trainable
from editing_core.types import Step, Watch

MOST_POINTS = 300  # of a kept history; more are averaged
OPTIMISERS: Mapping[str, Callable[..., Optimizer]] = {"adamw": AdamW, "adam": Adam, "sgd": SGD}
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
    "constant": lambda _done: 1.0,
}


@dataclass(frozen=True)
class Loss:
    """Shares of the terms. dpo: alpha, with its inverse temperature beta. language: gamma.

    assist, apart: the weight of neighbor examples, in one mean with the others or as a mean of their own.
    """

    dpo: float = 0.0
    beta: float = 0.5
    language: float = 0.0
    assist: float = 1.0
    apart: bool = False


@dataclass(frozen=True)
class Course:
    """How long and with which optimiser.

    batch: examples per step. least_steps: more epochs are taken until there are so many. enough: a batch whose loss is
    below it is passed over, an epoch whose mean is ends the training. bound: how far an entry may move from where it
    began; 0 is off.
    """

    rate: float
    epochs: int
    batch: int
    least_steps: int = 0
    optimiser: str = "adamw"
    schedule: str = "cosine"
    warmup: float = 0.0
    decay: float = 0.0
    clip: float = 0.0
    enough: float = 0.0
    bound: float = 0.0


class Trainer:
    """Takes the steps. `history` has the loss terms of each step so far."""

    def __init__(self, lm: LanguageModel, weights: Trainable, loss: Loss, course: Course, seed: int) -> None:
        self.lm, self.weights, self.loss, self.course = lm, weights, loss, course
        self.order = torch.Generator().manual_seed(seed)
        self.origin = [p.detach().clone() for p in weights.parameters] if course.bound else []
        self.history: list[dict[str, float]] = []

    def run(self, items: Sequence[Item], texts: Sequence[TokenRow], watch: Watch) -> None:
        """All epochs. Cancelled, raised by `watch`, passes through; NotFinite when the loss is no number."""
        c = self.course
        per_epoch = math.ceil(len(items) / c.batch)
        epochs = max(c.epochs, math.ceil(c.least_steps / per_epoch))
        self.total = per_epoch * epochs
        kind = OPTIMISERS[c.optimiser]
        self.optimiser = kind(self.weights.parameters, lr=c.rate, weight_decay=c.decay)
        self.scheduler = LambdaLR(self.optimiser, self._share)
        self.weights.dropout(True)
        for epoch in range(epochs):
            losses = []
            for some, beside in self._batches(items, texts, per_epoch):
                terms = self._take(some, beside)
                losses.append(terms["loss"])
                note = f"epoch {epoch + 1} of {epochs}"
                watch(Step("train", len(self.history), self.total, terms=terms, note=note))
            if sum(losses) / len(losses) < c.enough:
                break
        self.weights.dropout(False)

    def _share(self, step: int) -> float:
        """The step's rate as a share of the full one."""
        warm = self.course.warmup * self.total
        if step < warm:
            return (step + 1) / (warm + 1)
        return SCHEDULES[self.course.schedule]((step - warm) / max(1.0, self.total - warm))

    def _batches(
        self, items: Sequence[Item], texts: Sequence[TokenRow], count: int
    ) -> Iterator[tuple[list[Item], list[TokenRow]]]:
        """One epoch in random order; texts are spread evenly over its batches."""
        order = torch.randperm(len(items), generator=self.order).tolist()
        beside = torch.randperm(len(texts), generator=self.order).tolist()
        size = self.course.batch
        for number in range(count):
            own = beside[number * len(texts) // count : (number + 1) * len(texts) // count]
            yield [items[n] for n in order[number * size : (number + 1) * size]], [texts[n] for n in own]

    @torch.enable_grad()
    def gradients(self, items: Sequence[Item], texts: Sequence[TokenRow]) -> dict[str, float]:
        """Leave the batch's gradients in the parameters and give its loss terms."""
        for p in self.weights.parameters:
            p.grad = None
        terms = _Terms(self.loss, items, texts)
        most = self.lm.tokens_per_backward(self.lm.layers, trained=True)
        for numbers in runs([item.size for item in items], most):
            terms.of_items(self.lm, [items[n] for n in numbers]).backward()
        for numbers in runs([len(row.ids) for row in texts], most) if texts else ():
            terms.of_texts(self.lm, [texts[n] for n in numbers]).backward()
        return terms.told()

    def _take(self, items: Sequence[Item], texts: Sequence[TokenRow]) -> dict[str, float]:
        """One step of the optimiser, unless the batch is good enough as it is; gives its loss terms."""
        terms = self.lm.fitting(lambda: self.gradients(items, texts))
        if not math.isfinite(terms["loss"]):
            raise NotFinite(
                f"The training loss is {terms['loss']} at step {len(self.history) + 1}; use a smaller rate."
            )
        if self.course.clip:
            torch.nn.utils.clip_grad_norm_(self.weights.parameters, self.course.clip)
        if terms["loss"] < self.course.enough:
            for p in self.weights.parameters:
                p.grad = None  # the optimiser passes over parameters without a gradient
        self.optimiser.step()
        self.scheduler.step()
        with torch.no_grad():
            for p, origin in zip(self.weights.parameters, self.origin, strict=False):
                p.clamp_(origin - self.course.bound, origin + self.course.bound)
        self.history.append(terms)
        return terms


class _Terms:
    """The loss of one batch, forward by forward: shares are those in the whole batch."""

    def __init__(self, loss: Loss, items: Sequence[Item], texts: Sequence[TokenRow]) -> None:
        self.loss = loss
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.pairs = sum(item.rejected is not None for item in items)
        self.language = loss.language if texts else 0.0
        self.dpo = loss.dpo if self.pairs else 0.0
        self.letters = sum(len(row.labels) for row in texts)
        own = sum(len(item.row.labels) for item in items if item.row.kind != "neighbor")
        beside = sum(len(item.row.labels) for item in items) - own
        if loss.apart:
            self.weights = {False: 1 / max(1, own), True: loss.assist / max(1, beside)}
        else:
            whole = own + loss.assist * beside or 1.0  # neighbors of no weight may be alone in a batch
            self.weights = {False: 1 / whole, True: loss.assist / whole}

    def of_items(self, lm: LanguageModel, items: Sequence[Item]) -> Tensor:
        """These items' part of the loss."""
        compared = [item for item in items if item.rejected] if self.dpo else []
        rows = [item.row for item in items] + [item.rejected for item in compared if item.rejected]
        losses, row, kinds = losses_of(lm, rows)
        own = row < len(items)
        weights = torch.tensor([self.weights[kind == "neighbor"] for kind in kinds], device=lm.device)
        self._add(losses[own], [kind for kind, mine in zip(kinds, own.tolist(), strict=True) if mine])
        part = (1 - self.dpo) * (losses * weights)[own].sum()
        if compared:
            part = part + self.dpo * self._preference(losses, row, items, compared) / self.pairs
        self._note("loss", (1 - self.language) * part)
        return (1 - self.language) * part

    def _preference(self, losses: Tensor, row: Tensor, items: Sequence[Item], compared: Sequence[Item]) -> Tensor:
        """DPO summed over the compared items."""
        likely = -by_row(losses, row, len(items) + len(compared))
        chosen = likely[[i for i, item in enumerate(items) if item.rejected]]
        margin = torch.tensor([item.margin for item in compared], device=losses.device)
        value = -logsigmoid(self.loss.beta * (chosen - likely[len(items) :] - margin)).sum()
        self._note("dpo", value / self.pairs)
        return value

    def of_texts(self, lm: LanguageModel, rows: Sequence[TokenRow]) -> Tensor:
        """These texts' part of the loss."""
        losses, _, kinds = losses_of(lm, rows)
        self._add(losses, kinds)
        part = self.language * losses.sum() / self.letters
        self._note("loss", part)
        return part

    def _add(self, losses: Tensor, kinds: Sequence[str]) -> None:
        for kind in dict.fromkeys(kinds):
            mine = torch.tensor([k == kind for k in kinds], device=losses.device)
            self._note(kind, losses[mine].sum())
            self.counts[kind] = self.counts.get(kind, 0) + int(mine.sum())

    def _note(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach()

    def told(self) -> dict[str, float]:
        """Mean NLL per kind of example, the DPO term, and the whole loss."""
        return {name: float(value) / self.counts.get(name, 1) for name, value in self.sums.items()}


def thinned(history: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], ...]:
    """At most MOST_POINTS entries: means over successive steps; a term that is missing keeps its last value.

    Terms that are missing in the beginning are left out.
    """
    size = math.ceil(len(history) / MOST_POINTS) or 1
    groups = [history[i : i + size] for i in range(0, len(history), size)]
    names = [name for name in dict.fromkeys(n for entry in history for n in entry)]
    rows: list[dict[str, float]] = []
    last: dict[str, float] = {}
    for group in groups:
        for name in names:
            values = [entry[name] for entry in group if name in entry]
            if values:
                last[name] = sum(values) / len(values)
        rows.append(dict(last))
    known = [name for name in names if all(name in row for row in rows)]
    return tuple({name: row[name] for name in known} for row in rows)
