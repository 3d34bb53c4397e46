"""PMET: optimise attention and MLP output together, write only the MLP's part.

Because the attention's part is discarded, the optimised configuration is never fully realised: expect a
large gap after the first iteration. Source: Li et al. 2024, https://arxiv.org/abs/2308.08742.

The optimised value is the down-projection's output, and lower layers are asked for the same residual, which is right
where that output is what the stream gets. Where a norm stands in between, what is spread is the difference it makes
behind the norm of its own layer, in units of the stream; every layer pulls its share back through its own norm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from editing_core.editors.base import Editor, EditOutcome
from editing_core.editors.materials import Materials
from editing_core.editors.memit import MemitSettings, ridge
from editing_core.editors.pocket import POCKET_MODULE, SEARCHED
from editing_core.editors.row import EditorRow, Preset
from editing_core.editors.steps.rows import Objective
from editing_core.editors.steps.spread import Solver, Spread
from editing_core.editors.steps.targets import optimise_targets
from editing_core.models.language_model import LanguageModel
from editing_core.models.norms import in_stream
from editing_core.types import EditRequest, Watch, ignore


@dataclass(frozen=True)
class PmetSettings(MemitSettings):
    """As MEMIT's; the clamp holds for either vector on its own."""


@dataclass(frozen=True, eq=False)
class Pmet(Editor):
    """The editor, with its closed form and objective at hand."""

    settings: PmetSettings
    solve: Solver
    objective: Objective

    def edit(self, lm: LanguageModel, requests: Sequence[EditRequest], watch: Watch = ignore) -> EditOutcome:
        """Optimise both module outputs of the last edited block, spread the MLP's by square roots."""
        layers = self.settings.layers
        attention, mlp = lm.architecture.attention_out_of(layers[-1]), lm.architecture.down(layers[-1])
        sites = [attention, mlp]
        targets = optimise_targets(lm, requests, self.objective, sites, self.settings, watch, adaptive=True)
        added = lm.architecture.added(layers[-1])
        wanted = in_stream(lm, layers[-1], targets.values[mlp])
        way = Spread(added, self.objective, layers, self.solve, share=lambda remaining: remaining**0.5)
        return EditOutcome(way.write(lm, requests, wanted, watch), targets.log)


def build_pmet(settings: PmetSettings, materials: Materials) -> Pmet:
    """The editor with its closed form."""
    return Pmet(settings, ridge(settings, materials), materials.objective(materials.grouped()))


ROW = EditorRow(
    "pmet",
    "PMET",
    "Optimises attention and MLP together, writes only the MLP's part.",
    "https://arxiv.org/abs/2308.08742",
    PmetSettings,
    build_pmet,
    lambda s: s.layers,
    {
        "pocket-gpt2": Preset(
            PmetSettings(layers=(0, 1, 2), covariance_weight=300.0, clamp=3.0, **POCKET_MODULE),
            SEARCHED,
        ),
        "pocket-llama": Preset(
            PmetSettings(layers=(0, 1, 2), covariance_weight=300.0, clamp=1.5, **{**POCKET_MODULE, "decay": 0.01}),
            SEARCHED,
        ),
        "pocket-gptj": Preset(
            PmetSettings(layers=(0, 1, 2, 3), covariance_weight=300.0, clamp=3.0, **POCKET_MODULE),
            SEARCHED,
        ),
        "gpt2-xl": Preset(
            PmetSettings(layers=(13, 14, 15, 16, 17), steps=20, covariance_weight=20000.0),
            "ResolveUnderOverEdit",
        ),
        "gpt-j-6b": Preset(PmetSettings(steps=30, rate=0.2, kl_factor=1.0), "EasyEdit"),
        "llama-2-7b": Preset(PmetSettings(layers=(4, 5, 6, 7, 8), steps=20, clamp=1.0), "EasyEdit"),
    },
)
