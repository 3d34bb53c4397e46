"""RunConfig: what a benchmark run is asked to do, in plain values that fit into a file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from editing_core.bench.protocols import PROTOCOLS, Protocol
from editing_core.conventions import CONVENTIONS
from editing_core.data.datasets import FORMATS
from editing_core.editors.assist import Assist
from editing_core.editors.stopping import MAX_ROUNDS, StopSettings
from editing_core.errors import BadSetting, EditingError
from editing_core.models.catalog import DEFAULT, unknown
from editing_core.models.language_model import DTYPES
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan

KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    str: ("text", (str,)),
    int: ("a whole number", (int,)),
    int | None: ("a whole number", (int, type(None))),
    bool: ("true or false", (bool,)),
    float: ("a number", (int, float)),
}


@dataclass(frozen=True)
class RunConfig:
    """One run. A value that exists is valid.

    dataset: "FORMAT[:PATH]". limit: how many records, none for 100 or all there are. stop: "" for the preset's.
    settings, assist, conventions: what departs from the preset. texts, references: paths, "" for the bundled.
    """

    dataset: str = "pocket-facts"
    limit: int | None = None
    trial: int = 0
    direction: str = "answers"
    skip_bad: bool = False
    eligible: bool = False
    model: str = DEFAULT
    dtype: str = "float32"
    editor: str = "memit"
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
                raise BadSetting(f"{f.name} must be {wanted}, got {value!r}; correct it.")
        for name, known in (
            ("dataset", FORMATS),
            ("dtype", DTYPES),
            ("preset", CONVENTIONS),
            ("protocol", PROTOCOLS),
        ):
            value = getattr(self, name).partition(":")[0]
            if value not in known:
                raise unknown(value, "data set" if name == "dataset" else name, known)
        if self.generate and self.protocol == "single":
            raise BadSetting("generate needs one edit of all records, which protocol single has not; leave one out.")
        _ = self.plan, self.sharing

    @property
    def plan(self) -> EditPlan:
        """What is done to the records."""
        row = editor_row(self.editor)
        rule = self.stop or ("none" if self.preset == "faithful" else "perplexity")
        stop = StopSettings(self.iterations, rule, float(self.tolerance), float(self.collapse_factor))
        settings = row.preset(self.model, self.preset).settings.changed(_tuples(self.settings))
        conventions = CONVENTIONS[self.preset].changed(self.conventions)
        return EditPlan(row.name, settings, stop, self.seed, Assist().changed(self.assist), conventions)

    @property
    def sharing(self) -> Protocol:
        """How records share the model."""
        return Protocol(self.protocol, self.chunk)

    @property
    def name(self) -> str:
        """The run in short."""
        assist = self.plan.assist.name
        parts = (self.model, f"{self.editor}{f' + {assist}' if assist else ''}", self.dataset.partition(":")[0])
        return f"{', '.join(parts)}, trial {self.trial}"

    @property
    def key(self) -> str:
        """Equal for runs that ask for the same."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

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


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, which files have, as tuples, which settings have."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
