"""Runner: the worker that does one stored run, in a process of its own.

    editscope runs work ID

It holds the run's lock while it lives, publishes how far it is, keeps every finished piece, and leaves within
two seconds when it is asked to. Killed at any moment it leaves a run that goes on to the same numbers.
"""

import logging
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from editing_core.bench.config import RunConfig
from editing_core.bench.files import summary, write_probes, write_tables
from editing_core.bench.work import Work, perform
from editing_core.errors import Cancelled, EditingError
from editing_core.evaluation.metrics import in_order
from editing_core.models.language_model import LanguageModel
from editing_core.runs.export import write_text
from editing_core.runs.folder import CANCELLED, DONE, FAILED, OPEN, RUNNING, UNITS, RunFolder, now
from editing_core.runs.journal import FolderJournal, Unit
from editing_core.runs.record import versions
from editing_core.types import Step

log = logging.getLogger(__name__)

TELL = 0.25  # seconds between two published steps
LOOK = 0.1  # seconds between two looks for a request to stop
GRACE = 1.2  # seconds a running operation has to end by itself after that
DEFECT = "Something went wrong inside EditScope; the run's log has the details."
Load = Callable[[str, str], LanguageModel]


class LiveJournal(FolderJournal):
    """A folder journal whose finished iterations stand as tables beside it, so that nothing is left to do at a stop."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._chapters: dict[str, Unit] = {}

    def find(self, name: str) -> Unit | None:
        """The unit, which the tables need as well."""
        unit = super().find(name)
        if unit:
            self._take(name, unit)
        return unit

    def keep(self, name: str, unit: Unit) -> None:
        """Keep a unit; with an iteration the tables grow."""
        super().keep(name, unit)
        if self._take(name, unit):
            self._write()

    def _take(self, name: str, unit: Unit) -> bool:
        chapter = name.startswith("iteration-")
        if chapter:
            self._chapters[name] = unit
        return chapter

    def _write(self) -> None:
        units, place = list(self._chapters.values()), self.folder.parent
        rows = in_order(pd.DataFrame([unit.facts["row"] for unit in units]))
        cases = pd.DataFrame([row for unit in units for row in unit.facts["cases"]])
        write_probes(pd.concat([unit.tables["probes"] for unit in units], ignore_index=True), place)
        write_text(place / "cases.csv", cases.to_csv(index=False))
        write_text(place / "iterations.csv", rows.to_csv(index=False))


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
            with leaving(folder):
                done = perform(
                    config,
                    lambda: load(config.model, config.dtype),
                    Teller(folder),
                    LiveJournal(folder.path / UNITS),
                )
            _finish(folder, done)
        except Cancelled:
            _end(folder, CANCELLED)
        except EditingError as error:
            _end(folder, FAILED, str(error))
        except Exception:
            log.exception("run %s failed", folder.id)
            _end(folder, FAILED, DEFECT)
        return str(folder.head()["status"])


def _finish(folder: RunFolder, done: Work) -> None:
    """Write the result, then say that the run is done: who sees that finds all files."""
    write_tables(done.result, folder.path, done.lm, done.told, done.beside)
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
                    _end(folder, CANCELLED)
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
