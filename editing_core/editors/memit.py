"""MEMIT: write many facts at once by spreading a residual over several MLP layers.

In: EditRequests. Out: a WeightDelta of rank n_facts per layer. Source: Meng et al. 2023,
https://arxiv.org/abs/2210.07229.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from editing_core.editors.base import Editor, EditOutcome
from editing_core.editors.materials import Materials
from editing_core.editors.pocket import POCKET_STREAM, SEARCHED
from editing_core.editors.row import EditorRow, Preset
from editing_core.editors.settings import SpreadSettings, TargetSettings
from editing_core.editors.steps.rows import Objective
from editing_core.editors.steps.spread import Ridge, Solver, Spread
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


def ridge(s: MemitSettings, materials: Materials, slack: float = 1.0) -> Ridge:
    """The closed form that MEMIT, PMET and EMMET share."""
    covariances = materials.covariances(s.layers, s.covariance_floor)
    return Ridge(covariances, s.covariance_weight, slack, materials.assist.keys)


def build_memit(settings: MemitSettings, materials: Materials) -> Memit:
    """The editor with its closed form."""
    return Memit(settings, ridge(settings, materials), materials.objective(materials.grouped()))


ROW = EditorRow(
    "memit",
    "MEMIT",
    "Many facts at once, spread over several layers by ridge regression.",
    "https://arxiv.org/abs/2210.07229",
    MemitSettings,
    build_memit,
    lambda s: s.layers,
    {
        "pocket-gpt2": Preset(MemitSettings(layers=(0, 1, 2, 3), **POCKET_STREAM), SEARCHED),
        "pocket-llama": Preset(MemitSettings(layers=(0, 1), **POCKET_STREAM), SEARCHED),
        "pocket-gptj": Preset(MemitSettings(layers=(0, 1, 2, 3), **POCKET_STREAM), SEARCHED),
        "gpt2": Preset(MemitSettings(layers=(3, 4, 5), steps=20, covariance_weight=20000.0), "suggested", True),
        "gpt2-xl": Preset(
            MemitSettings(layers=(13, 14, 15, 16, 17), steps=20, covariance_weight=20000.0), "kmeng01/memit"
        ),
        "gpt-j-6b": Preset(MemitSettings(), "kmeng01/memit"),
        "llama-2-7b": Preset(
            MemitSettings(layers=(4, 5, 6, 7, 8), decay=0.5, clamp=1.0),
            "EasyEdit layers, our clamp and decay",
            True,
        ),
    },
    faithful={"llama-2-7b": {"decay": 1e-3, "clamp": 4.0}},
)
