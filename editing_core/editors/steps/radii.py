"""Radii: how far a codebook's entries may reach, between an edit's paraphrases and the prompts of other facts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from editing_core.models.codebook import queries
from editing_core.models.entries import distances
from editing_core.models.language_model import LanguageModel

NEAR, FAR = 0.9, 0.01  # shares of paraphrases and of unrelated prompts that are told


@dataclass(frozen=True)
class Calibration:
    """Distances from edits to their paraphrases that 90 % do not exceed, to unrelated prompts that 99 % do."""

    near: float
    far: float

    @property
    def radius(self) -> float:
        """Between both, as many times the one as the other is of it; the far one where they cross."""
        return float((self.near * self.far) ** 0.5) if self.near < self.far else self.far

    def told(self, kind: str) -> str:
        """Both in a sentence."""
        rest = f"the radius is {self.radius:.3g}, between them."
        if self.near >= self.far:
            rest = f"they cross, so the radius {self.radius:.3g} misses paraphrases; choose another layer."
        near = f"90% of {kind} end within {self.near:.3g} of their edit"
        return f"{near}, 1% of unrelated facts within {self.far:.3g}; {rest}"


def calibrated(
    lm: LanguageModel, layer: int, query: str, alike: Sequence[tuple[str, Sequence[str]]], unrelated: Sequence[str]
) -> Calibration:
    """Distances of what a layer reads. alike: edit prompts, each with its paraphrases; unrelated: of other facts."""
    keys = queries(lm, layer, query, [prompt for prompt, _ in alike])
    owner = torch.tensor([number for number, (_, others) in enumerate(alike) for _ in others])
    near = (queries(lm, layer, query, [p for _, others in alike for p in others]) - keys[owner]).norm(dim=1)
    far = distances(keys, queries(lm, layer, query, unrelated)).flatten()
    return Calibration(float(near.quantile(NEAR)), float(far.quantile(FAR)))
