"""RunFolder: one benchmark run on disk, from the moment it is asked for.

    run.json            schema, status, configuration, and in the end everything that decided the numbers
    records.json        the records that are really edited, in the form of an own table, from the start on
    iterations.csv      one row per k; also probes.parquet, cases.csv, delta.safetensors, checkpoints.csv
    rounds.json         of every k how its targets were found and what changed in the weights
    units/              finished pieces, for going on after an interruption; gone when the run is done
    progress.json       how far it is
    log.txt, run.lock   what the worker wrote, and what it holds while it lives
    cancel              somebody asked it to stop

Files are written whole or not at all. Whoever works on a run holds its lock; as the system lets go of locks
of the dead, a run that says "running" while nobody holds its lock was interrupted.
"""

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from editing_core.errors import BadRequest
from editing_core.files import write_text
from editing_core.runs.record import SCHEMA, new_id

QUEUED, RUNNING, INTERRUPTED = "queued", "running", "interrupted"
DONE, FAILED, CANCELLED = "done", "failed", "cancelled"
OPEN, ENDED = (QUEUED, RUNNING), (DONE, FAILED, CANCELLED, INTERRUPTED)
HEAD, LOCK, CANCEL, PROGRESS, UNITS, LOG = "run.json", "run.lock", "cancel", "progress.json", "units", "log.txt"
RECORDS, ROUNDS = "records.json", "rounds.json"
PAUSES = (0.0, 0.002, 0.006, 0.012, 0.03)  # seconds; who looks at a lock has it for microseconds


class Busy(Exception):
    """Another process works on the run."""


