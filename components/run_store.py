"""RunStore: the finished runs of this server, kept on the server and found by their unguessable ids.

Pages keep only lists of ids. The store is bounded, in runs and in bytes of their edits: the run unused for longest
leaves first.
"""

import json
import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from editing_core.runs.record import RunResult
from editing_core.session import Look

CAPACITY = 200
ROOM = 2**30  # bytes of edits; a dense edit of the bundled model has 24 million


@dataclass(eq=False)
class StoredRun:
    """A run and the closer looks taken at it so far, by (case id, k).

    distances: by case id its neighbors' distances by prompt, as `encoder` measures them.
    """

    run: RunResult
    looks: dict[tuple[int | str, int], Look] = field(default_factory=dict)
    distances: dict[int | str, dict[str, float]] = field(default_factory=dict)
    encoder: str = ""
    files: tuple[str, str] | None = None

    @property
    def size(self) -> int:
        """Bytes of its edits."""
        return sum(delta.size for delta in self.run.deltas if delta)


class RunStore:
    """Runs by id, with their download files in a temporary folder of its own."""

    def __init__(self, capacity: int = CAPACITY, room: int = ROOM) -> None:
        self.capacity, self.room = capacity, room
        self._runs: OrderedDict[str, StoredRun] = OrderedDict()
        self._lock = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="editscope-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def add(self, stored: StoredRun) -> str:
        """Keep a run; gives its id."""
        with self._lock:
            self._runs[stored.run.id] = stored
            self._runs.move_to_end(stored.run.id)
            while len(self._runs) > 1 and (len(self._runs) > self.capacity or self._size() > self.room):
                old, _ = self._runs.popitem(last=False)
                shutil.rmtree(self._place(old), ignore_errors=True)
        return stored.run.id

    def get(self, run_id: str) -> StoredRun | None:
        """The run of that id, or None when it was never there or has left."""
        with self._lock:
            if run_id in self._runs:
                self._runs.move_to_end(run_id)
            return self._runs.get(run_id)

    def files(self, stored: StoredRun) -> tuple[str, str]:
        """Paths of the run as JSON and of its iteration table as CSV, written at first use."""
        if stored.files is None:
            place = self._place(stored.run.id)
            place.mkdir(exist_ok=True)
            whole, table = place / "editscope-run.json", place / "editscope-iterations.csv"
            whole.write_text(json.dumps(stored.run.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")
            stored.run.iterations.to_csv(table, index=False)
            stored.files = (str(whole), str(table))
        return stored.files

    def _size(self) -> int:
        return sum(stored.size for stored in self._runs.values())

    def _place(self, run_id: str) -> Path:
        return self._folder / f"run{run_id}"

    def __len__(self) -> int:
        with self._lock:
            return len(self._runs)
