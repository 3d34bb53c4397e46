"""Offset optimisation: what to add to the embeddings of a subject's tokens so that new objects become likely.

    loss = NLL + kl_factor * KL("SUBJECT is" before || after) + preserve * KL(kept prompts before || after)
           + decay * |D| / |E|^2,   after each step |D| <= clamp * |E|

One D (tokens, width) per subject, for all that is asked about it together. The ways a subject may be written in tokens
share it from the last token backwards. Subjects are optimised side by side, each exactly as if alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from editing_core.editors.steps.offset_rows import KINDS, Case, OffsetRow
from editing_core.models.hooks import at_on, steering
from editing_core.models.language_model import LanguageModel
from editing_core.models.subjects import Ids, embedding_name
from editing_core.models.tokens import Batch, runs
from editing_core.settings import Settings, setting
from editing_core.types import Step, Watch

STILL = 0.01  # a KL divergence below it is none


@dataclass(frozen=True)
class OffsetSettings(Settings):
    """How a subject's offsets are optimised. In brackets: the name in the published code."""

    steps: int = setting(25, "Most gradient steps per subject [v_num_grad_steps]", 1, 500)
    rate: float = setting(0.02, "Adam's step size on the offsets [v_lr]", 1e-5, 10.0)
    relative_rate: bool = setting(
        False, "Measure the step size in units of the root mean square of the subject's embeddings"
    )
    kl_factor: float = setting(0.2, "Weight of the KL term that keeps 'SUBJECT is' as it was [kl_factor]", 0.0, 10.0)
    preserve: float = setting(
        1.0, "Ours: weight of a KL term that keeps other facts of the subject, where some are known", 0.0, 100.0
    )
    decay: float = setting(0.3, "Weight of |D| / |E|^2, keeps offsets small [v_weight_decay]", 0.0, 100.0)
    clamp: float = setting(1.0, "Largest |D| as a multiple of the embeddings' |E| [clamp_norm_factor]", 0.01, 100.0)
    enough: float = setting(
        0.8, "A subject is finished when its loss falls below this share of the KL term's weight", 0.0, 100.0
    )
    start: str = setting(
        "zero",
        "Where offsets begin: at zero, or as in the published code at the embeddings themselves",
        choices=("zero", "embeddings"),
    )


