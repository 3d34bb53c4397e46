"""Descent: gradient steps on a few tensors beside a frozen model, the loss terms of every step out."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from editing_core.errors import NotFinite
from editing_core.models.language_model import LanguageModel
from editing_core.types import Step, Watch

Terms = dict[str, float]
Judge = Callable[[int, Mapping[str, float]], bool]


def descend(
    lm: LanguageModel,
    optimiser: Optimizer,
    gradients: Callable[[], Terms],
    steps: int,
    watch: Watch,
    done: Judge,
    clip: float = 0.0,
) -> list[Terms]:
    """Step until `done` says so of a step's number and terms, and give the terms of every step.

    gradients: leaves them in the optimiser's tensors and gives the terms, "loss" among them; it may be asked again
    when memory runs out. What is judged is what is kept: no step follows the last look. clip: largest norm; 0 is off.
    Cancelled, raised by `watch`, passes through; NotFinite when the loss is no number.
    """
    tensors: Sequence[Tensor] = [t for group in optimiser.param_groups for t in group["params"]]
    history: list[Terms] = []

    def once() -> Terms:
        optimiser.zero_grad(set_to_none=True)
        with torch.enable_grad():
            return gradients()

    for number in range(1, steps + 1):
        terms = lm.fitting(once)
        if not math.isfinite(terms["loss"]):
            raise NotFinite(f"The training loss is {terms['loss']} at step {number}; use a smaller rate.")
        history.append(terms)
        watch(Step("train", number, steps, terms=terms))
        if done(number, terms) or number == steps:
            break
        if clip:
            torch.nn.utils.clip_grad_norm_(tensors, clip)
        optimiser.step()
    return history
