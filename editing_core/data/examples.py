"""The ready-made cases the form and the command line offer."""

import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from editing_core import paths
from editing_core.data.table import edit_of
from editing_core.models.catalog import unknown
from editing_core.types import EditRequest


@dataclass(frozen=True)
class Example:
    """A complete case: what to edit, how, and what there is to see. The first request is the inspected one.

    settings: where the example departs from the editor's preset. assist: likewise from no assistance.
    collapse_factor: of the guard; 0 lets a model collapse for all to see.
    """

    name: str
    title: str
    story: str
    editor: str
    iterations: int
    stop: str
    requests: tuple[EditRequest, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    assist: dict[str, Any] = field(default_factory=dict)
    collapse_factor: float = 3.0


@cache
def load_examples() -> tuple[Example, ...]:
    """All bundled examples, in the order they are offered."""
    rows = json.loads((paths.assets() / "examples.json").read_text(encoding="utf-8"))
    facts = {row["name"]: row["requests"] for row in rows if "requests" in row}
    return tuple(
        Example(
            **{key: row[key] for key in ("name", "title", "story", "editor", "iterations", "stop")},
            requests=tuple(
                edit_of(r, i, f"example {row['name']}")
                for i, r in enumerate(facts[row.get("requests_of", row["name"])])
            ),
            settings=row.get("settings", {}),
            assist=row.get("assist", {}),
            collapse_factor=row.get("collapse_factor", 3.0),
        )
        for row in rows
    )


def example(key: str) -> Example:
    """An example by its name or its number, counted from 1."""
    rows = load_examples()
    if key.isdigit() and 1 <= int(key) <= len(rows):
        return rows[int(key) - 1]
    for row in rows:
        if row.name == key:
            return row
    raise unknown(key, "example", [row.name for row in rows])
