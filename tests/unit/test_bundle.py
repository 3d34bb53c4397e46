"""Run bundles: what is packed comes back equal, and whatever else comes as a bundle is refused and leaves nothing."""

import hashlib
import io
import json
import pickle
import stat
import struct
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from editing_core.bench.stored import import_run
from editing_core.errors import BadRequest
from editing_core.models import edits
from editing_core.models.delta import Dense, LowRank, WeightDelta
from editing_core.runs import bundle
from editing_core.runs.bundle import FILES, FORMAT, MANIFEST, pack, unpack
from editing_core.runs.record import SCHEMA

NEW = "new-id_01"
RECORD = {
    "schema": SCHEMA,
    "id": "abc123",
    "status": "done",
    "owner": "5ec4e7",
    "created": "2020-01-01T00:00:00+00:00",
    "config": {"editor": "memit"},
    "more": {"requests": [{"subject": "<b>Zoë</b>", "neighbors": []}]},
    "last": {"ppl": float("nan"), "collapse": float("inf")},
    "half": "\ud800",
}
OPTIONAL = ("cases.csv", "probes.parquet", "checkpoints.csv", "beside_paper.csv", "delta.safetensors", "log.txt")
OPTIONAL += ("records.json", "rounds.json")
FACT = {"subject": "Zoë", "prompt": "{} is in", "target_new": "Rome", "case_id": "two", "source": "form"}
PROOF = {"parameter": "a.weight", "relative_norm": 0.25, "rank": 1, "changed": 5, "total": 6}
ROUND = {"histories": [[{"target": 1.5, "kl": float("nan")}]], "proofs": [[PROOF]], "notes": ["<b>"]}
ROUNDS = {**ROUND, "seconds": 2.5, "edit_seconds": 1.0}


@pytest.fixture
def run(tmp_path):
    """The folder of a finished run with every file there is, and its working state."""
    folder = tmp_path / "runs" / "abc123"
    (folder / "units").mkdir(parents=True)
    iterations = pd.DataFrame({"k": [0, 1], "collapse_ppl": [17.25, None]})
    iterations.to_csv(folder / "iterations.csv", index=False)
    iterations.to_csv(folder / "checkpoints.csv", index=False)
    iterations.head(0).to_csv(folder / "beside_paper.csv", index=False)
    cases = pd.DataFrame({"k": [1, 1], "prompt": ['Zoë said "no",\nand left', "b"], "state": ["edited", None]})
    cases.to_csv(folder / "cases.csv", index=False)
    probes().to_parquet(folder / "probes.parquet", index=False)
    updates = {"a.weight": LowRank(torch.ones(3, 1), torch.ones(1, 2)), "b.weight": Dense(torch.eye(2))}
    WeightDelta(updates, {"editor": "memit"}).save(folder / "delta.safetensors")
    (folder / "run.json").write_text(json.dumps(RECORD))
    (folder / "records.json").write_text(json.dumps([FACT]))
    (folder / "rounds.json").write_text(json.dumps(ROUNDS))
    for name in ("log.txt", "progress.json", "cancel", "run.lock", "notes.md", "units/one.safetensors"):
        (folder / name).write_text("started\n")
    return folder


