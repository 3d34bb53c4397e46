"""Which editors there are, how one is built, and its presets per model.

Adding an editor: one file in editors/, one row in EDITORS. Presets name their source; a suggested one was
never validated in a paper.
"""

from typing import Any

from editing_core.depths import SINGLE, TRAINED
from editing_core.editors.alphaedit import AlphaEditSettings
from editing_core.editors.building import build_alphaedit, build_emmet, build_memit, build_pmet, build_rome
from editing_core.editors.emmet import EmmetSettings
from editing_core.editors.finetuning import FineTuningSettings
from editing_core.editors.finetuning_data import build_finetuning
from editing_core.editors.memit import MemitSettings
from editing_core.editors.pmet import PmetSettings
from editing_core.editors.r_rome import RRomeSettings
from editing_core.editors.recipes import RECIPES
from editing_core.editors.rome import RomeSettings
from editing_core.editors.row import EditorRow, Preset
from editing_core.models.catalog import unknown

# Relative rates: in the blocks that are edited, at a subject's last token, the pocket models' residual streams are long
# (GPT-2 61 to 75, Llama 65 to 74, GPT-J 42 to 55), the MLPs' outputs short (6 to 8, 8 to 13, 6 to 8) except those of
# block 0 (61, 63, 36).
_POCKET: dict[str, Any] = {"steps": 30, "relative_rate": True, "covariance_floor": 1e-3}
_POCKET_TARGET: dict[str, Any] = {"steps": 30, "relative_rate": True, "rate": 0.03, "decay": 3.0}
_POCKET_STREAM: dict[str, Any] = {**_POCKET, **_POCKET_TARGET, "covariance_weight": 1000.0, "clamp": 1.0}
_POCKET_NULL: dict[str, Any] = {**_POCKET_TARGET, "clamp": 1.0, "threshold": 0.9, "relative": True, "ridge": 10.0}
_POCKET_MODULE: dict[str, Any] = {**_POCKET, "rate": 0.5, "decay": 0.05}
_POCKET_ROME: dict[str, Any] = {**_POCKET_MODULE, "rate": 1.0}

_SEARCHED = "searched on the tune records, see docs/presets.csv"

_POCKET_TRAINING = FineTuningSettings(rate=5e-4, epochs=6, least_steps=20)

