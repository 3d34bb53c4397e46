"""One row per architecture family: where the editable parts are.

A row names modules relative to a block; which way a weight matrix lies is read from its module's type,
never from its shape. `Architecture.of` picks the row by `config.model_type`.
"""

from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from editing_core.errors import ModelUnavailable


@dataclass(frozen=True)
class Architecture:
    """Module paths of a family. `parallel`: attention and MLP read the same input and are added."""

    family: str
    blocks: str
    attention_out: str
    mlp: str
    mlp_down: str
    final_norm: str
    parallel: bool = False

    def block(self, layer: int) -> str:
        """Name of a block; its output is the residual stream after it."""
        return f"{self.blocks}.{layer}"

    def attention_out_of(self, layer: int) -> str:
        """Name of a block's attention output projection."""
        return f"{self.block(layer)}.{self.attention_out}"

    def attention_of(self, layer: int) -> str:
        """Name of a block's attention, which gives its output projection's output first."""
        return self.attention_out_of(layer).rpartition(".")[0]

    def mlp_of(self, layer: int) -> str:
        """Name of a block's MLP, which works token by token."""
        return f"{self.block(layer)}.{self.mlp}"

    def down(self, layer: int) -> str:
        """Name of a block's MLP down-projection: its input is the key, its output the value."""
        return f"{self.block(layer)}.{self.mlp_down}"

    @staticmethod
    def of(config: PretrainedConfig) -> "Architecture":
        """The row of a configuration; ModelUnavailable when there is none."""
        row = ARCHITECTURES.get(config.model_type)
        if row is None:
            known = ", ".join(sorted(ARCHITECTURES))
            raise ModelUnavailable(
                f"Models of type {config.model_type!r} have no row in the architecture table; "
                f"choose a model of one of these types: {known}."
            )
        return row


_LLAMA = Architecture(
    family="llama",
    blocks="model.layers",
    attention_out="self_attn.o_proj",
    mlp="mlp",
    mlp_down="mlp.down_proj",
    final_norm="model.norm",
)

ARCHITECTURES = {
    "gpt2": Architecture(
        family="gpt2",
        blocks="transformer.h",
        attention_out="attn.c_proj",
        mlp="mlp",
        mlp_down="mlp.c_proj",
        final_norm="transformer.ln_f",
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
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}


def is_transposed(module: nn.Module) -> bool:
    """Whether the module stores its weight as (d_in, d_out), as GPT-2's Conv1D does."""
    return isinstance(module, Conv1D)
