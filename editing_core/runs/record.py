"""RunResult: one edit of one or several facts, with all that is needed to read, draw and repeat it."""

import platform
import secrets
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from math import isnan
from typing import Any

import pandas as pd

from editing_core.conventions import CLEAN, Conventions
from editing_core.editors.assist import Assist
from editing_core.editors.stopping import Decision, StopSettings, every_rule
from editing_core.errors import BadRequest
from editing_core.evaluation.verdict import Verdict, judge
from editing_core.models.delta import WeightDelta
from editing_core.models.edit import Edit, Proof
from editing_core.settings import Settings
from editing_core.types import EditRequest

SCHEMA = 2


@dataclass(frozen=True)
class EditPlan:
    """What is done to the requests: editor, its settings, when to stop, the seed of all randomness.

    assist: how neighbors and statistics of subjects take part. conventions: how it is measured.
    """

    editor: str
    settings: Settings
    stop: StopSettings = field(default_factory=StopSettings)
    seed: int = 0
    assist: Assist = field(default_factory=Assist)
    conventions: Conventions = CLEAN


def versions() -> dict[str, str]:
    """Versions that decide the numbers."""
    names = ("torch", "transformers", "numpy", "tokenizers")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def new_id() -> str:
    """An unguessable run id: whoever holds it may see the run. It never begins as an option of a command does."""
    return secrets.choice(string.ascii_letters) + secrets.token_urlsafe(12)


@dataclass(frozen=True, eq=False)
class Base:
    """Edits that are on while a run is made: their sum, and their ids in order."""

    delta: Edit = field(default_factory=WeightDelta)
    ids: tuple[str, ...] = ()


NO_BASE = Base()


@dataclass(frozen=True, eq=False)
class RunResult:
    """Everything one run found.

    iterations: one row per k from 0 (unedited), metric columns as in `evaluation.metrics.CARDS`; fluency and
    consistency only where texts were generated, and then NaN but at k = 0 and at the chosen k.
    probes: one row per k and probe. cases: one row per k >= 1 and record, see `evaluation.cases`, with
    p_optimised, p_spread, steps, norm, clamped. deltas, proofs, histories: one entry per k >= 1; a delta is the
    whole edit up to k on top of `base`, None where its weights were not kept. decision: which k is the result, by
    which rule, and why.
    """

    plan: EditPlan
    requests: tuple[EditRequest, ...]
    model: str
    revision: str
    contexts: tuple[str, ...]
    iterations: pd.DataFrame
    probes: pd.DataFrame
    cases: pd.DataFrame
    deltas: tuple[Edit | None, ...]
    proofs: tuple[tuple[Proof, ...], ...]
    histories: tuple[tuple[dict[str, float], ...], ...]
    decision: Decision
    seconds: float
    edit_seconds: float
    notes: tuple[str, ...] = ()
    id: str = field(default_factory=new_id)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    versions: dict[str, str] = field(default_factory=versions)
    base: Base = NO_BASE

    @property
    def last(self) -> int:
        """The last finished iteration."""
        return len(self.deltas)

    @property
    def chosen(self) -> int:
        """The iteration that is the result: the last one, unless a rule or a guard went back."""
        return self.decision.k

    @property
    def stopped(self) -> str:
        """Why the iterations ended, in one sentence."""
        return self.decision.reason

    @property
    def converged(self) -> bool:
        """Whether the plan's rule fired."""
        return self.decision.rule == self.plan.stop.stop

    def delta_at(self, k: int) -> Edit:
        """The whole edit after iteration k; empty for k = 0. BadRequest where its weights were not kept."""
        edits = (WeightDelta(), *self.deltas)
        if (delta := edits[k]) is None:
            kept = " and ".join(str(i) for i, edit in enumerate(edits) if edit is not None)
            raise BadRequest(
                f"The weights of iteration {k} were not kept, only those of {kept} are here (0: unedited); choose one "
                "of these, or edit again."
            )
        return delta

    def state_at(self, k: int) -> Edit:
        """What the unedited model has to carry to be as it was after iteration k: the base and the edit."""
        return self.base.delta + self.delta_at(k)

    @property
    def rounds(self) -> "Rounds":
        """What is kept of the iterations beside the tables."""
        return Rounds(self.histories, self.proofs, self.notes, self.seconds, self.edit_seconds)

    def request(self, case_id: int | str) -> EditRequest:
        """The request of a case."""
        for request in self.requests:
            if request.case_id == case_id:
                return request
        raise BadRequest(f"This run has no case {case_id!r}; choose one of its own.")

    def only(self, case: str) -> "RunResult":
        """What the run says of one case, named by its id as text, as a run of its own; iterations stay those of all."""
        request = next((request for request in self.requests if str(request.case_id) == case), None)
        if request is None:
            raise BadRequest(f"This run has no case {case[:40]!r}; choose one of its own.")
        probes, cases = (t[t["case_id"] == request.case_id] for t in (self.probes, self.cases))
        own = {"probes": probes.reset_index(drop=True), "cases": cases.reset_index(drop=True)}
        return replace(self, id=new_id(), requests=(request,), **own)

    def probes_at(self, k: int, case_id: int | str | None = None) -> pd.DataFrame:
        """Probe rows of one iteration, of one case or all."""
        here = self.probes[self.probes["k"] == k]
        if case_id is not None:
            here = here[here["case_id"] == case_id]
        return here.reset_index(drop=True)

    def verdict(self, case_id: int | str | None = None, k: int | None = None) -> Verdict:
        """The verdict on one case (the first one) after iteration k (the chosen one)."""
        case_id = self.requests[0].case_id if case_id is None else case_id
        k = self.chosen if k is None else k
        if k == 0:
            before = "Only what it was made on is on." if self.base.ids else "The model is unedited."
            return Verdict(("undecidable",), f"{before} {self.stopped}")
        collapse = self.iterations["collapse_ppl"]
        return judge(
            self.probes_at(k, case_id), self.probes_at(0, case_id), float(collapse.iloc[k]), float(collapse.iloc[0])
        )

    def rules(self) -> dict[str, Decision | None]:
        """What each stopping rule, and the best score, would have chosen among the finished iterations."""
        return every_rule(plain_rows(self.iterations), self.plan.stop.tolerance)

    def to_json(self) -> dict[str, Any]:
        """One JSON-able object with everything but the weights."""
        verdict = self.verdict()
        return {
            "schema": SCHEMA,
            "id": self.id,
            "created": self.created,
            "verdict": verdict.label,
            "reason": verdict.reason,
            "model": self.model,
            "revision": self.revision,
            "editor": self.plan.editor,
            "settings": asdict(self.plan.settings),
            "stop": asdict(self.plan.stop),
            "assist": asdict(self.plan.assist),
            "conventions": asdict(self.plan.conventions),
            "seed": self.plan.seed,
            "generate": "fluency" in self.iterations,
            "chosen": self.chosen,
            "rule": self.decision.rule,
            "rules": {name: d.k if d else None for name, d in self.rules().items()},
            "stopped": self.stopped,
            "converged": self.converged,
            "requests": [asdict(request) for request in self.requests],
            "contexts": list(self.contexts),
            "made_on": list(self.base.ids),
            "iterations": plain_rows(self.iterations),
            "probes": plain_rows(self.probes),
            "cases": plain_rows(self.cases),
            "delta": [asdict(proof) for proof in (self.proofs[self.chosen - 1] if self.chosen else ())],
            "histories": [list(history) for history in self.histories],
            "notes": list(self.notes),
            "seconds": self.seconds,
            "edit_seconds": self.edit_seconds,
            "versions": self.versions,
        }


