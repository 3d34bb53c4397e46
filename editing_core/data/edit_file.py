"""Edits from a user's JSON file or command line: CounterFact records, or plain objects with our names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editing_core.data.counterfact import read_records, request_of
from editing_core.errors import BadRequest
from editing_core.types import EditRequest, Probe

FIELDS = {"subject", "prompt", "target_new", "target_true", "paraphrases", "neighbors", "case_id", "relation_id"}


def read_edits(path: Path) -> list[EditRequest]:
    """Every edit of a file; BadRequest names the row that is wrong."""
    edits = []
    for number, record in enumerate(read_records(path)):
        try:
            edits.append(edit_of(record, number, path.name))
        except BadRequest as error:
            raise BadRequest(f"Row {number + 1}: {error}") from error
    return edits


def edit_of(record: Any, number: int, source: str) -> EditRequest:
    """One edit; rows without a case_id get their number."""
    if isinstance(record, Mapping) and "requested_rewrite" in record:
        return request_of({"case_id": number, **record}, source)
    if not isinstance(record, Mapping):
        raise BadRequest(f"An edit must be a JSON object, got {type(record).__name__}; see the README for an example.")
    unknown = sorted(set(record) - FIELDS)
    missing = sorted({"subject", "prompt", "target_new"} - set(record))
    if unknown or missing:
        named = f"unknown {', '.join(unknown)}" if unknown else f"missing {', '.join(missing)}"
        raise BadRequest(f"An edit has {named}; allowed are {', '.join(sorted(FIELDS))}.")
    for name in ("paraphrases", "neighbors"):
        if not isinstance(record.get(name) or [], list):
            raise BadRequest(
                f"The {name} of an edit must be a list, got {type(record[name]).__name__}; write them in []."
            )
    return EditRequest(
        subject=record["subject"],
        prompt=record["prompt"],
        target_new=record["target_new"],
        target_true=record.get("target_true"),
        paraphrases=tuple(record.get("paraphrases") or ()),
        neighbors=tuple(neighbor_of(n) for n in record.get("neighbors") or ()),
        case_id=record.get("case_id", number),
        relation_id=record.get("relation_id"),
        source=source,
    )


def neighbor_of(value: Any) -> Probe:
    """A neighbor from {"prompt", "answer"} or from the text "prompt=answer"."""
    if isinstance(value, Mapping) and {"prompt", "answer"} <= set(value):
        return Probe(value["prompt"], value["answer"], value.get("subject"))
    if isinstance(value, str) and "=" in value:
        prompt, _, answer = value.rpartition("=")
        return Probe(prompt, answer)
    raise BadRequest(f'The neighbor {str(value)[:60]!r} has no answer; write it as "prompt=answer".')
