"""Values: what a module is to put out at a prompt, so that the new object is likely there.

    min over v   - log p(new object | prompt, the module's output at the prompt's last token := v)

One value per text, by Adam. Texts run together, each exactly as if alone: Adam works number by number, and a text
whose loss is small enough takes no further part. The best value met is kept, since large steps do not only go down.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor

from editing_core.editors.steps.rows import per_record
from editing_core.models.codebook import muted, replaced
from editing_core.models.gates import Reading
from editing_core.models.hooks import steering, watching
from editing_core.models.language_model import LanguageModel
from editing_core.models.replay import layer_of
from editing_core.models.tokens import Continuation, runs
from editing_core.types import Step, Watch, ignore, noting


@dataclass(frozen=True)
class Search:
    """How values are searched: most steps, Adam's rate, the loss that is small enough, and where a value stands."""

    steps: int
    rate: float
    stop_below: float
    places: str = "last"


@dataclass(frozen=True, eq=False)
class Values:
    """Per text, on the CPU. value: (n, q) float32; steps: (n,) taken; norm: (n,) of what was moved; finite: (n,)."""

    value: Tensor
    steps: Tensor
    norm: Tensor
    finite: Tensor
    history: tuple[dict[str, float], ...] = ()

    @staticmethod
    def join(parts: Sequence["Values"], order: Sequence[int]) -> "Values":
        """Texts put back in order; the history is the mean over parts, of those that ended what they ended with."""
        back = torch.tensor(order, dtype=torch.long).argsort()
        names = ("value", "steps", "norm", "finite")
        tensors = {name: torch.cat([getattr(part, name) for part in parts])[back] for name in names}
        means = []
        for row in zip_longest(*([step["target"] for step in part.history] for part in parts)):
            here = [part.history[-1]["target"] if now is None else now for now, part in zip(row, parts, strict=True)]
            means.append({"target": sum(here) / len(here)})
        return Values(**tensors, history=tuple(means))


def optimised(
    lm: LanguageModel,
    site: str,
    texts: Sequence[Continuation],
    search: Search,
    seeds: Sequence[int] | None = None,
    watch: Watch = ignore,
) -> Values:
    """Values for the output of module `site`. seeds: of random starts; without, its own output is the start."""
    if not texts:
        nothing = torch.zeros(0)
        return Values(nothing[:, None], nothing.long(), nothing, nothing.bool())
    parts: list[Values] = []
    order: list[int] = []
    for numbers in runs([len(text.inputs) for text in texts], lm.tokens_per_backward(lm.layers - layer_of(lm, [site]))):
        told = noting(watch, f"facts {len(order) + 1}-{len(order) + len(numbers)} of {len(texts)}")
        with muted(lm.model), torch.enable_grad():
            own = None if seeds is None else [seeds[n] for n in numbers]
            parts.append(_Problem(lm, site, [texts[n] for n in numbers], search, own).solve(told))
        order += numbers
    return Values.join(parts, order)


class _Problem:
    """The values of some texts that fit into one forward."""

    def __init__(
        self,
        lm: LanguageModel,
        site: str,
        texts: Sequence[Continuation],
        search: Search,
        seeds: Sequence[int] | None,
    ) -> None:
        self.lm, self.site, self.texts, self.search = lm, site, texts, search
        starts = torch.tensor([text.start for text in texts], device=lm.device)
        self.batch = replace(lm.batch([text.inputs for text in texts]), ends=starts)
        told = Reading(self.batch.ids, torch.zeros_like(starts), starts - 1, False)
        self.where = replaced([search.places] * len(texts), told)
        with watching(lm.model, [site]) as seen, torch.no_grad():
            lm.hidden(self.batch)
        self.own = seen[site][torch.arange(len(texts)), (starts - 1).to(seen[site].device)].to(lm.device, lm.precision)
        self.value = self.own.clone() if seeds is None else _random(self.own, seeds)

    def solve(self, watch: Watch) -> Values:
        """Run Adam until every text is finished or the steps are used up."""
        s, n, device = self.search, len(self.texts), self.lm.device
        value = self.value.requires_grad_()
        adam = torch.optim.Adam([value], lr=s.rate)
        best, least = value.detach().clone(), torch.full((n,), torch.inf, dtype=value.dtype, device=device)
        loss, steps = least.clone(), torch.zeros(n, dtype=torch.long)
        active, history = torch.arange(n, device=device), []
        for number in range(s.steps):
            now = self._losses(value, active)
            loss[active] = now.detach()
            better = active[now.detach() < least[active]]
            best[better], least[better] = value.detach()[better], loss[better]
            steps[active.cpu()] = number + 1
            history.append({"target": float(loss.mean())})
            watch(Step("optimise", number + 1, s.steps, terms=history[-1]))
            active = active[(now >= s.stop_below) & now.isfinite()]
            if not len(active) or number == s.steps - 1:
                break
            adam.zero_grad()
            now.sum().backward()
            adam.step()
        moved = (best - self.own).norm(dim=1)
        return Values(best.float().cpu(), steps, moved.cpu(), loss.isfinite().cpu(), tuple(history))

    def _losses(self, value: Tensor, active: Tensor) -> Tensor:
        """(active,) mean negative log-likelihood of the objects' tokens, with the values in their places."""
        lm, number = self.lm, active.tolist()
        where, placed = self.where[active], value[active]

        def place(output: Tensor) -> Tensor:
            there = where[..., None].to(output.device)
            return torch.where(there, placed[:, None].to(output.device, output.dtype), output)

        b = self.batch
        assert b.ends is not None
        some = replace(b, ids=b.ids[active], mask=b.mask[active], lengths=b.lengths[active], ends=b.ends[active])
        texts = [self.texts[i] for i in number]
        label = torch.tensor([token for text in texts for token in text.object_ids], device=lm.device)
        pairs = [(row, at) for row, text in enumerate(texts) for at in text.positions]
        row, at = (torch.tensor(column, device=lm.device) for column in zip(*pairs, strict=True))
        with steering(lm.model, {self.site: place}):
            losses = lm.losses(lm.hidden(some)[row, at], label)
        counts = torch.tensor([len(text.object_ids) for text in texts], device=lm.device)
        return per_record(losses, row, len(texts)) / counts


def _random(like: Tensor, seeds: Sequence[int]) -> Tensor:
    """Uniform from 0 to 1, each row by its own seed."""
    rows = [torch.rand(like.shape[1], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(like)
