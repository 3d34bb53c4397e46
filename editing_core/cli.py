"""The command line: edit, bench, models, editors, examples, stats.

The same engine calls as the page. A refusal is one sentence on standard error and exit code 2; an
interrupt leaves with 130 and nothing changed.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from editing_core.data.datasets import load_dataset, sample
from editing_core.data.edit_file import neighbor_of, read_edits
from editing_core.data.examples import Example, example, load_examples
from editing_core.editors.iterative import StopSettings
from editing_core.editors.steps.covariance import Corpus, CovarianceStore
from editing_core.errors import BadRequest, BadSetting, EditingError
from editing_core.models.catalog import CATALOG, DEFAULT, HUB_ID
from editing_core.models.language_model import DTYPES, LanguageModel
from editing_core.registry import EDITORS, editor_row
from editing_core.runs.export import html_page, write_tables, write_text
from editing_core.runs.record import EditPlan, RunResult
from editing_core.session import look, planned, run_edit
from editing_core.types import EditRequest, Step


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence instead of the usage block."""
        raise BadRequest(f"{message[:1].upper()}{message[1:]}; see '{self.prog} --help'.")


def run(arguments: Sequence[str]) -> int:
    """Run one command; gives the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    _quiet_libraries()
    try:
        options = _parser().parse_args(arguments)
        options.command(options)
    except EditingError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; nothing was changed.\n")
        return 130
    except BrokenPipeError:
        return 0
    return 0


def _quiet_libraries() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="editscope", description="See what knowledge editing does to a language model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    edit = commands.add_parser("edit", help="edit one or several facts and print what happened")
    _add_edit(edit)
    bench = commands.add_parser("bench", help="edit a sample of a data set and write tables")
    bench.add_argument("--dataset", required=True, help="pocket-facts, or pocket-facts:tune")
    bench.add_argument("--limit", type=int, default=100, help="how many edits")
    bench.add_argument("--out", type=Path, required=True, metavar="DIR")
    _add_plan(bench, iterations=10)
    bench.set_defaults(command=_bench)
    for name, command, text in (
        ("models", _models, "the models offered by name"),
        ("editors", _editors, "the editors, their settings and presets"),
        ("examples", _examples, "the ready-made examples"),
    ):
        commands.add_parser(name, help=text).set_defaults(command=command)
    stats = commands.add_parser("stats", help="show or collect the covariance statistics of a model")
    stats.add_argument("--model", default=DEFAULT)
    stats.add_argument("--editor", default="memit")
    stats.add_argument(
        "--collect", type=Path, nargs="?", const=Path(), metavar="TEXTFILE", help="one document per line"
    )
    stats.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for edit, e.g. layers=0,1")
    stats.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    stats.set_defaults(command=_stats)
    return parser


def _add_edit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--example", help="number or name of a bundled example")
    parser.add_argument("--file", type=Path, help="JSON list of edits")
    parser.add_argument("--repeat", type=Path, help="a run saved with --json: the same edits, settings and seed")
    parser.add_argument("--subject")
    parser.add_argument("--prompt", help="with {} where the subject belongs")
    parser.add_argument("--old", help="the object before; default: what the model says")
    parser.add_argument("--new", help="the object to write")
    parser.add_argument("--paraphrase", action="append", default=[], help="a full prompt; may be repeated")
    parser.add_argument("--neighbor", action="append", default=[], metavar="PROMPT=ANSWER", help="may be repeated")
    parser.add_argument("--json", metavar="PATH", help="write the result as JSON; - prints it instead of the table")
    parser.add_argument("--html", type=Path, metavar="PATH", help="write the figures into one self-contained file")
    _add_plan(parser, iterations=5)
    parser.set_defaults(command=_edit)


def _add_plan(parser: argparse.ArgumentParser, iterations: int) -> None:
    parser.add_argument("--model", default=DEFAULT, help="a name from 'models', a hub id, or a local folder")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--editor", help="a name from 'editors'; default: memit, or the example's own")
    parser.add_argument("--iterations", type=int, help=f"1 to 10; default: {iterations}, or the example's own")
    parser.add_argument("--stop", choices=("perplexity", "none"), help="default: perplexity, or the example's own")
    parser.add_argument("--tolerance", type=float, default=1.0, help="epsilon of the perplexity rule")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting of the editor")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(default_iterations=iterations)


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    """The settings of --set KEY=VALUE."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise BadRequest(f"--set takes KEY=VALUE, got {text[:40]!r}; write for example --set steps=30.")
        pairs[key.strip()] = value
    return pairs


