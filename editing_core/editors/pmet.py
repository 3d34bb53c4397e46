"""PMET: optimise attention and MLP output together, write only the MLP's part.

Because the attention's part is discarded, the optimised configuration is never fully realised: expect a
large gap after the first iteration. Source: Li et al. 2024, https://arxiv.org/abs/2308.08742.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from editing_core.editors.base import EditOutcome
from editing_core.editors.memit import MemitSettings
from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.covariance import Covariance
from editing_core.editors.steps.spread import Spread
from editing_core.editors.steps.targets import optimise_targets
from editing_core.models.language_model import LanguageModel
from editing_core.types import EditRequest, Watch, ignore


@dataclass(frozen=True)
class PmetSettings(MemitSettings):
    """As MEMIT's; the clamp holds for either vector on its own."""


@dataclass(frozen=True, eq=False)
class Pmet:
    """The editor, with its statistics and contexts at hand."""

    settings: PmetSettings
    covariances: Mapping[int, Covariance]
    contexts: Contexts

    def edit(self, lm: LanguageModel, requests: Sequence[EditRequest], watch: Watch = ignore) -> EditOutcome:
        """Optimise both module outputs of the last edited block, spread the MLP's by square roots."""
        layer = self.settings.layers[-1]
        attention, mlp = lm.architecture.attention_out_of(layer), lm.architecture.down(layer)
        targets = optimise_targets(lm, requests, self.contexts, [attention, mlp], self.settings, watch, adaptive=True)
        weight = self.settings.covariance_weight
        way = Spread(mlp, self.contexts, self.covariances, weight, share=lambda remaining: remaining**0.5)
        delta = way.write(lm, requests, targets.values[mlp], watch)
        return EditOutcome(delta, targets.log)
