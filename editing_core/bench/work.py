"""The work of a benchmark run, from a configuration to its result: load, leave out, edit, measure, compare.

The command line does it in its own process, a stored run in a process of its own.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from editing_core import paths
from editing_core.bench.config import RunConfig
from editing_core.bench.protocols import Begun, Benchmark, Tools, run_benchmark, unheard
from editing_core.data.datasets import FORMATS, Loaded, load_dataset, sample
from editing_core.data.pool import true_facts
from editing_core.data.table import PROBES, TEXTS
from editing_core.data.texts import read_texts
from editing_core.editors.assist import Assist
from editing_core.errors import BadRequest
from editing_core.evaluation.consistency import References, bundled_references, read_references
from editing_core.evaluation.eligibility import eligibility, with_edit_neighbors
from editing_core.evaluation.evaluator import Evaluator
from editing_core.evaluation.generation import with_generation
from editing_core.evaluation.reference import beside, compare
from editing_core.evaluation.unedited import Unedited
from editing_core.models.delta import WeightDelta
from editing_core.models.language_model import LanguageModel
from editing_core.registry import editor_row
from editing_core.runs.journal import NOTHING_KEPT, Journal
from editing_core.statistics.covariance import CovarianceStore
from editing_core.types import EditRequest, Probe, Watch, ignore

FEW = 100  # records where a configuration does not say how many
ENOUGH = 1000  # facts of a data set's own to train on
POOLED = (
    "Unedited facts to train on come from {:,} records of {} that are not in this run, none from the bundled facts."
)


@dataclass(frozen=True, eq=False)
class Work:
    """A finished benchmark: the result, what is told of its records, and the paper's rows where there are any."""

    lm: LanguageModel
    result: Benchmark
    told: dict[str, Any]
    beside: pd.DataFrame | None


def records(config: RunConfig) -> tuple[Loaded, list[EditRequest]]:
    """The data set, and the records of the configuration's trial."""
    base = config.dataset.partition(":")[0]
    known = FORMATS[base].options if base in FORMATS else {}
    more = {"direction": config.direction} if "direction" in known else {}
    loaded = load_dataset(config.dataset, skip_bad=config.skip_bad, **more)
    limit = min(FEW, len(loaded)) if config.limit is None else config.limit
    return loaded, list(sample(loaded, limit, config.trial))


def perform(
    config: RunConfig,
    load: Callable[[], LanguageModel],
    watch: Watch = ignore,
    journal: Journal = NOTHING_KEPT,
    begun: Begun = unheard,
) -> Work:
    """Do what a configuration asks for. The model is bit-equal before and after.

    load: gives the model; called when everything else has been read.
    """
    plan, references = config.plan, references_of(config)
    loaded, requests = records(config)
    evaluator = Evaluator(unedited=Unedited(paths.unedited()))
    evaluator = replace(evaluator, texts=read_texts(Path(config.texts))) if config.texts else evaluator
    lm = load().framed(plan.conventions.chat)
    read = readable(lm, requests)
    requests = read.requests
    told: dict[str, Any] = {"dataset": loaded.name, "trial": config.trial, "preset": config.preset}
    told |= {"recipe": config.recipe_label} if config.recipe_label else {}
    told |= {"malformed": len(loaded.problems), "unreadable": read.rejected, "unreadable_probes": read.dropped}
    if config.eligible:
        requests, told["eligibility"] = qualifying(lm, requests, plan.assist, plan.seed)
    told["texts"] = Path(config.texts).name if config.texts else "bundled"
    pool = facts_of(loaded, requests, lm) if editor_row(plan.editor).needs_facts(plan.settings) else []
    notes = (POOLED.format(len(pool), loaded.name),) if pool else ()
    tools = Tools(CovarianceStore(), evaluator, journal, begun, pool, notes)
    result = run_benchmark(lm, requests, plan, config.sharing, watch, tools)
    if references is not None:
        result = _with_generation(lm, result, references, watch)
    return Work(lm, result, told, _beside(lm, result, loaded.name.partition(":")[0], config.recipe_label))


