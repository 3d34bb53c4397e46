"""Desk: what a person may do with the stored runs of a folder, from entering them to taking them away.

Locally everybody shares one queue and one list. On a public host every visitor holds a key that nobody can guess:
runs carry its hash, and are there for nobody without it. Nothing else tells visitors apart.
"""

import hashlib
import os
import re
import secrets
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from editing_core import paths
from editing_core.bench.config import RunConfig
from editing_core.bench.grid import Grid, enter, there
from editing_core.bench.index import EVERY, Entry, Index, size_of
from editing_core.bench.stored import import_run
from editing_core.data.datasets import load_dataset
from editing_core.errors import BadRequest, EditingError
from editing_core.files import whole
from editing_core.models.catalog import CATALOG, unknown
from editing_core.runs.bundle import pack
from editing_core.runs.folder import CANCELLED, DONE, ENDED, FAILED, INTERRUPTED, OPEN, QUEUED, RunFolder

KEY = re.compile(r"[A-Za-z0-9_-]{32,64}")
FRESH = 3600  # seconds an uploaded file may lie before a run names it


@dataclass(frozen=True)
class Limits:
    """What one visitor of a public host may ask for; `all_*` is for all visitors together.

    edits, iterations: of one run. minutes: on the clock, each time a run goes on. waiting: runs in the queue or
    running. stored: bytes of all their runs. parameters: of the model.
    """

    edits: int = 200
    iterations: int = 5
    minutes: float = 30
    waiting: int = 4
    stored: int = 100 * 2**20
    parameters: float = 200e6
    all_waiting: int = 40
    all_stored: int = 5 * 2**30


@dataclass(frozen=True)
class Entered:
    """The runs of a grid.

    new: those that were not there before or go on now; done: those that had finished. grid: its cells as they were
    entered; their data set names the file that was kept for them.
    """

    runs: tuple[RunFolder, ...]
    new: int
    done: int
    grid: Grid


def new_key() -> str:
    """A visitor's key."""
    return secrets.token_urlsafe(32)


