"""KnowEdit's Wikidata parts, such as WikiRecent: facts with what follows from them and what must not change.

In: a record whose `portability` and `locality` hold lists of {prompt, ground_truth} by kind. Out: an EditRequest;
a probe's family is its kind. Source: Zhang et al. 2024, https://arxiv.org/abs/2401.01286.
"""

from collections.abc import Iterator
from typing import Any

from editing_core.data.fields import as_text, case_id, find, items, kind, leaves, template_of, text
from editing_core.data.problems import Malformed, naming, naming_all
from editing_core.types import EditRequest, Probe

NAMES = {
    "subject": "subject",
    "prompt": "prompt",
    "target_new": "target_new",
    "target_true": "ground_truth",
    "paraphrases": "rephrase",
    "case_id": "case_id",
}


def parse(record: Any, row: int, source: str = "knowedit") -> EditRequest:
    """One record. Probes without an answer are skipped, as in the published evaluation."""
    subject = text(record, "subject")
    with naming_all(NAMES):
        return EditRequest(
            subject=subject,
            prompt=template_of(text(record, "prompt"), subject, "prompt"),
            target_new=text(record, "target_new"),
            target_true=next(iter(_answers(find(record, "ground_truth"), "ground_truth")), None),
            paraphrases=tuple(as_text(leaf, "rephrase") for leaf in leaves(find(record, "rephrase", []))),
            portability=tuple(_probes(record, "portability")),
            locality=tuple(_probes(record, "locality")),
            case_id=case_id(record, row),
            source=source,
        )


def _probes(record: Any, path: str) -> Iterator[Probe]:
    kinds = find(record, path, {})
    if not isinstance(kinds, dict):
        raise Malformed(path, f"The {path} is {kind(kinds)}", "it must be an object with a list for each kind")
    for family in kinds:
        field = f"{path}.{family}"
        for probe in items(kinds, family):
            answers = _answers(find(probe, "ground_truth"), f"{field}.ground_truth")
            if answers:
                yield _probe(probe, answers, family, field)


def _probe(probe: Any, answers: tuple[str, ...], family: str, field: str) -> Probe:
    # Some prompts are published as lists of one.
    prompt = as_text(next(leaves(find(probe, "prompt", "")), ""), f"{field}.prompt")
    with naming(field):
        return Probe(prompt, answers[0], aliases=answers[1:], family=family)


def _answers(value: Any, field: str) -> tuple[str, ...]:
    """The answer and its aliases; none at all where the first is blank."""
    found = [_answer(leaf, field) for leaf in leaves(value)]
    return tuple(answer for answer in found if answer) if found and found[0] else ()


def _answer(leaf: object, field: str) -> str:
    if not isinstance(leaf, str | None):
        raise Malformed(field, f"An answer is {kind(leaf)}", "answers must be text")
    return (leaf or "").strip()