@pytest.fixture
def root(tmp_path):
    """Where bundles are imported."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def packed(run, tmp_path):
    """The run as a bundle."""
    pack(run, tmp_path / "run.zip")
    return tmp_path / "run.zip"


def probes():
    return pd.DataFrame(
        {
            "case_id": ["1", "two"],
            "number": [0, 1],
            "p_true": [0.5, None],
            "known": [True, False],
            "prompt": ["Zoë is in", None],
            "labels": [[5, 7], []],
        }
    )


def entries(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def record(content):
    return json.loads(content)


def rebuilt(path, files, stamped=True, method=zipfile.ZIP_DEFLATED):
    """Writes the files as a bundle, with a bundle.json that fits them unless they are not to be `stamped`."""
    if stamped:
        files = {name: content for name, content in files.items() if name != MANIFEST}
        stamps = {n: {"sha256": hashlib.sha256(c).hexdigest(), "size": len(c)} for n, c in files.items()}
        files[MANIFEST] = json.dumps({"format": FORMAT, "files": stamps}).encode()
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def unpacked(path, root):
    return unpack(path, root, NEW)


def assert_refused(path, root, match, take=unpacked):
    """One sentence, and nothing is left behind, not even hidden."""
    with pytest.raises(BadRequest, match=match) as caught:
        take(path, root)
    told = str(caught.value)
    assert "\n" not in told
    assert told.endswith(".")
    assert told.count("; ") == 1
    assert list(root.iterdir()) == []


def test_a_run_comes_back_equal(run, packed, root):
    before = contents(run)
    folder = unpack(packed, root, NEW)
    assert folder == root / NEW
    assert [p.name for p in root.iterdir()] == [NEW]
    after = contents(folder)
    assert after.keys() == set(FILES)
    assert {n: c for n, c in after.items() if n != "run.json"} == {
        n: c for n, c in before.items() if n in FILES and n != "run.json"
    }
    told = record(after["run.json"])
    created = told["created"]
    assert abs(datetime.now(UTC) - datetime.fromisoformat(created)) < timedelta(minutes=1)
    expected = {key: value for key, value in RECORD.items() if key != "owner"} | {"id": NEW, "created": created}
    expected |= {"imported": True, "created_there": RECORD["created"]}
    assert sorted(map(repr, told.items())) == sorted(map(repr, expected.items()))  # NaN is not equal to itself
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "probes.parquet"), pd.read_parquet(run / "probes.parquet"))
    loaded = edits.load(folder / "delta.safetensors")
    assert torch.equal(loaded.updates["b.weight"].dense(), torch.eye(2))


def test_the_place_of_imports_is_made(packed, root):
    assert unpack(packed, root / "a" / "b", NEW) == root / "a" / "b" / NEW


def test_an_imported_run_can_be_packed_and_imported_again(packed, root, tmp_path):
    pack(unpack(packed, root, NEW), tmp_path / "again.zip")
    told = record((unpack(tmp_path / "again.zip", root, "third-id") / "run.json").read_bytes())
    assert told["id"] == "third-id"
    assert told["created_there"] == RECORD["created"]
    assert {p.name for p in root.iterdir()} == {NEW, "third-id"}


@pytest.mark.parametrize("left_out", [(), *((name,) for name in OPTIONAL), OPTIONAL], ids=str)
def test_optional_files_may_be_missing(run, root, tmp_path, left_out):
    for name in left_out:
        (run / name).unlink()
    pack(run, tmp_path / "run.zip")
    assert contents(unpack(tmp_path / "run.zip", root, NEW)).keys() == set(FILES) - set(left_out)


@pytest.mark.parametrize("status", ["done", "failed", "cancelled", "interrupted"])
def test_every_finished_run_is_packed(run, root, tmp_path, status):
    (run / "run.json").write_text(json.dumps({**RECORD, "status": status}))
    pack(run, tmp_path / "run.zip")
    assert record((unpack(tmp_path / "run.zip", root, NEW) / "run.json").read_bytes())["status"] == status


def test_owner_and_working_state_stay_behind(packed):
    files = entries(packed)
    assert files.keys() == {*FILES, MANIFEST}
    assert "owner" not in record(files["run.json"])
    assert not any(RECORD["owner"].encode() in content for content in files.values())


def test_the_owner_in_a_foreign_bundle_is_dropped(packed, root):
    files = entries(packed)
    files["run.json"] = json.dumps(RECORD).encode()
    rebuilt(packed, files)
    assert "owner" not in record((unpack(packed, root, NEW) / "run.json").read_bytes())


def test_the_bundle_tells_of_every_file(packed):
    files = entries(packed)
    manifest = record(files.pop(MANIFEST))
    assert manifest["format"] == "editscope-run-1"
    assert manifest["files"] == {n: {"sha256": hashlib.sha256(c).hexdigest(), "size": len(c)} for n, c in files.items()}


def test_the_same_run_gives_the_same_bytes(run, packed, tmp_path):
    (run / "log.txt").touch()
    pack(run, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()


def test_a_run_of_monotonous_text_is_no_bomb(run, root, tmp_path):
    (run / "log.txt").write_text("0" * 4_000_000)
    pack(run, tmp_path / "run.zip")
    assert (unpack(tmp_path / "run.zip", root, NEW) / "log.txt").stat().st_size == 4_000_000


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"status": "queued"}, "The run is queued"),
        ({"status": "running"}, "The run is running"),
        ({"status": "odd"}, "the status 'odd'"),
        ({"schema": "1"}, "the schema '1'"),
        ({"config": None}, "lacks id or config"),
        (None, r"run\.json could not be read as JSON"),
    ],
)
def test_only_finished_runs_are_packed(run, tmp_path, change, match):
    (run / "run.json").write_text("{" if change is None else json.dumps({**RECORD, **change}))
    assert_not_packed(run, tmp_path / "out" / "run.zip", match)


def assert_not_packed(run, target, match):
    with pytest.raises(BadRequest, match=match) as caught:
        pack(run, target)
    assert str(caught.value).count("; ") == 1
    assert not target.parent.exists() or list(target.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["run.json", "iterations.csv"])
def test_a_run_without_its_main_files_is_not_packed(run, tmp_path, name):
    (run / name).unlink()
    assert_not_packed(run, tmp_path / "out" / "run.zip", name)


def test_a_run_too_large_to_be_imported_is_not_packed(run, packed, root, tmp_path, monkeypatch):
    sizes = {name: len(content) for name, content in entries(packed).items()}
    total = sum(sizes.values())
    for most in (100, total - sizes[MANIFEST] - 1, total - 1):  # the first, the last file and bundle.json in turn
        monkeypatch.setattr(bundle, "MAX_BYTES", most)
        assert_not_packed(run, tmp_path / "out" / "run.zip", "makes the run too large")
    monkeypatch.setattr(bundle, "MAX_BYTES", total)
    pack(run, tmp_path / "run.zip")
    unpack(tmp_path / "run.zip", root, NEW)


def test_a_record_too_large_to_be_imported_is_not_packed(run, tmp_path, monkeypatch):
    (run / "run.json").write_text(json.dumps({**RECORD, "notes": list(range(100))}, separators=(",", ":")))
    monkeypatch.setattr(bundle, "MAX_JSON", (run / "run.json").stat().st_size)  # but not with line breaks
    assert_not_packed(run, tmp_path / "out" / "run.zip", "too large")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("defect")])
@pytest.mark.parametrize("place", ["copy", "replace"])
def test_an_interrupted_pack_leaves_nothing(run, tmp_path, monkeypatch, error, place):
    target = tmp_path / "out" / "run.zip"
    interrupt(monkeypatch, place, error)
    with pytest.raises(BadRequest if isinstance(error, OSError) else type(error)):
        pack(run, target)
    assert list(target.parent.iterdir()) == []


def test_an_interrupted_pack_leaves_the_earlier_bundle(run, packed, monkeypatch):
    before = packed.read_bytes()
    (run / "log.txt").write_text("another")
    interrupt(monkeypatch, "replace", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pack(run, packed)
    assert packed.read_bytes() == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("defect")])
@pytest.mark.parametrize("place", ["copy", "rename"])
def test_an_interrupted_import_leaves_nothing(packed, root, monkeypatch, error, place):
    interrupt(monkeypatch, place, error)
    with pytest.raises(BadRequest if isinstance(error, OSError) else type(error)):
        unpack(packed, root, NEW)
    assert list(root.iterdir()) == []


def interrupt(monkeypatch, place, error):
    """Raises the error when the third file is copied, or at the final move."""
    copies = iter([None, None, error])
    real = bundle._copy

    def fail(*_):
        raise error

    def copy(*given):
        if next(copies):
            raise error
        return real(*given)

    if place == "copy":
        monkeypatch.setattr(bundle, "_copy", copy)
    else:
        monkeypatch.setattr(bundle.os, place, fail)


def test_while_it_is_read_a_run_is_hidden(packed, root, monkeypatch):
    seen = []
    monkeypatch.setitem(bundle._CHECKS, "delta.safetensors", lambda _: seen.extend(p.name for p in root.iterdir()))
    unpack(packed, root, NEW)
    assert len(seen) == 1
    assert seen[0].startswith(".")


def test_a_check_sees_the_run_as_it_will_be_and_may_add_to_it(packed, root):
    seen = []

    def check(folder):
        seen.append(record((folder / "run.json").read_bytes()) | {"owner": "ann"})
        (folder / "run.json").write_text(json.dumps(seen[0]), encoding="utf-8")

    told = record((unpack(packed, root, NEW, check) / "run.json").read_bytes())
    assert repr(told) == repr(seen[0])
    assert (told["id"], told["imported"], told["owner"]) == (NEW, True, "ann")


def test_a_bundle_fits_exactly_or_is_refused(packed, root):
    size = sum(map(len, entries(packed).values()))
    assert_refused(
        packed, root, f"{size - 1:,} bytes in all", lambda path, root: unpack(path, root, NEW, most=size - 1)
    )
    assert unpack(packed, root, NEW, most=size).is_dir()


@pytest.mark.parametrize("bad", ["", "abcde", "a" * 65, "../../x", "abc/def", "abcdef\n", "äbcdefg", ".abcdef"])
def test_an_id_of_another_form_is_a_defect(packed, root, bad):
    with pytest.raises(ValueError, match="no id of a run"):
        unpack(packed, root, bad)
    assert list(root.iterdir()) == []


def test_an_id_in_use_is_refused(packed, root):
    (root / NEW).mkdir()
    with pytest.raises(BadRequest, match="There is a run new-id_01 already"):
        unpack(packed, root, NEW)
    assert contents(root / NEW) == {}


# Hostile bundles. Each function changes a good one, given its path.


def with_file(name, content, stamped=True):
    """One file more, or another content."""

    def change(path):
        content_ = content if isinstance(content, bytes) else content.encode()
        rebuilt(path, {**entries(path), name: content_}, stamped)

    return change


def without(name, stamped=True):
    def change(path):
        rebuilt(path, {n: c for n, c in entries(path).items() if n != name}, stamped)

    return change


def with_record(**changes):
    """run.json with keys changed; KeyError takes a key out."""
    told = {key: value for key, value in {**RECORD, **changes}.items() if value is not KeyError}
    return with_file("run.json", json.dumps(told))


def with_manifest(told):
    return with_file(MANIFEST, told if isinstance(told, str) else json.dumps(told), stamped=False)


def with_rounds(**changes):
    """rounds.json with keys changed; KeyError takes a key out."""
    told = {key: value for key, value in {**ROUNDS, **changes}.items() if value is not KeyError}
    return with_file("rounds.json", json.dumps(told))


def stamped_otherwise(name, **changes):
    def change(path):
        files = entries(path)
        manifest = record(files[MANIFEST])
        manifest["files"][name].update(changes)
        rebuilt(path, {**files, MANIFEST: json.dumps(manifest).encode()}, stamped=False)

    return change


def headers(data, name):
    """Where the member's local and central headers begin."""
    raw = name.encode()
    local = next(
        at for at in range(len(data)) if data[at : at + 4] == b"PK\3\4" and data[at + 30 : at + 30 + len(raw)] == raw
    )
    central = next(
        at for at in range(len(data)) if data[at : at + 4] == b"PK\1\2" and data[at + 46 : at + 46 + len(raw)] == raw
    )
    return local, central


