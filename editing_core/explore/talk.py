"""Free generation under several states of one model, side by side: the same prompt, the same random numbers.

The states take turns, a few tokens each. Only while it is a state's turn its edit is on, so several people can
listen to one model, and whoever stops listening leaves nothing behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel
from editing_core.models.tokens import Batch
from editing_core.settings import Settings, setting
from editing_core.types import check_text

AT_ONCE = 8  # tokens of one turn


@dataclass(frozen=True)
class TalkSettings(Settings):
    """How tokens are chosen. Equal seeds give equal random numbers at equal places, under every state."""

    tokens: int = setting(60, "Most tokens of a text", low=1, high=400)
    temperature: float = setting(0.7, "0: always the likeliest token", low=0.0, high=2.0)
    top_k: int = setting(20, "The likeliest tokens one is drawn from", low=1, high=1000)
    seed: int = setting(0, "Of the draws", low=0, high=2**31 - 1)


class _Voice:
    """One state: its edit, the keys and values kept, the tokens the model has not read yet, and what was written.

    most: tokens it may write.
    """

    def __init__(self, delta: Edit, ids: Sequence[int], most: int) -> None:
        self.delta, self.unread, self.cache, self.most = delta, list(ids), DynamicCache(), most
        self.read, self.written, self.ended = 0, list[int](), False


class Talk:
    """Texts of one prompt under each state. `turn` writes on; `texts` are what was written, without the prompt."""

    def __init__(
        self,
        lm: LanguageModel,
        prompt: str,
        states: Sequence[Edit],
        settings: TalkSettings | None = None,
    ) -> None:
        lm.check_text(check_text(prompt, "prompt", lines=True))
        self.lm, self.settings = lm, settings or TalkSettings()
        self.voices = [self._voice(prompt, delta) for delta in states]
        drawn = torch.Generator().manual_seed(self.settings.seed)
        self.chances = torch.rand(self.settings.tokens, generator=drawn, dtype=torch.float64)

    def _voice(self, prompt: str, delta: Edit) -> _Voice:
        with self.lm.lock, delta.applied(self.lm) as edited:  # what is read around a prompt may be the edit itself
            ids = edited.coder.encode(prompt)
        self.lm.check_length(len(ids) + 1)
        return _Voice(delta, ids, min(self.settings.tokens, self.lm.context - len(ids)))

    @property
    def ended(self) -> bool:
        """Whether every text is at its end."""
        return all(voice.ended for voice in self.voices)

    @property
    def texts(self) -> list[str]:
        """What was written so far, one text per state."""
        return [str(self.lm.tokenizer.decode(v.written, skip_special_tokens=True)) for v in self.voices]

    def turn(self) -> list[str]:
        """Write at most AT_ONCE tokens under each state; the model is bit-equal before and after."""
        with self.lm.lock, torch.no_grad():
            for voice in self.voices:
                if not voice.ended:
                    with voice.delta.applied(self.lm):
                        self._write(voice)
        return self.texts

    def _write(self, voice: _Voice) -> None:
        for _ in range(AT_ONCE):
            token = self._choose(self._logits(voice), len(voice.written))
            voice.ended = token == self.lm.tokenizer.eos_token_id
            if not voice.ended:
                voice.written.append(token)
                voice.unread = [token]
                voice.ended = len(voice.written) >= voice.most
            if voice.ended:
                return

    def _logits(self, voice: _Voice) -> Tensor:
        """(vocabulary,) behind what was written so far."""
        ids = torch.tensor([voice.unread], device=self.lm.device)
        voice.read += len(voice.unread)
        mask = torch.ones(1, voice.read, dtype=torch.long, device=self.lm.device)
        lengths = torch.tensor([len(voice.unread)], device=self.lm.device)
        hidden = self.lm.hidden(Batch(ids, mask, lengths), voice.cache)
        return self.lm.logits(hidden[:, -1])[0]

    def _choose(self, logits: Tensor, place: int) -> int:
        if not self.settings.temperature:
            return int(logits.argmax())
        best = logits.topk(min(self.settings.top_k, len(logits)))
        reached = (best.values.double() / self.settings.temperature).softmax(-1).cumsum(-1)[:-1]
        return int(best.indices[int((reached.cpu() <= self.chances[place]).sum())])
