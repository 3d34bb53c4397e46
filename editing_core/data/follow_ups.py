"""Follow-up questions: what should follow from the edit of a bundled fact, in the three kinds of the survey.

    subject replaced    the edit's own prompt with the surname alone, where no other bundled subject has it
    reversed relation   from the object back to the subject
    one hop             a step on from the object, where the step leads somewhere else than before

In: a request of pocket-facts. Out: the same with its portability probes, `family` being the kind. Asked about the true
object instead, the same questions are the control: whether a model can answer such at all before an edit. Wordings and
steps: `assets/facts/portability.json`, our own. Kinds: Yao et al. 2023, https://arxiv.org/abs/2305.13172, section 5.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from editing_core import paths
from editing_core.data.facts import bundled_facts, bundled_relations
from editing_core.types import EditRequest, Probe

REPLACED, REVERSED, HOP = KINDS = ("subject replaced", "reversed relation", "one hop")
NAME = re.compile(r"([A-Z][a-z]+ )+([A-Z][a-z]{2,})")  # plain ASCII words: no numbers, ranks, hyphens, "of"


@cache
def wordings() -> dict[str, Any]:
    """The questions by kind and relation, and the steps from object to object."""
    text = (paths.assets() / "facts" / "portability.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def with_follow_ups(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """The requests, each with the questions that follow from its new object; some have none."""
    return [replace(r, portability=tuple(_questions(r, r.target_new))) for r in requests]


def with_controls(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """The same questions about the true object, for the unedited model. Backwards, any subject that has it is right."""
    return [replace(r, portability=tuple(_questions(r, r.target_true or "", control=True))) for r in requests]


def _questions(request: EditRequest, object_: str, control: bool = False) -> Iterator[Probe]:
    """Those that make sense of a request, as if it had this object."""
    relation, known = request.relation_id or "", wordings()
    if name := surname(request):
        yield Probe(request.prompt.replace("{}", name), object_, name, family=REPLACED)
    if question := known[REVERSED].get(relation):
        others = [s for s in _subjects(relation, object_) if s != request.subject] if control else []
        yield Probe(question.replace("{}", object_), request.subject, aliases=tuple(others), family=REVERSED)
    if relation in known[HOP]:
        step, question = known[HOP][relation]
        answers = [known["steps"][step].get(o) for o in (request.target_new, request.target_true)]
        answer = known["steps"][step].get(object_)
        if answer and answers[0] != answers[1]:  # otherwise the edit changes nothing about it
            yield Probe(question.replace("{}", request.subject), answer, request.subject, family=HOP)


def surname(request: EditRequest) -> str:
    """The surname of a person, where it is a word of no other bundled subject, object or wording; "" otherwise."""
    found = NAME.fullmatch(request.subject) if request.relation_id in wordings()["people"] else None
    return found[2] if found and _words()[found[2]] == 1 else ""


@cache
def _words() -> Counter[str]:
    """How many bundled subjects have a word; a word of an object or wording counts twice, so that it is no name."""
    facts, counts = bundled_facts(), Counter[str]()
    for subject in {s for _, s, _ in facts}:
        counts.update(set(re.findall(r"\w+", subject)))
    plain = {o for _, _, o in facts} | {form for r in bundled_relations().values() for form in r["forms"] + r["unseen"]}
    counts.update({word: 2 for text in plain for word in re.findall(r"\w+", text)})
    return counts


@cache
def _subjects(relation: str, object_: str) -> tuple[str, ...]:
    return tuple(s for r, s, o in bundled_facts() if (r, o) == (relation, object_))