def patched(name, form, local, central, value):
    """A number in both headers of a member replaced; None leaves a header alone."""

    def change(path):
        data = bytearray(path.read_bytes())
        for start, at in zip(headers(data, name), (local, central), strict=True):
            if at is not None:
                struct.pack_into(form, data, start + at, value)
        path.write_bytes(bytes(data))

    return change


def in_turn(*changes):
    def change(path):
        for one in changes:
            one(path)

    return change


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flipped(path):
    """One bit in the middle of what is stored of the edit."""
    data = bytearray(path.read_bytes())
    data[data.find(b"editscope-delta-1") + 3] ^= 1
    path.write_bytes(bytes(data))


def twice(path):
    files = entries(path)
    rebuilt(path, {n: c for n, c in files.items() if n != "cases.csv"})
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("log.txt", files["log.txt"])


def of_mode(mode, dos=0):
    """log.txt as a member of another kind."""

    def change(path):
        files = entries(path)
        rebuilt(path, {n: c for n, c in files.items() if n != "log.txt"}, stamped=False)
        info = zipfile.ZipInfo("log.txt")
        info.external_attr = mode << 16 | dos
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(info, files["log.txt"])

    return change


def compressed(method):
    return lambda path: rebuilt(path, entries(path), method=method)


def crowded(count):
    """Many members; a table of contents of 20,000 is longer than what is read at once."""

    def change(path):
        with zipfile.ZipFile(path, "a") as archive:
            for number in range(count):
                archive.writestr(f"{number:06}.txt", b"")

    return change


