"""Context templates: random prefixes, so that an edit does not overfit the beginning of a sentence.

Drawn once from the unedited model and then part of the run's record. Source: Meng et al. 2022 (ROME),
https://arxiv.org/abs/2202.05262; lengths and counts as in the published code.
"""

import unicodedata
from dataclasses import dataclass

import torch

from editing_core.models.language_model import LanguageModel, fitted
from editing_core.models.tokens import encode

STARTERS = ("The", "Therefore", "Because", "I", "You")
TOP_K = 5


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
    for length, count in lengths:
        starters = [STARTERS[i % len(STARTERS)] for i in range(count)]
        out += [f"{_clean(text)}. {{}}" for text in _sample(lm, starters, length, generator)]
    return tuple(out)


@torch.no_grad()
def _sample(lm: LanguageModel, starters: list[str], length: int, generator: torch.Generator) -> list[str]:
    rows = [list(encode(lm.tokenizer, starter)) for starter in starters]
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
