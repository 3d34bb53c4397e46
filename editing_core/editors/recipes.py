"""Recipes: named sets of choices of one editor, each a row of a paper's table, put on top of a model's preset."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """A row of a paper. changes: what it sets in the preset, for all models or, in `by_model`, for one more."""

    name: str
    label: str
    source: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    by_model: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, model: str) -> dict[str, Any]:
        """What it sets for a model."""
        return {**self.changes, **self.by_model.get(model, {})}


_E: dict[str, Any] = {"mask": False, "paraphrases": 0, "random_facts": 0}
_M: dict[str, Any] = {**_E, "mask": True}
_MP: dict[str, Any] = {"mask": True, "random_facts": 0}
_DIRECT: dict[str, Any] = {"lora": False, "where": "blocks"}


def _pocket(changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The same for every bundled model: they are of one size, and so are the places, rates and bounds that fit."""
    return dict.fromkeys(("pocket-gpt2", "pocket-llama", "pocket-gptj"), changes)


_MIDDLE: dict[str, dict[str, Any]] = {
    **_pocket({"layers": (1, 2)}),
    "gpt2-xl": {"layers": (13, 14, 15)},
    "llama-2-7b": {"layers": (4, 5, 6)},
}
_LATE: dict[str, dict[str, Any]] = {
    **_pocket({"layers": (4,)}),
    "pocket-gptj": {"layers": (5,)},  # of seven blocks
    "gpt2-xl": {"layers": (36,)},
    "llama-2-7b": {"layers": (21,)},
}
# The baselines of ROME and MEMIT: Adam on one layer, at most 25 epochs, no augmentation, the new object's tokens only.
_BASELINE: dict[str, Any] = {
    **_M,
    "lora": False,
    "optimiser": "adam",
    "schedule": "constant",
    "rate": 5e-4,
    "epochs": 25,
    "least_steps": 0,
    "batch": 64,
    "clip": 0.0,
    "enough": 0.01,
}
_BLOCK_21: dict[str, dict[str, Any]] = {**_LATE, "gpt-j-6b": {"layers": (21,)}}

RECIPES = (
    Recipe("ft", "FT", "Tables 2, 4 and 8", _E),
    Recipe("ft-layer", "FT (single layer)", "Table 2, layer 21 of GPT-J", {**_E, **_DIRECT}, _BLOCK_21),
    Recipe("ft-m", "FT + Mask", "Tables 2 and 4", _M),
    Recipe("ft-mp", "FT + Mask + Para", "Tables 2 and 4", _MP),
    Recipe("ft-mpr", "FT + Mask + Para + Rand", "Tables 2, 4 and 5"),
    Recipe("ft-mpr-dpo", "FT + Mask + Para + Rand + DPO", "Table 2, its share unpublished", {"dpo": 0.5}),
    Recipe("ft-mpr-text", "FT + Mask + Para + Rand + Wikipedia loss", "Table 4", {"language": 0.1}),
    Recipe("ft-mps", "FT + Mask + Para + Sim", "Tables 3 and 9", {"random_facts": 0, "similar_facts": 15}),
    Recipe(
        "ft-mpr-full",
        "FT + Mask + Para + Rand, without LoRA",
        "Table 5",
        {"lora": False},
        _pocket({"rate": 7e-5}),
    ),
    Recipe("ft-m-3-5", "FT + Mask, layers 3-5", "Table 6", {**_M, **_DIRECT}, _MIDDLE),
    Recipe("ft-mp-3-5", "FT + Mask + Para, layers 3-5", "Table 6", {**_MP, **_DIRECT}, _MIDDLE),
    Recipe("ft-mpr-3-5", "FT + Mask + Para + Rand, layers 3-5", "Table 6", _DIRECT, _MIDDLE),
    Recipe("ft-mpr-3-5-lora", "FT + Mask + Para + Rand, LoRA on layers 3-5", "ours", {"where": "blocks"}, _MIDDLE),
    Recipe("ft-mpr-recent", "FT + Mask + Para + Rand of 10", "Table 8, WikiRecent", {"random_facts": 10}),
    Recipe(
        "ft-down",
        "FT (ROME's baseline)",
        "Tables 3 and 9, from Meng et al. 2022",
        {**_BASELINE, "where": "down", "layers": (1,)},
        {"gpt-j-6b": {"layers": (21,)}, "llama-2-7b": {"layers": (21,)}},
    ),
    Recipe(
        "ft-l",
        "FT-L",
        "Tables 3 and 9, from Meng et al. 2022",
        {**_BASELINE, "where": "down", "layers": (0,), "bound": 5e-4},
        {"gpt-j-6b": {"bound": 5e-5}, **_pocket({"bound": 5e-3})},
    ),
    Recipe(
        "ft-w",
        "FT-W",
        "Tables 2 and 4, from Meng et al. 2023",
        {**_BASELINE, "where": "blocks", "weight_decay": 1.0, "decay_by_count": True},
        _BLOCK_21,
    ),
)
LADDER = ("ft", "ft-m", "ft-mp", "ft-mpr", "ft-mps")  # what each ingredient buys, one after the other
