"""Staged: the keys of one edited layer after the other, while the layers below are being changed.

Keys of a layer are measured with the layers below already written. Only their down-projections change, so rows
need not start anew: they wait where a down-projection reads its key, and go on from there with its new weights.
A prefix that many rows share is run once. Nothing is approximated; rows whose states would take more memory than
the model's room start anew at every layer.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from editing_core.editors.steps.keys import SubjectRows
from editing_core.models import memory
from editing_core.models.blocks import behind, entered
from editing_core.models.hooks import Forward, stopping_after, stopping_before, watching
from editing_core.models.language_model import LanguageModel
from editing_core.models.past import Openings, Past, continued


@dataclass(frozen=True, eq=False)
class _Rest:
    """Where rows wait: inside a block, in front of its down-projection.

    state: the block's input, attended: its attention's output, both (rows, tokens, d); key: (rows, tokens, d_in).
    """

    layer: int
    state: Tensor
    attended: Tensor
    key: Tensor

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(t.numel() * t.element_size() for t in (self.state, self.attended, self.key))


class Staged:
    """Rows that end with their subjects, moved upwards layer by layer; rows of equal tokens are one.

    room: bytes that waiting rows may take together; as `memory` says without.
    """

    def __init__(self, lm: LanguageModel, rows: SubjectRows, room: int | None = None) -> None:
        self.lm, self.templates = lm, rows.templates
        self.room = memory.room_bytes(lm.device) if room is None else room
        numbers: dict[tuple[int, ...], int] = {}
        self.place = torch.tensor([numbers.setdefault(ids, len(numbers)) for ids in rows.ids])
        template = {ids: i % rows.templates for i, ids in enumerate(rows.ids)}
        self.openings = _Openings(lm, rows.openings)
        unique = [_Row(ids, template[ids], self.openings.lead(template[ids], ids)) for ids in numbers]
        runs = lm.runs([row.own for row in unique])
        self.parts = [_Part(lm, [unique[n] for n in run]) for run in runs]
        self.order = torch.tensor([n for run in runs for n in run]).argsort()

    @torch.no_grad()
    def keys(self, layer: int) -> Tensor:
        """(n_records, n_templates, d_in) float64: keys at the subjects' ends. Layers are asked in rising order."""
        self.openings.advance(layer)
        found, taken = [], 0
        for part in self.parts:
            past = self.openings.before(part)
            rest = part.advance(layer, past, past.cache(self.lm.layers))
            found.append(part.at_end(rest.key))
            taken += rest.size
            part.rest = rest if taken <= self.room else None
        return self._sorted(found)

    @torch.no_grad()
    def outputs(self, site: str) -> Tensor:
        """(n_records, n_templates, width) float64: output there of a module above the last keys, without openings."""
        return self._sorted([part.at_end(part.output(site, self.openings.before(part))) for part in self.parts])

    def _sorted(self, parts: list[Tensor]) -> Tensor:
        states = torch.cat(parts)[self.order][self.place]
        return states.reshape(-1, self.templates, states.shape[-1])


@dataclass(frozen=True)
class _Row:
    """Token ids that begin with `lead` tokens of an opening."""

    ids: tuple[int, ...]
    opening: int = 0
    lead: int = 0

    @property
    def own(self) -> int:
        """How many tokens stand behind the opening."""
        return len(self.ids) - self.lead


class _Part:
    """Rows of similar length, and where they wait."""

    def __init__(self, lm: LanguageModel, rows: Sequence[_Row]) -> None:
        self.lm, self.own = lm, [row.ids[row.lead :] for row in rows]
        self.numbers = torch.tensor([row.opening for row in rows], device=lm.device)
        self.leads = torch.tensor([row.lead for row in rows], device=lm.device)
        self.lengths = torch.tensor([len(ids) for ids in self.own], device=lm.device)
        self.rest: _Rest | None = None

    @property
    def first(self) -> int:
        """The first block that runs when they go on."""
        return self.rest.layer + 1 if self.rest else 0

    def advance(self, layer: int, past: Past, cache: DynamicCache) -> _Rest:
        """Go on to a layer's down-projection, from where they wait or from the beginning."""
        names, model = self.lm.architecture, self.lm.model
        block, attention, down = names.block(layer), names.attention_of(layer), names.down(layer)
        with watching(model, outputs=[attention], inputs=[block, down]) as seen, stopping_before(model, down):
            self._go_on(past, cache)
        return _Rest(layer, seen[f"{block}.input"], seen[attention], seen[f"{down}.input"])

    def output(self, site: str, past: Past) -> Tensor:
        """(rows, tokens, width): output of a module, from where they wait or from the beginning."""
        with watching(self.lm.model, outputs=[site]) as seen, stopping_after(self.lm.model, site):
            self._go_on(past, past.cache(self.lm.layers))
        return seen[site]

    def _go_on(self, past: Past, cache: DynamicCache) -> None:
        """A forward from where they wait; the down-projection they wait for has the weights it has now."""
        lm, rest = self.lm, self.rest
        with ExitStack() as stack:
            if rest is not None:
                state = entered(lm, rest.layer, rest.state, rest.attended, self._answers(rest))
                stack.enter_context(behind(lm, rest.layer, state))
            lm.hidden(continued(lm, self.own, past, self.leads), cache)

    def _answers(self, rest: _Rest) -> dict[nn.Module, Forward]:
        """The MLP gives what its down-projection makes of the kept key; where it is no module, that alone does."""
        names, modules = self.lm.architecture, self.lm.model.get_submodule
        down, mlp = modules(names.down(rest.layer)), names.mlp_of(rest.layer)
        if mlp:
            return {modules(mlp): lambda _: down(rest.key)}
        run = down.forward
        return {down: lambda key: run(rest.key.view_as(key))}

    def at_end(self, states: Tensor) -> Tensor:
        """(rows, width) float64 of (rows, tokens, width)."""
        rows = torch.arange(len(states), device=states.device)
        return states[rows, (self.lengths - 1).to(states.device)].double().to(self.lm.device)


class _Openings:
    """What rows begin with, moved upwards before them: keys and values of every layer so far."""

    def __init__(self, lm: LanguageModel, ids: Sequence[tuple[int, ...]]) -> None:
        self.lm, self.known = lm, Openings(tuple(ids))
        self.part = _Part(lm, [_Row(row or (0,)) for row in ids]) if any(ids) else None
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def lead(self, number: int, ids: Sequence[int]) -> int:
        """With how many tokens of an opening a row begins; it has at least one of its own."""
        return min(self.known.lead(number, ids), len(ids) - 1)

    def advance(self, layer: int) -> None:
        """Go on to a layer's down-projection."""
        if self.part is None:
            return
        nothing = Past.nothing(len(self.part.own), self.lm.device)
        cache, first = nothing.cache(self.lm.layers), self.part.first
        self.part.rest = self.part.advance(layer, nothing, cache)
        width = int(self.part.lengths.max())
        self.mask = (torch.arange(width, device=self.lm.device) < self.part.lengths[:, None]).long()
        self.layers |= Past.kept(cache, range(first, layer + 1), self.mask).layers

    def before(self, part: _Part) -> Past:
        """The past of rows in the blocks that run when they go on."""
        if self.part is None:
            return Past.nothing(len(part.own), self.lm.device)
        past = Past({i: kept for i, kept in self.layers.items() if i >= part.first}, self.mask)
        return Openings(self.known.ids, past).before(part.numbers, part.leads)
