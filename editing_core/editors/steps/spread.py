"""Spread: write target values into MLP down-projections by ridge regression, layer after layer.

    Delta = R K^T (lambda C + K K^T)^-1        MEMIT eq. 14, https://arxiv.org/abs/2210.07229

The system is solved in the small space of the facts: with C = L L^T and Y = L^-1 K / sqrt(lambda),
the right factor is L^-T Y (I + Y^T Y)^-1 / sqrt(lambda). Everything in float64.

Residuals are measured in the residual stream. Where a norm stands between the down-projection and the stream, each
layer's share is first pulled back through that layer's norm, see `models/norms.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.keys import SubjectRows, average
from editing_core.editors.steps.rows import Objective
from editing_core.editors.steps.staged import Staged
from editing_core.models.delta import LowRank, WeightDelta
from editing_core.models.language_model import LanguageModel
from editing_core.models.norms import at_down
from editing_core.statistics.covariance import Covariance
from editing_core.types import EditRequest, Step, Watch, ignore


def ridge_factor(keys: Tensor, cholesky: Tensor, weight: float, slack: float | Tensor = 1.0) -> Tensor:
    """(d_in, n) factor A such that `residuals @ A.T` is the ridge solution.

    keys: (d_in, n). cholesky: (d_in, d_in) lower factor of C. weight: lambda. slack: per key how much of its
    target may be missed; 1 is MEMIT, 0 meets the target exactly (EMMET, arXiv:2403.14236).
    """
    whitened = torch.linalg.solve_triangular(cholesky, keys, upper=False) / weight**0.5
    gram = whitened.T @ whitened
    slacks = torch.as_tensor(slack, dtype=gram.dtype, device=gram.device).expand(len(gram))
    system = gram + slacks.diag()
    if bool((slacks > 0).all()):
        small = torch.linalg.solve(system, whitened.T).T
    else:  # equal keys without slack: the least of all solutions
        small = whitened @ torch.linalg.pinv(system, hermitian=True)
    factor: Tensor = torch.linalg.solve_triangular(cholesky.T, small, upper=True) / weight**0.5
    return factor


class Solver(Protocol):
    """Closed form of one layer: keys to write (d_in, n) and keys to protect (d_in, m) -> factor (d_in, n)."""

    def __call__(self, layer: int, keys: Tensor, protected: Tensor) -> Tensor:
        """The factor A such that the update is `residuals @ A.T`."""
        ...


@dataclass(frozen=True, eq=False)
class Ridge:
    """MEMIT's closed form, with protected keys as extra columns that ask for no change.

    Protecting with strength mu is the same as replacing lambda C by lambda C + mu K' K'^T.
    """

    covariances: Mapping[int, Covariance]
    weight: float
    slack: float = 1.0
    protection: float = 1.0

    def __call__(self, layer: int, keys: Tensor, protected: Tensor) -> Tensor:
        """(d_in, n) as `ridge_factor`."""
        cholesky = self.covariances[layer].cholesky.to(keys.device)
        slack = torch.ones(keys.shape[1] + protected.shape[1], dtype=keys.dtype)
        slack[: keys.shape[1]] = self.slack
        stacked = torch.cat([keys, self.protection**0.5 * protected], dim=1)
        return ridge_factor(stacked, cholesky, self.weight, slack)[:, : keys.shape[1]]


@dataclass(frozen=True, eq=False)
class Spread:
    """How targets are written.

    site: the module whose output at the subject the targets are wanted, a block or what an MLP adds to the stream
    (`Architecture.added`), so that residuals are changes of the stream. layers: to change. solve: the closed
    form. share: what the residual is divided by when so many layers remain, this one included.
    """

    site: str
    objective: Objective
    layers: Sequence[int]
    solve: Solver
    share: Callable[[int], float]

    def write(
        self, lm: LanguageModel, requests: Sequence[EditRequest], targets: Tensor, watch: Watch = ignore
    ) -> WeightDelta:
        """Write `targets` (n_records, d) into all layers, lowest first.

        Keys and residuals are measured anew at every layer, with the layers below already changed.
        """
        places, contexts = [r.place for r in requests], self.objective.contexts
        bare = Staged(lm, SubjectRows.of(lm, places, Contexts()))
        prefixed = Staged(lm, SubjectRows.of(lm, places, contexts.prefixed)) if len(contexts) > 1 else None
        protected = self._protected(requests)
        beside = Staged(lm, SubjectRows.of(lm, protected, Contexts())) if protected else None
        total = WeightDelta()
        layers = sorted(self.layers)
        with ExitStack() as stack:
            for i, layer in enumerate(layers):
                watch(Step("spread", i + 1, len(layers), note=f"layer {layer}"))
                of_templates = torch.cat([rows.keys(layer) for rows in (bare, prefixed) if rows], dim=1)
                keys, bare_keys = average(of_templates, contexts).T, of_templates[:, 0]
                kept = beside.keys(layer)[:, 0].T if beside else keys[:, :0]
                residual = targets.double() - bare.outputs(self.site)[:, 0]
                change = residual / self.share(len(layers) - i)  # (n, d), of the stream
                left = at_down(lm, layer, change, bare_keys).T  # (d, n)
                right = self.solve(layer, keys, kept).T  # (n, d_in)
                piece = WeightDelta({f"{lm.architecture.down(layer)}.weight": LowRank(left, right)})
                stack.enter_context(piece.on(lm.model))
                total = total.joined(piece)
        return total

    def _protected(self, requests: Sequence[EditRequest]) -> list[tuple[str, str]]:
        """Where the keys to protect are: the edit neighbors', each once."""
        if not self.objective.assist.keys:
            return []
        return list(dict.fromkeys(n.place for r in requests for n in r.edit_neighbors if n.place))
