"""The token rows a target optimisation works on: what is fed, what is predicted, where the shift goes.

Each record contributes its rewriting rows (one per context template, new object behind the prompt) and
one row "SUBJECT is a" for the KL term, cut at the subject because nothing to its right matters there.
A further term of the objective (say, neighbors) is further rows with a term of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing_core.editors.steps.contexts import Contexts
from editing_core.models.language_model import LanguageModel
from editing_core.models.tokens import Batch, continuation, encode, subject_last
from editing_core.types import EditRequest

KL_TEMPLATE = "{} is a"


@dataclass(frozen=True)
class Row:
    """One row: ids to feed, record it belongs to, subject's last token, positions and ids to predict.

    weight: the row's share in its record's term; 0 labels make it a row that is only looked at.
    """

    ids: tuple[int, ...]
    record: int
    subject: int
    positions: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()
    weight: float = 0.0


def rewriting_rows(lm: LanguageModel, request: EditRequest, record: int, contexts: Contexts) -> list[Row]:
    """The edit prompt after each context template, continued by the new object; equal shares."""
    rows = []
    for number in range(len(contexts)):
        template = contexts.prefix(number) + request.prompt
        text = continuation(lm.tokenizer, template.replace("{}", request.subject), request.target_new)
        subject = subject_last(lm.tokenizer, template, request.subject)
        rows.append(Row(text.inputs, record, subject, tuple(text.positions), text.object_ids, 1 / len(contexts)))
    return rows


def kl_row(lm: LanguageModel, request: EditRequest, record: int) -> Row:
    """The subject alone, as it stands in "SUBJECT is a"."""
    last = subject_last(lm.tokenizer, KL_TEMPLATE, request.subject)
    ids = encode(lm.tokenizer, KL_TEMPLATE.replace("{}", request.subject))[: last + 1]
    return Row(ids, record, last)


@dataclass(frozen=True, eq=False)
class RowTensors:
    """Rows of several records as tensors, restricted to a subset of records with `of`.

    record, subject: (rows,). label_row, label_at, label_id: (labels,); label_weight: (labels,) so that
    summing weight * NLL over a record's labels gives its term.
    """

    batch: Batch
    record: Tensor
    subject: Tensor
    label_row: Tensor
    label_at: Tensor
    label_id: Tensor
    label_weight: Tensor

    @staticmethod
    def of(lm: LanguageModel, rows: Sequence[Row]) -> "RowTensors":
        """Pad and stack; records are numbered as the rows say."""
        labels = [
            (i, at, label, row.weight / len(row.labels))
            for i, row in enumerate(rows)
            for at, label in zip(row.positions, row.labels, strict=True)
        ]
        columns = list(zip(*labels, strict=True)) if labels else [(), (), (), ()]

        def integers(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=lm.device)

        return RowTensors(
            lm.batch([row.ids for row in rows]),
            integers([row.record for row in rows]),
            integers([row.subject for row in rows]),
            integers(columns[0]),
            integers(columns[1]),
            integers(columns[2]),
            torch.tensor(columns[3], dtype=torch.float32, device=lm.device),
        )

    @property
    def label_record(self) -> Tensor:
        """(labels,) the record each label belongs to."""
        return self.record[self.label_row]


def nll(lm: LanguageModel, rows: RowTensors) -> tuple[Tensor, Tensor]:
    """(labels,) negative log-likelihoods of the labels, and whether each is the model's first choice."""
    logits = lm.logits_at(rows.batch, rows.label_row, rows.label_at)
    losses = torch.nn.functional.cross_entropy(logits, rows.label_id, reduction="none")
    return losses, logits.argmax(-1) == rows.label_id


def per_record(values: Tensor, record: Tensor, count: int) -> Tensor:
    """(count,) sums of `values` by record."""
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, record, values)


@torch.no_grad()
def log_perplexity(
    lm: LanguageModel, requests: Sequence[EditRequest], contexts: Contexts, records_per_forward: int = 64
) -> Tensor:
    """(n_records,) float64 log-perplexity of the new objects over all rewriting prompts, nothing injected.

    exp of it is p_i of the UnderEdit paper (arXiv:2503.11895, eq. 4; all templates inside the exponent).
    """
    parts = []
    for start in range(0, len(requests), records_per_forward):
        some = requests[start : start + records_per_forward]
        rows = RowTensors.of(lm, [row for i, r in enumerate(some) for row in rewriting_rows(lm, r, i, contexts)])
        losses, _ = nll(lm, rows)
        parts.append(per_record((losses * rows.label_weight).double(), rows.label_record, len(some)))
    return torch.cat(parts).cpu()
