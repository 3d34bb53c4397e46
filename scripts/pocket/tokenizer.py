"""A byte-level BPE in which every object is one token.

In: sample sentences and the objects. Out: a `PreTrainedTokenizerFast` of about 5,000 entries.
"""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"


class ObjectNotOneToken(ValueError):
    """The trained vocabulary splits an object; more repetitions or a larger vocabulary are needed."""


def train_tokenizer(
    sentences: Iterable[str], objects: Sequence[str], vocabulary: int, repetitions: int = 320
) -> PreTrainedTokenizerFast:
    """Train on the sentences plus `repetitions` copies of every " object", then check each one."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = list(sentences) + [f" {name}" for name in objects for _ in range(repetitions)]
    bpe.train_from_iterator(text, trainer)
    split = [name for name in objects if len(bpe.encode(f" {name}").ids) != 1]
    if split:
        raise ObjectNotOneToken(f"{len(split)} objects take several tokens, among them {split[:5]}.")
    # GPT-2 would add token_type_ids as embeddings, so the tokenizer must not produce any.
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=END,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
