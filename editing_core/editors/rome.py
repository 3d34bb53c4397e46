"""ROME: one fact, one layer, one rank-one update; several facts one after the other.

    W' = W + r u^T,   u = C^-1 k,   r = (target - value) / (k . u)

The published code builds u from the template-averaged key but divides by the bare prompt's; now and then
that explodes. The default here uses one key throughout, as R-ROME does (Gupta et al. 2024,
https://arxiv.org/abs/2403.07175). Source of ROME: Meng et al. 2022, https://arxiv.org/abs/2202.05262.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing_core.depths import SINGLE
from editing_core.editors.base import Editor, EditOutcome, TargetLog
from editing_core.editors.load import one_by_one_load
from editing_core.editors.materials import Materials
from editing_core.editors.pocket import POCKET_ROME, SEARCHED
from editing_core.editors.row import KEYS as NEIGHBOR_KEYS
from editing_core.editors.row import EditorRow, Preset
from editing_core.editors.settings import TargetSettings
from editing_core.editors.steps.contexts import Contexts, draw_prefixed
from editing_core.editors.steps.keys import SubjectRows, average, states_at_subject
from editing_core.editors.steps.rows import Objective
from editing_core.editors.steps.targets import optimise_targets
from editing_core.models.delta import LowRank, WeightDelta
from editing_core.models.language_model import LanguageModel
from editing_core.settings import setting
from editing_core.statistics.covariance import Covariance
from editing_core.types import EditRequest, Step, Watch, ignore

KEYS = ("averaged", "bare", "mixed")
LEAST_COSINE = 1e-3  # below it the update would explode


@dataclass(frozen=True)
class RomeSettings(TargetSettings):
    """Settings of ROME. Targets are optimised at the MLP output of `layer`."""

    layer: int = setting(5, "The one MLP layer that is changed [layers]", 0, 1000)
    clamp: float = setting(4.0, "Largest |delta| as a multiple of |MLP output| [clamp_norm_factor]", 0.01, 20.0)
    covariance: bool = setting(True, "Protect known keys by C^-1; off: u is the key itself [mom2_adjustment]")
    covariance_floor: float = setting(
        0.0,
        "Added to every key direction, as a share of the mean key variance; bounds the update along dead neurons",
        0.0,
        1.0,
    )
    key: str = setting(
        "averaged",
        "Which key is used: averaged and bare consistently, or mixed as in the published code",
        choices=KEYS,
    )


@dataclass(frozen=True, eq=False)
class Rome(Editor):
    """The editor, with its statistics and objective at hand."""

    settings: RomeSettings
    covariance: Covariance | None
    objective: Objective

    def edit(self, lm: LanguageModel, requests: Sequence[EditRequest], watch: Watch = ignore) -> EditOutcome:
        """Write the requests in order; each sees the updates of those before it."""
        total, logs, notes = WeightDelta(), [], []
        for number, request in enumerate(requests):
            at = f"fact {number + 1} of {len(requests)}"

            def told(step: Step, at: str = at) -> None:
                watch(Step(step.stage, step.done, step.total, terms=step.terms, note=at))

            with total.on(lm.model):  # all before it at once: the weights are kept once, and rounded once
                piece, log, cosine = self._write(lm, request, told)
            logs.append(log)
            if abs(cosine) < LEAST_COSINE:
                notes.append(f"{request.subject}: left out, its key is almost orthogonal to the update direction.")
                continue
            total = total.joined(piece)
        return EditOutcome(total, TargetLog.join(logs), tuple(notes))

    def _write(self, lm: LanguageModel, request: EditRequest, watch: Watch) -> tuple[WeightDelta, TargetLog, float]:
        site = lm.architecture.down(self.settings.layer)
        contexts = self.objective.contexts
        rows = SubjectRows.of(lm, [request.place], contexts)
        keys = states_at_subject(lm, rows, site, inputs=True)  # (1, templates, d_in)
        values = states_at_subject(lm, rows, site)
        averaged = average(keys, contexts)[0]
        direction_key = keys[0, 0] if self.settings.key == "bare" else averaged
        key = averaged if self.settings.key == "averaged" else keys[0, 0]
        present = average(values, contexts)[0] if self.settings.key == "averaged" else values[0, 0]
        targets = optimise_targets(lm, [request], self.objective, [site], self.settings, watch)
        direction = self._direction(direction_key)
        scale = key @ direction
        residual = (targets.values[site][0].double() - present) / scale
        update = LowRank(residual[:, None], direction[None, :])
        cosine = float(scale / (key.norm() * direction.norm()))
        return WeightDelta({f"{site}.weight": update}), targets.log, cosine

    def _direction(self, key: Tensor) -> Tensor:
        """(d_in,) unit vector along C^-1 k, or along k without covariance."""
        if self.covariance is not None:
            key = torch.cholesky_solve(key[:, None], self.covariance.cholesky.to(key.device))[:, 0]
        direction: Tensor = key / key.norm()
        return direction


NOT_SPREAD = (
    "they are protected while a change is spread, which it does not do; set keys to 0, or choose an editor that "
    "spreads, such as MEMIT."
)


def build_rome(settings: RomeSettings, materials: Materials) -> Rome:
    """ROME or R-ROME."""
    covariance = None
    if settings.covariance:
        covariance = materials.covariances([settings.layer], settings.covariance_floor)[settings.layer]
    contexts = Contexts.flat(draw_prefixed(materials.lm, ((5, 10), (10, 10)), materials.seed))
    return Rome(settings, covariance, materials.objective(contexts))


ROW = EditorRow(
    "rome",
    "ROME",
    "One fact after the other, a rank-one update of one layer each.",
    "https://arxiv.org/abs/2202.05262",
    RomeSettings,
    build_rome,
    lambda s: [s.layer],
    by_depth=SINGLE,
    presets={
        "pocket-gpt2": Preset(RomeSettings(layer=2, clamp=4.0, **POCKET_ROME), SEARCHED),
        "pocket-llama": Preset(RomeSettings(layer=2, clamp=6.0, **POCKET_ROME), SEARCHED),
        "pocket-gptj": Preset(RomeSettings(layer=2, clamp=4.0, **POCKET_ROME), SEARCHED),
        "gpt2-xl": Preset(RomeSettings(layer=17, steps=20), "kmeng01/rome"),
        "gpt-j-6b": Preset(RomeSettings(layer=5, steps=20), "kmeng01/rome"),
        "llama-2-7b": Preset(RomeSettings(layer=5, steps=25, decay=1e-3), "EasyEdit, with covariance"),
    },
    needs_statistics=lambda s: s.covariance,
    faithful={"*": {"covariance": False, "key": "mixed"}},
    load=one_by_one_load,
    one_by_one=True,
    cannot={NEIGHBOR_KEYS: NOT_SPREAD},
)