def _plan(options: argparse.Namespace, case: Example | None = None) -> EditPlan:
    """The plan from the options; an example fills in what they leave open."""
    row = editor_row(options.editor or (case.editor if case else "memit"))
    pairs: dict[str, Any] = dict(case.settings) if case and row.name == case.editor else {}
    pairs |= _pairs(options.set)
    count = case.iterations if case else options.default_iterations
    stop_settings = StopSettings(
        iterations=count if options.iterations is None else options.iterations,
        stop=options.stop or (case.stop if case else "perplexity"),
        tolerance=options.tolerance,
    )
    return EditPlan(row.name, row.preset(options.model).settings.changed(pairs), stop_settings, options.seed)


def load_model(name: str, dtype: str = "float32") -> LanguageModel:
    """A catalog name, a hub id or (on the command line only) a local folder."""
    folder = Path(name)
    local = (
        bool(name)  # Path("") is the present folder
        and name not in CATALOG
        and folder.is_dir()
        and (not HUB_ID.fullmatch(name) or (folder / "config.json").is_file())
    )
    return LanguageModel.load(folder.name if local else name, dtype=dtype, folder=folder if local else None)


def _requests(options: argparse.Namespace) -> tuple[EditRequest, ...]:
    given = {"--subject": options.subject, "--prompt": options.prompt, "--new": options.new}
    missing = [flag for flag, value in given.items() if value is None]
    if missing:
        raise BadRequest(f"{', '.join(missing)} missing; give --example, --file, or --subject, --prompt and --new.")
    return (
        EditRequest(
            subject=options.subject,
            prompt=options.prompt,
            target_new=options.new,
            target_true=options.old,
            paraphrases=tuple(options.paraphrase),
            neighbors=tuple(neighbor_of(n) for n in options.neighbor),
            source="command line",
        ),
    )


def _edit(options: argparse.Namespace) -> None:
    if options.repeat is not None:
        requests, plan = planned(_saved(options.repeat))
    elif options.example is not None:
        case = example(options.example)
        requests, plan = case.requests, _plan(options, case)
    else:
        requests = tuple(read_edits(options.file)) if options.file else _requests(options)
        plan = _plan(options)
    lm = load_model(options.model, options.dtype)
    result = run_edit(lm, requests, plan, watch=_progress)
    _end_progress()
    if options.json == "-":
        print(json.dumps(result.to_json(), indent=1))
    else:
        _print_result(result)
        if options.json:
            write_text(Path(options.json), json.dumps(result.to_json(), indent=1))
    if options.html:
        _write_html(lm, result, options.html)


