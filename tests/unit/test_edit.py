"""Edits of several kinds: added, saved, put on in order, refused where they belong to nothing."""

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch

from editing_core.errors import BadRequest
from editing_core.models import edits
from editing_core.models.delta import LowRank, WeightDelta
from editing_core.models.edit import Edit, Findings, Together


@dataclass(frozen=True, eq=False)
class Sign(Edit):
    """Puts letters on the list that stands for a model."""

    letters: tuple[str, ...]
    numbers: torch.Tensor = field(default_factory=lambda: torch.zeros(1))
    provenance: dict = field(default_factory=dict)
    kind = "signs"

    @contextmanager
    def applied(self, lm):
        lm.model.extend(self.letters)
        yield SimpleNamespace(model=lm.model, seen=True)
        del lm.model[-len(self.letters) :]

    @property
    def empty(self):
        return not self.letters

    def tensors(self):
        return {"numbers": self.numbers}

    def facts(self):
        return {"letters": list(self.letters)}

    @classmethod
    def of(cls, tensors, facts):
        return cls(tuple(facts["letters"]), tensors["numbers"])

    def joined(self, other):
        return replace(self, letters=self.letters + other.letters)

    def described(self, provenance):
        return replace(self, provenance=provenance)

    def findings(self, _lm, prompts):
        return Findings("Signs", f"{len(self.letters)} at {len(prompts)} prompts")


@dataclass(frozen=True, eq=False)
class Other(Sign):
    kind = "others"


def weights():
    return WeightDelta({"w": LowRank(torch.ones(2, 1), torch.ones(1, 3))})


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(edits, "KINDS", {**edits.KINDS, "signs": Sign, "others": Other})


def test_nothing_added_is_the_edit_itself():
    sign = Sign(("a",))
    assert WeightDelta() + sign is sign
    assert sign + WeightDelta() is sign
    assert (weights() + Sign(())).updates.keys() == {"w"}
    assert (WeightDelta({}, {"from": "x"}) + sign).provenance == {"from": "x"}


def test_one_kind_is_joined_and_several_stand_together():
    assert (Sign(("a",)) + Sign(("b",))).letters == ("a", "b")
    both = weights() + Sign(("a",)) + Sign(("b",)) + weights()
    assert isinstance(both, Together)
    assert both.parts.keys() == {"weights", "signs"}
    assert both.parts["signs"].letters == ("a", "b")
    assert both.updates["w"].left.shape == (2, 2)
    assert not both.can_merge
    assert not both.can_export_as_adapter
    assert both.finite
    assert not (weights() + Sign(("c",), torch.tensor([float("nan")]))).finite


def test_kinds_go_on_one_inside_the_other_and_off_again():
    lm = SimpleNamespace(model=[])
    with (Sign(("s",)) + Other(("o",))).applied(lm) as edited:
        assert lm.model == ["o", "s"]
        assert edited.seen
    assert lm.model == []


@pytest.mark.usefixtures("known")
def test_any_kinds_come_back_from_a_file(tmp_path):
    both = (weights() + Sign(("a", "b"), torch.arange(3.0))).described({"model": "m"})
    both.save(tmp_path / "edit.safetensors")
    back = edits.load(tmp_path / "edit.safetensors")
    assert back.provenance == {"model": "m"}
    assert back.parts["signs"].letters == ("a", "b")
    assert torch.equal(back.parts["signs"].numbers, torch.arange(3.0))
    assert torch.equal(back.updates["w"].dense(), weights().updates["w"].dense())
    assert not edits.of_weights(tmp_path / "edit.safetensors")
    weights().save(tmp_path / "weights.safetensors")
    assert edits.of_weights(tmp_path / "weights.safetensors")


def test_a_file_of_a_kind_that_is_not_known_is_refused(tmp_path):
    Sign(("a",)).save(tmp_path / "edit.safetensors")
    with pytest.raises(BadRequest, match="is damaged"):
        edits.load(tmp_path / "edit.safetensors")


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("facts", [{"signs": {}}, {"signs": []}, [], {"weights": {}}, {"signs": {"letters": 3}}])
def test_facts_that_are_none_are_refused(facts):
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        edits.unpacked({"signs/numbers": torch.zeros(1)}, facts)
