"""Replay: what a shift at one token cannot reach is computed once and handed out again afterwards.

A shift inside block `l`, at one token of a row, leaves as they are: all of the model below it; as models are
causal, everything left of that token, also above; and at the tokens behind it the output of block l, and what
block l + 1 makes of that token by token. So a target optimisation runs block l at that token only, behind its
attention, and from block l + 1 on the tokens behind it, which attend to kept keys and values. In the last block
only tokens that are looked at pass the MLP. Nothing is approximated; sums may be taken in another order.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editing_core.models.blocks import behind, entered
from editing_core.models.hooks import answering, at_on, kept_but_at, watching
from editing_core.models.language_model import LanguageModel
from editing_core.models.past import NO_OPENINGS, Openings, Past, causal, continued
from editing_core.models.tokens import Batch


@dataclass(frozen=True)
class Scene:
    """One row to replay.

    ids: all of it. shifted: the token that shifts are added at. looked: the tokens whose final state is wanted, at
    least one. opening, lead: it begins with so many tokens of that opening.
    """

    ids: tuple[int, ...]
    shifted: int
    looked: tuple[int, ...]
    opening: int = 0
    lead: int = 0

    @property
    def start(self) -> int:
        """The first token that is run again."""
        return min(self.shifted, *self.looked)

    @property
    def again(self) -> int:
        """How many tokens are run again."""
        return len(self.ids) - self.start


class Replay:
    """Kept states of scenes, good for shifts of the outputs of `sites`, all in one block.

    openings: what the scenes begin with. anchors: per site (scenes, width), its output
    at the shifted token without a shift.
    """

    def __init__(
        self, lm: LanguageModel, sites: Sequence[str], scenes: Sequence[Scene], openings: Openings = NO_OPENINGS
    ) -> None:
        parts = lm.runs([scene.again for scene in scenes])
        self.groups = [_Group(lm, sites, [scenes[n] for n in part], openings) for part in parts]
        self.parts = [torch.tensor(part, device=lm.device) for part in parts]
        self.looked = torch.tensor([len(scene.looked) for scene in scenes], device=lm.device)
        back = torch.cat(self.parts).argsort()
        self.anchors = {site: torch.cat([g.anchors[site] for g in self.groups])[back] for site in sites}
        self._sort()

    def run(self, shifts: Mapping[str, Tensor]) -> Tensor:
        """(looked tokens of all scenes in order, d) after the final norm, with shifts (scenes, width) added."""
        found = [
            group.run({site: shift[part] for site, shift in shifts.items()})
            for group, part in zip(self.groups, self.parts, strict=True)
        ]
        return torch.cat(found)[self.order]

    def select(self, scenes: Tensor) -> None:
        """Keep only some scenes. scenes: (scenes,) bool."""
        number = scenes.cumsum(0) - 1
        kept = [(group, part, scenes[part]) for group, part in zip(self.groups, self.parts, strict=True)]
        kept = [(group, part, mine) for group, part, mine in kept if bool(mine.any())]
        for group, _, mine in kept:
            if not bool(mine.all()):
                group.select(mine)
        self.groups = [group for group, *_ in kept]
        self.parts = [number[part[mine]] for _, part, mine in kept]
        self.looked = self.looked[scenes]
        self._sort()

    def _sort(self) -> None:
        """Where each looked token stands among those that the groups give one after the other."""
        played = torch.cat(self.parts)
        starts, counts = self.looked.cumsum(0) - self.looked, self.looked[played]
        within = torch.arange(int(counts.sum()), device=counts.device)
        within -= (counts.cumsum(0) - counts).repeat_interleave(counts)
        self.order = (starts[played].repeat_interleave(counts) + within).argsort()


class _Group:
    """Scenes of similar length, run together."""

    def __init__(self, lm: LanguageModel, sites: Sequence[str], scenes: Sequence[Scene], openings: Openings) -> None:
        self.lm, self.layer = lm, layer_of(lm, sites)
        self.down = lm.model.get_submodule(lm.architecture.down(self.layer))
        self.next = _first_steps(lm, self.layer + 1)
        self._record(sites, scenes, openings)

    @torch.no_grad()
    def _record(self, sites: Sequence[str], scenes: Sequence[Scene], openings: Openings) -> None:
        """Run all that stands behind the openings once, and keep what can be kept."""
        lm, block = self.lm, self.lm.architecture.block(self.layer)
        attention = self.lm.architecture.attention_of(self.layer)

        def numbers(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, device=lm.device)

        leads = numbers([scene.lead for scene in scenes])
        past = openings.before(numbers([scene.opening for scene in scenes]), leads)
        own = continued(lm, [scene.ids[scene.lead :] for scene in scenes], past, leads)
        cache = past.cache(lm.layers)
        with watching(lm.model, [*sites, block, attention, *self.next], [block]) as seen, self._looking(leads[:0]):
            lm.hidden(own, cache)
        starts, shifted = numbers([s.start - s.lead for s in scenes]), numbers([s.shifted - s.lead for s in scenes])
        self.rows = torch.arange(len(scenes), device=lm.device)

        def at_shifted(state: Tensor) -> Tensor:
            return state[at_on(state, self.rows, shifted)]

        self.anchors = {site: at_shifted(seen[site]).to(lm.device) for site in sites}
        self.entry = at_shifted(seen[f"{block}.input"])[:, None]
        self.attended = at_shifted(seen[attention])[:, None]
        lengths = own.lengths - starts
        positions = starts[:, None] + torch.arange(int(lengths.max()), device=lm.device)
        there = self.rows[:, None], positions.clamp(max=own.ids.shape[1] - 1)
        self.state = seen[block][at_on(seen[block], *there)]
        self.kept = {name: seen[name][at_on(seen[name], *there)] for name in self.next}
        earlier = (torch.arange(int(starts.max()), device=lm.device) < starts[:, None]).long()
        mask = torch.cat([past.mask, earlier], dim=1)
        self.past = Past.kept(cache, range(self.layer + 1, lm.layers), mask)
        seen_by = causal(mask, positions < own.lengths[:, None], lm.model.dtype)
        self.batch = Batch(own.ids[there], seen_by, lengths, there[1] + leads[:, None])
        self.shifted = shifted - starts
        looked = [(i, at - s.start) for i, s in enumerate(scenes) for at in s.looked]
        self.looked_row, self.looked_at = (numbers(column) for column in zip(*looked, strict=True))

    def run(self, shifts: Mapping[str, Tensor]) -> Tensor:
        """(looked tokens, d) with shifts (rows, width)."""
        lm = self.lm
        answers = {
            module: kept_but_at(module, self.kept[name], self.rows, self.shifted) for name, module in self.next.items()
        }
        with (
            behind(lm, self.layer, self._shifted(shifts)),
            answering(answers),
            self._looking(self.looked_row, self.looked_at),
        ):
            hidden = lm.hidden(self.batch, self.past.cache(lm.layers))
        return hidden[self.looked_row, self.looked_at]

    def _looking(self, rows: Tensor, positions: Tensor | None = None) -> AbstractContextManager[None]:
        """The last block spares what is not looked at, unless it is the one that is shifted."""
        if self.layer == self.lm.layers - 1:
            return nullcontext()
        return self.lm.looking_at(rows, rows if positions is None else positions)

    def _shifted(self, shifts: Mapping[str, Tensor]) -> Tensor:
        """(rows, tokens, d): the block's output with shifts."""
        names = self.lm.architecture
        at = at_on(self.state, self.rows, self.shifted)
        own = {site: shift.to(self.state)[:, None] for site, shift in shifts.items()}
        whole = own.pop(names.block(self.layer), None)
        if not own:
            assert whole is not None
            return self.state.index_put(at, whole[:, 0], accumulate=True)
        attended = self.attended.to(self.state.device) + own.get(names.attention_out_of(self.layer), 0)
        shift, run = own.get(names.down(self.layer)), self.down.forward

        def down(key: Tensor) -> Tensor:
            value: Tensor = run(key)
            return value if shift is None else value + shift.view_as(value)

        found = entered(self.lm, self.layer, self.entry, attended, {self.down: down})
        return self.state.index_put(at, (found if whole is None else found + whole)[:, 0])

    def select(self, rows: Tensor) -> None:
        """Keep only some rows. rows: (rows,) bool."""
        batch, number = self.batch, rows.cumsum(0) - 1
        lengths, before = batch.lengths[rows], self.past.slots
        width = int(lengths.max())
        assert batch.positions is not None
        self.batch = Batch(
            batch.ids[rows, :width],
            batch.mask[rows, :, :width, : before + width],
            lengths,
            batch.positions[rows, :width],
        )
        self.past = self.past.select(rows)

        def some(state: Tensor) -> Tensor:
            return state[rows.to(state.device), :width]

        self.state, self.entry, self.attended = some(self.state), some(self.entry), some(self.attended)
        self.kept = {name: some(kept) for name, kept in self.kept.items()}
        self.shifted, self.rows = self.shifted[rows], self.rows[: len(lengths)]
        mine = rows[self.looked_row]
        self.looked_row, self.looked_at = number[self.looked_row[mine]], self.looked_at[mine]


def layer_of(lm: LanguageModel, sites: Sequence[str]) -> int:
    """The one block in which all sites lie."""
    names = [lm.architecture.block(layer) for layer in range(lm.layers)]
    found = {i for i, name in enumerate(names) for site in sites if site == name or site.startswith(f"{name}.")}
    if len(found) != 1:
        raise ValueError(f"sites {list(sites)} do not lie in one block")
    return found.pop()


def _first_steps(lm: LanguageModel, layer: int) -> dict[str, nn.Module]:
    """The modules of a block that read its input token by token: projections into its attention, and the MLP beside it.

    Empty above the last block.
    """
    if layer >= lm.layers:
        return {}
    attention, out = lm.architecture.attention_of(layer), lm.architecture.attention_out_of(layer)
    inside = {f"{attention}.{name}": m for name, m in lm.model.get_submodule(attention).named_children()}
    found: dict[str, nn.Module] = {
        name: m for name, m in inside.items() if isinstance(m, nn.Linear | Conv1D) and name != out
    }
    mlp = lm.architecture.mlp_of(layer)
    if mlp and lm.architecture.parallel and layer < lm.layers - 1:  # the last block's MLP looks at a few tokens anyway
        found[mlp] = lm.model.get_submodule(mlp)
    return found
