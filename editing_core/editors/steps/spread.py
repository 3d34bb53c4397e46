"""Spread: write target values into MLP down-projections by ridge regression, layer after layer.

    Delta = R K^T (lambda C + K K^T)^-1        MEMIT eq. 14, https://arxiv.org/abs/2210.07229

The system is solved in the small space of the facts: with C = L L^T and Y = L^-1 K / sqrt(lambda),
the right factor is L^-T Y (I + Y^T Y)^-1 / sqrt(lambda). Everything in float64.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.covariance import Covariance
from editing_core.editors.steps.keys import SubjectRows, keys_of, states_at_subject
from editing_core.models.delta import LowRank, WeightDelta
from editing_core.models.language_model import LanguageModel
from editing_core.types import EditRequest, Step, Watch, ignore


def ridge_factor(keys: Tensor, cholesky: Tensor, weight: float, slack: float = 1.0) -> Tensor:
    """(d_in, n) factor A such that `residuals @ A.T` is the ridge solution.

    keys: (d_in, n). cholesky: (d_in, d_in) lower factor of C. weight: lambda. slack 1 is MEMIT; 0 would
    meet the targets exactly (EMMET, arXiv:2403.14236).
    """
    whitened = torch.linalg.solve_triangular(cholesky, keys, upper=False) / weight**0.5
    gram = whitened.T @ whitened
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    small = torch.linalg.solve(slack * eye + gram, whitened.T).T
    factor: Tensor = torch.linalg.solve_triangular(cholesky.T, small, upper=True) / weight**0.5
    return factor


@dataclass(frozen=True, eq=False)
class Spread:
    """How targets are written.

    site: the module whose output at the subject the targets are wanted. covariances: per layer to change.
    weight: lambda. share: what the residual is divided by when so many layers remain, this one included.
    """

    site: str
    contexts: Contexts
    covariances: Mapping[int, Covariance]
    weight: float
    share: Callable[[int], float]

    def write(
        self, lm: LanguageModel, requests: Sequence[EditRequest], targets: Tensor, watch: Watch = ignore
    ) -> WeightDelta:
        """Write `targets` (n_records, d) into all layers, lowest first.

        Keys and residuals are measured anew at every layer, with the layers below already changed.
        """
        bare = SubjectRows.of(lm, requests, Contexts())
        rows = SubjectRows.of(lm, requests, self.contexts)
        total = WeightDelta()
        layers = sorted(self.covariances)
        with ExitStack() as stack:
            for i, layer in enumerate(layers):
                watch(Step("spread", i + 1, len(layers), note=f"layer {layer}"))
                keys = keys_of(lm, rows, self.contexts, layer)
                residual = targets.double() - states_at_subject(lm, bare, self.site)[:, 0]
                left = (residual / self.share(len(layers) - i)).T  # (d, n)
                cholesky = self.covariances[layer].cholesky.to(keys.device)
                right = ridge_factor(keys, cholesky, self.weight).T  # (n, d_in)
                piece = WeightDelta({f"{lm.architecture.down(layer)}.weight": LowRank(left, right)})
                stack.enter_context(piece.applied(lm.model))
                total += piece
        return total
