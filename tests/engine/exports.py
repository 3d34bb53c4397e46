"""Helpers of the tests of exports and imports: random edits, and what an export says when it is loaded again."""

import torch

from editing_core.export import reload, verify
from editing_core.models.delta import Dense, LowRank, WeightDelta
from editing_core.models.slots import Slot

IDS = [[5, 6, 7, 8, 9, 10, 11, 12], [300, 20, 7]]


def low_rank(shape, rank, seed=0, size=0.3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    left = size * torch.randn(shape[0], rank, generator=generator, dtype=torch.float64)
    return LowRank(left.to(dtype), torch.randn(rank, shape[1], generator=generator, dtype=torch.float64).to(dtype))


def places(lm):
    """Two weight matrices of a model: a down-projection and an attention output."""
    return f"{lm.architecture.down(0)}.weight", f"{lm.architecture.attention_out_of(1)}.weight"


def shape_of(lm, name):
    return Slot.of(lm.model, name).shape


def random_edit(lm, rank=2, dtype=torch.float32):
    """Low-rank updates of two weights, of different ranks."""
    updates = {name: low_rank(shape_of(lm, name), rank + i, seed=i, dtype=dtype) for i, name in enumerate(places(lm))}
    return WeightDelta(updates, {"editor": "memit", "model": lm.name})


def whole_edit(lm):
    """A whole matrix and a vector."""
    name = places(lm)[0]
    low = low_rank(shape_of(lm, name), 3)
    norm = f"{lm.architecture.final_norm}.weight"
    vector = 0.1 * torch.randn(lm.model.get_parameter(norm).shape, generator=torch.Generator().manual_seed(5))
    return WeightDelta({name: Dense(low.dense()), norm: Dense(vector)})


def applied(lm, delta, rows=IDS):
    with delta.applied(lm):
        return reload.logits(lm.model, rows, "cpu")


def reloaded(lm, export, kind, rows=IDS):
    """What the script of the check finds, without its process."""
    job = verify._job(lm, export, kind, rows, export / "unused")
    return reload.logits(reload.load(job), rows, "cpu")


def assert_same(found, expected, plain):
    """Equal but for the order of sums in float32; and the edit is not nothing."""
    scale = max(float(t.abs().max()) for t in expected.values())
    for number, logits in expected.items():
        assert (found[number] - logits).abs().max() <= 1e-5 * max(1.0, scale)
        assert (plain[number] - logits).abs().max() > 1e-2
