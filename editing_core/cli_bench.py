"""`editscope bench` and `editscope eligible`: whole data sets instead of single facts."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from editing_core import cli_plan, paths
from editing_core.bench.config import RunConfig
from editing_core.bench.files import write_benchmark
from editing_core.bench.protocols import PROTOCOLS, Benchmark
from editing_core.bench.work import perform, qualifying, readable, records
from editing_core.cli_plan import add_model, add_plan, end_progress, iteration_lines, progress, read_plan
from editing_core.cli_runs import run_grid
from editing_core.data.datasets import FORMATS
from editing_core.data.table import write_requests
from editing_core.editors.assist import Assist
from editing_core.errors import BadRequest
from editing_core.files import check_folder
from editing_core.runs.tables import method


def add(commands: Any) -> None:
    """Both commands."""
    bench = commands.add_parser("bench", help="edit records of a data set and write tables")
    bench.add_argument("--config", type=Path, metavar="FILE", help="a grid of stored runs, TOML or YAML, instead")
    bench.add_argument("--root", type=Path, default=paths.runs(), help="where stored runs are kept")
    bench.add_argument("--executor", default="local", help="of stored runs: local, ray, or ray:ADDRESS of a cluster")
    _add_records(bench, required=False)
    bench.add_argument("--protocol", choices=PROTOCOLS, default="batch")
    bench.add_argument("--chunk", type=int, default=1, metavar="B", help="records per chunk, sequential only")
    bench.add_argument("--eligible", action="store_true", help="only records with eligible neighbors, and only those")
    bench.add_argument("--texts", type=Path, metavar="FILE", help="texts of the collapse perplexity, such as ME-PPL-50")
    bench.add_argument("--generate", action="store_true", help="also fluency and consistency of generated texts")
    bench.add_argument("--references", type=Path, metavar="FILE", help="attribute snippets for consistency")
    bench.add_argument("--out", type=Path, metavar="DIR", help="where the tables go")
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


def _add_records(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--dataset", required=required, metavar="FORMAT[:PATH]", help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("--limit", type=int, help="how many records; default: 100, or all there are")
    parser.add_argument("--trial", type=int, default=0, help="which block of that many records, from 0")
    parser.add_argument("--skip-bad", action="store_true", help="go on without malformed records")
    parser.add_argument("--direction", choices=("answers", "alt"), default="answers", help="what ZsRE edits towards")


def _config(options: argparse.Namespace) -> RunConfig:
    """The options as a configuration."""
    plan = read_plan(options)
    return RunConfig(
        dataset=options.dataset,
        limit=options.limit,
        trial=options.trial,
        direction=options.direction,
        skip_bad=options.skip_bad,
        eligible=options.eligible,
        model=options.model,
        dtype=options.dtype,
        quantised=options.quantised,
        revision=options.revision,
        editor=plan.editor,
        recipe=options.recipe,
        settings=asdict(plan.settings),
        iterations=plan.stop.iterations,
        stop=plan.stop.stop,
        tolerance=plan.stop.tolerance,
        collapse_factor=plan.stop.collapse_factor,
        assist=asdict(plan.assist),
        preset=options.preset,
        conventions=asdict(plan.conventions),
        protocol=options.protocol,
        chunk=options.chunk,
        seed=options.seed,
        texts=str(options.texts or ""),
        generate=options.generate,
        references=str(options.references or ""),
    )


def _bench(options: argparse.Namespace) -> None:
    if options.config:
        return run_grid(options.config, options.root, options.executor)
    missing = [f"--{name}" for name in ("dataset", "out") if getattr(options, name) is None]
    if missing:
        raise BadRequest(f"The following arguments are required: {', '.join(missing)}; see 'editscope bench --help'.")
    config = _config(options)
    check_folder(options.out)
    facts = config.limit or 1 if config.protocol == "batch" else config.chunk
    work = perform(
        config, lambda: cli_plan.load_for(config.plan, facts, config.model, *cli_plan.loading(options)), progress
    )
    end_progress()
    write_benchmark(work.result, options.out, work.lm, work.told, work.beside)
    _print(work.result, work.told, work.beside is not None)
    print(f"\n{work.result.stopped} {work.result.seconds:.1f} s. Tables in {options.out}")
    return None


def _print(result: Benchmark, told: dict[str, Any], compared: bool) -> None:
    n, plan = len(result.requests), result.plan
    named = method(plan.editor, told.get("recipe", ""), plan.assist.name)
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
        print("A paper's rows for this model, editor and data set are in beside_paper.csv.")


def _eligibility_line(counts: dict[str, Any]) -> str:
    reasons = "; ".join(f"{number}: {reason}" for reason, number in counts["reasons"].items())
    return f"{counts['eligible']} of {counts['records']} records qualify. {reasons}".strip()


def _eligible(options: argparse.Namespace) -> None:
    loaded, requests = records(
        RunConfig(
            dataset=options.dataset,
            limit=options.limit,
            trial=options.trial,
            direction=options.direction,
            skip_bad=options.skip_bad,
        )
    )
    lm = cli_plan.load_model(options.model, *cli_plan.loading(options))
    read = readable(lm, requests)
    assist = Assist(minimum=options.minimum, count=options.count, choice=options.choice)
    kept, counts = qualifying(lm, read.requests, assist, options.seed)
    if options.out:
        write_requests(kept, options.out)
    if read.rejected:
        print(f"Left out: {read.rejected} records of {loaded.name} the model cannot read.")
    if loaded.problems:
        print(f"Left out: {len(loaded.problems)} malformed records.")
    print(_eligibility_line(counts))
