"""Options every command shares: which model, which editor, how long, who assists, how it is measured."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editing_core import preflight
from editing_core.conventions import CONVENTIONS
from editing_core.data.examples import Example
from editing_core.editors.assist import Assist
from editing_core.editors.stopping import RULES, StopSettings
from editing_core.errors import BadRequest
from editing_core.models.catalog import CATALOG, DEFAULT, HUB_ID
from editing_core.models.language_model import LanguageModel
from editing_core.models.loading import DTYPES, check_there
from editing_core.models.weights import QUANTISATIONS
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.types import Step


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model, and how it is loaded."""
    parser.add_argument("--model", default=DEFAULT, help="a name from 'models', a hub id, or a local folder")
    add_loading(parser)


def add_loading(parser: argparse.ArgumentParser, own: str = "") -> None:
    """What `loading` gives. own: what a command takes where nothing is said, if not the defaults."""
    parser.add_argument("--dtype", choices=sorted(DTYPES), default=None if own else "float32", help=own or None)
    parser.add_argument(
        "--quantised",
        choices=QUANTISATIONS,
        default=None if own else "none",
        help="keep linear layers packed in 8 or 4 bits, edits beside them (needs bitsandbytes)",
    )
    parser.add_argument("--revision", default="", help="branch, tag or commit of a hub id; default: its main branch")
    parser.add_argument("--device", help="such as cuda:1, cpu, or auto for all there are; default: what is there")


def loading(options: argparse.Namespace) -> tuple[str, str, str, str | None]:
    """What `load_model` takes behind the name."""
    return options.dtype, options.quantised, options.revision, options.device


def add_plan(parser: argparse.ArgumentParser, iterations: int) -> None:
    """Everything `read_plan` reads."""
    add_model(parser)
    parser.add_argument("--editor", help="a name from 'editors'; default: memit, or the example's own")
    parser.add_argument("--recipe", default="", help="of the editor, on top of its preset; those that 'editors' lists")
    parser.add_argument("--iterations", type=int, help=f"1 to 10; default: {iterations}, or the example's own")
    parser.add_argument("--stop", choices=tuple(RULES), help="default: perplexity, or the example's own")
    parser.add_argument("--tolerance", type=float, default=1.0, help="epsilon of the rules")
    parser.add_argument("--collapse-factor", type=float, help="growth of held-out perplexity that ends a run; 0 is off")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting of the editor")
    parser.add_argument("--seed", type=int, default=0, help="of prefixes and choices")
    parser.add_argument("--neighbors", choices=("off", "na", "nap"), help="neighbor assistance")
    parser.add_argument("--neighbor-keys", type=float, metavar="MU", help="ours: protect the edit neighbors' keys")
    parser.add_argument("--statistics", choices=("tokens", "subjects", "scaled"), help="ours: which keys are protected")
    parser.add_argument(
        "--assist",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="weighting, weight, count, choice, minimum, token_share or subject_share of the assistance",
    )
    parser.add_argument("--preset", choices=tuple(CONVENTIONS), default="clean", help="clean, or as the published code")
    parser.add_argument(
        "--convention", action="append", default=[], metavar="KEY=VALUE", help="one switch of the preset, see 'presets'"
    )
    parser.set_defaults(default_iterations=iterations)


