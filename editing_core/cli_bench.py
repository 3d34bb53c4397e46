"""`editscope bench` and `editscope eligible`: whole data sets instead of single facts."""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from editing_core import cli_plan
from editing_core.benchmark_files import write_benchmark
from editing_core.cli_plan import add_model, add_plan, end_progress, iteration_lines, progress, read_plan
from editing_core.data.datasets import FORMATS, Loaded, load_dataset, sample
from editing_core.data.table import PROBES, TEXTS, write_requests
from editing_core.data.texts import read_texts
from editing_core.editors.assist import Assist
from editing_core.errors import BadRequest
from editing_core.evaluation.consistency import References, bundled_references, read_references
from editing_core.evaluation.eligibility import eligibility, with_edit_neighbors
from editing_core.evaluation.evaluator import Evaluator
from editing_core.evaluation.generation import generation_metrics
from editing_core.evaluation.reference import compare
from editing_core.models.delta import WeightDelta
from editing_core.models.language_model import LanguageModel
from editing_core.protocols import PROTOCOLS, Benchmark, Protocol, Tools, run_benchmark
from editing_core.runs.export import check_folder
from editing_core.types import EditRequest


def add(commands: Any) -> None:
    """Both commands."""
    bench = commands.add_parser("bench", help="edit records of a data set and write tables")
    _add_records(bench)
    bench.add_argument("--protocol", choices=PROTOCOLS, default="batch")
    bench.add_argument("--chunk", type=int, default=1, metavar="B", help="records per chunk, sequential only")
    bench.add_argument("--eligible", action="store_true", help="only records with eligible neighbors, and only those")
    bench.add_argument("--texts", type=Path, metavar="FILE", help="texts of the collapse perplexity, such as ME-PPL-50")
    bench.add_argument("--generate", action="store_true", help="also fluency and consistency of generated texts")
    bench.add_argument("--references", type=Path, metavar="FILE", help="attribute snippets for consistency")
    bench.add_argument("--out", type=Path, required=True, metavar="DIR")
    add_plan(bench, iterations=10)
    bench.set_defaults(command=_bench)
    filtering = commands.add_parser("eligible", help="which records qualify for neighbor assistance")
    _add_records(filtering)
    add_model(filtering)
    filtering.add_argument("--minimum", type=int, default=2, help="neighbors the model must know")
    filtering.add_argument("--count", type=int, default=1, help="edit neighbors per record")
    filtering.add_argument("--choice", choices=("first", "random"), default="first")
    filtering.add_argument("--seed", type=int, default=0)
    filtering.add_argument("--out", type=Path, metavar="FILE", help="write the qualifying records as JSON")
    filtering.set_defaults(command=_eligible)


