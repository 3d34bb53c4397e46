"""The whole story of one run: measure, edit iteration by iteration, measure each time, leave no trace.

`run_edit` is the function to read first. It holds the model's lock from the first measurement to the
last; page and command line both call it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from editing_core.conventions import Conventions
from editing_core.data.prompts import with_prompts
from editing_core.editors.assist import Assist
from editing_core.editors.iterative import Iterative
from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadRequest, NotFinite
from editing_core.evaluation.consistency import References
from editing_core.evaluation.eligibility import eligibility, with_edit_neighbors, without_assisting
from editing_core.evaluation.evaluator import Evaluator
from editing_core.evaluation.generation import with_generation
from editing_core.evaluation.scoring import TokenChance, generate, next_tokens
from editing_core.making import build_editor, check_asked, check_base, statistics_remark
from editing_core.models.delta import WeightDelta
from editing_core.models.edit import Edit, Findings
from editing_core.models.language_model import LanguageModel
from editing_core.models.tokens import PLAIN
from editing_core.registry import editor_row
from editing_core.runs.journal import NOTHING_KEPT, Journal
from editing_core.runs.record import NO_BASE, SCHEMA, Base, EditPlan, RunResult, with_targets
from editing_core.statistics.covariance import CovarianceStore
from editing_core.story import Stage, Story
from editing_core.types import EditRequest, Probe, Watch, ignore

MAX_REQUESTS = 2000
NO_REFERENCES = "Consistency is left open: no reference texts are about things that truly have the new object."


def run_edit(  # noqa: PLR0913 - each is something to bring along, and most callers bring none
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    plan: EditPlan,
    store: CovarianceStore | None = None,
    watch: Watch = ignore,
    evaluator: Evaluator | None = None,
    references: References | None = None,
    *,
    base: Base = NO_BASE,
) -> RunResult:
    """Edit the requests together and give what happened. The model is bit-equal before and after.

    Bundled statistics text is measured at first use; other models need theirs collected before. references: where
    they are given, fluency and consistency are measured too, at k = 0 and at the chosen k. base: edits that are on
    meanwhile; the run's own edit comes on top of them and does not contain them.
    Cancelled, raised by `watch`, passes through with the model restored.
    """
    check_asked(plan, len(requests))
    lm = lm.framed(plan.conventions.chat)
    with lm.lock:
        started = time.perf_counter()
        stage = set_stage(lm, requests, plan, store or CovarianceStore(), watch, evaluator, base=base)
        run = finished(run_stage(stage, plan, watch, started))
        return run if references is None else _with_generation(lm, run, references, watch, started)


def run_stage(
    stage: Stage,
    plan: EditPlan,
    watch: Watch = ignore,
    started: float | None = None,
    journal: Journal = NOTHING_KEPT,
) -> RunResult:
    """Edit a stage's requests together. Call with the model's lock held; `started`: when the clock began.

    journal: keeps every finished iteration; those it holds already are not done again. A run whose first
    iteration is not finite has no iteration but the unedited one; `finished` refuses it.
    """
    started = time.perf_counter() if started is None else started
    iterative = Iterative(stage.editor, plan.stop, plan.conventions)
    with stage.base.delta.applied(stage.lm) as lm:
        story = Story(replace(stage, lm=lm), watch, journal, started)
        outcome = iterative.edit(lm, stage.requests, watch, story.add_round, story.begin(), story.kept())
    told = story.tables()
    return RunResult(
        plan=plan,
        requests=stage.requests,
        model=lm.name,
        revision=lm.revision,
        contexts=stage.editor.objective.contexts.templates,
        iterations=told.iterations,
        probes=told.probes,
        cases=told.cases,
        deltas=tuple(r.delta for r in outcome.rounds),
        decision=outcome.decision,
        base=stage.base,
        **vars(story.rounds()),
    )


def finished(run: RunResult) -> RunResult:
    """The run itself; NotFinite when none of its iterations gave numbers."""
    if not run.last:
        raise NotFinite(
            "The edit produced numbers that are not finite, so nothing was kept; use a smaller step than the present "
            f"rate. ({run.stopped})"
        )
    return run


def _with_generation(
    lm: LanguageModel, run: RunResult, references: References, watch: Watch, started: float
) -> RunResult:
    """The run with fluency and consistency of the unedited and the resulting model in its rows."""
    requests, edits = list(map(with_prompts, run.requests)), {0: WeightDelta(), run.chosen: run.delta_at(run.chosen)}
    with run.base.delta.applied(lm) as on_base:
        table = with_generation(on_base, run.iterations, edits, requests, references, run.plan.seed, watch)
    notes = run.notes if table["consistency"].notna().any() else (*run.notes, NO_REFERENCES)
    return replace(run, iterations=table, notes=notes, seconds=time.perf_counter() - started)


def set_stage(  # noqa: PLR0913 - as run_edit
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    plan: EditPlan,
    store: CovarianceStore,
    watch: Watch = ignore,
    evaluator: Evaluator | None = None,
    pool: Sequence[Probe] = (),
    *,
    base: Base = NO_BASE,
) -> Stage:
    """Check the requests, choose who assists, prepare the probes, and build the editor. pool: as in `build_editor`.

    base: what is known and answered is asked with it on; the editor is built from the unedited model.
    """
    lm = lm.framed(plan.conventions.chat)
    check_base(plan, base.delta)
    evaluator = replace(evaluator or Evaluator(), conventions=plan.conventions)
    with base.delta.applied(lm) as on_base:
        ready, notes = assisted(on_base, prepare(on_base, requests), plan.assist, plan.seed)
        ready = evaluator.prepared(on_base, ready)
    editor = build_editor(lm, ready, plan, store, watch, pool)
    if lm.frame != PLAIN:
        notes = (*notes, f"Prompts stand in the chat template: {lm.frame.around('[prompt]')!r}.")
    if count := len(base.ids):
        notes = (*notes, f"Made on top of {count} other edit{'s' if count > 1 else ''} of the stack.")
    return Stage(lm, ready, editor, evaluator, (*notes, *statistics_remark(lm, plan, store)), base)


def assisted(
    lm: LanguageModel, requests: tuple[EditRequest, ...], assist: Assist, seed: int
) -> tuple[tuple[EditRequest, ...], tuple[str, ...]]:
    """Requests with their edit neighbors chosen where the plan wants any, and remarks on those without."""
    if not assist.uses_neighbors:
        return without_assisting(requests), ()
    found = eligibility(lm, requests, assist.minimum)
    chosen = with_edit_neighbors(requests, found, assist.count, assist.choice, seed)
    alone = [entry for entry in found if not entry.eligible]
    if not alone:
        return chosen, ()
    note = f"{len(alone)} of {len(found)} facts are edited without a neighbor's assistance: case {alone[0].case_id}, "
    return chosen, (f"{note}because {alone[0].reason}" + (", and others." if len(alone) > 1 else "."),)


def planned(record: Mapping[str, Any]) -> tuple[tuple[EditRequest, ...], EditPlan]:
    """What a saved run (`RunResult.to_json`) was asked to do; running it again gives the same result."""
    if record.get("schema", SCHEMA) != SCHEMA:
        raise BadRequest(
            f"This run was saved with schema {str(record['schema'])[:20]}, this version reads {SCHEMA}; edit again."
        )
    if made_on := record.get("made_on"):
        raise BadRequest(
            f"This run was made on top of {len(made_on)} other edits, which its file does not hold; "
            "save and open the whole session instead."
        )
    try:
        return tuple(_request_of(r) for r in record["requests"]), plan_of(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadRequest(f"This is no run saved by EditScope ({error}); choose a file written with --json.") from error


def plan_of(record: Mapping[str, Any]) -> EditPlan:
    """A plan from plain values; KeyError, TypeError, AttributeError or an EditingError where they are none."""
    row = editor_row(record["editor"])
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in record["settings"].items()}
    return EditPlan(
        row.name,
        row.settings_class().changed(values),
        StopSettings(**record["stop"]),
        record["seed"],
        Assist(**record["assist"]),
        Conventions(**record["conventions"]),
    )


def _request_of(row: Mapping[str, Any]) -> EditRequest:
    probes = {
        name: tuple(Probe(**{**n, "aliases": tuple(n["aliases"])}) for n in row[name])
        for name in ("neighbors", "edit_neighbors", "portability", "locality")
    }
    texts = {name: tuple(row[name]) for name in ("paraphrases", "generation_prompts")}
    return EditRequest(**{**row, **texts, **probes})


def prepare(lm: LanguageModel, requests: Sequence[EditRequest]) -> tuple[EditRequest, ...]:
    """Requests checked against the model, with missing old objects filled in from its own answers."""
    if not 1 <= len(requests) <= MAX_REQUESTS:
        raise BadRequest(f"{len(requests)} edits were given, 1 to {MAX_REQUESTS} are allowed in one run; split them.")
    ids = [r.case_id for r in requests]
    if len(set(ids)) < len(ids):
        raise BadRequest("Two edits share a case_id; number them differently.")
    pairs: dict[tuple[str, str], str] = {}
    for request in requests:
        for text in request.texts:
            lm.check_text(text)
        other = pairs.setdefault((request.subject, request.prompt), request.target_new)
        if other != request.target_new:
            raise BadRequest(
                f"The fact {request.full_prompt[:80]!r} is given twice with different new objects; keep one."
            )
    open_ = [r for r in requests if r.compare and not r.target_true]
    missing = {r.case_id: present_answer(lm, r.full_prompt) for r in open_}
    return with_targets(tuple(requests), missing)


def present_answer(lm: LanguageModel, prompt: str) -> str:
    """What the model says now: the first word of its greedy continuation."""
    with lm.lock:
        words = generate(lm, prompt, tokens=6).split()
    answer = words[0].strip(".,;:!?\"'()") if words else ""
    return answer or "nothing"


@dataclass(frozen=True)
class Look:
    """A closer look at one case at one iteration: next-token candidates and free continuation.

    findings: what the edit did at the case's prompts.
    """

    prompt: str
    top: tuple[TokenChance, ...]
    text: str
    findings: Findings | None = None


def look(
    lm: LanguageModel, prompt: str, delta: Edit, tokens: int = 30, chat: str = "none", others: Sequence[str] = ()
) -> Look:
    """What the model says to a prompt with an edit on; taken off again before returning. chat: as in `Conventions`.

    others: further prompts, to which what the edit did is told beside what it did to this one.
    """
    lm = lm.framed(chat)
    with lm.lock:
        findings = delta.findings(lm, [prompt, *others])
        with delta.applied(lm) as edited:
            return Look(prompt, next_tokens(edited, prompt), generate(edited, prompt, tokens), findings)
