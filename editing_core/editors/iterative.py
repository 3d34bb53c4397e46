"""Iterative editing: repeat any editor on its own result until optimised state and weights agree.

    p_optimised(k)  perplexity of the new objects with the optimised states injected into theta^(k-1)
    p_spread(k)     the same under the weights theta^(k), nothing injected
    stop at the first k with |p_spread(k) - p_optimised(k)| <= tolerance

Contexts and covariances stay those of the unedited model. Source: Baghel et al. 2025,
https://arxiv.org/abs/2503.11895 (section 4).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from editing_core.editors.base import Editor, EditOutcome
from editing_core.editors.settings import Settings, setting
from editing_core.editors.steps.rows import log_perplexity
from editing_core.models.delta import WeightDelta
from editing_core.models.language_model import LanguageModel
from editing_core.types import EditRequest, Step, Watch, ignore

MAX_ROUNDS = 10


@dataclass(frozen=True)
class StopSettings(Settings):
    """How long to iterate."""

    iterations: int = setting(5, "Most iterations", 1, MAX_ROUNDS)
    stop: str = setting(
        "perplexity",
        "perplexity: stop when |delta p| <= tolerance; none: all iterations",
        choices=("perplexity", "none"),
    )
    tolerance: float = setting(1.0, "epsilon: the largest |delta p| that counts as agreement", 0.0, 1e6)


@dataclass(frozen=True, eq=False)
class Round:
    """One finished iteration: the whole edit so far and both log-perplexities per record (n_records,)."""

    k: int
    delta: WeightDelta
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


@dataclass(frozen=True, eq=False)
class IterativeOutcome:
    """All finished rounds and, in words, why the last one was the last. `converged`: the rule fired."""

    rounds: tuple[Round, ...]
    stopped: str
    converged: bool

    @property
    def delta(self) -> WeightDelta:
        """The edit after the last round; empty when none finished."""
        return self.rounds[-1].delta if self.rounds else WeightDelta()


@dataclass(frozen=True)
class Iterative:
    """Repeats an editor. `on_round` is called after every round with the model unedited."""

    editor: Editor
    settings: StopSettings

    def edit(
        self,
        lm: LanguageModel,
        requests: Sequence[EditRequest],
        watch: Watch = ignore,
        on_round: Callable[[Round], None] = lambda _round: None,
    ) -> IterativeOutcome:
        """Iterate until the rule fires, a round is not finite (it is dropped), or the rounds are used up."""
        rounds: list[Round] = []
        total = WeightDelta()
        for k in range(1, self.settings.iterations + 1):

            def told(step: Step, k: int = k) -> None:
                watch(replace(step, round=k))

            with total.applied(lm.model):
                outcome = self.editor.edit(lm, requests, told)
            done = self._measure(lm, requests, k, total + outcome.delta, outcome)
            if done is None or not done.finite:
                reason = (
                    f"Iteration {k} gave numbers that are not finite; the edit was rolled back to iteration {k - 1}."
                )
                return IterativeOutcome(tuple(rounds), reason, converged=False)
            rounds.append(done)
            total = done.delta
            on_round(done)
            if self.settings.stop == "perplexity" and abs(done.delta_ppl) <= self.settings.tolerance:
                gap = f"|delta p| = {abs(done.delta_ppl):.3g} is at most {self.settings.tolerance:g}"
                reason = f"Stopped after iteration {k}: {gap}."
                return IterativeOutcome(tuple(rounds), reason, converged=True)
        reason = f"All {self.settings.iterations} iterations were used."
        if self.settings.stop == "perplexity":
            reason += f" |delta p| = {abs(rounds[-1].delta_ppl):.3g} is still above {self.settings.tolerance:g}."
        return IterativeOutcome(tuple(rounds), reason, converged=False)

    def _measure(
        self, lm: LanguageModel, requests: Sequence[EditRequest], k: int, delta: WeightDelta, outcome: EditOutcome
    ) -> Round | None:
        if not delta.finite:
            return None
        with delta.applied(lm.model):
            spread = log_perplexity(lm, requests, self.editor.contexts)
        return Round(k, delta, outcome, outcome.targets.log_p_final, spread)
