"""Index: what there is among thousands of runs, found at once.

One row per run in a SQLite file beside the folders. The folders are the truth: a row is read again when its
run.json changed, and the whole file can be thrown away at any time.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from editing_core.bench.config import RunConfig
from editing_core.errors import BadRequest
from editing_core.runs.folder import HEAD, OPEN, RUNNING, RunFolder

VERSION = 1
FILE = ".index.sqlite"
BROKEN = "unreadable"  # status of a folder whose run.json cannot be read


@dataclass(frozen=True)
class Entry:
    """A run in a list. score: of success at the chosen iteration. owner: a hash, or nothing."""

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


COLUMNS = [f.name for f in fields(Entry)]
SEARCHED = ("name", "id", "error")


class Index:
    """The runs below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entries(self, text: str = "", status: str = "", owner: str | None = None, most: int = 1000) -> list[Entry]:
        """Runs, the newest first. text: words that all stand in name, id or error. owner: only that visitor's."""
        self.refresh()
        where, values = [], []
        for word in text.split()[:20]:
            where.append("(" + " OR ".join(f"instr(lower({column}), ?)" for column in SEARCHED) + ")")
            values += [word.lower()] * len(SEARCHED)
        if owner is not None:
            where.append("owner = ?")
            values.append(owner)
        query = f"SELECT {', '.join(COLUMNS)} FROM runs WHERE {' AND '.join(where) or '1'} ORDER BY created DESC, id"
        with self._open() as base:
            found = [self._standing(Entry(*row)) for row in base.execute(query, values)]
        return [entry for entry in found if not status or entry.status == status][:most]

    def open(self) -> list[str]:
        """Ids of the runs that say they wait or go on."""
        self.refresh()
        with self._open() as base:
            return [name for (name,) in base.execute("SELECT id FROM runs WHERE status IN (?, ?)", OPEN)]

    def refresh(self) -> None:
        """Bring the rows up to what the folders say."""
        there = dict(self._stamps())
        with self._open() as base:
            known = dict(base.execute("SELECT id, stamp FROM runs"))
            base.executemany("DELETE FROM runs WHERE id = ?", [(name,) for name in known.keys() - there.keys()])
            new = [(name, stamp) for name, stamp in there.items() if known.get(name) != stamp]
            rows = [(stamp, *self._row(RunFolder(self.root / name))) for name, stamp in new]
            marks = ", ".join("?" * (len(COLUMNS) + 1))
            base.executemany(f"INSERT OR REPLACE INTO runs (stamp, {', '.join(COLUMNS)}) VALUES ({marks})", rows)

    def _stamps(self) -> Iterator[tuple[str, str]]:
        """Every run with what changes when its run.json does."""
        with os.scandir(self.root) if self.root.is_dir() else _nothing() as listing:
            for entry in listing:
                if entry.name.startswith(".") or not entry.is_dir():
                    continue
                try:
                    found = os.stat(os.path.join(entry.path, HEAD))
                    yield entry.name, f"{found.st_mtime_ns}-{found.st_ino}-{found.st_size}"
                except OSError:
                    yield entry.name, BROKEN

    def _row(self, folder: RunFolder) -> tuple[Any, ...]:
        try:
            entry = entry_of(folder.id, folder.head())
        except (BadRequest, KeyError, TypeError, ValueError) as error:
            entry = Entry(folder.id, error=str(error))
        return tuple(getattr(entry, name) for name in COLUMNS)

    def _standing(self, entry: Entry) -> Entry:
        """With the status that the lock tells."""
        if entry.status != RUNNING:
            return entry
        return replace(entry, status=RunFolder(self.root / entry.id).standing(RUNNING))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection; a file that is damaged or of another version is made anew."""
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            base = self._connect()
        except sqlite3.DatabaseError:
            for end in ("", "-wal", "-shm"):
                (self.root / f"{FILE}{end}").unlink(missing_ok=True)
            base = self._connect()
        try:
            with base:
                yield base
        finally:
            base.close()

    def _connect(self) -> sqlite3.Connection:
        base = sqlite3.connect(self.root / FILE, timeout=10)
        try:
            base.execute("PRAGMA journal_mode = WAL")
            (version,) = base.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                raise sqlite3.DatabaseError("another version")
            columns = ", ".join(f"{name} PRIMARY KEY" if name == "id" else name for name in COLUMNS)
            base.execute(f"CREATE TABLE IF NOT EXISTS runs (stamp, {columns})")
            base.execute(f"PRAGMA user_version = {VERSION}")
        except sqlite3.DatabaseError:
            base.close()
            raise
        return base


def entry_of(name: str, head: dict[str, Any]) -> Entry:
    """A list's entry from run.json."""
    config, result = RunConfig.of(head["config"]), head.get("result", {})
    last = result.get("last", {})
    return Entry(
        id=name,
        created=str(head["created"]),
        status=str(head["status"]),
        name=config.name,
        model=config.model,
        editor=config.editor,
        assist=config.plan.assist.name or "off",
        dataset=config.dataset.partition(":")[0],
        trial=config.trial,
        n_edits=result.get("n_edits"),
        chosen=result.get("chosen"),
        efficacy=last.get("efficacy_success"),
        score=last.get("score_success"),
        seconds=result.get("seconds"),
        error=str(head.get("error", "")),
        owner=str(head.get("owner", "")),
    )


@contextmanager
def _nothing() -> Iterator[list[os.DirEntry[str]]]:
    yield []
