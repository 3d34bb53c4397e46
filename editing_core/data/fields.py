"""Reading the fields of a record, which may hold anything; Malformed names the field that is wrong.

A path such as "requested_rewrite.target_new.str" leads through nested objects.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from editing_core.data.problems import Malformed

Record = Mapping[str, Any]
SHOWN = 60  # characters of a wrong value that a message repeats


def find(record: object, path: str, default: Any = None) -> Any:
    """The value at `path`; `default` where a key is missing or the value is null, as in a table's empty cells."""
    value, before = record, "record"
    for key in path.split("."):
        if not isinstance(value, Mapping):
            raise Malformed(path, f"The {before} is {kind(value)}", "a JSON object with keys is needed")
        if value.get(key) is None:
            return default
        value, before = value[key], key
    return value


def text(record: object, path: str) -> str:
    """The text at `path`, stripped; it may not be missing or blank."""
    value = find(record, path)
    if value is None:
        raise Malformed(path, f"The key {path} is missing", "it must hold text")
    return as_text(value, path)


def as_text(value: object, path: str) -> str:
    """`value` stripped, when it is text and not blank."""
    if not isinstance(value, str):
        raise Malformed(path, f"The {path} is {kind(value)}", "it must be text")
    if not value.strip():
        raise Malformed(path, f"The {path} is empty", "it must hold text")
    return value.strip()


def optional(record: object, path: str) -> str | None:
    """The text at `path`, None where it is missing or blank."""
    value = find(record, path)
    return None if value is None or value == "" else as_text(value, path)


def items(record: object, path: str) -> list[Any]:
    """The list at `path`, empty where it is missing."""
    value = find(record, path, [])
    if not isinstance(value, list):
        raise Malformed(path, f"The {path} is {kind(value)}", "it must be a list")
    return value


def texts(record: object, path: str) -> tuple[str, ...]:
    """The texts of the list at `path`, none where it is missing."""
    return tuple(as_text(value, path) for value in items(record, path))


def case_id(record: Record, row: int) -> int | str:
    """The record's own, else its position counted from 0, as published results number them."""
    found: int | str = find(record, "case_id", row - 1)
    return found


def template_of(prompt: str, subject: str, field: str) -> str:
    """The prompt with `{}` for the last occurrence of its subject."""
    head, found, tail = prompt.rpartition(subject)
    if not found:
        got = f"The {field} {prompt[:SHOWN]!r} does not contain the subject {subject[:SHOWN]!r}"
        raise Malformed(field, got, "write the subject as the prompt does")
    return f"{head}{{}}{tail}"


def filled(template: str, subject: str, field: str) -> str:
    """The template with the subject in its one place. Replaced, not formatted: texts may hold braces."""
    count = template.count("{}")
    if count != 1:
        got = f"The prompt {template[:SHOWN]!r} has {count} places {{}} for {subject[:SHOWN]!r}"
        raise Malformed(field, got, "exactly one is needed")
    return template.replace("{}", subject)


def leaves(value: object) -> Iterator[object]:
    """What nested lists hold, in order; a value that is no list is its own leaf."""
    waiting = [value]
    while waiting:
        first = waiting.pop()
        if isinstance(first, list):
            waiting.extend(reversed(first))
        else:
            yield first


def kind(value: object) -> str:
    """What a value is, for a message."""
    return f"of type {type(value).__name__}"
