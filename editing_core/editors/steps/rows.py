"""The token rows a target optimisation works on: what is fed, what is predicted, where the shift goes.

Each record contributes its rewriting rows (one per context template, new object behind the prompt), one
row "SUBJECT is a" for the KL term, cut at the subject because nothing to its right matters there, and with
neighbor assistance one row per edit neighbor, in which the shift stands at the neighbor's own subject.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from editing_core.editors.assist import Assist
from editing_core.editors.steps.contexts import Contexts
from editing_core.models.language_model import LanguageModel, fitted
from editing_core.models.tokens import Batch, continuation, encode, subject_last
from editing_core.types import EditRequest

KL_TEMPLATE = "{} is a"


@dataclass(frozen=True)
class Row:
    """One row: ids to feed, record it belongs to, subject's last token, positions and ids to predict.

    weight: what the row's mean label loss counts in the objective. share, even: what it counts in the mean
    over its kind, over all rows. assists: a neighbor's row. Rows without labels are only looked at.
    """

    ids: tuple[int, ...]
    record: int
    subject: int
    positions: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()
    weight: float = 0.0
    share: float = 0.0
    even: float = 0.0
    assists: bool = False

    @property
    def start(self) -> int:
        """The first token that a shift at the subject can reach or that is looked at."""
        return min(self.subject, *self.positions) if self.positions else self.subject

    def behind_start(self) -> "Row":
        """The row without what stands left of its start."""
        cut = self.start
        positions = tuple(at - cut for at in self.positions)
        return replace(self, ids=self.ids[cut:], subject=self.subject - cut, positions=positions)


@dataclass(frozen=True)
class Objective:
    """What a target is optimised for: contexts, assisting neighbors, and how objects are tokenised.

    objects: as in `Conventions.objects`.
    """

    contexts: Contexts = field(default_factory=Contexts)
    assist: Assist = field(default_factory=Assist)
    objects: str = "joined"

    def rows(self, lm: LanguageModel, request: EditRequest, record: int) -> list[Row]:
        """All rows of a record that have labels: rewriting rows first, the bare prompt the very first."""
        neighbors = self.neighbors_of(request)
        n, m = len(self.contexts), len(neighbors)
        edit, beside = self._weights(m)
        rows = []
        for number in range(n):
            template = self.contexts.prefix(number) + request.prompt
            row = self._row(lm, template, request.subject, request.target_new, record)
            rows.append(replace(row, weight=edit, share=1 / n, even=1 / (n + m)))
        prefix = self.contexts.prefix(1) if self.assist.neighbors == "nap" and n > 1 else ""
        for template, subject, answer in neighbors:
            row = self._row(lm, prefix + template, subject, answer, record)
            # The published code divides a neighbor's summed loss by the length of the new object, not of its own.
            scale = len(row.labels) / len(rows[0].labels) if self.assist.weighting == "code" else 1.0
            rows.append(replace(row, weight=beside * scale, share=1 / m, even=1 / (n + m), assists=True))
        return rows

    def neighbors_of(self, request: EditRequest) -> list[tuple[str, str, str]]:
        """(template, subject, answer) of the neighbors that take part in the objective."""
        if self.assist.neighbors == "off":
            return []
        return [(*n.place, n.answer) for n in request.edit_neighbors if n.place]

    def _weights(self, neighbors: int) -> tuple[float, float]:
        """Weight of a rewriting row and of a neighbor's row in the objective."""
        n, w = len(self.contexts), self.assist.weight
        if not neighbors:
            return 1 / n, 0.0
        if self.assist.weighting == "paper":
            return 1 / n, w / neighbors
        return 1 / (n + w * neighbors), w / (n + w * neighbors)

    def _row(self, lm: LanguageModel, template: str, subject: str, answer: str, record: int) -> Row:
        text = continuation(lm.tokenizer, template.replace("{}", subject), answer, self.objects)
        at = subject_last(lm.tokenizer, template, subject)
        return Row(text.inputs, record, at, tuple(text.positions), text.object_ids)


def kl_row(lm: LanguageModel, request: EditRequest, record: int) -> Row:
    """The subject alone, as it stands in "SUBJECT is a"."""
    last = subject_last(lm.tokenizer, KL_TEMPLATE, request.subject)
    ids = encode(lm.tokenizer, KL_TEMPLATE.replace("{}", request.subject))[: last + 1]
    return Row(ids, record, last)


@dataclass(frozen=True, eq=False)
class RowTensors:
    """Rows of several records as tensors, restricted to a subset of records with `of`.

    record, subject: (rows,). label_row, label_at, label_id: (labels,). label_weight: (labels,) so that summing
    weight * NLL over a record's labels gives its part of the objective; label_share, label_even: the same for
    the mean over the row's kind, over all rows; label_assists: whether it stands in a neighbor's row.
    """

    batch: Batch
    record: Tensor
    subject: Tensor
    label_row: Tensor
    label_at: Tensor
    label_id: Tensor
    label_weight: Tensor
    label_share: Tensor
    label_even: Tensor
    label_assists: Tensor

    @staticmethod
    def of(lm: LanguageModel, rows: Sequence[Row]) -> "RowTensors":
        """Pad and stack; records are numbered as the rows say."""
        labels = [
            (i, at, label, row)
            for i, row in enumerate(rows)
            for at, label in zip(row.positions, row.labels, strict=True)
        ]

        def integers(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=lm.device)

        def shares(name: str) -> Tensor:
            return torch.tensor([getattr(row, name) / len(row.labels) for *_, row in labels], device=lm.device)

        return RowTensors(
            batch=lm.batch([row.ids for row in rows]),
            record=integers([row.record for row in rows]),
            subject=integers([row.subject for row in rows]),
            label_row=integers([i for i, *_ in labels]),
            label_at=integers([at for _, at, *_ in labels]),
            label_id=integers([label for _, _, label, _ in labels]),
            label_weight=shares("weight"),
            label_share=shares("share"),
            label_even=shares("even"),
            label_assists=torch.tensor([row.assists for *_, row in labels], dtype=torch.bool, device=lm.device),
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


@fitted
@torch.no_grad()
def log_perplexity(lm: LanguageModel, requests: Sequence[EditRequest], objective: Objective) -> tuple[Tensor, Tensor]:
    """Log-perplexities with nothing injected, each (n_records,) float64: over rewriting rows, over all rows.

    exp of the first is p_i of the UnderEdit paper (arXiv:2503.11895, eq. 4; all templates inside the
    exponent); the second takes the assisting neighbors' rows in, as the published code does.
    """
    rows = [row for i, request in enumerate(requests) for row in objective.rows(lm, request, i)]
    edit, every = torch.zeros(2, len(requests), dtype=torch.float64)
    for numbers in lm.runs([len(row.ids) for row in rows]):
        some = RowTensors.of(lm, [rows[n] for n in numbers])
        losses, _ = nll(lm, some)
        of_edit, of_every = row_means(losses, some, some.label_record, len(requests))
        edit += of_edit.cpu()
        every += of_every.cpu()
    return edit, every


def row_means(losses: Tensor, rows: RowTensors, record: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(count,) float64 mean NLL per record over its rewriting rows, and over all its rows alike.

    Of some of a record's rows: their parts of these means.

    losses, record: (labels,).
    """
    values = losses.detach().double()
    edit = per_record(values * rows.label_share * ~rows.label_assists, record, count)
    return edit, per_record(values * rows.label_even, record, count)
