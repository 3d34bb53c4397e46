"""Context templates: random prefixes, so that an edit does not overfit the beginning of a sentence.

Drawn once from the unedited model and then part of the run's record. Source: Meng et al. 2022 (ROME),
https://arxiv.org/abs/2202.05262; lengths and counts as in the published code.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from editing_core.models.language_model import LanguageModel, fitted
from editing_core.models.tokens import Coder

STARTERS = ("The", "Therefore", "Because", "I", "You")
TOP_K = 5
TRIES = 5  # draws of openings before repeated ones are given up
TEXTS_AT_ONCE = 32


@dataclass(frozen=True)
class Contexts:
    """Templates with one `{}` for the whole edit prompt, the bare `{}` first, and their key weights.

    weights: share of each template in an averaged key; they sum to 1.
    """

    templates: tuple[str, ...] = ("{}",)
    weights: tuple[float, ...] = (1.0,)

    def __len__(self) -> int:
        return len(self.templates)

    def prefix(self, number: int) -> str:
        """The text before the edit prompt."""
        return self.templates[number].partition("{}")[0]

    @property
    def prefixed(self) -> "Contexts":
        """All but the bare template."""
        return Contexts(self.templates[1:], self.weights[1:])

    def openings(self, lm: LanguageModel, facts: int) -> tuple[tuple[int, ...], ...]:
        """Token ids of every prefix that several facts share; of one fact alone nothing is shared."""
        prefixes = [self.prefix(number) for number in range(len(self))]
        return tuple(lm.coder.opening(prefix) if facts > 1 else () for prefix in prefixes)

    @staticmethod
    def flat(prefixed: tuple[str, ...]) -> "Contexts":
        """All templates weigh the same (ROME)."""
        templates = ("{}", *prefixed)
        return Contexts(templates, (1 / len(templates),) * len(templates))

    @staticmethod
    def grouped(prefixed: tuple[str, ...]) -> "Contexts":
        """The bare prompt weighs one half, the prefixed ones the other half together (MEMIT)."""
        if not prefixed:
            return Contexts()
        return Contexts(("{}", *prefixed), (0.5, *(0.5 / len(prefixed),) * len(prefixed)))


@fitted
def draw_prefixed(lm: LanguageModel, lengths: tuple[tuple[int, int], ...], seed: int) -> tuple[str, ...]:
    """Sample prefixed templates from the model as it is.

    lengths: pairs (total tokens, how many); each count is divided over the five starters.
    """
    generator = torch.Generator().manual_seed(seed)
    out: list[str] = []
    plain = Coder(lm.tokenizer)  # a prefix is ordinary text, whatever stands around prompts
    for length, count in lengths:
        starters = [plain.encode(STARTERS[i % len(STARTERS)]) for i in range(count)]
        out += [f"{_clean(text)}. {{}}" for text in _sample(lm, starters, length, generator)]
    return tuple(out)


def draw_openings(lm: LanguageModel, count: int, length: int, seed: int) -> tuple[str, ...]:
    """Beginnings of texts the model makes up from nothing, each ending in ". ", for pseudo-paraphrases.

    length: tokens, with the one that starts a text; a third of the openings has half of it. Empty and repeated ones
    are drawn again a few times, as the published list of the fine-tuning paper (arXiv:2402.11078) shows is needed;
    fewer than `count` come back where the model says nothing else.
    """
    generator = torch.Generator().manual_seed(seed)
    short = count // 3
    return (
        *_different(lm, short, max(2, length // 2), generator),
        *_different(lm, count - short, length, generator),
    )


def draw_texts(lm: LanguageModel, count: int, length: int, seed: int) -> tuple[str, ...]:
    """Texts of so many tokens that the model makes up from nothing."""
    generator = torch.Generator().manual_seed(seed)
    found: list[str] = []
    for _ in range(0, count, TEXTS_AT_ONCE):
        some = min(TEXTS_AT_ONCE, count - len(found))
        found += _from_nothing(lm, some, length, generator)
    return tuple(text for text in found if text.strip())


def _different(lm: LanguageModel, count: int, length: int, generator: torch.Generator) -> list[str]:
    found: dict[str, None] = {}
    for _ in range(TRIES):
        missing = count - len(found)
        if missing <= 0:
            break
        texts = [_clean(text) for text in _from_nothing(lm, missing, length, generator)]
        found |= {f"{text}. ": None for text in texts if text}
    return list(found)


@fitted
def _from_nothing(lm: LanguageModel, count: int, length: int, generator: torch.Generator) -> list[str]:
    first = lm.tokenizer.bos_token_id
    start = lm.tokenizer.eos_token_id if first is None else first
    return _sample(lm, [(int(start),)] * count, length, generator)


@torch.no_grad()
def _sample(lm: LanguageModel, starts: Sequence[Sequence[int]], length: int, generator: torch.Generator) -> list[str]:
    rows = [list(start) for start in starts]
    while min(len(row) for row in rows) < length:
        batch = lm.batch(rows)
        logits = lm.logits_at(batch, torch.arange(len(rows), device=lm.device), batch.lengths - 1).cpu()
        best = logits.topk(TOP_K, dim=-1)
        picks = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
        for row, token in zip(rows, best.indices.gather(1, picks)[:, 0].tolist(), strict=True):
            row.append(token)
    return [str(lm.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]


def _clean(text: str) -> str:
    text = unicodedata.normalize("NFKD", text)
    text = text.replace("{", " ").replace("}", " ")
    return " ".join(text.split()).rstrip(".")
