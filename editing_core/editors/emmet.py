"""EMMET: MEMIT's closed form with nearly exact targets, in one layer.

The slack e decides: 1 is MEMIT, 0 meets every target exactly (ROME for many facts at once), a little of it
keeps the solve well conditioned. Source: Gupta et al. 2024, https://arxiv.org/abs/2403.14236.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from editing_core.depths import SINGLE
from editing_core.editors.base import Editor, EditOutcome
from editing_core.editors.materials import Materials
from editing_core.editors.memit import MemitSettings, ridge, write_block_targets
from editing_core.editors.pocket import POCKET_STREAM
from editing_core.editors.row import EditorRow, Preset
from editing_core.editors.steps.rows import Objective
from editing_core.editors.steps.spread import Solver
from editing_core.models.language_model import LanguageModel
from editing_core.settings import setting
from editing_core.types import EditRequest, Watch, ignore


@dataclass(frozen=True)
class EmmetSettings(MemitSettings):
    """Settings of EMMET."""

    layers: tuple[int, ...] = setting((5,), "The MLP layer that is changed [layers]", 0, 1000)
    covariance_weight: float = setting(
        100000.0, "lambda: how strongly known keys are protected [mom2_update_weight]", 1e-3, 1e9
    )
    slack: float = setting(0.1, "e: how far targets may be missed; 1 is MEMIT, 0 is exact [emmet_lambda]", 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Emmet(Editor):
    """The editor, with its closed form and objective at hand."""

    settings: EmmetSettings
    solve: Solver
    objective: Objective

    def edit(self, lm: LanguageModel, requests: Sequence[EditRequest], watch: Watch = ignore) -> EditOutcome:
        """Write all requests together."""
        s = self.settings
        return write_block_targets(lm, requests, self.objective, s, s.layers, self.solve, watch)


def build_emmet(settings: EmmetSettings, materials: Materials) -> Emmet:
    """The editor, whose closed form has the slack of its settings."""
    objective = materials.objective(materials.grouped())
    return Emmet(settings, ridge(settings, materials, settings.slack), objective)


ROW = EditorRow(
    "emmet",
    "EMMET",
    "Many facts at once in one layer, targets met almost exactly.",
    "https://arxiv.org/abs/2403.14236",
    EmmetSettings,
    build_emmet,
    lambda s: s.layers,
    by_depth=SINGLE,
    presets={
        "pocket-gpt2": Preset(EmmetSettings(layers=(2,), **POCKET_STREAM), "as MEMIT's", True),
        "pocket-llama": Preset(EmmetSettings(layers=(1,), **POCKET_STREAM), "as MEMIT's", True),
        "pocket-gptj": Preset(EmmetSettings(layers=(3,), **POCKET_STREAM), "as MEMIT's", True),
        "gpt2-xl": Preset(EmmetSettings(layers=(17,), steps=20, covariance_weight=10000.0), "EasyEdit"),
        "gpt-j-6b": Preset(EmmetSettings(layers=(5,)), "EasyEdit"),
        "llama-2-7b": Preset(EmmetSettings(layers=(5,), decay=1e-3, clamp=4.0), "EasyEdit"),
    },
)
