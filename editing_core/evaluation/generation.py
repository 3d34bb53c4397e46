"""Free texts of a model, and how well they read: fluency, and consistency with true texts about the new object."""

import random
from collections.abc import Callable, Mapping, Sequence
from math import nan

import pandas as pd
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from editing_core.evaluation.consistency import References, consistency
from editing_core.evaluation.fluency import fluency
from editing_core.evaluation.metrics import GENERATED
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel, fitted
from editing_core.types import EditRequest, Step, Watch, ignore, noting

TOP_K, LENGTH, PROMPTS_PER_FORWARD = 5, 100, 64


@fitted
@torch.no_grad()
def sample_texts(
    lm: LanguageModel, prompts: Sequence[str], seed: int = 0, length: int = LENGTH, watch: Watch = ignore
) -> list[str]:
    """One text per prompt, the prompt included: top-5 sampling to `length` tokens in all, without a stop.

    What a chat template puts around a prompt comes on top of the length. Prompts of equal length run together, so no
    padding takes part. Which of them do decides nothing: every prompt has its own random numbers. watch: told of the
    tokens written at every position, so that it may leave there.
    """
    coded = [lm.coder.encode(prompt) for prompt in prompts]
    length += lm.coder.extra
    groups: dict[int, list[int]] = {}
    for number, ids in enumerate(coded):
        groups.setdefault(len(ids), []).append(number)
    chances = torch.rand(len(prompts), length, generator=torch.Generator().manual_seed(seed))
    tell = _counting(watch, sum(max(0, min(length, lm.context) - len(ids)) for ids in coded))
    texts = [""] * len(prompts)
    for _, numbers in sorted(groups.items()):
        most = lm.at_most(PROMPTS_PER_FORWARD)
        for start in range(0, len(numbers), most):
            some = numbers[start : start + most]
            written = _continue(lm, [coded[n] for n in some], length, chances[some], tell)
            for number, row in zip(some, written, strict=True):
                texts[number] = str(lm.tokenizer.decode(row, skip_special_tokens=True))
    return texts


def _counting(watch: Watch, total: int) -> Callable[[int], None]:
    """What takes the number of tokens written since it was called last, and tells them all."""
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        watch(Step("generate", done, total))

    return tell


class _Draw(LogitsProcessor):
    """Leaves each row one of its TOP_K likeliest next tokens, drawn by their probabilities.

    chances: (rows, length) uniform numbers from 0 to 1, one for each position of a text. tell: called with the
    number of rows before every draw.
    """

    def __init__(self, chances: Tensor, tell: Callable[[int], None] = lambda _count: None) -> None:
        self.chances, self.tell = chances, tell

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.tell(len(input_ids))
        best = scores.topk(TOP_K)
        reached = best.values.softmax(-1).cumsum(-1)[:, :-1]  # the last is 1, whatever rounding made of it
        passed = (reached <= self.chances[:, input_ids.shape[1], None]).sum(-1, keepdim=True)
        return torch.full_like(scores, float("-inf")).scatter(-1, best.indices.gather(-1, passed), 0.0)


def _continue(
    lm: LanguageModel, rows: Sequence[Sequence[int]], length: int, chances: Tensor, tell: Callable[[int], None]
) -> list[list[int]]:
    """Token rows of one length, continued to `length` tokens."""
    ids = torch.tensor([list(row) for row in rows], device=lm.device)
    room = min(length, lm.context) - ids.shape[1]
    if room <= 0:
        return [list(row) for row in rows]
    out = lm.model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=room,
        max_new_tokens=room,
        do_sample=False,
        logits_processor=LogitsProcessorList([_Draw(chances.to(lm.device), tell)]),
        pad_token_id=lm.tokenizer.eos_token_id,
    )
    tokens: list[list[int]] = out.tolist()
    return tokens


def generation_metrics(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    references: References,
    seed: int = 0,
    watch: Watch = ignore,
) -> dict[str, float | None]:
    """Means over records of fluency and consistency of the texts after each record's generation prompts.

    None where no record has generation prompts, or none a reference text.
    """
    prompts = [prompt for r in requests for prompt in r.generation_prompts]
    texts = iter(sample_texts(lm, prompts, random.Random(seed).randrange(2**31), watch=watch))
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
    return dict(zip(GENERATED, (_mean(read), _mean(agreed)), strict=True))


def with_generation(
    lm: LanguageModel,
    table: pd.DataFrame,
    edits: Mapping[int, Edit],
    requests: Sequence[EditRequest],
    references: References,
    seed: int = 0,
    watch: Watch = ignore,
) -> pd.DataFrame:
    """An iteration table with fluency and consistency of what the model writes with an edit on.

    edits: the whole edit at each k that is measured. NaN in all other rows, and where a metric is None.
    """
    table = table.assign(**dict.fromkeys(GENERATED, nan))
    for k, delta in edits.items():
        with lm.lock, delta.applied(lm) as edited:
            found = generation_metrics(edited, requests, references, seed, noting(watch, f"k = {k}"))
        for name, value in found.items():
            table.loc[table["k"] == k, name] = nan if value is None else value
    return table


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
