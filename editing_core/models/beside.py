"""Beside: neurons that stand beside one MLP, and putting them there.

An MLP's input is what its up-projection reads, its output what its down-projection gives; a norm behind that, which
some families have, comes after the sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from editing_core.errors import ModelUnavailable
from editing_core.models.edit import counted
from editing_core.models.hooks import steering, stopping_before, watching
from editing_core.models.slots import matrix_shape

if TYPE_CHECKING:
    from editing_core.models.language_model import LanguageModel

Case = int | str
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "relu", "silu", "tanh")
PARTS = ("keys", "bias", "values", "gate", "queries")
MOST_LAYERS = 10_000


@dataclass(frozen=True, eq=False)
class Neurons:
    """Neurons of one kind beside one MLP; (n, d) are their tensors, bias (n,).

    keys, bias, values: A, b, B. cases: of each neuron those it was made for. gate: G where they are gated. queries:
    where each was made to fire, kept so that later edits can leave that alone.
    """

    layer: int
    activation: str
    keys: Tensor
    bias: Tensor
    values: Tensor
    cases: tuple[tuple[Case, ...], ...]
    gate: Tensor | None = None
    queries: Tensor | None = None

    def __post_init__(self) -> None:
        if type(self.layer) is not int or not 0 <= self.layer < MOST_LAYERS or self.activation not in ACTIVATIONS:
            raise ValueError("neurons of a layer or an activation that no model has")
        if any(not isinstance(c, int | str) or isinstance(c, bool) for own in self.cases for c in own):
            raise TypeError("a case is a number or a text")
        parts, n = self.tensors(), len(self.cases)
        wanted = {name: (n,) if name == "bias" else (n, self.keys.shape[-1]) for name in parts}
        if any(tuple(t.shape) != wanted[name] or t.dtype != self.keys.dtype for name, t in parts.items()):
            raise ValueError(f"{n} neurons have tensors of shapes {[tuple(t.shape) for t in parts.values()]}")
        if not self.keys.is_floating_point():
            raise ValueError(f"neurons are no {self.keys.dtype}")

    @property
    def place(self) -> tuple[Any, ...]:
        """Neurons that agree in it are listed together."""
        return self.layer, self.activation, self.gate is None, self.queries is None, self.keys.dtype

    def tensors(self) -> dict[str, Tensor]:
        """Those there are, by name."""
        return {name: t for name in PARTS if (t := getattr(self, name)) is not None}

    def activations(self, h: Tensor) -> Tensor:
        """(..., n) of MLP inputs (..., d): what the values are weighted with."""
        fired: Tensor = ACT2FN[self.activation](nn.functional.linear(h, self.keys, self.bias))
        return fired if self.gate is None else fired * nn.functional.linear(h, self.gate)

    def extra(self, h: Tensor) -> Tensor:
        """(..., d): what they add for MLP inputs (..., d)."""
        return self.activations(h) @ self.values

    def to(self, device: torch.device, dtype: torch.dtype) -> Neurons:
        """The same numbers elsewhere; the very same tensors where they are there already."""
        return self.with_tensors({name: t.to(device, dtype) for name, t in self.tensors().items()})

    def kept(self, cases: tuple[Case, ...]) -> Neurons:
        """Ready to be an edit: on the processor, without gradients, all made for these cases."""
        whole = replace(self, cases=(cases,) * len(self.cases))
        return whole.with_tensors({name: t.detach().cpu() for name, t in self.tensors().items()})

    def with_tensors(self, parts: Mapping[str, Tensor]) -> Neurons:
        """With other tensors."""
        return Neurons(self.layer, self.activation, cases=self.cases, **parts)

    def select(self, numbers: Sequence[int]) -> Neurons:
        """Some of them."""
        some = {name: t[list(numbers)] for name, t in self.tensors().items()}
        return Neurons(self.layer, self.activation, cases=tuple(self.cases[n] for n in numbers), **some)

    def joined(self, other: Neurons) -> Neurons:
        """Both, of one `place`; numbers go where the first ones are."""
        device, theirs = self.keys.device, other.tensors()
        both = {name: torch.cat([t, theirs[name].to(device)]) for name, t in self.tensors().items()}
        return Neurons(self.layer, self.activation, cases=self.cases + other.cases, **both)


@contextmanager
def beside(lm: LanguageModel, groups: Sequence[Neurons]) -> Iterator[None]:
    """Inside, these neurons stand beside the model's MLPs; gradients flow into tensors that ask for them.

    BadRequest or ModelUnavailable before anything is touched.
    """
    sites = {layer: _Site(lm, layer, groups) for layer in {group.layer for group in groups}}
    with ExitStack() as stack:
        stack.enter_context(counted(lm.model))
        for site in sites.values():
            for module in site.entries:
                stack.callback(module.register_forward_pre_hook(site.enter).remove)
        stack.enter_context(
            steering(lm.model, {lm.architecture.down(layer): site.change for layer, site in sites.items()})
        )
        yield


class _Site:
    """One MLP and the neurons beside it.

    Its input is kept twice on the way: where the MLP begins, and where its up-projection does, which is not always
    run, and not always on all tokens (`LanguageModel.looking_at`). What was seen last fits what comes out.
    """

    def __init__(self, lm: LanguageModel, layer: int, groups: Sequence[Neurons]) -> None:
        names = [name for name in (lm.architecture.mlp_of(layer), up_of(lm, layer)) if name]
        self.entries = [lm.model.get_submodule(name) for name in names]
        device = next(self.entries[-1].parameters()).device
        self.precision = lm.precision
        mine = [group for group in groups if group.layer == layer]
        # What is trained changes where it is: a copy on another device would stay as it was.
        trained = any(t.requires_grad for group in mine for t in group.tensors().values())
        stay = trained or device.type == "meta"
        self.groups = mine if stay else [group.to(device, lm.precision) for group in mine]

    def enter(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        """Hook in front of the modules that read the input."""
        self.input: Tensor = args[0]

    def change(self, output: Tensor) -> Tensor:
        """The down-projection's output with what the neurons add."""
        h = self.input.to(dtype=self.precision)
        total = output.to(self.precision)
        for group in self.groups:
            extra = group.to(h.device, self.precision).extra(h)
            total = total + extra.to(output.device).view_as(output)
        return total.to(output.dtype)


