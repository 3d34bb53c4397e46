"""From text to token ids: objects after prompts, the subject's last token, right-padded batches.

Objects are never encoded alone: the ids of an object are what encoding "prompt object" adds to encoding
"prompt". Positions come from character offsets. Batches are padded on the right, so absolute positions
stay valid for models that learn them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Continuation:
    """A prompt with an object behind it. ids: all tokens; the object's start at `start`."""

    ids: tuple[int, ...]
    start: int

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Tokens of the object, never empty."""
        return self.ids[self.start :]

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: all but the last token."""
        return self.ids[:-1]

    @property
    def positions(self) -> range:
        """Positions in `inputs` whose logits predict the object's tokens."""
        return range(self.start - 1, len(self.ids) - 1)


def continuation(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> Continuation:
    """Encode `prompt + " " + answer`; the object starts where the prompt's own encoding ends."""
    prompt = prompt.rstrip(" ")
    base = tokenizer(prompt)["input_ids"]
    full = tokenizer(f"{prompt} {answer}")["input_ids"]
    start = 0
    # A tokenizer may merge across the border; then the object starts at the first differing token.
    while start < min(len(base), len(full) - 1) and base[start] == full[start]:
        start += 1
    return Continuation(tuple(full), max(1, start))


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[int, ...]:
    """Ids of a prompt with the model's usual special tokens."""
    return tuple(tokenizer(prompt.rstrip(" "))["input_ids"])


def last_token_of(tokenizer: PreTrainedTokenizerBase, text: str, end: int) -> int:
    """Index of the token that covers the character before `end` (one past the subject's last)."""
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    covering = [t for t, (start, stop) in enumerate(offsets) if start < end <= stop]
    return covering[-1] if covering else max(t for t, (_, stop) in enumerate(offsets) if 0 < stop <= end)


def subject_last(tokenizer: PreTrainedTokenizerBase, template: str, subject: str) -> int:
    """Index of the subject's last token when `subject` fills the one `{}` of `template`."""
    end = template.index("{}") + len(subject)
    return last_token_of(tokenizer, template.replace("{}", subject), end)


@dataclass(frozen=True, eq=False)
class Batch:
    """Right-padded rows. ids, mask: (rows, tokens); lengths: (rows,)."""

    ids: Tensor
    mask: Tensor
    lengths: Tensor


def pad(rows: Sequence[Sequence[int]], device: torch.device | str) -> Batch:
    """Stack token rows of different lengths. The padding id is arbitrary: the mask hides it."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return Batch(ids.to(device), mask.to(device), lengths.to(device))
