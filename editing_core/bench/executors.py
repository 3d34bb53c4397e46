"""Executors and the dispatcher: who starts the workers of queued runs, how many at a time, and where.

Queued runs are folders, so the queue survives whoever dispatches it: page and command line dispatch the same
one, whichever holds the dispatcher's lock.
"""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from editing_core.errors import BadRequest
from editing_core.runs.folder import LOG, QUEUED, RUNNING, RunFolder

LOOK = 0.3  # seconds between two looks at the queue


class Worker(Protocol):
    """A worker that was started."""

    def poll(self) -> int | None:
        """Its exit code, or None while it lives."""
        ...


class Executor(Protocol):
    """Starts workers on places: GPUs, or the one processor there is."""

    places: int

    def start(self, folder: RunFolder, place: int) -> Worker:
        """Start a worker for a run."""
        ...


@dataclass
class LocalProcesses:
    """One process per run, on this machine; one place per GPU, or one in all."""

    places: int = field(default_factory=lambda: max(1, torch.cuda.device_count()))

    def start(self, folder: RunFolder, place: int) -> Worker:
        """The process outlives the one that started it; what it writes goes to the run's log."""
        environment = dict(os.environ)
        if torch.cuda.is_available():
            environment["CUDA_VISIBLE_DEVICES"] = str(place)
        command = [sys.executable, "-m", "editing_core", "runs", "work", folder.id, "--root", str(folder.path.parent)]
        with (folder.path / LOG).open("ab") as written:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )


@dataclass(eq=False)
class Dispatcher:
    """Starts queued runs below `root`, oldest first, as places get free."""

    root: Path
    executor: Executor
    _started: dict[str, tuple[Worker, int]] = field(default_factory=dict)

    def step(self) -> int:
        """Look once; gives how many runs wait or go on. Does nothing while somebody else dispatches."""
        self._started = {name: entry for name, entry in self._started.items() if entry[0].poll() is None}
        heads = [(folder, head) for folder in folders(self.root) if (head := _head(folder))]
        going = [folder for folder, head in heads if head["status"] == RUNNING and folder.is_held()]
        waiting = [(head["created"], folder.id, folder) for folder, head in heads if head["status"] == QUEUED]
        with _dispatching(self.root) as mine:
            free = self.executor.places - len({folder.id for folder in going} | set(self._started)) if mine else 0
            for _, name, folder in sorted(waiting, key=lambda entry: entry[:2])[: max(0, free)]:
                if name not in self._started:
                    place = self._free_place()
                    self._started[name] = self.executor.start(folder, place), place
        return len(going) + len(waiting)

    def drain(self) -> None:
        """Dispatch until nothing waits or goes on."""
        while self.step() or self._started:
            time.sleep(LOOK)

    def _free_place(self) -> int:
        taken = {place for _, place in self._started.values()}
        return next(place for place in range(self.executor.places + 1) if place not in taken)


def folders(root: Path) -> Iterator[RunFolder]:
    """Every run below a folder."""
    for entry in root.iterdir() if root.is_dir() else ():
        if entry.is_dir() and not entry.name.startswith("."):
            yield RunFolder(entry)


def _head(folder: RunFolder) -> dict[str, str] | None:
    """What a run says of itself; None where it cannot be read, which is told where runs are listed."""
    try:
        return folder.head()
    except BadRequest:
        return None


@contextmanager
def _dispatching(root: Path) -> Iterator[bool]:
    """Whether the queue is ours inside: one process starts workers at a time."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".dispatcher.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
