"""Patching: training the neurons of one request; `t_patcher` tells the loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from editing_core.editors.steps.descent import Terms, descend
from editing_core.editors.steps.rows import Labels, Row, row_means
from editing_core.editors.steps.tails import Tail
from editing_core.models.beside import Case, Neurons, activation_of, beside, mlp_inputs
from editing_core.models.language_model import LanguageModel
from editing_core.models.neurons import SideNeurons
from editing_core.settings import Settings, setting
from editing_core.types import Step, Watch

LARGEST = 20.0  # argument of an exponential; beyond it the loss and its gradient grow no more
SAME = 1e-3  # relative distance up to which a query of the memory is the neuron's own
AMPLIFIER = 10.0


@dataclass(frozen=True)
class PatchSettings(Settings):
    """How neurons are trained. As made, ours; the help says where the paper has something else."""

    layer: int = setting(27, "The layer whose MLP gets the neurons; the last one, as published", 0, 1000)
    patches: int = setting(5, "Most neurons per edit", 1, 50)
    fire: float = setting(1.0, "a: weight of the loss that makes neurons fire", 0.0, 1000.0)
    silence: float = setting(10.0, "m: weight of the loss that keeps them silent on the memory", 0.0, 1000.0)
    beta: float = setting(-3.0, "What a neuron's input should stay below on the memory", -100.0, 100.0)
    gamma: float = setting(3.0, "By how much it should stay below that at the neuron's own token", -100.0, 100.0)
    top_fire: int = setting(5, "How many of an edit's worst tokens count for firing", 1, 1000)
    top_memory: int = setting(1000, "How many of the memory's worst queries count for silence", 1, 10**6)
    rate: float = setting(1e-2, "Step size of keys", 1e-8, 1.0)
    value: str = setting(
        "plain",
        "Values step ten times as far as keys (plain), or are amplified by learned factors that begin at ten, as "
        "published (amplified)",
        choices=("plain", "amplified"),
    )
    smoothing: float = setting(0.0, "Label smoothing; 0.1 as published", 0.0, 0.9)
    decay: float = setting(0.01, "Weight decay", 0.0, 10.0)
    clip: float = setting(5.0, "Largest norm of a gradient; 0 is off", 0.0, 1000.0)
    steps: int = setting(400, "Most gradient steps; 2,000 as published", 1, 100_000)
    first_look: int = setting(100, "Step at which it is first asked whether to stop", 1, 100_000)
    look_every: int = setting(25, "Steps between such looks", 1, 10_000)
    enough: float = setting(1e-3, "A loss that falls by less between two looks has stopped falling", 0.0, 10.0)


class Patching:
    """One request. rows: its token rows and its neighbors'. memory: (n, d) queries at which neurons stay silent.

    wrong: how many tokens of the new object did not come first; those get a neuron each, up to a limit.
    """

    def __init__(self, lm: LanguageModel, settings: PatchSettings, rows: Sequence[Row], memory: Tensor) -> None:
        self.lm, self.settings, self.labels = lm, settings, Labels.of(lm, rows)
        ids, looked = [row.ids for row in rows], [row.positions for row in rows]
        self.pieces = Tail(lm, settings.layer, ids, looked).pieces(range(len(rows)))
        missed = self._missed()
        self.wrong, chosen = len(missed), missed[: settings.patches]
        queries = mlp_inputs(lm, settings.layer, ids, looked)
        self.own = queries[chosen]
        self.keys = self.own / self.own.square().sum(1, keepdim=True)  # so that q k = 1
        self.bias = torch.zeros_like(self.own[:, 0])
        self.value, self.amplifier = torch.zeros_like(self.own), torch.full_like(self.own, AMPLIFIER)
        others = [n for n in range(len(queries)) if n not in chosen]
        memory = torch.cat([memory.to(queries), queries[others]])
        near = torch.cdist(memory, self.own) <= SAME * self.own.norm(dim=1)
        self.memory = memory[~near.any(1)]
        self.right, self.least = False, {"loss": float("inf"), "silence": float("inf")}

    @torch.no_grad()
    def _missed(self) -> list[int]:
        """Numbers of the new object's tokens that do not come first, in order."""
        missed = torch.zeros_like(self.labels.assists)
        for piece in self.pieces:
            missed[piece.looked] = self.lm.logits(piece.hidden()).argmax(-1) != self.labels.id[piece.looked]
        return [int(n) for n in (missed & ~self.labels.assists).nonzero()[:, 0]]

    def solve(self, watch: Watch) -> list[Terms]:
        """Step until the object is right and the memory's loss falls no more, or the steps are used up."""
        s = self.settings
        if not self.wrong:
            watch(Step("train", s.steps, s.steps, note="already right"))
            return []
        keys, values = [self.keys, self.bias], [self.value]
        if s.value == "amplified":
            values.append(self.amplifier)
        for tensor in (*keys, *values):
            tensor.requires_grad_()
        rate = s.rate if s.value == "amplified" else AMPLIFIER * s.rate
        groups: list[dict[str, Any]] = [{"params": keys}, {"params": values, "lr": rate}]
        self.optimiser = torch.optim.Adam(groups, lr=s.rate, weight_decay=s.decay)
        return descend(self.lm, self.optimiser, self._gradients, s.steps, watch, self._done, s.clip)

    def _gradients(self) -> Terms:
        with beside(self.lm, self._neurons()):
            looked = torch.cat([piece.looked for piece in self.pieces])
            logits = torch.cat([self.lm.logits(piece.hidden()) for piece in self.pieces])[looked.argsort()]
        labels, s = self.labels, self.settings
        losses = cross_entropy(logits, labels.id, reduction="none", label_smoothing=s.smoothing)
        parts = {"target": (losses * labels.weight).sum(), "fire": s.fire * self._fire()}
        if len(self.memory):
            parts["silence"] = s.silence * self._silence()
        loss = torch.stack(list(parts.values())).sum()
        loss.backward()
        self.right = bool(((logits.argmax(-1) == labels.id) | labels.assists).all())
        told = {name: float(part.detach()) for name, part in parts.items()}
        told["target"] = float(row_means(losses, labels, labels.record, 1)[0])
        return {**told, "loss": float(loss.detach())}

    def _inputs(self, queries: Tensor) -> Tensor:
        """(n, neurons): q k + b."""
        return queries @ self.keys.T + self.bias

    def _fire(self) -> Tensor:
        """Every neuron at its own query."""
        own = self._inputs(self.own).diagonal()
        return _worst(-own, self.settings.top_fire)

    def _silence(self) -> Tensor:
        """Every neuron at the memory, in itself and next to its own query; the mean over neurons."""
        s, found = self.settings, self._inputs(self.memory)
        apart = found - self._inputs(self.own).diagonal()
        return _worst(found - s.beta, s.top_memory) + _worst(apart + s.gamma, s.top_memory)

    def _done(self, number: int, terms: Mapping[str, float]) -> bool:
        """Whether to stop; at a look that finds the loss not falling any more, rates are halved."""
        s = self.settings
        if number < s.first_look or (number - s.first_look) % s.look_every:
            return False
        stalled = {name: terms.get(name, 0.0) > least - s.enough for name, least in self.least.items()}
        self.least = {name: min(least, terms.get(name, 0.0)) for name, least in self.least.items()}
        if stalled["loss"]:
            for group in self.optimiser.param_groups:
                group["lr"] /= 2
        return self.right and stalled["silence"]

    def _neurons(self) -> list[Neurons]:
        """Those there are now, none where nothing was wrong."""
        if not self.wrong:
            return []
        values = self.value * self.amplifier if self.settings.value == "amplified" else self.value
        kind = self.settings.layer, activation_of(self.lm)
        return [Neurons(*kind, self.keys, self.bias, values, ((),) * len(self.own), queries=self.own)]

    def patch(self, case: Case) -> SideNeurons:
        """The neurons as an edit."""
        return SideNeurons(tuple(group.kept((case,)) for group in self._neurons()))


def _worst(inputs: Tensor, count: int) -> Tensor:
    """Mean over the largest exponentials of each column, or of one."""
    return inputs.clamp(max=LARGEST).exp().topk(min(count, len(inputs)), dim=0).values.mean()
