"""Replay: what a change at one token cannot reach is computed once and handed out again afterwards.

A change of some modules' output at a row's token `start` leaves two things as they are: all blocks below
those modules, and, as models are causal, every token left of `start`. A target optimisation therefore runs
only the blocks above, and only the tokens from `start` on, which attend to kept keys and values. Nothing is
approximated; sums may be taken in another order.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from editing_core.models.hooks import state_of
from editing_core.models.language_model import LanguageModel
from editing_core.models.tokens import Batch


class Replay:
    """Kept states of one batch of rows, good for changes at `sites` from each row's `start` on."""

    def __init__(self, lm: LanguageModel, sites: tuple[str, ...]) -> None:
        self.lm, self.last = lm, min(_unchanged(lm, site) for site in sites)
        self.blocks = [lm.model.get_submodule(lm.architecture.block(i)) for i in range(self.last + 1)]

    @torch.no_grad()
    def record(self, batch: Batch, starts: Tensor) -> Tensor:
        """Run whole rows once and keep what can be kept. starts: (rows,). Gives (rows, tokens, d)."""
        kept: list[Tensor] = []
        self.as_tuple = False

        def keep(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            kept.append(state_of(output).detach())
            self.as_tuple = isinstance(output, tuple)

        handles = [self.blocks[-1].register_forward_hook(keep, prepend=True)] if self.blocks else []
        cache = DynamicCache()
        try:
            hidden = self.lm.hidden(batch, cache)
        finally:
            for handle in handles:
                handle.remove()
        before, width = int(starts.max()), int((batch.lengths - starts).max())
        row = torch.arange(len(starts), device=starts.device)[:, None]
        positions = starts[:, None] + torch.arange(width, device=starts.device)
        here = positions.clamp(max=batch.ids.shape[1] - 1)
        past = torch.arange(before, device=starts.device) < starts[:, None]
        mask = torch.cat([past.long(), (positions < batch.lengths[:, None]).long()], dim=1)
        self.batch = Batch(batch.ids[row, here], mask, batch.lengths - starts, here)
        self.state = kept[0][row, here] if kept else None
        # The length of the past is read off the first layer's entry, so that one is kept as well.
        layers = sorted({0, *range(self.last + 1, self.lm.layers)})
        self.past: dict[int, tuple[Tensor, Tensor]] = {}
        for i in layers:
            layer = cache.layers[i]
            assert isinstance(layer, DynamicLayer)
            assert layer.keys is not None
            assert layer.values is not None
            self.past[i] = layer.keys[:, :, :before], layer.values[:, :, :before]
        return hidden

    def run(self) -> Tensor:
        """(rows, tokens from `start` on, d) after the final norm, with hooks on changed modules at work."""
        cache = DynamicCache()
        for layer, (keys, values) in self.past.items():
            cache.update(keys, values, layer)
        with self._playing():
            return self.lm.hidden(self.batch, cache)

    def select(self, rows: Tensor) -> None:
        """Keep only some rows. rows: (rows,) bool."""
        batch = self.batch
        lengths, before = batch.lengths[rows], batch.mask.shape[1] - batch.ids.shape[1]
        width = int(lengths.max())
        assert batch.positions is not None
        self.batch = replace(
            batch,
            ids=batch.ids[rows, :width],
            mask=batch.mask[rows, : before + width],
            lengths=lengths,
            positions=batch.positions[rows, :width],
        )
        self.state = self.state[rows, :width] if self.state is not None else None
        self.past = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self.past.items()}

    @contextmanager
    def _playing(self) -> Iterator[None]:
        """Inside, the blocks below are not run: they give the kept state, and hooks on them still act."""

        def forward(*_args: object, **_kwargs: object) -> Tensor | tuple[Tensor]:
            assert self.state is not None
            return (self.state,) if self.as_tuple else self.state

        try:
            for block in self.blocks:
                block.forward = forward
            yield
        finally:
            for block in self.blocks:
                block.__dict__.pop("forward", None)


def _unchanged(lm: LanguageModel, site: str) -> int:
    """The last block whose own computation ignores a change of `site`'s output; -1 when there is none."""
    for layer in range(lm.layers):
        block = lm.architecture.block(layer)
        if site == block:
            return layer
        if site.startswith(f"{block}."):
            return layer - 1
    return -1
