"""What was measured of unedited models, kept so that no later run measures it again.

A measurement is found by everything that decides it: the model and its revision, its dtype and kind of device, the
conventions, and all that is asked. Models whose revision is not known are measured every time. In memory a few are
kept, on disk as many as fit into `ON_DISK` bytes, the least used of them going first.
"""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

import pandas as pd

from editing_core.conventions import Conventions
from editing_core.errors import BadRequest
from editing_core.files import whole
from editing_core.models.language_model import LanguageModel
from editing_core.models.tokens import PLAIN

VERSION = 1  # of how things are measured: raised when numbers change, so that older ones are not found
IN_MEMORY, ON_DISK = 32, 256 * 2**20

Measure = Callable[[], pd.DataFrame]


class Unedited:
    """root: the folder of kept tables; None keeps them in memory only."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root
        self._tables: OrderedDict[str, pd.DataFrame] = OrderedDict()
        self._lock = Lock()

    def table(
        self, lm: LanguageModel, conventions: Conventions, asked: Sequence[Any], measure: Measure
    ) -> pd.DataFrame:
        """The table that `measure` gives for the unedited model. asked: all it depends on besides, plain values."""
        if lm.revision == "local" or lm.edited:
            return measure()
        key = _key(lm, conventions, asked)
        found = self._recalled(key)
        if found is None:
            found = measure()
            self._keep(key, found)
        return found.copy()

    def _recalled(self, key: str) -> pd.DataFrame | None:
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
                return self._tables[key]
        if self.root is None:
            return None
        path = self.root / f"{key}.json"
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            table = pd.DataFrame(kept["rows"], columns=kept["columns"])
            os.utime(path)
        except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged
            return None
        self._remember(key, table)
        return table

    def _keep(self, key: str, table: pd.DataFrame) -> None:
        self._remember(key, table)
        if self.root is None:
            return
        rows = list(zip(*(table[name].tolist() for name in table), strict=True))
        with suppress(BadRequest), whole(self.root / f"{key}.json") as part:  # a full disk ends no run
            part.write_text(json.dumps({"columns": list(table), "rows": rows}), encoding="utf-8")
        self._shrink()

    def _remember(self, key: str, table: pd.DataFrame) -> None:
        with self._lock:
            self._tables[key] = table
            while len(self._tables) > IN_MEMORY:
                self._tables.popitem(last=False)

    def _shrink(self) -> None:
        """Drop the files that were least recently used until the rest fits."""
        assert self.root is not None
        left = ON_DISK
        for path in sorted(self.root.glob("*.json"), key=lambda p: p.stat().st_mtime, reverse=True):
            left -= path.stat().st_size
            if left < 0:
                path.unlink(missing_ok=True)


IN_THIS_PROCESS = Unedited()


def _key(lm: LanguageModel, conventions: Conventions, asked: Sequence[Any]) -> str:
    model: list[Any] = [lm.name, lm.revision, lm.numbers, lm.device.type]
    model += [] if lm.frame == PLAIN else [asdict(lm.frame)]
    switches = {name: value for name, value in asdict(conventions).items() if name != "chat"}  # the frame tells it
    text = json.dumps([VERSION, model, switches, asked], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
