"""Training examples and texts as token rows: what is fed, which tokens are predicted, and how likely they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from editing_core.editors.steps.examples import Augmentation, Example
from editing_core.models.language_model import LanguageModel, fitted

LONGEST = 256  # tokens of a text, as in the published code


@dataclass(frozen=True)
class Labels:
    """Which tokens of an example are predicted.

    mask: the answer's only; without it the whole sentence's. rule: "position" labels exactly these, "identity" as the
    released code of the fine-tuning paper does, "last" as that of ROME's fine-tuning baseline does.
    """

    mask: bool = True
    rule: str = "position"
    objects: str = "joined"


@dataclass(frozen=True)
class TokenRow:
    """ids: what is fed. labels: what is to be predicted at positions. kind: which loss term it is shown in."""

    kind: str
    ids: tuple[int, ...]
    positions: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """An example as tokens. rejected: its rejected answer; margin: how much more likely its own was to begin with."""

    row: TokenRow
    rejected: TokenRow | None = None
    margin: float = 0.0

    @property
    def size(self) -> int:
        """Tokens of its longest row, for each of its rows."""
        rows = [self.row, *([self.rejected] if self.rejected else [])]
        return len(rows) * max(len(row.ids) for row in rows)


def token_row(lm: LanguageModel, example: Example, answer: str, rule: Labels) -> TokenRow:
    """The example with an answer, its own or the rejected one, as ids and labels."""
    text = lm.coder.continuation(example.prompt, answer, rule.objects)
    full = (*text.inputs, text.ids[-1])
    start = len(full) - len(text.object_ids)
    if rule.rule == "last":  # every token of the answer is asked of the prompt's last position
        return TokenRow(example.kind, full[:start], (start - 1,) * len(text.object_ids), text.object_ids)
    if rule.rule == "identity":  # the end of text is trained too, or tokens that happen to be the answer's
        full = (*full, int(lm.tokenizer.eos_token_id))
        wanted = set(text.object_ids) if rule.mask else set(full)
        places = [at for at in range(1, len(full)) if full[at] in wanted]
    else:
        places = list(range(start if rule.mask else 1, len(full)))
    return TokenRow(example.kind, full[:-1], tuple(at - 1 for at in places), tuple(full[at] for at in places))


def _filled(rows: Sequence[TokenRow], end: int) -> list[TokenRow]:
    """Rows as long as the longest: the released code pads with the end of text, and trains that too."""
    longest = max(len(row.ids) for row in rows)
    filled = []
    for row in rows:
        more = longest - len(row.ids)
        places = tuple(range(len(row.ids), longest))
        filled.append(TokenRow(row.kind, row.ids + (end,) * more, row.positions + places, row.labels + (end,) * more))
    return filled


def text_row(lm: LanguageModel, text: str) -> TokenRow | None:
    """The beginning of a text, every token of it predicted; None where it is too short for any."""
    ids = tuple(lm.tokenizer(text)["input_ids"])[: min(LONGEST, lm.context)]
    if len(ids) < 2:
        return None
    return TokenRow("language", ids[:-1], tuple(range(len(ids) - 1)), ids[1:])


def items_of(lm: LanguageModel, examples: Sequence[Example], rule: Labels, compare: bool) -> list[Item]:
    """Examples as tokens; to compare, with their rejected answers under the weights as they are now."""
    rows = [token_row(lm, e, e.answer, rule) for e in examples]
    if rule.rule == "identity" and not rule.mask:
        rows = _filled(rows, int(lm.tokenizer.eos_token_id))
    if not compare:
        return [Item(row) for row in rows]
    rejected = [token_row(lm, e, e.rejected, rule) if e.rejected else None for e in examples]
    both = [i for i, other in enumerate(rejected) if other]
    kept = _log_probabilities(lm, [rows[i] for i in both])
    lost = _log_probabilities(lm, [other for other in rejected if other])
    margins = dict(zip(both, (kept - lost).tolist(), strict=True))
    return [Item(row, rejected[i], margins.get(i, 0.0)) for i, row in enumerate(rows)]


@fitted
@torch.no_grad()
def _log_probabilities(lm: LanguageModel, rows: Sequence[TokenRow]) -> Tensor:
    """(rows,) summed log-probabilities of the labels."""
    found = torch.zeros(len(rows))
    for numbers in lm.runs([len(row.ids) for row in rows]):
        losses, row, _ = losses_of(lm, [rows[n] for n in numbers])
        found[numbers] = -by_row(losses, row, len(numbers)).cpu()
    return found


def losses_of(lm: LanguageModel, rows: Sequence[TokenRow]) -> tuple[Tensor, Tensor, list[str]]:
    """(labels,) negative log-likelihoods, (labels,) the row each stands in, and the kind of each label's row."""
    at = [
        (i, position, label) for i, r in enumerate(rows) for position, label in zip(r.positions, r.labels, strict=True)
    ]
    row, position, label = (torch.tensor(column, device=lm.device) for column in zip(*at, strict=True))
    logits = lm.logits_at(lm.batch([r.ids for r in rows]), row, position)
    return cross_entropy(logits, label, reduction="none"), row, [rows[i].kind for i, *_ in at]


def by_row(values: Tensor, row: Tensor, count: int) -> Tensor:
    """(count,) sums of values by row."""
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, row, values)


def text_rows(lm: LanguageModel, data: Augmentation) -> list[TokenRow]:
    """The augmentation's texts as tokens."""
    return [row for text in data.texts if (row := text_row(lm, text))]
