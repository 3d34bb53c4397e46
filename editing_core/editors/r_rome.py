"""R-ROME: ROME with one key throughout, and without statistics.

ROME's published code builds the update along one key and scales it by another; with a single key the rare
explosions go away. Source: Gupta et al. 2024, https://arxiv.org/abs/2403.07175.
"""

from dataclasses import dataclass

from editing_core.editors.rome import KEYS, RomeSettings
from editing_core.settings import setting


@dataclass(frozen=True)
class RRomeSettings(RomeSettings):
    """ROME's settings with R-ROME's defaults."""

    covariance: bool = setting(False, "Protect known keys by C^-1; off: u is the key itself [mom2_adjustment]")
    key: str = setting("averaged", "Which key is used throughout", choices=KEYS[:2])
