"""Prompts in, numbers out: log-probabilities, ranks and first choices of objects after prompts.

Prompts are scored in right-padded batches, with logits only where an object stands. Log-probabilities are
means over the object's tokens (algorithm: ROME, arXiv:2202.05262, and its successors). When memory runs out,
the forwards are halved.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from editing_core.errors import BadRequest
from editing_core.models.language_model import LanguageModel, fitted
from editing_core.models.reading import read
from editing_core.models.tokens import Continuation


@dataclass(frozen=True)
class ObjectScore:
    """How one object fares after one prompt.

    logp: mean log-probability of its tokens, teacher-forced. rank: of its first token, 1 is best.
    labels: the object's tokens. choices: the model's first choice at each of their positions. hit: share of
    them that are right.
    """

    logp: float
    rank: int
    labels: tuple[int, ...]
    choices: tuple[int, ...]
    hit: float


@fitted
@torch.no_grad()
def score_objects(
    lm: LanguageModel,
    pairs: Sequence[tuple[str, str]],
    objects: str = "joined",
    groups: Sequence[Hashable] | None = None,
) -> list[ObjectScore]:
    """Score each (prompt, object); equal token rows (objects of one token after one prompt) run once.

    objects: as in `Conventions.objects`. groups: one per pair; rows of a group are padded together on the left,
    as the published code does. Without groups the padding is on the right and changes nothing.
    """
    texts = lm.coder.continuations(pairs, objects)
    if groups is None:
        return _scored(texts, _read_right(lm, texts))
    together: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        together.setdefault(group, []).append(number)
    return _scored(texts, (told for numbers in together.values() for told in _read_left(lm, texts, numbers)))


Told = tuple[list[int], list[int], Tensor]
"""Numbers of texts, for each the row of its first token's logits, and logits (positions, vocabulary)."""


def _read_right(lm: LanguageModel, texts: Sequence[Continuation]) -> Iterator[Told]:
    """Texts of equal tokens are one row, and each of its positions is looked at once."""
    asked: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for number, text in enumerate(texts):
        asked.setdefault((text.inputs, text.start), []).append(number)
    own, ends = list(asked.values()), [start for _, start in asked]
    wanted = [sorted({at for number in numbers for at in texts[number].positions}) for numbers in own]
    for read_rows, logits in read(lm, [row for row, _ in asked], wanted, ends):
        numbers, firsts, start = [], [], 0
        for n in read_rows:
            numbers += own[n]
            firsts += [start + wanted[n].index(texts[number].positions[0]) for number in own[n]]
            start += len(wanted[n])
        yield numbers, firsts, logits


def _read_left(lm: LanguageModel, texts: Sequence[Continuation], numbers: Sequence[int]) -> Iterator[Told]:
    """Texts of one group, padded on the left to the longest of them."""
    ends = [texts[n].start for n in numbers]
    for some, batch in lm.batches([texts[n].inputs for n in numbers], left=True, ends=ends):
        own = [texts[numbers[i]] for i in some]
        shift = [batch.ids.shape[1] - len(text.inputs) for text in own]
        pairs = [(row, at + shift[row]) for row, text in enumerate(own) for at in text.positions]
        row, at = (torch.tensor(column, device=lm.device) for column in zip(*pairs, strict=True))
        firsts = [0, *accumulate(len(text.object_ids) for text in own)][:-1]
        yield [numbers[i] for i in some], firsts, lm.logits_at(batch, row, at)


def _scored(texts: Sequence[Continuation], told: Iterable[Told]) -> list[ObjectScore]:
    """The scores of all texts, in their order."""
    scores: list[ObjectScore | None] = [None] * len(texts)
    for numbers, firsts, logits in told:
        ids = [texts[number].object_ids for number in numbers]
        place = torch.tensor([first + i for first, own in zip(firsts, ids, strict=True) for i in range(len(own))])
        label = torch.tensor([token for own in ids for token in own], device=logits.device)
        place = place.to(logits.device)
        chosen = logits[place, label]
        likely = (chosen - logits.logsumexp(-1)[place]).double().tolist()
        choices = logits.argmax(-1)[place].tolist()
        starts = [0, *accumulate(map(len, ids))]
        first = torch.tensor(starts[:-1], device=logits.device)
        ranks = ((logits[place[first]] > chosen[first, None]).sum(-1) + 1).tolist()
        for number, rank, own, start in zip(numbers, ranks, ids, starts, strict=False):
            here = slice(start, start + len(own))
            said, right = tuple(choices[here]), [a == b for a, b in zip(choices[here], own, strict=True)]
            scores[number] = ObjectScore(sum(likely[here]) / len(own), rank, own, said, sum(right) / len(own))
    return [score for score in scores if score is not None]


