"""Index: what there is among thousands of runs, found at once.

One row per run in a SQLite file beside the folders. The folders are the truth: a row is read again when something
in its folder changed, and the whole file can be thrown away at any time.
"""

import math
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from editing_core.bench.config import RunConfig
from editing_core.errors import BadRequest, EditingError
from editing_core.runs.folder import HEAD, INTERRUPTED, OPEN, RUNNING, RunFolder

VERSION = 2
FILE = ".index.sqlite"
BROKEN = "unreadable"  # status of a folder whose run.json cannot be read
EVERY = 10**6  # runs: all there are
MOST_TOLD = 300  # characters of why a run cannot be read
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """A run in a list.

    score: of success at the chosen iteration. owner: a hash, or nothing. cell: equal for runs that ask for the same.
    file: where its records come from, if from a file. bytes: of the whole folder when the row was read; it grows while
    a run goes on, so equal entries may differ in it.
    """

    id: str
    created: str = ""
    status: str = BROKEN
    name: str = ""
    model: str = ""
    editor: str = ""
    assist: str = ""
    dataset: str = ""
    trial: int = 0
    n_edits: int | None = None
    chosen: int | None = None
    efficacy: float | None = None
    score: float | None = None
    seconds: float | None = None
    error: str = ""
    owner: str = ""
    started: str = ""
    cell: str = ""
    file: str = ""
    imported: bool = False
    bytes: int = field(default=0, compare=False)


COLUMNS = [f.name for f in fields(Entry)]
SEARCHED = ("name", "id", "error")
LISTED = f"SELECT {', '.join(COLUMNS)} FROM runs"
# Owners take turns. One's next turn comes as late as the oldest of the waiting runs came, or the last one began.
TURNS = f"""
    SELECT {", ".join(COLUMNS)} FROM (
        SELECT *, row_number() OVER (PARTITION BY status, owner ORDER BY created, id) AS turn,
            min(created) OVER (PARTITION BY status, owner) AS came
        FROM runs WHERE status IN (?, ?)
    ) JOIN (SELECT owner, max(started) AS served FROM runs GROUP BY owner) USING (owner)
    ORDER BY turn, max(came, served), created, id
"""


class Index:
    """The runs below a folder. Every question raises BadRequest where the file cannot be used at present."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entries(
        self, text: str = "", statuses: Sequence[str] = (), owner: str | None = None, most: int = EVERY
    ) -> list[Entry]:
        """Runs, the newest first.

        text: words that all stand in name, id or error. statuses: any of them, all where there are none. owner: only
        that visitor's.
        """
        return self._ask(lambda base: list(islice(self._fitting(base, text, statuses, owner), most)))

    def count(self, text: str = "", statuses: Sequence[str] = (), owner: str | None = None) -> int:
        """How many `entries` would give."""
        return self._ask(lambda base: sum(1 for _ in self._fitting(base, text, statuses, owner)))

    def open(self) -> list[Entry]:
        """Runs that go on or wait; those that wait in the order of the queue, in which owners take turns."""
        return self._ask(
            lambda base: [entry for entry in self._seen(base.execute(TURNS, OPEN)) if entry.status in OPEN]
        )

    def refresh(self) -> None:
        """Bring the rows up to what the folders say; every question does so first."""
        self._ask(lambda _: None)

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """An answer from rows that are up to date; a file that is damaged or of another version is made anew, once."""
        try:
            try:
                return self._answer(question)
            except sqlite3.OperationalError:  # locked, or no room: the file is as good as it was
                raise
            except sqlite3.DatabaseError:
                for end in ("", "-wal", "-shm"):
                    (self.root / f"{FILE}{end}").unlink(missing_ok=True)
                return self._answer(question)
        except sqlite3.DatabaseError as error:
            raise BadRequest(
                f"The list of runs cannot be read at present ({error}); try again in a moment, or make room on the "
                f"disc and delete {FILE} beside the runs."
            ) from error

    def _answer(self, question: Callable[[sqlite3.Connection], T]) -> T:
        self.root.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.root / FILE, timeout=10)) as base:
            _prepare(base)
            with base:
                self._refresh(base)
                return question(base)

    def _refresh(self, base: sqlite3.Connection) -> None:
        there = dict(self._stamps())
        known = dict(base.execute("SELECT id, stamp FROM runs"))
        base.executemany("DELETE FROM runs WHERE id = ?", [(name,) for name in known.keys() - there.keys()])
        new = [(name, stamp) for name, stamp in there.items() if known.get(name) != stamp]
        rows = [(stamp, *self._row(RunFolder(self.root / name))) for name, stamp in new]
        marks = ", ".join("?" * (len(COLUMNS) + 1))
        base.executemany(f"INSERT OR REPLACE INTO runs (stamp, {', '.join(COLUMNS)}) VALUES ({marks})", rows)

    def _stamps(self) -> Iterator[tuple[str, str]]:
        """Every run with what changes when its run.json does, or when a file comes or goes beside it."""
        with os.scandir(self.root) as listing:
            for entry in listing:
                if entry.name.startswith(".") or entry.name != _plain(entry.name) or not entry.is_dir():
                    continue
                head = _stamp(os.path.join(entry.path, HEAD))
                if beside := _stamp(entry.path):  # otherwise it was deleted meanwhile
                    yield entry.name, f"{head} {beside}"

    def _row(self, folder: RunFolder) -> tuple[Any, ...]:
        head: Mapping[str, Any] = {}
        try:
            head = folder.head()
            entry = entry_of(folder.id, head)
        except EditingError as error:
            # Its owner may still look at it, and delete it.
            told, owner = _plain(str(error))[:MOST_TOLD], _plain(str(head.get("owner", "")))
            entry = Entry(folder.id, error=told, owner=owner)
        entry = replace(entry, bytes=size_of(folder.path))
        return tuple(getattr(entry, name) for name in COLUMNS)

    def _fitting(
        self, base: sqlite3.Connection, text: str, statuses: Sequence[str], owner: str | None
    ) -> Iterator[Entry]:
        where: list[str] = []
        values: list[str] = []
        for word in text.split()[:20]:
            where.append("(" + " OR ".join(f"instr(lower({column}), ?)" for column in SEARCHED) + ")")
            values += [_plain(word.lower())] * len(SEARCHED)
        if owner is not None:
            where.append("owner = ?")
            values.append(owner)
        if statuses:
            told = [*statuses, *([RUNNING] if INTERRUPTED in statuses else [])]
            where.append(f"status IN ({', '.join('?' * len(told))})")
            values += told
        query = f"{LISTED} WHERE {' AND '.join(where) or '1'} ORDER BY created DESC, id"
        for entry in self._seen(base.execute(query, values)):
            if not statuses or entry.status in statuses:
                yield entry

    def _seen(self, rows: sqlite3.Cursor) -> Iterator[Entry]:
        """Entries with the status that the lock tells."""
        for entry in (Entry(*row) for row in rows):
            try:
                status = RunFolder(self.root / entry.id).standing(entry.status)
            except BadRequest:  # deleted since the row was read
                continue
            yield replace(entry, status=status) if status != entry.status else entry


def entry_of(name: str, head: Mapping[str, Any]) -> Entry:
    """A list's entry from run.json; EditingError where that holds what no run does."""
    try:
        values = _values(name, head)
        return Entry(**{f.name: READ[f.type](values[f.name]) for f in fields(Entry) if f.name in values})
    except EditingError:
        raise
    except Exception as error:
        # What settings raise on values of a strange kind has no common base.
        told = f"Run {name} has a {HEAD} with values of another kind than a run's ({type(error).__name__})"
        raise BadRequest(f"{told}; delete it, or do the run again.") from error


