"""SideNeurons: an edit of neurons beside MLPs, as if these were wider; no weight is touched.

    MLP(h) + act(h A^T + b) B                plain
    MLP(h) + (act(h A^T + b) * (h G^T)) B    gated, as the MLPs of some families are

Every neuron knows the cases it was made for, so those of one case can be taken out again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from editing_core.errors import BadRequest, NotFinite
from editing_core.models.beside import PARTS, Case, Neurons, beside, mlp_inputs, width_of
from editing_core.models.edit import Edit, Findings
from editing_core.models.fired import FIRED, fired_rows, stand

if TYPE_CHECKING:
    from editing_core.models.language_model import LanguageModel

_ON: WeakKeyDictionary[nn.Module, list[SideNeurons]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class SideNeurons(Edit):
    """An edit of neurons beside MLPs. groups: each of another `place`."""

    groups: tuple[Neurons, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    kind: ClassVar[str] = "neurons"

    def __post_init__(self) -> None:
        if len({group.place for group in self.groups}) < len(self.groups):
            raise ValueError("two groups of neurons of one place")

    @property
    def empty(self) -> bool:
        """Whether there is no neuron."""
        return not any(group.cases for group in self.groups)

    @property
    def cases(self) -> tuple[Case, ...]:
        """All cases that neurons were made for, each once."""
        return tuple(dict.fromkeys(case for group in self.groups for own in group.cases for case in own))

    @contextmanager
    def applied(self, lm: LanguageModel) -> Iterator[LanguageModel]:
        """Inside the block the MLPs have the neurons beside them."""
        self._check(lm)
        if self.empty:
            yield lm
            return
        _ON.setdefault(lm.model, []).append(self)
        try:
            with beside(lm, self.groups):
                yield lm
        finally:
            _ON[lm.model].remove(self)

    def _check(self, lm: LanguageModel) -> None:
        """NotFinite or BadRequest where it cannot be put on."""
        if not self.finite:
            raise NotFinite(
                "The neurons contain infinite or undefined numbers, so they were not put on; use fewer steps or a "
                "smaller rate."
            )
        width = width_of(lm)
        for group in self.groups:
            if group.layer >= lm.layers or group.keys.shape[1] != width:
                raise BadRequest(
                    f"The neurons stand in layer {group.layer} and read {group.keys.shape[1]} numbers, "
                    f"{lm.name} has layers 0 to {lm.layers - 1} of width {width}; use the model this edit was made for."
                )

    def without(self, *cases: Case) -> SideNeurons:
        """Without the neurons of these cases; BadRequest where none, or none alone, belong to one of them."""
        gone = set(cases)
        if unknown := gone - set(self.cases):
            raise BadRequest(f"No neuron belongs to case {str(unknown.pop())[:40]}; choose one that has some.")
        kept = []
        for group in self.groups:
            if shared := [own for own in group.cases if gone & set(own) and not gone >= set(own)]:
                raise BadRequest(
                    f"Neurons of case {str((gone & set(shared[0])).pop())[:40]} were trained for {len(shared[0])} "
                    "cases together and cannot be taken out alone; edit again without it."
                )
            rest = [n for n, own in enumerate(group.cases) if not gone & set(own)]
            kept += [group.select(rest)] if rest else []
        return replace(self, groups=tuple(kept))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by "number of the group|part"."""
        return {f"{n}|{name}": t for n, group in enumerate(self.groups) for name, t in group.tensors().items()}

    def facts(self) -> dict[str, Any]:
        """Per group its layer, activation, sets of cases, and which of these each neuron has."""
        return {"groups": [_fact(group) for group in self.groups]}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> SideNeurons:
        """What `tensors` and `facts` gave; KeyError, TypeError or ValueError for anything else."""
        groups = tuple(_group(n, fact, tensors) for n, fact in enumerate(facts["groups"]))
        found = SideNeurons(groups)
        if found.tensors().keys() != tensors.keys():
            raise ValueError("tensors that belong to no neurons")
        return found

    def joined(self, other: SideNeurons) -> SideNeurons:
        """All neurons of both."""
        groups = {group.place: group for group in self.groups}
        for group in other.groups:
            groups[group.place] = groups[group.place].joined(group) if group.place in groups else group
        return SideNeurons(tuple(groups.values()), {**self.provenance, **other.provenance})

    def described(self, provenance: Mapping[str, str]) -> SideNeurons:
        """The same with another provenance."""
        return replace(self, provenance=provenance)

    @torch.no_grad()
    def findings(self, lm: LanguageModel, prompts: Sequence[str]) -> Findings:
        """Which neuron says most where each prompt ends, the edit being on, and how much all of them add there."""
        if self.empty:
            return Findings("Neurons", "No neuron was needed.")
        with self.applied(lm) as edited:
            fired = torch.cat([_fired(edited, group, prompts) for group in self.groups], dim=1)
        names = [f"{group.layer}:{n} ({_told(own)})" for group in self.groups for n, own in enumerate(group.cases)]
        lengths = torch.cat([group.values.norm(dim=1).float() for group in self.groups])
        layers = ", ".join(dict.fromkeys(str(group.layer) for group in self.groups))
        said = (
            f"{stand(len(names), 'neuron', 'stands', 'stand')} beside the MLP of layer {layers}, named by layer and "
            "number with the cases it was made for. What one adds is its activation times the length of its value."
        )
        return Findings("Neurons", said, FIRED, fired_rows(prompts, names, fired, lengths))


def neurons_on(lm: LanguageModel) -> list[Neurons]:
    """Those the model carries at this moment."""
    return [group for edit in _ON.get(lm.model, ()) for group in edit.groups]


def _fired(lm: LanguageModel, group: Neurons, prompts: Sequence[str]) -> Tensor:
    """(prompts, neurons) float32 activations at each prompt's last token."""
    if not prompts:
        return torch.zeros(0, len(group.cases))
    ids = [lm.coder.encode(prompt) for prompt in prompts]
    h = mlp_inputs(lm, group.layer, ids, [[len(row) - 1] for row in ids])
    return group.to(lm.device, lm.precision).activations(h).float().cpu()


def _told(cases: Sequence[Case]) -> str:
    return ", ".join(str(case) for case in cases[:3]) + (f" and {len(cases) - 3} more" if len(cases) > 3 else "")


def _fact(group: Neurons) -> dict[str, Any]:
    sets = list(dict.fromkeys(group.cases))
    number = {own: n for n, own in enumerate(sets)}
    return {
        "layer": group.layer,
        "activation": group.activation,
        "cases": [list(own) for own in sets],
        "of": [number[own] for own in group.cases],
    }


def _group(number: int, fact: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Neurons:
    sets, numbers = fact["cases"], fact["of"]
    if not isinstance(numbers, list) or not all(isinstance(own, list) for own in sets):
        raise TypeError("cases of neurons that are no lists")
    if any(type(n) is not int or not 0 <= n < len(sets) for n in numbers):
        raise ValueError("neurons of cases that are not told")
    own = {name: tensors[f"{number}|{name}"] for name in PARTS if f"{number}|{name}" in tensors}
    if any(t.dim() == 0 for t in own.values()):
        raise ValueError("a tensor of neurons that is a number")
    return Neurons(fact["layer"], fact["activation"], cases=tuple(tuple(sets[n]) for n in numbers), **own)
