"""The mean of several causal traces: by kind, layer and the part a token plays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing_core.errors import BadRequest
from editing_core.explore.trace import KINDS, LAST_SUBJECT, ROLES, Trace


@dataclass(frozen=True, eq=False)
class Average:
    """Mean indirect effects of several facts by kind, layer and role; nothing where no fact has such a token.

    mean, error: by kind, (layers, roles) with NaN for roles nobody plays; error: standard error over facts, NaN for
    less than two.
    """

    facts: int
    mean: Mapping[str, Tensor]
    error: Mapping[str, Tensor]
    total: float

    def curve(self, kind: str, role: str = LAST_SUBJECT) -> tuple[Tensor, Tensor]:
        """(layers,) mean and standard error of a kind at a role."""
        at = ROLES.index(role)
        return self.mean[kind][:, at], self.error[kind][:, at]

    @property
    def layer(self) -> int:
        """Where the MLP at the subject's last token brings back most: the layer ROME would take."""
        return int(self.curve("mlp")[0].argmax())


def average(traces: Sequence[Trace]) -> Average:
    """The mean over facts, each counting once; a fact's tokens of one role are averaged first."""
    if not traces:
        raise BadRequest("No fact was traced, so there is nothing to average; trace one first.")
    mean, error = {}, {}
    for kind in KINDS:
        whole = torch.stack([_by_role(one, kind) for one in traces])
        count = whole.isnan().logical_not().sum(0)
        mean[kind] = whole.nanmean(0)
        spread = (whole - mean[kind]).square().nansum(0) / (count - 1)
        error[kind] = torch.where(count > 1, (spread / count).sqrt(), torch.nan)
    return Average(len(traces), mean, error, sum(one.total for one in traces) / len(traces))


def _by_role(one: Trace, kind: str) -> Tensor:
    """(layers, roles) effects of one fact, NaN where it has no such token."""
    effect = one.effect(kind)
    columns = [effect[:, at].mean(1) if at else torch.full((len(effect),), torch.nan) for at in one.roles().values()]
    return torch.stack([column.to(effect.dtype) for column in columns], dim=1)
