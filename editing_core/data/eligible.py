"""Eligible-neighbor subsets of CounterFact: one neighbor for the editor, the others for measuring.

In: a flat record whose `neighborhood_samples` hold the neighbors an editor may use. Out: an EditRequest.
Source: Baghel et al. 2025, https://arxiv.org/abs/2503.11895.
"""

from typing import Any

from editing_core.data.fields import case_id, filled, items, template_of, text, texts
from editing_core.data.problems import Malformed, naming, naming_all
from editing_core.types import EditRequest, Probe

SAMPLES, MEASURED = "neighborhood_samples", "locality.neighborhood"
NAMES = {
    "subject": "subject",
    "prompt": "prompt",
    "target_new": "target_new",
    "target_true": "ground_truth",
    "paraphrases": "rephrase_prompt",
    "case_id": "case_id",
}


def parse(record: Any, row: int, source: str = "counterfact-neighbor") -> EditRequest:
    """One record. A neighbor for measuring that is also one for editing is dropped: it would measure nothing."""
    subject, true = text(record, "subject"), text(record, "ground_truth")
    with naming(SAMPLES):
        edit_neighbors = tuple(_edit_neighbor(sample, true) for sample in items(record, SAMPLES))
    used = {probe.prompt for probe in edit_neighbors}
    with naming_all(NAMES):
        return EditRequest(
            subject=subject,
            prompt=template_of(text(record, "prompt"), subject, "prompt"),
            target_new=text(record, "target_new"),
            target_true=true,
            paraphrases=texts(record, "rephrase_prompt"),
            neighbors=tuple(probe for probe in _measured(record) if probe.prompt not in used),
            edit_neighbors=edit_neighbors,
            case_id=case_id(record, row),
            source=source,
        )


def _edit_neighbor(sample: Any, answer: str) -> Probe:
    subject = text(sample, "subject")
    return Probe(filled(text(sample, "prompt"), subject, SAMPLES), answer, subject)


def _measured(record: Any) -> tuple[Probe, ...]:
    prompts, answers = texts(record, f"{MEASURED}.prompt"), texts(record, f"{MEASURED}.ground_truth")
    if len(prompts) != len(answers):
        got = f"There are {len(prompts)} prompts and {len(answers)} answers"
        raise Malformed(MEASURED, got, "give one answer for each prompt")
    with naming(MEASURED):
        return tuple(Probe(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True))
