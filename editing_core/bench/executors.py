"""Executors and the dispatcher: who starts the workers of queued runs, how many at a time, and where.

Queued runs are folders, so the queue survives whoever dispatches it. Of all dispatchers of a queue, on a page or a
command line, one leads: it holds the queue's lock file until it ends; the system lets go of the locks of the dead.
"""

import fcntl
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from editing_core.bench.index import Index
from editing_core.errors import BadRequest, BadSetting
from editing_core.runs.folder import CANCELLED, FAILED, LOG, QUEUED, RUNNING, Busy, RunFolder, now, try_lock

LOOK = 0.3  # seconds between two looks at the queue
MOST_LOST = 3  # times a run goes back into the queue by itself
LOCK = ".dispatcher.lock"


class Fate(Enum):
    """What became of a worker that is gone."""

    ENDED = "ended"  # by itself, or because somebody wanted it to
    LOST = "lost"  # its host or its process broke down


class Worker(Protocol):
    """A worker that was started."""

    def poll(self) -> Fate | None:
        """What became of it; None while it lives."""
        ...


class Executor(Protocol):
    """Starts workers on places: GPUs, or the one processor there is."""

    @property
    def places(self) -> int:
        """How many workers there may be at a time; it may change."""
        ...

    def start(self, folder: RunFolder, place: int) -> Worker:
        """Start a worker for a run."""
        ...

    def close(self) -> None:
        """Give back what was taken to start workers."""
        ...


def executor_of(text: str) -> Executor:
    """The executor of a name: "local", "ray" for a cluster started here, "ray:ADDRESS" for one there is."""
    name, colon, address = text.partition(":")
    if name == "ray" and bool(colon) == bool(address):
        return _ray(address)
    if text != "local":
        raise BadSetting(f"The executor is {text[:40]!r}, allowed are local, ray and ray:ADDRESS; choose one of them.")
    return LocalProcesses()


def _ray(address: str) -> Executor:
    try:
        from editing_core.bench.ray_executor import RayCluster
    except ModuleNotFoundError as error:
        raise BadSetting(
            "The executor ray needs Ray, which is not installed; choose local, or run "
            "'pip install -r requirements-ray.txt' first."
        ) from error
    return RayCluster(address)


@dataclass(frozen=True)
class LocalWorker:
    """A process on this machine."""

    process: "subprocess.Popen[bytes]"

    def poll(self) -> Fate | None:
        """Never lost: whoever killed it may have meant to, so its run waits until somebody resumes it."""
        return None if self.process.poll() is None else Fate.ENDED


@dataclass
class LocalProcesses:
    """One process per run, on this machine; one place per GPU, or one in all."""

    places: int = field(default_factory=lambda: max(1, torch.cuda.device_count()))

    def start(self, folder: RunFolder, place: int) -> Worker:
        """The process outlives the one that started it; what it writes goes to the run's log."""
        environment = dict(os.environ)
        if torch.cuda.is_available():
            environment["CUDA_VISIBLE_DEVICES"] = _device(place)
        command = [sys.executable, "-m", "editing_core", "runs", "work", folder.id, "--root", str(folder.path.parent)]
        with (folder.path / LOG).open("ab") as written:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return LocalWorker(process)

    def close(self) -> None:
        """Nothing was taken; the workers go on."""


