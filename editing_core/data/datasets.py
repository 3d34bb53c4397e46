"""Data sets by name: `pocket-facts`, its parts, and how a sample is drawn."""

import random

from editing_core import paths
from editing_core.data.counterfact import read_records, request_of
from editing_core.errors import BadRequest
from editing_core.models.catalog import unknown
from editing_core.types import EditRequest

PARTS = ("test", "tune")
DATASETS = ("pocket-facts",)


def load_dataset(name: str) -> list[EditRequest]:
    """All requests of "NAME" or "NAME:PART"; without a part the `test` part."""
    base, _, part = name.partition(":")
    if base not in DATASETS:
        raise unknown(base, "data set", DATASETS)
    if (part or "test") not in PARTS:
        raise unknown(part, f"part of {base}", PARTS)
    records = read_records(paths.assets() / "benchmark" / f"{base}.json")
    return [request_of(r, base) for r in records if r["part"] == (part or "test")]


def sample(requests: list[EditRequest], limit: int, seed: int) -> list[EditRequest]:
    """`limit` requests drawn without replacement; no two about the same subject and relation."""
    if not 1 <= limit <= len(requests):
        raise BadRequest(
            f"{limit} edits were asked for, this data set part has {len(requests)}; ask for 1 to {len(requests)}."
        )
    return random.Random(seed).sample(requests, limit)
