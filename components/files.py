"""Files: what this server wrote for downloads, in a temporary folder of its own that goes with it."""

import secrets
import shutil
import tempfile
import weakref
from collections import deque
from pathlib import Path

KEPT = 50  # downloads
MOST = 2**30  # bytes of all downloads


class Files:
    """Places for files to be downloaded, each in a folder that nobody can guess."""

    def __init__(self, kept: int = KEPT) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="editscope-"))
        self._kept, self._places = kept, deque[Path]()
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def place(self, name: str) -> Path:
        """Where to write a file of that name. What was written longest ago leaves when there is too much."""
        sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in self._places]
        while self._places and (len(sizes) >= self._kept or sum(sizes) > MOST):
            shutil.rmtree(self._places.popleft(), ignore_errors=True)
            sizes.pop(0)
        folder = self._folder / secrets.token_urlsafe(12)
        folder.mkdir()
        self._places.append(folder)
        return folder / name
