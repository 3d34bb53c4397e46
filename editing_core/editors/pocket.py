"""What presets of the bundled models share."""

from collections.abc import Sequence
from typing import Any

from editing_core.editors.row import Preset
from editing_core.settings import Settings

# Relative rates: in the blocks that are edited, at a subject's last token, the pocket models' residual streams are long
# (GPT-2 61 to 75, Llama 65 to 74, GPT-J 42 to 55), the MLPs' outputs short (6 to 8, 8 to 13, 6 to 8) except those of
# block 0 (61, 63, 36).
POCKET: dict[str, Any] = {"steps": 30, "relative_rate": True, "covariance_floor": 1e-3}
POCKET_TARGET: dict[str, Any] = {"steps": 30, "relative_rate": True, "rate": 0.03, "decay": 3.0}
POCKET_STREAM: dict[str, Any] = {**POCKET, **POCKET_TARGET, "covariance_weight": 1000.0, "clamp": 1.0}
POCKET_NULL: dict[str, Any] = {**POCKET_TARGET, "clamp": 1.0, "threshold": 0.9, "relative": True, "ridge": 10.0}
POCKET_MODULE: dict[str, Any] = {**POCKET, "rate": 0.5, "decay": 0.05}
POCKET_ROME: dict[str, Any] = {**POCKET_MODULE, "rate": 1.0}

SEARCHED = "searched on the tune records, see docs/presets.csv"
NAMES = ("pocket-gpt2", "pocket-llama", "pocket-gptj")


def pocket(settings: Settings, source: str, suggested: bool = False, names: Sequence[str] = NAMES) -> dict[str, Preset]:
    """The same preset for all bundled models, or for those named."""
    return dict.fromkeys(names, Preset(settings, source, suggested))
