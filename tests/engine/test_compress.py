"""Compression: the nearest update of a rank, and an honest account of what it gives up."""

import pytest
import torch

from editing_core.errors import BadSetting, Cancelled
from editing_core.export.compress import compressed
from editing_core.models.delta import Dense, LowRank, WeightDelta
from tests.conftest import cancel_after
from tests.engine.exports import low_rank


def spectrum(values, rows=12, columns=9):
    """A matrix with these singular values, float64."""
    generator = torch.Generator().manual_seed(3)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64)).Q
    n = len(values)
    return left[:, :n] * torch.tensor(values, dtype=torch.float64) @ right[:n]


def one(update, **how):
    """The compressed update and its part."""
    found = compressed(WeightDelta({"w": update}), **how)
    return found.delta.updates.get("w"), found.parts[0]


def test_columns_of_iterations_that_say_the_same_become_one():
    """Five iterations on two facts: ten columns, of which two are left, and the product stays."""
    keys = low_rank((12, 9), 2, dtype=torch.float64)
    total = LowRank(keys.left * 0.2, keys.right)
    for factor in (0.1, 0.3, -0.2, 0.05):
        total = total.plus(LowRank(keys.left * factor, keys.right))
    now, part = one(total)
    assert (part.before, part.after) == (10, 2)
    assert part.discarded < 1e-20
    torch.testing.assert_close(now.dense(), total.dense(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", ["whole", "factors"])
@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ({}, 4),
        ({"energy": 0.0}, 4),
        # Squares 16, 4, 1, 0.25: of 21.25 the tails are 5.25, 1.25 and 0.25.
        ({"energy": 0.25 / 21.25 - 1e-9}, 4),
        ({"energy": 0.25 / 21.25 + 1e-9}, 3),
        ({"energy": 1.25 / 21.25 + 1e-9}, 2),
        ({"energy": 0.999}, 1),
        ({"rank": 3}, 3),
        ({"rank": 2, "energy": 0.02}, 2),
        ({"rank": 50}, 4),
    ],
)
def test_the_fewest_columns_within_both_bounds(form, how, kept):
    values = [4.0, 2.0, 1.0, 0.5]
    matrix = spectrum(values)
    update = Dense(matrix) if form == "whole" else LowRank(matrix, torch.eye(9, dtype=torch.float64))
    now, part = one(update, **how)
    assert part.after == kept == now.left.shape[1]
    assert part.before == 9
    lost = sum(v * v for v in values[kept:]) / 21.25
    assert part.discarded == pytest.approx(lost, abs=1e-12)
    # What is told is what is missing, and no update of the rank is nearer (Eckart and Young).
    assert float((matrix - now.dense()).square().sum()) / 21.25 == pytest.approx(lost, abs=1e-12)


def test_the_factors_are_never_multiplied_out_and_give_the_same():
    update = low_rank((40, 30), 8, dtype=torch.float64)
    through_core, _ = one(update, rank=3)
    through_matrix, _ = one(Dense(update.dense()), rank=3)
    torch.testing.assert_close(through_core.dense(), through_matrix.dense(), atol=1e-12, rtol=0)


def test_more_columns_than_either_side_has():
    update = low_rank((6, 5), 20, dtype=torch.float64)
    now, part = one(update)
    assert (part.before, part.after) == (20, 5)
    torch.testing.assert_close(now.dense(), update.dense(), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("given", "kept"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_precision_never_falls(given, kept):
    now, _ = one(low_rank((6, 5), 2, dtype=given))
    assert {t.dtype for t in now.tensors().values()} == {kept}


def test_vectors_stay_and_zeros_go():
    vector = Dense(torch.ones(3))
    zero = LowRank(torch.zeros(4, 2), torch.ones(2, 5))
    empty = LowRank(torch.zeros(4, 0), torch.zeros(0, 5))
    found = compressed(WeightDelta({"v": vector, "z": zero, "e": empty, "d": Dense(torch.zeros(2, 2))}, {"a": "b"}))
    assert dict(found.delta.updates) == {"v": vector}
    assert [(p.parameter, p.before, p.after) for p in found.parts] == [
        ("v", None, None),
        ("z", 2, 0),
        ("e", 0, 0),
        ("d", 2, 0),
    ]
    assert found.discarded == 0


def test_what_is_given_up_is_told_for_the_whole_edit_and_kept_with_it():
    edit = WeightDelta({"a": Dense(spectrum([3.0, 1.0])), "b": Dense(spectrum([2.0]))}, {"editor": "x", "note": "Old."})
    found = compressed(edit, rank=1)
    assert found.discarded == pytest.approx(1 / 14)
    assert "from rank 9 to 1" in found.told()
    assert "0.071" in found.told()
    assert found.delta.provenance == {"editor": "x", "note": f"Old. {found.told()}"}


BAD = [*({"rank": rank} for rank in (0, 1.5, True)), *({"energy": share} for share in (-0.1, 1.0, float("nan")))]


@pytest.mark.parametrize("how", BAD)
def test_bounds_outside_the_allowed_are_refused(how):
    with pytest.raises(BadSetting, match="allowed are"):
        compressed(WeightDelta({"w": low_rank((4, 4), 1)}), **how)


def test_it_can_be_cancelled():
    edit = WeightDelta({name: low_rank((4, 4), 1) for name in "abc"})
    with pytest.raises(Cancelled):
        compressed(edit, watch=cancel_after(1))
