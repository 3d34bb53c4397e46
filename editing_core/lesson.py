"""The lesson: five steps on the bundled model, from what it knows to what an edit misses and breaks, and what helps.

In: the model, key statistics, and what earlier steps found. Out: findings, small plain values, and two sentences about
them. No number of a sentence is written down here: each is taken from a finding.
Methods: Baghel et al. 2025, https://arxiv.org/abs/2503.11895; neighbor keys are ours.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from editing_core.data.datasets import load_dataset
from editing_core.data.examples import example
from editing_core.editors.assist import Assist
from editing_core.editors.stopping import StopSettings
from editing_core.lesson_findings import Drift, Finding, Knowledge, Written, drift, know, written
from editing_core.models.language_model import LanguageModel
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import run_edit
from editing_core.share import Case
from editing_core.statistics.covariance import CovarianceStore
from editing_core.types import EditRequest, Watch, ignore, noting

MODEL = "pocket-gpt2"
# Of the part presets were chosen on. Every target is found, so what is missing after one update was lost in writing.
SEVEN = (172, 180, 270, 296, 311, 321, 342)
ROUNDS = 4  # so many until the last paraphrase follows


Found = Mapping[int, Finding]
Sentences = tuple[str, str]
F = TypeVar("F", Knowledge, Written, Drift)


def _is(found: Found, number: int, kind: type[F]) -> F:
    finding = found[number]
    if not isinstance(finding, kind):
        raise TypeError(f"step {number} found a {type(finding).__name__}, not a {kind.__name__}")
    return finding


@dataclass(frozen=True)
class LessonStep:
    """title, button, look: texts of the page. before: two sentences until it was run; tell: two about what was found.

    case: what is edited. needs: the steps whose findings it is compared with.
    """

    number: int
    short: str
    title: str
    button: str
    before: Sentences
    tell: Callable[[Found], Sentences]
    look: str
    case: Callable[[], Case] | None = None
    needs: tuple[int, ...] = ()

    def text(self, found: Found) -> Sentences:
        """The two sentences, with numbers once there are any."""
        return self.tell(found) if self.number in found else self.before


@cache
def seven() -> tuple[EditRequest, ...]:
    """The facts of steps 1 to 3: who plays which instrument."""
    rows = {request.case_id: request for request in load_dataset("pocket-facts:tune")}
    return tuple(rows[number] for number in SEVEN)


def _seven(iterations: int) -> Case:
    plan = EditPlan("memit", editor_row("memit").preset(MODEL).settings, StopSettings(iterations, "none"))
    return Case(MODEL, seven(), plan)


def _bundled(name: str) -> Case:
    """A bundled example as a case."""
    chosen = example(name)
    settings = editor_row(chosen.editor).preset(MODEL).settings.changed(chosen.settings)
    stop = StopSettings(chosen.iterations, chosen.stop, collapse_factor=chosen.collapse_factor)
    return Case(MODEL, chosen.requests, EditPlan(chosen.editor, settings, stop, assist=Assist().changed(chosen.assist)))


def learn(
    lm: LanguageModel, store: CovarianceStore, watch: Watch, number: int, done: Collection[int] = ()
) -> dict[int, Finding]:
    """Run a step, and before it those it needs that are not done yet; gives what all of these found.

    The model is bit-equal before and after. Cancelled, raised by `watch`, passes through.
    """
    steps = wanted(number, done)
    return {
        step.number: find(lm, store, noting(watch, f"record {i} of {len(steps)}"), step.case)
        for i, step in enumerate(steps, start=1)
    }


def wanted(number: int, done: Collection[int] = ()) -> list[LessonStep]:
    """The steps that have to be run for one of them, in order."""
    return [STEPS[n - 1] for n in STEPS[number - 1].needs if n not in done] + [STEPS[number - 1]]


def find(
    lm: LanguageModel, store: CovarianceStore, watch: Watch = ignore, case: Callable[[], Case] | None = None
) -> Finding:
    """What a case shows; without one, what the unedited model knows."""
    if case is None:
        return know(lm, seven())
    asked = case()
    run = run_edit(lm, asked.requests, asked.plan, store, watch)
    return written(run) if len(run.requests) > 1 else drift(run)


def _p(value: float) -> str:
    """A probability or perplexity with three digits."""
    if value < 0.001 or 0.999 < value < 1:
        return "less than 0.001" if value < 0.5 else "more than 0.999"
    return f"{value:.3g}"


def _below(values: Sequence[float]) -> str:
    """The smallest round number all of these stay below."""
    return next(f"{bound:g}" for bound in (0.001, 0.01, 0.1, 0.5, 1.1) if max(values) < bound)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _tell_known(found: Found) -> Sentences:
    said = _is(found, 1, Knowledge)
    known, first = sum(f.known for f in said.facts), said.facts[0]
    return (
        f"The old object is the model's first answer to {known} of {len(said.facts)} prompts; “{first.prompt}”, for "
        f"example, goes on with “{first.old}” with a probability of {_p(first.p_old)}.",
        f"The new objects we are going to write all have a probability below {_below([f.p_new for f in said.facts])}.",
    )


def _tell_missed(found: Found) -> Sentences:
    said = _is(found, 2, Written)
    once, missed = said.rounds[-1], [f.subject for f in said.facts if not f.took]
    all_ = len(said.facts)
    told = f"{_listed(missed)} fell short, which is called UnderEdit" if missed else "none fell short"
    return (
        f"After iteration 1, {all_ - len(missed)} of {all_} facts took, and {told}.",
        f"With the optimised states put in by hand, the new objects have a perplexity of {_p(once.optimised)} "
        f"(p optimised), but under the edited weights one of {_p(once.spread)} (p spread): not all of it arrived.",
    )


def _tell_iterated(found: Found) -> Sentences:
    said = _is(found, 3, Written)
    first, last = said.rounds[0], said.rounds[-1]
    chosen = said.rounds[(said.stop or last.k) - 1]
    within = "at most" if said.stop else "still above"
    return (
        f"|delta p| went from {_p(abs(first.delta))} in iteration 1 to {_p(abs(chosen.delta))} in iteration "
        f"{chosen.k}, {within} the tolerance of {said.tolerance:g}, and {chosen.facts} of {len(said.facts)} facts took "
        f"there, against {first.facts}.",
        f"By iteration {last.k}, {last.paraphrases} of {said.paraphrases} paraphrases give the new object too, against "
        f"{first.paraphrases} after iteration 1.",
    )


def _tell_broken(found: Found) -> Sentences:
    said = _is(found, 4, Drift)
    worst = max(said.neighbors, key=lambda n: n.before - n.after)
    outcome = "took" if said.fact.took else "did not take"
    known = sum(n.known for n in said.neighbors)
    return (
        f"The fact {outcome} with a probability of {_p(said.fact.p_new)} for “{said.fact.new}”, but {said.lost} of "
        f"{known} neighbors that were right before are lost, which is called OverEdit.",
        f"Hardest hit is “{worst.prompt}”, whose answer “{worst.answer}” went from {_p(worst.before)} to "
        f"{_p(worst.after)}.",
    )


def _tell_rescued(found: Found) -> Sentences:
    held = _is(found, 5, Drift)
    alone = _is(found, 4, Drift).only(held)
    outcome = "still takes" if held.fact.took else "does not take any more"
    return (
        f"Of the {len(held.neighbors)} neighbors that did not assist, {alone.lost} were lost without assistance and "
        f"{held.lost} with it.",
        f"The fact {outcome}: “{held.fact.new}” has a probability of {_p(held.fact.p_new)}, against "
        f"{_p(alone.fact.p_new)} in step 4.",
    )


STEPS = (
    LessonStep(
        1,
        "What it knows",
        "What the model knows",
        "Ask the model",
        (
            "A language model keeps facts in its weights, and shows them by how likely it finds the next words.",
            "Ask the bundled model, pocket-gpt2, which instruments seven musicians play, before anything is edited.",
        ),
        _tell_known,
        "Orange is the probability of the old object, what the model says now; blue is that of the new object, what we "
        "will want it to say. Remember how empty the blue bars are.",
    ),
    LessonStep(
        2,
        "One edit",
        "One edit, and what it missed",
        "Edit seven facts together",
        (
            "The editor MEMIT finds for every fact a hidden state that makes the new object likely, and then writes "
            "all seven into the weights with one update.",
            "Do that once, which is iteration 1, and see which facts took.",
        ),
        _tell_missed,
        "✔ marks a fact that took: the new object is the model's first answer and likelier than the old one. ▽ marks "
        "UnderEdit: the blue bar moved, but not far enough.",
        lambda: _seven(1),
    ),
    LessonStep(
        3,
        "Iterate",
        "Iterate until the weights agree",
        "Edit again and again",
        (
            "Iterative editing repeats the edit on its own result, so that every iteration writes what the ones before "
            "it left over.",
            "It may stop when delta p, which is p spread less p optimised, is within the tolerance.",
        ),
        _tell_iterated,
        "Above: the facts and paraphrases that give the new object. Below: the size of delta p on a log axis; the star "
        "is the iteration at which the rule stops, the first one under the dashed line.",
        lambda: _seven(ROUNDS),
    ),
    LessonStep(
        4,
        "What it broke",
        "What the edit broke",
        "Edit one fact",
        (
            "An edit can also change too much: now a single fact, who makes the car Alfa Romeo Brera, is edited from "
            "Fiat to Boeing.",
            "Watch its neighbors, other products of Fiat, whose answer should stay as it is.",
        ),
        _tell_broken,
        "Every row is a neighbor: the tick is the probability of its own answer before the edit, the other mark that "
        "after it. A cross is a neighbor that is lost. Which words do the names of the lost ones share with the edited "
        "subject?",
        lambda: _bundled("overedit"),
    ),
    LessonStep(
        5,
        "Neighbors help",
        "Neighbors to the rescue",
        "Edit with assistance",
        (
            "Neighbor assistance (NA) keeps the answers of some neighbors while the state is optimised, and neighbor "
            "keys, an addition of ours, protect the same neighbors while the weights are written.",
            "Edit the same fact again with three neighbors assisting, and compare the others, which the editor never "
            "saw, with step 4.",
        ),
        _tell_rescued,
        "Every row has two edits: a square or a cross is the one of step 4, a circle the one with assistance. Compare "
        "them only because the fact takes in both: a weaker edit would look gentler, too.",
        lambda: _bundled("held"),
        (4,),
    ),
)