@dataclass(frozen=True, eq=False)
class Optimised:
    """Of one subject. offsets: (size, width) float32. clamped: met the clamp. finite: all are numbers."""

    offsets: Tensor
    steps: int
    clamped: bool
    finite: bool


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some rows as tensors. Places: row, position, slot among all subjects', what is on there already (n, width).

    Looked-at tokens: row, position, owner (place of the subject), kind, weight, label; before: log-probabilities
    (n, vocabulary) of those that are kept.
    """

    batch: Batch
    at: tuple[Tensor, Tensor]
    slot: Tensor
    minus: Tensor
    looked: tuple[Tensor, Tensor]
    owner: Tensor
    kind: Tensor
    weight: Tensor
    label: Tensor


def optimise_offsets(
    lm: LanguageModel, cases: Sequence[Case], settings: OffsetSettings, watch: Watch
) -> tuple[list[Optimised], tuple[dict[str, float], ...]]:
    """Per subject its offsets, and the mean loss terms of every step."""
    problem = _Problem(lm, cases, settings)
    return problem.solve(watch), tuple(problem.history)


class _Problem:
    """All subjects at once; their rows leave when they are finished."""

    def __init__(self, lm: LanguageModel, cases: Sequence[Case], settings: OffsetSettings) -> None:
        self.lm, self.cases, self.settings = lm, cases, settings
        sizes = [case.size for case in cases]
        self.first = [sum(sizes[:n]) for n in range(len(cases))]
        self.owner = torch.repeat_interleave(torch.arange(len(cases)), torch.tensor(sizes)).to(lm.device)
        embeddings = torch.cat([case.embeddings for case in cases]).to(lm.device, lm.precision)
        self.norm = self._lengths(embeddings)
        self.rms = self.norm / (torch.tensor(sizes, device=lm.device) * embeddings.shape[1]).sqrt()
        carried = torch.cat([case.begin() for case in cases]).to(lm.device, lm.precision)
        begin = embeddings if settings.start == "embeddings" else torch.zeros_like(embeddings)
        self.offsets = torch.where(carried.any(1, keepdim=True), carried, begin).requires_grad_()
        self.result = self.offsets.detach().clone()
        self.history: list[dict[str, float]] = []
        self.active = torch.ones(len(cases), dtype=torch.bool, device=lm.device)
        self.finite = self.active.clone()
        self.steps = torch.zeros(len(cases), dtype=torch.long)
        self._load()
        self.before = [self._kept(rows) for rows in self.rows]

    def solve(self, watch: Watch) -> list[Optimised]:
        """Adam until every subject is finished or the steps are used up."""
        s = self.settings
        rate = s.rate * (self.rms if s.relative_rate else torch.ones_like(self.rms))
        adam = torch.optim.Adam([self.offsets], lr=1.0)
        for number in range(s.steps):
            self.offsets.grad = None
            terms, right = self._terms()
            loss = terms["nll"] + s.kl_factor * terms["kl"] + s.preserve * terms["preserve"] + terms["decay"]
            self._tell(terms, watch)
            still = (terms["kl"] < STILL) & (terms["preserve"] < STILL)
            self._finish(loss, (loss < s.enough * s.kl_factor) | (right & still))
            if not self.active.any():
                break
            self._step(adam, rate)
            self.steps[self.active.cpu()] = number + 1
        self._store(self.active)
        limit = s.clamp * self.norm * (1 - 1e-4)
        clamped = (self._lengths(self.result) >= limit).cpu()
        parts = self.result.split([case.size for case in self.cases])
        return [
            Optimised(part.cpu().float(), int(self.steps[n]), bool(clamped[n]), bool(self.finite[n]))
            for n, part in enumerate(parts)
        ]

    def _step(self, adam: torch.optim.Adam, rate: Tensor) -> None:
        """One step of Adam for all alike, as long as each subject's rate, and back into the ball."""
        with torch.no_grad():
            before = self.offsets.clone()
            if self.offsets.grad is not None:
                self.offsets.grad.nan_to_num_(0.0, 0.0, 0.0)
            adam.step()
            moved = before + (self.offsets - before) * rate[self.owner][:, None]
            limit = self.settings.clamp * self.norm / self._lengths(moved).clamp(min=1e-30)
            self.offsets.copy_(moved * limit.clamp(max=1.0)[self.owner][:, None])

    def _terms(self) -> tuple[dict[str, Tensor], Tensor]:
        """Loss terms of every subject, (subjects,), gradients left in the offsets; and whose labels all come first."""
        s, count = self.settings, len(self.cases)
        factors = torch.tensor([1.0, s.kl_factor, s.preserve], device=self.lm.device, dtype=self.lm.precision)
        sums = torch.zeros(count * len(KINDS), device=self.lm.device, dtype=self.lm.precision)
        wrong = torch.zeros(count, device=self.lm.device)
        for rows, before in zip(self.rows, self.before, strict=True):
            with torch.enable_grad():
                logits = self._logits(rows)
                losses = self._losses(rows, logits, before) * rows.weight
                (losses * factors[rows.kind]).sum().backward()
            sums = sums.index_add(0, rows.owner * len(KINDS) + rows.kind, losses.detach())
            missed = (logits.detach().argmax(-1) != rows.label) & (rows.kind == 0)
            wrong = wrong.index_add(0, rows.owner, missed.float())
        terms = dict(zip(KINDS, sums.view(count, len(KINDS)).T, strict=True))
        with torch.enable_grad():
            # A norm whose gradient at zero is zero.
            squares = torch.zeros_like(self.norm).index_add(0, self.owner, self.offsets.square().sum(1))
            length = torch.where(squares > 0, squares.clamp(min=1e-30).sqrt(), torch.zeros_like(squares))
            decay = s.decay * length / self.norm**2
            decay[self.active].sum().backward()
        return {**terms, "decay": decay.detach()}, wrong == 0

    def _losses(self, rows: _Rows, logits: Tensor, before: Tensor) -> Tensor:
        """(looked-at tokens,) NLL of those with a label, KL of those that are kept."""
        kept = rows.kind > 0
        nll = cross_entropy(logits[~kept], rows.label[~kept], reduction="none")
        after = logits[kept].log_softmax(-1)
        kl = (before.exp() * (before - after)).sum(-1)
        found = torch.zeros(len(kept), dtype=logits.dtype, device=logits.device)
        return found.masked_scatter(~kept, nll).masked_scatter(kept, kl)

    def _logits(self, rows: _Rows, shifted: bool = True) -> Tensor:
        """(looked-at tokens, vocabulary). shifted: with the offsets as they are now, in place of those that are on."""
        if not shifted:
            return self.lm.logits_at(rows.batch, *rows.looked)
        extra = self.offsets[rows.slot] - rows.minus

        def change(state: Tensor) -> Tensor:
            index = at_on(state, *rows.at)
            there = state[index].to(extra.dtype) + extra.to(state.device)
            return state.index_put(index, there.to(state.dtype))

        with steering(self.lm.model, {embedding_name(self.lm): change}):
            return self.lm.logits_at(rows.batch, *rows.looked)

    @torch.no_grad()
    def _kept(self, rows: _Rows) -> Tensor:
        return self._logits(rows, shifted=False)[rows.kind > 0].log_softmax(-1)

    def _finish(self, loss: Tensor, done: Tensor) -> None:
        """Keep the offsets of subjects that are finished as they were judged, and go on with the others."""
        broken = ~loss.isfinite() & self.active
        self.finite &= ~broken
        over = (done | broken) & self.active
        if over.any():
            self._store(over)
            self.active &= ~over
            if self.active.any():
                self._load()
                self.before = [self._kept(rows) for rows in self.rows]

    def _store(self, subjects: Tensor) -> None:
        mine = subjects[self.owner]
        self.result[mine] = self.offsets.detach()[mine]

    def _tell(self, terms: Mapping[str, Tensor], watch: Watch) -> None:
        means = {name: float(values[self.active].mean()) for name, values in terms.items()}
        if not any(row.kind == "preserve" for case in self.cases for row in case.rows):
            del means["preserve"]
        self.history.append({"target": means.pop("nll"), **means})
        watch(Step("optimise", len(self.history), self.settings.steps, terms=self.history[-1]))

    def _lengths(self, offsets: Tensor) -> Tensor:
        """(subjects,) norm of each subject's part."""
        squares = torch.zeros(len(self.cases), dtype=offsets.dtype, device=offsets.device)
        return squares.index_add(0, self.owner, offsets.detach().square().sum(1)).sqrt()

    def _load(self) -> None:
        """Rows of the active subjects as tensors, in forwards that fit."""
        rows = [(n, row) for n, case in enumerate(self.cases) if self.active[n] for row in case.rows]
        most = self.lm.tokens_per_backward(self.lm.layers)
        self.rows = [
            self._tensors([rows[i] for i in numbers]) for numbers in runs([len(row.ids) for _, row in rows], most)
        ]

    def _tensors(self, rows: Sequence[tuple[int, OffsetRow]]) -> _Rows:
        def whole(numbers: Sequence[int]) -> Tensor:
            return torch.tensor(list(numbers), dtype=torch.long, device=self.lm.device)

        places = [
            (number, position, self.first[n] + self.cases[n].slot(form, token), self._on(n, form, token))
            for number, (n, row) in enumerate(rows)
            for position, form, token in row.places
        ]
        looked = [
            (number, position, n, KINDS.index(row.kind), row.weight / len(row.positions), label)
            for number, (n, row) in enumerate(rows)
            for position, label in zip(row.positions, row.labels or (0,) * len(row.positions), strict=True)
        ]
        row_at, position, slot, minus = zip(*places, strict=True)
        row_looked, looked_at, owner, kind, weight, label = zip(*looked, strict=True)
        batch = replace(self.lm.batch([row.ids for _, row in rows]), ends=whole([row.end for _, row in rows]))
        return _Rows(
            batch,
            (whole(row_at), whole(position)),
            whole(slot),
            torch.stack(minus).to(self.lm.device, self.lm.precision),
            (whole(row_looked), whole(looked_at)),
            whole(owner),
            whole(kind),
            torch.tensor(weight, dtype=self.lm.precision, device=self.lm.device),
            whole(label),
        )

    def _on(self, case: int, form: Ids, token: int) -> Tensor:
        """(width,) what a token of a form has already."""
        own = self.cases[case]
        return own.carried[form][token] if form in own.carried else torch.zeros_like(own.embeddings[0])
