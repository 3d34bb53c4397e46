"""Places of known subjects: one prompt with its subject for each bundled fact."""

import random
from collections.abc import Iterable

from editing_core.data.facts import bundled_facts, bundled_relations
from editing_core.types import Probe


def subject_places(texts: Iterable[str], seed: int = 0) -> list[tuple[str, str]]:
    """(template, subject) of every bundled fact whose subject stands in none of the texts, one wording each."""
    taken = "\n".join(texts)
    rng = random.Random(seed)
    places = [(rng.choice(bundled_relations()[r]["forms"]), s) for r, s, _ in bundled_facts()]
    return [place for place in places if place[1] not in taken]


def known_facts(seed: int = 0) -> list[Probe]:
    """Every bundled fact as a probe, one wording each, drawn by seed."""
    rng = random.Random(seed)
    return [
        Probe(rng.choice(bundled_relations()[r]["forms"]).replace("{}", s), o, s, family=r)
        for r, s, o in bundled_facts()
    ]