def parquet(table, **options):
    raw = io.BytesIO()
    if isinstance(table, pa.Table):
        pq.write_table(table, raw, **options)
    else:
        table.to_parquet(raw)
    return raw.getvalue()


def safetensors(**metadata):
    def change(path):
        save_file({"a|left": torch.ones(2, 1)}, path.parent / "x.safetensors", metadata=metadata or None)
        with_file("delta.safetensors", (path.parent / "x.safetensors").read_bytes())(path)

    return change


def repeated(listed=False):
    """Small as a file, more than 5 GB when read: a text in every row, or long lists of one number."""
    rows = 110_000
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, "int32"), ["x" * 50_000])
    if listed:
        column = pa.array([[0] * 3_000_000] * 3, pa.list_(pa.int64()))
        column = pa.chunked_array([column] * 80)
    content = parquet(pa.table({"a": column}), store_schema=False)
    assert len(content) < 500_000
    return content


class Trap:
    """Executed when unpickled: leaves a file."""

    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


def nested(levels):
    return "[" * levels + "]" * levels


NAMES = ["/etc/passwd", "../run.json", "a/../../run.json", "..", "C:\\run.json", "C:run.json", "..\\run.json"]
NAMES += ["\\\\h\\s\\x", "units/one.safetensors", "run/run.json", "./run.json", "units/", "x\ny.csv", "n" * 60_000]
NAMES += ["RUN.JSON", "run.json ", "run.json.", "\u202erun.json", "progress.json", "cancel", "run.lock"]
NAMES += ["model.pkl", "delta.pt", "run.py", "script.sh", "index.html"]
ZIPS = {
    "empty": (lambda path: path.write_bytes(b""), "no zip file"),
    "text": (lambda path: path.write_text("not a zip in sight"), "no zip file"),
    "zip without files": (lambda path: rebuilt(path, {}, stamped=False), r"holds no bundle\.json"),
    "missing": (lambda path: path.unlink(), "could not be read"),
    "half": (cut(0.5), "no zip file or its end is missing"),
    "nearly whole": (cut(0.99), "no zip file or its end is missing"),
    "without its beginning": (lambda path: path.write_bytes(path.read_bytes()[900:]), "damaged"),
    "bit flipped": (flipped, "'delta.safetensors' is damaged"),
    "bad checksum": (patched("log.txt", "<I", 14, 16, 1), r"'log\.txt' is damaged"),
    "header of another name": (
        lambda path: path.write_bytes(path.read_bytes().replace(b"log.txt", b"lag.txt", 1)),
        "is damaged",
    ),
    "header beyond the end": (patched("log.txt", "<I", None, 42, 2**31), r"'log\.txt' is damaged"),
    "newer zip": (patched("log.txt", "<H", 4, 6, 99), "is damaged"),
    "name that is no UTF-8": (
        in_turn(patched("log.txt", "<H", None, 8, 0x800), patched("log.txt", "<H", None, 46, 0xFFFF)),
        r"run\.zip' is damaged",
    ),
    "password": (patched("log.txt", "<H", 6, 8, 0x1), r"log\.txt is encrypted"),
    "strong password": (patched("log.txt", "<H", 6, 8, 0x41), r"log\.txt is encrypted"),
    "masked": (patched("log.txt", "<H", 6, 8, 0x2000), r"log\.txt is encrypted"),
    "twice": (twice, r"holds log\.txt 2 times"),
    "zero byte in a name": (patched("log.txt", "4s", 33, 49, b"\0txt"), r"holds a file 'log\\x00txt'"),
    "link": (of_mode(stat.S_IFLNK | 0o777), "link, a folder or a device"),
    "folder": (of_mode(stat.S_IFDIR | 0o755), "link, a folder or a device"),
    "pipe": (of_mode(stat.S_IFIFO | 0o644), "link, a folder or a device"),
    "device": (of_mode(stat.S_IFCHR | 0o644), "link, a folder or a device"),
    "folder of DOS": (of_mode(0, 0x10), "link, a folder or a device"),
    "bzip2": (compressed(zipfile.ZIP_BZIP2), "compressed by method 12"),
    "lzma": (compressed(zipfile.ZIP_LZMA), "compressed by method 14"),
    "many": (crowded(30), "holds 41 files, 11 are allowed"),
    "very many": (crowded(20_000), "table of contents is too long"),
    "bomb": (with_file("log.txt", b"0" * 8_000_000), "200 times its size"),
    "size declared too small": (patched("iterations.csv", "<I", 22, 24, 3), r"'iterations\.csv' is damaged"),
    "size declared too large": (
        patched("iterations.csv", "<I", 22, 24, 4000),
        r"'iterations\.csv' is damaged",
    ),
    "size declared as 4 GB": (patched("log.txt", "<I", 22, 24, 2**32 - 2), "holds more than"),
}
FILES_WRONG = {
    "no manifest": (without(MANIFEST, stamped=False), r"holds no bundle\.json"),
    "no run": (without("run.json"), r"holds no run\.json"),
    "no iterations": (without("iterations.csv"), r"holds no iterations\.csv"),
    "listed file that is missing": (without("cases.csv", stamped=False), "lists other files"),
    "unlisted": (in_turn(without("log.txt"), with_file("log.txt", "x", stamped=False)), "lists other files"),
    "changed file": (with_file("log.txt", "stopped\n", stamped=False), r"log\.txt is not the file that was packed"),
    "wrong hash": (stamped_otherwise("cases.csv", sha256="0" * 64), r"cases\.csv is not the file that was packed"),
    "wrong size": (stamped_otherwise("cases.csv", size=1), r"cases\.csv is not the file that was packed"),
    "no hash": (stamped_otherwise("cases.csv", sha256=None), r"cases\.csv is not the file that was packed"),
    "newer format": (with_manifest({"format": "editscope-run-2", "files": {}}), "format is 'editscope-run-2'"),
    "format of a kilobyte": (with_manifest({"format": "x\n" * 500, "files": {}}), r"format is 'x\\n"),
    "manifest without files": (with_manifest({"format": FORMAT}), "lists other files"),
    "manifest with a list": (with_manifest({"format": FORMAT, "files": list(FILES)}), "lists other files"),
    "manifest that is no object": (with_manifest([]), r"bundle\.json holds no object"),
    "manifest that is no JSON": (with_manifest("{"), r"bundle\.json could not be read"),
    "newer schema": (with_record(schema=SCHEMA + 1), "update EditScope"),
    "schema as text": (with_record(schema="1"), "has the schema '1'"),
    "schema as a fraction": (with_record(schema=1.0), r"has the schema 1\.0"),
    "schema as a truth value": (with_record(schema=True), "has the schema True"),
    "schema below one": (with_record(schema=0), "has the schema 0"),
    "no schema": (with_record(schema=KeyError), "has the schema None"),
    "queued": (with_record(status="queued"), "has the status 'queued'"),
    "running": (with_record(status="running"), "has the status 'running'"),
    "status as a list": (with_record(status=["done"]), "has the status"),
    "no status": (with_record(status=KeyError), "has the status None"),
    "no config": (with_record(config=KeyError), "lacks id or config"),
    "id as a number": (with_record(id=7), "lacks id or config"),
    "run that is a list": (with_file("run.json", "[]"), r"run\.json holds no object"),
    "run that is null": (with_file("run.json", "null"), r"run\.json holds no object"),
    "run in Latin-1": (with_file("run.json", json.dumps({"a": "ä"}, ensure_ascii=False).encode("latin-1")), "as JSON"),
    "run with a byte order mark": (with_file("run.json", "\ufeff" + json.dumps(RECORD)), "as JSON"),
    "run cut off": (with_file("run.json", json.dumps(RECORD)[:-9]), "as JSON"),
    "run nested deeply": (with_record(notes=json.loads(nested(64))), "nested too deeply"),
    "run nested beyond the stack": (with_file("run.json", '{"notes":' + nested(100_000) + "}"), "as JSON"),
    "run of endless digits": (with_file("run.json", '{"schema":' + "1" * 5000 + "}"), "as JSON"),
    "iterations without k": (with_file("iterations.csv", "step,ppl\n0,1\n"), "no column k"),
    "iterations without a line": (with_file("iterations.csv", ""), r"iterations\.csv is not readable as CSV"),
    "iterations with k twice": (with_file("iterations.csv", "k,k\n0,1\n"), "not readable as CSV"),
    "iterations with a wide row": (with_file("iterations.csv", "k,ppl\n0,1,2\n"), "not readable as CSV"),
    "iterations with a short row": (with_file("iterations.csv", "k,ppl\n0\n"), "not readable as CSV"),
    "iterations that are binary": (with_file("iterations.csv", b"k,ppl\n\xff\xfe,1\n"), "not readable as CSV"),
    "cases with an open quote": (with_file("cases.csv", 'k,prompt\n1,"a\n'), r"cases\.csv is not readable as CSV"),
    "cases with a huge cell": (
        with_file("cases.csv", "k\n" + "".join(map(str, range(40_000)))),
        "cases.csv is not read",
    ),
    "cases with many columns": (with_file("cases.csv", ",".join(map(str, range(1001)))), r"cases\.csv is not readable"),
    "checkpoints that are binary": (with_file("checkpoints.csv", b"\xff\n"), r"checkpoints\.csv is not readable"),
    "paper's rows that are binary": (with_file("beside_paper.csv", b"\xff\n"), r"beside_paper\.csv is not readable"),
    "records that are an object": (with_file("records.json", json.dumps(FACT)), r"records\.json holds no list"),
    "records cut off": (with_file("records.json", json.dumps([FACT])[:-9]), r"records\.json could not be read as JSON"),
    "records in Latin-1": (with_file("records.json", '["ä"]'.encode("latin-1")), r"records\.json could not be read"),
    "records that are a pickle": (with_file("records.json", pickle.dumps(Trap())), r"records\.json could not be read"),
    "records nested deeply": (with_file("records.json", nested(65)), r"records\.json is nested too deeply"),
    "records nested beyond the stack": (with_file("records.json", nested(100_000)), r"records\.json could not be read"),
    "rounds that are a list": (with_file("rounds.json", json.dumps([ROUNDS])), r"rounds\.json holds no object"),
    "rounds that are no JSON": (with_file("rounds.json", "{"), r"rounds\.json could not be read as JSON"),
    "rounds without proofs": (with_rounds(proofs=KeyError), r"rounds\.json tells no rounds"),
    "rounds with a proof too few": (with_rounds(proofs=[]), r"rounds\.json tells no rounds"),
    "rounds with half a proof": (with_rounds(proofs=[[{"parameter": "w"}]]), r"rounds\.json tells no rounds"),
    "rounds with a rank that is text": (with_rounds(proofs=[[{**PROOF, "rank": "x"}]]), "tells no rounds"),
    "rounds with an endless rank": (with_rounds(proofs=[[{**PROOF, "rank": float("inf")}]]), "tells no rounds"),
    "rounds with a loss that is text": (with_rounds(histories=[[{"kl": "x"}]]), r"rounds\.json tells no rounds"),
    "rounds with steps in an object": (with_rounds(histories=[{"target": 1}]), r"rounds\.json tells no rounds"),
    "rounds with notes that are text": (with_rounds(notes="ab"), r"rounds\.json tells no rounds"),
    "rounds without a clock": (with_rounds(seconds=None), r"rounds\.json tells no rounds"),
    "rounds nested deeply": (with_rounds(notes=json.loads(nested(64))), r"rounds\.json is nested too deeply"),
    "probes that are text": (with_file("probes.parquet", "k,p\n1,2\n"), r"probes\.parquet is not readable"),
    "probes that are a pickle": (with_file("probes.parquet", pickle.dumps(Trap())), r"probes\.parquet is not readable"),
    "probes cut off": (with_file("probes.parquet", parquet(probes())[:-40]), r"probes\.parquet is not readable"),
    "probes with a broken page": (
        with_file("probes.parquet", parquet(probes())[:4] + b"\xff" * 60 + parquet(probes())[64:]),
        r"probes\.parquet is not readable",
    ),
    "probes with broken notes for pandas": (
        with_file("probes.parquet", parquet(pa.table({"k": [1]}).replace_schema_metadata({"pandas": "[1]"}))),
        r"probes\.parquet is not readable",
    ),
    "probes of repeated text": (with_file("probes.parquet", repeated()), r"probes\.parquet is not readable"),
    "probes of repeated lists": (
        with_file("probes.parquet", repeated(listed=True)),
        r"probes\.parquet is not readable",
    ),
    "probes that only claim to be": (with_file("probes.parquet", b"PAR1PAR1"), r"probes\.parquet is not readable"),
    "edit that is text": (with_file("delta.safetensors", "tensor"), r"delta\.safetensors is not readable as an edit"),
    "edit that is a pickle": (with_file("delta.safetensors", pickle.dumps(Trap())), "not readable as an edit"),
    "foreign tensors": (safetensors(), "not readable as an edit"),
    "edit with parts missing": (safetensors(format="editscope-delta-1"), "not readable as an edit"),
    "edit with deep provenance": (safetensors(format="editscope-delta-1", provenance=nested(100_000)), "as an edit"),
}


