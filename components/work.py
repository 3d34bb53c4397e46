"""What the page has done with models: tasks as values, so that this process can do them or a worker with a GPU.

The functions take the model, the statistics and a watch first, and otherwise only what can travel to another process.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from components.run_store import StoredRun
from editing_core.comparing import Asked, Compared, compare
from editing_core.data.encoder import encoder_of, neighbor_distances
from editing_core.duration import edit_load, look_load
from editing_core.editors.recipes import LADDER
from editing_core.evaluation.consistency import References
from editing_core.ladder import Rung, run_ladder, rung_plan
from editing_core.models.delta import WeightDelta
from editing_core.models.language_model import LanguageModel
from editing_core.runs.record import Base, EditPlan
from editing_core.session import Look, look, run_edit
from editing_core.statistics.covariance import CovarianceStore
from editing_core.tasks import Task
from editing_core.types import EditRequest, Watch

WRITTEN = 30  # tokens of a free continuation
COMPARING = 3  # forwards per prompt and state


@dataclass(frozen=True)
class Closer:
    """What a closer look at one fact brings: looks by iteration, and its neighbors' distances where asked for."""

    looks: dict[int, Look]
    distances: dict[str, float] | None = None
    encoder: str = ""

    def added_to(self, stored: StoredRun, request: EditRequest) -> StoredRun:
        """The run with these looks at one of its facts."""
        stored.looks |= {(request.case_id, k): look for k, look in self.looks.items()}
        if self.distances is not None:
            stored.distances[request.case_id], stored.encoder = self.distances, self.encoder
        return stored


@dataclass(frozen=True, eq=False)
class Asking:
    """Which closer look is to be taken. states: by iteration what the model carries. chat: as in `Conventions`."""

    request: EditRequest
    states: dict[int, WeightDelta] = field(default_factory=dict)
    chat: str = "none"
    distances: bool = False

    @staticmethod
    def of(stored: StoredRun, place: int, k: int, distances: bool = False) -> "Asking":
        """What is still missing of a run's fact before and after iteration k."""
        run, request = stored.run, stored.run.requests[place]
        missing = {at: run.state_at(at) for at in (0, k) if (request.case_id, at) not in stored.looks}
        open_ = distances and request.case_id not in stored.distances
        return Asking(request, missing, run.plan.conventions.chat, open_)


def look_closer(lm: LanguageModel, _store: CovarianceStore, _watch: Watch, asking: Asking) -> Closer:
    """Take a closer look."""
    request = asking.request
    looks = {k: look(lm, request.full_prompt, state, WRITTEN, chat=asking.chat) for k, state in asking.states.items()}
    if not asking.distances:
        return Closer(looks)
    encoder = encoder_of(lm)
    return Closer(looks, neighbor_distances(encoder, request), encoder.name)


def looking(model: str, asking: Asking) -> Task:
    """A closer look as a task."""
    return Task(look_closer, model, (asking,), look_load(len(asking.states), WRITTEN), quick=True)


def _seen(lm: LanguageModel, store: CovarianceStore, watch: Watch, stored: StoredRun) -> StoredRun:
    """The run with a look at its first fact before and after."""
    asking = Asking.of(stored, 0, stored.run.chosen)
    return look_closer(lm, store, watch, asking).added_to(stored, asking.request)


def edit(
    lm: LanguageModel,
    store: CovarianceStore,
    watch: Watch,
    requests: Sequence[EditRequest],
    plan: EditPlan,
    references: References | None,
    base: Base,
) -> StoredRun:
    """Edit, and look at the first fact."""
    run = run_edit(lm, requests, plan, store, watch, references=references, base=base)
    return _seen(lm, store, watch, StoredRun(run))


def editing(
    model: str, requests: Sequence[EditRequest], plan: EditPlan, references: References | None, base: Base
) -> Task:
    """An edit as a task."""
    load = edit_load(requests, plan, references is not None) + look_load(2, WRITTEN)
    return Task(edit, model, (requests, plan, references, base), load)


def climb(
    lm: LanguageModel,
    store: CovarianceStore,
    watch: Watch,
    requests: Sequence[EditRequest],
    plan: EditPlan,
    references: References | None,
) -> tuple[list[Rung], StoredRun]:
    """Train by every recipe, and look at the first fact after the last of them."""
    rungs = run_ladder(lm, requests, plan, watch=watch, references=references)
    return rungs, _seen(lm, store, watch, StoredRun(rungs[-1].run))


def climbing(model: str, requests: Sequence[EditRequest], plan: EditPlan, references: References | None) -> Task:
    """The ladder as a task."""
    load = look_load(2, WRITTEN)
    for name in LADDER:
        load += edit_load(requests, rung_plan(plan, model, name), references is not None)
    return Task(climb, model, (requests, plan, references), load)


def compare_states(
    lm: LanguageModel,
    _store: CovarianceStore,
    _watch: Watch,
    asked: Sequence[Asked],
    first: WeightDelta,
    second: WeightDelta,
    chat: str,
) -> list[Compared]:
    """Both states on all prompts."""
    return compare(lm, asked, first, second, chat)


def comparing(model: str, asked: Sequence[Asked], first: WeightDelta, second: WeightDelta, chat: str) -> Task:
    """A comparison as a task."""
    load = look_load(2 * len(asked), 0).times(COMPARING)
    return Task(compare_states, model, (asked, first, second, chat), load, quick=True)
