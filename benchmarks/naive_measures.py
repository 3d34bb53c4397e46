"""What the plain loop of `naive.py` measures, as plainly: probes one request at a time, all positions of every row."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from editing_core.editors.steps.rows import Objective
from editing_core.models.language_model import LanguageModel
from editing_core.types import EditRequest

Table = list[dict[str, Any]]  # one entry per probe


@torch.no_grad()
def perplexities(lm: LanguageModel, requests: Sequence[EditRequest], objective: Objective) -> Tensor:
    """(n_facts,) float64 log-perplexity of the new object: its mean token NLL over the rewriting rows."""
    found = []
    for request in requests:
        rows = [row for row in objective.rows(lm, request, 0) if not row.assists]
        logits = logits_of(lm, [row.ids for row in rows])
        losses = [losses_of(logits[i], row.positions, row.labels)[0].double().mean() for i, row in enumerate(rows)]
        found.append(torch.stack(losses).mean())
    return torch.stack(found).cpu()


@torch.no_grad()
def evaluate(lm: LanguageModel, requests: Sequence[EditRequest]) -> Table:
    """One entry per probe, of both objects: logp (mean over tokens), rank of the first token, and hit.

    hit: share of tokens that are the model's first choice, the best of an answer and its aliases. Where there is
    no old object, nothing is told of it.
    """
    table: Table = []
    for request in requests:
        entries = _probes(request)
        answers = [(entry["prompt"], (request.target_new, *entry.pop("own"))) for entry in entries]
        texts = [[lm.coder.continuation(prompt, answer) for answer in some] for prompt, some in answers]
        logits = iter(logits_of(lm, [text.inputs for some in texts for text in some]))
        for entry, some in zip(entries, texts, strict=True):
            scores = [_score(next(logits), text.positions, text.object_ids) for text in some]
            for side, told in (("new", scores[:1]), ("true", scores[1:])):
                if told:
                    hit = max(hit for *_, hit in told)
                    entry |= {f"logp_{side}": told[0][0], f"rank_{side}": told[0][1], f"hit_{side}": hit}
        table += entries
    return table


def _probes(request: EditRequest) -> Table:
    """Everything asked about a request; own: each probe's own answer and its aliases."""
    true = (request.target_true,) if request.target_true else ()
    asked: list[tuple[str, int, str, tuple[str, ...]]] = [("edit", 0, request.full_prompt, true)]
    asked += [("paraphrase", i, prompt, true) for i, prompt in enumerate(request.paraphrases)]
    for kind, name in {"neighbor": "neighbors", "locality": "locality", "portability": "portability"}.items():
        asked += [(kind, i, p.prompt, (p.answer, *p.aliases)) for i, p in enumerate(getattr(request, name))]
    return [dict(case_id=request.case_id, kind=k, number=i, prompt=p, own=own) for k, i, p, own in asked]


def _score(logits: Tensor, positions: Sequence[int], labels: Sequence[int]) -> tuple[float, int, float]:
    """Mean log-probability, rank of the first token, share of hits. logits: (tokens, vocabulary)."""
    losses, hits = losses_of(logits, positions, labels)
    first = logits[positions[0]]
    return -float(losses.double().mean()), int((first > first[labels[0]]).sum()) + 1, float(hits.float().mean())


@torch.no_grad()
def held_out(lm: LanguageModel, texts: Sequence[str]) -> float:
    """Arithmetic mean over texts of their perplexity, one forward each; a text's first token is only read."""
    found = []
    for text in texts:
        ids = lm.tokenizer(text)["input_ids"][: lm.context]
        found.append(losses_of(logits_of(lm, [ids])[0], range(len(ids) - 1), ids[1:])[0].double().mean().exp())
    return float(torch.stack(found).mean())


def logits_of(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """(rows, tokens, vocabulary) of rows padded on the right, at all positions."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=lm.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=lm.device)
    logits: Tensor = lm.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits.to(lm.precision)


def losses_of(logits: Tensor, positions: Sequence[int], labels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(labels,) NLL of each label, and whether it is the first choice. logits: (tokens, vocabulary) of one row."""
    said, wanted = logits[list(positions)], torch.tensor(labels, device=logits.device)
    return nn.functional.cross_entropy(said, wanted, reduction="none"), said.argmax(-1) == wanted
