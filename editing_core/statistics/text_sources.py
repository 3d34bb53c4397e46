"""From what a person wrote, or what was kept of a text, to the text."""

import json
from pathlib import Path
from typing import Any

from editing_core.statistics.corpus import Remembered, TextFile, TextSource
from editing_core.statistics.hub_text import HubText

HUB = "hub:"  # what a data set of the hub begins with where a file may stand, too


def source_of(
    named: str, split: str = "train", column: str = "text", revision: str = "main", most: int | None = None
) -> TextSource:
    """The text file of that path, or the data set of hub:REPOSITORY[:CONFIG]; BadRequest when it cannot be read.

    most: only the first so many documents.
    """
    if not named.startswith(HUB):
        return TextFile.of(Path(named), most)
    repository, _, config = named.removeprefix(HUB).partition(":")
    found = HubText.of(repository, config, split, column, revision)
    return found.first(most) if most else found


def restored(described: dict[str, Any]) -> TextSource:
    """The text that `TextSource.described` tells of; ValueError, TypeError or KeyError when it tells of none."""
    kind, fields = described["kind"], {name: value for name, value in described.items() if name != "kind"}
    if kind == "file":
        return TextFile(**{**fields, "path": Path(fields["path"])})
    if kind == "hub":
        return HubText(**fields)
    return Remembered(**fields)


def read_description(path: Path) -> TextSource | None:
    """The text described in a JSON file, None where there is none."""
    try:
        return restored(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None
