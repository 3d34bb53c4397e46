"""Placing: a model on another device for a while; its own tensors are back afterwards without being copied."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def placed(model: nn.Module, device: str) -> Iterator[None]:
    """Inside the block the model is a copy on `device`; afterwards it has the very tensors it had before.

    What was changed inside is gone with the copy. Nothing is copied where the model is on the device already.
    """
    where = torch.device(device)
    if {p.device.type for p in model.parameters()} == {where.type}:
        yield
        return
    # Weights are kept beside their parameters, because `to` puts other numbers into the same parameter.
    weights = [(m, name, p, p.data) for m in model.modules() for name, p in m.named_parameters(recurse=False)]
    buffers = [(m, name, tensor) for m in model.modules() for name, tensor in m.named_buffers(recurse=False)]
    try:
        model.to(where)
        yield
    finally:
        for module, name, parameter, data in weights:
            parameter.data = data
            module._parameters[name] = parameter
        for module, name, tensor in buffers:
            module._buffers[name] = tensor
