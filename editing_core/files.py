"""Files that are written whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from editing_core.errors import BadRequest


def check_folder(path: Path) -> None:
    """BadRequest when no folder can be written there; asked before long work begins, and nothing is made yet."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise BadRequest(f"{path.name} could not be written, {there.name} is no folder to write in; choose another.")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write that becomes `path` at the end of the block, and vanishes when that is not reached.

    BadRequest when it cannot be written.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise BadRequest(f"{path.name} could not be written ({error.strerror}); choose another place.") from error
    finally:
        with suppress(OSError):  # there is none where its folder could not be made
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """A whole text file or none."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")
