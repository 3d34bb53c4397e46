"""Compression: an edit with fewer columns, and how much of it that gives up.

Each update becomes its truncated singular value decomposition, which of all updates of that rank is the nearest one
(Eckart and Young 1936). Factors are taken apart through their small core and never multiplied out. A whole matrix, as
fine-tuning gives it, thereby becomes factors, and with them an adapter.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from editing_core.errors import BadSetting
from editing_core.export.fitting import weights_of
from editing_core.models.delta import Dense, LowRank, Update, WeightDelta
from editing_core.models.edit import Edit
from editing_core.types import Step, Watch, ignore


@dataclass(frozen=True)
class Part:
    """What became of one parameter's update.

    before: columns of its factors, of a whole matrix as many as it could need. after: columns now. Both are None for
    a vector, which stays as it is. discarded: share of its squared Frobenius norm that was given up.
    """

    parameter: str
    before: int | None
    after: int | None
    discarded: float


@dataclass(frozen=True, eq=False)
class Compressed:
    """An edit of fewer columns. discarded: share of the squared Frobenius norm of the whole edit that was given up."""

    delta: WeightDelta
    parts: tuple[Part, ...]
    discarded: float

    def told(self) -> str:
        """The whole in one sentence."""
        ranks = [(part.before, part.after) for part in self.parts if part.before is not None and part.after is not None]
        before, after = (max((pair[i] for pair in ranks), default=0) for i in (0, 1))
        lost = "nothing but rounding" if self.discarded < 1e-12 else f"{self.discarded:.2g}"
        return f"Compressed from rank {before} to {after} at most; of the squared norm was given up: {lost}."


def compressed(edit: Edit, rank: int | None = None, energy: float = 0.0, watch: Watch = ignore) -> Compressed:
    """The edit with the fewest columns per parameter that give up at most `energy`, and with at most `rank` columns.

    energy: share of each parameter's squared Frobenius norm, from 0 to below 1; 0 gives up only what is numerically
    zero in double precision. rank wins where the two disagree. BadSetting outside these bounds.
    """
    if rank is not None and (type(rank) is not int or rank < 1):
        raise BadSetting(f"The rank is {rank!r}, allowed are whole numbers from 1; give one, or none.")
    if not 0 <= energy < 1:
        raise BadSetting(f"The energy is {energy!r}, allowed are shares from 0 to below 1; give one such as 0.01.")
    delta = weights_of(edit, edit.can_export_as_adapter, "what is compressed")
    updates: dict[str, Update] = {}
    parts = []
    lost = whole = 0.0
    for number, (name, update) in enumerate(delta.updates.items(), start=1):
        now, part, total = _compress(name, update, rank, energy)
        updates |= {} if now is None else {name: now}
        parts.append(part)
        lost, whole = lost + part.discarded * total, whole + total
        watch(Step("compress", number, len(delta.updates), note=name))
    found = Compressed(WeightDelta(updates, delta.provenance), tuple(parts), lost / whole if whole else 0.0)
    note = " ".join(filter(None, (delta.provenance.get("note", ""), found.told())))
    return replace(found, delta=replace(found.delta, provenance={**delta.provenance, "note": note}))


def _compress(name: str, update: Update, rank: int | None, energy: float) -> tuple[Update | None, Part, float]:
    """The update (None where it is zero), what became of it, and its squared norm."""
    if isinstance(update, Dense) and update.value.dim() == 1:
        return update, Part(name, None, None, 0.0), float(update.value.double().square().sum())
    left, values, right = _decomposed(update)
    squares = values.square()
    total = float(squares.sum())
    kept = _kept(values, update.shape, rank, energy)
    before = update.left.shape[1] if isinstance(update, LowRank) else min(update.shape)
    discarded = float(squares[kept:].sum()) / total if total else 0.0
    part = Part(name, before, kept, discarded)
    if not kept:
        return None, part, total
    # Half of each value on either side, so that both factors are of one size when they are rounded.
    root = values[:kept].sqrt()
    double = all(tensor.dtype == torch.float64 for tensor in update.tensors().values())
    dtype = torch.float64 if double else torch.float32
    low = LowRank((left[:, :kept] * root).to(dtype).contiguous(), (root[:, None] * right[:kept]).to(dtype).contiguous())
    return low, part, total


def _decomposed(update: Update) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors (d_out, m), values (m,) from large to small, and vectors (m, d_in), in float64."""
    if isinstance(update, Dense):
        left, values, right = torch.linalg.svd(update.value.double(), full_matrices=False)
        return left, values, right
    outer, inner = torch.linalg.qr(update.left.double()), torch.linalg.qr(update.right.double().T)
    left, values, right = torch.linalg.svd(outer.R @ inner.R.T, full_matrices=False)
    return outer.Q @ left, values, right @ inner.Q.T


def _kept(values: Tensor, shape: tuple[int, ...], rank: int | None, energy: float) -> int:
    """How many of the values (m,), which fall, are kept."""
    if not len(values) or not float(values[0]):
        return 0
    # The usual bound of a matrix rank: what lies below cannot be told from the rounding of the decomposition.
    floor = float(values[0]) * max(shape) * torch.finfo(torch.float64).eps
    real = int((values > floor).sum())
    squares = values.square()
    # tail[k]: what is given up when k values are kept, summed from the small end, where rounding would tell most.
    tail = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
    enough = int((tail > energy * float(tail[0])).sum())
    return max(1, min(real, enough, rank or real))
