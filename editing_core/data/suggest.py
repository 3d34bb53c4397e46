"""Suggest paraphrases and neighbors for a fact from the bundled facts of the same relation."""

import json
import random
from dataclasses import dataclass
from functools import cache

from editing_core import paths
from editing_core.errors import BadRequest
from editing_core.types import Probe

PARAPHRASES, NEIGHBORS = 4, 10


@dataclass(frozen=True)
class Suggestion:
    """relation: its name in words. neighbors: facts with the same object, about other subjects."""

    relation: str
    paraphrases: tuple[str, ...]
    neighbors: tuple[Probe, ...]


@cache
def bundled_facts() -> tuple[tuple[str, str, str], ...]:
    """(relation, subject, object) of every bundled fact."""
    lines = (paths.assets() / "facts" / "facts.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return tuple(tuple(line.split("\t")[:3]) for line in lines)  # type: ignore[misc]


@cache
def bundled_relations() -> dict[str, dict[str, list[str]]]:
    """Per relation its label and its wordings: `forms` the model was trained on, `unseen` others."""
    relations: dict[str, dict[str, list[str]]] = json.loads(
        (paths.assets() / "facts" / "templates.json").read_text(encoding="utf-8")
    )
    return relations


def relation_of(subject: str, prompt: str, old: str | None) -> str | None:
    """The relation a prompt asks for: by its wording, else by what is known of subject and object."""
    for relation, row in bundled_relations().items():
        if prompt in row["forms"] or prompt in row["unseen"]:
            return relation
    known = [(r, o) for r, s, o in bundled_facts() if s == subject]
    fitting = [r for r, o in known if old and o.casefold() == old.casefold()] or [r for r, _ in known]
    return fitting[0] if fitting else None


def suggest(subject: str, prompt: str, old: str | None) -> Suggestion:
    """Paraphrases and neighbors; BadRequest when the relation is none of the bundled ones."""
    relation = relation_of(subject, prompt, old)
    if relation is None:
        names = ", ".join(sorted(str(row["label"]) for row in bundled_relations().values())[:8])
        raise BadRequest(
            f"No bundled relation fits the prompt {prompt[:60]!r}; enter paraphrases and neighbors by hand, or ask "
            f"for one of: {names} ..."
        )
    row = bundled_relations()[relation]
    rng = random.Random(f"{subject}|{prompt}")
    forms = [form for form in row["forms"] if form != prompt]
    paraphrases = [form.replace("{}", subject) for form in rng.sample(forms, PARAPHRASES)]
    answer = old or next((o for r, s, o in bundled_facts() if (r, s) == (relation, subject)), None)
    same = [(s, o) for r, s, o in bundled_facts() if r == relation and s != subject and o == answer]
    others = same or [(s, o) for r, s, o in bundled_facts() if r == relation and s != subject]
    picked = rng.sample(others, min(NEIGHBORS, len(others)))
    neighbors = [Probe(rng.choice(row["forms"]).replace("{}", s), o, s) for s, o in picked]
    return Suggestion(str(row["label"]), tuple(paraphrases), tuple(neighbors))