@dataclass(frozen=True)
class Rounds:
    """What is kept of a run's iterations beside its tables; the fields are those of RunResult."""

    histories: tuple[tuple[dict[str, float], ...], ...]
    proofs: tuple[tuple[Proof, ...], ...]
    notes: tuple[str, ...]
    seconds: float
    edit_seconds: float

    def to_json(self) -> dict[str, Any]:
        """One JSON-able object."""
        return asdict(self)

    @staticmethod
    def of(told: Any) -> "Rounds":
        """What `to_json` gave, after JSON; ValueError for anything else."""
        try:
            histories = tuple(tuple(map(_terms, _list(steps))) for steps in _list(told["histories"]))
            proofs = tuple(tuple(map(_proof, _list(rows))) for rows in _list(told["proofs"]))
            notes = tuple(map(str, _list(told["notes"])))
            rounds = Rounds(histories, proofs, notes, float(told["seconds"]), float(told["edit_seconds"]))
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError("no rounds of a run") from error
        if len(histories) != len(proofs):
            raise ValueError("histories and proofs of different iterations")
        return rounds


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("no list")
    return value


def _terms(step: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in step.items()}


def _proof(row: Mapping[str, Any]) -> Proof:
    whole = {name: int(row[name]) for name in ("changed", "total")}
    rank = None if row["rank"] is None else int(row["rank"])
    return Proof(str(row["parameter"]), float(row["relative_norm"]), rank, **whole)


def plain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with plain Python values and None for missing ones (JSON knows no NaN)."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return value
        value = value.item() if hasattr(value, "item") else value
        missing = value is None or (isinstance(value, float) and isnan(value)) or value in (float("inf"), float("-inf"))
        return None if missing else value

    return [{key: plain(value) for key, value in row.items()} for row in table.to_dict("records")]


def with_targets(requests: tuple[EditRequest, ...], answers: dict[int | str, str]) -> tuple[EditRequest, ...]:
    """Requests whose missing old object is filled in from `answers` by case."""
    return tuple(replace(r, target_true=answers[r.case_id]) if r.case_id in answers else r for r in requests)
