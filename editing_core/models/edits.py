"""The kinds of edits there are, and what reads any of them back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from editing_core.errors import BadRequest
from editing_core.models.codebook import Codebook
from editing_core.models.delta import WeightDelta
from editing_core.models.demonstrations import Demonstrations
from editing_core.models.edit import FORMAT, WEIGHTS_FORMAT, Edit, Together
from editing_core.models.neurons import SideNeurons
from editing_core.models.subjects import SubjectOffsets

KINDS: dict[str, type[Edit]] = {
    kind.kind: kind for kind in (WeightDelta, Codebook, Demonstrations, SideNeurons, SubjectOffsets)
}


def unpacked(tensors: Mapping[str, Tensor], kinds: Mapping[str, Mapping[str, Any]]) -> Edit:
    """What `Edit.packed` gave; KeyError, TypeError or ValueError for anything else."""
    if not kinds:
        return WeightDelta.of(tensors, {})
    own: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        own[kind][rest] = tensor
    parts = {kind: KINDS[kind].of(own[kind], facts) for kind, facts in kinds.items()}
    return Together(parts) if len(parts) > 1 else next(iter(parts.values()))


def of_weights(path: Path) -> bool:
    """Whether a file that `Edit.save` wrote holds weights alone; reads its header only."""
    try:
        with safe_open(path, framework="pt") as file:
            return bool((file.metadata() or {}).get("format") == WEIGHTS_FORMAT)
    except (SafetensorError, OSError):
        return False


def load(path: Path) -> Edit:
    """Read what `Edit.save` wrote; BadRequest for anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise BadRequest(
            f"{Path(path).name} is not a readable safetensors file; choose an edit saved by EditScope."
        ) from error
    if metadata.get("format") not in (WEIGHTS_FORMAT, FORMAT):
        raise BadRequest(f"{Path(path).name} holds no EditScope edit; choose an edit saved by EditScope.")
    try:
        kinds = json.loads(metadata["kinds"]) if metadata["format"] == FORMAT else {}
        return unpacked(tensors, kinds).described(dict(json.loads(metadata.get("provenance", "{}"))))
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise BadRequest(f"{Path(path).name} is damaged; choose an edit saved by EditScope.") from error
