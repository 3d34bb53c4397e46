"""What the page has done with models: tasks as values, so that this process can do them or a worker with a GPU.

The functions take the model, the statistics and a watch first, and otherwise only what can travel to another process.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pandas as pd

from components.run_store import StoredRun
from editing_core.comparing import Asked, Compared, compare
from editing_core.data.encoder import encoder_of, neighbor_distances
from editing_core.depths import depth_of
from editing_core.duration import DEPTH, edit_load, look_load
from editing_core.editors.load import ROW_TOKENS, Load
from editing_core.editors.recipes import LADDER
from editing_core.evaluation.consistency import References
from editing_core.explore.changed import Change, changes_of, key_table
from editing_core.explore.facts import facts_known_to, noise_of, trace_facts
from editing_core.explore.lens import Lens, through_lens
from editing_core.explore.talk import Talk, TalkSettings
from editing_core.explore.trace import KINDS, Trace, TraceSettings, trace
from editing_core.ladder import Rung, run_ladder, rung_plan
from editing_core.lesson import MODEL, learn, wanted
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel
from editing_core.runs.record import Base, EditPlan
from editing_core.session import Look, look, run_edit
from editing_core.statistics.covariance import CovarianceStore
from editing_core.tasks import Task
from editing_core.types import EditRequest, Step, Watch

WRITTEN = 30  # tokens of a free continuation
COMPARING = 3  # forwards per prompt and state
DEEP = 48  # blocks of a model of unknown depth
ASKED = 8  # prompts per fact that is looked for


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
    states: dict[int, Edit] = field(default_factory=dict)
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
    prompts = [*request.paraphrases, *(neighbor.prompt for neighbor in request.neighbors)]
    looks = {
        k: look(lm, request.full_prompt, state, WRITTEN, asking.chat, prompts) for k, state in asking.states.items()
    }
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
    load = edit_load(requests, plan, references is not None, depth_of(model) or DEPTH) + look_load(2, WRITTEN)
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
    first: Edit,
    second: Edit,
    chat: str,
) -> list[Compared]:
    """Both states on all prompts."""
    return compare(lm, asked, first, second, chat)


def comparing(model: str, asked: Sequence[Asked], first: Edit, second: Edit, chat: str) -> Task:
    """A comparison as a task."""
    load = look_load(2 * len(asked), 0).times(COMPARING)
    return Task(compare_states, model, (asked, first, second, chat), load, quick=True)


def trace_one(
    lm: LanguageModel,
    _store: CovarianceStore,
    watch: Watch,
    place: tuple[str, str],
    answer: str | None,
    settings: TraceSettings,
    chat: str,
) -> list[Trace]:
    """Trace one fact."""
    lm = lm.framed(chat)
    return [trace(lm, place, noise_of(lm, settings), settings, answer, watch)]


def tracing(model: str, place: tuple[str, str], answer: str | None, settings: TraceSettings, chat: str) -> Task:
    """A trace as a task."""
    return Task(trace_one, model, (place, answer, settings, chat), _trace_load(model, settings))


def trace_several(
    lm: LanguageModel,
    _store: CovarianceStore,
    watch: Watch,
    count: int,
    relation: str | None,
    settings: TraceSettings,
    chat: str,
) -> list[Trace]:
    """Trace bundled facts that the model knows, those of a relation first."""
    lm = lm.framed(chat)
    return trace_facts(lm, facts_known_to(lm, count, relation, settings.seed), settings, watch)


def averaging(model: str, count: int, relation: str | None, settings: TraceSettings, chat: str) -> Task:
    """Several traces as a task."""
    load = _trace_load(model, settings).times(count) + Load(ASKED * count * ROW_TOKENS, ASKED)
    return Task(trace_several, model, (count, relation, settings, chat), load)


def _trace_load(model: str, settings: TraceSettings) -> Load:
    """Of one fact: every token in every layer, for each kind of state and each blurred run."""
    forwards = len(KINDS) * (depth_of(model) or DEEP)
    return Load(forwards * settings.samples * ROW_TOKENS**2, forwards)


def look_through(
    lm: LanguageModel,
    _store: CovarianceStore,
    _watch: Watch,
    prompt: str,
    objects: Sequence[str],
    states: Sequence[Edit],
    chat: str,
) -> list[Lens]:
    """The prompt through the lens under each state."""
    lm = lm.framed(chat)
    return [through_lens(lm, prompt, objects, state) for state in states]


def reading(model: str, prompt: str, objects: Sequence[str], states: Sequence[Edit], chat: str) -> Task:
    """Looks through the lens as a task."""
    return Task(look_through, model, (prompt, objects, states, chat), look_load(2 * len(states), 0), quick=True)


def measure_change(
    lm: LanguageModel,
    _store: CovarianceStore,
    _watch: Watch,
    requests: Sequence[EditRequest],
    delta: Edit,
    chat: str,
) -> tuple[list[Change], pd.DataFrame]:
    """Size and shape of an edit, and what it does to the keys of its prompts."""
    return changes_of(lm, delta), key_table(lm.framed(chat), requests, delta)


def measuring(model: str, requests: Sequence[EditRequest], delta: Edit, chat: str) -> Task:
    """Measuring an edit as a task."""
    load = look_load(2 * sum(len(request.texts) for request in requests), 0)
    return Task(measure_change, model, (requests, delta, chat), load, quick=True)


def talk_on(
    lm: LanguageModel,
    _store: CovarianceStore,
    watch: Watch,
    prompt: str,
    states: Sequence[Edit],
    settings: TalkSettings,
    chat: str,
) -> list[str]:
    """The whole texts of a prompt, one per state."""
    *_, texts = talk_turns(lm.framed(chat), watch, prompt, states, settings)
    return texts


def talk_turns(
    lm: LanguageModel, watch: Watch, prompt: str, states: Sequence[Edit], settings: TalkSettings
) -> Iterator[list[str]]:
    """The texts so far, turn by turn; the model is whole in between."""
    talk = Talk(lm, prompt, states, settings)
    while not talk.ended:
        done = max(len(voice.written) for voice in talk.voices)
        most = max(voice.most for voice in talk.voices)
        watch(Step("writing", done, most, note=f"{done} of {most} tokens"))
        yield talk.turn()


def talking(model: str, prompt: str, states: Sequence[Edit], settings: TalkSettings, chat: str) -> Task:
    """Whole texts as a task, for where the model cannot be listened to."""
    load = look_load(len(states), settings.tokens)
    return Task(talk_on, model, (prompt, states, settings, chat), load, quick=True)


def learning(number: int, done: Sequence[int]) -> Task:
    """A step of the lesson as a task. It needs no lent GPU: a class would spend its time there on waiting."""
    load = Load()
    for step in wanted(number, done):
        case = step.case() if step.case else None
        load += edit_load(case.requests, case.plan, False, depth_of(MODEL) or DEPTH) if case else look_load(1, 0)
    return Task(learn, MODEL, (number, done), load, quick=True)
