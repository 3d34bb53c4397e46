"""Tails: rows from the input of a block on. What is below it stays as it is and is computed once.

Whoever trains something in the last blocks only runs those at every step. Nothing is approximated; sums may be taken
in another order. With an edit on that looks at prompts rows are read whole, see `gates`.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from editing_core.models.blocks import behind
from editing_core.models.hooks import answering, stopping_after, watching
from editing_core.models.language_model import LanguageModel
from editing_core.models.tokens import Batch, runs


@dataclass(frozen=True, eq=False)
class Piece:
    """Some rows that run together. looked: (n,) numbers of their looked tokens among those of all rows.

    rows, positions: (n,) where these stand. state, attended: (rows, tokens, d), what block `layer` reads and what its
    attention makes of that; None where rows are read whole.
    """

    lm: LanguageModel
    layer: int
    batch: Batch
    state: Tensor | None
    attended: Tensor | None
    rows: Tensor
    positions: Tensor
    looked: Tensor

    def hidden(self) -> Tensor:
        """(n, d) final hidden states; gradients flow to what was put into the blocks since."""
        lm, state, attended = self.lm, self.state, self.attended
        if state is None:
            return lm.hidden(self.batch)[self.rows, self.positions]
        wanted = torch.zeros_like(self.batch.ids, dtype=torch.bool)
        wanted[self.rows, self.positions] = True  # each token once, however often it is asked
        attention = lm.model.get_submodule(lm.architecture.attention_of(self.layer))
        below = behind(lm, self.layer - 1, state) if self.layer else nullcontext()
        answer = answering({attention: lambda *_, **__: (attended, None)})
        with below, answer, lm.looking_at(*wanted.nonzero(as_tuple=True)):
            return lm.hidden(self.batch)[self.rows, self.positions]


class Tail:
    """Kept states of rows, good for changes in block `layer` and above. looked: per row the tokens that are asked."""

    def __init__(
        self, lm: LanguageModel, layer: int, rows: Sequence[Sequence[int]], looked: Sequence[Sequence[int]]
    ) -> None:
        self.lm, self.layer, self.rows, self.looked = lm, layer, rows, looked
        self.starts = torch.tensor([0, *map(len, looked)]).cumsum(0).tolist()
        self.states: dict[int, tuple[Tensor, Tensor]] = {} if lm.gated else lm.fitting(self._states)

    @torch.no_grad()
    def _states(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Per row what the block reads, and what its attention makes of that, (tokens, d) each."""
        lm, names = self.lm, self.lm.architecture
        block, attention = names.block(self.layer), names.attention_of(self.layer)
        found = {}
        for numbers, batch in lm.batches(self.rows):
            with watching(lm.model, [attention], [block]) as seen, stopping_after(lm.model, attention):
                lm.hidden(batch)
            for row, n in enumerate(numbers):
                states = (seen[name][row, : len(self.rows[n])].clone() for name in (f"{block}.input", attention))
                found[n] = next(states), next(states)
        return found

    def pieces(self, numbers: Sequence[int]) -> list[Piece]:
        """Some rows in as many pieces as a backward pass asks for."""
        most = self.lm.tokens_per_backward(self.lm.layers - self.layer)
        parts = runs([len(self.rows[n]) for n in numbers], most)
        return [self._piece([numbers[i] for i in part]) for part in parts]

    def _piece(self, numbers: Sequence[int]) -> Piece:
        lm = self.lm
        ends = torch.tensor([min(self.looked[n]) + 1 for n in numbers], device=lm.device)
        batch = replace(lm.batch([self.rows[n] for n in numbers]), ends=ends)
        kept = zip(*(self.states[n] for n in numbers), strict=True) if self.states else ()
        state, attended = [pad_sequence(list(part), batch_first=True) for part in kept] or (None, None)
        asked = [(row, at, self.starts[n] + i) for row, n in enumerate(numbers) for i, at in enumerate(self.looked[n])]
        columns = (torch.tensor(column, device=lm.device) for column in zip(*asked, strict=True))
        return Piece(lm, self.layer, batch, state, attended, *columns)
