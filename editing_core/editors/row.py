"""EditorRow: one editor on offer, with its presets per model and what it cannot be asked for.

Presets name their source; a suggested one was never validated in a paper.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from editing_core.depths import SPREAD, depth_of, layers_at
from editing_core.editors.assist import Assist
from editing_core.editors.base import Editor
from editing_core.editors.load import LoadOf, spread_load
from editing_core.editors.materials import Materials
from editing_core.editors.recipes import Recipe
from editing_core.errors import BadSetting
from editing_core.models.catalog import CATALOG, unknown
from editing_core.settings import Settings

# What some editors cannot be asked for: protection is that of keys in a closed form, assistance is any
BATCH, SEQUENTIAL = "several facts at once", "one chunk after the other"
ASSIST, PROTECTION, KEYS = "neighbor assistance", "protected neighbors or subjects", "protected neighbor keys"
_OFF = Assist()


@dataclass(frozen=True)
class Preset:
    """Settings for a model and where they come from."""

    settings: Settings
    source: str
    suggested: bool = False


Build = Callable[[Any, Materials], Editor]


@dataclass(frozen=True)
class EditorRow:
    """One editor on offer.

    layers: which layers it changes under given settings. by_depth: a rule of `depths`, which layers to name in models
    without a preset. needs_statistics: whether it protects known keys there. needs_facts: whether it trains on facts
    that should stay.
    faithful: settings with which it does what the published code of the UnderEdit & OverEdit paper does, per
    model and, under "*", for all. recipes: named changes of the preset. remark: what users should know of how it
    goes together with iterations and assistance. cannot: what it is refused for, with the reason and what to do, by
    one of the five above. whole_rows: whether all its forwards read rows whole, as edits that look at
    prompts need it. load: what one iteration computes. one_by_one: whether facts are written one after the other.
    beside: whether weights stay as they are.
    """

    name: str
    label: str
    summary: str
    source: str
    settings_class: type[Settings]
    build: Build
    layers: Callable[[Any], Sequence[int]]
    presets: dict[str, Preset] = field(default_factory=dict)
    by_depth: tuple[int, float] = SPREAD
    needs_statistics: Callable[[Any], bool] = lambda _settings: True
    needs_facts: Callable[[Any], bool] = lambda _settings: False
    faithful: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipes: tuple[Recipe, ...] = ()
    remark: str = ""
    cannot: Mapping[str, str] = field(default_factory=dict)
    whole_rows: bool = False
    load: LoadOf = spread_load
    one_by_one: bool = False
    beside: bool = False

    def check(self, facts: int = 1, chunks: int = 1, assist: Assist = _OFF) -> None:
        """BadSetting with the reason where it cannot do so many facts at once or chunks, or be assisted like that."""
        protects = assist.keys > 0 or assist.statistics != "tokens"
        asked = {
            BATCH: facts > 1,
            SEQUENTIAL: chunks > 1,
            ASSIST: assist.uses_neighbors or protects,
            PROTECTION: protects,
            KEYS: assist.keys > 0,
        }
        for what, reason in self.cannot.items():
            if asked[what]:
                raise BadSetting(f"{self.label} was asked for {what}: {reason}")

    def preset(self, model: str, conventions: str = "clean", recipe: str = "", depth: int | None = None) -> Preset:
        """The preset of a model or of the one it was made from, with a recipe on top; otherwise a suggestion.

        A suggestion has layers by the model's depth.

        depth: number of blocks, where the model is at hand; without, what `depths.depth_of` knows by name.
        """
        found = self.presets.get(model) or self._inherited(model) or self._suggested(depth or depth_of(model))
        changes = {**self.faithful.get("*", {}), **self.faithful.get(model, {})} if conventions == "faithful" else {}
        return replace(found, settings=found.settings.changed({**changes, **self._recipe(recipe, model)}))

    def _inherited(self, model: str) -> Preset | None:
        """That of the model it was made from."""
        like = CATALOG[model].like if model in CATALOG else ""
        found = self.presets.get(like)
        return found and Preset(found.settings, f"as {like}'s", True)

    def _suggested(self, depth: int | None) -> Preset:
        """Settings made from nothing but defaults, and layers that a model of so many blocks has."""
        settings = self.settings_class()
        if depth is None:
            return Preset(settings, "defaults, not tuned for this model", True)
        layers = layers_at(self.by_depth, depth)
        named = {"layers": layers, "layer": layers[-1]}
        own = {name: value for name, value in named.items() if hasattr(settings, name)}
        source = f"not validated: layers by relative depth among {depth} blocks, otherwise defaults"
        return Preset(settings.changed(own), source, True)

    def recipe_of(self, settings: Settings, model: str, conventions: str = "clean") -> Recipe | None:
        """The recipe that gives these settings, if one does."""
        fitting = (r for r in self.recipes if self.preset(model, conventions, r.name).settings == settings)
        return next(fitting, None)

    def _recipe(self, name: str, model: str) -> dict[str, Any]:
        known = {recipe.name: recipe for recipe in self.recipes}
        if name and name not in known:
            raise unknown(name, f"recipe of {self.label}", known or {"none": None})
        return known[name].of(model) if name else {}
