"""An adapter as one zip file. Zips come from anyone: names, kinds and sizes are checked before anything is unpacked."""

import io
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from editing_core.errors import BadRequest
from editing_core.export.adapter import CONFIG, OWN, TENSORS
from editing_core.export.card import README
from editing_core.files import whole

MAX_TENSORS = 2 * 2**30
MAX_TEXT = 2**20
MAX_RATIO = 200  # unpacked over packed
LIMITS = {CONFIG: MAX_TEXT, TENSORS: MAX_TENSORS, README: MAX_TEXT}
_CHUNK = 2**20
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # flags of a member: by password, strongly, with masked headers
_FOLDER_OR_LABEL = 0x10 | 0x08  # DOS attributes of a member
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError)
_OTHER = "choose the zip of an adapter"


def pack_adapter(folder: Path, target: Path) -> None:
    """Write the files of the adapter in `folder` as a zip, whole or not at all."""
    with whole(target) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:  # tensors are dense already
        for name in sorted(OWN):
            if (folder / name).is_file():
                archive.write(folder / name, name)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A temporary folder with the files of an adapter's zip; BadRequest for any other zip, before it is unpacked."""
    with tempfile.TemporaryDirectory(prefix="editscope-import-") as place:
        try:
            _unpack(path, Path(place))
        except _DAMAGED as error:
            raise BadRequest(f"{path.name[:80]} is no zip file or damaged; {_OTHER}.") from error
        yield Path(place)


class _ShortReads(io.BufferedReader):
    """A file of which at most a chunk is read at once: zipfile reads a table of contents of any declared size."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As in the base."""
        if size is not None and size > _CHUNK:
            raise BadRequest(f"The zip's table of contents is too long, {len(LIMITS)} files are allowed; {_OTHER}.")
        return super().read(size)


def _unpack(path: Path, place: Path) -> None:
    with _ShortReads(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _check_members(members, path.stat().st_size)
        for member in members:
            # The name is one of three, so it leads nowhere else.
            with archive.open(member) as source, (place / member.filename).open("xb") as target:
                shutil.copyfileobj(source, target, _CHUNK)  # never more than was declared
            if (place / member.filename).stat().st_size != member.file_size:
                raise zipfile.BadZipFile("it ends before its declared size")


def _check_members(members: list[zipfile.ZipInfo], packed: int) -> None:
    """The two files of an adapter, perhaps a README.md, each once and within bounds; nothing else."""
    for member in members:
        _check_member(member)
    names = Counter(member.filename for member in members)
    twice = [name for name, count in names.items() if count > 1]
    missing = [name for name in (CONFIG, TENSORS) if name not in names]
    if twice or missing:
        wrong = f"holds {twice[0]} more than once" if twice else f"holds no {missing[0]}"
        raise BadRequest(f"The zip {wrong}, {CONFIG} and {TENSORS} are needed once each; {_OTHER}.")
    size = sum(member.file_size for member in members)
    if size > MAX_RATIO * packed:
        raise BadRequest(
            f"The zip of {packed:,} bytes unpacks to {size:,}, at most {MAX_RATIO} times its size is allowed; {_OTHER}."
        )


def _check_member(member: zipfile.ZipInfo) -> None:
    """An allowed name, an ordinary file, a size within bounds, a method that unpacks, and no password."""
    name, mode = member.orig_filename, member.external_attr >> 16
    # zipfile cuts a name at its first zero byte, and may take another one from an extra field.
    if name != member.filename or name not in LIMITS:
        raise BadRequest(f"The zip holds a file {name[:60]!r}, only {', '.join(LIMITS)} are allowed; {_OTHER}.")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or member.external_attr & _FOLDER_OR_LABEL:
        raise BadRequest(f"{name} in the zip is a link, a folder or a device, only files are allowed; {_OTHER}.")
    if member.flag_bits & _ENCRYPTED:
        raise BadRequest(f"{name} in the zip is encrypted, only files without a password are allowed; {_OTHER}.")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadRequest(f"{name} in the zip is packed by method {member.compress_type}, which is not read; {_OTHER}.")
    if member.file_size > LIMITS[name]:
        raise BadRequest(f"{name} in the zip takes {member.file_size:,} bytes, at most {LIMITS[name]:,}; {_OTHER}.")