def facts_of(loaded: Loaded, requests: Sequence[EditRequest], lm: LanguageModel) -> list[Probe]:
    """Facts of the data set's records that are not in the run, as the model can read them.

    Nothing, so that the bundled facts serve, of our own data set, which is made of those, and where fewer than ENOUGH
    would be left, which training would show too often.
    """
    base = loaded.name.partition(":")[0]
    if FORMATS[base].parts:
        return []
    taken = {request.case_id for request in requests}
    others = [request for request in loaded if request.case_id not in taken]
    facts = true_facts(others)
    if base == "zsre":  # records without an old object write the right answer
        facts += [Probe(r.full_prompt, r.target_new, r.subject) for r in others if r.target_true is None]
    found = [fact for fact in facts if _reads(lm, *fact.texts)]
    return found if len(found) >= ENOUGH else []


def references_of(config: RunConfig) -> References | None:
    """Reference texts where texts are to be generated."""
    if not config.generate:
        return None
    return read_references(Path(config.references)) if config.references else bundled_references()


@dataclass(frozen=True)
class Readable:
    """What a model can read of some records. rejected: records whose fact it cannot read; dropped: probes left out."""

    requests: list[EditRequest]
    rejected: int
    dropped: int


def readable(lm: LanguageModel, requests: Sequence[EditRequest]) -> Readable:
    """Records whose fact the model can read, without the paraphrases and probes it cannot."""
    kept = [r for r in requests if _reads(lm, r.subject, r.prompt, r.target_new, r.target_true or "")]
    if not kept:
        lm.check_text(" ".join((requests[0].full_prompt, requests[0].target_new, requests[0].target_true or "")))
    cut = []
    for r in kept:
        left: dict[str, Any] = {n: tuple(p for p in getattr(r, n) if _reads(lm, *p.texts)) for n in PROBES}
        left |= {n: tuple(text for text in getattr(r, n) if _reads(lm, text)) for n in TEXTS}
        cut.append(replace(r, **left))
    dropped = sum(_probes(r) for r in kept) - sum(_probes(r) for r in cut)
    return Readable(cut, len(requests) - len(kept), dropped)


def _reads(lm: LanguageModel, *texts: str) -> bool:
    try:
        for text in texts:
            lm.check_text(text)
    except BadRequest:
        return False
    return True


def _probes(request: EditRequest) -> int:
    return sum(len(getattr(request, name)) for name in (*TEXTS, *PROBES))


def _with_generation(lm: LanguageModel, result: Benchmark, references: References, watch: Watch) -> Benchmark:
    """The result with fluency and consistency of the unedited and the final model in its rows."""
    assert result.delta is not None
    started, edits = time.perf_counter(), {0: WeightDelta(), result.chosen: result.delta}
    table = with_generation(lm, result.iterations, edits, result.requests, references, result.plan.seed, watch)
    return replace(result, iterations=table, seconds=result.seconds + time.perf_counter() - started)


def _beside(lm: LanguageModel, result: Benchmark, dataset: str, recipe: str = "") -> pd.DataFrame | None:
    """A paper's rows beside ours where there are any for this model, editor, recipe, data set and protocol."""
    plan, protocol = result.plan, result.protocol.name
    paper = beside(lm.name, plan.editor, dataset, plan.assist.neighbors, recipe=recipe, protocol=protocol)
    return None if paper.empty else compare(result.iterations, paper)


def qualifying(
    lm: LanguageModel, requests: Sequence[EditRequest], assist: Assist, seed: int
) -> tuple[list[EditRequest], dict[str, Any]]:
    """Eligible records with edit neighbors chosen, and the counts."""
    found = eligibility(lm, requests, assist.minimum)
    chosen = with_edit_neighbors(requests, found, assist.count, assist.choice, seed, only_known=True)
    kept = [r for r, entry in zip(chosen, found, strict=True) if entry.eligible]
    reasons = Counter(entry.reason for entry in found if entry.reason)
    if not kept:
        raise BadRequest(f"None of the {len(found)} records qualifies for neighbor assistance: {next(iter(reasons))}.")
    return kept, {"eligible": len(kept), "records": len(found), "reasons": dict(reasons.most_common())}
