"""Gates: how an edit that looks at prompts knows, in the middle of a forward, what is read and where prompts end.

A decision is a function of the prompt alone, never of the answer behind it that is being scored: it is taken once for
a row, holds for all positions, and tokens that continue a text already begun take none. Rows have to be read whole for
that, so whoever shares beginnings or skips tokens asks `gated` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from editing_core.models.edit import counted

if TYPE_CHECKING:
    from editing_core.models.language_model import LanguageModel
    from editing_core.models.tokens import Batch


@dataclass(frozen=True, eq=False)
class Reading:
    """What a forward reads. ids: (rows, tokens). first, last: (rows,) index of each prompt's first and last token.

    going_on: the tokens continue texts whose prompts were read before.
    """

    ids: Tensor
    first: Tensor
    last: Tensor
    going_on: bool

    @property
    def prompt(self) -> Tensor:
        """(rows, tokens), true where a token belongs to its row's prompt."""
        at = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (at >= self.first[:, None]) & (at <= self.last[:, None])


_BATCH: WeakKeyDictionary[nn.Module, Batch] = WeakKeyDictionary()
_GATED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def gated(model: nn.Module) -> bool:
    """Whether the model carries an edit that looks at prompts."""
    return _GATED.get(model, 0) > 0


@contextmanager
def noted(model: nn.Module, batch: Batch) -> Iterator[None]:
    """Inside, a forward of the model reads this batch."""
    before = _BATCH.get(model)
    _BATCH[model] = batch
    try:
        yield
    finally:
        if before is None:
            del _BATCH[model]
        else:
            _BATCH[model] = before


@contextmanager
def reading(lm: LanguageModel) -> Iterator[Callable[[], Reading]]:
    """Inside, the model carries a gated edit; what is given tells its hooks what the present forward reads."""
    model, now = lm.model, list[Reading]()

    def look(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        past = kwargs.get("past_key_values")
        now[:] = [_told(ids, _BATCH.get(model), past is not None and past.get_seq_length() > 0)]

    # Not of `base_model`, which some families step over when the whole model is called
    handle = model.get_decoder().register_forward_pre_hook(look, with_kwargs=True)
    _GATED[model] = _GATED.get(model, 0) + 1
    try:
        with counted(model):
            yield lambda: now[0]
    finally:
        _GATED[model] -= 1
        handle.remove()


def _told(ids: Tensor, batch: Batch | None, going_on: bool) -> Reading:
    """Without a batch, as in the library's own generation, rows are prompts without padding."""
    rows, tokens = ids.shape
    first = torch.zeros(rows, dtype=torch.long, device=ids.device)
    if batch is None or going_on:
        return Reading(ids, first, first + tokens - 1, going_on)
    first = batch.mask.argmax(1)  # not zero where rows are padded on the left
    ends = batch.lengths if batch.ends is None else batch.ends
    return Reading(ids, first, first + ends - 1, going_on)
