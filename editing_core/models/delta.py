"""WeightDelta: an edit of weights as a value, parameter name -> update, mostly as low-rank factors.

`with delta.applied(lm): ...` puts it on and takes it off again by copying the originals back, so the
model is bit-equal afterwards, also after an error or a cancel. Adding and subtracting would not be:
several percent of the entries differ in the last bit. Where there are no numbers to add to, in packed and
offloaded weights, the update is carried beside them, see `slots`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from editing_core.errors import BadRequest, NotFinite
from editing_core.models.edit import Edit, Findings, Proof, counted
from editing_core.models.rewritten import findings_of, rewritten
from editing_core.models.slots import Slot

if TYPE_CHECKING:
    from editing_core.models.language_model import LanguageModel

WIDEST = 1024  # rows or columns of a dense update whose rank is still found


@dataclass(frozen=True, eq=False)
class LowRank:
    """An update `left @ right`: left (d_out, r), right (r, d_in), in maths orientation y = W k."""

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        if self.left.dim() != 2 or self.right.dim() != 2 or self.left.shape[1] != self.right.shape[0]:
            raise ValueError(f"factors {tuple(self.left.shape)} and {tuple(self.right.shape)} have no product")

    @property
    def shape(self) -> tuple[int, ...]:
        """(d_out, d_in), known without making the product."""
        return self.left.shape[0], self.right.shape[1]

    def dense(self) -> Tensor:
        """(d_out, d_in)."""
        return self.left @ self.right

    def plus(self, other: Update) -> Update:
        """Factors side by side, or dense as soon as one of the two is."""
        if isinstance(other, LowRank):
            left = torch.cat([self.left, other.left], dim=1)
            return LowRank(left, torch.cat([self.right, other.right], dim=0))
        return other.plus(self)

    def scaled(self, factor: float) -> LowRank:
        """The update times a number."""
        return LowRank(self.left * factor, self.right)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved."""
        return {"left": self.left, "right": self.right}

    def rank(self) -> int:
        """Numerical rank, from the r x r core and never from the full matrix."""
        if self.left.shape[1] == 0:
            return 0
        core = torch.linalg.qr(self.left.double()).R @ torch.linalg.qr(self.right.double().T).R.T
        return int(torch.linalg.matrix_rank(core))


@dataclass(frozen=True, eq=False)
class Dense:
    """An update stored whole: value (d_out, d_in) in maths orientation, or (d,) for a bias or norm."""

    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(d_out, d_in) or (d,)."""
        return tuple(self.value.shape)

    def dense(self) -> Tensor:
        """The value itself."""
        return self.value

    def plus(self, other: Update) -> Dense:
        """The sum, dense."""
        return Dense(self.value + other.dense())

    def scaled(self, factor: float) -> Dense:
        """The update times a number."""
        return Dense(self.value * factor)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved."""
        return {"value": self.value}

    def rank(self) -> int | None:
        """Numerical rank, 1 of a vector that is not zero; None where finding it would take minutes."""
        if self.value.dim() == 1:
            return int(bool(self.value.any()))
        if min(self.value.shape) > WIDEST:
            return None
        return int(torch.linalg.matrix_rank(self.value.double()))


Update = LowRank | Dense


class _Tiles:
    """Rows of an update as a slot's rows lie, float64 on their device: it is never there whole."""

    def __init__(self, update: Update, turned: bool, device: torch.device) -> None:
        self.update, self.turned, self.device = update, turned, device
        if isinstance(update, LowRank):
            self.left, self.right = (t.to(device, torch.float64) for t in (update.left, update.right))

    def __getitem__(self, rows: slice) -> Tensor:
        if isinstance(self.update, LowRank):
            return (self.left @ self.right[:, rows]).T if self.turned else self.left[rows] @ self.right
        value = self.update.value.T if self.turned else self.update.value
        return value[rows].to(self.device, torch.float64)


def _add(slot: Slot, update: Update) -> None:
    """A function of its own, because an edit that stays on keeps what its frame holds."""
    assert slot.parameter is not None
    tiles = _Tiles(update, slot.turned, slot.parameter.device)
    for rows, before in slot.rows():
        slot.parameter[rows] = _sum(before, tiles[rows])


def _sum(parameter: Tensor, update: Tensor) -> Tensor:
    """Parameter plus update, summed in float64 and rounded once."""
    return (parameter.detach().double() + update).to(parameter.dtype)


