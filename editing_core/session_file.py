"""A session as one file: the edit stack with its edits, to go on with later or elsewhere.

Safetensors: factors as tensors, everything else as JSON in the header; nothing in it can run. What is read is checked
like any input, and its edits get new ids.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editing_core.data.table import edit_of, plain
from editing_core.errors import BadRequest
from editing_core.files import whole
from editing_core.models.edits import unpacked
from editing_core.runs.record import new_id
from editing_core.stack import MOST, Stack, StackedEdit
from editing_core.types import check_text

FORMAT = "editscope-session-1"
MOST_BYTES = 2**29
MOST_FACTS = 2000  # of one edit


def save_session(path: Path, stack: Stack, edits: Mapping[str, StackedEdit]) -> None:
    """Write the stack and those of its edits that are given; BadRequest where there is none."""
    kept = [entry for entry in stack.entries if entry.id in edits]
    if not kept:
        raise BadRequest("The stack holds no edit to save; press Edit first.")
    tensors: dict[str, Tensor] = {}
    told = []
    for number, entry in enumerate(kept):
        edit = edits[entry.id]
        own, kinds = edit.delta.packed()
        tensors |= {f"{number}|{key}": t.contiguous().cpu() for key, t in own.items()}
        about = {name: getattr(edit, name) for name in ("id", "model", "revision", "origin")}
        facts = [plain(request) for request in edit.requests]
        state = {"made_on": edit.made_on, "on": entry.on, "note": entry.note}
        told.append({**about, **state, "facts": facts, "kinds": kinds})
    with whole(path) as part:
        save_file(tensors, part, metadata={"format": FORMAT, "entries": json.dumps(told, ensure_ascii=False)})


def is_session(path: Path) -> bool:
    """Whether a file says that it is one."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def load_session(path: Path) -> tuple[Stack, dict[str, StackedEdit]]:
    """What `save_session` wrote; BadRequest for anything else."""
    if path.stat().st_size > MOST_BYTES:
        raise BadRequest(f"{path.name} is larger than {MOST_BYTES >> 20} MB, which no session here is; choose another.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise BadRequest(f"{path.name} holds no EditScope session; choose a file saved by EditScope.")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        told = json.loads(metadata["entries"])
        if not isinstance(told, list) or not 1 <= len(told) <= MOST:
            raise ValueError("no entries")
        return _opened(told, tensors)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise BadRequest(f"{path.name} is damaged or no session; choose a file saved by EditScope.") from error


def _opened(told: list[Any], tensors: Mapping[str, Tensor]) -> tuple[Stack, dict[str, StackedEdit]]:
    """KeyError, ValueError, TypeError or BadRequest where something is not as it was saved."""
    parts: dict[int, dict[str, Tensor]] = {number: {} for number in range(len(told))}
    for key, tensor in tensors.items():
        number, _, name = key.partition("|")
        parts[int(number)][name] = tensor
    ids = {_text(row, "id"): new_id() for row in told}
    if len(ids) < len(told):
        raise ValueError("two entries of one id")
    stack, edits = Stack(), {}
    for row, own in zip(told, parts.values(), strict=True):
        delta = unpacked(own, row.get("kinds", {}))
        if not delta.finite:
            raise ValueError("numbers that are not finite")
        facts, made_on = row["facts"], row["made_on"]
        if not isinstance(facts, list) or not isinstance(made_on, list) or len(facts) > MOST_FACTS:
            raise TypeError("no lists")
        requests = tuple(edit_of(fact, number, "session") for number, fact in enumerate(facts))
        about = [check_text(_text(row, name), name) for name in ("model", "revision", "origin")]
        below = tuple(ids.get(str(edit_id)) or new_id() for edit_id in made_on)
        edit = StackedEdit(ids[row["id"]], delta, requests, about[0], about[1], below, about[2])
        edits[edit.id] = edit
        stack = stack.add(edit.id).switch(edit.id, row["on"] is True).note(edit.id, _text(row, "note"))
    return stack, edits


def _text(row: Any, name: str) -> str:
    if not isinstance(row[name], str):
        raise TypeError(f"{name} is no text")
    return str(row[name])
