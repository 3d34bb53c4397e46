"""`editscope runs`: stored benchmark runs, from their list to what is left of them."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from editing_core import cli_plan, paths
from editing_core.bench.config import RunConfig
from editing_core.bench.executors import LOOK, Dispatcher, executor_of, folders
from editing_core.bench.grid import enter, read_grid
from editing_core.bench.index import Index
from editing_core.bench.progress import Tracker
from editing_core.bench.report import report
from editing_core.bench.runner import work_on
from editing_core.bench.stored import import_run, read_all, read_finished
from editing_core.cli_plan import end_progress, show_line
from editing_core.errors import BadRequest
from editing_core.files import write_text
from editing_core.runs.bundle import pack
from editing_core.runs.folder import ENDED, OPEN, QUEUED, RUNNING, Busy, RunFolder
from editing_core.runs.tables import ROWS, csv, differences, latex, layout, markdown

NONE_YET = "There are no runs yet; start one with 'editscope bench --config FILE'."
TEXTS = {"markdown": markdown, "latex": latex, "csv": csv}


def add(commands: Any) -> None:
    """All of them."""
    runs = commands.add_parser("runs", help="stored benchmark runs")
    actions = runs.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="runs, the newest first")
    listing.add_argument("--find", default="", metavar="WORDS", help="words that stand in name, id or error")
    listing.add_argument("--status", choices=(QUEUED, RUNNING, *ENDED), default="")
    _rooted(listing, _list)
    shown = _add(actions, "show", _show, "what a run was asked, and how far it is")
    shown.add_argument("--follow", action="store_true", help="wait for its end, with its progress on a terminal")
    _add(actions, "cancel", _cancel, "stop a run; what it finished stays")
    _add(actions, "resume", _resume, "put a run that ended early back into the queue")
    _add(actions, "delete", _delete, "remove a run for good")
    tables = _add(actions, "compare", _compare, "runs side by side, as a table", many=True)
    tables.add_argument("--format", choices=tuple(TEXTS), default="markdown")
    tables.add_argument("--rows", choices=ROWS, default="all", help="every iteration, or each run's result only")
    tables.add_argument("--against", metavar="ID", help="differences to this run instead, with standard errors")
    report = _add(actions, "report", _report, "one self-contained page with tables and figures", many=True)
    report.add_argument("--out", type=Path, required=True, metavar="FILE", help="an HTML file")
    _add(actions, "export", _export, "one file with the whole run").add_argument("file", type=Path)
    imported = actions.add_parser("import", help="a run that was exported")
    imported.add_argument("file", type=Path)
    _rooted(imported, _import)
    _add(actions, "work", _work, argparse.SUPPRESS)


def _add(
    actions: Any, name: str, command: Callable[[Any], None], told: str, many: bool = False
) -> argparse.ArgumentParser:
    """An action on a run, or on several."""
    parser: argparse.ArgumentParser = actions.add_parser(name, **({} if told is argparse.SUPPRESS else {"help": told}))
    parser.add_argument("id", help="the run's id", nargs="+" if many else None)
    _rooted(parser, command)
    return parser


def _rooted(parser: argparse.ArgumentParser, command: Callable[[Any], None]) -> None:
    parser.add_argument("--root", type=Path, default=paths.runs(), help="where runs are kept")
    parser.set_defaults(command=command)


def _folder(options: argparse.Namespace, name: str | None = None) -> RunFolder:
    """The run of an id; what is typed is only ever compared with names that are there."""
    name = name or options.id
    for folder in folders(options.root):
        if folder.id == name:
            return folder
    raise BadRequest(f"There is no run {name[:40]!r}; 'editscope runs list' names those there are.")


def _list(options: argparse.Namespace) -> None:
    found = Index(options.root).entries(options.find, (options.status,) if options.status else ())
    for entry in found:
        score = "" if entry.score is None else f"  score {entry.score:.1f}"
        print(f"{entry.id}  {entry.created}  {entry.status:<12} {entry.name}{score}  {entry.error}".rstrip())
    if not found:
        print("No run fits." if options.find or options.status else NONE_YET)


def _show(options: argparse.Namespace) -> None:
    folder, tracker = _folder(options), Tracker()
    while options.follow and folder.status in OPEN:
        show_line(" · ".join(tracker.look(folder).pieces))
        time.sleep(LOOK)
    end_progress()
    head = folder.head()
    status = folder.standing(head["status"])
    print(f"{folder.id}: {status}, {RunConfig.of(head['config']).name}")
    if status == RUNNING:
        print(" · ".join(tracker.look(folder).pieces))
    if head.get("error"):
        print(head["error"])
    if head.get("result"):
        print(head["result"]["stopped"])


def _cancel(options: argparse.Namespace) -> None:
    _folder(options).cancel()


def _resume(options: argparse.Namespace) -> None:
    _folder(options).queue()


def _delete(options: argparse.Namespace) -> None:
    _folder(options).delete()


def _compare(options: argparse.Namespace) -> None:
    runs = [read_finished(_folder(options, name)) for name in options.id]
    if options.against:
        print(differences(runs, options.against).to_string(index=False))
    else:
        print(TEXTS[options.format](layout(runs, options.rows)))


def _report(options: argparse.Namespace) -> None:
    found = [_folder(options, name) for name in options.id]
    write_text(options.out, report([read_finished(folder) for folder in found], [folder.head() for folder in found]))


def _export(options: argparse.Namespace) -> None:
    folder = _folder(options)
    if folder.status == RUNNING:
        raise BadRequest(f"Run {folder.id} is still running; wait for its end, or cancel it.")
    pack(folder.path, options.file)


def _import(options: argparse.Namespace) -> None:
    print(import_run(options.file, options.root).id)


def run_grid(file: Path, root: Path, executor: str = "local") -> None:
    """Do all cells of a grid on an executor, and print their table."""
    grid = read_grid(file)
    with closing(executor_of(executor)) as chosen, Dispatcher(root, chosen) as dispatcher:
        if executor != "local" and not dispatcher.leads:
            raise BadRequest(
                f"Another process already starts the runs of {root}, so these would not get to {executor}; "
                "end it, or choose another folder with --root."
            )
        runs = enter(grid, root)
        try:
            _attend(runs, dispatcher)
        except KeyboardInterrupt:
            sys.stderr.write(
                "Interrupted; 'editscope runs list' tells what goes on, what waits and what was stopped.\n"
            )
            sys.exit(130)
    finished, problems = read_all(runs)
    for problem in problems:
        print(problem)
    if finished:
        print(f"\n{markdown(layout(finished))}")


def _attend(runs: Sequence[RunFolder], dispatcher: Dispatcher) -> None:
    """Dispatch until the runs have ended; prints each one's end, and on a terminal how far they are."""
    left, tracker = list(runs), Tracker()
    while left:
        dispatcher.step()
        standing = {folder: folder.status for folder in left}
        for folder in [f for f, status in standing.items() if status in ENDED and not dispatcher.minds(f)]:
            left.remove(folder)
            head = folder.head()
            named = RunConfig.of(head["config"]).name
            end_progress()
            print(f"{folder.id}  {folder.status}  {named}  {head.get('error', '')}".rstrip(), flush=True)
        told = [_told(folder, tracker) for folder, status in standing.items() if status == RUNNING]
        show_line(" | ".join((f"{len(runs) - len(left)} of {len(runs)} runs ended", *told)))
        time.sleep(LOOK)
    end_progress()


def _told(folder: RunFolder, tracker: Tracker) -> str:
    """A run's name and how far it is."""
    return " · ".join((RunConfig.of(folder.head()["config"]).name, *tracker.look(folder).pieces))


def work(folder: RunFolder) -> None:
    """Do a run in this process, telling standard error; nothing is done where another process is at it."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", force=True)
    try:
        work_on(folder, cli_plan.load_model)
    except Busy:
        logging.warning("Another process works on run %s.", folder.id)
    logging.shutdown()


def _work(options: argparse.Namespace) -> None:
    work(_folder(options))
    os._exit(0)  # all is on disk; taking the libraries down would only keep the next run waiting
