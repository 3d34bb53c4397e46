"""Runner: the worker that does one stored run, in a process of its own.

    editscope runs work ID

It holds the run's lock while it lives, publishes how far it is, keeps every finished piece, and leaves within
two seconds when it is asked to. Killed at any moment it leaves a run that goes on to the same numbers.
"""

import json
import logging
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from editing_core.bench.config import RunConfig
from editing_core.bench.files import CASES, ITERATIONS, summary, write_probes, write_records, write_rounds, write_tables
from editing_core.bench.work import Work, perform
from editing_core.errors import BadRequest, Cancelled, EditingError
from editing_core.files import write_text
from editing_core.models.language_model import LanguageModel
from editing_core.runs.folder import CANCELLED, DONE, FAILED, OPEN, RUNNING, UNITS, RunFolder, now
from editing_core.runs.journal import FolderJournal, Showing
from editing_core.runs.record import versions
from editing_core.story import Stage
from editing_core.types import Step

log = logging.getLogger(__name__)

TELL = 0.25  # seconds between two published steps
LOOK = 0.1  # seconds between two looks for a request to stop
GRACE = 1.2  # seconds a running operation has to end by itself after that
DEFECT = "Something went wrong inside EditScope; the run's log has the details."
Load = Callable[[str, str, str, str], LanguageModel]


class LiveJournal(FolderJournal):
    """A folder journal that keeps what is shown as files beside it, so that nothing is left to do at a stop."""

    def show(self, so_far: Showing) -> None:
        """Write the tables, each whole or not at all."""
        tables, place = so_far(), self.folder.parent
        write_probes(tables.probes, place)
        write_text(place / CASES, tables.cases.to_csv(index=False))
        if tables.rounds is not None:
            write_rounds(tables.rounds, place)
        if tables.checkpoints is not None:
            write_text(place / "checkpoints.csv", tables.checkpoints.to_csv(index=False))
        # The last, because readers begin with it: what it has a row for stands in the others already.
        write_text(place / ITERATIONS, tables.iterations.to_csv(index=False))


class Teller:
    """A watch that publishes the last step, not too often."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.started, self.told = folder, time.perf_counter(), 0.0

    def __call__(self, step: Step) -> None:
        """Publish the step if it is time to."""
        seconds = time.perf_counter() - self.started
        if seconds - self.told < TELL and step.stage != "iteration":
            return
        self.told = seconds
        shown: dict[str, Any] = {"stage": step.stage, "done": step.done, "total": step.total, "round": step.round}
        self.folder.tell({**shown, "note": step.note, "terms": step.terms, "seconds": seconds, "memory": memory()})


def memory() -> int:
    """Most bytes this process has had, on the GPU where there is one."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work_on(folder: RunFolder, load: Load) -> str:
    """Do a run from where it stands; gives its status. Busy when another process works on it."""
    with folder.held():
        head = folder.head()
        if head["status"] not in OPEN:  # somebody else was faster
            return str(head["status"])
        folder.update(status=RUNNING, started=now(), versions=versions(), commit=commit(), error=None)
        try:
            config = RunConfig.of(head["config"])
            _agree(folder, head, config)
            with leaving(folder):
                done = perform(
                    config,
                    lambda: load(config.model, config.dtype, config.quantised, config.revision),
                    Teller(folder),
                    LiveJournal(folder.path / UNITS),
                    lambda stage: _keep(folder, stage),
                )
            _finish(folder, done)
        except Cancelled:
            if folder.cancel_wanted:  # otherwise nobody meant this run: its machine goes down, and it is interrupted
                _end(folder, CANCELLED, folder.why_cancelled)
        except EditingError as error:
            _end(folder, FAILED, str(error))
        except Exception:
            log.exception("run %s failed", folder.id)
            _end(folder, FAILED, DEFECT)
        return str(folder.head()["status"])


def _agree(folder: RunFolder, head: Mapping[str, Any], config: RunConfig) -> None:
    """Write the whole plan into run.json; BadRequest where a run would go on with another than it began with."""
    plan = json.loads(json.dumps(asdict(config.plan)))
    if (folder.path / UNITS).is_dir() and head.get("plan", plan) != plan:
        raise BadRequest("The presets have changed since this run began, so it cannot go on; delete it, start another.")
    folder.update(plan=plan)


def _keep(folder: RunFolder, stage: Stage) -> None:
    """Keep what a run is about, so that it can be read however the run ends."""
    write_records(stage.requests, folder.path)
    folder.update(revision=stage.lm.revision, contexts=list(stage.editor.objective.contexts.templates))


def _finish(folder: RunFolder, done: Work) -> None:
    """Write the result, then say that the run is done: who sees that finds all files."""
    write_tables(done.result, folder.path, done.lm, done.told, done.beside)
    if done.result.run is not None:
        write_rounds(done.result.run.rounds, folder.path)
    result = summary(done.result, done.lm, done.told)
    folder.update(status=DONE, finished=now(), device=str(done.lm.device), memory=memory(), result=result)
    folder.clean()


def _end(folder: RunFolder, status: str, error: str | None = None) -> None:
    """Say how a run ended early; it can go on later."""
    folder.update(status=status, finished=now(), memory=memory(), error=error)


@contextmanager
def leaving(folder: RunFolder) -> Iterator[None]:
    """Inside, a request to stop raises Cancelled in the main thread, between two operations.

    An operation that does not end in time is not waited for: what was finished is on disk, and the process
    ends as it would under a kill, but says so.
    """
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK):
            if folder.cancel_wanted:
                os.kill(os.getpid(), signal.SIGTERM)  # handled in the main thread, whichever it is in
                if not over.wait(GRACE):
                    _end(folder, CANCELLED, folder.why_cancelled)
                    os._exit(0)
                return

    with _raising():
        threading.Thread(target=look, name="cancel", daemon=True).start()
        try:
            yield
        finally:
            over.set()


@contextmanager
def _raising() -> Iterator[None]:
    """Inside, SIGTERM raises Cancelled in the main thread."""

    def leave(*_: object) -> None:
        raise Cancelled

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def commit() -> str | None:
    """The checkout's commit; None in an installed package."""
    place = Path(__file__).resolve().parents[2]
    if not (place / ".git").exists():
        return None
    found = subprocess.run(
        ["git", "-C", str(place), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
    )
    return found.stdout.strip() or None
