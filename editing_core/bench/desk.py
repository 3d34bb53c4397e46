"""Desk: what a person may do with the stored runs of a folder, from entering them to taking them away.

Locally everybody shares one queue and one list. On a public host every visitor holds a key that nobody can guess:
runs carry its hash, and are there for nobody without it. Nothing else tells visitors apart.
"""

import hashlib
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from editing_core import paths
from editing_core.bench.config import RunConfig
from editing_core.bench.executors import folders
from editing_core.bench.grid import Grid, enter, there
from editing_core.bench.index import Entry, Index
from editing_core.bench.stored import import_run
from editing_core.data.datasets import load_dataset
from editing_core.errors import BadRequest
from editing_core.models.catalog import CATALOG, unknown
from editing_core.runs.bundle import pack
from editing_core.runs.export import whole
from editing_core.runs.folder import DONE, ENDED, OPEN, QUEUED, RUNNING, RunFolder

KEY = re.compile(r"[A-Za-z0-9_-]{32,64}")
EVERY = 10**6  # runs: all there are
FRESH = 3600  # seconds an uploaded file may lie before a run names it


@dataclass(frozen=True)
class Limits:
    """What one visitor of a public host may ask for; `all_*` is for all visitors together.

    edits, iterations: of one run. waiting: runs in the queue or running. stored: bytes of all their runs.
    parameters: of the model.
    """

    edits: int = 200
    iterations: int = 5
    waiting: int = 4
    stored: int = 100 * 2**20
    parameters: float = 200e6
    all_waiting: int = 40
    all_stored: int = 5 * 2**30


