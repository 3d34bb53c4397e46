"""Folders that are written whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from editing_core.errors import BadRequest
from editing_core.files import check_folder


def check_place(folder: Path, own: frozenset[str] = frozenset()) -> None:
    """BadRequest unless an export can be written to this folder; nothing is made yet.

    own: names of files an earlier export may have left there.
    """
    if folder.exists() and not folder.is_dir():
        raise BadRequest(f"{folder.name} is a file, an export needs a folder; name another folder.")
    others = sorted({p.name for p in folder.iterdir()} - own) if folder.exists() else []
    if others:
        raise BadRequest(f"{folder.name} holds {others[0][:60]!r} already; name another folder, or empty this one.")
    check_folder(folder)


@contextmanager
def whole_folder(folder: Path, own: frozenset[str] = frozenset()) -> Iterator[Path]:
    """A folder to fill that becomes `folder` at the end of the block, and vanishes when that is not reached.

    own: as in `check_place`; a folder with nothing else in it is replaced. BadRequest when it cannot be written.
    """
    folder = folder.resolve()
    check_place(folder, own)
    part = _beside(folder, "part")
    try:
        part.mkdir(parents=True)
        yield part
        _put(part, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or "the disk may be full"
        raise BadRequest(f"{folder.name} could not be written ({reason}); name another folder.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _beside(folder: Path, kind: str) -> Path:
    """A hidden name in the same folder, so that renaming is one step of the file system."""
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.{kind}")


def _put(part: Path, folder: Path) -> None:
    """Rename a filled folder; what lay there before goes only once the new one is in its place."""
    if not folder.exists():
        os.rename(part, folder)
        return
    old = _beside(folder, "old")
    os.rename(folder, old)
    try:
        os.rename(part, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