@dataclass(frozen=True, eq=False)
class WeightDelta(Edit):
    """An edit of the weights. Without updates it is no edit at all, what others are added to."""

    updates: Mapping[str, Update] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    kind: ClassVar[str] = "weights"

    @property
    def can_merge(self) -> bool:
        """Always: that is what weights are."""
        return True

    @property
    def can_export_as_adapter(self) -> bool:
        """Always; of what rank is decided there."""
        return True

    @property
    def empty(self) -> bool:
        """Whether no weight is changed."""
        return not self.updates

    def described(self, provenance: Mapping[str, str]) -> WeightDelta:
        """The same with another provenance."""
        return replace(self, provenance=provenance)

    def joined(self, other: WeightDelta) -> WeightDelta:
        """The sum, parameter by parameter."""
        merged = dict(self.updates)
        for name, update in other.updates.items():
            merged[name] = merged[name].plus(update) if name in merged else update
        return WeightDelta(merged, {**self.provenance, **other.provenance})

    def scaled(self, factor: float) -> WeightDelta:
        """Every update times a number; `scaled(-1)` is the inverse up to rounding."""
        return WeightDelta({n: u.scaled(factor) for n, u in self.updates.items()}, self.provenance)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> WeightDelta:
        """The same value elsewhere."""

        def move(update: Update) -> Update:
            return type(update)(**{k: v.to(device=device, dtype=dtype) for k, v in update.tensors().items()})

        return WeightDelta({n: move(u) for n, u in self.updates.items()}, self.provenance)

    @contextmanager
    def applied(self, lm: LanguageModel) -> Iterator[LanguageModel]:
        """Inside the block the model carries the edit; afterwards it is bit-equal to before."""
        with self.on(lm.model):
            yield lm

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """As `applied`, of any module with such parameters.

        Everything is resolved and checked before the first weight is touched. Nests: the inner edit
        comes off first. Updates of packed and offloaded weights are carried beside them.
        """
        if not self.finite:
            raise NotFinite(
                "The update contains infinite or undefined numbers, so it was not applied; use fewer iterations or a "
                "smaller step."
            )
        slots = [self._slot(model, name) for name in self.updates]
        originals: list[tuple[Tensor, Tensor]] = []
        try:
            with ExitStack() as beside:
                if self.updates:
                    beside.enter_context(counted(model))
                for slot in slots:
                    if slot.plain and slot.parameter is not None:
                        with torch.no_grad():
                            originals.append((slot.parameter, slot.parameter.detach().clone()))
                            _add(slot, self.updates[slot.name])
                    else:
                        for module in slot.modules:
                            beside.enter_context(slot.carrying(module, self.updates[slot.name]))
                yield
        finally:
            with torch.no_grad():
                for parameter, original in reversed(originals):  # two names may be of one weight
                    parameter.copy_(original)

    def added_to(self, model: nn.Module) -> bool:
        """Whether all of it is added to weights of the model, and nothing carried beside them."""
        return all(self._slot(model, name).plain for name in self.updates)

    def _slot(self, model: nn.Module, name: str) -> Slot:
        """Where an update belongs; BadRequest unless it is there and of the update's shape."""
        slot, shape = Slot.of(model, name), self.updates[name].shape
        if shape != slot.shape:  # before the product is made, which a foreign edit could make huge
            raise BadRequest(
                f"The update of {name} has shape {shape}, the model needs {slot.shape}; "
                "use the model this edit was made for."
            )
        return slot

    def proofs(self, model: nn.Module) -> list[Proof]:
        """Per parameter: relative Frobenius norm, rank, and entries that differ after rounding.

        `model` must be the unedited one. Of packed and offloaded weights it is told of what they stand for.
        """
        found = []
        for name, update in self.updates.items():
            slot, tiles = self._slot(model, name), None
            moved = before = 0.0
            changed = 0
            for at, rows in slot.rows():
                tiles = tiles or _Tiles(update, slot.turned, rows.device)
                piece = tiles[at]
                moved += float(piece.square().sum())
                before += float(rows.double().square().sum())
                changed += int((_sum(rows, piece) != rows).sum())
            # Biases may be zero to begin with; then the change itself is told.
            norm = (moved / (before or 1.0)) ** 0.5
            found.append(Proof(name, norm, update.rank(), changed, math.prod(slot.shape)))
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor in it by "parameter|part"."""
        return {f"{n}|{part}": t for n, u in self.updates.items() for part, t in u.tensors().items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], _facts: Mapping[str, Any]) -> WeightDelta:
        """What `tensors` gave; KeyError or ValueError for anything else."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, part = key.partition("|")
            if tensor.dim() != 2 and not (part == "value" and tensor.dim() == 1):
                raise ValueError(f"{key} is no matrix")
            parts.setdefault(name, {})[part] = tensor
        kinds = {frozenset({"left", "right"}): LowRank, frozenset({"value"}): Dense}
        return WeightDelta({name: kinds[frozenset(p)](**p) for name, p in parts.items()})

    def findings(self, lm: LanguageModel, prompts: Sequence[str]) -> Findings:
        """Of single neurons what they do at the prompts; nothing of whole layers, which `proofs` tell of."""
        if not rewritten(self.updates):
            return Findings("", "")
        with self.applied(lm) as edited:
            return findings_of(edited, self.updates, prompts)