@dataclass(frozen=True)
class Desk:
    """The runs below a folder. limits: those of a public host; None for a machine whose users trust each other.

    key, in every call: the visitor's; it plays no part without limits.
    """

    root: Path
    limits: Limits | None = None
    uploads: Path = field(default_factory=paths.uploads)

    @property
    def public(self) -> bool:
        """Whether visitors see their own runs only."""
        return self.limits is not None

    def owner(self, key: str) -> str:
        """What the runs of a key carry; nothing on a machine of one's own."""
        if not self.public:
            return ""
        if not isinstance(key, str) or not KEY.fullmatch(key):
            raise BadRequest("The key is missing or damaged, it has 32 letters or more; reload the page for a new one.")
        return hashlib.sha256(key.encode()).hexdigest()[:32]

    def entries(self, key: str, text: str = "", statuses: Sequence[str] = (), most: int = 1000) -> list[Entry]:
        """Runs, the newest first, as in `Index.entries`."""
        return Index(self.root).entries(text, statuses, self._whose(key), most)

    def count(self, key: str, text: str = "", statuses: Sequence[str] = ()) -> int:
        """How many runs there are."""
        return Index(self.root).count(text, statuses, self._whose(key))

    def going(self, key: str) -> list[str]:
        """Ids of the runs that wait or go on, the oldest first."""
        return [entry.id for entry in reversed(self.entries(key, statuses=OPEN, most=EVERY))]

    def waiting(self) -> list[str]:
        """Ids of everybody's waiting runs, the next one first: a place in the queue counts all of them."""
        return [entry.id for entry in Index(self.root).open() if entry.status == QUEUED]

    def folders(self, key: str, ids: Iterable[str]) -> list[RunFolder]:
        """Those of the runs that are there, and the visitor's; in the order asked for, each once."""
        owner = self._whose(key)
        found = (RunFolder(self.root / name) for name in dict.fromkeys(ids) if self._has(name))
        return [folder for folder in found if owner is None or _owner(folder) == owner]

    def folder(self, key: str, name: str) -> RunFolder:
        """A run by its id."""
        for folder in self.folders(key, [name]):
            return folder
        raise BadRequest(f"There is no run {str(name)[:40]!r} here; choose one from the list of runs.")

    def enter(self, key: str, grid: Grid, file: Path | None = None) -> Entered:
        """Put a grid's cells into the queue; those that are done are left, those that ended early go on.

        file: the records of all cells, whose data set is the file's format. It is read whole, and a copy of it is kept
        once nothing is left to refuse.
        """
        owner = self.owner(key)
        for cell in grid.cells:
            self._check(cell)
        named = grid if file is None else _on_file(grid, file)
        own = Index(self.root).entries(owner=owner)
        before = [entry.status if entry else "" for _, entry in there(named, own)]
        done = before.count(DONE)
        new = len(before) - done - sum(status in OPEN for status in before)
        self._check_room(owner, new)
        minutes = self.limits.minutes if self.limits else None
        with self._kept(file, named):
            return Entered(tuple(enter(named, self.root, owner, minutes)), new, done, named)

    def resume(self, key: str, ids: Iterable[str]) -> int:
        """Put those of the runs that ended early back into the queue; gives how many there were."""
        early = [folder for folder in self.folders(key, ids) if _goes_on(folder)]
        self._check_room(self.owner(key), len(early))
        return _count(early, RunFolder.queue)

    def cancel(self, key: str, ids: Iterable[str]) -> int:
        """Cancel those of the runs that wait or go on; gives how many there were."""
        return _count((folder for folder in self.folders(key, ids) if _status(folder) in OPEN), RunFolder.cancel)

    def delete(self, key: str, ids: Iterable[str]) -> int:
        """Remove for good those of the runs that do not go on; gives how many there were."""
        count = _count(self.folders(key, ids), RunFolder.delete)
        self._drop_uploads()
        return count

    def export(self, key: str, name: str, file: Path) -> None:
        """Write a run as a bundle."""
        folder = self.folder(key, name)
        if folder.status not in ENDED:
            raise BadRequest(f"Run {folder.id} has not ended; wait for its end, or cancel it.")
        pack(folder.path, file)

    def take_in(self, key: str, file: Path) -> RunFolder:
        """Import a bundle as the visitor's own run, where there is room for what it holds."""
        owner = self.owner(key)
        folder = import_run(file, self.root, owner, self._check_room(owner, 0))
        try:
            self._check_room(owner, 0)
        except BadRequest:
            folder.delete()
            raise
        if not folder.path.exists():
            raise BadRequest("All visitors' runs leave no room for one of this size; delete some of yours first.")
        return folder

    def _whose(self, key: str) -> str | None:
        """Whose runs a key shows; everybody's on a machine of one's own."""
        return self.owner(key) if self.public else None

    def _has(self, name: str) -> bool:
        """Whether that is the name of a folder here, and leads to no other place."""
        return name[:1] not in ("", ".") and os.path.basename(name) == name and os.path.isdir(self.root / name)

    def _check(self, cell: RunConfig) -> None:
        """Whether a visitor may ask for this run."""
        limits = self.limits
        if limits is None:
            return
        if (records := cell.limit) is None or records > limits.edits:
            raise BadRequest(
                f"{'All' if records is None else records} edits were asked for, a run on this public page has at most "
                f"{limits.edits}; ask for fewer, or run EditScope on a machine of your own."
            )
        if cell.iterations > limits.iterations:
            raise BadRequest(
                f"{cell.iterations} iterations were asked for, a run on this public page has at most "
                f"{limits.iterations}; ask for fewer, or run EditScope on a machine of your own."
            )
        row = CATALOG.get(cell.model)
        if row is None or row.parameters > limits.parameters:
            allowed = (name for name, row in CATALOG.items() if row.parameters <= limits.parameters)
            raise unknown(cell.model, "model of this public page", allowed)

    def _check_room(self, owner: str, more: int) -> int:
        """Whether so many more runs may wait; gives the bytes that are left for this owner.

        Makes room on the disc where all visitors together took too much.
        """
        limits = self.limits
        if limits is None:
            return sys.maxsize
        everyone = [entry for entry in Index(self.root).entries() if entry.owner]
        own = [entry for entry in everyone if entry.owner == owner]
        if (waiting := sum(entry.status in OPEN for entry in own)) + more > limits.waiting:
            raise BadRequest(
                f"{more} more runs were asked for while {waiting} of yours wait or run, at most {limits.waiting} may "
                "on this public page; wait for them, or ask for fewer."
            )
        if (used := sum(entry.bytes for entry in own)) > limits.stored:
            raise BadRequest(
                f"Your runs take {used / 2**20:.0f} MB, at most {limits.stored / 2**20:.0f} are kept on this public "
                "page; export and delete some."
            )
        if sum(entry.status in OPEN for entry in everyone) + more > limits.all_waiting:
            raise BadRequest(f"More than {limits.all_waiting} runs of all visitors wait already; try again later.")
        _make_room(self.root, everyone, limits.all_stored)
        return limits.stored - used

    @contextmanager
    def _kept(self, file: Path | None, grid: Grid) -> Iterator[None]:
        """Inside, there is a copy of the file a grid's cells name; after a refusal only where a run names it."""
        if file is None:
            yield
            return
        self._drop_uploads()
        if self.limits and size_of(self.uploads) > self.limits.all_stored:
            raise BadRequest("The files of all visitors together take too much room at present; try again in an hour.")
        name = grid.cells[0].dataset.partition(":")[2]
        with whole(self.uploads / name) as part:
            shutil.copyfile(file, part)
        try:
            yield
        except EditingError:
            self._drop_uploads(name)
            raise

    def _drop_uploads(self, refused: str = "") -> None:
        """Remove uploaded files that no run names any more, and the refused one at once."""
        named = {entry.file for entry in Index(self.root).entries()}
        for file in self.uploads.iterdir() if self.uploads.is_dir() else ():
            with suppress(FileNotFoundError):  # somebody else was faster
                if file.name not in named and (file.name == refused or time.time() - file.stat().st_mtime > FRESH):
                    file.unlink()


