"""Weights made trainable for a while: chosen parameters themselves, or low-rank adapters beside them.

Both are context managers: inside, `parameters` carry gradients and `delta()` tells what training has changed
so far, as a value; outside, the model is bit-equal to before, also after an error or a cancel.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editing_core.errors import BadSetting
from editing_core.models.architectures import is_transposed
from editing_core.models.delta import Dense, LowRank, Update, WeightDelta
from editing_core.models.language_model import LanguageModel
from editing_core.models.loading import device_of
from editing_core.models.slots import Slot

ADAPTER = "default"  # the name peft gives an adapter that needs none
PARTS = ("attention", "mlp")


@dataclass(frozen=True, eq=False)
class Trainable:
    """parameters: what an optimiser steps on. delta: what they amount to as an edit of the model's weights.

    dropout: switches the dropout of adapters on, for training; the model's own stays off.
    """

    parameters: tuple[nn.Parameter, ...]
    delta: Callable[[], WeightDelta]
    dropout: Callable[[bool], None] = lambda _on: None


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter: update = alpha / rank * B A. Source: Hu et al. 2022, https://arxiv.org/abs/2106.09685."""

    rank: int
    alpha: float
    dropout: float = 0.0


@contextmanager
def unfrozen(lm: LanguageModel, names: Sequence[str]) -> Iterator[Trainable]:
    """Train the named parameters in place; their originals are copied back in the end.

    BadSetting where one of them is packed or offloaded.
    """
    parameters = {name: lm.model.get_parameter(name) for name in names}
    if kept := sum(not Slot.of(lm.model, name).plain for name in names):
        raise BadSetting(
            f"{lm.name} keeps {kept} of the weights to train packed or offloaded, where they cannot be trained; "
            "train an adapter (lora=true), or load the model plain and whole."
        )
    originals = {name: p.detach().clone() for name, p in parameters.items()}

    def delta() -> WeightDelta:
        return WeightDelta(
            {n: _difference(lm.model, n, p, originals[n]) for n, p in parameters.items() if _moved(p, originals[n])}
        )

    try:
        for p in parameters.values():
            p.requires_grad_(True)
        yield Trainable(tuple(parameters.values()), delta)
    finally:
        with torch.no_grad():
            for name, p in parameters.items():
                p.requires_grad_(False)
                p.grad = None
                p.copy_(originals[name])


def _moved(now: Tensor, before: Tensor) -> bool:
    return not torch.equal(now.detach(), before)


@torch.no_grad()
def _difference(model: nn.Module, name: str, now: Tensor, before: Tensor) -> Dense:
    """What was added to a parameter, in maths orientation. float32 holds what training in float32 can change."""
    value = (now.double() - before.double()).float().cpu()
    turned = value.dim() == 2 and is_transposed(model.get_submodule(name.rpartition(".")[0]))
    return Dense(value.T.contiguous() if turned else value)


@contextmanager
def adapted(lm: LanguageModel, modules: Sequence[str], lora: Lora) -> Iterator[Trainable]:
    """Train a LoRA adapter on the named linear modules and embeddings, made and run by `peft`.

    Dropout acts on the adapter only. The adapter is kept in float32 whatever the model's own precision.
    """
    from peft import LoraConfig  # here, because the import takes seconds
    from peft.tuners.lora import LoraModel

    originals = {name: lm.model.get_submodule(name) for name in modules}
    for name, module in originals.items():
        if not isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            raise BadSetting(
                f"There is no adapter for {name}, a layer of type {type(module).__name__}; use another editor, or load "
                "the model plain."
            )
    turned = any(is_transposed(module) for module in originals.values())
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=lora.dropout,
        target_modules=list(modules),
        fan_in_fan_out=turned,
    )
    try:
        LoraModel(lm.model, config, ADAPTER)
        layers = {name: lm.model.get_submodule(name) for name in modules}
        factors = {name: _factors(layer) for name, layer in layers.items()}

        def dropout(on: bool) -> None:
            for layer in layers.values():
                layer.lora_dropout.train(on)  # type: ignore[union-attr]

        def delta() -> WeightDelta:
            return WeightDelta({f"{n}.weight": _update(layers[n], *factors[n]) for n in modules})

        dropout(False)
        yield Trainable(tuple(p for pair in factors.values() for p in pair), delta, dropout)
    finally:
        for name, module in originals.items():
            parent, _, child = name.rpartition(".")
            setattr(lm.model.get_submodule(parent), child, module)
        if hasattr(lm.model, "peft_config"):
            del lm.model.peft_config


def _factors(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    """A and B of an adapted layer, in float32."""
    base: nn.Module = layer.base_layer  # type: ignore[assignment]
    embeds = isinstance(base, nn.Embedding)
    names = ("lora_embedding_A", "lora_embedding_B") if embeds else ("lora_A", "lora_B")
    parts = [getattr(layer, name)[ADAPTER] for name in names]
    if not embeds and parts[0].weight.device.type == "meta":  # as an offloaded layer's weights are
        for part in parts:
            part.to_empty(device=device_of(base))
        layer.reset_lora_parameters(ADAPTER, init_lora_weights=True)  # type: ignore[operator]
    parameters: list[nn.Parameter] = [part if embeds else part.weight for part in parts]
    for parameter in parameters:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return parameters[0], parameters[1]


@torch.no_grad()
def _update(layer: nn.Module, a: Tensor, b: Tensor) -> Update:
    """The layer's adapter as factors: (d_out, r) @ (r, d_in), of an embedding (vocabulary, r) @ (r, d)."""
    scaled = b.detach().cpu() * float(layer.scaling[ADAPTER])  # type: ignore[index]
    a = a.detach().cpu().clone()
    if isinstance(layer.base_layer, nn.Embedding):
        return LowRank(a.T.contiguous(), scaled.T.contiguous())
    return LowRank(scaled.clone(), a)


def linear_modules(lm: LanguageModel, parts: Sequence[str], layers: Sequence[int] | None = None) -> list[str]:
    """Names of the linear modules in attention and MLP ("attention", "mlp") of the layers, of all without."""
    a = lm.architecture
    roots = {"attention": a.attention_out.rpartition(".")[0], "mlp": a.mlp}
    found = []
    for layer in range(lm.layers) if layers is None else layers:
        block = lm.model.get_submodule(a.block(layer))
        for name, module in block.named_modules():
            # Linear modules of an MLP that is no module of its own stand in the block itself.
            inside = any(name.startswith(f"{roots[part]}.") if roots[part] else "." not in name for part in parts)
            if inside and isinstance(module, nn.Linear | Conv1D):
                found.append(f"{a.block(layer)}.{name}")
    return found


def embedding_module(lm: LanguageModel) -> str:
    """Name of the input embeddings; BadSetting where the output shares them, which an adapter would not reach."""
    wanted = lm.model.get_input_embeddings()
    if lm.model.get_output_embeddings().weight is wanted.weight:
        raise BadSetting(
            f"{lm.name} shares its input embeddings with the output, so an adapter for one of them is no edit of the "
            "weights; set embeddings off."
        )
    return str(next(name for name, module in lm.model.named_modules() if module is wanted))


def parameters_in(lm: LanguageModel, modules: Sequence[str] | None = None) -> list[str]:
    """Names of the parameters inside the named modules, of all without; tied ones once."""
    names = [name for name, _ in lm.model.named_parameters()]
    if modules is None:
        return names
    return [name for name in names if any(name.startswith(f"{module}.") for module in modules)]
