"""CounterFact, multi-CounterFact, and subsets of them that name every neighbor's subject.

In: a record with `requested_rewrite`. Out: an EditRequest; neighbors share the old object.
Source: Meng et al. 2022, https://arxiv.org/abs/2202.05262; `neighborhood_samples`: Baghel et al. 2025,
https://arxiv.org/abs/2503.11895.
"""

from typing import Any

from editing_core.data.fields import case_id, items, optional, text, texts
from editing_core.data.problems import Malformed, naming, naming_all
from editing_core.types import EditRequest, Probe

REWRITE = "requested_rewrite"
NAMES = {
    "subject": f"{REWRITE}.subject",
    "prompt": f"{REWRITE}.prompt",
    "target_new": f"{REWRITE}.target_new.str",
    "target_true": f"{REWRITE}.target_true.str",
    "paraphrases": "paraphrase_prompts",
    "case_id": "case_id",
}


def parse(record: Any, row: int, source: str = "counterfact") -> EditRequest:
    """One record; Malformed names the field that is wrong. Its `attribute_prompts` are not used."""
    prompt, true = text(record, NAMES["prompt"]), text(record, NAMES["target_true"])
    with naming_all(NAMES):
        return EditRequest(
            subject=text(record, NAMES["subject"]),
            prompt=prompt,
            target_new=text(record, NAMES["target_new"]),
            target_true=true,
            paraphrases=texts(record, "paraphrase_prompts"),
            neighbors=_neighbors(record, prompt, true),
            case_id=case_id(record, row),
            relation_id=optional(record, f"{REWRITE}.relation_id"),
            target_new_id=optional(record, f"{REWRITE}.target_new.id"),
            generation_prompts=texts(record, "generation_prompts"),
            source=source,
        )


def _neighbors(record: Any, template: str, answer: str) -> tuple[Probe, ...]:
    prompts = texts(record, "neighborhood_prompts")
    with naming("neighborhood_prompts"):
        samples = items(record, "neighborhood_samples")
        if not samples:
            return tuple(Probe(p, answer, subject_between(template, p)) for p in prompts)
        if len(samples) != len(prompts):
            got = f"There are {len(samples)} neighborhood_samples for {len(prompts)} neighborhood_prompts"
            raise Malformed("neighborhood_samples", got, "give one for each, or leave them all out")
        return tuple(Probe(p, answer, text(s, "subject")) for p, s in zip(prompts, samples, strict=True))


def subject_between(template: str, prompt: str) -> str | None:
    """What the prompt has in the template's place `{}`; None where it does not fit the template."""
    head, place, tail = template.partition("{}")
    if not (place and (head + tail).strip() and prompt.startswith(head) and prompt.endswith(tail)):
        return None
    # Empty also where head and tail overlap.
    return prompt[len(head) : len(prompt) - len(tail)].strip() or None