def _on_file(grid: Grid, file: Path) -> Grid:
    """The cells on the records of a file, under the name it is kept by."""
    for format_, skip_bad in {(cell.dataset, cell.skip_bad) for cell in grid.cells}:
        load_dataset(f"{format_}:{file}", skip_bad)
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", file.stem)[:40].strip("-") or "records"
    name = f"{stem}-{hashlib.sha256(file.read_bytes()).hexdigest()[:10]}{file.suffix.lower()}"
    return Grid(tuple(replace(cell, dataset=f"{cell.dataset}:{name}") for cell in grid.cells))


def _make_room(root: Path, everyone: Sequence[Entry], most: int) -> None:
    """The oldest runs of whoever has the most bytes leave until all together take no more than they may."""
    used = Counter[str]()
    for entry in everyone:
        used[entry.owner] += entry.bytes
    ended = sorted((entry for entry in everyone if entry.status not in OPEN), key=lambda entry: entry.created)
    while used.total() > most and ended:
        entry = max(ended, key=lambda entry: used[entry.owner])
        ended.remove(entry)
        if _count([RunFolder(root / entry.id)], RunFolder.delete):
            used[entry.owner] -= entry.bytes


def _count(found: Iterable[RunFolder], act: Callable[[RunFolder], None]) -> int:
    """Do something with every run that lets one, as it stands by then; gives how many did."""
    count = 0
    for folder in found:
        with suppress(BadRequest):
            act(folder)
            count += 1
    return count


def _status(folder: RunFolder) -> str:
    """Its status; nothing where it cannot be read."""
    try:
        return folder.status
    except BadRequest:
        return ""


def _owner(folder: RunFolder) -> str | None:
    """Whose it is; nothing where that cannot be read."""
    try:
        return folder.head().get("owner")
    except BadRequest:
        return None


def _goes_on(folder: RunFolder) -> bool:
    """Whether it ended early here."""
    return _status(folder) in (CANCELLED, FAILED, INTERRUPTED) and not folder.head().get("imported")
