"""A low-rank edit as a LoRA adapter in the files of `peft`, for any installation that has that library.

The factors are taken as they are, so the adapter is the edit: rank r, alpha = r, nothing merged or compressed.
"""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from editing_core.errors import BadRequest
from editing_core.models.architectures import is_transposed
from editing_core.models.delta import LowRank, WeightDelta
from editing_core.models.language_model import LanguageModel


def save_adapter(lm: LanguageModel, delta: WeightDelta, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors into the folder, which is made where it is missing.

    lm: the unedited model the edit is for. BadRequest where the edit is empty or has updates without factors.
    """
    from peft import LoraConfig  # here, because the import takes seconds

    factors = {name.removesuffix(".weight"): _factors(name, update) for name, update in delta.updates.items()}
    if not factors:
        raise BadRequest("The edit changes nothing, so there is no adapter to write; choose an edit that took.")
    modules = {name: lm.model.get_submodule(name) for name in factors}
    ranks = {name: update.left.shape[1] for name, update in factors.items()}
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        rank_pattern=ranks,
        alpha_pattern=ranks,
        target_modules=list(factors),
        fan_in_fan_out=any(is_transposed(module) for module in modules.values()),
        base_model_name_or_path=getattr(lm.model.config, "_name_or_path", None) or lm.name,
        revision=lm.revision,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    tensors: dict[str, Tensor] = {}
    for name, update in factors.items():
        tensors |= _tensors(f"base_model.model.{name}", update, isinstance(modules[name], nn.Embedding))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(folder))
    except OSError as error:
        raise BadRequest(
            f"The adapter cannot be written to {folder} ({error.strerror}); name another folder."
        ) from error


def _factors(name: str, update: object) -> LowRank:
    if not isinstance(update, LowRank) or not name.endswith(".weight"):
        raise BadRequest(
            f"The update of {name} is no product of two thin matrices, which an adapter is; save the edit as it is, or "
            "train with an adapter."
        )
    return update


def _tensors(name: str, update: LowRank, embeds: bool) -> dict[str, Tensor]:
    """A and B under the names peft gives them, in float32."""
    left, right = (t.float().cpu().contiguous() for t in (update.left, update.right))
    if embeds:  # (vocabulary, r) @ (r, d) there
        return {f"{name}.lora_embedding_A": left.T.contiguous(), f"{name}.lora_embedding_B": right.T.contiguous()}
    return {f"{name}.lora_A.weight": right, f"{name}.lora_B.weight": left}
