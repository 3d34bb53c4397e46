"""What fine-tuning trains on beside the edits, found with the unedited model while the editor is built."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from editing_core.editors.materials import Materials
from editing_core.editors.steps.contexts import draw_openings, draw_texts
from editing_core.editors.steps.examples import (
    TEXTS_PER_EDIT,
    AlikeOf,
    Augmentation,
    joined,
    random_facts,
    similar_facts,
)
from editing_core.models.language_model import LanguageModel

if TYPE_CHECKING:
    from editing_core.editors.finetuning import FineTuningSettings

OWN_TEXTS, OWN_LENGTH = 64, 64  # texts the model writes where it has no corpus, and their tokens


def augmentation(s: FineTuningSettings, m: Materials, about: list[str]) -> Augmentation:
    """What the settings ask for; remarks on how it was found are added to `about`."""
    pool = m.facts() if s.random_facts or s.similar_facts else ()
    beside = random_facts(m.requests, pool, s.random_facts, m.seed)
    beside = joined(beside, similar_facts(m.requests, pool, s.similar_facts, m.seed, _alike(s, m, about)))
    return Augmentation(_prefixes(s, m), beside, _texts(s, m, about) if s.language else ())


def _alike(s: FineTuningSettings, m: Materials, about: list[str]) -> AlikeOf:
    def numbers(asked: Sequence[str], known: Sequence[str], count: int) -> list[list[int]]:
        return m.most_like(asked, known, count, s.encoder, about).numbers

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