def up_of(lm: LanguageModel, layer: int) -> str:
    """Name of the module that reads a block's MLP input first: an up-projection, or the gate's."""
    return _ups(lm, layer)[0]


def is_gated(lm: LanguageModel, layer: int) -> bool:
    """Whether a block's MLP multiplies two projections of its input, kept as two modules or as one twice as wide."""
    shapes = [matrix_shape(lm.model.get_submodule(name)) for name in _ups(lm, layer)]
    down = matrix_shape(lm.model.get_submodule(lm.architecture.down(layer)))
    return down is not None and sum(shape[0] for shape in shapes if shape) == 2 * down[1]


def _ups(lm: LanguageModel, layer: int) -> list[str]:
    """The linear modules that stand beside a block's down-projection."""
    parent, _, own = lm.architecture.down(layer).rpartition(".")
    children = lm.model.get_submodule(parent).named_children()
    found = [f"{parent}.{name}" for name, module in children if name != own and matrix_shape(module)]
    if not found:
        raise ModelUnavailable(f"{lm.name} has no linear module in front of {parent}.{own}; choose another model.")
    return found


def width_of(lm: LanguageModel) -> int:
    """How many numbers an MLP of the model reads."""
    return int(lm.model.config.get_text_config().hidden_size)


def activation_of(lm: LanguageModel) -> str:
    """The name of the MLPs' activation, the nearest one known here where it is another."""
    config = lm.model.config.get_text_config()
    names = (getattr(config, name, None) for name in ("hidden_activation", "hidden_act", "activation_function"))
    found = next((name for name in names if name), "gelu")
    return found if found in ACTIVATIONS else "gelu"


@torch.no_grad()
def mlp_inputs(lm: LanguageModel, layer: int, rows: Sequence[Sequence[int]], looked: Sequence[Sequence[int]]) -> Tensor:
    """(looked tokens of all rows in order, d) in `precision`: what a block's MLP reads there, edits included."""
    up, down = up_of(lm, layer), lm.architecture.down(layer)
    found: dict[int, Tensor] = {}
    for numbers, batch in lm.batches(rows):
        with watching(lm.model, inputs=[up]) as seen, stopping_before(lm.model, down):
            lm.hidden(batch)
        for row, n in enumerate(numbers):
            found[n] = seen[f"{up}.input"][row, list(looked[n])].to(lm.device, lm.precision)
    return torch.cat([found[n] for n in range(len(rows))])