@dataclass(frozen=True)
class Entered:
    """The runs of a grid. new: those that were not there before or go on now; done: those that had finished."""

    runs: tuple[RunFolder, ...]
    new: int
    done: int


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

    def entries(self, key: str, text: str = "", status: str = "", most: int = 1000) -> list[Entry]:
        """Runs, the newest first."""
        return Index(self.root).entries(text, status, self.owner(key) if self.public else None, most)

    def waiting(self) -> list[str]:
        """Ids of everybody's waiting runs, the next one first: a place in the queue counts all of them."""
        found = Index(self.root).entries(status=QUEUED, most=EVERY)
        return [entry.id for entry in sorted(found, key=lambda entry: (entry.created, entry.id))]

    def folder(self, key: str, name: str) -> RunFolder:
        """A run by its id; what is asked for is only ever compared with names that are there."""
        owner = self.owner(key)
        for path in self.root.iterdir() if self.root.is_dir() else ():
            folder = RunFolder(path)
            if path.name == name and not name.startswith("."):
                if not self.public or folder.head().get("owner") == owner:
                    return folder
                break
        raise BadRequest(f"There is no run {str(name)[:40]!r} here; choose one from the list of runs.")

    def enter(self, key: str, grid: Grid) -> Entered:
        """Put a grid's cells into the queue; those that are done are left, those that ended early go on."""
        owner = self.owner(key)
        for cell in grid.cells:
            self._check(cell)
        before = [folder.status if folder else "" for _, folder in there(grid, self.root, owner)]
        done = before.count(DONE)
        new = len(before) - done - sum(status in OPEN for status in before)
        self._check_room(key, new)
        return Entered(tuple(enter(grid, self.root, owner)), new, done)

    def accept(self, file: Path, format_: str, skip_bad: bool = False) -> str:
        """Keep a copy of a file of records, which is read whole before; gives what a grid calls it."""
        load_dataset(f"{format_}:{file}", skip_bad)
        self._drop_uploads()
        if self.limits and _bytes(self.uploads) > self.limits.all_stored:
            raise BadRequest("The files of all visitors together take too much room at present; try again in an hour.")
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", file.stem)[:40].strip("-") or "records"
        name = f"{stem}-{hashlib.sha256(file.read_bytes()).hexdigest()[:10]}{file.suffix.lower()}"
        self.uploads.mkdir(parents=True, exist_ok=True)
        with whole(self.uploads / name) as part:
            shutil.copyfile(file, part)
        return f"{format_}:{name}"

    def resume(self, key: str, name: str) -> None:
        """Put a run that ended early back into the queue."""
        folder = self.folder(key, name)
        self._check_room(key, 1)
        folder.queue()

    def cancel(self, key: str, names: Iterable[str]) -> int:
        """Cancel those of the runs that wait or go on; gives how many there were."""
        going = [folder for name in names if (folder := self.folder(key, name)).status in OPEN]
        for folder in going:
            folder.cancel()
        return len(going)

    def delete(self, key: str, names: Sequence[str]) -> None:
        """Remove runs for good: all, or none while one still runs."""
        found = [self.folder(key, name) for name in names]
        if running := [folder.id for folder in found if folder.status == RUNNING]:
            raise BadRequest(f"Run {running[0]} is still running; cancel it before deleting it.")
        for folder in found:
            folder.delete()
        self._drop_uploads()

    def export(self, key: str, name: str, file: Path) -> None:
        """Write a run as a bundle."""
        folder = self.folder(key, name)
        if folder.status not in ENDED:
            raise BadRequest(f"Run {folder.id} has not ended; wait for its end, or cancel it.")
        pack(folder.path, file)

    def take_in(self, key: str, file: Path) -> RunFolder:
        """Import a bundle as the visitor's own run."""
        owner = self.owner(key)
        self._check_room(key, 0)
        folder = import_run(file, self.root)
        if owner:
            folder.update(owner=owner)
        return folder

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

    def _check_room(self, key: str, more: int) -> None:
        """Whether so many more runs may wait; makes room on the disc where all visitors together took too much."""
        limits = self.limits
        if limits is None:
            return
        own = self.entries(key, most=EVERY)
        if (waiting := sum(entry.status in OPEN for entry in own)) + more > limits.waiting:
            raise BadRequest(
                f"{more} more runs were asked for while {waiting} of yours wait or run, at most {limits.waiting} may "
                "on this public page; wait for them, or ask for fewer."
            )
        if (used := sum(_bytes(self.root / entry.id) for entry in own)) > limits.stored:
            raise BadRequest(
                f"Your runs take {used / 2**20:.0f} MB, at most {limits.stored / 2**20:.0f} are kept on this public "
                "page; export and delete some."
            )
        everyone = [entry for entry in Index(self.root).entries(most=EVERY) if entry.owner]
        if sum(entry.status in OPEN for entry in everyone) + more > limits.all_waiting:
            raise BadRequest(f"More than {limits.all_waiting} runs of all visitors wait already; try again later.")
        self._make_room(everyone, limits.all_stored)

    def _make_room(self, everyone: Sequence[Entry], most: int) -> None:
        """The oldest ended runs leave until all visitors' runs together take no more than they may."""
        sizes = {entry.id: _bytes(self.root / entry.id) for entry in everyone}
        total = sum(sizes.values())
        for entry in sorted(everyone, key=lambda entry: entry.created):
            if total <= most:
                break
            if entry.status in ENDED:
                RunFolder(self.root / entry.id).delete()
                total -= sizes[entry.id]
        self._drop_uploads()

    def _drop_uploads(self) -> None:
        """Remove uploaded files that no run names any more."""
        named = {_file_of(folder) for folder in folders(self.root)}
        for file in self.uploads.iterdir() if self.uploads.is_dir() else ():
            if file.name not in named and time.time() - file.stat().st_mtime > FRESH:
                file.unlink(missing_ok=True)


def _bytes(folder: Path) -> int:
    """What a folder takes on the disc."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _file_of(folder: RunFolder) -> str:
    """The file a run's records come from; nothing where it cannot be read."""
    try:
        return str(folder.head()["config"]["dataset"]).partition(":")[2]
    except (BadRequest, KeyError, TypeError):
        return ""
