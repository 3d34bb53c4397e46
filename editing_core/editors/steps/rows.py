"""The token rows a target optimisation works on: what is fed, what is predicted, where the shift goes.

Each record contributes its rewriting rows (one per context template, new object behind the prompt), one
row "SUBJECT is a" for the KL term, cut at the subject because nothing to its right matters there, and with
neighbor assistance one row per edit neighbor, in which the shift stands at the neighbor's own subject.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from editing_core.editors.assist import Assist
from editing_core.editors.steps.contexts import Contexts
from editing_core.models.language_model import LanguageModel, fitted
from editing_core.models.past import Openings
from editing_core.models.reading import read
from editing_core.models.replay import Scene
from editing_core.types import EditRequest

KL_TEMPLATE = "{} is a"


@dataclass(frozen=True)
class Row:
    """One row: ids to feed, record it belongs to, subject's last token, positions and ids to predict.

    weight: what the row's mean label loss counts in the objective. share, even: what it counts in the mean
    over its kind, over all rows. assists: a neighbor's row. context: number of the template it stands in. Rows without
    labels are looked at where the subject ends.
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
    context: int = 0

    def scene(self, openings: Openings) -> Scene:
        """The row as a replay needs it. openings: the prefix of every template."""
        scene = Scene(self.ids, self.subject, self.positions or (self.subject,), self.context)
        return replace(scene, lead=min(openings.lead(self.context, self.ids), scene.start))


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
            rows.append(replace(row, weight=edit, share=1 / n, even=1 / (n + m), context=number))
        context = 1 if self.assist.neighbors == "nap" and n > 1 else 0
        prefix = self.contexts.prefix(context)
        for template, subject, answer in neighbors:
            row = self._row(lm, prefix + template, subject, answer, record)
            # The published code divides a neighbor's summed loss by the length of the new object, not of its own.
            scale = len(row.labels) / len(rows[0].labels) if self.assist.weighting == "code" else 1.0
            part = replace(row, weight=beside * scale, share=1 / m, even=1 / (n + m), assists=True, context=context)
            rows.append(part)
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
        text = lm.coder.continuation(template.replace("{}", subject), answer, self.objects)
        at = lm.coder.subject_last(template, subject)
        return Row(text.inputs, record, at, tuple(text.positions), text.object_ids)


def kl_row(lm: LanguageModel, request: EditRequest, record: int) -> Row:
    """The subject alone, as it stands in "SUBJECT is a"."""
    last = lm.coder.subject_last(KL_TEMPLATE, request.subject)
    ids = lm.coder.encode(KL_TEMPLATE.replace("{}", request.subject))[: last + 1]
    return Row(ids, record, last)


@dataclass(frozen=True, eq=False)
class Labels:
    """All labels of some rows as tensors (labels,), in the rows' order.

    id: which token. record: of the row. weight: so that summing weight * NLL over a record's labels gives its part of
    the objective; share, even: the same for the mean over the row's kind, over all rows. assists: whether it stands
    in a neighbor's row.
    """

    id: Tensor
    record: Tensor
    weight: Tensor
    share: Tensor
    even: Tensor
    assists: Tensor

    @staticmethod
    def of(lm: LanguageModel, rows: Sequence[Row]) -> "Labels":
        """Records are numbered as the rows say."""
        labels = [(label, row) for row in rows for label in row.labels]

        def integers(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=lm.device)

        def shares(name: str) -> Tensor:
            values = [getattr(row, name) / len(row.labels) for _, row in labels]
            return torch.tensor(values, dtype=lm.precision, device=lm.device)

        return Labels(
            id=integers([label for label, _ in labels]),
            record=integers([row.record for _, row in labels]),
            weight=shares("weight"),
            share=shares("share"),
            even=shares("even"),
            assists=torch.tensor([row.assists for _, row in labels], dtype=torch.bool, device=lm.device),
        )

    def select(self, labels: Tensor) -> "Labels":
        """Some of them. labels: (labels,) bool."""
        return Labels(**{f.name: getattr(self, f.name)[labels] for f in fields(self)})


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
    for numbers, logits in read(lm, [row.ids for row in rows], [row.positions for row in rows]):
        labels = Labels.of(lm, [rows[n] for n in numbers])
        losses = torch.nn.functional.cross_entropy(logits, labels.id, reduction="none")
        of_edit, of_every = row_means(losses, labels, labels.record, len(requests))
        edit += of_edit.cpu()
        every += of_every.cpu()
    return edit, every


def row_means(losses: Tensor, labels: Labels, record: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(count,) float64 mean NLL per record over its rewriting rows, and over all its rows alike.

    Of some of a record's rows: their parts of these means.

    losses, record: (labels,).
    """
    values = losses.detach().double()
    edit = per_record(values * labels.share * ~labels.assists, record, count)
    return edit, per_record(values * labels.even, record, count)
