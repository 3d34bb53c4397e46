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
from editing_core.editors.memit import MemitSettings
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
