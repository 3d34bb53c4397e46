"""Several facts together: which of the bundled ones a model knows, how much noise blurs them, and their traces."""

import random
from collections.abc import Sequence
from dataclasses import replace

from editing_core.data.facts import bundled_facts
from editing_core.data.subjects import known_facts
from editing_core.errors import BadRequest
from editing_core.evaluation.scoring import score_objects
from editing_core.explore.trace import MOST_SUBJECTS, Trace, TraceSettings, embedding_deviation, trace
from editing_core.models.language_model import LanguageModel
from editing_core.settings import check_number
from editing_core.types import Probe, Step, Watch, ignore

MOST_FACTS = 50
ASKED = 8  # facts a model is asked for each that is wanted, before it is left at those it knows


def facts_known_to(lm: LanguageModel, count: int, relation: str | None = None, seed: int = 0) -> list[Probe]:
    """At most `count` bundled facts that the model answers right, drawn by seed; those of a relation come first.

    BadSetting for a count outside 1 to MOST_FACTS, BadRequest where it knows none of those it is asked for.
    """
    check_number("facts", count, 1, MOST_FACTS, whole=True)
    facts = known_facts(seed)
    random.Random(seed).shuffle(facts)
    facts.sort(key=lambda fact: fact.family != relation)
    found: list[Probe] = []
    for start in range(0, ASKED * count, 2 * count):
        some = facts[start : start + 2 * count]
        scores = score_objects(lm, [(fact.prompt, fact.answer) for fact in some])
        found += [fact for fact, score in zip(some, scores, strict=True) if score.hit >= 1.0]
        if len(found) >= count:
            break
    if not found:
        raise BadRequest(
            f"{lm.name} knows none of the {ASKED * count} bundled facts it was asked for, so there is nothing to "
            "average; trace a fact that it knows."
        )
    return found[:count]


def noise_of(lm: LanguageModel, settings: TraceSettings) -> float:
    """Standard deviation of the noise: the settings' level times that of the embeddings of bundled subjects."""
    subjects = sorted({subject for _, subject, _ in bundled_facts()})
    some = random.Random(0).sample(subjects, MOST_SUBJECTS)
    return settings.level * embedding_deviation(lm, some)


def trace_facts(
    lm: LanguageModel, facts: Sequence[Probe], settings: TraceSettings | None = None, watch: Watch = ignore
) -> list[Trace]:
    """The trace of every fact whose subject is known, each for its own answer. watch: told of all facts' layers."""
    settings = settings or TraceSettings()
    asked = [(fact.place, fact.answer) for fact in facts if fact.place]
    noise, found = noise_of(lm, settings), list[Trace]()
    for number, (place, answer) in enumerate(asked):

        def told(step: Step, number: int = number) -> None:
            done, note = number * step.total + step.done, f"fact {number + 1} of {len(asked)}, {step.note}"
            watch(replace(step, done=done, total=len(asked) * step.total, note=note))

        found.append(trace(lm, place, noise, settings, answer, told))
    return found
