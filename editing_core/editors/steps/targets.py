"""Target optimisation: the shift at the subject's last token that makes the new object likely.

All records of a batch are optimised together, exactly as if alone: their losses are summed, norms,
clamps and stops are per record, and a finished record leaves the batch. Rows 5.2 and 7.2 of the
specification: ROME (arXiv:2202.05262), MEMIT (2210.07229), PMET (2308.08742).

    loss = nu * NLL + kl_factor * KL(shifted || unshifted) + decay * |delta| / |anchor|^2

NLL is over the new object's rows, and with neighbor assistance over the edit neighbors' rows too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from editing_core.editors.base import TargetLog
from editing_core.editors.settings import TargetSettings
from editing_core.editors.steps.rows import Labels, Objective, Row, kl_row, per_record, row_means
from editing_core.models.language_model import LanguageModel
from editing_core.models.past import Openings
from editing_core.models.replay import Replay, Scene, layer_of
from editing_core.types import EditRequest, Step, Watch, ignore, noting

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, eq=False)
class Targets:
    """Optimised targets. values, shifts: per site (n_records, width) float32 or float64, value = anchor + shift."""

    values: dict[str, Tensor]
    shifts: dict[str, Tensor]
    log: TargetLog


def optimise_targets(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    objective: Objective,
    sites: Sequence[str],
    settings: TargetSettings,
    watch: Watch = ignore,
    adaptive: bool = False,
) -> Targets:
    """Optimise one shift per record and site under the current weights.

    sites: modules to whose output the shift is added, at the subject's last token of every row.
    adaptive: PMET's rule, which lowers the NLL's factor to a tenth once every label comes first, and then
    stops a record as soon as kl_factor * KL <= 0.01.
    """
    openings = Openings.run(lm, objective.contexts.openings(lm, len(requests)))
    played = [_Played.of(lm, request, objective, openings) for request in requests]
    parts: list[Targets] = []
    order: list[int] = []
    for numbers in _chunks(played, lm.tokens_per_backward(_above(lm, sites))):
        told = noting(watch, f"facts {len(order) + 1}-{len(order) + len(numbers)} of {len(requests)}")
        problem = _Problem(lm, [played[n] for n in numbers], openings, sites, settings, adaptive)
        parts.append(problem.solve(told))
        order += numbers
    back = torch.tensor(order).argsort()
    return Targets(
        {site: torch.cat([p.values[site] for p in parts])[back] for site in sites},
        {site: torch.cat([p.shifts[site] for p in parts])[back] for site in sites},
        TargetLog.join([p.log for p in parts]).select(back),
    )


@dataclass(frozen=True, eq=False)
class _Played:
    """One request's rows, the KL row last, and what a replay needs of them."""

    rows: list[Row]
    scenes: list[Scene]

    @staticmethod
    def of(lm: LanguageModel, request: EditRequest, objective: Objective, openings: Openings) -> "_Played":
        rows = [*objective.rows(lm, request, 0), kl_row(lm, request, 0)]
        return _Played(rows, [row.scene(openings) for row in rows])

    @property
    def kept(self) -> int:
        """Tokens that are run at all."""
        return sum(len(scene.ids) - scene.lead for scene in self.scenes)


def _above(lm: LanguageModel, sites: Sequence[str]) -> int:
    """How many blocks a gradient passes on its way to the sites: theirs, and all above."""
    return lm.layers - layer_of(lm, sites)


def _chunks(played: Sequence[_Played], most: int) -> list[list[int]]:
    """Numbers of requests, those with the fewest tokens to run again first, in runs of at most so many tokens."""
    chunks: list[list[int]] = [[]]
    used = 0
    for number in sorted(range(len(played)), key=lambda n: max(scene.again for scene in played[n].scenes)):
        cost = played[number].kept
        if chunks[-1] and used + cost > most:
            chunks.append([])
            used = 0
        chunks[-1].append(number)
        used += cost
    return chunks


