"""Iterative editing: repeat any editor on its own result until optimised state and weights agree.

    p_optimised(k)  perplexity of the new objects with the optimised states injected into theta^(k-1)
    p_spread(k)     the same under the weights theta^(k), nothing injected

Contexts and covariances stay those of the unedited model; when to stop is decided in stopping.py. Source:
Baghel et al. 2025, https://arxiv.org/abs/2503.11895 (section 4).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from editing_core.conventions import CLEAN, Conventions
from editing_core.editors.base import Editor, EditOutcome
from editing_core.editors.steps.rows import log_perplexity
from editing_core.editors.stopping import Decision, StopSettings, not_finite
from editing_core.errors import NotFinite
from editing_core.models.delta import WeightDelta
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel
from editing_core.types import EditRequest, Step, Watch, ignore


@dataclass(frozen=True, eq=False)
class Round:
    """One finished iteration: the whole edit so far and both log-perplexities per record (n_records,)."""

    k: int
    delta: Edit
    outcome: EditOutcome
    log_p_optimised: Tensor
    log_p_spread: Tensor

    @property
    def ppl_optimised(self) -> float:
        """Arithmetic mean over records, as in the paper."""
        return float(self.log_p_optimised.exp().mean())

    @property
    def ppl_spread(self) -> float:
        """Arithmetic mean over records, as in the paper."""
        return float(self.log_p_spread.exp().mean())

    @property
    def delta_ppl(self) -> float:
        """Signed difference; its absolute value decides."""
        return self.ppl_spread - self.ppl_optimised

    @property
    def finite(self) -> bool:
        """Whether weights and perplexities are numbers."""
        return self.delta.finite and bool(torch.isfinite(self.log_p_spread).all())

    def row(self) -> dict[str, Any]:
        """The columns the stopping rules and the tables need; medians are not ruled by the worst record."""
        return {
            "k": self.k,
            "ppl_optimised": self.ppl_optimised,
            "ppl_spread": self.ppl_spread,
            "delta_ppl": self.delta_ppl,
            "ppl_optimised_median": float(self.log_p_optimised.median().exp()),
            "ppl_spread_median": float(self.log_p_spread.median().exp()),
        }


@dataclass(frozen=True, eq=False)
class IterativeOutcome:
    """All finished rounds, and the decision which of them is the result and why."""

    rounds: tuple[Round, ...]
    decision: Decision

    @property
    def delta(self) -> Edit:
        """The edit the decision chose; empty when it is the unedited model."""
        k = self.decision.k
        return self.rounds[k - 1].delta if k else WeightDelta()


Measure = Callable[[Round], Mapping[str, Any]]


@dataclass(frozen=True)
class Iterative:
    """Repeats an editor. conventions: what the edit-target perplexities are made of."""

    editor: Editor
    settings: StopSettings
    conventions: Conventions = field(default=CLEAN)

    def edit(
        self,
        lm: LanguageModel,
        requests: Sequence[EditRequest],
        watch: Watch = ignore,
        measure: Measure = lambda _round: {},
        before: Mapping[str, Any] | None = None,
        finished: Sequence[tuple[Round, Mapping[str, Any]]] = (),
    ) -> IterativeOutcome:
        """Iterate until a rule or a guard fires or the rounds are used up.

        measure: called after every round with the model as it was at the start; what it returns (held-out
        perplexity, scores) is what guards look at. before: the same for the unedited model. finished: rounds of
        an interrupted run with what was measured; it goes on behind them.
        """
        rounds: list[Round] = []
        rows: list[Mapping[str, Any]] = [{"k": 0, **before}] if before else []
        for earlier, row in finished:
            with earlier.delta.applied(lm) as edited:
                self.editor.written(edited, requests)
            rounds.append(earlier)
            rows.append({**row, **earlier.row()})
            if decision := self.settings.decide(rows):
                return IterativeOutcome(tuple(rounds), decision)
        total = rounds[-1].delta if rounds else WeightDelta()
        for k in range(len(rounds) + 1, self.settings.iterations + 1):

            def told(step: Step, k: int = k) -> None:
                watch(replace(step, round=k))

            try:
                with total.applied(lm) as edited:
                    outcome = self._once(edited, requests, told)
            except (NotFinite, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
                return IterativeOutcome(tuple(rounds), not_finite(rows, k))
            done = self._measure(lm, requests, k, total + outcome.delta, outcome)
            if done is None or not done.finite:
                return IterativeOutcome(tuple(rounds), not_finite(rows, k))
            rounds.append(done)
            total = done.delta
            rows.append({**measure(done), **done.row()})
            if decision := self.settings.decide(rows) or self._enough(k):
                return IterativeOutcome(tuple(rounds), decision)
        return IterativeOutcome(tuple(rounds), self.settings.conclude(rows))

    def _enough(self, k: int) -> Decision | None:
        """The decision for an editor that is not repeated, None for others."""
        once = self.editor.once
        return Decision(k, "iterations", f"One iteration: {once}") if once else None

    def _once(self, lm: LanguageModel, requests: Sequence[EditRequest], watch: Watch) -> EditOutcome:
        """One pass of the editor, in forwards that fit into memory."""
        return lm.fitting(lambda: self.editor.edit(lm, requests, watch))

    def _measure(
        self, lm: LanguageModel, requests: Sequence[EditRequest], k: int, delta: Edit, outcome: EditOutcome
    ) -> Round | None:
        if not delta.finite:
            return None
        with delta.applied(lm) as edited:
            edit, every = log_perplexity(edited, requests, self.editor.objective)
            self.editor.written(edited, requests)
        c, log = self.conventions, outcome.targets
        optimised = log.log_p_all if c.edit_perplexity == "all" else log.log_p_final
        factor = log.factor if c.factor == "inside" else torch.ones_like(log.factor)
        return Round(k, delta, outcome, optimised * factor, every if c.edit_perplexity == "all" else edit)