RECORDS_WRONG = {
    "no record": "[]",
    "numbers": "[1, 2]",
    "without a prompt": json.dumps([{"subject": "Zoë", "target_new": "Rome"}]),
    "with an unknown field": json.dumps([{**FACT, "colour": "red"}]),
    "with markup": json.dumps([{**FACT, "subject": "<script>x</script>"}]),
    "with a number for a text": json.dumps([{**FACT, "generation_prompts": [5]}]),
    "with a text for a truth value": json.dumps([{**FACT, "compare": "no"}]),
    "with a probe without an answer": json.dumps([{**FACT, "neighbors": [{"prompt": "a; b"}]}]),
    "with one id twice": json.dumps([FACT, {**FACT, "target_new": "Paris; or so"}]),
    "good and bad": json.dumps([FACT, {**FACT, "case_id": 2, "prompt": "no place"}]),
}


@pytest.mark.parametrize("records", RECORDS_WRONG.values(), ids=RECORDS_WRONG)
def test_a_run_with_what_is_no_record_is_refused(packed, root, records):
    with_file("records.json", records)(packed)
    assert_refused(packed, root, r"The bundle's records\.json holds what is no record", import_run)


STRANGE = {
    "an unknown key": {"config": {"colour": "red"}},
    "half a letter": {"config": {"model": "\ud800"}},
    "a number beyond 64 bit": {"config": {"trial": 2**64}},
    "a result that is a list": {"result": [1]},
    "an error that is a list": {"error": ["a; b"]},
}


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
def test_a_run_that_could_not_be_listed_is_refused(packed, root, strange):
    with_record(**strange)(packed)
    assert_refused(packed, root, r"The bundle's run\.json says what no run says of itself", import_run)