def _device(place: int) -> str:
    """The GPU of a place, of those this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[place].strip() if visible else str(place)


@dataclass(eq=False)
class Dispatcher:
    """Starts queued runs below `root`, owners in turn and the oldest of each first, as places get free, while it leads.

    A run that goes on for longer than its run.json says it may is asked to stop. One whose worker was lost goes back
    into the queue, and so does one whose worker ended before it began, but only MOST_LOST times: what takes every
    worker down would never come to an end. Counted in memory, as what it guards against is a quick circle; who leads
    next may well try again.
    """

    root: Path
    executor: Executor
    _started: dict[str, tuple[Worker, int]] = field(default_factory=dict)
    _lost: Counter[str] = field(default_factory=Counter)
    _lock: IO[str] | None = None

    def __enter__(self) -> "Dispatcher":
        """Closed on leaving."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the lead; workers that were started go on."""
        if self._lock:
            self._lock.close()
        self._lock = None

    @property
    def leads(self) -> bool:
        """Whether this one starts the workers; it takes the lead where nobody has it."""
        self._lock = self._lock or _locked(self.root / LOCK)
        return self._lock is not None

    def step(self) -> int:
        """Look once; gives how many runs wait or go on. Starts nothing while another one leads."""
        leads = self.leads
        if leads:
            self._dismiss()
        going, waiting = _open_runs(self.root)
        if leads:
            for folder, head in going:
                _end_in_time(folder, head)
            self._start(going, waiting)
        return len(going) + len(waiting)

    def drain(self) -> None:
        """Dispatch until nothing waits or goes on."""
        while self.step() or self._started:
            time.sleep(LOOK)

    def minds(self, folder: RunFolder) -> bool:
        """Whether this one started a worker for the run and may yet start another."""
        return folder.id in self._started

    def _start(self, going: Sequence["Seen"], waiting: Sequence[RunFolder]) -> None:
        taken: dict[str, Any] = {folder.id: head.get("place") for folder, head in going}
        taken |= {name: place for name, (_, place) in self._started.items()}
        places = self.executor.places
        free = [place for place in range(places) if place not in taken.values()][: max(0, places - len(taken))]
        for folder in (folder for folder in waiting if not self.minds(folder)):
            if not free:
                break
            if (place := _claimed(folder, free)) is not None:
                free.remove(place)
                self._started[folder.id] = self.executor.start(folder, place), place

    def _dismiss(self) -> None:
        """Forget workers that are gone and whose runs are settled."""
        for name, (worker, _) in list(self._started.items()):
            fate = worker.poll()
            if fate and self._settled(RunFolder(self.root / name), fate):
                del self._started[name]

    def _settled(self, folder: RunFolder, fate: Fate) -> bool:
        """Whether the run stands as it should now that its worker is gone."""
        try:
            with folder.held():  # so that nobody changes the status in between
                status = folder.head()["status"]
                if status == QUEUED or (status == RUNNING and fate is Fate.LOST):
                    self._again(folder)
        except Busy:  # the host of a lost worker may not have noticed yet
            return fate is not Fate.LOST
        except BadRequest:  # deleted
            pass
        return True

    def _again(self, folder: RunFolder) -> None:
        """Put a run back into the queue, unless that was done too often or somebody wants it to end."""
        self._lost[folder.id] += 1
        if folder.cancel_wanted:
            folder.update(status=CANCELLED, finished=now(), error=folder.why_cancelled)
        elif self._lost[folder.id] <= MOST_LOST:
            folder.update(status=QUEUED)
        else:
            told = f"Its worker was lost {self._lost[folder.id]} times; look into its log for why, then resume the run."
            folder.update(status=FAILED, finished=now(), error=told)


Seen = tuple[RunFolder, dict[str, Any]]


def folders(root: Path) -> Iterator[RunFolder]:
    """Every run below a folder."""
    for entry in root.iterdir() if root.is_dir() else ():
        if entry.is_dir() and not entry.name.startswith("."):
            yield RunFolder(entry)


def _open_runs(root: Path) -> tuple[list[Seen], list[RunFolder]]:
    """Runs a living worker is at, with their heads, and those that wait, the next one first."""
    going, waiting = [], []
    for entry in Index(root).open():
        folder = RunFolder(root / entry.id)
        if entry.status == QUEUED:
            waiting.append(folder)
        else:
            with suppress(BadRequest):  # deleted meanwhile
                going.append((folder, folder.head()))
    return going, waiting


def _end_in_time(folder: RunFolder, head: Mapping[str, Any]) -> None:
    """Ask a run to stop that goes on for longer than it may."""
    minutes = head.get("minutes")
    if minutes is None or "started" not in head or folder.cancel_wanted:
        return
    if datetime.now(UTC) - datetime.fromisoformat(head["started"]) > timedelta(minutes=minutes):
        with suppress(BadRequest):  # deleted meanwhile
            folder.cancel(
                f"The run went on for more than {minutes:g} minutes, at most so many are given to one at a time; "
                "ask for fewer edits or iterations, or resume it later."
            )


def _claimed(folder: RunFolder, free: Sequence[int]) -> int | None:
    """A free place, written into the run's head; None where it does not wait any more, such as after a cancel."""
    try:
        with folder.held():
            head = folder.head()
            if head["status"] != QUEUED:
                return None
            # A worker that a former leader started may still be on its way: then both are on the same place.
            place = head["place"] if head.get("place") in free else free[0]
            folder.update(place=place)
            return int(place)
    except (Busy, BadRequest):
        return None


def _locked(path: Path) -> IO[str] | None:
    """The file, locked for as long as it stays open; None where somebody else has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    if try_lock(file, fcntl.LOCK_EX):
        return file
    file.close()
    return None
