"""The shapes a pocket model can have: one row per family.

All learn the same facts with the same tokenizer, so that what differs between two of them when edited is the
architecture. A row's `read_block` is the first block that may look back at a subject's last token in training:
the blocks below it must assemble the fact there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

CONTEXT = 256
# What GPT-2 and GPT-J take by default, gelu_new, is a slow composite on the CPU; this one is fused.
ACTIVATION = "gelu_pytorch_tanh"
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@dataclass(frozen=True)
class Family:
    """One shape. shipped: its weights come with EditScope; a larger one stays in the work folder.

    build: from the size of the vocabulary and the id of the end token to a fresh model.
    """

    name: str
    build: Callable[[int, int], PreTrainedModel]
    read_block: int
    shipped: bool = True


def gpt2(vocabulary: int, end: int, blocks: int = 6, width: int = 256, heads: int = 4) -> PreTrainedModel:
    """Learned positions, attention and MLP one after the other; 6.1M parameters."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=CONTEXT,
        n_embd=width,
        n_layer=blocks,
        n_head=heads,
        activation_function=ACTIVATION,
        bos_token_id=end,
        eos_token_id=end,
        **NO_DROPOUT,
    )
    return GPT2LMHeadModel(config)


def llama(vocabulary: int, end: int) -> PreTrainedModel:
    """Rotary positions, RMSNorm and a gated MLP, as wide as gives it GPT-2's number of weights; 6.1M parameters."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=CONTEXT,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
    )
    return LlamaForCausalLM(config)


def gptj(vocabulary: int, end: int) -> PreTrainedModel:
    """Rotary positions, attention and MLP side by side; 6.8M parameters.

    One block more than the others have, below the block that reads: an MLP sees the attention of earlier
    blocks only. GPT-J ties its embeddings when told to; untied it would be too large to ship.
    """
    config = GPTJConfig(
        vocab_size=vocabulary,
        n_positions=CONTEXT,
        n_embd=256,
        n_layer=7,
        n_head=4,
        rotary_dim=32,
        activation_function=ACTIVATION,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        **NO_DROPOUT,
    )
    return GPTJForCausalLM(config)


FAMILIES = {
    "gpt2": Family("pocket-gpt2", gpt2, read_block=3),
    "llama": Family("pocket-llama", llama, read_block=3),
    "gptj": Family("pocket-gptj", gptj, read_block=4),
    "gpt2-large": Family("pocket-gpt2-large", partial(gpt2, blocks=8, width=384, heads=6), read_block=4, shipped=False),
}
