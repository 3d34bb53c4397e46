"""A stand-in for quantised linear layers: bytes and scales, unpacked in every forward."""

import torch
from torch import nn


class Packed(nn.Linear):
    """Eight bits per weight and a scale per row; the parameter has neither the shape nor the type of the matrix."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = linear.out_features, linear.in_features
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        numbers = (linear.weight.detach() / scale).round().to(torch.int16) + 128
        self.weight = nn.Parameter(numbers.to(torch.uint8).reshape(-1, 1), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def matrix(self) -> torch.Tensor:
        numbers = self.weight.reshape(self.out_features, self.in_features).to(self.scale.dtype)
        return (numbers - 128) * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.matrix(), self.bias)


def pack(model: nn.Module, names) -> None:
    """Put packed layers in place of the named linear ones."""
    for name in names:
        model.set_submodule(name, Packed(model.get_submodule(name)))


def unpack(model: nn.Module) -> None:
    """Put plain layers with the very weights they stand for in place of all packed ones."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Packed):
            plain = nn.Linear(module.in_features, module.out_features, module.bias is not None)
            plain.weight, plain.bias = nn.Parameter(module.matrix()), module.bias
            model.set_submodule(name, plain.requires_grad_(False))
