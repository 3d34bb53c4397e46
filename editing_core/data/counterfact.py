"""CounterFact's schema, which the bundled pocket-facts share: JSON records -> EditRequests.

Source of the schema: Meng et al. 2022, https://arxiv.org/abs/2202.05262.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editing_core.errors import BadRequest
from editing_core.types import EditRequest, Probe

MAX_BYTES = 64 * 2**20


def request_of(record: Mapping[str, Any], source: str) -> EditRequest:
    """One record. BadRequest names the key that is missing or malformed."""
    try:
        rewrite = record["requested_rewrite"]
        true = rewrite["target_true"]["str"]
        prompts = record.get("neighborhood_prompts", [])
        samples = record.get("neighborhood_samples") or [{}] * len(prompts)
        return EditRequest(
            subject=rewrite["subject"],
            prompt=rewrite["prompt"],
            target_new=rewrite["target_new"]["str"],
            target_true=true,
            paraphrases=tuple(record.get("paraphrase_prompts", ())),
            neighbors=tuple(Probe(p, true, s.get("subject")) for p, s in zip(prompts, samples, strict=True)),
            case_id=record.get("case_id", 0),
            relation_id=rewrite.get("relation_id"),
            generation_prompts=tuple(record.get("generation_prompts", ())),
            source=source,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        case = record.get("case_id", "without case_id") if isinstance(record, Mapping) else "of no known form"
        raise BadRequest(
            f"Record {case} of {source} does not follow CounterFact's schema ({error}); correct it."
        ) from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """The JSON list in a file; BadRequest when it is too large or none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadRequest(f"{path.name} is larger than {MAX_BYTES // 2**20} MB; split it.")
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadRequest(f"{path.name} is not a readable JSON file; give a JSON list of edits.") from error
    if not isinstance(records, list) or not records:
        raise BadRequest(f"{path.name} holds no list of edits; give a JSON list with at least one.")
    return records
