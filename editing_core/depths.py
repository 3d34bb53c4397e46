"""Depths: which layers to edit where nobody has published any, by their place among a model's blocks.

    editor      published layers, counted from 0                          rule here
    MEMIT ...   GPT-J 3-8 of 28, Llama-2 4-8 of 32, GPT-2 XL 13-17 of 48  five that end at 0.29 of the depth
    ROME ...    GPT-J 5 of 28, Llama-2 5 of 32, GPT-2 XL 17 of 48         one at a quarter, between 0.16 and 0.35
    training    GPT-J 3-5 of 28                                           three that end at 0.18

Sources: the hyper-parameters beside MEMIT (arXiv:2210.07229) and ROME (2202.05262), those of EasyEdit for Llama-2, and
table 6 of arXiv:2402.11078. A rule by depth is ours and was validated on no model: its settings are suggestions.
"""

import json
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from editing_core import paths
from editing_core.models.catalog import CATALOG, is_hub_id

SPREAD, SINGLE, TRAINED = (5, 0.29), (1, 0.25), (3, 0.18)  # how many layers, and at which share of the depth they end


def layers_at(rule: tuple[int, float], depth: int) -> tuple[int, ...]:
    """The layers of a rule in a model of so many blocks, lowest first; fewer where it begins before the first."""
    count, share = rule
    return ending_at(min(round(share * depth), depth - 1), count)


def ending_at(last: int, count: int) -> tuple[int, ...]:
    """So many layers that end there, fewer where they would begin before the first."""
    return tuple(range(max(0, last - count + 1), last + 1))


def depth_of(model: str) -> int | None:
    """A model's number of blocks, by name: the catalog's, or that of a configuration on this machine; else None."""
    row = CATALOG.get(model)
    if row and row.depth:
        return row.depth
    source = row.source if row else model
    if row and row.bundled:
        return _blocks(paths.assets() / "models" / model / "config.json")
    if not is_hub_id(source):
        return None
    found = try_to_load_from_cache(source, "config.json")
    return _blocks(Path(found)) if isinstance(found, str) else None


def _blocks(file: Path) -> int | None:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    counts = (config.get(name) for name in ("num_hidden_layers", "n_layer"))
    return next((count for count in counts if isinstance(count, int) and count > 0), None)