@fitted
@torch.no_grad()
def free_choices(
    lm: LanguageModel, pairs: Sequence[tuple[str, str]], scores: Sequence[ObjectScore], objects: str = "joined"
) -> list[tuple[int, ...]]:
    """What the model says by itself after each prompt, greedily, as many tokens as the object has.

    scores: of the same pairs. Up to its first wrong choice a model says by itself what it says given the
    object's tokens, so only the tokens behind that one are generated.
    """
    said: list[list[int]] = []
    for score in scores:
        wrong = [
            at for at, (label, choice) in enumerate(zip(score.labels, score.choices, strict=True)) if label != choice
        ]
        said.append(list(score.choices[: wrong[0] + 1] if wrong else score.labels))
    prompts: dict[int, tuple[int, ...]] = {}
    while open_ := [n for n, score in enumerate(scores) if len(said[n]) < len(score.labels)]:
        for n in open_:
            if n not in prompts:
                text = lm.coder.continuation(*pairs[n], objects)
                prompts[n] = text.ids[: text.start]
        begun = [(*prompts[n], *said[n]) for n in open_]
        for places, batch in lm.batches(begun, ends=[len(prompts[n]) for n in open_]):
            rows = torch.arange(len(places), device=lm.device)
            for place, token in zip(
                places, lm.logits_at(batch, rows, batch.lengths - 1).argmax(-1).tolist(), strict=True
            ):
                said[open_[place]].append(token)
    return [tuple(tokens) for tokens in said]


@dataclass(frozen=True)
class TokenChance:
    """One candidate for the next token."""

    token: str
    probability: float


@fitted
@torch.no_grad()
def next_tokens(lm: LanguageModel, prompt: str, count: int = 10) -> tuple[TokenChance, ...]:
    """The most likely next tokens after a prompt."""
    batch = lm.batch([lm.coder.encode(prompt)])
    best = lm.logits_at(batch, torch.tensor([0]), batch.lengths.cpu() - 1)[0].softmax(-1).topk(count)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple(TokenChance(str(lm.tokenizer.decode([token])), chance) for token, chance in pairs)


@fitted
@torch.no_grad()
def text_perplexities(lm: LanguageModel, texts: Sequence[str], terms: str = "T-1") -> list[float]:
    """Exp of the mean token NLL of each text; the first token is only read (T - 1 terms, over T - 1).

    terms "T": the sum is divided by T, as the published code does.
    """
    rows = [lm.tokenizer(text)["input_ids"][: lm.context] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if len(row) < 2:
            raise BadRequest(f"The text {text[:40]!r} is a single token and has no perplexity; leave it out.")
    means = torch.zeros(len(rows), dtype=torch.float64, device=lm.device)
    for numbers, batch in lm.batches(rows):
        index, at = torch.nonzero(batch.mask[:, 1:], as_tuple=True)
        losses = lm.losses(lm.hidden(batch)[index, at], batch.ids[index, at + 1]).double()
        total = torch.zeros(len(batch.ids), dtype=torch.float64, device=lm.device).index_add(0, index, losses)
        means[numbers] = total / (batch.lengths - int(terms == "T-1"))
    return [float(value) for value in means.exp()]


@fitted
@torch.no_grad()
def generate(lm: LanguageModel, prompt: str, tokens: int = 30) -> str:
    """Greedy continuation of a prompt (the most likely token each time), prompt excluded."""
    ids = torch.tensor([lm.coder.encode(prompt)], device=lm.device)
    room = max(0, min(tokens, lm.context - ids.shape[1]))
    if room == 0:
        return ""
    out = lm.model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=room,
        do_sample=False,
        pad_token_id=lm.tokenizer.eos_token_id,
    )
    return str(lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