def test_an_imported_run_has_its_owner_before_it_is_seen(packed, root, monkeypatch):
    rename, seen = bundle.os.rename, []

    def look(part, place):
        seen.append(record((part / "run.json").read_bytes())["owner"])
        rename(part, place)

    monkeypatch.setattr(bundle.os, "rename", look)
    assert import_run(packed, root, "ann").head()["owner"] == "ann"
    assert seen == ["ann"]


def test_a_run_with_good_records_or_none_is_imported(run, packed, root, tmp_path):
    folder = import_run(packed, root)
    assert folder.status == "done"
    assert [p.name for p in root.iterdir()] == [folder.id] != [run.name]
    (run / "records.json").unlink()
    pack(run, tmp_path / "older.zip")
    assert import_run(tmp_path / "older.zip", root).id != folder.id


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:30]))
def test_names_that_are_not_of_a_run_are_refused(packed, root, name):
    files = entries(packed)
    rebuilt(packed, {name if n == "log.txt" else n: c for n, c in files.items()})
    assert_refused(packed, root, "The bundle holds a file '")


@pytest.mark.parametrize(("change", "match"), ZIPS.values(), ids=ZIPS)
def test_archives_that_are_no_bundle_are_refused(packed, root, change, match):
    change(packed)
    assert_refused(packed, root, match)


