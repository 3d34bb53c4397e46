"""RunConfig: what a benchmark run is asked to do, in plain values that fit into a file."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from editing_core.bench.protocols import PROTOCOLS, Protocol
from editing_core.conventions import CONVENTIONS
from editing_core.data.datasets import FORMATS
from editing_core.data.zsre import DIRECTIONS
from editing_core.editors.assist import Assist
from editing_core.editors.recipes import Recipe
from editing_core.editors.stopping import MAX_ROUNDS, StopSettings
from editing_core.errors import BadSetting, EditingError
from editing_core.making import check_asked
from editing_core.models.catalog import DEFAULT, unknown
from editing_core.models.loading import DTYPES
from editing_core.models.weights import QUANTISATIONS
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.runs.tables import method
from editing_core.settings import check_number, shown

KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    str: ("text", (str,)),
    int: ("a whole number", (int,)),
    int | None: ("a whole number", (int, type(None))),
    bool: ("true or false", (bool,)),
    float: ("a number", (int, float)),
}
RANGES = {"limit": (1, 1_000_000), "trial": (0, 1_000_000), "seed": (0, 2**31 - 1)}
MOST_NAME = 90  # characters; a legend has room for no more
# What departs from the defaults is told of these; `Assist.name` tells the rest of the assistance.
TOLD = ("dtype", "quantised", "revision", "direction", "eligible", "skip_bad", "generate", "texts", "references")
LATER = {"recipe": "", "quantised": "none", "revision": ""}  # stored runs that have no entry have these
TOLD_OF_ASSIST = ("count", "choice", "minimum", "token_share", "subject_share")


@dataclass(frozen=True)
class RunConfig:
    """One run. A value that exists is valid.

    dataset: "FORMAT[:PATH]". limit: how many records, none for 100 or all there are. stop: "" for the preset's.
    quantised, revision: as in `loading.Wanted`. recipe: of the editor, on top of its preset; "" for none. settings,
    assist, conventions: what departs from these. texts, references: paths, "" for the bundled.
    """

    dataset: str = "pocket-facts"
    limit: int | None = None
    trial: int = 0
    direction: str = "answers"
    skip_bad: bool = False
    eligible: bool = False
    model: str = DEFAULT
    dtype: str = "float32"
    quantised: str = "none"
    revision: str = ""
    editor: str = "memit"
    recipe: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    iterations: int = MAX_ROUNDS
    stop: str = ""
    tolerance: float = 1.0
    collapse_factor: float = 3.0
    assist: Mapping[str, Any] = field(default_factory=dict)
    preset: str = "clean"
    conventions: Mapping[str, Any] = field(default_factory=dict)
    protocol: str = "batch"
    chunk: int = 1
    seed: int = 0
    texts: str = ""
    generate: bool = False
    references: str = ""

    def __post_init__(self) -> None:
        for f in fields(self):
            wanted, kinds = KINDS.get(f.type, ("a table of settings", (Mapping,)))
            value = getattr(self, f.name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise BadSetting(f"{f.name} must be {wanted}, got {shown(value)}; correct it.")
        for name, (low, high) in RANGES.items():
            if (value := getattr(self, name)) is not None:
                check_number(name, value, low, high, whole=True)
        for name, known in (
            ("dataset", FORMATS),
            ("direction", DIRECTIONS),
            ("dtype", DTYPES),
            ("quantised", QUANTISATIONS),
            ("preset", CONVENTIONS),
            ("protocol", PROTOCOLS),
        ):
            value = getattr(self, name).partition(":")[0]
            if value not in known:
                raise unknown(value, "data set" if name == "dataset" else name, known)
        if self.generate and self.protocol == "single":
            raise BadSetting("generate needs one edit of all records, which protocol single has not; leave one out.")
        _ = self.plan, self.sharing

    @cached_property
    def plan(self) -> EditPlan:
        """What is done to the records."""
        row = editor_row(self.editor)
        rule = self.stop or ("none" if self.preset == "faithful" else "perplexity")
        stop = StopSettings(self.iterations, rule, self.tolerance, self.collapse_factor)
        settings = row.preset(self.model, self.preset, self.recipe).settings.changed(_tuples(self.settings))
        conventions = CONVENTIONS[self.preset].changed(self.conventions)
        return EditPlan(row.name, settings, stop, self.seed, Assist().changed(self.assist), conventions)

    def check_possible(self) -> None:
        """BadSetting with the reason where the editor cannot be used under this protocol, or not so assisted."""
        check_asked(self.plan, *self.sharing.shares(self.limit or 2))  # without a limit there are several

    @property
    def sharing(self) -> Protocol:
        """How records share the model."""
        return Protocol(self.protocol, self.chunk)

    @cached_property
    def known_recipe(self) -> Recipe | None:
        """The recipe that is named, otherwise the one that gives these very settings."""
        row = editor_row(self.editor)
        named = next((recipe for recipe in row.recipes if recipe.name == self.recipe), None)
        return named or row.recipe_of(self.plan.settings, self.model, self.preset)

    @property
    def recipe_label(self) -> str:
        """What the known recipe is called; "" without one."""
        return self.known_recipe.label if self.known_recipe else ""

    @property
    def name(self) -> str:
        """The run in at most MOST_NAME characters: what it edits how, and what departs from the defaults."""
        assist, (base, _, part) = self.plan.assist.name, self.dataset.partition(":")
        parts = (
            self.model,
            method(self.editor, self.recipe_label, assist),
            base,
            f"trial {self.trial}",
            f"N {self.limit}" if self.limit else "",
            "" if part in ("", *FORMATS[base].parts)[:2] else _brief(part),  # the first part is the usual
            "" if self.protocol == "batch" else self.sharing.label,
            self._departing,
            "" if self.seed == self.trial else f"seed {self.seed}",  # a grid's trials have their own
        )
        text = ", ".join(filter(None, parts))
        kept = text[: MOST_NAME - 8]
        return text if len(text) <= MOST_NAME else f"{kept.rpartition(', ')[0] or kept}, … {self.key[:4]}"

    @property
    def variant(self) -> str:
        """The recipe, and what else departs from the defaults in how a run edits, stops and measures; "" for nothing.

        Runs of one editor, assistance and protocol on the same records that differ in it are no trials of each other.
        """
        return ", ".join(filter(None, (self.recipe_label, self._departing)))

    @property
    def _departing(self) -> str:
        """What departs from the preset with its recipe, and from the other defaults."""
        recipe = self.known_recipe.name if self.known_recipe else ""
        usual = RunConfig(model=self.model, editor=self.editor, recipe=recipe, preset=self.preset)
        own, plain = self.plan, usual.plan
        told = (
            "" if self.preset == RunConfig.preset else self.preset,
            *_departures(own.stop, plain.stop),
            *_departures(own.settings, plain.settings),
            *_departures(own.conventions, plain.conventions),
            *_departures(own.assist, plain.assist, TOLD_OF_ASSIST),
            *_departures(self, usual, TOLD),
        )
        return ", ".join(filter(None, told))

    @property
    def key(self) -> str:
        """Equal for runs that ask for the same."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain values, those of LATER only where they differ from what is there."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}

    @staticmethod
    def of(values: Mapping[str, Any], where: str = "") -> "RunConfig":
        """From plain values; BadSetting names the key that is wrong. where: the place it stands in, for that."""
        known = {f.name: f for f in fields(RunConfig)}
        assert all(f.default is not MISSING or f.default_factory is not MISSING for f in known.values())
        try:
            for name in values:
                if name not in known:
                    raise unknown(name, "key", known)
            return RunConfig(**values)
        except EditingError as error:
            raise BadSetting(f"{where}: {error}" if where else str(error)) from error


def _departures(own: Any, usual: Any, names: Sequence[str] = ()) -> Iterator[str]:
    """Name and value of the fields in which two of a kind differ. names: the fields to look at, none for all."""
    for name in names or [f.name for f in fields(own)]:
        value = getattr(own, name)
        if value != getattr(usual, name):
            yield f"{name} {_brief(value)}"


def _brief(value: Any) -> str:
    """A value in a name; a path without its folders, which not everybody who reads the name need know."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.12g}"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).rpartition("/")[2]


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, which files have, as tuples, which settings have."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
