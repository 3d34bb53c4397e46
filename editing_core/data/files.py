"""Files of records: JSON, JSONL and CSV, as UTF-8 and within bounds; nothing in a file is ever executed.

In: a path. Out: the records in the order of the file. A line that cannot be read stands in its place as the
Malformed that tells so: it must not hide the others.
"""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from editing_core import paths
from editing_core.data.problems import Malformed
from editing_core.errors import BadRequest

MAX_BYTES = 64 * 2**20
MAX_RECORDS = 30_000  # CounterFact, the largest set of its kind, has 21,919

_SURPLUS = "cells without a column"


class Cells(dict[str, Any]):
    """A row of a CSV table: every value is text, and empty cells are left out. columns: all the table has."""

    columns: tuple[str, ...] = ()


def locate(path: str) -> Path:
    """The file; a relative path is also looked for in the folder that EDITSCOPE_DATA names, and among uploads."""
    here = Path(path)
    if here.exists() or here.is_absolute():
        return here
    named = os.environ.get("EDITSCOPE_DATA")
    places = ([Path(named)] if named else []) + [paths.uploads()]
    return next((place / path for place in places if (place / path).exists()), here)


def read_records(path: Path) -> list[Any]:
    """The records of a file, at least one; BadRequest when it is too large or not of its kind."""
    read, name, wanted = _READERS.get(path.suffix.lower(), _READERS[".json"])
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadRequest(f"{path.name} is larger than {MAX_BYTES // 2**20} MB; split it.")
        records = read(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise BadRequest(f"{path.name} is not a readable {name} file; give {wanted}.") from error
    if not isinstance(records, list) or not records:
        raise BadRequest(f"{path.name} holds no list of edits; give {wanted} with at least one.")
    return bounded(records, path.name)


def bounded(records: list[Any], name: str) -> list[Any]:
    """`records`, unless there are too many."""
    if len(records) > MAX_RECORDS:
        raise BadRequest(f"{name} holds {len(records):,} records, at most {MAX_RECORDS:,} are allowed; split it.")
    return records


def _lines(text: str) -> list[Any]:
    # Not splitlines: that one also breaks at the line separators that JSON strings may hold.
    return [_line(line) for line in text.split("\n") if line.strip()]


def _line(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return Malformed("line", f"The line {line.strip()[:60]!r} is no JSON", "write one JSON object on each line")


def _rows(text: str) -> list[Any]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey=_SURPLUS, strict=True)
    columns = reader.fieldnames or []
    if len(set(columns)) != len(columns):
        raise ValueError("two columns have the same name")
    return [_row(row, tuple(columns)) for row in reader]


def _row(row: dict[str, Any], columns: tuple[str, ...]) -> Any:
    if surplus := row.pop(_SURPLUS, None):
        got = f"The row has {len(columns) + len(surplus)} cells under {len(columns)} columns"
        return Malformed("row", got, "put texts that hold a comma in double quotes")
    cells = Cells({name: cell for name, cell in row.items() if cell is not None and cell.strip()})
    cells.columns = columns
    return cells


_READERS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    ".json": (json.loads, "JSON", "a JSON list of edits"),
    ".jsonl": (_lines, "JSONL", "a file with one JSON object on each line"),
    ".csv": (_rows, "CSV", "a table with a line of column names"),
}
