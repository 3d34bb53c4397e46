"""The bundled facts and the wordings of their relations, as the files hold them."""

import json
from functools import cache

from editing_core import paths


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


@cache
def fact_sentences(relation: str) -> tuple[str, ...]:
    """Every bundled fact of a relation as a sentence, all in the relation's first wording."""
    form = bundled_relations()[relation]["forms"][0]
    return tuple(f"{form.replace('{}', s)} {o}" for r, s, o in bundled_facts() if r == relation)
