"""A grid of runs from one file: models x editors x data sets x assistance x trials.

    models = ["pocket-gpt2"]            axes: every combination is a cell
    editors = ["memit", "pmet"]
    datasets = ["pocket-facts"]
    neighbors = ["off", "na"]
    trials = 3                          disjoint records, and another seed of the prefixes; or a list, [3, 4]

    [common]                            any key of a run, for all cells
    limit = 100
    iterations = 5

    [editor.pmet]                       the same for one editor's cells
    settings = { covariance_weight = 300 }

An editor may be named with one of its recipes, "finetuning:ft-mp": [editor.finetuning] is for all its cells,
[editor."finetuning:ft-mp"] adds to that for the recipe's.

TOML or YAML. A cell that is done is not done again, one that ended early goes on.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import yaml

from editing_core.bench.config import RunConfig
from editing_core.bench.index import Entry, Index
from editing_core.errors import BadRequest, BadSetting
from editing_core.models.catalog import DEFAULT, unknown
from editing_core.runs.folder import DONE, OPEN, RunFolder
from editing_core.settings import check_number, shown

AXES = {"models": [DEFAULT], "editors": ["memit"], "datasets": ["pocket-facts"], "neighbors": ["off"]}
TABLES = ("common", "editor")
MOST_CELLS, MOST_TRIALS, LAST_TRIAL = 10_000, 1000, 1_000_000
MAX_BYTES = 1_000_000
BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Grid:
    """All cells of a file, in the order of its axes, the trial fastest."""

    cells: tuple[RunConfig, ...]


def read_grid(path: Path) -> Grid:
    """The grid of a TOML or YAML file; BadRequest or BadSetting names the key that is wrong."""
    return grid_of(_read(path))


def grid_of(values: Mapping[str, Any]) -> Grid:
    """The grid of a file's content."""
    known = (*AXES, "trials", *TABLES)
    for name in values:
        if name not in known:
            raise BadSetting(str(unknown(name, "key", known)))
    axes = {name: _axis(name, values.get(name, default)) for name, default in AXES.items()}
    common, own = _table(values, "common"), _table(values, "editor")
    used = {part for editor in axes["editors"] for part in (editor, _editor_and_recipe(editor)[0])}
    for name in own:
        if name not in used:
            raise BadSetting(f"editor.{name} is for no cell: editors are {', '.join(axes['editors'])}; add it there.")
    more = {editor: {**common, **_of_editor(own, editor)} for editor in axes["editors"]}
    trials = _trials(values.get("trials", 1))
    count = prod(len(axis) for axis in (*axes.values(), trials))
    if count > MOST_CELLS:
        raise BadSetting(f"The file asks for {count:,} runs, at most {MOST_CELLS:,} are taken; split it.")
    cells = (
        _cell(more[editor], model, editor, dataset, neighbors, trial)
        for model, editor, dataset, neighbors in product(*axes.values())
        for trial in trials
    )
    return Grid(tuple(cells))


def _cell(more: Mapping[str, Any], model: str, editor: str, dataset: str, neighbors: str, trial: int) -> RunConfig:
    """One run. more: what the file says of this editor's cells."""
    name, recipe = _editor_and_recipe(editor)
    own: dict[str, Any] = {"model": model, "editor": name, "dataset": dataset, "trial": trial}
    if recipe:
        own["recipe"] = recipe
    if neighbors != "off":
        own["assist"] = {**_table(more, "assist"), "neighbors": neighbors}
    found = RunConfig.of({"seed": trial, **more, **own}, f"{model}, {editor}, {dataset}")
    found.check_possible()
    return found


def _editor_and_recipe(name: str) -> tuple[str, str]:
    """The parts of "finetuning:ft-mp"; the recipe is "" where none is named."""
    editor, _, recipe = name.partition(":")
    return (editor, recipe) if recipe else (name, "")


def _of_editor(tables: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the file says of an editor, and more of its recipe where one is named; tables in it are joined."""
    editor, recipe = _editor_and_recipe(name)
    found = dict(_table(tables, editor, "editor."))
    for key, value in (_table(tables, name, "editor.") if recipe else {}).items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = {**found[key], **value} if both else value
    return found


def _trials(given: Any) -> Sequence[int]:
    """The numbers of the trials: those of a list, or as many as are asked for, from 0."""
    if isinstance(given, list) and given:
        for trial in given:
            check_number("trials", trial, 0, LAST_TRIAL, whole=True)
        if len(set(given)) < len(given):
            raise BadSetting(f"trials names something twice: {shown(given)}; keep one of each.")
        return given
    check_number("trials", given, 1, MOST_TRIALS, whole=True)
    return range(given)


def enter(grid: Grid, root: Path, owner: str = "", minutes: float | None = None) -> list[RunFolder]:
    """The run of every cell: one that is there already, put back into the queue if it ended early, or a new one.

    owner, minutes: as in `RunFolder.create`; only that owner's runs are there already.
    """
    found = []
    for cell, entry in there(grid, Index(root).entries(owner=owner)):
        folder = RunFolder(root / entry.id) if entry else RunFolder.create(root, cell.to_json(), owner, minutes)
        if entry and entry.status not in (*OPEN, DONE):
            folder.queue()
        found.append(folder)
    return found


def there(grid: Grid, entries: Iterable[Entry]) -> list[tuple[RunConfig, Entry | None]]:
    """Every cell with its run among those of one owner; of equal ones a finished one counts, then one underway."""
    own = sorted((e for e in entries if not e.imported), key=lambda e: (e.status == DONE, e.status in OPEN))
    known = {entry.cell: entry for entry in own}
    return [(cell, known.get(cell.key)) for cell in grid.cells]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadRequest(
                f"{path.name} is larger than {MAX_BYTES:,} bytes, which no grid needs; choose another file."
            )
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        told = str(error).splitlines()[0][:120]
        raise BadRequest(f"{path.name} is not a readable TOML or YAML file ({told}); correct it.") from error
    if not isinstance(values, dict):
        raise BadRequest(f"{path.name} holds no keys; see the documentation for what a grid looks like.")
    return values


def as_toml(values: Mapping[str, Any]) -> str:
    """A grid's content as the text of a TOML file; `read_grid` gives the same grid."""
    plain = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
    tables = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    lines = [f"{name} = {_toml(value)}" for name, value in plain.items()]
    for name, table in tables.items():
        nested = name == "editor"  # one table per editor
        titled = ((f"{name}.{_key(key)}", own) for key, own in table.items()) if nested else ((name, table),)
        for title, entries in titled:
            lines += ["", f"[{title}]", *(f"{_key(key)} = {_toml(value)}" for key, value in entries.items())]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    """A key, in quotes where it needs them."""
    return name if BARE.fullmatch(name) else json.dumps(name)


def _toml(value: Any) -> str:
    """A value; JSON's texts, numbers and truth values are TOML's."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(key)} = {_toml(entry)}' for key, entry in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)


def _axis(name: str, given: Any) -> Sequence[str]:
    if not isinstance(given, list) or not given or not all(isinstance(entry, str) for entry in given):
        raise BadSetting(f"{name} is {shown(given)}, but must be a list of names such as {AXES[name]!r}; correct it.")
    if len(set(given)) < len(given):
        raise BadSetting(f"{name} names something twice: {', '.join(given)}; keep one of each.")
    return given


def _table(values: Mapping[str, Any], name: str, where: str = "") -> Mapping[str, Any]:
    found = values.get(name, {})
    if not isinstance(found, dict):
        raise BadSetting(f"{where}{name} is {shown(found)}, but must be a table of keys; correct it.")
    return found