EDITORS = {
    row.name: row
    for row in (
        EditorRow(
            "memit",
            "MEMIT",
            "Many facts at once, spread over several layers by ridge regression.",
            "https://arxiv.org/abs/2210.07229",
            MemitSettings,
            build_memit,
            lambda s: s.layers,
            {
                "pocket-gpt2": Preset(MemitSettings(layers=(0, 1, 2, 3), **_POCKET_STREAM), _SEARCHED),
                "pocket-llama": Preset(MemitSettings(layers=(0, 1), **_POCKET_STREAM), _SEARCHED),
                "pocket-gptj": Preset(MemitSettings(layers=(0, 1, 2, 3), **_POCKET_STREAM), _SEARCHED),
                "gpt2": Preset(MemitSettings(layers=(3, 4, 5), steps=20, covariance_weight=20000.0), "suggested", True),
                "gpt2-xl": Preset(
                    MemitSettings(layers=(13, 14, 15, 16, 17), steps=20, covariance_weight=20000.0), "kmeng01/memit"
                ),
                "gpt-j-6b": Preset(MemitSettings(), "kmeng01/memit"),
                "llama-2-7b": Preset(
                    MemitSettings(layers=(4, 5, 6, 7, 8), decay=0.5, clamp=1.0),
                    "EasyEdit layers, our clamp and decay",
                    True,
                ),
            },
            faithful={"llama-2-7b": {"decay": 1e-3, "clamp": 4.0}},
        ),
        EditorRow(
            "pmet",
            "PMET",
            "Optimises attention and MLP together, writes only the MLP's part.",
            "https://arxiv.org/abs/2308.08742",
            PmetSettings,
            build_pmet,
            lambda s: s.layers,
            {
                "pocket-gpt2": Preset(
                    PmetSettings(layers=(0, 1, 2), covariance_weight=300.0, clamp=3.0, **_POCKET_MODULE),
                    _SEARCHED,
                ),
                "pocket-llama": Preset(
                    PmetSettings(
                        layers=(0, 1, 2), covariance_weight=300.0, clamp=1.5, **{**_POCKET_MODULE, "decay": 0.01}
                    ),
                    _SEARCHED,
                ),
                "pocket-gptj": Preset(
                    PmetSettings(layers=(0, 1, 2, 3), covariance_weight=300.0, clamp=3.0, **_POCKET_MODULE),
                    _SEARCHED,
                ),
                "gpt2-xl": Preset(
                    PmetSettings(layers=(13, 14, 15, 16, 17), steps=20, covariance_weight=20000.0),
                    "ResolveUnderOverEdit",
                ),
                "gpt-j-6b": Preset(PmetSettings(steps=30, rate=0.2, kl_factor=1.0), "EasyEdit"),
                "llama-2-7b": Preset(PmetSettings(layers=(4, 5, 6, 7, 8), steps=20, clamp=1.0), "EasyEdit"),
            },
        ),
        EditorRow(
            "rome",
            "ROME",
            "One fact after the other, a rank-one update of one layer each.",
            "https://arxiv.org/abs/2202.05262",
            RomeSettings,
            build_rome,
            lambda s: [s.layer],
            by_depth=SINGLE,
            presets={
                "pocket-gpt2": Preset(RomeSettings(layer=2, clamp=4.0, **_POCKET_ROME), _SEARCHED),
                "pocket-llama": Preset(RomeSettings(layer=2, clamp=6.0, **_POCKET_ROME), _SEARCHED),
                "pocket-gptj": Preset(RomeSettings(layer=2, clamp=4.0, **_POCKET_ROME), _SEARCHED),
                "gpt2-xl": Preset(RomeSettings(layer=17, steps=20), "kmeng01/rome"),
                "gpt-j-6b": Preset(RomeSettings(layer=5, steps=20), "kmeng01/rome"),
                "llama-2-7b": Preset(RomeSettings(layer=5, steps=25, decay=1e-3), "EasyEdit, with covariance"),
            },
            needs_statistics=lambda s: s.covariance,
            faithful={"*": {"covariance": False, "key": "mixed"}},
        ),
        EditorRow(
            "r-rome",
            "R-ROME",
            "ROME with one key throughout and without statistics.",
            "https://arxiv.org/abs/2403.07175",
            RRomeSettings,
            build_rome,
            lambda s: [s.layer],
            by_depth=SINGLE,
            presets={
                "pocket-gpt2": Preset(RRomeSettings(layer=2, clamp=4.0, **_POCKET_ROME), "as ROME's", True),
                "pocket-llama": Preset(RRomeSettings(layer=2, clamp=6.0, **_POCKET_ROME), "as ROME's", True),
                "pocket-gptj": Preset(RRomeSettings(layer=2, clamp=4.0, **_POCKET_ROME), "as ROME's", True),
                "gpt2-xl": Preset(RRomeSettings(layer=17, steps=20), "EasyEdit"),
                "gpt-j-6b": Preset(RRomeSettings(layer=5, steps=20), "EasyEdit"),
                "llama-2-7b": Preset(RRomeSettings(layer=5, steps=25, decay=1e-3), "EasyEdit"),
            },
            needs_statistics=lambda s: s.covariance,
        ),
        EditorRow(
            "emmet",
            "EMMET",
            "Many facts at once in one layer, targets met almost exactly.",
            "https://arxiv.org/abs/2403.14236",
            EmmetSettings,
            build_emmet,
            lambda s: s.layers,
            by_depth=SINGLE,
            presets={
                "pocket-gpt2": Preset(EmmetSettings(layers=(2,), **_POCKET_STREAM), "as MEMIT's", True),
                "pocket-llama": Preset(EmmetSettings(layers=(1,), **_POCKET_STREAM), "as MEMIT's", True),
                "pocket-gptj": Preset(EmmetSettings(layers=(3,), **_POCKET_STREAM), "as MEMIT's", True),
                "gpt2-xl": Preset(EmmetSettings(layers=(17,), steps=20, covariance_weight=10000.0), "EasyEdit"),
                "gpt-j-6b": Preset(EmmetSettings(layers=(5,)), "EasyEdit"),
                "llama-2-7b": Preset(EmmetSettings(layers=(5,), decay=1e-3, clamp=4.0), "EasyEdit"),
            },
        ),
        EditorRow(
            "alphaedit",
            "AlphaEdit",
            "MEMIT's targets, written only along directions that known keys hardly use.",
            "https://arxiv.org/abs/2410.02355",
            AlphaEditSettings,
            build_alphaedit,
            lambda s: s.layers,
            {
                "pocket-gpt2": Preset(
                    AlphaEditSettings(layers=(0, 1, 2, 3), **_POCKET_NULL),
                    "layers and targets as MEMIT's, threshold of the design trials",
                    True,
                ),
                "pocket-llama": Preset(
                    AlphaEditSettings(layers=(0, 1), **_POCKET_NULL),
                    "layers and targets as MEMIT's, threshold as pocket-gpt2's",
                    True,
                ),
                "pocket-gptj": Preset(
                    AlphaEditSettings(layers=(0, 1, 2, 3), **_POCKET_NULL),
                    "layers and targets as MEMIT's, threshold as pocket-gpt2's",
                    True,
                ),
                "gpt2-xl": Preset(AlphaEditSettings(layers=(13, 14, 15, 16, 17), steps=20), "jianghoucheng/AlphaEdit"),
                "gpt-j-6b": Preset(AlphaEditSettings(), "jianghoucheng/AlphaEdit"),
                "llama-2-7b": Preset(AlphaEditSettings(layers=(4, 5, 6, 7, 8), rate=0.1), "ResolveUnderOverEdit"),
            },
            faithful={"*": {"cache": "iteration"}},
        ),
        EditorRow(
            "finetuning",
            "Fine-tuning",
            "Trains weights or an adapter on the edits, on paraphrases and on facts that should stay.",
            "https://arxiv.org/abs/2402.11078",
            FineTuningSettings,
            build_finetuning,
            lambda s: () if s.where == "all" else s.layers,
            by_depth=TRAINED,
            presets={
                "pocket-gpt2": Preset(_POCKET_TRAINING, "tried on the tune records, see docs/log.md"),
                "pocket-llama": Preset(_POCKET_TRAINING, "as pocket-gpt2's", True),
                "pocket-gptj": Preset(_POCKET_TRAINING, "as pocket-gpt2's", True),
                "gpt2-xl": Preset(FineTuningSettings(batch=256), "au-revoir/model-editing-ft, made for GPT-J", True),
                "gpt-j-6b": Preset(FineTuningSettings(batch=256), "au-revoir/model-editing-ft"),
                "llama-2-7b": Preset(FineTuningSettings(batch=256), "au-revoir/model-editing-ft, made for GPT-J", True),
            },
            needs_statistics=lambda _settings: False,
            needs_facts=lambda s: bool(s.random_facts or s.similar_facts),
            recipes=RECIPES,
            remark=(
                "Training writes what it optimises, so optimised and spread perplexity agree after the first "
                "iteration and the rule stops there; with the stop rule none, every further iteration trains on. "
                "NA and NAP train the edit neighbors' own answers beside the edits."
            ),
        ),
    )
}


def editor_row(name: str) -> EditorRow:
    """The row of an editor; UnknownName with the nearest known one otherwise."""
    if name not in EDITORS:
        raise unknown(name, "editor", EDITORS)
    return EDITORS[name]