@dataclass(frozen=True)
class RunFolder:
    """A run's folder. What it says of itself is in `head`."""

    path: Path

    @staticmethod
    def create(root: Path, config: Mapping[str, Any], owner: str = "", minutes: float | None = None) -> "RunFolder":
        """A new queued run below root; it appears there whole.

        owner: a hash of the visitor's key, or nothing. minutes: how long it may go on at a time.
        """
        root.mkdir(parents=True, exist_ok=True)
        name = new_id()
        draft = root / f".{name}.{secrets.token_hex(4)}"
        draft.mkdir()
        head = {"schema": SCHEMA, "id": name, "status": QUEUED, "created": now("microseconds"), "config": dict(config)}
        head |= {key: value for key, value in {"owner": owner, "minutes": minutes}.items() if value}
        write_text(draft / HEAD, json.dumps(head, indent=1))
        os.replace(draft, root / name)
        return RunFolder(root / name)

    @property
    def id(self) -> str:
        """The run's unguessable id."""
        return self.path.name

    def head(self) -> dict[str, Any]:
        """run.json as it is, with a schema, a status and a configuration; BadRequest when it cannot be read."""
        try:
            head = json.loads((self.path / HEAD).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise self._unreadable() from error
        if not isinstance(head, dict) or not isinstance(head.get("schema"), int) or head["schema"] > SCHEMA:
            raise BadRequest(f"Run {self.id} was written by a newer version; this one reads schemas up to {SCHEMA}.")
        if not isinstance(head.get("status"), str) or not isinstance(head.get("config"), dict):
            raise self._unreadable()
        return head

    def _unreadable(self) -> BadRequest:
        return BadRequest(f"Run {self.id} has no readable {HEAD}; delete it, or put the file back.")

    def update(self, **changes: Any) -> dict[str, Any]:
        """Change entries of run.json; None takes one out."""
        head = {key: value for key, value in {**self.head(), **changes}.items() if value is not None}
        write_text(self.path / HEAD, json.dumps(head, indent=1))
        return head

    @property
    def status(self) -> str:
        """As run.json has it, but interrupted where nobody works on a running run."""
        return self.standing(self.head()["status"])

    def standing(self, status: str) -> str:
        """The status, with what the lock says of a running run."""
        return INTERRUPTED if status == RUNNING and not self.is_held() else str(status)

    def is_held(self) -> bool:
        """Whether a living process works on the run."""
        if not (self.path / LOCK).exists():
            with self._there():
                self.path.stat()
            return False
        # A shared lock, because two who only look are not in each other's way.
        with self._there(), (self.path / LOCK).open() as file:
            return not try_lock(file, fcntl.LOCK_SH)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run's lock inside; Busy when another process does, BadRequest when the run is gone."""
        with self._there():
            file = (self.path / LOCK).open("a")
        with file:
            for pause in PAUSES:
                time.sleep(pause)
                if try_lock(file, fcntl.LOCK_EX):
                    break
            else:
                raise Busy(self.id)
            yield

    @contextmanager
    def _there(self) -> Iterator[None]:
        """A folder that vanishes inside was deleted meanwhile. Only looking at it belongs into the block."""
        try:
            yield
        except FileNotFoundError as error:
            raise BadRequest(f"Run {self.id} is not there any more; choose one from the list of runs.") from error

    def cancel(self, why: str = "") -> None:
        """Ask the worker to stop; a run that waits, or was interrupted, is cancelled at once. why: its error then."""
        try:
            with self.held():
                if self.head()["status"] in OPEN:
                    self.update(status=CANCELLED, finished=now(), error=why or None)
        except Busy:
            with self._there():
                (self.path / CANCEL).write_text(why, encoding="utf-8")

    @property
    def cancel_wanted(self) -> bool:
        """Whether somebody asked the worker to stop."""
        return (self.path / CANCEL).exists()

    @property
    def why_cancelled(self) -> str | None:
        """What whoever asked the worker to stop told as the reason."""
        try:
            return (self.path / CANCEL).read_text(encoding="utf-8") or None
        except OSError:
            return None

    def queue(self) -> None:
        """Put an interrupted, cancelled or failed run back into the queue; finished pieces stay."""
        try:
            with self.held():
                head = self.head()
                if (status := head["status"]) in (DONE, QUEUED):
                    raise BadRequest(f"Run {self.id} is {status}, only one that ended early goes on; start another.")
                if head.get("imported"):  # its configuration names files that are not ours to read
                    raise BadRequest(f"Run {self.id} was imported, it goes on where it began; start another here.")
                (self.path / CANCEL).unlink(missing_ok=True)
                self.update(status=QUEUED, finished=None, error=None)
        except Busy as busy:
            raise BadRequest(f"Run {self.id} is still running; cancel it first, or wait.") from busy

    def delete(self) -> None:
        """Remove the run for good; a running one is refused."""
        try:
            with self.held(), self._there():
                gone = self.path.with_name(f".{self.id}.gone")
                os.replace(self.path, gone)
        except Busy as busy:
            raise BadRequest(f"Run {self.id} is still running; cancel it before deleting it.") from busy
        shutil.rmtree(gone, ignore_errors=True)

    def tell(self, progress: Mapping[str, Any]) -> None:
        """Publish how far the run is."""
        write_text(self.path / PROGRESS, json.dumps({**progress, "time": time.time()}))

    def progress(self) -> dict[str, Any]:
        """The last progress told; empty when there is none."""
        try:
            found = json.loads((self.path / PROGRESS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def clean(self) -> None:
        """Take working files away that a finished run needs no more."""
        shutil.rmtree(self.path / UNITS, ignore_errors=True)
        for stray in (self.path / PROGRESS, self.path / CANCEL, *self.path.glob(".*.part")):
            stray.unlink(missing_ok=True)


def try_lock(file: IO[str], kind: int) -> bool:
    """Lock an open file until it is closed, if that can be done at once; tells whether it was."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def now(digits: str = "seconds") -> str:
    """The present, as in every record. digits: as `datetime.isoformat` names them; a queue's order needs many."""
    return datetime.now(UTC).isoformat(timespec=digits)
