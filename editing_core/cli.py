"""The command line: edit, bench, eligible, runs, models, editors, examples, presets, stats.

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

from editing_core import cli_bench, cli_export, cli_plan, cli_runs, cli_stats, preflight
from editing_core.cli_plan import add_plan, end_progress, iteration_lines, progress, read_plan
from editing_core.conventions import CONVENTIONS, Conventions
from editing_core.data.examples import example, load_examples
from editing_core.data.problems import BadRecords
from editing_core.data.table import neighbor_of, read_edits
from editing_core.editors.recipes import Recipe
from editing_core.errors import BadRequest, EditingError
from editing_core.evaluation.consistency import bundled_references
from editing_core.export.adapter import write_adapter
from editing_core.export.edit_file import write_edit
from editing_core.export.origin import described
from editing_core.files import write_text
from editing_core.models import memory
from editing_core.models.architectures import ARCHITECTURES
from editing_core.models.catalog import CATALOG
from editing_core.models.language_model import LanguageModel
from editing_core.registry import EDITORS
from editing_core.runs.export import html_page
from editing_core.runs.record import RunResult
from editing_core.session import look, planned, run_edit
from editing_core.share import Case
from editing_core.types import EditRequest

SHOWN_PROBLEMS = 100


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
        if isinstance(error, BadRecords):
            sys.stderr.writelines(f"{problem}\n" for problem in error.problems[:SHOWN_PROBLEMS])
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
    cli_bench.add(commands)
    cli_runs.add(commands)
    for name, command, text in (
        ("models", _models, "the models offered by name"),
        ("editors", _editors, "the editors, their settings and presets"),
        ("examples", _examples, "the ready-made examples"),
        ("presets", _presets, "the switches of clean and faithful"),
    ):
        commands.add_parser(name, help=text).set_defaults(command=command)
    cli_stats.add(commands)
    cli_export.add(commands)
    return parser


def _add_edit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--example", help="number or name of a bundled example")
    parser.add_argument("--file", type=Path, help="edits as CSV, JSONL or JSON; CounterFact records too")
    parser.add_argument("--repeat", type=Path, help="a run saved with --json: the same edits, settings and seed")
    parser.add_argument("--case", metavar="LINK", help="a case shared from the page: the link, or what is behind case=")
    parser.add_argument("--subject")
    parser.add_argument("--prompt", help="with {} where the subject belongs")
    parser.add_argument("--old", help="the object before; default: what the model says")
    parser.add_argument("--new", help="the object to write")
    parser.add_argument("--paraphrase", action="append", default=[], help="a full prompt; may be repeated")
    parser.add_argument("--neighbor", action="append", default=[], metavar="PROMPT=ANSWER", help="may be repeated")
    parser.add_argument("--generate", action="store_true", help="also fluency and consistency of generated texts")
    parser.add_argument("--json", metavar="PATH", help="write the result as JSON; - prints it instead of the table")
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="write the edit as a LoRA adapter for peft")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the edit as a file of our own (.safetensors)")
    parser.add_argument("--html", type=Path, metavar="PATH", help="write the figures into one self-contained file")
    add_plan(parser, iterations=5)
    parser.set_defaults(command=_edit)


def _requests(options: argparse.Namespace) -> tuple[EditRequest, ...]:
    given = {"--subject": options.subject, "--prompt": options.prompt, "--new": options.new}
    missing = [flag for flag, value in given.items() if value is None]
    if missing:
        raise BadRequest(
            f"{', '.join(missing)} missing; give --example, --file, --case, or --subject, --prompt and --new."
        )
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


def asked(options: argparse.Namespace) -> tuple[Case, bool]:
    """What an `edit` command asks for, and whether texts are generated.

    It is a shared case, a saved run, an example, a file of edits, or one fact in options.
    """
    if options.case is not None:
        return Case.of_text(options.case), options.generate
    if options.repeat is not None:
        saved = _saved(options.repeat)
        return Case(options.model, *planned(saved)), options.generate or saved.get("generate") is True
    if options.example is not None:
        case = example(options.example)
        return Case(options.model, case.requests, read_plan(options, case)), options.generate
    requests = tuple(read_edits(options.file)) if options.file else _requests(options)
    return Case(options.model, requests, read_plan(options)), options.generate


def _edit(options: argparse.Namespace) -> None:
    case, generate = asked(options)
    references = bundled_references() if generate else None
    lm = cli_plan.load_for(case.plan, len(case.requests), case.model, *cli_plan.loading(options))
    result = run_edit(lm, case.requests, case.plan, watch=progress, references=references)
    end_progress()
    if options.json == "-":
        print(json.dumps(result.to_json(), indent=1))
    else:
        _print_result(result)
        if options.json:
            write_text(Path(options.json), json.dumps(result.to_json(), indent=1))
    if options.save:
        write_edit(options.save, described(result))
    if options.adapter:
        write_adapter(lm, described(result), options.adapter)
    if options.html:
        _write_html(lm, result, options.html)


def _saved(path: Path) -> dict[str, Any]:
    """The JSON object of a saved run."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadRequest(f"{path.name} is not a readable JSON file; choose a file written with --json.") from error
    if not isinstance(record, dict):
        raise BadRequest(f"{path.name} holds no saved run; choose a file written with --json.")
    return record