def _saved(path: Path) -> dict[str, Any]:
    """The JSON object of a saved run."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadRequest(f"{path.name} is not a readable JSON file; choose a file written with --json.") from error
    if not isinstance(record, dict):
        raise BadRequest(f"{path.name} holds no saved run; choose a file written with --json.")
    return record


def _write_html(lm: LanguageModel, result: RunResult, path: Path) -> None:
    from editing_core import charts

    first, last = result.requests[0], result.last
    looks = (look(lm, first.full_prompt, result.delta_at(0)), look(lm, first.full_prompt, result.delta_at(last)))
    figures = charts.all_figures(result, first.case_id, last, looks)
    verdict = result.verdict()
    title = f"{first.full_prompt} {first.target_new}: {verdict.label}"
    write_text(path, html_page(title, verdict.reason, figures))


def _bench(options: argparse.Namespace) -> None:
    plan = _plan(options)
    requests = sample(load_dataset(options.dataset), options.limit, options.seed)
    lm = load_model(options.model, options.dtype)
    result = run_edit(lm, requests, plan, watch=_progress)
    _end_progress()
    write_tables(result, options.out, options.dataset)
    _print_iterations(result)
    print(f"\n{result.stopped} {result.seconds:.1f} s. Tables in {options.out}")


def _print_result(result: RunResult) -> None:
    verdict = result.verdict()
    request = result.requests[0]
    others = f" (and {len(result.requests) - 1} facts edited with it)" if len(result.requests) > 1 else ""
    print(f"{request.full_prompt} {request.target_true} -> {request.target_new}{others}")
    print(f"{result.model}, {result.plan.editor}, {result.last} iterations, {result.seconds:.1f} s\n")
    print(f"{verdict.label}: {verdict.reason}\n{result.stopped}\n")
    before, after = (result.probes_at(k, request.case_id) for k in (0, result.last))
    print(f"{'':11}{'p(new)':>16}{'p(old)':>18}   {'now says':<14} prompt")
    for (_, then), (_, now) in zip(before.iterrows(), after.iterrows(), strict=True):
        new, old = (f"{then[c]:.3g} > {now[c]:.3g}" for c in ("p_new", "p_true"))
        print(f"{now['kind']:<11}{new:>16}{old:>18}   {now['answer']:<14} {now['prompt']}")
    print()
    _print_iterations(result)
    for proof in result.proofs[-1]:
        share = f"{proof.changed:,} of {proof.total:,} numbers changed"
        print(f"{proof.parameter}: relative norm {proof.relative_norm:.3g}, rank {proof.rank}, {share}")
    for note in result.notes:
        print(note)


def _print_iterations(result: RunResult) -> None:
    columns = ["k", *[c for c in result.iterations.columns if c not in ("k",) and "median" not in c]]
    short = {
        c: c.replace("efficacy", "eff").replace("generalization", "gen").replace("specificity", "spec") for c in columns
    }
    short = {
        c: s.replace("accuracy", "acc").replace("success", "succ").replace("optimised", "opt") for c, s in short.items()
    }
    print("".join(f"{short[c]:>13}" for c in columns))
    for _, row in result.iterations.iterrows():
        cells = [
            f"{int(row['k'])}",
            *("-" if row[c] != row[c] or row[c] is None else f"{row[c]:.4g}" for c in columns[1:]),
        ]
        print("".join(f"{cell:>13}" for cell in cells))


def _progress(step: Step) -> None:
    if sys.stderr.isatty():
        terms = "  ".join(f"{name} {value:.3g}" for name, value in step.terms.items())
        sys.stderr.write(f"\r\x1b[Kiteration {step.round}  {step.stage} {step.done}/{step.total}  {step.note}  {terms}")
        sys.stderr.flush()


def _end_progress() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")


def _models(_options: argparse.Namespace) -> None:
    for row in CATALOG.values():
        print(f"{row.name:<18}{row.parameters / 1e6:>9,.0f}M  {row.bytes_needed() / 2**30:>7.2f} GB  {row.note}")
    print("Any hub id of the types gpt2, gptj, llama, qwen2 or qwen3 works too.")


def _editors(_options: argparse.Namespace) -> None:
    for row in EDITORS.values():
        print(f"{row.name}: {row.summary} {row.source}")
        for f in fields(row.settings_class):
            print(f"    {f.name:<18}{_plain(f.default):>16}  {f.metadata['help']}")
        for model, preset in row.presets.items():
            print(f"    preset {model} ({preset.source})")


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _examples(_options: argparse.Namespace) -> None:
    for number, row in enumerate(load_examples(), start=1):
        print(f"{number}  {row.name:<14}{row.title}\n   {row.story}")


def _stats(options: argparse.Namespace) -> None:
    lm, store = load_model(options.model, options.dtype), CovarianceStore()
    row = editor_row(options.editor)
    layers = list(row.layers(row.preset(options.model).settings.changed(_pairs(options.set))))
    if layers and max(layers) >= lm.layers:
        raise BadSetting(
            f"{row.label} wants layer {max(layers)}, {lm.name} has layers 0 to {lm.layers - 1}; name others with --set."
        )
    corpus = Corpus.bundled(lm.name) or store.corpus_of(lm)
    if options.collect and options.collect != Path():
        store.remember(lm, Corpus.of_file(options.collect))
        corpus = store.corpus_of(lm)
    if corpus is None:
        print(f"{lm.name}: no statistics; collect them with --collect TEXTFILE (one document per line).")
        return
    if options.collect is not None and not store.has(lm, layers, corpus):
        seconds, size = store.estimate(lm, layers, corpus)
        print(f"Collecting layers {layers}: about {seconds:.0f} s and {size / 2**20:.0f} MB.", flush=True)
        store.collect(lm, layers, corpus, _progress)
        _end_progress()
    for layer in layers:
        there = store.has(lm, [layer], corpus)
        tokens = f"{store.get(lm, layer, corpus).tokens:,} tokens of {corpus.name}" if there else "not collected"
        print(f"{lm.name} layer {layer}: {tokens}")
