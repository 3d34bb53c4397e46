"""Journal: the finished pieces of a long run, each one file, so that an interrupted run goes on from there.

Beside them it is shown what they add up to so far, as tables for whoever looks on; a run never reads those again.

A unit is written whole or not at all. Numbers come back as they went in: tensors bit by bit, tables and facts
through JSON, whose decimal digits name every float64 exactly.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editing_core.errors import BadRequest
from editing_core.files import whole
from editing_core.models.delta import WeightDelta
from editing_core.models.edit import Edit
from editing_core.models.edits import unpacked
from editing_core.runs.record import Rounds

FORMAT = "editscope-unit-1"
DELTA, TENSOR = "delta|", "tensor|"


@dataclass(frozen=True, eq=False)
class Unit:
    """One finished piece: JSON-able facts, tables, tensors, and the edit it added."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    delta: Edit = field(default_factory=WeightDelta)


@dataclass(frozen=True, eq=False)
class Tables:
    """What is known of the records that are done.

    iterations, probes, cases: as in RunResult. checkpoints: of a sequence, as in Benchmark. rounds: of one edit of all.
    """

    iterations: pd.DataFrame
    probes: pd.DataFrame
    cases: pd.DataFrame
    checkpoints: pd.DataFrame | None = None
    rounds: Rounds | None = None


Showing = Callable[[], Tables]
"""Makes the tables of what is done so far; called at once or not at all."""


class Journal(Protocol):
    """Where units are kept, by a name that is unique within the run."""

    def find(self, name: str) -> Unit | None:
        """The unit of that name, or None when it was not finished."""
        ...

    def keep(self, name: str, unit: Unit) -> None:
        """Keep a finished unit."""
        ...

    def show(self, so_far: Showing) -> None:
        """Show what is done so far, in place of what was shown before."""
        ...


@dataclass(frozen=True)
class NoJournal:
    """Keeps nothing: for runs short enough to be repeated."""

    def find(self, _name: str) -> None:
        """Nothing was kept."""
        return

    def keep(self, _name: str, _unit: Unit) -> None:
        """Nothing is kept."""

    def show(self, _so_far: Showing) -> None:
        """Nothing is shown."""


NOTHING_KEPT = NoJournal()


class FolderJournal:
    """One safetensors file per unit in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str) -> Unit | None:
        """The unit; BadRequest when its file is damaged."""
        path = self._path(name)
        return read_unit(path) if path.is_file() else None

    def keep(self, name: str, unit: Unit) -> None:
        """Written beside its place, forced to the disk, then moved there."""
        with whole(self._path(name)) as part:
            write_unit(unit, part)
            with part.open("rb") as file:
                os.fsync(file.fileno())

    def show(self, _so_far: Showing) -> None:
        """Nothing is shown: units are all that is in the folder."""

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


@dataclass(frozen=True)
class Within:
    """A part of another journal, for a run inside a run."""

    journal: Journal
    name: str

    def find(self, name: str) -> Unit | None:
        """The part's unit."""
        return self.journal.find(f"{self.name}.{name}")

    def keep(self, name: str, unit: Unit) -> None:
        """Keep it under the part's name."""
        self.journal.keep(f"{self.name}.{name}", unit)

    def show(self, _so_far: Showing) -> None:
        """Nothing is shown: tables of a part would stand for the whole run."""


def write_unit(unit: Unit, path: Path) -> None:
    """One file: tensors as such, the rest as JSON in its header."""
    tensors = {f"{TENSOR}{name}": t.detach().contiguous().cpu() for name, t in unit.tensors.items()}
    edit, kinds = unit.delta.packed()
    tensors |= {f"{DELTA}{name}": t.contiguous().cpu() for name, t in edit.items()}
    tables = {name: table.to_dict("split", index=False) for name, table in unit.tables.items()}
    metadata = {"format": FORMAT, "facts": json.dumps(dict(unit.facts)), "tables": json.dumps(tables)}
    metadata["kinds"] = json.dumps(kinds)
    save_file(tensors, path, metadata=metadata)


def read_unit(path: Path) -> Unit:
    """What `write_unit` wrote; BadRequest for anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        if metadata.get("format") != FORMAT:
            raise ValueError("another format")
        tables = {name: pd.DataFrame(**table) for name, table in json.loads(metadata["tables"]).items()}
        own = {key.removeprefix(TENSOR): t for key, t in tensors.items() if key.startswith(TENSOR)}
        parts = {key.removeprefix(DELTA): t for key, t in tensors.items() if key.startswith(DELTA)}
        edit = unpacked(parts, json.loads(metadata.get("kinds", "{}")))
        return Unit(json.loads(metadata["facts"]), tables, own, edit)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise BadRequest(
            f"{path.name} is no readable unit of a run; remove it, and the run does that part again."
        ) from error
