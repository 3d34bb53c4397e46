"""Run bundles: a finished run as one zip file, to keep, hand on and import elsewhere.

In: a run's folder, or a bundle from anyone. Out: a zip with exactly the files of a run and a `bundle.json` that names
the SHA-256 and size of each; or a run's folder under a new id. A bundle is not trusted: every name, size and file is
checked before a run is visible, nothing in it is ever executed, and a refused one leaves nothing behind.
"""

import csv
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from editing_core.errors import BadRequest
from editing_core.files import whole
from editing_core.models.edits import load
from editing_core.runs.folder import RECORDS, ROUNDS, now
from editing_core.runs.record import SCHEMA, Rounds

FORMAT = "editscope-run-1"
RUN, MANIFEST = "run.json", "bundle.json"
TABLES = ("iterations.csv", "cases.csv", "checkpoints.csv", "beside_paper.csv")
PROBES, DELTA = "probes.parquet", "delta.safetensors"
FILES = (RUN, *TABLES, RECORDS, ROUNDS, PROBES, DELTA, "log.txt")
REQUIRED = (MANIFEST, RUN, "iterations.csv")
UNFINISHED = ("queued", "running")
FINISHED = ("done", "failed", "cancelled", "interrupted")

MAX_BYTES = 2 * 2**30  # all files together, unpacked
MAX_RATIO = 200  # unpacked over packed
MAX_JSON = 16 * 2**20
MAX_RECORDS = 64 * 2**20  # as many bytes as any file of records may have
MAX_DEPTH = 64  # levels of a JSON file
MAX_TABLE = 256 * 2**20  # one CSV file
MAX_COLUMNS = 1_000
MAX_MEMORY = 4 * 2**30  # of the process that tries to read the probe table
MAX_SECONDS = 120  # of its life

_ID = re.compile(r"[A-Za-z0-9_-]{6,64}")
_CHUNK = 2**20
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # flags of a member: by password, strongly, with masked headers
_FOLDER_OR_LABEL = 0x10 | 0x08  # DOS attributes of a member
# A process of its own: three kilobytes of Parquet can hold gigabytes of equal values, and a damaged file can end the
# process that reads it without an exception.
_READ = """
import sys
import pandas
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
except (ImportError, OSError, ValueError):
    pass  # a system without such bounds: time is bounded still
pandas.read_parquet(sys.argv[1], use_threads=False)
"""
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError)

_OTHER_BUNDLE = "choose a run bundle that EditScope packed"
_OTHER_RUN = "choose another run"

Stamp = dict[str, str | int]
"""What bundle.json says of a file: "sha256" and "size"."""


def _nothing_more(_folder: Path) -> None:
    """The check of someone who asks for no other than those below."""


def pack(folder: Path, target: Path) -> None:
    """Write the run in `folder` as a bundle, whole or not at all; BadRequest when it has not finished.

    The same run gives the same bytes. The owner's key and the working state stay behind.
    """
    run = _read_object(folder / RUN, _OTHER_RUN)
    if run.get("status") in UNFINISHED:
        raise BadRequest(f"The run is {run['status']}, only a finished one can be packed; wait for its end.")
    _check_run(run, _OTHER_RUN)
    if not (folder / "iterations.csv").is_file():
        raise BadRequest("The run has no iterations.csv, only measured runs can be packed; choose another run.")
    sources: dict[str, Path | bytes] = {name: folder / name for name in FILES if (folder / name).is_file()}
    sources[RUN] = told = _without_owner(run)
    if len(told) > MAX_JSON:
        raise _refusal("run.json is too large", f"at most {MAX_JSON:,} bytes can be packed", _OTHER_RUN)
    with whole(target) as part:
        total = _write(part, sources, zipfile.ZIP_DEFLATED)
        if total > MAX_RATIO * part.stat().st_size:  # `unpack` would take it for a bomb
            _write(part, sources, zipfile.ZIP_STORED)


