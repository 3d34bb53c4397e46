"""Texts of the collapse perplexity from a file, such as ME-PPL-50."""

import json
from pathlib import Path
from typing import Any

from editing_core.errors import BadRequest

MAX_BYTES, MAX_TEXTS = 4 * 2**20, 2000


def read_texts(path: Path) -> tuple[str, ...]:
    """The texts of a JSON list of texts, or of objects with a field "Text" (the format of ME-PPL-50)."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadRequest(f"{path.name} is larger than {MAX_BYTES // 2**20} MB; choose fewer texts.")
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadRequest(f"{path.name} is not a readable JSON file; give a JSON list of texts.") from error
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_TEXTS:
        raise BadRequest(f"{path.name} must be a JSON list of 1 to {MAX_TEXTS} texts; correct it.")
    return tuple(_text(row, number, path.name) for number, row in enumerate(rows, start=1))


def _text(row: Any, number: int, name: str) -> str:
    text = row.get("Text") if isinstance(row, dict) else row
    if not isinstance(text, str) or not text.strip():
        raise BadRequest(f'Row {number} of {name} holds no text; give a text, or an object with a field "Text".')
    return text
