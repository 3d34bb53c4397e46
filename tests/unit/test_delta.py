"""WeightDelta: an edit as a value, on networks small enough to see through."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from editing_core.errors import BadRequest, NotFinite
from editing_core.models import edits
from editing_core.models.delta import Dense, LowRank, WeightDelta
from tests.conftest import bit_equal, snapshot


class Net(nn.Module):
    """The same map twice: as Linear, and as Conv1D, which stores its weight the other way round."""

    def __init__(self, width_in=5, width_out=7):
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)
        self.conv = Conv1D(width_out, width_in)
        with torch.no_grad():
            self.conv.weight.copy_(self.linear.weight.T)
            self.conv.bias.copy_(self.linear.bias)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def low_rank(rank=2, width_in=5, width_out=7, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(width_out, rank, generator=generator, dtype=torch.float64),
        torch.randn(rank, width_in, generator=generator, dtype=torch.float64),
    )


def both(update):
    return WeightDelta({"linear.weight": update, "conv.weight": update})


def test_linear_and_conv1d_become_the_same_function(net):
    x = torch.randn(3, 5)
    update = low_rank()
    expected = net.linear(x) + x @ update.dense().float().T
    with both(update).on(net):
        torch.testing.assert_close(net.linear(x), expected)
        torch.testing.assert_close(net.conv(x), expected)
        assert torch.equal(net.linear.weight, net.conv.weight.T)


def test_conv1d_of_square_shape_is_oriented_by_type():
    torch.manual_seed(0)
    square, update = Net(4, 4), low_rank(1, 4, 4)
    x = torch.randn(2, 4)
    with both(update).on(square):
        torch.testing.assert_close(square.conv(x), square.linear(x))


def test_model_is_bit_equal_afterwards(net):
    before = snapshot(net)
    with both(low_rank()).on(net):
        assert not bit_equal(net, before)
    assert bit_equal(net, before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_model_is_bit_equal_after_an_exception(net, error):
    before = snapshot(net)
    with pytest.raises(error), both(low_rank()).on(net):
        raise error
    assert bit_equal(net, before)


def test_nested_edits_come_off_in_order(net):
    before = snapshot(net)
    with both(low_rank(seed=1)).on(net):
        middle = snapshot(net)
        with pytest.raises(ValueError, match="inner"), both(low_rank(seed=2)).on(net):
            raise ValueError("inner")
        assert bit_equal(net, middle)
    assert bit_equal(net, before)


def test_subtracting_again_would_not_be_exact(net):
    """Why originals are copied back: the check above fails without that."""
    before = net.linear.weight.detach().clone()
    update = low_rank().dense().float()
    assert not torch.equal((before + update) - update, before)


def test_an_unknown_parameter_leaves_the_others_alone(net):
    before = snapshot(net)
    delta = WeightDelta({"linear.weight": low_rank(), "nowhere.weight": low_rank()})
    with pytest.raises(BadRequest, match="does not have"), delta.on(net):
        pass
    assert bit_equal(net, before)


def test_two_names_of_one_weight_come_off_in_the_order_they_went_on(net):
    net.twin = net.linear
    before = snapshot(net)
    with WeightDelta({"linear.weight": low_rank(), "twin.weight": low_rank(seed=1)}).on(net):
        assert not bit_equal(net, before)
    assert bit_equal(net, before)


def test_sum_of_low_rank_keeps_factors():
    a, b = low_rank(2, seed=1), low_rank(3, seed=2)
    total = (both(a) + WeightDelta({"conv.weight": b})).updates
    assert isinstance(total["conv.weight"], LowRank)
    torch.testing.assert_close(total["conv.weight"].dense(), a.dense() + b.dense(), atol=1e-12, rtol=0)
    assert torch.equal(total["linear.weight"].dense(), a.dense())


@pytest.mark.parametrize("order", [0, 1])
def test_sum_with_dense_is_dense(order):
    pair = [low_rank(), Dense(torch.ones(7, 5, dtype=torch.float64))]
    first, second = pair[order], pair[1 - order]
    total = first.plus(second)
    assert isinstance(total, Dense)
    torch.testing.assert_close(total.dense(), first.dense() + second.dense(), atol=1e-12, rtol=0)


def test_adding_leaves_the_summands_alone():
    a, b = both(low_rank(seed=1)), both(low_rank(seed=2))
    kept = a.updates["conv.weight"].dense().clone()
    _ = a + b
    assert torch.equal(a.updates["conv.weight"].dense(), kept)


def test_empty_delta_is_neutral(net):
    before = snapshot(net)
    with WeightDelta().on(net):
        assert bit_equal(net, before)
    total = WeightDelta() + both(low_rank())
    assert torch.equal(total.updates["conv.weight"].dense(), low_rank().dense())


@pytest.mark.parametrize("update", [low_rank(), Dense(low_rank().dense())])
def test_scaled(update):
    scaled = both(update).scaled(0.5).updates["conv.weight"]
    assert type(scaled) is type(update)
    torch.testing.assert_close(scaled.dense(), 0.5 * update.dense(), atol=1e-12, rtol=0)


def test_edit_and_its_inverse_cancel():
    delta = both(low_rank())
    assert (delta + delta.scaled(-1)).updates["linear.weight"].dense().abs().max() < 1e-12


def test_provenance_is_kept_and_merged():
    total = WeightDelta({}, {"a": "1", "b": "1"}) + WeightDelta({}, {"b": "2"})
    assert total.provenance == {"a": "1", "b": "2"}


def test_rank():
    assert low_rank(3).rank() == 3
    assert Dense(low_rank(2).dense()).rank() == 2
    doubled = low_rank(2).plus(low_rank(2))  # four columns, two directions
    assert doubled.left.shape[1] == 4
    assert doubled.rank() == 2
    assert LowRank(torch.zeros(7, 0), torch.zeros(0, 5)).rank() == 0


def test_proofs(net):
    update = low_rank(1)
    zeroed = LowRank(update.left.clone(), update.right.clone())
    zeroed.left[3:] = 0
    (proof,) = WeightDelta({"conv.weight": zeroed}).proofs(net)
    assert (proof.parameter, proof.rank, proof.total, proof.changed) == ("conv.weight", 1, 35, 15)
    expected = float(zeroed.dense().norm() / net.conv.weight.detach().double().norm())
    assert proof.relative_norm == pytest.approx(expected)


def test_save_and_load(tmp_path, net):
    delta = WeightDelta({"linear.weight": low_rank(), "conv.weight": Dense(low_rank().dense())}, {"editor": "memit"})
    delta.save(tmp_path / "edit.safetensors")
    loaded = edits.load(tmp_path / "edit.safetensors")
    assert loaded.provenance == {"editor": "memit"}
    assert {n: type(u) for n, u in loaded.updates.items()} == {n: type(u) for n, u in delta.updates.items()}
    with delta.on(net):
        edited = snapshot(net)
    with loaded.on(net):
        assert bit_equal(net, edited)


def test_to_changes_the_type_of_every_factor():
    assert {t.dtype for t in both(low_rank()).to("cpu", torch.float32).updates["conv.weight"].tensors().values()} == {
        torch.float32
    }


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_numbers_that_are_not_finite(net, bad):
    before, update = snapshot(net), low_rank()
    update.right[0, 0] = bad
    delta = both(update)
    assert not delta.finite
    with pytest.raises(NotFinite, match="infinite or undefined numbers"), delta.on(net):
        pass
    assert bit_equal(net, before)


def test_refuses_a_wrong_shape(net):
    before = snapshot(net)
    delta = WeightDelta({"linear.weight": low_rank(), "conv.weight": low_rank(width_in=6)})
    with (
        pytest.raises(BadRequest, match=r"conv.weight has shape \(7, 6\), the model needs \(7, 5\)"),
        delta.on(net),
    ):
        pass
    assert bit_equal(net, before)


def test_refuses_files_that_are_no_edits(tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(2)}, foreign)
    with pytest.raises(BadRequest, match=r"foreign\.safetensors holds no EditScope edit"):
        edits.load(foreign)
    (tmp_path / "text.safetensors").write_text("not a tensor in sight")
    with pytest.raises(BadRequest, match=r"text\.safetensors is not a readable safetensors file"):
        edits.load(tmp_path / "text.safetensors")
    with pytest.raises(BadRequest, match=r"missing\.safetensors is not a readable"):
        edits.load(tmp_path / "missing.safetensors")


def test_refuses_an_edit_file_with_parts_missing(tmp_path):
    path = tmp_path / "half.safetensors"
    save_file({"linear.weight|left": torch.zeros(7, 1)}, path, metadata={"format": "editscope-delta-1"})
    with pytest.raises(BadRequest, match=r"half\.safetensors is damaged"):
        edits.load(path)


def test_a_foreign_edit_of_another_shape_is_refused_before_its_product_is_made():
    model = nn.Sequential(nn.Linear(4, 3))
    huge = WeightDelta({"0.weight": LowRank(torch.ones(10**6, 1), torch.ones(1, 10**6))})
    with pytest.raises(BadRequest, match="has shape"), huge.on(model):
        pass


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"a|left": torch.ones(3), "a|right": torch.ones(1, 3)}, {}),
        ({"a|value": torch.ones(2, 2, 2)}, {}),
        ({"a|value": torch.ones(2, 2)}, {"provenance": "3"}),
        ({"a|other": torch.ones(2, 2)}, {}),
    ],
)
def test_files_that_hold_no_matrices_or_no_provenance_are_refused(tmp_path, tensors, metadata):
    save_file(tensors, tmp_path / "delta", metadata={"format": "editscope-delta-1", **metadata})
    with pytest.raises(BadRequest, match="damaged"):
        edits.load(tmp_path / "delta")


def test_vectors_are_edited_whole_and_saved(net, tmp_path):
    before, shift = snapshot(net), torch.arange(7.0)
    delta = WeightDelta({"conv.bias": Dense(shift), "linear.bias": Dense(torch.zeros(7))})
    delta.save(tmp_path / "edit.safetensors")
    loaded = edits.load(tmp_path / "edit.safetensors")
    with loaded.on(net):
        assert torch.equal(net.conv.bias, before["conv.bias"] + shift)
        assert torch.equal(net.linear.bias, before["linear.bias"])
    assert bit_equal(net, before)
    proofs = {proof.parameter: proof for proof in loaded.proofs(net)}
    assert (proofs["conv.bias"].rank, proofs["conv.bias"].changed) == (1, 6)
    assert (proofs["linear.bias"].rank, proofs["linear.bias"].changed) == (0, 0)
    assert loaded.size == 2 * 7 * 4
    with pytest.raises(BadRequest, match="has shape"), WeightDelta({"conv.bias": Dense(torch.zeros(6))}).on(net):
        pass


def test_a_change_of_zeros_is_told_as_it_is(net):
    with torch.no_grad():
        net.conv.bias.zero_()
    (proof,) = WeightDelta({"conv.bias": Dense(torch.full((7,), 2.0))}).proofs(net)
    assert proof.relative_norm == pytest.approx(2 * 7**0.5)


def test_the_rank_of_a_very_wide_dense_update_is_left_open():
    assert Dense(torch.eye(1025)).rank() is None
    assert Dense(torch.eye(1024, 1100)).rank() == 1024


@pytest.mark.parametrize("part", ["left", "right"])
def test_factors_are_matrices(part):
    parts = {"a|left": torch.zeros(2, 1), "a|right": torch.zeros(1, 3), f"a|{part}": torch.zeros(3)}
    with pytest.raises(ValueError, match="no matrix"):
        WeightDelta.of(parts, {})
