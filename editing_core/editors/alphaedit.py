"""AlphaEdit: MEMIT's targets, written only along directions that known keys hardly use.

    [P (K K^T + B) + eta I] X = P K R^T,   Delta = X^T

P projects on the eigenvectors of C with small eigenvalues, B sums the keys of earlier batches. Solved in the
small space of the keys: with Q = P [K_old, K] and M = [K_old, K]^T Q + eta I it is X = Q M^-1 [0; R^T].
Source: Fang et al. 2025, https://arxiv.org/abs/2410.02355.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from editing_core.editors.base import Editor, EditOutcome
from editing_core.editors.materials import Materials
from editing_core.editors.memit import write_block_targets
from editing_core.editors.pocket import POCKET_NULL
from editing_core.editors.row import EditorRow, Preset
from editing_core.editors.settings import SpreadSettings
from editing_core.editors.steps.keys import SubjectRows, keys_of
from editing_core.editors.steps.rows import Objective
from editing_core.errors import BadSetting
from editing_core.models.language_model import LanguageModel
from editing_core.settings import setting
from editing_core.statistics.covariance import Covariance
from editing_core.types import EditRequest, Watch, ignore


@dataclass(frozen=True)
class AlphaEditSettings(SpreadSettings):
    """Settings of AlphaEdit. Targets are optimised at the last of `layers`."""

    threshold: float = setting(
        0.02, "Eigenvalues of C below it, or the share of the trace above which, are free [nullspace_threshold]", 0, 1e6
    )
    relative: bool = setting(
        False, "Read the threshold as the share of C's trace that is protected, for models of any scale"
    )
    ridge: float = setting(10.0, "eta: larger edits less [L2]", 1e-6, 1e6)
    cache: str = setting(
        "batch",
        "When written keys become protected: after a batch's last iteration, or, as published, after every iteration",
        choices=("batch", "iteration"),
    )


def null_space(covariance: Covariance, threshold: float, relative: bool) -> Tensor:
    """(d_in, free) float64 orthonormal columns: the eigenvectors of C with the smallest eigenvalues.

    Absolute: eigenvalues below the threshold. Relative: all but the fewest largest ones that together hold the
    share `threshold` of the trace. BadSetting when nothing is left free.
    """
    matrix = covariance.matrix
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    values = values.clamp(min=0)
    if relative:
        held = values.flip(0).cumsum(0).flip(0)  # of this and all larger ones
        free = held - values >= threshold * values.sum()  # the larger ones hold the share without it
    else:
        free = values < threshold
    if not bool(free.any()):
        raise BadSetting(
            f"With threshold {threshold:g} no direction of the keys is free (the smallest eigenvalue is "
            f"{float(values[0]):.3g}); raise the threshold, or set relative=true and a share of the trace such as 0.9."
        )
    found: Tensor = vectors[:, free]
    return found


@dataclass(frozen=True, eq=False)
class NullSpace:
    """AlphaEdit's closed form. bases: per layer (d_in, free). written: per layer keys of earlier batches."""

    bases: Mapping[int, Tensor]
    ridge: float
    protection: float = 1.0
    written: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, layer: int, keys: Tensor, protected: Tensor) -> Tensor:
        """(d_in, n); acts inside the null space only."""
        basis = self.bases[layer].to(keys.device)
        earlier = self.written.get(layer, keys[:, :0])
        every = torch.cat([earlier, self.protection**0.5 * protected, keys], dim=1)
        inside = basis @ (basis.T @ every)
        eye = torch.eye(every.shape[1], dtype=keys.dtype, device=keys.device)
        inverse = torch.linalg.solve(every.T @ inside + self.ridge * eye, eye[:, every.shape[1] - keys.shape[1] :])
        factor: Tensor = inside @ inverse
        return factor

    def remember(self, layer: int, keys: Tensor) -> None:
        """Protect keys (d_in, n) from now on."""
        self.written[layer] = torch.cat([self.written.get(layer, keys[:, :0]), keys], dim=1)


@dataclass(frozen=True, eq=False)
class AlphaEdit(Editor):
    """The editor, with its closed form and objective at hand."""

    settings: AlphaEditSettings
    solve: NullSpace
    objective: Objective

    def edit(self, lm: LanguageModel, requests: Sequence[EditRequest], watch: Watch = ignore) -> EditOutcome:
        """Write all requests together, next to those of earlier batches."""
        s = self.settings
        outcome = write_block_targets(lm, requests, self.objective, s, s.layers, self.solve, watch)
        free = ", ".join(f"{b.shape[1]} of {b.shape[0]}" for b in self.solve.bases.values())
        return EditOutcome(outcome.delta, outcome.targets, (f"Free key directions per layer: {free}.",))

    def written(self, lm: LanguageModel, requests: Sequence[EditRequest]) -> None:
        """Protect the keys of every iteration, as published."""
        if self.settings.cache == "iteration":
            self._remember(lm, requests)

    def settle(self, lm: LanguageModel, requests: Sequence[EditRequest]) -> None:
        """Protect the batch's keys, as they are under its final edit."""
        if self.settings.cache == "batch":
            self._remember(lm, requests)

    def forget(self) -> None:
        """Protect nothing that was written."""
        self.solve.written.clear()

    def _remember(self, lm: LanguageModel, requests: Sequence[EditRequest]) -> None:
        rows = SubjectRows.of(lm, [r.place for r in requests], self.objective.contexts)
        for layer in self.settings.layers:
            self.solve.remember(layer, keys_of(lm, rows, self.objective.contexts, layer))


def build_alphaedit(settings: AlphaEditSettings, materials: Materials) -> AlphaEdit:
    """The editor with the null spaces of its layers; BadSetting where the threshold leaves none."""
    covariances = materials.covariances(settings.layers, 0.0)
    bases = {layer: null_space(c, settings.threshold, settings.relative) for layer, c in covariances.items()}
    solve = NullSpace(bases, settings.ridge, materials.assist.keys)
    return AlphaEdit(settings, solve, materials.objective(materials.grouped()))


ROW = EditorRow(
    "alphaedit",
    "AlphaEdit",
    "MEMIT's targets, written only along directions that known keys hardly use.",
    "https://arxiv.org/abs/2410.02355",
    AlphaEditSettings,
    build_alphaedit,
    lambda s: s.layers,
    {
        "pocket-gpt2": Preset(
            AlphaEditSettings(layers=(0, 1, 2, 3), **POCKET_NULL),
            "layers and targets as MEMIT's, threshold of the design trials",
            True,
        ),
        "pocket-llama": Preset(
            AlphaEditSettings(layers=(0, 1), **POCKET_NULL),
            "layers and targets as MEMIT's, threshold as pocket-gpt2's",
            True,
        ),
        "pocket-gptj": Preset(
            AlphaEditSettings(layers=(0, 1, 2, 3), **POCKET_NULL),
            "layers and targets as MEMIT's, threshold as pocket-gpt2's",
            True,
        ),
        "gpt2-xl": Preset(AlphaEditSettings(layers=(13, 14, 15, 16, 17), steps=20), "jianghoucheng/AlphaEdit"),
        "gpt-j-6b": Preset(AlphaEditSettings(), "jianghoucheng/AlphaEdit"),
        "llama-2-7b": Preset(AlphaEditSettings(layers=(4, 5, 6, 7, 8), rate=0.1), "ResolveUnderOverEdit"),
    },
    faithful={"*": {"cache": "iteration"}},
)
