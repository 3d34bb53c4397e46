"""Suggest paraphrases and neighbors for a fact from the bundled facts of the same relation."""

import random
from dataclasses import dataclass

import torch

from editing_core.data.encoder import Encoder, nearest
from editing_core.data.facts import bundled_facts, bundled_relations, fact_sentences
from editing_core.errors import BadRequest
from editing_core.types import Probe

PARAPHRASES, NEIGHBORS = 4, 10


@dataclass(frozen=True)
class Suggestion:
    """relation: its name in words. neighbors: facts with the same object, about other subjects.

    how: what the relation was found by.
    """

    relation: str
    paraphrases: tuple[str, ...]
    neighbors: tuple[Probe, ...]
    how: str


def relation_of(subject: str, prompt: str, old: str | None) -> str | None:
    """The relation a prompt asks for: by its wording, else by what is known of subject and object."""
    return _by_wording(prompt) or _by_subject(subject, old)


def _by_wording(prompt: str) -> str | None:
    """The first relation with exactly this wording."""
    rows = bundled_relations().items()
    return next((relation for relation, row in rows if prompt in row["forms"] or prompt in row["unseen"]), None)


def _by_subject(subject: str, old: str | None) -> str | None:
    """A relation of a bundled fact about the subject, with the old object where there is one."""
    known = [(r, o) for r, s, o in bundled_facts() if s == subject]
    fitting = [r for r, o in known if old and o.casefold() == old.casefold()] or [r for r, _ in known]
    return fitting[0] if fitting else None


def _found(subject: str, prompt: str, old: str | None, encoder: Encoder | None) -> tuple[str, str] | None:
    """(relation, how it was found): as `relation_of`, else by the wording nearest to the prompt."""
    if relation := _by_wording(prompt):
        return relation, "by wording"
    if relation := _by_subject(subject, old):
        return relation, "by the subject"
    if encoder and (relation := _nearest_relation(prompt, encoder)):
        return relation, f"by the nearest wording ({encoder.name})"
    return None


def suggest(subject: str, prompt: str, old: str | None, encoder: Encoder | None = None) -> Suggestion:
    """Paraphrases and neighbors; BadRequest when the relation is none of the bundled ones.

    encoder: finds the relation of unknown wordings too, and puts the neighbors nearest to the fact first.
    """
    found = _found(subject, prompt, old, encoder)
    if found is None:
        names = ", ".join(sorted(str(row["label"]) for row in bundled_relations().values())[:8])
        raise BadRequest(
            f"No bundled relation fits the prompt {prompt[:60]!r}; enter paraphrases and neighbors by hand, or ask "
            f"for one of: {names} ..."
        )
    relation, how = found
    row = bundled_relations()[relation]
    rng = random.Random(f"{subject}|{prompt}")
    forms = [form for form in row["forms"] if form != prompt]
    paraphrases = [form.replace("{}", subject) for form in rng.sample(forms, PARAPHRASES)]
    facts = [(s, o) for r, s, o in bundled_facts() if r == relation]
    answer = old or next((o for s, o in facts if s == subject), None)
    same = [n for n, (s, o) in enumerate(facts) if s != subject and o == answer]
    others = same or [n for n, (s, _) in enumerate(facts) if s != subject]
    if encoder:
        picked = _by_similarity(f"{row['forms'][0].replace('{}', subject)} {answer or ''}", relation, others, encoder)
    else:
        picked = rng.sample(others, min(NEIGHBORS, len(others)))
    neighbors = [Probe(rng.choice(row["forms"]).replace("{}", facts[n][0]), facts[n][1], facts[n][0]) for n in picked]
    return Suggestion(str(row["label"]), tuple(paraphrases), tuple(neighbors), how)


def _by_similarity(sentence: str, relation: str, numbers: list[int], encoder: Encoder) -> list[int]:
    """Those of a relation's facts, by number, whose sentences are nearest, best first."""
    vectors = encoder.encode_once(fact_sentences(relation))[numbers]
    return [numbers[place] for place in nearest(encoder.encode([sentence]), vectors, NEIGHBORS)[0][0]]


def _nearest_relation(prompt: str, encoder: Encoder) -> str | None:
    """The relation whose wording is nearest to the prompt; None where none is near.

    Near is what lies as close as half of the bundled wordings do to another one of their relation: encoders differ in
    how large their cosines are, so a fixed bound would fit one of them.
    """
    wordings = [(r, form) for r, row in bundled_relations().items() for form in (*row["forms"], *row["unseen"])]
    vectors = encoder.encode_once(tuple(_filled(form) for _, form in wordings))
    query = encoder.encode([_filled(prompt)])
    best = nearest(query, vectors, 1)[0][0][0]
    relations = [relation for relation, _ in wordings]
    return relations[best] if float(query[0] @ vectors[best]) >= _usual(vectors, relations) else None


def _usual(vectors: torch.Tensor, relations: list[str]) -> float:
    """Median over wordings of the largest cosine to another wording of the same relation."""
    numbers = {relation: number for number, relation in enumerate(relations)}
    kinds = torch.tensor([numbers[relation] for relation in relations])
    alike = (kinds[:, None] == kinds[None]) & ~torch.eye(len(kinds), dtype=torch.bool)
    return float((vectors @ vectors.T).where(alike, torch.tensor(-1.0)).max(1).values.median())


def _filled(wording: str) -> str:
    """With a word that says nothing for the subject, so that subjects do not decide."""
    return wording.replace("{}", "it")