def unpack(
    bundle: Path, root: Path, new_id: str, check: Callable[[Path], None] = _nothing_more, most: int = sys.maxsize
) -> Path:
    """Import a bundle as the run `new_id` below `root` and give its folder; BadRequest when anything in it is wrong.

    check: of the folder as it will be, before it can be seen; may add to run.json, raises BadRequest.
    most: bytes of all its files, unpacked; never more than MAX_BYTES.
    new_id: 6 to 64 letters, digits, "-" or "_", not in use. ValueError for another form: ids are made, never typed.
    """
    if not _ID.fullmatch(new_id):
        raise ValueError(f"{new_id!r} is no id of a run")
    place = root / new_id
    if place.exists():
        raise BadRequest(f"There is a run {new_id} already, every import needs an id of its own; import it again.")
    with _hidden(place) as part:
        with _opened(bundle) as archive:
            stamps = _extract(archive, bundle, part, min(most, MAX_BYTES))
        _check_manifest(part / MANIFEST, stamps)
        run = _read_object(part / RUN, _OTHER_BUNDLE)
        _check_run(run, _OTHER_BUNDLE)
        for name in (name for name in _CHECKS if name in stamps):
            _CHECKS[name](part / name)
        (part / MANIFEST).unlink()
        (part / RUN).write_bytes(_without_owner({**run, **_imported(run, new_id)}))
        check(part)
        os.rename(part, place)
    return place


def _refusal(got: str, allowed: str, advice: str = _OTHER_BUNDLE) -> BadRequest:
    """One sentence: what came, what is allowed, what to do."""
    return BadRequest(f"{got}, {allowed}; {advice}.")


def _shown(value: Any) -> str:
    """Any value on one short line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextmanager
def _hidden(place: Path) -> Iterator[Path]:
    """A hidden folder beside `place`; the block renames it, and whatever is left of it afterwards is removed."""
    part = place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
        yield part
    except OSError as error:
        needed = f"a folder with room is needed at {place.parent.name}"
        raise _refusal(f"The run could not be written ({error.strerror})", needed, "make room there") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _imported(run: Mapping[str, Any], new_id: str) -> dict[str, Any]:
    """What a run is from now on. created_there: when it was created where it was done, however often imported."""
    there = run.get("created_there", run.get("created", ""))
    return {"id": new_id, "imported": True, "created": now("microseconds"), "created_there": there}


def _without_owner(run: Mapping[str, Any]) -> bytes:
    """run.json without the key that tells its owner."""
    told = {key: value for key, value in run.items() if key != "owner"}
    # Half a surrogate pair has no UTF-8; its backslash form is JSON and is read back as it was.
    return json.dumps(told, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace")


def _copy(chunks: Iterable[bytes], file: IO[bytes], most: int, refusal: BadRequest) -> Stamp:
    """Write the chunks; gives their stamp, or raises `refusal` before more than `most` bytes are written."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        size += len(chunk)
        if size > most:
            raise refusal
        digest.update(chunk)
        file.write(chunk)
    return {"sha256": digest.hexdigest(), "size": size}


def _write(part: Path, sources: Mapping[str, Path | bytes], method: int) -> int:
    """The zip with its bundle.json; gives the bytes of all its files, unpacked."""
    total = 0
    stamps: dict[str, Stamp] = {}
    with zipfile.ZipFile(part, "w") as archive:
        for name, source in sources.items():
            stamps[name] = _add(archive, name, source, method, MAX_BYTES - total)
            total += int(stamps[name]["size"])
        manifest = json.dumps({"format": FORMAT, "files": stamps}, indent=1).encode()
        return total + int(_add(archive, MANIFEST, manifest, method, MAX_BYTES - total)["size"])


def _add(archive: zipfile.ZipFile, name: str, source: Path | bytes, method: int, most: int) -> Stamp:
    """One file into the zip, at most `most` bytes; gives its stamp."""
    info = zipfile.ZipInfo(name)  # of 1980, whenever it is packed
    # Tensors and Parquet are dense already.
    info.compress_type = zipfile.ZIP_STORED if name in (PROBES, DELTA) else method
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.file_size = len(source) if isinstance(source, bytes) else source.stat().st_size  # decides on zip64
    refusal = _refusal(f"{name} makes the run too large", f"{MAX_BYTES:,} bytes in all can be packed", _OTHER_RUN)
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file, archive.open(info, "w") as out:
        return _copy(iter(lambda: file.read(_CHUNK), b""), out, most, refusal)


class _ShortReads(io.BufferedReader):
    """A file of which at most a chunk is read at once: zipfile reads a table of contents of any declared size."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As in the base."""
        if size is not None and size > _CHUNK:
            raise _refusal("The bundle's table of contents is too long", f"{len(FILES) + 1} files are allowed")
        return super().read(size)


@contextmanager
def _opened(bundle: Path) -> Iterator[zipfile.ZipFile]:
    """The bundle as a zip to read."""
    try:
        raw = io.FileIO(bundle)
    except OSError as error:
        raise _refusal(f"{_shown(bundle.name)} could not be read ({error.strerror})", "a zip file is needed") from error
    with _ShortReads(raw) as file:
        with _damage(bundle.name):
            if not zipfile.is_zipfile(file):
                raise _refusal(f"{_shown(bundle.name)} is no zip file or its end is missing", "a zip is needed")
            archive = zipfile.ZipFile(file)
        with archive:
            yield archive


