"""Rewritten neurons: what an edit of single columns of down-projections did at some prompts.

An update that reads a few inner activations and no others, as KN's does, changes what these neurons say. How strongly
a prompt is met by it is how strongly they are active there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editing_core.models.edit import Findings
from editing_core.models.fired import FIRED, fired_rows, stand
from editing_core.models.hooks import watching

if TYPE_CHECKING:
    from editing_core.models.delta import Update
    from editing_core.models.language_model import LanguageModel

MOST = 0.25  # share of a layer's neurons; an update of more is one of the layer


def rewritten(updates: Mapping[str, Update]) -> dict[str, Tensor]:
    """Per parameter the numbers (n,) of the neurons that are rewritten; empty where any is changed otherwise."""
    found = {}
    for name, update in updates.items():
        right = getattr(update, "right", None)
        units = torch.zeros(0) if right is None else right.any(0).nonzero()[:, 0]
        if right is None or len(units) > MOST * right.shape[1]:
            return {}
        found[name] = units
    return found


def findings_of(lm: LanguageModel, updates: Mapping[str, Update], prompts: Sequence[str]) -> Findings:
    """Which rewritten neuron says most where each prompt ends, and how much all of them add to what is said there."""
    chosen = rewritten(updates)
    modules = [name.removesuffix(".weight") for name in chosen]
    layers = {lm.architecture.down(layer): layer for layer in range(lm.layers)}
    names = [f"{layers.get(module, module)}:{unit}" for module, units in zip(modules, chosen.values(), strict=True)
             for unit in units.tolist()]  # fmt: skip
    lengths = torch.cat([_columns(updates[name], units).norm(dim=0).float() for name, units in chosen.items()])
    fired = _activations(lm, dict(zip(modules, chosen.values(), strict=True)), prompts)
    said = (
        f"{stand(len(names), 'neuron', 'says something else', 'say something else')} now, named by layer and number. "
        "What is added to what one says is its activation times the length of the change."
    )
    return Findings("Rewritten neurons", said, FIRED, fired_rows(prompts, names, fired, lengths))


def _columns(update: Update, units: Tensor) -> Tensor:
    """(d, n): what an activation of 1 adds."""
    columns: Tensor = update.left @ update.right[:, units]  # type: ignore[union-attr]
    return columns


@torch.no_grad()
def _activations(lm: LanguageModel, chosen: Mapping[str, Tensor], prompts: Sequence[str]) -> Tensor:
    """(prompts, neurons) float32 at each prompt's last token."""
    found = torch.zeros(len(prompts), sum(map(len, chosen.values())))
    for numbers, batch in lm.batches([lm.coder.encode(prompt) for prompt in prompts]):
        with watching(lm.model, inputs=list(chosen)) as seen:
            lm.hidden(batch)
        rows = range(len(numbers)), (batch.lengths - 1).tolist()
        parts = [seen[f"{module}.input"][rows][:, units.tolist()].float().cpu() for module, units in chosen.items()]
        found[numbers] = torch.cat(parts, dim=1)
    return found