def _write_html(lm: LanguageModel, result: RunResult, path: Path) -> None:
    from editing_core import charts

    first, last = result.requests[0], result.chosen
    chat = result.plan.conventions.chat
    before, after = (look(lm, first.full_prompt, result.delta_at(k), chat=chat) for k in (0, last))
    figures = charts.all_figures(result, first.case_id, last, (before, after))
    verdict = result.verdict()
    title = f"{first.full_prompt} {first.target_new}: {verdict.label}"
    write_text(path, html_page(title, verdict.reason, figures))


def _print_result(result: RunResult) -> None:
    verdict = result.verdict()
    request = result.requests[0]
    others = f" (and {len(result.requests) - 1} facts edited with it)" if len(result.requests) > 1 else ""
    print(f"{request.full_prompt} {request.target_true} -> {request.target_new}{others}")
    named = f"{result.plan.editor} {result.plan.assist.name}".strip()
    print(f"{result.model}, {named}, {result.last} iterations, {result.seconds:.1f} s\n")
    print(f"{verdict.label}: {verdict.reason}\n{result.stopped}\n")
    before, after = (result.probes_at(k, request.case_id) for k in (0, result.chosen))
    print(f"{'':11}{'p(new)':>16}{'p(old)':>18}   {'now says':<14} prompt")
    for (_, then), (_, now) in zip(before.iterrows(), after.iterrows(), strict=True):
        new, old = (f"{then[c]:.3g} > {now[c]:.3g}" for c in ("p_new", "p_true"))
        print(f"{now['kind']:<11}{new:>16}{old:>18}   {now['answer']:<14} {now['prompt']}")
    print()
    for line in iteration_lines(result.iterations, result.chosen):
        print(line)
    for proof in result.proofs[result.chosen - 1] if result.chosen else ():
        share = f"{proof.changed:,} of {proof.total:,} numbers changed"
        print(f"{proof.parameter}: relative norm {proof.relative_norm:.3g}, rank {proof.rank}, {share}")
    for note in result.notes:
        print(note)


def _models(_options: argparse.Namespace) -> None:
    place = preflight.Place(device=preflight.device_here())
    for row in CATALOG.values():
        print(f"{row.name:<18}{row.parameters / 1e6:>9,.0f}M  {row.note}")
        print(f"{'':<18}{preflight.Undertaking(row.name, 'memit', place=place).need()}")
    print(f"Memory is for one fact by MEMIT in float32; {memory.told(preflight.free_here())} are free.")
    print(f"Any hub id of these types works too: {', '.join(sorted(ARCHITECTURES))}.")


def _editors(_options: argparse.Namespace) -> None:
    for row in EDITORS.values():
        print(f"{row.name}: {row.summary} {row.source}")
        for f in fields(row.settings_class):
            print(f"    {f.name:<18}{_plain(f.default):>16}  {f.metadata['help']}")
        for model, preset in row.presets.items():
            print(f"    preset {model} ({preset.source})")
        for recipe in row.recipes:
            print(f"    recipe {recipe.name:<18}{recipe.label:<46}{recipe.source}")


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _examples(_options: argparse.Namespace) -> None:
    for number, row in enumerate(load_examples(), start=1):
        print(f"{number}  {row.name:<14}{row.title}\n   {row.story}")


def _presets(_options: argparse.Namespace) -> None:
    for f in fields(Conventions):
        values = " / ".join(f"{name}: {getattr(c, f.name)}" for name, c in CONVENTIONS.items())
        print(f"{f.name:<20}{values}\n    {f.metadata['help']}")
    for row in EDITORS.values():
        for model, changes in row.faithful.items():
            told = ", ".join(f"{key}={value}" for key, value in changes.items())
            print(f"{row.name} in faithful{'' if model == '*' else f', {model}'}: {told}")
        for recipe in row.recipes:
            print(f"{row.name} with --recipe {recipe.name}: {_changes(recipe)}\n    {recipe.label}; {recipe.source}")


def _changes(recipe: Recipe) -> str:
    """What a recipe sets, and for which models more."""
    sets = {"": recipe.changes, **{f"{model}: ": own for model, own in recipe.by_model.items()}}
    told = (
        f"{model}{', '.join(f'{key}={_plain(value)}' for key, value in own.items())}"
        for model, own in sets.items()
        if own
    )
    return "; ".join(told) or "the preset as it is"