@contextmanager
def _damage(name: str) -> Iterator[None]:
    """Errors of reading a zip as a refusal. Only reading belongs into the block."""
    try:
        yield
    except _DAMAGED as error:
        raise _refusal(f"{_shown(name)} is damaged", "a whole zip file is needed") from error


def _extract(archive: zipfile.ZipFile, bundle: Path, part: Path, room: int) -> dict[str, Stamp]:
    """Every member into the folder `part`, once names, kinds and sizes are checked; gives their stamps.

    room: bytes of all of them.
    """
    members = archive.infolist()
    _check_members(members)
    packed = bundle.stat().st_size
    most = min(room, MAX_RATIO * packed)
    refusal = _refusal(
        f"The bundle of {packed:,} bytes holds more than {most:,}",
        f"{MAX_RATIO} times its size and {room:,} bytes in all are allowed",
    )
    if sum(member.file_size for member in members) > most:
        raise refusal
    stamps: dict[str, Stamp] = {}
    for member in members:
        with (part / member.filename).open("xb") as file:
            stamps[member.filename] = _copy(_content(archive, member), file, most, refusal)
        most -= int(stamps[member.filename]["size"])
    return stamps


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """A member in chunks; its checksum is compared at the end."""
    with _damage(member.filename), archive.open(member) as file:
        while chunk := file.read(_CHUNK):
            yield chunk
        if file.tell() != member.file_size:
            raise zipfile.BadZipFile("it ends before its declared size")


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    """Exactly files of a run, each once, and those that no run is without."""
    if len(members) > len(FILES) + 1:
        raise _refusal(f"The bundle holds {len(members):,} files", f"{len(FILES) + 1} are allowed")
    for member in members:
        _check_member(member)
    names = Counter(member.filename for member in members)
    for name, count in names.items():
        if count > 1:
            raise _refusal(f"The bundle holds {name} {count} times", "every file is allowed once")
    for name in REQUIRED:
        if name not in names:
            raise _refusal(f"The bundle holds no {name}", f"{', '.join(REQUIRED)} are needed")


def _check_member(member: zipfile.ZipInfo) -> None:
    """An allowed name, an ordinary file, a method that unpacks within bounds, and no password."""
    name, mode = member.orig_filename, member.external_attr >> 16
    # zipfile cuts a name at its first zero byte, and may take another one from an extra field.
    if name != member.filename or name not in (MANIFEST, *FILES):
        raise _refusal(f"The bundle holds a file {_shown(name)}", f"only {', '.join((MANIFEST, *FILES))} are allowed")
    if member.flag_bits & _ENCRYPTED:
        raise _refusal(f"{name} is encrypted", "only files without a password are allowed")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or member.external_attr & _FOLDER_OR_LABEL:
        raise _refusal(f"{name} is a link, a folder or a device", "only ordinary files are allowed")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refusal(f"{name} is compressed by method {member.compress_type}", "deflated or stored ones are allowed")


def _check_manifest(path: Path, stamps: Mapping[str, Stamp]) -> None:
    """bundle.json tells of every other file what really came."""
    manifest = _read_object(path, _OTHER_BUNDLE)
    if manifest.get("format") != FORMAT:
        raise _refusal(f"The bundle's format is {_shown(manifest.get('format'))}", f"this EditScope reads {FORMAT}")
    told = manifest.get("files")
    if not isinstance(told, dict) or told.keys() != stamps.keys() - {MANIFEST}:
        raise _refusal("bundle.json lists other files than came", "it must list every other file")
    for name, stamp in told.items():
        if stamp != stamps[name]:
            raise _refusal(f"{name} is not the file that was packed", "size and SHA-256 must be those in bundle.json")


def _check_run(run: Mapping[str, Any], advice: str) -> None:
    """A finished run of a schema that is read here."""
    schema, status = run.get("schema"), run.get("status")
    if type(schema) is not int or schema < 1:
        raise _refusal(f"run.json has the schema {_shown(schema)}", f"1 to {SCHEMA} are allowed", advice)
    if schema > SCHEMA:
        raise _refusal(f"run.json has the schema {_shown(schema)}", f"1 to {SCHEMA} are read here", "update EditScope")
    if status not in FINISHED:
        raise _refusal(f"run.json has the status {_shown(status)}", f"{', '.join(FINISHED)} are allowed", advice)
    if not isinstance(run.get("id"), str) or not isinstance(run.get("config"), dict):
        raise _refusal("run.json lacks id or config", "a text and an object are needed", advice)


