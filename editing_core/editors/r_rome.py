"""R-ROME: ROME with one key throughout, and without statistics.

ROME's published code builds the update along one key and scales it by another; with a single key the rare
explosions go away. Source: Gupta et al. 2024, https://arxiv.org/abs/2403.07175.
"""

from dataclasses import dataclass

from editing_core.depths import SINGLE
from editing_core.editors.load import one_by_one_load
from editing_core.editors.pocket import POCKET_ROME
from editing_core.editors.rome import KEYS, NOT_SPREAD, RomeSettings, build_rome
from editing_core.editors.row import KEYS as NEIGHBOR_KEYS
from editing_core.editors.row import EditorRow, Preset
from editing_core.settings import setting


@dataclass(frozen=True)
class RRomeSettings(RomeSettings):
    """ROME's settings with R-ROME's defaults."""

    covariance: bool = setting(False, "Protect known keys by C^-1; off: u is the key itself [mom2_adjustment]")
    key: str = setting("averaged", "Which key is used throughout", choices=KEYS[:2])


ROW = EditorRow(
    "r-rome",
    "R-ROME",
    "ROME with one key throughout and without statistics.",
    "https://arxiv.org/abs/2403.07175",
    RRomeSettings,
    build_rome,
    lambda s: [s.layer],
    by_depth=SINGLE,
    presets={
        "pocket-gpt2": Preset(RRomeSettings(layer=2, clamp=4.0, **POCKET_ROME), "as ROME's", True),
        "pocket-llama": Preset(RRomeSettings(layer=2, clamp=6.0, **POCKET_ROME), "as ROME's", True),
        "pocket-gptj": Preset(RRomeSettings(layer=2, clamp=4.0, **POCKET_ROME), "as ROME's", True),
        "gpt2-xl": Preset(RRomeSettings(layer=17, steps=20), "EasyEdit"),
        "gpt-j-6b": Preset(RRomeSettings(layer=5, steps=20), "EasyEdit"),
        "llama-2-7b": Preset(RRomeSettings(layer=5, steps=25, decay=1e-3), "EasyEdit"),
    },
    needs_statistics=lambda s: s.covariance,
    load=one_by_one_load,
    one_by_one=True,
    cannot={NEIGHBOR_KEYS: NOT_SPREAD},
)
