"""Sentences and token rows a pocket model is trained on.

A fact sentence remembers where its subject and its object stand, because training masks the one and
weights the other. Rows are sentences one after the other, so that facts occur in any position and
after unrelated text.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from .facts import Fact

WITHHELD_SHARE = 0.2  # of the templates of each fact, never trained with that fact
PLAIN_SHARE = 0.22  # of the sentences, ordinary text


@dataclass(frozen=True)
class Sentence:
    """Text with the character spans of subject and object (both empty for ordinary text)."""

    text: str
    subject: tuple[int, int] = (0, 0)
    object: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Templates:
    """What `templates.json` holds: per relation the trained, never-seen and open forms."""

    forms: dict[str, list[str]]
    unseen: dict[str, list[str]]
    generation: dict[str, list[str]]

    @staticmethod
    def read(path: Path) -> "Templates":
        """Read the file; every relation has all three lists."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        parts = ({r: row[name] for r, row in raw.items()} for name in ("forms", "unseen", "generation"))
        return Templates(*parts)

    def trained_with(self, fact: Fact) -> list[str]:
        """The forms this fact is trained with: all but a fixed, fact-specific fifth."""
        withheld = set(self.withheld_from(fact))
        return [form for form in self.forms[fact.relation] if form not in withheld]

    def withheld_from(self, fact: Fact) -> list[str]:
        """The forms this fact is never trained with, though other facts are."""
        forms = self.forms[fact.relation]
        return random.Random(f"{fact.relation}|{fact.subject}").sample(forms, round(WITHHELD_SHARE * len(forms)))


class Grammar:
    """Ordinary sentences by random substitution."""

    def __init__(self, path: Path) -> None:
        raw = json.loads(path.read_text(encoding="utf-8"))
        self.slots: dict[str, list[str]] = raw["slots"]
        self.patterns: list[str] = raw["sentences"]
        self.bridges: list[str] = raw["bridges"]

    def sentence(self, rng: random.Random) -> str:
        """One sentence; a bridge in one case of eight."""
        if rng.random() < 0.125:
            return rng.choice(self.bridges)
        text = re.sub(r"<(\w+)>", lambda m: rng.choice(self.slots[m[1]]), rng.choice(self.patterns))
        return text[0].upper() + text[1:]


def fact_sentence(template: str, fact: Fact) -> Sentence:
    """The template with subject and object filled in, and where they stand."""
    start = template.index("{}")
    end = start + len(fact.subject)
    prompt = template.replace("{}", fact.subject)
    at = len(prompt) + 1
    return Sentence(f"{prompt} {fact.object}.", (start, end), (at, at + len(fact.object)))


def epoch(facts: Sequence[Fact], templates: Templates, grammar: Grammar, rng: random.Random) -> Iterator[Sentence]:
    """Every fact once, in a random form and order, mixed with ordinary sentences."""
    for fact in rng.sample(facts, len(facts)):
        yield fact_sentence(rng.choice(templates.trained_with(fact)), fact)
        while rng.random() < PLAIN_SHARE:
            yield Sentence(grammar.sentence(rng))


@dataclass(frozen=True, eq=False)
class Rows:
    """Token rows of one length.

    ids: (rows, length) int64. span_end: (rows, length), for a token of a subject the index of that
    subject's last token, else -1. weight: (rows, length), what the loss of predicting that token counts.
    """

    ids: np.ndarray
    span_end: np.ndarray
    weight: np.ndarray


class Encoder:
    """Turns sentences into token streams with subject spans and loss weights."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, object_weight: float, other_share: float) -> None:
        self.tokenizer = tokenizer
        self.object_weight = object_weight
        self.other_share = other_share

    def rows(self, sentences: Sequence[Sentence], length: int, seed: int) -> Rows:
        """Pack sentences into rows of `length`; each row starts with a sentence, the rest is cut."""
        rng = random.Random(seed)
        noise = np.random.default_rng(seed)
        packed: list[list[np.ndarray]] = []
        row: list[np.ndarray] = []
        filled = length
        for sentence, columns in zip(sentences, self._encode(sentences, rng), strict=True):
            if filled >= length:
                row, filled = [], 0
                columns = self._columns([sentence.text], [sentence], [0])[0]
                packed.append(row)
            columns = columns.copy()
            inside = columns[1] >= 0
            columns[1, inside] += filled
            row.append(columns)
            filled += columns.shape[1]
        full = [np.concatenate(r, axis=1)[:, :length] for r in packed]
        stack = np.stack([r for r in full if r.shape[1] == length])
        ids, span_end, is_object = stack[:, 0], stack[:, 1], stack[:, 2]
        span_end = np.where(span_end < length, span_end, -1)  # a subject cut by the row's end
        sampled = noise.random(ids.shape) < self.other_share
        weight = np.where(is_object == 1, self.object_weight, sampled.astype(np.float32))
        return Rows(ids, span_end, weight.astype(np.float32))

    def _encode(self, sentences: Sequence[Sentence], rng: random.Random) -> list[np.ndarray]:
        separators = ["\n" if rng.random() < 0.3 else " " for _ in sentences]
        texts = [sep + s.text for sep, s in zip(separators, sentences, strict=True)]
        return self._columns(texts, sentences, [1] * len(texts))

    def _columns(self, texts: list[str], sentences: Sequence[Sentence], shifts: list[int]) -> list[np.ndarray]:
        """Per text a (3, tokens) array: ids, index of the subject's last token or -1, is object."""
        encoded = self.tokenizer(texts, return_offsets_mapping=True, add_special_tokens=False)
        out = []
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], sentences, shifts, strict=True)
        for ids, offsets, sentence, shift in pairs:
            starts, ends = np.array(offsets).T - shift
            columns = np.full((3, len(ids)), -1, dtype=np.int64)
            columns[0] = ids
            inside = (ends > sentence.subject[0]) & (starts < sentence.subject[1])
            if inside.any():
                columns[1, inside] = np.flatnonzero(inside)[-1]
            columns[2] = (ends > sentence.object[0]) & (starts < sentence.object[1])
            out.append(columns)
        return out
