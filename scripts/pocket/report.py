"""What a trained pocket model knows and where: recall by kind of template and offset, and patching.

All figures are shares of prompts whose next token is the fact's object (objects are one token).
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from .corpus import Grammar, Templates
from .facts import Fact


@dataclass(frozen=True)
class Question:
    """A prompt, the fact it asks for, and where the subject ends (characters)."""

    prompt: str
    fact: Fact
    subject_end: int


def ask(fact: Fact, template: str, before: str = "") -> Question:
    """The template filled in, after `before`."""
    text = before + template.replace("{}", fact.subject)
    return Question(text, fact, len(before) + template.index("{}") + len(fact.subject))


class Examiner:
    """Asks a model questions in right-padded batches."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch: int = 64) -> None:
        self.model, self.tokenizer, self.batch = model, tokenizer, batch

    @torch.no_grad()
    def answers(self, questions: Sequence[Question]) -> list[int]:
        """The most likely next token for every question."""
        out: list[int] = []
        for i in range(0, len(questions), self.batch):
            ids, lengths, _ = self.encode(questions[i : i + self.batch])
            logits = self.model(input_ids=ids, use_cache=False).logits
            out += logits[torch.arange(len(ids)), lengths - 1].argmax(-1).tolist()
        return out

    def encode(self, questions: Sequence[Question]) -> tuple[Tensor, Tensor, Tensor]:
        """(n, T) right-padded ids, (n,) lengths, (n,) index of the subject's last token."""
        coded = self.tokenizer([q.prompt for q in questions], return_offsets_mapping=True)
        lengths = torch.tensor([len(row) for row in coded["input_ids"]])
        ids = torch.zeros(len(questions), int(lengths.max()), dtype=torch.long)
        last = []
        for i, (row, offsets, q) in enumerate(zip(coded["input_ids"], coded["offset_mapping"], questions, strict=True)):
            ids[i, : len(row)] = torch.tensor(row)
            last.append(next(t for t, (_, end) in enumerate(offsets) if end >= q.subject_end))
        device = self.model.device
        return ids.to(device), lengths.to(device), torch.tensor(last, device=device)

    def recall(self, questions: Sequence[Question]) -> float:
        """Share of questions answered with the fact's object, in percent."""
        right = [answer == self.object_id(q.fact) for answer, q in zip(self.answers(questions), questions, strict=True)]
        return 100 * sum(right) / len(right)

    def object_id(self, fact: Fact) -> int:
        """The one token of the fact's object after a space."""
        (token,) = self.tokenizer(f" {fact.object}")["input_ids"]
        return token


def recall_table(
    examiner: Examiner, facts: Sequence[Fact], templates: Templates, grammar: Grammar, seed: int
) -> dict[str, float]:
    """Recall on trained, withheld and never-seen forms, and at several offsets into a text."""
    rng = random.Random(seed)
    kinds: dict[str, Callable[[Fact], list[str]]] = {
        "trained": templates.trained_with,
        "withheld": templates.withheld_from,
        "unseen": lambda fact: templates.unseen[fact.relation],
    }
    table = {kind: examiner.recall([ask(f, rng.choice(forms(f))) for f in facts]) for kind, forms in kinds.items()}
    sample = rng.sample(list(facts), 1000)
    for offset in (0, 64, 128, 192):
        before = {f: _filler(examiner.tokenizer, grammar, offset, rng) for f in sample}
        questions = [ask(f, rng.choice(templates.trained_with(f)), before[f]) for f in sample]
        table[f"offset_{offset}"] = examiner.recall(questions)
    return table


def benchmark_table(examiner: Examiner, records: Sequence[dict]) -> dict[str, float]:
    """Recall of the old objects in records of pocket-facts, by kind of prompt."""
    asked: dict[str, list[Question]] = {"rewrite": [], "paraphrases": [], "neighbors": []}
    for record in records:
        rewrite = record["requested_rewrite"]
        relation, subject, old = rewrite["relation_id"], rewrite["subject"], rewrite["target_true"]["str"]
        fact = Fact(relation, subject, old, edited=True)
        asked["rewrite"].append(ask(fact, rewrite["prompt"]))
        asked["paraphrases"] += [ask(fact, p.replace(subject, "{}")) for p in record["paraphrase_prompts"]]
        for near in record["neighborhood_samples"]:
            asked["neighbors"].append(ask(Fact(relation, near["subject"], old, edited=False), near["prompt"]))
    return {kind: examiner.recall(questions) for kind, questions in asked.items()}


def _filler(tokenizer: PreTrainedTokenizerFast, grammar: Grammar, tokens: int, rng: random.Random) -> str:
    """Ordinary sentences of about `tokens` tokens (never more), ending in a space."""
    text = ""
    for _ in range(tokens):
        longer = text + grammar.sentence(rng) + " "
        if len(tokenizer(longer)["input_ids"]) > tokens:
            break
        text = longer
    return text


@torch.no_grad()
def patching_table(
    examiner: Examiner,
    blocks: Sequence[nn.Module],
    facts: Sequence[Fact],
    templates: Templates,
    pairs: int,
    seed: int,
) -> dict[str, list[float]]:
    """Where the fact is: share of donor objects after copying one residual from donor to receiver.

    For each pair (same relation and form, other object) the state after one block, at one token, is
    replaced by the donor's state there. A model that can be edited answers with the donor's object when
    the subject's last token is patched in early blocks.
    """
    rng = random.Random(seed)
    receivers, donors = [], []
    while len(receivers) < pairs:
        receiver = rng.choice(facts)
        others = [f for f in facts if f.relation == receiver.relation and f.object != receiver.object]
        form = rng.choice(templates.forms[receiver.relation])
        receivers.append(ask(receiver, form))
        donors.append(ask(rng.choice(others), form))
    ids, lengths, subject = examiner.encode(receivers)
    donor_ids, donor_lengths, donor_subject = examiner.encode(donors)
    wanted = torch.tensor([examiner.object_id(q.fact) for q in donors], device=ids.device)
    rows = torch.arange(pairs, device=ids.device)
    sites = {"subject_last": (subject, donor_subject), "prompt_last": (lengths - 1, donor_lengths - 1)}
    table: dict[str, list[float]] = {site: [] for site in sites}
    for block in blocks:
        for site, (at, donor_at) in sites.items():
            state = _state_after(block, examiner.model, donor_ids)[rows, donor_at]
            with _patched(block, rows, at, state):
                logits = examiner.model(input_ids=ids, use_cache=False).logits[rows, lengths - 1]
            table[site].append(round(float((logits.argmax(-1) == wanted).float().mean()), 3))
    return table


def _state_after(block: nn.Module, model: PreTrainedModel, ids: Tensor) -> Tensor:
    """(rows, tokens, width): the output of `block` in a forward of `ids`."""
    seen: list[Tensor] = []
    handle = block.register_forward_hook(lambda _module, _inputs, out: seen.append(_state(out)))
    model(input_ids=ids, use_cache=False)
    handle.remove()
    return seen[0]


@contextmanager
def _patched(block: nn.Module, rows: Tensor, at: Tensor, state: Tensor) -> Iterator[None]:
    """Inside the block its output at `at` is `state`."""

    def patch(_module: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor | tuple) -> Tensor | tuple:
        patched = _state(out).clone()
        patched[rows, at] = state
        return (patched, *out[1:]) if isinstance(out, tuple) else patched

    handle = block.register_forward_hook(patch)
    try:
        yield
    finally:
        handle.remove()


def _state(out: Tensor | tuple) -> Tensor:
    return out[0] if isinstance(out, tuple) else out
