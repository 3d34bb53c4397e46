"""MEMIT: write many facts at once by spreading a residual over several MLP layers.

In: EditRequests. Out: a WeightDelta of rank n_facts per layer. Source: Meng et al. 2023,
https://arxiv.org/abs/2210.07229.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from editing_core.editors.base import Editor, EditOutcome
from editing_core.editors.settings import SpreadSettings, TargetSettings
from editing_core.editors.steps.rows import Objective
from editing_core.editors.steps.spread import Solver, Spread
from editing_core.editors.steps.targets import optimise_targets
from editing_core.models.language_model import LanguageModel
from editing_core.settings import setting
from editing_core.types import EditRequest, Watch, ignore


@dataclass(frozen=True)
class MemitSettings(SpreadSettings):
    """Settings of MEMIT. Targets are optimised at the last of `layers`."""

    covariance_weight: float = setting(
        15000.0, "lambda: how strongly known keys are protected; larger edits less [mom2_update_weight]", 1e-3, 1e9
    )
    covariance_floor: float = setting(
        0.0,
        "Added to every key direction, as a share of the mean key variance; bounds the update along dead neurons",
        0.0,
        1.0,
    )


def write_block_targets(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    objective: Objective,
    settings: TargetSettings,
    layers: Sequence[int],
    solve: Solver,
    watch: Watch,
) -> EditOutcome:
    """Optimise every fact's state after the last of `layers`, then let all of them approach it by equal parts."""
    site = lm.architecture.block(layers[-1])
    targets = optimise_targets(lm, requests, objective, [site], settings, watch)
    delta = Spread(site, objective, layers, solve, share=float).write(lm, requests, targets.values[site], watch)
    return EditOutcome(delta, targets.log)


@dataclass(frozen=True, eq=False)
class Memit(Editor):
    """The editor, with its closed form and objective at hand."""

    settings: MemitSettings
    solve: Solver
    objective: Objective

    def edit(self, lm: LanguageModel, requests: Sequence[EditRequest], watch: Watch = ignore) -> EditOutcome:
        """Write all requests together."""
        s = self.settings
        return write_block_targets(lm, requests, self.objective, s, s.layers, self.solve, watch)
