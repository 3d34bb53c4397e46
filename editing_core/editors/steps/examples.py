"""Training examples of a fine-tuning editor: the edits themselves, and what is shown beside them.

    E  the edits
    P  pseudo-paraphrases: each edit behind a few words the unedited model made up          (+ Para)
    R  unedited facts with their true objects, random ones or those most like the edit      (+ Rand, + Sim)

Everything is drawn once from the unedited model, by seed. Source: Gangadhar and Stratos 2024,
https://arxiv.org/abs/2402.11078 (section 3); its code draws one list of words for all edits, as here.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from editing_core.editors.steps.contexts import Contexts
from editing_core.errors import BadRequest
from editing_core.types import EditRequest, Probe

Case = int | str
AlikeOf = Callable[[Sequence[str], Sequence[str], int], list[list[int]]]
TEXTS_PER_EDIT = 3


@dataclass(frozen=True)
class Example:
    """A prompt and the answer it is trained to have.

    kind: edit, paraphrase, random, similar or neighbor. rejected: the answer it should lose to, where there is one.
    """

    kind: str
    prompt: str
    answer: str
    rejected: str | None = None


@dataclass(frozen=True)
class Augmentation:
    """What is trained beside the edits. prefixes: texts before a paraphrase. beside: unedited facts by case.

    texts: other texts, for a language-model loss.
    """

    prefixes: tuple[str, ...] = ()
    beside: Mapping[Case, tuple[Example, ...]] = field(default_factory=dict)
    texts: tuple[str, ...] = ()

    def examples(self, request: EditRequest) -> list[Example]:
        """The edit, its paraphrases, and the unedited facts that go with it; not its edit neighbors."""
        prompt, new, old = request.full_prompt, request.target_new, request.target_true
        rows = [Example("edit", prompt, new, old)]
        rows += [Example("paraphrase", prefix + prompt, new, old) for prefix in self.prefixes]
        return [*rows, *self.beside.get(request.case_id, ())]


def neighbor_examples(request: EditRequest, contexts: Contexts, behind_prefix: bool) -> list[Example]:
    """The edit neighbors, which assist by keeping their answers (NA); behind_prefix: after a random text (NAP)."""
    prefix = contexts.prefix(1) if behind_prefix and len(contexts) > 1 else ""
    return [Example("neighbor", prefix + n.prompt, n.answer) for n in request.edit_neighbors]


def random_facts(
    requests: Sequence[EditRequest], pool: Sequence[Probe], count: int, seed: int
) -> dict[Case, tuple[Example, ...]]:
    """So many facts of the pool for each request, without repetition inside one request."""
    if not count:
        return {}
    _check(pool)
    objects = _objects(pool)
    found = {}
    for request in requests:
        rng = random.Random(f"{seed}|{request.case_id}")
        picked = rng.sample(pool, min(count, len(pool)))
        found[request.case_id] = tuple(_example("random", fact, objects, rng) for fact in picked)
    return found


def similar_facts(
    requests: Sequence[EditRequest], pool: Sequence[Probe], count: int, seed: int, alike: AlikeOf
) -> dict[Case, tuple[Example, ...]]:
    """The facts of the pool whose sentences are most like each request's.

    alike: sentences of requests, sentences of facts, how many -> numbers of the facts most like each request.
    """
    if not count:
        return {}
    _check(pool)
    objects = _objects(pool)
    found = {}
    asked = [f"{r.full_prompt} {r.target_new}" for r in requests]
    for request, numbers in zip(requests, alike(asked, [f"{f.prompt} {f.answer}" for f in pool], count), strict=True):
        rng = random.Random(f"{seed}|{request.case_id}")
        found[request.case_id] = tuple(_example("similar", pool[n], objects, rng) for n in numbers)
    return found


def joined(*parts: Mapping[Case, tuple[Example, ...]]) -> dict[Case, tuple[Example, ...]]:
    """Several kinds of facts beside the same requests."""
    cases = dict.fromkeys(case for part in parts for case in part)
    return {case: tuple(example for part in parts for example in part.get(case, ())) for case in cases}


def _check(pool: Sequence[Probe]) -> None:
    if not pool:
        raise BadRequest(
            "No unedited facts are left to train on beside these edits, which cover all that are known; edit fewer, or "
            "set random facts and similar facts to 0."
        )


def _objects(pool: Sequence[Probe]) -> dict[str, list[str]]:
    """The objects of each relation, each as often as once."""
    found: dict[str, dict[str, None]] = {}
    for fact in pool:
        found.setdefault(fact.family, {})[fact.answer] = None
    return {relation: list(objects) for relation, objects in found.items()}


def _example(kind: str, fact: Probe, objects: Mapping[str, Sequence[str]], rng: random.Random) -> Example:
    """A fact with its true object; what it should not say is another object of its relation."""
    others = [name for name in objects[fact.family] if name != fact.answer] if fact.family else []
    return Example(kind, fact.prompt, fact.answer, rng.choice(others) if others else None)
