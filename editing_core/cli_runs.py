"""`editscope runs`: stored benchmark runs, from their list to what is left of them."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from editing_core import cli_plan, paths
from editing_core.errors import BadRequest
from editing_core.runs.config import RunConfig
from editing_core.runs.executors import folders
from editing_core.runs.folder import RunFolder
from editing_core.runs.runner import work_on


def add(commands: Any) -> None:
    """All of them."""
    runs = commands.add_parser("runs", help="stored benchmark runs")
    actions = runs.add_subparsers(required=True, metavar="ACTION")
    _add(actions, "list", _list, "every run, the newest first", ids=False)
    _add(actions, "show", _show, "what a run was asked, and how far it is")
    _add(actions, "cancel", _cancel, "stop a run; what it finished stays")
    _add(actions, "resume", _resume, "put a run that ended early back into the queue")
    _add(actions, "delete", _delete, "remove a run for good")
    _add(actions, "work", _work, argparse.SUPPRESS)


def _add(actions: Any, name: str, command: Callable[[Any], None], told: str, ids: bool = True) -> None:
    parser = actions.add_parser(name, **({} if told is argparse.SUPPRESS else {"help": told}))
    if ids:
        parser.add_argument("id", help="the run's id")
    parser.add_argument("--root", type=Path, default=paths.runs(), help="where runs are kept")
    parser.set_defaults(command=command)


def _folder(options: argparse.Namespace) -> RunFolder:
    """The run of an id; what is typed is only ever compared with names that are there."""
    for folder in folders(options.root):
        if folder.id == options.id:
            return folder
    raise BadRequest(f"There is no run {options.id[:40]!r}; 'editscope runs list' names those there are.")


def _list(options: argparse.Namespace) -> None:
    found = sorted(folders(options.root), key=lambda folder: str(folder.head()["created"]), reverse=True)
    for folder in found:
        head = folder.head()
        print(
            f"{folder.id}  {head['created']}  {folder.standing(head['status']):<12} {RunConfig.of(head['config']).name}"
        )
    if not found:
        print("There are no runs yet; start one with 'editscope bench --config FILE'.")


def _show(options: argparse.Namespace) -> None:
    folder = _folder(options)
    head, progress = folder.head(), folder.progress()
    print(f"{folder.id}: {folder.standing(head['status'])}, {RunConfig.of(head['config']).name}")
    if progress:
        print(f"iteration {progress['round']}, {progress['stage']} {progress['done']}/{progress['total']}")
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


def _work(options: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", force=True)
    work_on(_folder(options), cli_plan.load_model)
    logging.shutdown()
    os._exit(0)  # all is on disk; taking the libraries down would only keep the next run waiting
