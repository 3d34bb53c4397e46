"""Past: keys and values of tokens before rows, computed once and shared by all rows that stand behind them.

Rows of an edit begin alike: every fact's rows stand behind the same few prefixes. What attention needs of a
prefix depends on nothing behind it, so it is computed once per prefix and not once per row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from editing_core.models.language_model import LanguageModel
from editing_core.models.tokens import Batch


@dataclass(frozen=True, eq=False)
class Past:
    """Layer -> keys and values, each (rows, heads, slots, width), and mask (rows, slots), 1 where a slot counts."""

    layers: dict[int, tuple[Tensor, Tensor]]
    mask: Tensor

    @staticmethod
    def nothing(rows: int, device: torch.device) -> "Past":
        """No token before any row."""
        return Past({}, torch.zeros(rows, 0, dtype=torch.long, device=device))

    @property
    def slots(self) -> int:
        """Most tokens before any row."""
        return self.mask.shape[1]

    def select(self, rows: Tensor) -> "Past":
        """That of some rows, by numbers or truth values."""
        layers = {i: (k[rows.to(k.device)], v[rows.to(v.device)]) for i, (k, v) in self.layers.items()}
        return Past(layers, self.mask[rows])

    def cache(self, depth: int) -> DynamicCache:
        """For a forward of a model of so many blocks; blocks without an entry must not run their attention."""
        cache = DynamicCache()
        if self.slots:
            entries = [DynamicLayer() for _ in range(depth)]
            # The length of the past is read off the first entry, also where that block does not run.
            nothing = self.mask.new_zeros(1, 1, 1, 1).expand(len(self.mask), 1, self.slots, 1)
            for layer, (keys, values) in {0: (nothing, nothing), **self.layers}.items():
                entries[layer].lazy_initialization(keys, values)
                entries[layer].keys, entries[layer].values = keys, values
            cache.layers = list(entries)
        return cache

    @staticmethod
    def kept(cache: DynamicCache, layers: Sequence[int], mask: Tensor) -> "Past":
        """The first slots of a cache that a forward has filled, as many as mask (rows, slots) has."""
        width = mask.shape[1]
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for i in layers:
            entry = cache.layers[i]
            assert isinstance(entry, DynamicLayer)
            assert entry.keys is not None
            assert entry.values is not None
            found[i] = entry.keys[:, :, :width].contiguous(), entry.values[:, :, :width].contiguous()
        return Past(found, mask)


def continued(lm: LanguageModel, rows: Sequence[Sequence[int]], past: Past, before: Tensor) -> Batch:
    """Rows behind a past, padded on the right. before: (rows,) how many tokens of the past count."""
    batch = lm.batch(rows)
    if not past.slots:
        return batch
    lm.check_length(int((before + batch.lengths).max()))
    positions = before[:, None] + torch.arange(batch.ids.shape[1], device=lm.device)
    mask = torch.cat([past.mask, batch.mask], dim=1)
    if mask.shape[1] > lm.context:  # a window would count the empty slots between a short past and its row
        mask = causal(past.mask, batch.mask, lm.model.dtype)
    return Batch(batch.ids, mask, batch.lengths, positions.clamp(max=lm.context - 1))


def causal(past: Tensor, own: Tensor, dtype: torch.dtype) -> Tensor:
    """(rows, 1, tokens, slots + tokens), added to what attention compares: which token sees which.

    A forward makes it by itself, each time; rows that run often have it made once. past, own: (rows, slots) and
    (rows, tokens), which of them count.
    """
    slots, tokens = past.shape[1], own.shape[1]
    there = torch.cat([past.bool(), own.bool()], dim=1)[:, None, None]
    earlier = torch.ones(tokens, slots + tokens, dtype=torch.bool, device=own.device).tril(slots)
    return torch.zeros_like(there & earlier, dtype=dtype).masked_fill(~(there & earlier), torch.finfo(dtype).min)


@dataclass(frozen=True, eq=False)
class Openings:
    """Token rows that other rows begin with, and their past under the weights as they were; None if all are empty."""

    ids: tuple[tuple[int, ...], ...] = ((),)
    past: Past | None = None

    @staticmethod
    @torch.no_grad()
    def run(lm: LanguageModel, ids: Sequence[Sequence[int]]) -> "Openings":
        """Run each of them once."""
        rows = tuple(tuple(row) for row in ids)
        longest = max(map(len, rows), default=0)
        if not longest:
            return Openings(rows)
        some = [n for n, row in enumerate(rows) if row]
        lengths = torch.tensor([len(row) for row in rows], device=lm.device)
        mask = (torch.arange(longest, device=lm.device) < lengths[:, None]).long()
        nowhere = lengths[:0]
        layers: dict[int, tuple[Tensor, Tensor]] = {}
        for numbers in lm.runs([len(rows[n]) for n in some]):
            batch = lm.batch([rows[some[i]] for i in numbers])
            cache = Past.nothing(len(numbers), lm.device).cache(lm.layers)
            with lm.looking_at(nowhere, nowhere):
                lm.hidden(batch, cache)
            here, width = torch.tensor([some[i] for i in numbers], device=lm.device), batch.ids.shape[1]
            for i, found in Past.kept(cache, range(lm.layers), batch.mask).layers.items():
                if i not in layers:
                    keys, values = (t.new_zeros(len(rows), t.shape[1], longest, t.shape[3]) for t in found)
                    layers[i] = keys, values
                for whole, part in zip(layers[i], found, strict=True):
                    whole[here.to(whole.device), :, :width] = part
        return Openings(rows, Past(layers, mask))

    def lead(self, number: int, row: Sequence[int]) -> int:
        """With how many tokens of an opening the row begins."""
        opening = self.ids[number]
        differing = (i for i, (a, b) in enumerate(zip(row, opening, strict=False)) if a != b)
        return next(differing, min(len(row), len(opening)))

    def before(self, numbers: Tensor, leads: Tensor) -> Past:
        """The past of new rows (rows,): the first `leads` tokens of the openings of these numbers."""
        if self.past is None:
            return Past.nothing(len(numbers), numbers.device)
        width = int(leads.max())
        mask = (torch.arange(width, device=leads.device) < leads[:, None]).long()

        def cut(whole: Tensor) -> Tensor:
            return whole[numbers.to(whole.device), :, :width]

        return Past({i: (cut(keys), cut(values)) for i, (keys, values) in self.past.layers.items()}, mask)


NO_OPENINGS = Openings()
