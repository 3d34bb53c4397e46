"""Replay: run the lower blocks of a model once, and hand their output out again afterwards.

What is added at or above a block never changes the states below it, so a target optimisation runs only
the blocks above. Exact: the same numbers enter the same operations.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from editing_core.models.hooks import state_of
from editing_core.models.language_model import LanguageModel


class Replay:
    """The kept output of the last block that all of `sites` leave unchanged, and all blocks up to it."""

    def __init__(self, lm: LanguageModel, sites: tuple[str, ...]) -> None:
        last = min(_unchanged(lm, site) for site in sites)
        self.blocks = [lm.model.get_submodule(lm.architecture.block(i)) for i in range(last + 1)]
        self.state: Tensor | None = None
        self.as_tuple = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep what the last block gives in the forward pass inside."""

        def keep(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            self.state, self.as_tuple = state_of(output).detach(), isinstance(output, tuple)

        handles = [self.blocks[-1].register_forward_hook(keep, prepend=True)] if self.blocks else []
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Inside, the kept blocks are not run: they give the kept state, and hooks on them still act."""

        def forward(*_args: object, **_kwargs: object) -> Tensor | tuple[Tensor]:
            assert self.state is not None, "nothing was recorded"
            return (self.state,) if self.as_tuple else self.state

        try:
            for block in self.blocks:
                block.forward = forward
            yield
        finally:
            for block in self.blocks:
                block.__dict__.pop("forward", None)

    def select(self, rows: Tensor, length: int) -> None:
        """Keep only some rows and the first `length` tokens. rows: (rows,) bool."""
        if self.state is not None:
            self.state = self.state[rows, :length]


def _unchanged(lm: LanguageModel, site: str) -> int:
    """The last block whose own computation ignores a change of `site`'s output; -1 when there is none."""
    for layer in range(lm.layers):
        block = lm.architecture.block(layer)
        if site == block:
            return layer
        if site.startswith(f"{block}."):
            return layer - 1
    return -1