def _add_records(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, metavar="FORMAT[:PATH]", help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("--limit", type=int, help="how many records; default: 100, or all there are")
    parser.add_argument("--trial", type=int, default=0, help="which block of that many records, from 0")
    parser.add_argument("--skip-bad", action="store_true", help="go on without malformed records")
    parser.add_argument("--direction", choices=("answers", "alt"), default="answers", help="what ZsRE edits towards")


def _records(options: argparse.Namespace) -> tuple[Loaded, list[EditRequest]]:
    base = options.dataset.partition(":")[0]
    known = FORMATS[base].options if base in FORMATS else {}
    more = {"direction": options.direction} if "direction" in known else {}
    loaded = load_dataset(options.dataset, skip_bad=options.skip_bad, **more)
    limit = min(100, len(loaded)) if options.limit is None else options.limit
    return loaded, list(sample(loaded, limit, options.trial))


@dataclass(frozen=True)
class Readable:
    """What a model can read of some records. rejected: records whose fact it cannot read; dropped: probes left out."""

    requests: list[EditRequest]
    rejected: int
    dropped: int


def readable(lm: LanguageModel, requests: Sequence[EditRequest]) -> Readable:
    """Records whose fact the model can read, without the paraphrases and probes it cannot."""

    def reads(*texts: str) -> bool:
        try:
            for text in texts:
                lm.check_text(text)
        except BadRequest:
            return False
        return True

    kept = [r for r in requests if reads(r.subject, r.prompt, r.target_new, r.target_true or "")]
    if not kept:
        lm.check_text(" ".join((requests[0].full_prompt, requests[0].target_new, requests[0].target_true or "")))
    cut = []
    for r in kept:
        left: dict[str, Any] = {n: tuple(p for p in getattr(r, n) if reads(*p.texts)) for n in PROBES}
        left |= {n: tuple(text for text in getattr(r, n) if reads(text)) for n in TEXTS}
        cut.append(replace(r, **left))
    dropped = sum(_probes(r) for r in kept) - sum(_probes(r) for r in cut)
    return Readable(cut, len(requests) - len(kept), dropped)


def _probes(request: EditRequest) -> int:
    return sum(len(getattr(request, name)) for name in (*TEXTS, *PROBES))


def _bench(options: argparse.Namespace) -> None:
    plan = read_plan(options)
    protocol = Protocol(options.protocol, options.chunk)
    references = _references(options)
    check_folder(options.out)
    loaded, requests = _records(options)
    texts = read_texts(options.texts) if options.texts else None
    lm = cli_plan.load_model(options.model, options.dtype)
    read = readable(lm, requests)
    requests = read.requests
    told: dict[str, Any] = {"dataset": loaded.name, "trial": options.trial, "preset": options.preset}
    told |= {"malformed": len(loaded.problems), "unreadable": read.rejected, "unreadable_probes": read.dropped}
    if options.eligible:
        requests, told["eligibility"] = _qualifying(lm, requests, plan.assist, plan.seed)
    evaluator = Evaluator(texts) if texts else Evaluator()
    told["texts"] = options.texts.name if options.texts else "bundled"
    result = run_benchmark(lm, requests, plan, protocol, progress, Tools(evaluator=evaluator))
    end_progress()
    if references is not None:
        result = _with_generation(lm, result, references, options.seed)
    beside = _beside(lm, result, options.dataset.partition(":")[0])
    write_benchmark(result, options.out, lm, told, beside)
    _print(result, told, beside is not None)
    print(f"\n{result.stopped} {result.seconds:.1f} s. Tables in {options.out}")


def _references(options: argparse.Namespace) -> References | None:
    """Reference texts where texts are to be generated; refused before anything is edited."""
    if not options.generate:
        return None
    if options.protocol == "single":
        raise BadRequest("--generate needs one edit of all records, which --protocol single has not; leave it out.")
    return read_references(options.references) if options.references else bundled_references()


def _with_generation(lm: LanguageModel, result: Benchmark, references: References, seed: int) -> Benchmark:
    """The result with fluency and consistency of the unedited and the final model in its rows."""
    assert result.delta is not None
    table = result.iterations.assign(fluency=float("nan"), consistency=float("nan"))
    for k, delta in ((0, WeightDelta()), (result.chosen, result.delta)):
        with lm.lock, delta.applied(lm.model):
            found = generation_metrics(lm, result.requests, references, seed)
        for name, value in found.items():
            table.loc[table["k"] == k, name] = float("nan") if value is None else value
    return replace(result, iterations=table)


def _beside(lm: LanguageModel, result: Benchmark, dataset: str) -> Any:
    """The paper's rows beside ours where it has any for this model, editor and data set."""
    if result.protocol.name != "batch":  # the paper's rows are of batches
        return None
    table = compare(result.iterations, lm.name, result.plan.editor, dataset, result.plan.assist.neighbors)
    return table if table.filter(like="_paper").notna().any(axis=None) else None


def _print(result: Benchmark, told: dict[str, Any], compared: bool) -> None:
    n, assist = len(result.requests), result.plan.assist.name
    named = f"{result.plan.editor}{f' + {assist}' if assist else ''}"
    print(f"{named}, {told['dataset']}, trial {told['trial']}, {n} records, {result.protocol.label}, {told['preset']}")
    if told["unreadable"] or told["malformed"] or told["unreadable_probes"]:
        print(
            f"Left out: {told['unreadable']} records and {told['unreadable_probes']} probes the model cannot read, "
            f"{told['malformed']} malformed records."
        )
    if told.get("eligibility"):
        print(_eligibility_line(told["eligibility"]))
    print(f"Before the edit the model gave the old object for {result.known} of {n} records.")
    for note in result.notes:
        print(note)
    print()
    for line in iteration_lines(result.iterations, result.chosen):
        print(line)
    print("  ".join(f"{state}: {count}" for state, count in result.states.items()))
    if compared:
        print("The paper's rows for this model, editor and data set are in beside_paper.csv.")


def _qualifying(
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


def _eligibility_line(counts: dict[str, Any]) -> str:
    reasons = "; ".join(f"{number}: {reason}" for reason, number in counts["reasons"].items())
    return f"{counts['eligible']} of {counts['records']} records qualify. {reasons}".strip()


def _eligible(options: argparse.Namespace) -> None:
    loaded, requests = _records(options)
    lm = cli_plan.load_model(options.model, options.dtype)
    read = readable(lm, requests)
    assist = Assist(minimum=options.minimum, count=options.count, choice=options.choice)
    kept, counts = _qualifying(lm, read.requests, assist, options.seed)
    if options.out:
        write_requests(kept, options.out)
    if read.rejected:
        print(f"Left out: {read.rejected} records of {loaded.name} the model cannot read.")
    if loaded.problems:
        print(f"Left out: {len(loaded.problems)} malformed records.")
    print(_eligibility_line(counts))