def pairs(texts: Sequence[str], flag: str = "--set", example: str = "steps=30") -> dict[str, str]:
    """The settings of --set KEY=VALUE."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise BadRequest(f"{flag} takes KEY=VALUE, got {text[:40]!r}; write for example {flag} {example}.")
        found[key.strip()] = value
    return found


def read_plan(options: argparse.Namespace, case: Example | None = None) -> EditPlan:
    """The plan from the options; an example fills in what they leave open."""
    row = editor_row(options.editor or (case.editor if case else "memit"))
    own = case is not None and row.name == case.editor and not options.recipe
    changes: dict[str, Any] = {**(case.settings if case and own else {}), **pairs(options.set)}
    settings = row.preset(options.model, options.preset, options.recipe).settings.changed(changes)
    conventions = CONVENTIONS[options.preset].changed(pairs(options.convention, "--convention", "padding=left"))
    return EditPlan(row.name, settings, _stop(options, case), options.seed, _assist(options, case), conventions)


def _stop(options: argparse.Namespace, case: Example | None) -> StopSettings:
    # The published code runs a fixed count and picks the row afterwards.
    rule = case.stop if case else ("none" if options.preset == "faithful" else "perplexity")
    count = case.iterations if case else options.default_iterations
    guard = {} if options.collapse_factor is None else {"collapse_factor": options.collapse_factor}
    return StopSettings(
        iterations=count if options.iterations is None else options.iterations,
        stop=options.stop or rule,
        tolerance=options.tolerance,
        **({"collapse_factor": case.collapse_factor} if case else {}) | guard,
    )


def _assist(options: argparse.Namespace, case: Example | None) -> Assist:
    named = {"neighbors": options.neighbors, "keys": options.neighbor_keys, "statistics": options.statistics}
    given = {name: value for name, value in named.items() if value is not None}
    return Assist().changed(
        {**(case.assist if case else {}), **pairs(options.assist, "--assist", "weighting=paper"), **given}
    )


def load_model(
    name: str, dtype: str = "float32", quantised: str = "none", revision: str = "", device: str | None = None
) -> LanguageModel:
    """A catalog name, a hub id or (on the command line only) a local folder."""
    folder = _local(name)
    return LanguageModel.load(folder.name if folder else name, device, dtype, folder, quantised, revision)


def load_for(
    plan: EditPlan,
    facts: int,
    name: str,
    dtype: str = "float32",
    quantised: str = "none",
    revision: str = "",
    device: str | None = None,
) -> LanguageModel:
    """The same, with a line on standard error where such an edit is large or will not fit into memory."""
    if device:
        check_there(device)
    place = preflight.Place(dtype, device or "", quantised)
    edit = preflight.Undertaking(name, plan.editor, plan.settings, facts, place, plan.stop.iterations, _local(name))
    if told := edit.warning() or edit.notice():
        sys.stderr.write(f"{told}\n")
    return load_model(name, dtype, quantised, revision, device)


def _local(name: str) -> Path | None:
    """The folder of that name, unless it means a model of the catalog or the hub."""
    folder = Path(name)
    local = (
        bool(name)  # Path("") is the present folder
        and name not in CATALOG
        and folder.is_dir()
        and (not HUB_ID.fullmatch(name) or (folder / "config.json").is_file())
    )
    return folder if local else None


def progress(step: Step) -> None:
    """A step as the status line."""
    terms = "  ".join(f"{name} {value:.3g}" for name, value in step.terms.items())
    show_line(f"iteration {step.round}  {step.stage} {step.done}/{step.total}  {step.note}  {terms}")


def show_line(text: str) -> None:
    """One line on a terminal, cut to its width, overwritten by the next."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
        sys.stderr.flush()


def end_progress() -> None:
    """Leave the line clean."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")


SHORT = {"efficacy": "eff", "generalization": "gen", "specificity": "spec", "accuracy": "acc", "success": "succ"}
SHORT |= {"optimised": "opt", "underedit": "under"}


def iteration_lines(iterations: Any, chosen: int) -> list[str]:
    """The iteration table in fixed columns; the chosen row is starred."""
    shown = [c for c in iterations.columns if c != "k" and "median" not in c and not c.endswith("_se")]
    names = {}
    for column in shown:
        name = column
        for long, short in SHORT.items():
            name = name.replace(long, short)
        names[column] = name
    lines = ["".join(f"{name:>13}" for name in ("k", *names.values()))]
    for _, row in iterations.iterrows():
        mark = "*" if int(row["k"]) == chosen else ""
        cells = ["-" if row[c] != row[c] or row[c] is None else f"{row[c]:.4g}" for c in shown]
        lines.append("".join(f"{cell:>13}" for cell in (f"{mark}{int(row['k'])}", *cells)))
    return lines
