"""MEMIT: write many facts at once by spreading a residual over several MLP layers.

In: EditRequests. Out: a WeightDelta of rank n_facts per layer. Source: Meng et al. 2023,
https://arxiv.org/abs/2210.07229.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from editing_core.editors.base import EditOutcome
from editing_core.editors.settings import TargetSettings, setting
from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.covariance import Covariance
from editing_core.editors.steps.spread import Spread
from editing_core.editors.steps.targets import optimise_targets
from editing_core.models.language_model import LanguageModel
from editing_core.types import EditRequest, Watch, ignore


@dataclass(frozen=True)
class MemitSettings(TargetSettings):
    """Settings of the spreading editors. Targets are optimised at the last of `layers`."""

    layers: tuple[int, ...] = setting((3, 4, 5, 6, 7, 8), "MLP layers that share the change [layers]", 0, 1000)
    covariance_weight: float = setting(
        15000.0, "lambda: how strongly known keys are protected; larger edits less [mom2_update_weight]", 1e-3, 1e9
    )
    covariance_floor: float = setting(
        0.0,
        "Added to every key direction, as a share of the mean key variance; bounds the update along dead neurons",
        0.0,
        1.0,
    )


@dataclass(frozen=True, eq=False)
class Memit:
    """The editor, with its statistics and contexts at hand."""

    settings: MemitSettings
    covariances: Mapping[int, Covariance]
    contexts: Contexts

    def edit(self, lm: LanguageModel, requests: Sequence[EditRequest], watch: Watch = ignore) -> EditOutcome:
        """Optimise every fact's state after the last edited block, then let all layers approach it."""
        site = lm.architecture.block(self.settings.layers[-1])
        targets = optimise_targets(lm, requests, self.contexts, [site], self.settings, watch)
        weight = self.settings.covariance_weight
        way = Spread(
            site, self.contexts, self.covariances, weight, share=float
        )  # each remaining layer takes an equal part
        delta = way.write(lm, requests, targets.values[site], watch)
        return EditOutcome(delta, targets.log)
