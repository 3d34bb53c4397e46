"""Which editors there are, how one is built, and its presets per model.

Adding an editor: one file in editors/, one row in EDITORS. Presets name their source; a suggested one was
never validated in a paper.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from editing_core.editors.base import Editor
from editing_core.editors.memit import Memit, MemitSettings
from editing_core.editors.pmet import Pmet, PmetSettings
from editing_core.editors.rome import Rome, RomeSettings
from editing_core.editors.settings import Settings
from editing_core.editors.steps.contexts import Contexts, draw_prefixed
from editing_core.editors.steps.covariance import Corpus, Covariance, CovarianceStore
from editing_core.errors import StatisticsMissing
from editing_core.models.catalog import unknown
from editing_core.models.language_model import LanguageModel


@dataclass(frozen=True)
class Preset:
    """Settings for a model and where they come from."""

    settings: Settings
    source: str
    suggested: bool = False


Build = Callable[[LanguageModel, Settings, CovarianceStore, Corpus | None, int], Editor]


@dataclass(frozen=True)
class EditorRow:
    """One editor on offer.

    layers: which layers it changes under given settings. needs_statistics: whether it protects known keys there.
    """

    name: str
    label: str
    summary: str
    source: str
    settings_class: type[Settings]
    build: Build
    layers: Callable[[Settings], Sequence[int]]
    presets: dict[str, Preset] = field(default_factory=dict)
    needs_statistics: Callable[[Settings], bool] = lambda _settings: True

    def preset(self, model: str) -> Preset:
        """The preset of a model; for others a suggestion made from nothing but the defaults."""
        return self.presets.get(model) or Preset(self.settings_class(), "defaults, not tuned for this model", True)


def _covariances(
    lm: LanguageModel, layers: Sequence[int], store: CovarianceStore, corpus: Corpus | None, floor: float
) -> dict[int, Covariance]:
    if corpus is None:
        raise StatisticsMissing(
            f"No covariance statistics are bundled for {lm.name}; collect them with "
            f"'editscope stats --model {lm.name} --collect TEXTFILE', one document per line."
        )
    return {layer: store.get(lm, layer, corpus, floor) for layer in layers}


def _build_spreading(kind: type[Memit] | type[Pmet]) -> Build:
    def build(
        lm: LanguageModel, settings: Settings, store: CovarianceStore, corpus: Corpus | None, seed: int
    ) -> Editor:
        assert isinstance(settings, MemitSettings)
        covariances = _covariances(lm, settings.layers, store, corpus, settings.covariance_floor)
        contexts = Contexts.grouped(draw_prefixed(lm, ((10, 5),), seed))
        return kind(settings, covariances, contexts)  # type: ignore[arg-type]

    return build


def _build_rome(
    lm: LanguageModel, settings: Settings, store: CovarianceStore, corpus: Corpus | None, seed: int
) -> Editor:
    assert isinstance(settings, RomeSettings)
    covariance = None
    if settings.covariance:
        covariance = _covariances(lm, [settings.layer], store, corpus, settings.covariance_floor)[settings.layer]
    return Rome(settings, covariance, Contexts.flat(draw_prefixed(lm, ((5, 10), (10, 10)), seed)))


# Relative rates: the pocket model's residual stream is long (about 60), its MLP outputs short (about 7).
_POCKET: dict[str, Any] = {"steps": 30, "relative_rate": True, "covariance_floor": 1e-3}
_POCKET_STREAM: dict[str, Any] = {**_POCKET, "rate": 0.06, "decay": 3.0}
_POCKET_MODULE: dict[str, Any] = {**_POCKET, "rate": 0.5, "decay": 0.05}

EDITORS = {
    row.name: row
    for row in (
        EditorRow(
            "memit",
            "MEMIT",
            "Many facts at once, spread over several layers by ridge regression.",
            "https://arxiv.org/abs/2210.07229",
            MemitSettings,
            _build_spreading(Memit),
            lambda s: s.layers,  # type: ignore[attr-defined]
            {
                "pocket-gpt2": Preset(
                    MemitSettings(layers=(0, 1, 2), covariance_weight=1000.0, clamp=1.0, **_POCKET_STREAM),
                    "own trials; covariance floor compared on 100 tune records",
                ),
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
        ),
        EditorRow(
            "pmet",
            "PMET",
            "Optimises attention and MLP together, writes only the MLP's part.",
            "https://arxiv.org/abs/2308.08742",
            PmetSettings,
            _build_spreading(Pmet),
            lambda s: s.layers,  # type: ignore[attr-defined]
            {
                "pocket-gpt2": Preset(
                    PmetSettings(layers=(0, 1, 2), covariance_weight=1000.0, clamp=3.0, **_POCKET_MODULE),
                    "as ROME's, not searched",
                    True,
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
            _build_rome,
            lambda s: [s.layer],  # type: ignore[attr-defined]
            {
                "pocket-gpt2": Preset(
                    RomeSettings(layer=1, clamp=4.0, **_POCKET_MODULE), "step size tried on a few tune records", True
                ),
                "gpt2-xl": Preset(RomeSettings(layer=17, steps=20), "kmeng01/rome"),
                "gpt-j-6b": Preset(RomeSettings(layer=5, steps=20), "kmeng01/rome"),
                "llama-2-7b": Preset(RomeSettings(layer=5, steps=25, decay=1e-3), "EasyEdit, with covariance"),
            },
            needs_statistics=lambda s: s.covariance,  # type: ignore[attr-defined]
        ),
    )
}


def editor_row(name: str) -> EditorRow:
    """The row of an editor; UnknownName with the nearest known one otherwise."""
    if name not in EDITORS:
        raise unknown(name, "editor", EDITORS)
    return EDITORS[name]
