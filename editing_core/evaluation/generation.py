"""Free texts of a model, and how well they read: fluency, and consistency with true texts about the new object."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from editing_core.evaluation.consistency import References, consistency
from editing_core.evaluation.fluency import fluency
from editing_core.models.language_model import LanguageModel, fitted
from editing_core.models.tokens import encode
from editing_core.types import EditRequest

TOP_K, LENGTH, PROMPTS_PER_FORWARD = 5, 100, 64


@fitted
@torch.no_grad()
def sample_texts(lm: LanguageModel, prompts: Sequence[str], seed: int = 0, length: int = LENGTH) -> list[str]:
    """One text per prompt, the prompt included: top-5 sampling to `length` tokens in all, without a stop.

    Prompts of equal length run together, so no padding takes part. Which of them do decides nothing: every prompt
    has its own random numbers.
    """
    coded = [encode(lm.tokenizer, prompt) for prompt in prompts]
    groups: dict[int, list[int]] = {}
    for number, ids in enumerate(coded):
        groups.setdefault(len(ids), []).append(number)
    chances = torch.rand(len(prompts), length, generator=torch.Generator().manual_seed(seed))
    texts = [""] * len(prompts)
    for size, numbers in sorted(groups.items()):
        most = lm.at_most(PROMPTS_PER_FORWARD)
        for start in range(0, len(numbers), most):
            some = numbers[start : start + most]
            written = _continue(lm, [coded[n] for n in some], size, length, chances[some])
            for number, row in zip(some, written, strict=True):
                texts[number] = str(lm.tokenizer.decode(row, skip_special_tokens=True))
    return texts


class _Draw(LogitsProcessor):
    """Leaves each row one of its TOP_K likeliest next tokens, drawn by their probabilities.

    chances: (rows, length) uniform numbers from 0 to 1, one for each position of a text.
    """

    def __init__(self, chances: Tensor) -> None:
        self.chances = chances

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.topk(TOP_K)
        reached = best.values.softmax(-1).cumsum(-1)[:, :-1]  # the last is 1, whatever rounding made of it
        passed = (reached <= self.chances[:, input_ids.shape[1], None]).sum(-1, keepdim=True)
        return torch.full_like(scores, float("-inf")).scatter(-1, best.indices.gather(-1, passed), 0.0)


def _continue(
    lm: LanguageModel, rows: Sequence[Sequence[int]], size: int, length: int, chances: Tensor
) -> list[list[int]]:
    ids = torch.tensor([list(row) for row in rows], device=lm.device)
    room = min(length, lm.context) - size
    if room <= 0:
        return [list(row) for row in rows]
    out = lm.model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=room,
        max_new_tokens=room,
        do_sample=False,
        logits_processor=LogitsProcessorList([_Draw(chances.to(lm.device))]),
        pad_token_id=lm.tokenizer.eos_token_id,
    )
    tokens: list[list[int]] = out.tolist()
    return tokens


def generation_metrics(
    lm: LanguageModel, requests: Sequence[EditRequest], references: References, seed: int = 0
) -> dict[str, float | None]:
    """Means over records of fluency and consistency of the texts after each record's generation prompts.

    None where no record has generation prompts, or none a reference text.
    """
    prompts = [prompt for r in requests for prompt in r.generation_prompts]
    texts = iter(sample_texts(lm, prompts, random.Random(seed).randrange(2**31)))
    read, agreed = [], []
    for request in requests:
        own = [next(texts) for _ in request.generation_prompts]
        if not own:
            continue
        read.append(fluency(own))
        # Published references go by the object's id, the bundled ones by its text.
        names = (request.target_new_id or "", request.target_new)
        found = [consistency(own, references, (request.relation_id or "", name)) for name in names]
        agreed += [value for value in found if value is not None][:1]
    return {"fluency": _mean(read), "consistency": _mean(agreed)}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