@pytest.mark.parametrize(("change", "match"), FILES_WRONG.values(), ids=FILES_WRONG)
def test_files_that_are_not_of_a_run_are_refused(packed, root, tmp_path, monkeypatch, change, match):
    monkeypatch.chdir(tmp_path)
    change(packed)
    assert_refused(packed, root, match)
    assert not (tmp_path / "trapped").exists()


def test_the_trap_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, arguments = Trap().__reduce__()
    call(*arguments)
    assert (tmp_path / "trapped").exists()


@pytest.mark.parametrize("name", ["log.txt", "cases.csv"])
def test_a_name_may_not_become_another_one(name):
    """Newer Pythons take a name from an extra field, while the original one stays readable."""
    member = zipfile.ZipInfo(name)
    bundle._check_member(member)
    member.filename = "../x"
    with pytest.raises(BadRequest, match="holds a file"):
        bundle._check_member(member)


@pytest.mark.parametrize(
    ("bound", "most", "match"),
    [
        ("MAX_BYTES", 3000, "3,000 bytes in all are allowed"),
        ("MAX_RATIO", 1, "1 times its size"),
        ("MAX_JSON", 200, r"json is too large"),
        ("MAX_RECORDS", 20, r"records\.json is too large"),
        ("MAX_DEPTH", 4, r"run\.json is nested too deeply"),
        ("MAX_TABLE", 20, r"iterations\.csv is not readable as CSV"),
        ("MAX_COLUMNS", 1, r"iterations\.csv is not readable as CSV"),
        ("MAX_MEMORY", 2**27, r"probes\.parquet is not readable as Parquet"),
        ("MAX_SECONDS", 0.01, r"probes\.parquet is not readable as Parquet"),
    ],
)
def test_every_bound_holds(packed, root, monkeypatch, bound, most, match):
    rebuilt(packed, entries(packed))
    monkeypatch.setattr(bundle, bound, most)
    assert_refused(packed, root, match)


