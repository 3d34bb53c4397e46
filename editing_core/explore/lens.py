"""Logit lens: what a model would say if it stopped after each block.

The state after a block is normed and read by the model's head as its last one is. Source: nostalgebraist 2020,
"interpreting GPT: the logit lens". Early states are not made to be read like this; what shows is when an answer
becomes readable, not when it is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing_core.evaluation.scoring import TokenChance
from editing_core.models.delta import WeightDelta
from editing_core.models.edit import Edit
from editing_core.models.hooks import state_of, watching
from editing_core.models.language_model import LanguageModel, fitted
from editing_core.models.loading import device_of
from editing_core.types import check_text


@dataclass(frozen=True, eq=False)
class Lens:
    """What one prompt looks like through the lens under one state of the weights.

    tokens: of the prompt. top: [layer][token] the likeliest next tokens, best first. chances: by object, (layers,)
    probability of its first token behind the prompt.
    """

    tokens: tuple[str, ...]
    top: tuple[tuple[tuple[TokenChance, ...], ...], ...]
    chances: dict[str, Tensor]

    def first(self, layer: int, token: int) -> TokenChance:
        """The likeliest next token."""
        return self.top[layer][token][0]


def through_lens(
    lm: LanguageModel, prompt: str, objects: Sequence[str], delta: Edit | None = None, count: int = 5
) -> Lens:
    """Read every state of a prompt, with an edit on if one is given; it is off again afterwards.

    BadRequest for a prompt or an object that cannot be read.
    """
    prompt, objects = check_text(prompt, "prompt", lines=True), [check_text(text, "object") for text in objects]
    for text in (prompt, *objects):
        lm.check_text(text)
    with lm.lock, (delta or WeightDelta()).applied(lm) as edited:
        return _read(edited, prompt, objects, count)


@fitted
@torch.no_grad()
def _read(lm: LanguageModel, prompt: str, objects: Sequence[str], count: int) -> Lens:
    names = [lm.architecture.block(layer) for layer in range(lm.layers)]
    with watching(lm.model, outputs=names) as seen:
        last = lm.hidden(lm.batch([lm.coder.encode(prompt)]))[0]
    norm = lm.model.get_submodule(lm.architecture.final_norm)
    firsts = {text: lm.coder.continuation(prompt, text).object_ids[0] for text in objects}
    top, chances = [], []
    for name in names:
        # The last state is normed by the model itself.
        state = last if name == names[-1] else state_of(norm(seen[name].to(device_of(norm))))[0].to(lm.device)
        likely = lm.logits(state).softmax(-1)
        best = likely.topk(count)
        top.append(tuple(_told(lm, ids, values) for ids, values in zip(best.indices, best.values, strict=True)))
        chances.append(likely[-1, list(firsts.values())].double().cpu())
    table = torch.stack(chances) if firsts else torch.empty(len(names), 0)
    texts = tuple(text for _, text in lm.coder.places(prompt))
    return Lens(texts, tuple(top), {text: table[:, i] for i, text in enumerate(firsts)})


def _told(lm: LanguageModel, ids: Tensor, values: Tensor) -> tuple[TokenChance, ...]:
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return tuple(TokenChance(str(lm.tokenizer.decode([token])), chance) for token, chance in pairs)
