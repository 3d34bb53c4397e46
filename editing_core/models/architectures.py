"""One row per architecture family: where the editable parts are.

A row names modules relative to a block; which way a weight matrix lies is read from its module's type,
never from its shape. `Architecture.of` picks the row by `config.model_type`; what a row cannot know because
checkpoints of one family differ in it, the row says where in the configuration to read.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from editing_core.errors import ModelUnavailable
from editing_core.models.refusals import reason


@dataclass(frozen=True)
class Architecture:
    """Module paths of a family.

    mlp: the module that is a block's whole MLP, None where its linear layers stand in the block themselves.
    mlp_norm: the norm between the down-projection and the residual stream, None where its output is added as it is.
    parallel: attention and MLP read the same input and are added. parallel_by: the configuration's field that says
    so, where checkpoints differ. excluded: (field, value, what a model with it does), such models are refused.
    """

    family: str
    blocks: str
    attention_out: str
    mlp: str | None
    mlp_down: str
    final_norm: str
    parallel: bool = False
    parallel_by: str = ""
    mlp_norm: str | None = None
    excluded: tuple[tuple[str, Any, str], ...] = ()

    def block(self, layer: int) -> str:
        """Name of a block; its output is the residual stream after it."""
        return f"{self.blocks}.{layer}"

    def attention_out_of(self, layer: int) -> str:
        """Name of a block's attention output projection."""
        return f"{self.block(layer)}.{self.attention_out}"

    def attention_of(self, layer: int) -> str:
        """Name of a block's attention, which gives its output projection's output first."""
        return self.attention_out_of(layer).rpartition(".")[0]

    def mlp_of(self, layer: int) -> str | None:
        """Name of a block's MLP, which works token by token; None where no module is all of it."""
        return f"{self.block(layer)}.{self.mlp}" if self.mlp else None

    def down(self, layer: int) -> str:
        """Name of a block's MLP down-projection: its input is the key, its output the value."""
        return f"{self.block(layer)}.{self.mlp_down}"

    def mlp_norm_of(self, layer: int) -> str | None:
        """Name of the norm behind a block's MLP, if the family has one."""
        return f"{self.block(layer)}.{self.mlp_norm}" if self.mlp_norm else None

    def added(self, layer: int) -> str:
        """Name of the module whose output is what a block's MLP adds to the residual stream."""
        return self.mlp_norm_of(layer) or self.down(layer)

    @staticmethod
    def of(config: PretrainedConfig) -> "Architecture":
        """The row of a configuration; ModelUnavailable when there is none, or its weights cannot be edited."""
        row, kind = ARCHITECTURES.get(config.model_type), config.model_type
        if why := reason(config, known=row is not None):
            raise ModelUnavailable(f"This model of type {kind!r} {why}.")
        if row is None:
            known = ", ".join(sorted(ARCHITECTURES))
            raise ModelUnavailable(
                f"Models of type {kind!r} have no row in the architecture table; "
                f"choose a model of one of these types: {known}."
            )
        for name, value, does in row.excluded:
            if getattr(config, name, None) == value:
                raise ModelUnavailable(
                    f"This model of type {kind!r} has {name}={value}: it {does}, which editing cannot follow; "
                    "choose another checkpoint of the family."
                )
        return replace(row, parallel=bool(getattr(config, row.parallel_by))) if row.parallel_by else row


_LLAMA = Architecture(
    family="llama",
    blocks="model.layers",
    attention_out="self_attn.o_proj",
    mlp="mlp",
    mlp_down="mlp.down_proj",
    final_norm="model.norm",
)
_POST_NORM = replace(_LLAMA, family="post-norm", mlp_norm="post_feedforward_layernorm")
_GEMMA = replace(
    _POST_NORM, excluded=(("use_bidirectional_attention", True, "lets tokens see what stands behind them"),)
)

ARCHITECTURES = {
    "gemma": _LLAMA,
    "gemma2": replace(_GEMMA, family="gemma2"),
    "gemma3_text": replace(_GEMMA, family="gemma3_text"),
    "gpt2": Architecture(
        family="gpt2",
        blocks="transformer.h",
        attention_out="attn.c_proj",
        mlp="mlp",
        mlp_down="mlp.c_proj",
        final_norm="transformer.ln_f",
    ),
    "gpt_neox": Architecture(
        family="gpt_neox",
        blocks="gpt_neox.layers",
        attention_out="attention.dense",
        mlp="mlp",
        mlp_down="mlp.dense_4h_to_h",
        final_norm="gpt_neox.final_layer_norm",
        parallel_by="use_parallel_residual",
    ),
    "gptj": Architecture(
        family="gptj",
        blocks="transformer.h",
        attention_out="attn.out_proj",
        mlp="mlp",
        mlp_down="mlp.fc_out",
        final_norm="transformer.ln_f",
        parallel=True,
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "olmo2": replace(_POST_NORM, family="olmo2"),
    "olmo3": replace(_POST_NORM, family="olmo3"),
    "opt": Architecture(
        family="opt",
        blocks="model.decoder.layers",
        attention_out="self_attn.out_proj",
        mlp=None,
        mlp_down="fc2",
        final_norm="model.decoder.final_layer_norm",
        excluded=(("do_layer_norm_before", False, "normalises the residual stream itself behind every block"),),
    ),
    "phi": replace(
        _LLAMA,
        family="phi",
        attention_out="self_attn.dense",
        mlp_down="mlp.fc2",
        final_norm="model.final_layernorm",
        parallel=True,
    ),
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
}


def is_transposed(module: nn.Module) -> bool:
    """Whether the module stores its weight as (d_in, d_out), as GPT-2's Conv1D does."""
    return isinstance(module, Conv1D)


def window_of(config: PretrainedConfig) -> int | None:
    """How many tokens back attention looks at most, itself included, in the layers that look least far; None: all."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else True
    return getattr(text, "sliding_window", None) if slides else None