def _read_object(path: Path, advice: str) -> dict[str, Any]:
    """The JSON object in a file."""
    value: dict[str, Any] = _read_json(path, (dict, "object"), MAX_JSON, advice)
    return value


def _read_json(path: Path, wanted: tuple[type, str], most: int, advice: str) -> Any:
    """The value in a file, as UTF-8 and within bounds. wanted: its type, and JSON's word for it."""
    kind, word = wanted
    needed = f"a JSON {word} in UTF-8 of at most {most // 2**20} MB and {MAX_DEPTH} levels is needed"
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
        value = json.loads(raw.decode("utf-8")) if len(raw) <= most else None
    except (OSError, ValueError, RecursionError) as error:
        raise _refusal(f"{path.name} could not be read as JSON", needed, advice) from error
    if len(raw) > most:
        raise _refusal(f"{path.name} is too large", needed, advice)
    if not isinstance(value, kind):
        raise _refusal(f"{path.name} holds no {word}", needed, advice)
    if _deeper(value, MAX_DEPTH):
        raise _refusal(f"{path.name} is nested too deeply", needed, advice)
    return value


def _deeper(value: Any, most: int) -> bool:
    """Whether a JSON value has more than `most` levels; without recursion, which a deep one would exhaust."""
    level = [value]
    for _ in range(most):
        level = [child for item in level for child in _children(item)]
    return bool(level)


def _children(item: Any) -> Iterable[Any]:
    """What a JSON value holds directly."""
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


def _check_table(path: Path) -> None:
    """A CSV table with named columns and rows of their number."""
    try:
        if path.stat().st_size > MAX_TABLE:
            raise ValueError("too large")
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            columns = next(rows, [])
            _check_columns(columns)
            if any(len(row) not in (0, len(columns)) for row in rows):
                raise ValueError("a row of another length")
    except (ValueError, csv.Error) as error:
        needed = f"rows under at most {MAX_COLUMNS:,} column names and {MAX_TABLE // 2**20} MB are needed"
        raise _refusal(f"{path.name} is not readable as CSV", needed) from error


def _check_columns(columns: list[str]) -> None:
    """At least one column, not too many, and none twice."""
    if not 0 < len(columns) <= MAX_COLUMNS or len(set(columns)) != len(columns):
        raise ValueError("no table")


def _check_iterations(path: Path) -> None:
    """A CSV table with a column k."""
    _check_table(path)
    with path.open(encoding="utf-8", newline="") as file:
        if "k" not in next(csv.reader(file)):
            raise _refusal(f"{path.name} has no column k", "one row per iteration k is needed")


def _check_probes(path: Path) -> None:
    """A Parquet table that pandas reads within bounds; tried in another process, see _READ."""
    alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # room for more threads would count as memory
    command = [sys.executable, "-P", "-c", _READ, str(path), str(MAX_MEMORY)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=MAX_SECONDS, env=os.environ | alone)
    except subprocess.SubprocessError as error:
        needed = f"a table that is read within {MAX_MEMORY // 2**30} GB and {MAX_SECONDS} seconds is needed"
        raise _refusal(f"{path.name} is not readable as Parquet", needed) from error


def _check_records(path: Path) -> None:
    """A list; what a record is decides `check`, for nothing here knows data sets."""
    _read_json(path, (list, "list"), MAX_RECORDS, _OTHER_BUNDLE)


def _check_rounds(path: Path) -> None:
    """What `Rounds` keeps."""
    try:
        Rounds.of(_read_object(path, _OTHER_BUNDLE))
    except ValueError as error:
        raise _refusal(f"{path.name} tells no rounds", "histories and proofs of every iteration are needed") from error


def _check_delta(path: Path) -> None:
    """An edit that `edits.load` reads."""
    try:
        load(path)
    except Exception as error:
        # `load` refuses most; what else the libraries below it raise on damaged input has no common base.
        raise _refusal(f"{path.name} is not readable as an edit", "a file saved by EditScope is needed") from error


_CHECKS: dict[str, Callable[[Path], None]] = {
    **dict.fromkeys(TABLES, _check_table),
    "iterations.csv": _check_iterations,
    RECORDS: _check_records,
    ROUNDS: _check_rounds,
    DELTA: _check_delta,
    PROBES: _check_probes,  # the slowest is last
}
