"""The whole story of one run: measure, edit iteration by iteration, measure each time, leave no trace.

`run_edit` is the function to read first. It holds the model's lock from the first measurement to the
last; page and command line both call it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from editing_core.editors.base import Editor
from editing_core.editors.iterative import Iterative, Round, StopSettings
from editing_core.editors.steps.covariance import Corpus, CovarianceStore
from editing_core.errors import BadRequest, BadSetting, NotFinite
from editing_core.evaluation.evaluator import Evaluator
from editing_core.evaluation.metrics import summarize
from editing_core.evaluation.scoring import TokenChance, generate, next_tokens
from editing_core.models.delta import Proof, WeightDelta
from editing_core.models.language_model import LanguageModel
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan, RunResult, with_targets
from editing_core.types import EditRequest, Probe, Row, Step, Watch, ignore

MAX_REQUESTS = 2000


def run_edit(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    plan: EditPlan,
    store: CovarianceStore | None = None,
    watch: Watch = ignore,
    evaluator: Evaluator | None = None,
) -> RunResult:
    """Edit the requests together and give what happened. The model is bit-equal before and after.

    Bundled statistics text is measured at first use; other models need theirs collected before.
    Cancelled, raised by `watch`, passes through with the model restored.
    """
    started = time.perf_counter()
    evaluator = evaluator or Evaluator()
    with lm.lock:
        requests = prepare(lm, requests)
        editor = build_editor(lm, plan, store or CovarianceStore(), watch)
        watch(Step("measure", 0, 1))
        story = _Story(lm, requests, evaluator, watch)
        story.add(0, WeightDelta())
        outcome = Iterative(editor, plan.stop).edit(lm, requests, watch, story.add_round)
    if not outcome.rounds:
        raise NotFinite(
            "The edit produced numbers that are not finite, so nothing was kept; use a smaller step than the present "
            f"rate. ({outcome.stopped})"
        )
    return RunResult(
        plan=plan,
        requests=requests,
        model=lm.name,
        revision=lm.revision,
        contexts=editor.contexts.templates,
        iterations=pd.DataFrame(story.iterations),
        probes=pd.concat(story.probes, ignore_index=True),
        cases=pd.DataFrame(story.cases),
        deltas=tuple(r.delta for r in outcome.rounds),
        proofs=tuple(story.proofs),
        histories=tuple(r.outcome.targets.history for r in outcome.rounds),
        stopped=outcome.stopped,
        converged=outcome.converged,
        seconds=time.perf_counter() - started,
        edit_seconds=time.perf_counter() - started - story.seconds,
        notes=tuple(note for r in outcome.rounds for note in r.outcome.notes),
    )


def planned(record: Mapping[str, Any]) -> tuple[tuple[EditRequest, ...], EditPlan]:
    """What a saved run (`RunResult.to_json`) was asked to do; running it again gives the same result."""
    try:
        row = editor_row(record["editor"])
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in record["settings"].items()}
        plan = EditPlan(row.name, row.settings_class().changed(values), StopSettings(**record["stop"]), record["seed"])
        requests = tuple(_request_of(r) for r in record["requests"])
    except (KeyError, TypeError, AttributeError) as error:
        raise BadRequest(f"This is no run saved by EditScope ({error}); choose a file written with --json.") from error
    return requests, plan


def _request_of(row: Mapping[str, Any]) -> EditRequest:
    probes = tuple(Probe(**n) for n in row["neighbors"])
    texts = {name: tuple(row[name]) for name in ("paraphrases", "generation_prompts")}
    return EditRequest(**{**row, **texts, "neighbors": probes})


def prepare(lm: LanguageModel, requests: Sequence[EditRequest]) -> tuple[EditRequest, ...]:
    """Requests checked against the model, with missing old objects filled in from its own answers."""
    if not 1 <= len(requests) <= MAX_REQUESTS:
        raise BadRequest(f"{len(requests)} edits were given, 1 to {MAX_REQUESTS} are allowed in one run; split them.")
    ids = [r.case_id for r in requests]
    if len(set(ids)) < len(ids):
        raise BadRequest("Two edits share a case_id; number them differently.")
    pairs: dict[tuple[str, str], str] = {}
    for request in requests:
        for text in _texts(request):
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


def build_editor(lm: LanguageModel, plan: EditPlan, store: CovarianceStore, watch: Watch = ignore) -> Editor:
    """The plan's editor, with statistics at hand and contexts drawn from the unedited model."""
    row = editor_row(plan.editor)
    layers = row.layers(plan.settings)
    if max(layers, default=0) >= lm.layers:
        raise BadSetting(
            f"Layer {max(layers)} was asked for, {lm.name} has layers 0 to {lm.layers - 1}; choose among them."
        )
    corpus = Corpus.bundled(lm.name)
    if corpus and row.needs_statistics(plan.settings):
        store.collect(lm, layers, corpus, watch)
    return row.build(lm, plan.settings, store, corpus or store.corpus_of(lm), plan.seed)


