"""A low-rank edit as a LoRA adapter in the files of `peft`, for any installation that has that library.

The factors are taken as they are, so the adapter is the edit: rank r, alpha = r, nothing merged or compressed. Where
two modules share a weight, as embeddings and output often do, both get the factors.
"""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from editing_core.errors import BadRequest
from editing_core.export.card import README, card
from editing_core.export.fitting import adaptable, check_fits, sharing, weights_of
from editing_core.export.folders import whole_folder
from editing_core.export.origin import base_name, made_here
from editing_core.files import write_text
from editing_core.models.architectures import is_transposed
from editing_core.models.delta import LowRank, Update, WeightDelta
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
OWN = frozenset({CONFIG, TENSORS, README})


def write_adapter(lm: LanguageModel, delta: Edit, folder: Path) -> None:
    """Write the adapter and its README.md into a folder, whole or not at all; an earlier adapter there is replaced.

    lm: the unedited model the edit is for. BadRequest where the edit is empty, no change of weights, or has updates
    without factors, or where the folder cannot be written.
    """
    from peft import LoraConfig  # here, because the import takes seconds

    delta = weights_of(made_here(lm, delta), delta.can_export_as_adapter, "an adapter")
    with lm.lock:
        factors = _factors(lm, delta)
        modules = {name: lm.model.get_submodule(name) for name in factors}
    ranks = {name: update.left.shape[1] for name, update in factors.items()}
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        rank_pattern=ranks,
        alpha_pattern=ranks,
        target_modules=list(factors),
        fan_in_fan_out=any(is_transposed(module) for module in modules.values()),
        base_model_name_or_path=base_name(lm),
        revision=lm.revision,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    tensors: dict[str, Tensor] = {}
    for name, update in factors.items():
        tensors |= _tensors(f"base_model.model.{name}", update, isinstance(modules[name], nn.Embedding))
    told = {"format": "pt", "provenance": json.dumps(dict(delta.provenance))}
    with whole_folder(folder, OWN) as part:
        save_file(tensors, part / TENSORS, metadata=told)
        config.save_pretrained(str(part))
        write_text(part / README, card(lm, delta, "adapter"))


def _factors(lm: LanguageModel, delta: WeightDelta) -> dict[str, LowRank]:
    """The factors of every module that is to be adapted."""
    factors: dict[str, LowRank] = {}
    for name, update in delta.updates.items():
        low = _low_rank(name, update)
        if low.left.shape[1]:
            factors |= dict.fromkeys(_modules(lm, name), low)
    if not factors:
        raise BadRequest("The edit changes nothing, so there is no adapter to write; choose an edit that took.")
    check_fits(lm, delta)
    return factors


def _modules(lm: LanguageModel, name: str) -> list[str]:
    """The modules that a parameter is the weight of; BadRequest where an adapter cannot stand beside one."""
    try:
        modules = sharing(lm.model, name)
    except AttributeError:
        modules = []
    if not modules or not all(adaptable(lm.model.get_submodule(module)) for module in modules):
        raise BadRequest(
            f"{name} is no weight of a linear layer or an embedding of {lm.name}, which an adapter needs; save the "
            "edit as it is."
        )
    return modules


def _low_rank(name: str, update: Update) -> LowRank:
    if not isinstance(update, LowRank) or not name.endswith(".weight"):
        raise BadRequest(
            f"The update of {name} is no product of two thin matrices, which an adapter is; save the edit as it is, "
            "or export it as an adapter with a rank or a share of its energy to give up."
        )
    return update


def _tensors(name: str, update: LowRank, embeds: bool) -> dict[str, Tensor]:
    """A and B under the names peft gives them, in float32; own copies, because tied modules get the same factors."""
    left, right = (t.float().cpu().clone().contiguous() for t in (update.left, update.right))
    if embeds:  # (vocabulary, r) @ (r, d) there
        return {f"{name}.lora_embedding_A": left.T.contiguous(), f"{name}.lora_embedding_B": right.T.contiguous()}
    return {f"{name}.lora_A.weight": right, f"{name}.lora_B.weight": left}