def _values(name: str, head: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json says, by column."""
    config, result = RunConfig.of(head["config"]), head.get("result", {})
    last = result.get("last", {})
    dataset, _, file = config.dataset.partition(":")
    return {
        "id": name,
        "created": head["created"],
        "status": head["status"],
        "name": config.name,
        "model": config.model,
        "editor": config.editor,
        "assist": config.plan.assist.name or "off",
        "dataset": dataset,
        "trial": config.trial,
        "n_edits": result.get("n_edits"),
        "chosen": result.get("chosen"),
        "efficacy": last.get("efficacy_success"),
        "score": last.get("score_success"),
        "seconds": result.get("seconds"),
        "error": head.get("error", ""),
        "owner": head.get("owner", ""),
        "started": head.get("started", ""),
        "cell": config.key,
        "file": file,
        "imported": head.get("imported"),
    }


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder; what vanishes meanwhile does not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _text(value: Any) -> str:
    """A text that a database takes."""
    if not isinstance(value, str) or value != _plain(value):
        raise TypeError("no text")
    return value


def _whole(value: Any) -> int:
    """A whole number that a database takes."""
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise TypeError("no whole number")
    return value


def _finite(value: Any) -> float | None:
    """A number, or nothing where a metric could not be told."""
    if type(value) not in (int, float):
        raise TypeError("no number")
    return float(value) if math.isfinite(value) else None


READ: dict[Any, Callable[[Any], Any]] = {
    str: _text,
    int: _whole,
    bool: bool,
    int | None: lambda value: None if value is None else _whole(value),
    float | None: lambda value: None if value is None else _finite(value),
}


def _plain(text: str) -> str:
    """The text without halves of surrogate pairs, which have no UTF-8."""
    return text.encode(errors="replace").decode()


def _stamp(path: str) -> str:
    """Changes with a file, or with the names in a folder; nothing where it cannot be looked at."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_mtime_ns}-{found.st_ino}-{found.st_size}"


def _prepare(base: sqlite3.Connection) -> None:
    """Make the table in a new file. DatabaseError where the file is damaged or of another version."""
    version = _version(base)
    if version not in (0, VERSION):
        raise sqlite3.DatabaseError("another version")
    if version == 0:
        base.execute("PRAGMA journal_mode = WAL")
        with base:
            base.execute("BEGIN IMMEDIATE")
            if _version(base) == 0:  # nobody was faster
                base.execute("DROP TABLE IF EXISTS runs")
                base.execute(f"CREATE TABLE runs (stamp, {', '.join(COLUMNS)}, PRIMARY KEY (id))")
                base.execute(f"PRAGMA user_version = {VERSION}")


def _version(base: sqlite3.Connection) -> int:
    (version,) = base.execute("PRAGMA user_version").fetchone()
    return int(version)
