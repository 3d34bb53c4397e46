"""What fine-tuning trains on beside the edits, found with the unedited model while the editor is built."""

import random
from collections.abc import Sequence

from editing_core.editors.finetuning import FineTuning, FineTuningSettings, adapter_modules
from editing_core.editors.materials import Materials
from editing_core.editors.steps.contexts import Contexts, draw_openings, draw_prefixed, draw_texts
from editing_core.editors.steps.examples import (
    TEXTS_PER_EDIT,
    AlikeOf,
    Augmentation,
    joined,
    random_facts,
    similar_facts,
)
from editing_core.errors import BadSetting
from editing_core.models.language_model import LanguageModel

OWN_TEXTS, OWN_LENGTH = 64, 64  # texts the model writes where it has no corpus, and their tokens


def build_finetuning(settings: FineTuningSettings, materials: Materials) -> FineTuning:
    """The editor; BadSetting where settings or assistance ask for what training has no place for."""
    s, m = settings, materials
    _check(s, m)
    contexts = Contexts.grouped(draw_prefixed(m.lm, ((10, 5),), m.seed))
    about: list[str] = []
    pool = m.facts() if s.random_facts or s.similar_facts else ()
    beside = random_facts(m.requests, pool, s.random_facts, m.seed)
    beside = joined(beside, similar_facts(m.requests, pool, s.similar_facts, m.seed, _alike(s, m, about)))
    texts = _texts(s, m, about) if s.language else ()
    return FineTuning(s, Augmentation(_prefixes(s, m), beside, texts), m.objective(contexts), m.seed, tuple(about))


def _alike(s: FineTuningSettings, m: Materials, about: list[str]) -> AlikeOf:
    def numbers(asked: Sequence[str], known: Sequence[str], count: int) -> list[list[int]]:
        if m.alike is None:
            raise BadSetting("Nothing tells here how alike facts are; set similar facts to 0.")
        found = m.alike(asked, known, count, s.encoder == "own")
        about.append(found.told)
        return found.numbers

    return numbers


def _prefixes(s: FineTuningSettings, m: Materials) -> tuple[str, ...]:
    if not s.paraphrases:
        return ()
    lm = m.lm if s.prefix_model == "own" else LanguageModel.load(s.prefix_model, device=m.lm.device.type)
    return draw_openings(lm, s.paraphrases, s.prefix_tokens, m.seed)


def _texts(s: FineTuningSettings, m: Materials, about: list[str]) -> tuple[str, ...]:
    """Three texts for each edit as far as there are so many."""
    count = TEXTS_PER_EDIT * max(1, len(m.requests))
    known: Sequence[str] = m.texts() if s.texts == "corpus" else ()
    if known:
        return tuple(random.Random(m.seed).sample(known, min(count, len(known))))
    if s.texts == "corpus":
        about.append(f"No corpus comes with {m.lm.name}; texts it wrote itself before the edit serve instead.")
    return draw_texts(m.lm, min(count, OWN_TEXTS), min(OWN_LENGTH, m.lm.context), m.seed)


def _check(s: FineTuningSettings, m: Materials) -> None:
    if m.assist.keys or m.assist.statistics != "tokens":
        raise BadSetting(
            "Neighbor keys and statistics of subjects are protected in a closed form, which fine-tuning has not; set "
            "keys to 0 and statistics to tokens, or add random or similar facts."
        )
    if s.lora and s.bound:
        raise BadSetting(f"The bound {s.bound:g} holds for weights, not for an adapter; set it to 0, or lora off.")
    if s.labels == "last" and not s.mask:
        raise BadSetting("Labels at the prompt's end are the new object's only; set mask on, or labels to position.")
    if s.lora:
        adapter_modules(m.lm, s)  # refuses what cannot be adapted
