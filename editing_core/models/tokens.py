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

TOKENS_PER_FORWARD = 8192  # bounds the activations of a forward that keeps none for a backward pass
FORWARD_COST = 128  # what starting another forward costs, in tokens of one


@dataclass(frozen=True)
class Continuation:
    """A prompt with an object behind it. ids: all tokens; the object's start at `start`.

    fed: what the model reads where that is not simply all tokens but the last.
    """

    ids: tuple[int, ...]
    start: int
    fed: tuple[int, ...] = ()

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Tokens of the object, never empty."""
        return self.ids[self.start :]

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: all but the last token."""
        return self.fed or self.ids[:-1]

    @property
    def positions(self) -> range:
        """Positions in `inputs` whose logits predict the object's tokens."""
        return range(self.start - 1, len(self.ids) - 1)


@dataclass(frozen=True)
class Frame:
    """What a model reads around a prompt: nothing, or the parts of a chat template (see `chat`).

    head, tail: before and behind the prompt. joint: between that and an object. special: whether the tokenizer adds
    its special tokens; a template has its own.
    """

    head: str = ""
    tail: str = ""
    joint: str = " "
    special: bool = True

    def around(self, prompt: str) -> str:
        """The prompt in its place."""
        return f"{self.head}{prompt}{self.tail}"


PLAIN = Frame()


@dataclass(frozen=True, eq=False)
class Coder:
    """Prompts, with what stands around them, as tokens."""

    tokenizer: PreTrainedTokenizerBase
    frame: Frame = PLAIN

    @property
    def extra(self) -> int:
        """How many tokens the frame adds to a text."""
        return 0 if self.frame == PLAIN else len(self.encode(""))

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Ids of a prompt with the model's usual special tokens."""
        return self._ids([self.frame.around(prompt.rstrip(" "))])[0]

    def opening(self, prefix: str) -> tuple[int, ...]:
        """Ids of what prompts with this prefix begin with, up to a token at its end; empty where that is nothing."""
        text = f"{self.frame.head}{prefix}".rstrip(" ")
        return self._ids([text])[0] if text else ()

    def continuation(self, prompt: str, answer: str, objects: str = "joined") -> Continuation:
        """Encode the prompt with `answer` behind it; the object starts where the prompt's own encoding ends.

        objects "alone": as the published code does, see `_alone`.
        """
        return self.continuations([(prompt, answer)], objects)[0]

    def continuations(self, pairs: Sequence[tuple[str, str]], objects: str = "joined") -> list[Continuation]:
        """As `continuation`, of many (prompt, answer) at once: the tokenizer is called twice and not for each."""
        if objects == "alone":
            return [self._alone(prompt, answer) for prompt, answer in pairs]
        if not pairs:
            return []
        prompts = {prompt: self.frame.around(prompt.rstrip(" ")) for prompt, _ in pairs}
        bases = dict(zip(prompts, self._ids(list(prompts.values())), strict=True))
        fulls = self._ids([f"{prompts[prompt]}{self.frame.joint}{answer}" for prompt, answer in pairs])
        return [_continued(bases[prompt], full) for (prompt, _), full in zip(pairs, fulls, strict=True)]

    def subject_last(self, template: str, subject: str) -> int:
        """Index of the subject's last token when `subject` fills the one `{}` of `template`."""
        return self.last_token(template.replace("{}", subject), template.index("{}") + len(subject))

    def last_token(self, prompt: str, end: int) -> int:
        """Index of the token that covers the prompt's character before `end` (one past the subject's last)."""
        end += len(self.frame.head)
        offsets = [place for place, _ in self.places(prompt)]
        covering = [t for t, (start, stop) in enumerate(offsets) if start < end <= stop]
        return covering[-1] if covering else max(t for t, (_, stop) in enumerate(offsets) if 0 < stop <= end)

    def subject_tokens(self, template: str, subject: str) -> range:
        """Indices of the tokens the subject stands in when it fills the one `{}` of `template`."""
        start = len(self.frame.head) + template.index("{}")
        places = self.places(template.replace("{}", subject))
        touching = [t for t, ((begin, stop), _) in enumerate(places) if begin < start + len(subject) and stop > start]
        return range(touching[0], touching[-1] + 1)

    def places(self, prompt: str) -> list[tuple[tuple[int, int], str]]:
        """Per token of a prompt where it stands, frame included, and the text there."""
        text = self.frame.around(prompt)
        coded = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=self.frame.special)
        return [((start, stop), text[start:stop]) for start, stop in coded["offset_mapping"]]

    def _ids(self, texts: list[str]) -> list[tuple[int, ...]]:
        return [tuple(ids) for ids in self.tokenizer(texts, add_special_tokens=self.frame.special)["input_ids"]]

    def _alone(self, prompt: str, answer: str) -> Continuation:
        """The object's ids from encoding " answer" alone, its labels on the last positions of the text.

        On SentencePiece tokenizers this makes a stray space token the first label, one position too early.
        """
        ids = list(self.tokenizer(f"{self.frame.joint}{answer}", add_special_tokens=False)["input_ids"])
        if len(ids) > 1 and ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.unk_token_id):
            ids = ids[1:]
        inputs = self._ids([self.frame.around(prompt) + str(self.tokenizer.decode(ids[:-1]))])[0]
        ids = ids[-len(inputs) :]  # a row too short for all labels has places for the last ones only
        start = len(inputs) + 1 - len(ids)
        return Continuation((*inputs[:start], *ids), start, inputs)


def _continued(base: Sequence[int], full: Sequence[int]) -> Continuation:
    start = 0
    # A tokenizer may merge across the border; then the object starts at the first differing token.
    while start < min(len(base), len(full) - 1) and base[start] == full[start]:
        start += 1
    return Continuation(tuple(full), max(1, start))


@dataclass(frozen=True, eq=False)
class Batch:
    """Padded rows. ids, mask: (rows, tokens); lengths: (rows,) of the rows themselves.

    positions: (rows, tokens) where they are not simply counted. Rows that continue a kept past have a mask
    over that past and themselves. ends: (rows,) how many tokens of each row are its prompt, None where all are.
    """

    ids: Tensor
    mask: Tensor
    lengths: Tensor
    positions: Tensor | None = None
    ends: Tensor | None = None


def runs(lengths: Sequence[int], most: int = TOKENS_PER_FORWARD) -> list[list[int]]:
    """Row numbers, shortest row first, in runs that are padded to their longest: together each number once.

    A run ends where it would take more than `most` tokens, or where padding would cost more than the start of
    another forward does.
    """
    found: list[list[int]] = []
    real = 0
    for number in sorted(range(len(lengths)), key=lambda n: lengths[n]):
        length = lengths[number]
        padded = (len(found[-1]) + 1) * length if found else 0
        if not found or padded > most or padded - (real + length) > FORWARD_COST:
            found.append([])
            real = 0
        found[-1].append(number)
        real += length
    return found


def pad(rows: Sequence[Sequence[int]], device: torch.device | str, left: bool = False) -> Batch:
    """Stack token rows of different lengths. The padding id is arbitrary: the mask hides it.

    left: rows end together; positions then count the padding, which models with learned positions notice.
    """
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(ids.shape[1] - len(row), None) if left else slice(0, len(row))
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    return Batch(ids.to(device), mask.to(device), lengths.to(device))
