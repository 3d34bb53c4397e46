"""What an editor is: requests in, an EditOutcome out, the model bit-equal to before.

Callers never ask which editor they hold. `Editor.edit` is called with the model's lock held.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from editing_core.editors.steps.rows import Objective
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel
from editing_core.types import EditRequest, Watch, ignore


@dataclass(frozen=True, eq=False)
class TargetLog:
    """How the target optimisation of each record went; every tensor is (n_records,) on the CPU.

    log_p_initial and log_p_final are log-perplexities of the new object (mean token NLL over all
    rewriting prompts) before the first and after the last step, without any factor; log_p_all is the last
    one over the assisting neighbors' prompts too, factor the loss factor it had at the end (PMET's rule).
    """

    log_p_initial: Tensor
    log_p_final: Tensor
    log_p_all: Tensor
    factor: Tensor
    steps: Tensor
    norm: Tensor
    clamped: Tensor
    finite: Tensor
    history: tuple[dict[str, float], ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """All but the history, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "history"}

    def select(self, records: Tensor) -> "TargetLog":
        """Other records or in another order, by numbers; the history stays."""
        return TargetLog(**{name: values[records] for name, values in self.tensors().items()}, history=self.history)

    @staticmethod
    def measured(
        before: Tensor,
        after: Tensor,
        every: Tensor,
        history: Sequence[dict[str, float]] = (),
        **more: Tensor,
    ) -> "TargetLog":
        """Of an editor without an optimised state: log-perplexities (n_records,) before, after, and over all rows.

        more: other fields; unless given no steps, no norm, nothing clamped, all finite.
        """
        n = len(before)
        usual = {
            "factor": torch.ones(n),
            "steps": torch.zeros(n, dtype=torch.long),
            "norm": torch.full((n,), float("nan")),
            "clamped": torch.zeros(n, dtype=torch.bool),
            "finite": torch.ones(n, dtype=torch.bool),
        }
        return TargetLog(before, after, every, **{**usual, **more}, history=tuple(history))

    @staticmethod
    def join(logs: Sequence["TargetLog"]) -> "TargetLog":
        """Records one after the other; the history is averaged step by step over logs that have the step."""
        parts = [log.tensors() for log in logs]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        longest = max((len(log.history) for log in logs), default=0)
        history = []
        for i in range(longest):
            rows = [log.history[min(i, len(log.history) - 1)] for log in logs if log.history]
            names_here = [key for key in rows[0] if all(key in row for row in rows)]
            history.append({key: sum(r[key] for r in rows) / len(rows) for key in names_here})
        return TargetLog(**joined, history=tuple(history))


@dataclass(frozen=True, eq=False)
class EditOutcome:
    """What one pass of an editor gives: the edit, its log, and remarks for the reader."""

    delta: Edit
    targets: TargetLog
    notes: tuple[str, ...] = ()


class Editor(ABC):
    """One way to write facts into a model.

    objective: what targets are optimised for; its prefixes are drawn once from the unedited model and are also
    those of the edit-target perplexity. once: why it is not repeated on its own result, empty where it is.
    """

    objective: Objective
    once: ClassVar[str] = ""

    @abstractmethod
    def edit(self, lm: LanguageModel, requests: Sequence[EditRequest], watch: Watch = ignore) -> EditOutcome:
        """Compute the edit that writes all requests together."""

    def written(self, lm: LanguageModel, requests: Sequence[EditRequest]) -> None:  # noqa: ARG002
        """Called after every iteration with the edit so far on; also for those an interrupted run had finished."""
        return

    def settle(self, lm: LanguageModel, requests: Sequence[EditRequest]) -> None:  # noqa: ARG002
        """Called with a batch's final edit on, before the next batch; editors that remember batches do it here."""
        return

    def forget(self) -> None:
        """Forget earlier batches: the next request meets the unedited model."""
        return
