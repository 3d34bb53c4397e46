"""Files: what this server wrote for downloads, in a temporary folder of its own that goes with it."""

import secrets
import shutil
import tempfile
import weakref
from collections import deque
from pathlib import Path

KEPT = 50  # downloads; the oldest leaves first


class Files:
    """Places for files to be downloaded, each in a folder that nobody can guess."""

    def __init__(self, kept: int = KEPT) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="editscope-"))
        self._kept, self._places = kept, deque[Path]()
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def place(self, name: str) -> Path:
        """Where to write a file of that name."""
        folder = self._folder / secrets.token_urlsafe(12)
        folder.mkdir()
        self._places.append(folder)
        while len(self._places) > self._kept:
            shutil.rmtree(self._places.popleft(), ignore_errors=True)
        return folder / name
