"""Refusals: what cannot be edited, told from a model's configuration before anything is loaded.

Editing changes the weight matrix of a decoder's dense MLP, or what stands beside it. Each reason completes the sentence
"This model ..." and ends with what to do instead.
"""

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from editing_core.models.weights import quantisation_of

EDITABLE = ("none", "int8", "nf4", "fp4")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok")


def reason(config: PretrainedConfig, known: bool = False) -> str | None:
    """Why a model with this configuration cannot be edited, None where nothing speaks against it.

    known: its family has a row in the architecture table, so only how its weights are kept is asked.
    """
    return (None if known else _structure(config)) or _storage(config)


def _storage(config: PretrainedConfig) -> str | None:
    if (quantised := quantisation_of(config)) not in EDITABLE:
        return (
            f"keeps its linear layers packed ({quantised}) in a way that EditScope does not edit beside; choose a "
            f"checkpoint that is plain, or packed by bitsandbytes ({', '.join(EDITABLE[1:])})"
        )
    return None


def _structure(config: PretrainedConfig) -> str | None:
    if _has_experts(config):
        return (
            "routes each token through some of many experts with packed weights, so it has no one down-projection to "
            "edit; choose a dense model"
        )
    if config.is_encoder_decoder:
        return (
            "reads its text with an encoder, while edits are made in a decoder that continues a text; choose one such "
            "as gpt2 or llama"
        )
    if config.get_text_config() is not config:
        return (
            "wraps its text model for other inputs such as images, where editing does not reach it; choose a text-only "
            "checkpoint"
        )
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "fills gaps in a text and does not continue it; choose a decoder such as gpt2 or llama"
    return None


def _has_experts(config: PretrainedConfig) -> bool:
    text = config.get_text_config()
    own = [getattr(text, name, None) for name in EXPERTS]
    inner = getattr(text, "ffn_config", None)
    own += [getattr(inner, name, None) for name in EXPERTS]
    return any(isinstance(count, int) and count > 1 for count in own)
