"""Weights: how many numbers and bytes a configuration stands for, told before anything is downloaded or read."""

import copy
import json
from collections.abc import Callable
from functools import lru_cache
from math import ceil
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

QUANTISATIONS = ("none", "int8", "nf4")  # how linear layers may be kept; all else keeps the model's dtype
# Of 4-bit weights: a byte for two, one for the scale of every 64, and four for the scale of every 256 scales.
NF4 = 1 / 2 + 1 / 64 + 4 / (64 * 256)


def parameters(config: PretrainedConfig) -> int:
    """Numbers in a model's weights, tied ones once."""
    return round(_summed(config, lambda _module, numbers: numbers))


def weight_bytes(config: PretrainedConfig, dtype: torch.dtype, quantised: str = "none") -> int:
    """What the weights take once they are loaded. quantised: of QUANTISATIONS; any other way is taken as none."""

    def size(module: nn.Module, numbers: int) -> float:
        if not isinstance(module, nn.Linear | Conv1D) or quantised not in QUANTISATIONS[1:]:
            return dtype.itemsize * numbers
        bias = module.bias.numel() if module.bias is not None else 0
        rows = module.nf if isinstance(module, Conv1D) else module.out_features
        packed = (numbers - bias) * NF4 if quantised == "nf4" else numbers - bias + 4 * rows
        return packed + bias * dtype.itemsize

    return ceil(_summed(config, size))


def _summed(config: PretrainedConfig, size: Callable[[nn.Module, int], float]) -> float:
    """Sizes of all modules' own parameters. Blocks are alike, so one and two of them tell of all.

    size: of a module and how many numbers it has itself. The output layer counts as no linear one.
    """
    depth: int = config.get_text_config().num_hidden_layers
    one, two = (sum(size(*found) for found in _modules(config.to_json_string(), count)) for count in (1, 2))
    return one + (depth - 1) * (two - one)


@lru_cache(maxsize=64)
def _modules(text: str, depth: int) -> tuple[tuple[nn.Module, int], ...]:
    """Modules with parameters of their own, and how many numbers those are. text: a configuration, cut in depth."""
    values = json.loads(text)
    values.pop("quantization_config", None)
    small = copy.deepcopy(AutoConfig.for_model(values.pop("model_type"), **values))
    small.get_text_config().num_hidden_layers = depth
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(small)
    head, seen, found = model.get_output_embeddings(), set(), []
    for module in model.modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen |= {id(p) for p in own}
        if own:
            found.append((nn.Identity() if module is head else module, sum(p.numel() for p in own)))
    return tuple(found)


def quantisation_of(config: PretrainedConfig) -> str:
    """How a checkpoint's linear layers are packed: "nf4", "int8", the name of another way, or "none"."""
    found: Any = getattr(config, "quantization_config", None)
    if not found:
        return "none"
    told = found if isinstance(found, dict) else found.to_dict()
    if told.get("load_in_8bit"):
        return "int8"
    if told.get("load_in_4bit"):
        return str(told.get("bnb_4bit_quant_type", "fp4"))
    method = told.get("quant_method")
    return str(getattr(method, "value", method) or "quantised")
