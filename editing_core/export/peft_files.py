"""A LoRA adapter in the files of `peft`, read as an edit of weights. Nothing in the files is executed or unpickled.

What an adapter does beyond adding alpha / r * B A to weights is no such edit, and is refused with its name.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from editing_core.errors import BadRequest
from editing_core.export.adapter import CONFIG, TENSORS
from editing_core.export.fitting import FLOATS, MAX_BYTES, MAX_RANK, adaptable, sharing
from editing_core.export.origin import Origin
from editing_core.export.patterns import first_match, is_target
from editing_core.models.delta import LowRank, WeightDelta
from editing_core.models.language_model import LanguageModel
from editing_core.models.memory import told

MAX_CONFIG = 2**20
_OTHER = "choose a plain LoRA adapter"
# How each tensor's name ends, and what it is.
ENDS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
    ".base_layer.weight": "base",
    ".weight": "base",
}
REASONS = (
    ("lora_magnitude_vector", "DoRA, which rescales weights instead of adding to them"),
    ("modules_to_save", "whole modules beside the factors"),
    (".bias", "biases"),
)
# Options that say nothing about what a loaded adapter does, or that are honoured below.
HARMLESS = frozenset(
    (
        *("peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "inference_mode"),
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "lora_dropout"),
        *("bias", "init_lora_weights", "eva_config", "megatron_core", "qalora_group_size"),
    )
)
# These leave the base weights alone when an adapter is loaded; others, such as pissa, take something off them.
INITS = (True, False, None, "gaussian", "eva", "orthogonal")


def read_adapter(lm: LanguageModel, folder: Path) -> WeightDelta:
    """The adapter in a folder as the edit it is, with what it says of its origin; BadRequest where it is none.

    Call with the model's lock held. The edit is finite and fits where `fitting.check_fits` says so.
    """
    config = _config(folder)
    tensors, texts = _tensors(folder)
    pairs = _pairs(lm, tensors)
    updates: dict[str, LowRank] = {}
    for module, pair in pairs.items():
        _check_target(config, module)
        updates[module] = pair.update(lm, module, config)
    origin = {**_provenance(texts), "model": str(config.get("base_model_name_or_path") or "")}
    origin = {"editor": "a LoRA adapter", **origin, "revision": str(config.get("revision") or "")}
    return WeightDelta(_untied(lm, updates), Origin.of(origin).texts())


def _file(folder: Path, name: str, most: int) -> Path:
    path = folder / name
    if path.is_symlink() or not path.is_file():
        pickled = next(folder.glob("*.bin"), None)
        hint = " (a .bin file is a pickle, which can run code and is never read)" if pickled else ""
        raise BadRequest(f"{folder.name} holds no file {name}{hint}; {_OTHER} saved as safetensors.")
    if (size := path.stat().st_size) > most:
        raise BadRequest(f"{name} takes {told(size)}, at most {told(most)} are read; choose a smaller adapter.")
    return path


def _config(folder: Path) -> dict[str, Any]:
    path = _file(folder, CONFIG, MAX_CONFIG)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadRequest(f"{CONFIG} could not be read as JSON; {_OTHER}.") from error
    if not isinstance(config, dict):
        raise BadRequest(f"{CONFIG} holds no JSON object; {_OTHER}.")
    _check_config(config)
    return config


def _check_config(config: Mapping[str, Any]) -> None:
    """Nothing that makes a loaded adapter more than factors beside weights."""
    kind, init = config.get("peft_type"), config.get("init_lora_weights", True)
    # sorted, so that the same file is refused by the same words
    strange = sorted(str(name)[:60] for name, value in config.items() if value and name not in HARMLESS)
    patterns = [config.get(name) or {} for name in ("rank_pattern", "alpha_pattern")]
    problems = {
        f"is of type {str(kind)[:40]!r}, only LORA is an edit of weights": kind != "LORA",
        "uses DoRA, which rescales weights instead of adding to them": bool(config.get("use_dora")),
        "changes biases, which is not read": config.get("bias", "none") not in ("none", None),
        f"was begun by {str(init)[:40]!r}, which changes the base model too": init not in INITS,
        f"uses {', '.join(strange[:5])}, which is not read": bool(strange),
        "has patterns that are no JSON object": not all(isinstance(pattern, dict) for pattern in patterns),
    }
    for problem, found in problems.items():
        if found:
            raise BadRequest(f"The adapter {problem}; {_OTHER}.")


def _tensors(folder: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """All tensors by name, and the texts kept with them."""
    path = _file(folder, TENSORS, MAX_BYTES)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            texts: Mapping[str, str] = file.metadata() or {}
    except Exception as error:
        # Beside its own kind the library raises several others on damaged input.
        reason = "damaged or cut off" if isinstance(error, SafetensorError) else "not readable"
        raise BadRequest(f"{TENSORS} is {reason}; copy the adapter again.") from error
    for key, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise BadRequest(f"{key[:80]} holds numbers of type {tensor.dtype}, floating ones are needed; {_OTHER}.")
        if not bool(tensor.isfinite().all()):
            raise BadRequest(f"{key[:80]} holds numbers that are infinite or undefined; {_OTHER}.")
    return tensors, texts


def _provenance(texts: Mapping[str, str]) -> dict[str, Any]:
    """What an adapter written by `write_adapter` says of itself."""
    try:
        told_of = json.loads(texts.get("provenance") or "{}")
    except (ValueError, RecursionError):
        return {}
    return told_of if isinstance(told_of, dict) else {}


@dataclass(frozen=True, eq=False)
class Pair:
    """The factors of a module as they are stored."""

    a: Tensor
    b: Tensor

    def update(self, lm: LanguageModel, module: str, config: Mapping[str, Any]) -> LowRank:
        """The product that is added to the module's weight."""
        rank = self._check_ranks(module, config)
        scale = _scale(config, module, rank)
        a, b = (t if t.dtype == torch.float64 else t.float() for t in (self.a, self.b))
        b = b if scale == 1 else b * scale
        if isinstance(lm.model.get_submodule(module), nn.Embedding):  # (vocabulary, r) @ (r, d)
            return LowRank(a.T.contiguous(), b.T.contiguous())
        return LowRank(b, a)

    def _check_ranks(self, module: str, config: Mapping[str, Any]) -> int:
        flat = self.a.dim() != 2 or self.b.dim() != 2
        rank = 0 if flat else self.a.shape[0]
        if flat or not 1 <= rank <= MAX_RANK or self.b.shape[1] != rank:
            shapes = f"{tuple(self.a.shape)} and {tuple(self.b.shape)}"
            raise BadRequest(
                f"The factors of {module} have shapes {shapes}, (r, in) and (out, r) with r up to {MAX_RANK:,} are "
                f"needed; {_OTHER}."
            )
        said = _number(config, "r", first_match(config.get("rank_pattern") or {}, module), 8)
        if said != rank:
            raise BadRequest(f"{CONFIG} says rank {said:g} of {module}, its factors have {rank}; {_OTHER}.")
        return rank


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = _number(config, "lora_alpha", first_match(config.get("alpha_pattern") or {}, module), 8)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _number(config: Mapping[str, Any], name: str, own: Any, usual: int) -> float:
    """The module's own number where a pattern gives one, else the adapter's."""
    value = config.get(name, usual) if own is None else own
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise BadRequest(f"{name} of the adapter is {str(value)[:40]!r}, a number is needed; {_OTHER}.")
    return float(value)


