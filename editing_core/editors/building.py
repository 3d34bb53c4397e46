"""Building: each editor from its settings and the materials at hand; fine-tuning's is in finetuning_data.py."""

from editing_core.editors.alphaedit import AlphaEdit, AlphaEditSettings, NullSpace, null_space
from editing_core.editors.base import Editor
from editing_core.editors.emmet import Emmet, EmmetSettings
from editing_core.editors.materials import Materials
from editing_core.editors.memit import Memit, MemitSettings
from editing_core.editors.pmet import Pmet, PmetSettings
from editing_core.editors.rome import Rome, RomeSettings
from editing_core.editors.steps.contexts import Contexts, draw_prefixed
from editing_core.editors.steps.rows import Objective
from editing_core.editors.steps.spread import Ridge
from editing_core.errors import BadSetting


def _block_objective(materials: Materials) -> Objective:
    """MEMIT's contexts: five prefixes of ten tokens, the bare prompt half of every key."""
    return materials.objective(Contexts.grouped(draw_prefixed(materials.lm, ((10, 5),), materials.seed)))


def _ridge(s: MemitSettings, materials: Materials, slack: float = 1.0) -> Ridge:
    covariances = materials.covariances(s.layers, s.covariance_floor)
    return Ridge(covariances, s.covariance_weight, slack, materials.assist.keys)


def build_memit(settings: MemitSettings, materials: Materials) -> Editor:
    """MEMIT with its closed form."""
    return Memit(settings, _ridge(settings, materials), _block_objective(materials))


def build_pmet(settings: PmetSettings, materials: Materials) -> Editor:
    """PMET, as MEMIT."""
    return Pmet(settings, _ridge(settings, materials), _block_objective(materials))


def build_emmet(settings: EmmetSettings, materials: Materials) -> Editor:
    """EMMET, whose closed form has the slack of its settings."""
    return Emmet(settings, _ridge(settings, materials, settings.slack), _block_objective(materials))


def build_alphaedit(settings: AlphaEditSettings, materials: Materials) -> Editor:
    """AlphaEdit with the null spaces of its layers; BadSetting where the threshold leaves none."""
    covariances = materials.covariances(settings.layers, 0.0)
    bases = {layer: null_space(c, settings.threshold, settings.relative) for layer, c in covariances.items()}
    return AlphaEdit(settings, NullSpace(bases, settings.ridge, materials.assist.keys), _block_objective(materials))


def build_rome(settings: RomeSettings, materials: Materials) -> Editor:
    """ROME or R-ROME; BadSetting where neighbors' keys are to be protected, which they cannot."""
    if materials.assist.keys:
        raise BadSetting(
            "Neighbor keys are protected while a change is spread, which ROME does not do; set keys to 0, or choose "
            "an editor that spreads, such as MEMIT."
        )
    covariance = None
    if settings.covariance:
        covariance = materials.covariances([settings.layer], settings.covariance_floor)[settings.layer]
    contexts = Contexts.flat(draw_prefixed(materials.lm, ((5, 10), (10, 10)), materials.seed))
    return Rome(settings, covariance, materials.objective(contexts))