@dataclass(frozen=True)
class Look:
    """A closer look at one case at one iteration: next-token candidates and free continuation."""

    prompt: str
    top: tuple[TokenChance, ...]
    text: str


def look(lm: LanguageModel, prompt: str, delta: WeightDelta, tokens: int = 30) -> Look:
    """What the model says to a prompt with an edit on; taken off again before returning."""
    with lm.lock, delta.applied(lm.model):
        return Look(prompt, next_tokens(lm, prompt), generate(lm, prompt, tokens))


class _Story:
    """Collects the tables of a run, one chapter per iteration."""

    def __init__(
        self, lm: LanguageModel, requests: tuple[EditRequest, ...], evaluator: Evaluator, watch: Watch
    ) -> None:
        self.lm, self.requests, self.evaluator, self.watch = lm, requests, evaluator, watch
        self.iterations: list[Row] = []
        self.probes: list[pd.DataFrame] = []
        self.cases: list[Row] = []
        self.proofs: list[tuple[Proof, ...]] = []
        self.seconds = 0.0

    def add(self, k: int, delta: WeightDelta, columns: Row | None = None) -> None:
        """Measure the model with an edit on."""
        started = time.perf_counter()
        with delta.applied(self.lm.model):
            probes = self.evaluator.score(self.lm, self.requests)
            collapse = self.evaluator.collapse(self.lm)
        before = self.probes[0] if self.probes else probes
        self.iterations.append({"k": k, **summarize(probes, before, k), **(columns or {}), "collapse_ppl": collapse})
        probes.insert(0, "k", k)
        self.probes.append(probes)
        self.seconds += time.perf_counter() - started

    def add_round(self, done: Round) -> None:
        """Measure after an iteration."""
        log = done.outcome.targets
        columns = {
            "ppl_optimised": done.ppl_optimised,
            "ppl_spread": done.ppl_spread,
            "delta_ppl": done.delta_ppl,
            "ppl_optimised_median": float(done.log_p_optimised.median().exp()),
            "ppl_spread_median": float(done.log_p_spread.median().exp()),
        }
        self.add(done.k, done.delta, columns)
        self.proofs.append(tuple(done.delta.proofs(self.lm.model)))
        for i, request in enumerate(self.requests):
            self.cases.append(
                {
                    "k": done.k,
                    "case_id": request.case_id,
                    "p_optimised": float(done.log_p_optimised[i].exp()),
                    "p_spread": float(done.log_p_spread[i].exp()),
                    "steps": int(log.steps[i]),
                    "norm": float(log.norm[i]),
                    "clamped": bool(log.clamped[i]),
                }
            )
        self.watch(Step("iteration", done.k, done.k, round=done.k, terms={"delta_ppl": done.delta_ppl}))


def _texts(request: EditRequest) -> list[str]:
    texts = [request.subject, request.prompt, request.target_new, request.target_true or "", *request.paraphrases]
    return texts + [t for n in request.neighbors for t in (n.prompt, n.answer)]
