"""Reading: logits at a few positions of many rows, each beginning that rows share computed once.

Prompts of one relation begin alike, the rows of an edit stand behind the same prefixes, and both objects stand behind
one prompt. A beginning that is worth it is run once, and the rows that have it attend to its keys and values. Rows of
similar length are run together. Nothing is approximated; sums may be taken in another order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from editing_core.models.language_model import LanguageModel
from editing_core.models.past import Openings, continued
from editing_core.models.tokens import FORWARD_COST

Ids = tuple[int, ...]


def read(
    lm: LanguageModel, rows: Sequence[Ids], asked: Sequence[Sequence[int]], ends: Sequence[int] | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Numbers of rows, and their logits at the positions asked of each, in the same order: (positions, vocabulary).

    Every row comes once; asked: at least one position per row. ends: how many tokens of each row are its prompt; edits
    that look at prompts want to know, and with such an edit on rows are read whole. Without, up to the first asked.
    """
    ends = [min(at) + 1 for at in asked] if ends is None else ends
    if lm.gated:
        for numbers, batch in lm.batches(rows, ends=ends):
            pairs = [(row, at) for row, n in enumerate(numbers) for at in asked[n]]
            row, at = (torch.tensor(column, device=lm.device) for column in zip(*pairs, strict=True))
            yield numbers, lm.logits_at(batch, row, at)
        return
    before = [row[: min(at)] for row, at in zip(rows, asked, strict=True)]
    order = sorted(range(len(rows)), key=lambda n: rows[n])
    leads = shared_beginnings([before[n] for n in order])
    for chunk in _chunks(lm, order, leads, rows):
        yield from _read(lm, chunk, rows, asked)


@dataclass(frozen=True)
class _Chunk:
    """Row numbers with the lead of each, and what is computed for them once."""

    numbers: list[int]
    leads: list[int]
    openings: list[Ids]
    opening: list[int]


def _chunks(lm: LanguageModel, order: Sequence[int], leads: Sequence[int], rows: Sequence[Ids]) -> Iterator[_Chunk]:
    """Chunks of sorted rows whose openings, kept padded to the longest, are no more tokens than half a forward's."""
    most = lm.tokens_per_forward // 2
    number: dict[Ids, int] = {}
    chunk, longest = _Chunk([], [], [], []), 0
    for n, lead in zip(order, leads, strict=True):
        opening = rows[n][:lead]
        if opening not in number and chunk.openings and (len(chunk.openings) + 1) * max(longest, lead) > most:
            yield chunk
            chunk, number, longest = _Chunk([], [], [], []), {}, 0
        if opening not in number:
            number[opening] = len(chunk.openings)
            chunk.openings.append(opening)
            longest = max(longest, lead)
        chunk.numbers.append(n)
        chunk.leads.append(lead)
        chunk.opening.append(number[opening])
    yield chunk


def _read(
    lm: LanguageModel, chunk: _Chunk, rows: Sequence[Ids], asked: Sequence[Sequence[int]]
) -> Iterator[tuple[list[int], Tensor]]:
    openings = Openings.run(lm, chunk.openings)
    own = [rows[n][lead:] for n, lead in zip(chunk.numbers, chunk.leads, strict=True)]
    for run in _runs(lm, [len(ids) for ids in own], chunk.leads):
        numbers = [chunk.numbers[i] for i in run]
        leads = torch.tensor([chunk.leads[i] for i in run], device=lm.device)
        past = openings.before(torch.tensor([chunk.opening[i] for i in run], device=lm.device), leads)
        pairs = [(row, at - chunk.leads[i]) for row, i in enumerate(run) for at in asked[chunk.numbers[i]]]
        row, at = (torch.tensor(column, device=lm.device) for column in zip(*pairs, strict=True))
        batch = continued(lm, [own[i] for i in run], past, leads)
        yield numbers, lm.logits_at(batch, row, at, past.cache(lm.layers) if past.slots else None)


def _runs(lm: LanguageModel, lengths: Sequence[int], leads: Sequence[int]) -> Iterator[list[int]]:
    """Runs of similar length; what rows attend to in front of them takes memory as their own tokens do."""
    for run in lm.runs(lengths):
        each = max(lengths[i] for i in run) + max(leads[i] for i in run)
        size = max(1, lm.tokens_per_forward // each)
        yield from (run[at : at + size] for at in range(0, len(run), size))


def shared_beginnings(rows: Sequence[Ids], worth: int = FORWARD_COST) -> list[int]:
    """How many tokens of each row, of sorted rows, are best computed once for all that begin with them.

    Chosen so that the fewest tokens are computed, the beginnings themselves included; none where fewer than `worth`
    would be saved.
    """
    common = [_common(a, b) for a, b in pairwise(rows)]

    @cache
    def best(first: int, last: int, given: int) -> tuple[int, tuple[int, ...]]:
        """Tokens saved in rows first..last, and the lead of each, where a beginning of `given` tokens is there."""
        if first == last:
            return given, (given,)
        together = min(common[first:last])
        ends = [i for i in range(first, last) if common[i] == together] + [last]
        starts = [first, *(end + 1 for end in ends[:-1])]
        ways = [(given, 0)] + ([(together, together)] if together > given else [])
        found = []
        for lead, cost in ways:
            parts = [best(start, end, lead) for start, end in zip(starts, ends, strict=True)]
            found.append((sum(saved for saved, _ in parts) - cost, tuple(n for _, leads in parts for n in leads)))
        return max(found, key=lambda way: way[0])

    saved, leads = best(0, len(rows) - 1, 0) if rows else (0, ())
    return list(leads) if saved >= max(worth, 1) else [0] * len(rows)


def _common(a: Ids, b: Ids) -> int:
    """With how many equal tokens two rows begin."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