def _check_target(config: Mapping[str, Any], module: str) -> None:
    if not is_target(config.get("target_modules"), module):
        raise BadRequest(f"target_modules does not name {module}, of which there are factors; {_OTHER}.")


def _pairs(lm: LanguageModel, tensors: Mapping[str, Tensor]) -> dict[str, Pair]:
    """The factors of every module, once it is sure that there is nothing else."""
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, part = _place(lm, key)
        if part == "base":
            _check_whole(lm, module, tensor)
        else:
            factors.setdefault(module, {})[part] = tensor
    for module, parts in factors.items():
        if len(parts) < 2:
            raise BadRequest(f"Of {module} there is only factor {next(iter(parts))}, both are needed; {_OTHER}.")
    return {module: Pair(parts["A"], parts["B"]) for module, parts in factors.items()}


def _place(lm: LanguageModel, key: str) -> tuple[str, str]:
    """The module a tensor belongs to, and which part of it: "A", "B" or "base"."""
    for sign, reason in REASONS:
        if sign in key:
            raise BadRequest(f"The adapter holds {reason} ({key[:80]!r}), which is not read; {_OTHER}.")
    name = key.removeprefix("base_model.model.")
    end = next((end for end in ENDS if name.endswith(end)), None)
    if name == key or end is None:
        raise BadRequest(f"The adapter holds a tensor {key[:80]!r}, only LoRA factors are read; {_OTHER}.")
    module = name.removesuffix(end)
    try:
        found = lm.model.get_submodule(module) if module else None
    except AttributeError:
        found = None
    if found is None or not (adaptable(found) or ENDS[end] == "base"):
        raise BadRequest(
            f"The adapter changes {module[:80]!r}, which {lm.name} has no linear layer or embedding of; "
            "choose one that was made for it."
        )
    if ENDS[end] != "base" and ("embedding" in end) != isinstance(found, nn.Embedding):
        raise BadRequest(f"The factors of {module} are those of another kind of layer; {_OTHER}.")
    return module, ENDS[end]


def _check_whole(lm: LanguageModel, module: str, tensor: Tensor) -> None:
    """Peft keeps whole embeddings beside their factors; they must be the model's own."""
    own = getattr(lm.model.get_submodule(module), "weight", None)
    if own is None or own.shape != tensor.shape or not torch.equal(own.detach().cpu().to(tensor.dtype), tensor):
        raise BadRequest(f"The adapter replaces the weights of {module} by its own, which is not read; {_OTHER}.")


def _untied(lm: LanguageModel, updates: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Updates by parameter; where modules share one, all must have the same."""
    known = {id(parameter): name for name, parameter in lm.model.named_parameters()}
    found: dict[str, LowRank] = {}
    for module, update in updates.items():
        name = f"{module}.weight"
        for other in sharing(lm.model, name):
            twin = updates.get(other)
            if twin is None or not (torch.equal(twin.left, update.left) and torch.equal(twin.right, update.right)):
                raise BadRequest(
                    f"The adapter does not change {module} and {other} alike, which are one weight in {lm.name}, so it "
                    f"is no edit of that weight; {_OTHER} for other layers."
                )
        found[known[id(lm.model.get_parameter(name))]] = update
    return found