@pytest.mark.parametrize("each", [6, 1])
def test_bytes_are_counted_whatever_was_declared(packed, root, monkeypatch, each):
    """zipfile cuts members at their declared size; should it ever not, the count ends the import."""
    monkeypatch.setattr(bundle, "MAX_BYTES", 5 * 2**20)
    monkeypatch.setattr(bundle, "MAX_RATIO", 10_000)
    monkeypatch.setattr(bundle, "_content", lambda *_: iter([b"0" * 2**20] * each))
    assert_refused(packed, root, "holds more than")


def test_a_table_that_ends_its_reader_is_refused(packed, root, monkeypatch):
    monkeypatch.setattr(bundle, "_READ", "import os; os.abort()")
    assert_refused(packed, root, r"probes\.parquet is not readable as Parquet")


def test_counting_stops_before_writing_too_much():
    file = io.BytesIO()
    with pytest.raises(BadRequest, match="enough"):
        bundle._copy([b"12", b"34", b"56"], file, 4, BadRequest("enough"))
    assert file.getvalue() == b"1234"
    assert bundle._copy([b"12", b"34"], io.BytesIO(), 4, BadRequest("enough"))["size"] == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", json.dumps({**RECORD, "notes": json.loads(nested(63))}).encode()),
        ("iterations.csv", b'ppl,k\r\n"1,5",0\r\n\r\n"a\nb",1'),
        ("cases.csv", "k,prompt\n1,Žofie\u2028x\n".encode()),
        ("log.txt", b"\xff\x00<script>"),
        ("probes.parquet", parquet(pd.DataFrame())),
        ("probes.parquet", parquet(probes().head(0))),
        ("probes.parquet", parquet(probes().astype({"prompt": "category"}))),
    ],
)
def test_unusual_but_sound_files_are_taken(packed, root, name, content):
    files = entries(packed)
    rebuilt(packed, {**files, name: content})
    folder = unpack(packed, root, NEW)
    assert name == "run.json" or (folder / name).read_bytes() == content


def test_any_changed_byte_is_refused_or_without_effect(run, root, tmp_path):
    """Whatever byte is wrong, the answer is a sentence, and what is imported is what was packed."""
    packed = tmp_path / "run.zip"
    (run / "probes.parquet").unlink()  # for speed: a checksum guards it like the others
    pack(run, packed)
    good, changed = entries(packed), bytearray(packed.read_bytes())
    expected = {name: content for name, content in good.items() if name not in (MANIFEST, "run.json")}
    outcomes = set()
    for at in range(0, len(changed), 11):
        changed[at] ^= 0xFF
        packed.write_bytes(bytes(changed))
        changed[at] ^= 0xFF
        name = f"changed-{at}"
        try:
            imported = contents(unpack(packed, root, name))
            assert {n: c for n, c in imported.items() if n != "run.json"} == expected
            outcomes.add("taken")
        except BadRequest:
            outcomes.add("refused")
            assert not any(name in p.name for p in root.iterdir())
    assert outcomes == {"taken", "refused"}
