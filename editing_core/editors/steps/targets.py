"""Target optimisation: the shift at the subject's last token that makes the new object likely.

All records of a batch are optimised together, exactly as if alone: their losses are summed, norms,
clamps and stops are per record, and a finished record leaves the batch. Rows 5.2 and 7.2 of the
specification: ROME (arXiv:2202.05262), MEMIT (2210.07229), PMET (2308.08742).

    loss = nu * NLL + kl_factor * KL(shifted || unshifted) + decay * |delta| / |anchor|^2

NLL is over the new object's rows, and with neighbor assistance over the edit neighbors' rows too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing_core.editors.base import TargetLog
from editing_core.editors.settings import TargetSettings
from editing_core.editors.steps.rows import Objective, Row, RowTensors, kl_row, per_record, row_means
from editing_core.models.hooks import steering, watching
from editing_core.models.language_model import LanguageModel
from editing_core.models.replay import Replay
from editing_core.types import EditRequest, Step, Watch, ignore, noting

TOKENS_PER_BATCH = 12_000  # bounds the activations kept for the backward pass
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, eq=False)
class Targets:
    """Optimised targets. values, shifts: per site (n_records, width) float32, value = anchor + shift."""

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
    parts, done = [], 0
    for chunk in _chunks(lm, requests, objective):
        told = noting(watch, f"facts {done + 1}-{done + len(chunk)} of {len(requests)}")
        parts.append(_Problem(lm, chunk, objective, sites, settings, adaptive).solve(told))
        done += len(chunk)
    return Targets(
        {site: torch.cat([p.values[site] for p in parts]) for site in sites},
        {site: torch.cat([p.shifts[site] for p in parts]) for site in sites},
        TargetLog.join([p.log for p in parts]),
    )


def _chunks(lm: LanguageModel, requests: Sequence[EditRequest], objective: Objective) -> list[list[EditRequest]]:
    """Requests in runs whose rows stay below the token budget, in order."""
    chunks: list[list[EditRequest]] = [[]]
    used = 0
    for request in requests:
        cost = sum(len(row.ids) for row in objective.rows(lm, request, 0))
        if chunks[-1] and used + cost > lm.at_most(TOKENS_PER_BATCH):
            chunks.append([])
            used = 0
        chunks[-1].append(request)
        used += cost
    return chunks


class _Problem:
    """The optimisation of one chunk of records; its state shrinks as records finish."""

    def __init__(
        self,
        lm: LanguageModel,
        requests: Sequence[EditRequest],
        objective: Objective,
        sites: Sequence[str],
        settings: TargetSettings,
        adaptive: bool,
    ) -> None:
        self.lm, self.sites, self.settings, self.adaptive = lm, tuple(sites), settings, adaptive
        self.count = len(requests)
        self.rows: list[list[Row]] = [[*objective.rows(lm, r, i), kl_row(lm, r, i)] for i, r in enumerate(requests)]
        self.active = torch.arange(self.count, device=lm.device)
        self.replay = Replay(lm, self.sites)

    def solve(self, watch: Callable[[Step], None]) -> Targets:
        """Run Adam until every record is finished or the steps are used up."""
        s = self.settings
        self._start()
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
            history.append({name: float(value.mean()) for name, value in last.items()})
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

    @torch.no_grad()
    def _start(self) -> None:
        """One plain forward of whole rows: anchors, the unshifted KL distribution, and what replays keep.

        From then on rows begin where the shift does.
        """
        whole = self._arrange()
        starts = torch.tensor([row.start for row in whole], device=self.lm.device)
        t, rows = self.tensors, self.identity
        with watching(self.lm.model, outputs=self.sites) as seen:
            hidden = self.replay.record(t.batch, starts)
        self.anchor = torch.stack([seen[site][rows, t.subject[rows]].float() for site in self.sites])  # (sites, n, d)
        self.kl_before = self._kl_logits(hidden).log_softmax(-1)
        self.rows = [[row.behind_start() for row in rows] for rows in self.rows]
        self._arrange()
        self.anchor_norm = self.anchor.norm(dim=-1)  # (sites, n)
        width = self.anchor.shape[-1]
        unit = self.anchor_norm / width**0.5 if self.settings.relative_rate else torch.ones_like(self.anchor_norm)
        self.rate = self.settings.rate * unit[..., None]
        self.delta = torch.zeros_like(self.anchor).requires_grad_()
        self.moment1, self.moment2 = torch.zeros_like(self.anchor), torch.zeros_like(self.anchor)
        self.factor = torch.ones(self.count, device=self.lm.device)
        n, device = self.count, self.lm.device
        self.log_p_initial, self.log_p_final, self.log_p_all = torch.zeros(3, n, dtype=torch.float64, device=device)
        self.last_factor = torch.ones(n, dtype=torch.float32, device=device)
        self.steps = torch.zeros(n, dtype=torch.long, device=device)
        self.finite = torch.ones(n, dtype=torch.bool, device=device)
        self.result, self.anchors = torch.zeros_like(self.anchor), self.anchor.clone()

    def _arrange(self) -> list[Row]:
        """The rows of the active records in order, and tensors for them."""
        numbers = {int(record): i for i, record in enumerate(self.active)}
        rows = [row for record in numbers for row in self.rows[record]]
        self.tensors = RowTensors.of(self.lm, rows)
        self.record = torch.tensor([numbers[row.record] for row in rows], device=self.lm.device)
        self.identity = torch.tensor([i for i, row in enumerate(rows) if row is self.rows[row.record][0]])
        self.kl_rows = torch.tensor([i for i, row in enumerate(rows) if not row.labels])
        self.assisted = any(row.assists for row in rows)
        return rows

    def _terms(self) -> tuple[dict[str, Tensor], Tensor]:
        """Loss terms, each (n_active,), and whether all labels of a record come first."""
        t, n = self.tensors, len(self.active)
        index = torch.arange(len(t.subject), device=self.lm.device)

        def shifted(number: int) -> Callable[[Tensor], Tensor]:
            def change(state: Tensor) -> Tensor:
                return state.index_put(
                    (index, t.subject), self.delta[number][self.record].to(state.dtype), accumulate=True
                )

            return change

        changes = {site: shifted(i) for i, site in enumerate(self.sites)}
        with steering(self.lm.model, changes):
            hidden = self.replay.run()
        logits = self.lm.head(hidden[t.label_row, t.label_at]).float()
        losses = torch.nn.functional.cross_entropy(logits, t.label_id, reduction="none")
        owner = self.record[t.label_row]
        edit, every = row_means(losses, t, owner, n)
        counts = t.label_weight > 0
        wrong = per_record(((logits.detach().argmax(-1) != t.label_id) & counts).float(), owner, n)
        after = self._kl_logits(hidden).log_softmax(-1)
        kl = (after.exp() * (after - self.kl_before)).sum(-1)
        # A norm whose gradient at zero is zero, also where a row is exactly zero.
        norm = torch.where(self.delta.abs().sum(-1) > 0, self.delta.norm(dim=-1), torch.zeros_like(self.anchor_norm))
        terms = {
            "nll": per_record(losses * t.label_weight, owner, n),
            "target": edit,
            "all": every,
            "kl": self.settings.kl_factor * kl,
            "decay": self.settings.decay * (norm / self.anchor_norm**2).sum(0),
        }
        if self.assisted:
            terms["neighbor"] = per_record(losses.detach() * t.label_share * t.label_assists, owner, n)
        return terms, wrong == 0

    def _kl_logits(self, hidden: Tensor) -> Tensor:
        """(n_active, vocabulary) at the subject's last token of the KL rows, by record order."""
        logits: Tensor = self.lm.head(hidden[self.kl_rows, self.tensors.subject[self.kl_rows]]).float()
        return logits

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
        gradient = torch.where(gradient.isfinite(), gradient, torch.zeros_like(gradient))
        self.previous = self.delta.detach().clone()
        self.moment1 = BETA1 * self.moment1 + (1 - BETA1) * gradient
        self.moment2 = BETA2 * self.moment2 + (1 - BETA2) * gradient**2
        direction = (self.moment1 / (1 - BETA1**number)) / ((self.moment2 / (1 - BETA2**number)).sqrt() + EPSILON)
        delta = self.previous - self.rate * direction
        limit = self.settings.clamp * self.anchor_norm
        norm = delta.norm(dim=-1).clamp(min=1e-30)
        self.delta = (delta * (limit / norm).clamp(max=1.0)[..., None]).requires_grad_()

    def _drop(self, finished: Tensor) -> None:
        """Keep finished records' shifts as they were when judged, and go on with the others."""
        self.result[:, self.active[finished]] = self.previous[:, finished]
        keep = ~finished
        kept_rows = keep[self.record]
        self.active = self.active[keep]
        self.delta = self.delta.detach()[:, keep].requires_grad_()
        self.moment1, self.moment2 = self.moment1[:, keep], self.moment2[:, keep]
        self.rate, self.anchor_norm = self.rate[:, keep], self.anchor_norm[:, keep]
        self.kl_before, self.factor = self.kl_before[keep], self.factor[keep]
        self._arrange()
        self.replay.select(kept_rows)

    def _store(self) -> None:
        self.result[:, self.active] = self.delta.detach()

    def _result(self, history: tuple[dict[str, float], ...]) -> Targets:
        norms = self.result.norm(dim=-1)
        clamped = (norms >= self.settings.clamp * self.anchors.norm(dim=-1) * (1 - 1e-4)).any(0)
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
        values = {site: self.anchors[i] + self.result[i] for i, site in enumerate(self.sites)}
        return Targets(values, shifts, log)
