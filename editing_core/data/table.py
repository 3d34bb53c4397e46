"""Our own format: a table of edits, as CSV, JSONL or JSON, and the way back to a file.

Columns are named as the fields of EditRequest. In a CSV cell " | " separates the entries of a list, and a probe is
"prompt=answer", or "subject :: prompt with {}=answer" where the subject is known. In JSON lists are lists, and a
probe is that text or an object with prompt and answer, and if wanted subject, aliases and family.
CounterFact records are read too.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from editing_core.data import counterfact
from editing_core.data.fields import as_text, filled, kind
from editing_core.data.files import Cells, read_records
from editing_core.data.problems import Malformed, naming, naming_all
from editing_core.errors import BadRequest
from editing_core.types import EditRequest, Probe

FIELDS = frozenset(field.name for field in fields(EditRequest))
PROBE_FIELDS = frozenset(field.name for field in fields(Probe))
NEEDED = ("subject", "prompt", "target_new")
TEXTS = ("paraphrases", "generation_prompts")
PROBES = ("neighbors", "edit_neighbors", "portability", "locality")
BETWEEN, AFTER_SUBJECT = " | ", " :: "


def read_edits(path: Path) -> list[EditRequest]:
    """Every edit of a file; BadRequest names the first row that is wrong."""
    edits = []
    for number, record in enumerate(read_records(path)):
        try:
            edits.append(edit_of(record, number, path.name))
        except BadRequest as error:
            raise BadRequest(f"Row {number + 1}: {error}") from error
    return edits


def edit_of(record: Any, number: int, source: str) -> EditRequest:
    """One edit; records without a case_id get their number, counted from 0."""
    if isinstance(record, Malformed):
        raise record
    if not isinstance(record, Mapping):
        got = f"An edit must be a JSON object, got {type(record).__name__}"
        raise Malformed("record", got, "see the README for an example")
    if counterfact.REWRITE in record:
        return _counterfact(record, number, source)
    _check_names(record)
    given = _from_cells(record) if isinstance(record, Cells) else dict(record)
    given = {name: value for name, value in given.items() if value is not None}
    for name in TEXTS:
        given[name] = tuple(as_text(text, name) for text in _list(given, name))
    for name in PROBES:
        with naming(name):
            given[name] = tuple(neighbor_of(probe) for probe in _list(given, name))
    _check_kinds(given)
    with naming_all({}):
        return EditRequest(**{"case_id": number, "source": source} | given)


def parse(record: Any, row: int, source: str = "table") -> EditRequest:
    """One edit of a data set in our format."""
    return edit_of(record, row - 1, source)


def write_requests(requests: Iterable[EditRequest], path: Path) -> None:
    """The requests as JSON, with all their fields; `read_edits` gives them back equal."""
    rows = [plain(request) for request in requests]
    try:
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path.name} could not be written; choose a file in a folder you may write to.") from error


def neighbor_of(value: Any) -> Probe:
    """A probe from an object or from one of the two forms of text."""
    if isinstance(value, Mapping) and value.get("prompt") is not None and value.get("answer") is not None:
        return _probe_of(value)
    if isinstance(value, str) and "=" in value:
        prompt, _, answer = value.rpartition("=")
        subject, separator, template = prompt.partition(AFTER_SUBJECT)
        if not separator:
            return Probe(prompt, answer)
        subject = as_text(subject, "subject of a neighbor")
        return Probe(filled(template, subject, "neighbors"), answer, subject)
    raise BadRequest(f'The neighbor {str(value)[:60]!r} has no answer; write it as "prompt=answer".')


def _probe_of(value: Mapping[str, Any]) -> Probe:
    if unknown := sorted(set(value) - PROBE_FIELDS):
        raise BadRequest(
            f"A neighbor has unknown {', '.join(map(str, unknown))}; allowed are {', '.join(sorted(PROBE_FIELDS))}."
        )
    given = {name: entry for name, entry in value.items() if entry is not None}
    for name in given.keys() & {"subject", "family"}:
        if not isinstance(given[name], str):
            raise BadRequest(f"The {name} of a neighbor is {kind(given[name])}; it must be text.")
    if not isinstance(given.get("aliases", []), list):
        raise BadRequest(f"The aliases of a neighbor are {kind(given['aliases'])}; write them in [].")
    probe = Probe(**given | {"aliases": tuple(given.get("aliases", ()))})
    if probe.subject and probe.subject not in probe.prompt and "{}" in probe.prompt:
        raise BadRequest(
            f"The neighbor {probe.prompt[:60]!r} lacks its subject; write the prompt in full, without {{}}."
        )
    return probe


def _counterfact(record: Mapping[str, Any], number: int, source: str) -> EditRequest:
    try:
        return counterfact.parse(record, number + 1, source)
    except Malformed as error:
        got = f"Record {record.get('case_id', number)} of {source} does not follow CounterFact's schema: {error.got}"
        raise Malformed(error.field, got, error.expected) from error


def _check_names(record: Mapping[str, Any]) -> None:
    named = set(record.columns) if isinstance(record, Cells) else set(record)
    unknown = sorted(map(str, named - FIELDS))
    missing = [name for name in NEEDED if record.get(name) is None]
    if unknown or missing:
        wrong = f"unknown {', '.join(unknown)}" if unknown else f"missing {', '.join(sorted(missing))}"
        raise Malformed((unknown or missing)[0], f"An edit has {wrong}", f"allowed are {', '.join(sorted(FIELDS))}")


def _check_kinds(given: dict[str, Any]) -> None:
    """The fields that EditRequest takes as they are."""
    for name, wanted, word in (
        ("relation_id", str, "text"),
        ("target_new_id", str, "text"),
        ("source", str, "text"),
        ("compare", bool, "true or false"),
    ):
        if name in given and not isinstance(given[name], wanted):
            raise Malformed(name, f"The {name} is {kind(given[name])}", f"it must be {word}")


def _list(given: Mapping[str, Any], name: str) -> list[Any]:
    value = given.get(name) or []
    if not isinstance(value, list):
        raise Malformed(name, f"The {name} of an edit must be a list, got {type(value).__name__}", "write them in []")
    return value


def _from_cells(row: Cells) -> dict[str, Any]:
    """A CSV row with lists, numbers and truth values in place of their texts."""
    given: dict[str, Any] = dict(row)
    for name in {*TEXTS, *PROBES} & given.keys():
        given[name] = [entry for entry in row[name].split(BETWEEN) if entry.strip()]
    if row.get("case_id", "").strip().isdecimal():
        given["case_id"] = int(row["case_id"])
    given["compare"] = {"true": True, "false": False}.get(
        row.get("compare", "true").strip().lower(), row.get("compare")
    )
    return given


def plain(value: EditRequest | Probe) -> dict[str, Any]:
    """A request or probe as JSON-able values, without fields that hold their default; `edit_of` reads them again."""
    row: dict[str, Any] = {}
    for field in fields(value):
        held = getattr(value, field.name)
        # A missing case_id or source would be filled in from the file that is read.
        if held != field.default or field.name in ("case_id", "source"):
            row[field.name] = [plain(probe) for probe in held] if field.name in PROBES else held
    return row