class _Problem:
    """The optimisation of one chunk of records; its state shrinks as records finish.

    Records are numbered as in the chunk; `place` is a record's number among those still active.
    """

    def __init__(
        self,
        lm: LanguageModel,
        played: Sequence[_Played],
        openings: Openings,
        sites: Sequence[str],
        settings: TargetSettings,
        adaptive: bool,
    ) -> None:
        self.lm, self.sites, self.settings, self.adaptive = lm, tuple(sites), settings, adaptive
        self.count = len(played)
        rows = [replace(row, record=record) for record, of_one in enumerate(played) for row in of_one.rows]
        scenes = [scene for of_one in played for scene in of_one.scenes]
        self.replay = Replay(lm, self.sites, scenes, openings)
        self.labels = Labels.of(lm, rows)
        self.assisted = any(row.assists for row in rows)

        def numbers(values: list[int]) -> Tensor:
            return torch.tensor(values, device=lm.device)

        self.row_record = numbers([row.record for row in rows])
        looked = [(row.record, not row.labels) for row, scene in zip(rows, scenes, strict=True) for _ in scene.looked]
        self._look(numbers([record for record, _ in looked]), numbers([kl for _, kl in looked]).bool())
        self.active = self.place = torch.arange(self.count, device=lm.device)
        first = [0, *accumulate(len(of_one.rows) for of_one in played)][:-1]  # the bare prompt
        self._start(torch.stack([self.replay.anchors[site][first] for site in self.sites]).to(lm.precision))

    def solve(self, watch: Callable[[Step], None]) -> Targets:
        """Run Adam until every record is finished or the steps are used up."""
        s = self.settings
        history: list[dict[str, float]] = []
        for number in range(s.steps):
            with torch.enable_grad():
                terms, right = self._terms()
                loss = self.factor * terms.pop("nll") + terms["kl"] + terms["decay"]
            self.log_p_final[self.active] = terms["target"]
            self.log_p_all[self.active] = terms.pop("all")
            self.last_factor[self.active] = self.factor
            if number == 0:
                self.log_p_initial[:] = terms["target"]
            last = {name: value.detach() for name, value in terms.items()}
            means = torch.stack([value.double().mean() for value in last.values()]).tolist()
            history.append(dict(zip(last, means, strict=True)))
            watch(Step("optimise", number + 1, s.steps, terms=history[-1]))
            finished = self._finished(loss.detach(), last["kl"], right)
            self.steps[self.active] = number + 1
            if number == s.steps - 1 or bool(finished.all()):
                break
            (gradient,) = torch.autograd.grad(loss.sum(), self.delta)
            self._adam(gradient, number + 1)
            if bool(finished.any()):
                self._drop(finished)
        self._store()
        return self._result(tuple(history))

    def _look(self, records: Tensor, kl: Tensor) -> None:
        """What is looked at, (looked,): the record of each token, and whether it is the KL row's."""
        self.looked_record, self.looked_kl = records, kl
        self.at_labels, self.at_kl = (~kl).nonzero()[:, 0], kl.nonzero()[:, 0]

    def _start(self, anchor: Tensor) -> None:
        """Nothing shifted yet. anchor: (sites, n, d)."""
        self.anchor = anchor
        self.anchor_norm = self.anchor.norm(dim=-1)  # (sites, n)
        width = self.anchor.shape[-1]
        unit = self.anchor_norm / width**0.5 if self.settings.relative_rate else torch.ones_like(self.anchor_norm)
        self.rate = self.settings.rate * unit[..., None]
        self.delta = torch.zeros_like(self.anchor).requires_grad_()
        self.moment1, self.moment2 = torch.zeros_like(self.anchor), torch.zeros_like(self.anchor)
        self.factor = torch.ones(self.count, device=self.lm.device)
        n, device = self.count, self.lm.device
        self.log_p_initial, self.log_p_final, self.log_p_all = torch.zeros(3, n, dtype=torch.float64, device=device)
        self.last_factor = torch.ones_like(self.factor)
        self.steps = torch.zeros(n, dtype=torch.long, device=device)
        self.finite = torch.ones(n, dtype=torch.bool, device=device)
        self.result = torch.zeros_like(self.anchor)
        self.kl_before: Tensor | None = None

    def _terms(self) -> tuple[dict[str, Tensor], Tensor]:
        """Loss terms, each (n_active,), and whether all labels of a record come first."""
        labels, n = self.labels, len(self.active)
        rows = self.place[self.row_record]
        hidden = self.replay.run({site: self.delta[i][rows] for i, site in enumerate(self.sites)})
        every_logits = self.lm.logits(hidden)  # at once: the head's weights are read once
        logits = every_logits[self.at_labels]
        losses = torch.nn.functional.cross_entropy(logits, labels.id, reduction="none")
        owner = self.place[labels.record]
        edit, every = row_means(losses, labels, owner, n)
        counts = labels.weight > 0
        wrong = per_record(((logits.detach().argmax(-1) != labels.id) & counts).float(), owner, n)
        after = every_logits[self.at_kl].log_softmax(-1)
        if self.kl_before is None:
            self.kl_before = after.detach()  # nothing is shifted yet
        kl = (after.exp() * (after - self.kl_before)).sum(-1)
        # A norm whose gradient at zero is zero, also where a row is exactly zero.
        norm = torch.where(self.delta.abs().sum(-1) > 0, self.delta.norm(dim=-1), torch.zeros_like(self.anchor_norm))
        terms = {
            "nll": per_record(losses * labels.weight, owner, n),
            "target": edit,
            "all": every,
            "kl": self.settings.kl_factor * kl,
            "decay": self.settings.decay * (norm / self.anchor_norm**2).sum(0),
        }
        if self.assisted:
            terms["neighbor"] = per_record(losses.detach() * labels.share * labels.assists, owner, n)
        return terms, wrong == 0

    def _finished(self, loss: Tensor, kl: Tensor, right: Tensor) -> Tensor:
        """(n_active,) which records stop here; updates PMET's factor for the next step."""
        broken = ~loss.isfinite()
        self.finite[self.active[broken]] = False
        finished = (loss < self.settings.stop_below) | broken
        if self.adaptive:
            finished |= right & (kl <= 0.01)
            self.factor = torch.where(right, 0.1, 1.0)
        return finished

    @torch.no_grad()
    def _adam(self, gradient: Tensor, number: int) -> None:
        """One Adam step and the clamp. All active records share the step count: they started together."""
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        self.previous = self.delta.detach()
        self.moment1.mul_(BETA1).add_(gradient, alpha=1 - BETA1)
        self.moment2.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        scale = (self.moment2 / (1 - BETA2**number)).sqrt_().add_(EPSILON)
        delta = self.previous - self.rate * (self.moment1 / (1 - BETA1**number)).div_(scale)
        limit = self.settings.clamp * self.anchor_norm
        norm = delta.norm(dim=-1).clamp(min=1e-30)
        self.delta = (delta * (limit / norm).clamp(max=1.0)[..., None]).requires_grad_()

    def _drop(self, finished: Tensor) -> None:
        """Keep finished records' shifts as they were when judged, and go on with the others."""
        self.result[:, self.active[finished]] = self.previous[:, finished]
        assert self.kl_before is not None
        keep = ~finished
        self.active = self.active[keep]
        self.delta = self.delta.detach()[:, keep].requires_grad_()
        self.moment1, self.moment2 = self.moment1[:, keep], self.moment2[:, keep]
        self.rate, self.anchor_norm = self.rate[:, keep], self.anchor_norm[:, keep]
        self.kl_before, self.factor = self.kl_before[keep], self.factor[keep]
        rows, looked = keep[self.place[self.row_record]], keep[self.place[self.looked_record]]
        self.labels = self.labels.select(keep[self.place[self.labels.record]])
        self.row_record = self.row_record[rows]
        self._look(self.looked_record[looked], self.looked_kl[looked])
        self.replay.select(rows)
        self.place = torch.zeros_like(self.place)
        self.place[self.active] = torch.arange(len(self.active), device=self.lm.device)

    def _store(self) -> None:
        self.result[:, self.active] = self.delta.detach()

    def _result(self, history: tuple[dict[str, float], ...]) -> Targets:
        norms = self.result.norm(dim=-1)
        clamped = (norms >= self.settings.clamp * self.anchor.norm(dim=-1) * (1 - 1e-4)).any(0)
        log = TargetLog(
            self.log_p_initial.cpu(),
            self.log_p_final.cpu(),
            self.log_p_all.cpu(),
            self.last_factor.cpu(),
            self.steps.cpu(),
            norms.norm(dim=0).cpu(),
            clamped.cpu(),
            self.finite.cpu(),
            history,
        )
        shifts = {site: self.result[i] for i, site in enumerate(self.sites)}
        values = {site: self.anchor[i] + self.result[i] for i, site in enumerate(self.sites)}
        return Targets(values, shifts, log)
