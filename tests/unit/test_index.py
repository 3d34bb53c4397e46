"""Index: rows follow the folders, whatever happens to them or to it."""

import json
import sqlite3
import time
from contextlib import closing, contextmanager

import pytest

from editing_core.bench.config import RunConfig
from editing_core.bench.index import BROKEN, FILE, VERSION, Index, size_of
from editing_core.errors import BadRequest
from editing_core.runs.folder import DONE, HEAD, INTERRUPTED, OPEN, QUEUED, RUNNING, RunFolder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def made(root, number=0, owner="", **config):
    folder = RunFolder.create(root, RunConfig(**config).to_json(), owner)
    folder.update(created=at(number))
    return folder


def at(second):
    return f"2026-01-01T00:00:{second:02d}+00:00"


def ids(entries):
    return [entry.id for entry in entries]


def test_the_newest_comes_first_and_changes_are_seen(root):
    index = Index(root)
    assert index.entries() == []
    one, two = made(root, 1), made(root, 2, editor="pmet")
    assert ids(index.entries()) == [two.id, one.id]
    one.update(status=DONE, result={"n_edits": 5, "chosen": 2, "seconds": 1.5, "last": {"score_success": 91.0}})
    entry = index.entries()[1]
    assert (entry.status, entry.score, entry.chosen, entry.n_edits, entry.efficacy) == (DONE, 91.0, 2, 5, None)
    two.delete()
    assert ids(index.entries()) == [one.id]


def test_a_run_nobody_works_on_is_shown_as_interrupted(root):
    folder = made(root)
    folder.update(status=RUNNING)
    assert Index(root).entries()[0].status == INTERRUPTED
    index = Index(root)
    for asked, found in (((INTERRUPTED,), 1), ((RUNNING,), 0), (OPEN, 0)):
        assert ids(index.entries(statuses=asked)) == [folder.id] * found
        assert index.count(statuses=asked) == found
    with folder.held():
        assert index.entries()[0].status == RUNNING
        assert ids(index.entries(statuses=OPEN)) == ids(index.open()) == [folder.id]
        assert index.entries(statuses=(INTERRUPTED,)) == []


def test_words_status_and_owner_narrow_the_list(root):
    memit, pmet = made(root, 1, owner="a"), made(root, 2, "b", editor="pmet", assist={"neighbors": "na"}, trial=3)
    index = Index(root)
    assert ids(index.entries("PMET trial")) == [pmet.id]
    assert ids(index.entries("memit pmet")) == []
    assert ids(index.entries(memit.id[3:9])) == [memit.id]
    assert ids(index.entries("' OR 1=1 --")) == []
    assert ids(index.entries("%")) == []
    assert ids(index.entries(owner="b")) == [pmet.id]
    assert index.entries(owner="") == []
    assert ids(index.entries(statuses=(QUEUED,), most=1)) == [pmet.id]
    assert [index.count(), index.count("memit"), index.count(owner="b"), index.count("memit", owner="b")] == [
        2,
        1,
        1,
        0,
    ]
    assert index.count("\ud800") == 0


def test_the_newest_of_those_that_fit_are_given(root):
    """A run that does not fit takes no place, though only its lock tells that it does not."""
    going, dead, done = (made(root, number) for number in (1, 2, 3))
    for folder in (going, dead):
        folder.update(status=RUNNING)
    done.update(status=DONE)
    with going.held():
        assert ids(Index(root).entries(statuses=OPEN, most=1)) == [going.id]


def test_owners_take_turns(root):
    ann = [made(root, number, "a") for number in (1, 2, 3)]
    bob = [made(root, number, "b") for number in (4, 5)]
    index = Index(root)
    assert ids(index.open()) == [ann[0].id, bob[0].id, ann[1].id, bob[1].id, ann[2].id]
    ann[0].update(status=DONE, started=at(6))
    assert ids(index.open()) == [bob[0].id, ann[1].id, bob[1].id, ann[2].id]
    bob[0].update(status=DONE, started=at(7))
    assert ids(index.open()) == [ann[1].id, bob[1].id, ann[2].id]
    newcomer = made(root, 8, "c")
    ann[1].update(status=DONE, started=at(9))
    assert ids(index.open()) == [bob[1].id, newcomer.id, ann[2].id]


@contextmanager
def database(root):
    with closing(sqlite3.connect(root / FILE)) as base, base:
        yield base


def overwritten(start, content):
    """Damage in the middle of the file, which is seen when rows are read."""

    def damage(file):
        size = file.stat().st_size
        with file.open("r+b") as opened:
            opened.seek(start)
            opened.write(content * (size - start))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"no database at all, but long enough to be looked at"),
        lambda file: file.write_bytes(b""),
        overwritten(100, b"\xff"),
        overwritten(4096, b"\xff"),
        overwritten(4096, b"\0"),
    ],
)
@pytest.mark.parametrize("ask", [Index.entries, Index.open])
def test_a_damaged_index_is_made_anew(root, damage, ask):
    folder = made(root)
    Index(root).refresh()
    for path in root.glob(f"{FILE}-*"):
        path.unlink()
    damage(root / FILE)
    assert ids(ask(Index(root))) == [folder.id]
    assert ids(ask(Index(root))) == [folder.id]


def test_an_index_of_another_version_is_made_anew(root):
    folder = made(root)
    Index(root).refresh()
    with database(root) as base:
        base.execute("ALTER TABLE runs DROP COLUMN cell")
        base.execute(f"PRAGMA user_version = {VERSION - 1}")
    assert ids(Index(root).entries()) == [folder.id]


def test_a_file_that_is_locked_stays_as_it_is(root, monkeypatch):
    made(root)
    index = Index(root)
    index.refresh()
    inode = (root / FILE).stat().st_ino
    monkeypatch.setattr(sqlite3, "connect", lambda *given, connect=sqlite3.connect, **_: connect(*given, timeout=0))
    with closing(sqlite3.connect(root / FILE)) as other:
        other.execute("BEGIN EXCLUSIVE")
        made(root)
        with pytest.raises(BadRequest, match=r"cannot be read at present \(database is locked\); try again"):
            index.entries()
    assert (root / FILE).stat().st_ino == inode
    assert len(index.entries()) == 2


def test_a_look_at_what_has_not_changed_writes_nothing(root):
    made(root)
    index = Index(root)
    index.refresh()
    with closing(sqlite3.connect(root / FILE)) as other:
        other.execute("BEGIN IMMEDIATE")  # nobody else may write
        assert len(index.entries()) == 1


def test_an_unreadable_run_is_listed_as_such(root):
    broken, empty = made(root), root / "empty-folder"
    (broken.path / HEAD).write_text("{", encoding="utf-8")
    empty.mkdir()
    (root / ".hidden").mkdir()
    (root / "file").write_text("x", encoding="utf-8")
    found = {entry.id: entry for entry in Index(root).entries()}
    assert found.keys() == {broken.id, "empty-folder"}
    assert {entry.status for entry in found.values()} == {BROKEN}
    assert "no readable" in found[broken.id].error


STRANGE = {
    "an unknown key": {"config": {"colour": "red"}},
    "a setting out of range": {"config": {"settings": {"steps": 10**6}}},
    "settings of settings": {"config": {"settings": {"steps": {"steps": 1}}}},
    "a list where a text belongs": {"config": {"model": ["a"]}},
    "a number without end": {"config": {"tolerance": 10**400}},
    "a trial beyond 64 bit": {"config": {"trial": 2**63}},
    "half a surrogate pair in a name": {"config": {"model": "\ud800"}},
    "half a surrogate pair": {"created": "\ud800"},
    "an owner that is a list": {"owner": ["a"]},
    "an error that is a number": {"error": 5},
    "a result that is a list": {"result": []},
    "a last row that is a text": {"result": {"last": "x"}},
    "a text where a number belongs": {"result": {"seconds": "long"}},
    "a share that is a list": {"result": {"last": {"score_success": [1]}}},
    "a fraction of an edit": {"result": {"n_edits": 1.5}},
    "a truth value for a number": {"result": {"n_edits": True}},
    "edits beyond 64 bit": {"result": {"n_edits": -(2**63) - 1}},
    "seconds beyond all numbers": {"result": {"seconds": 10**400}},
    "a moment that is a number": {"started": 5},
    "a status that is a list": {"status": ["done"]},
    "a configuration that is a list": {"config": []},
    "no moment": {"created": None},
}


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
def test_a_strange_run_is_unreadable_and_the_others_are_not(root, strange):
    good, folder = made(root, 1), made(root, 2)
    (folder.path / HEAD).write_text(json.dumps({**folder.head(), **strange}), encoding="utf-8")
    found = {entry.id: entry for entry in Index(root).entries()}
    assert (found[good.id].status, found[folder.id].status) == (QUEUED, BROKEN)
    assert 10 < len(found[folder.id].error) <= 300


def test_a_deeply_nested_run_is_unreadable(root):
    folder = made(root)
    (folder.path / HEAD).write_text('{"schema":' + "[" * 100_000 + "]" * 100_000 + "}", encoding="utf-8")
    assert Index(root).entries()[0].status == BROKEN


def test_an_unreadable_run_stays_its_owners(root):
    folder = made(root, owner="a")
    folder.update(config={"editor": "gone"})
    assert [(entry.id, entry.status) for entry in Index(root).entries(owner="a")] == [(folder.id, BROKEN)]


def test_what_could_not_be_measured_is_nothing(root):
    folder = made(root)
    folder.update(result={"seconds": float("inf"), "last": {"efficacy_success": float("nan"), "score_success": 7}})
    entry = Index(root).entries()[0]
    assert (entry.seconds, entry.efficacy, entry.score) == (None, None, 7.0)


def test_a_name_that_is_no_text_is_no_run(root):
    folder = made(root)
    (root / "b\udcff").mkdir()
    assert ids(Index(root).entries()) == [folder.id]


def test_a_run_that_is_deleted_during_a_look_is_left_out(root, monkeypatch):
    kept, gone = made(root, 1), made(root, 2)
    for folder in (kept, gone):
        folder.update(status=RUNNING)
    monkeypatch.setattr(Index, "_refresh", lambda *given, refresh=Index._refresh: (refresh(*given), gone.delete()))
    assert ids(Index(root).entries()) == [kept.id]


def test_rows_tell_what_a_run_is_of_and_how_large_it_is(root):
    config = RunConfig(dataset="table:edits-1.csv", trial=2)
    folder = made(root, 1, dataset="table:edits-1.csv", trial=2)
    index = Index(root)
    (entry,) = index.entries()
    assert (entry.cell, entry.dataset, entry.file, entry.imported) == (config.key, "table", "edits-1.csv", False)
    assert entry.bytes == size_of(folder.path) == (folder.path / HEAD).stat().st_size
    folder.update(imported=True, started=at(5))
    time.sleep(0.02)  # the clock of a file system ticks some hundred times a second
    (folder.path / "probes.parquet").write_bytes(bytes(1000))
    (again,) = index.entries()
    assert (again.imported, again.started, again.bytes) == (True, at(5), size_of(folder.path))
    assert again.bytes > 1000


def test_five_thousand_runs_are_listed_in_less_than_a_second(root):
    head = {"schema": 2, "status": DONE, "created": "2026-01-01T00:00:00+00:00", "config": RunConfig().to_json()}
    for number in range(5000):
        folder = root / f"run-{number:05d}-abcdefgh"
        folder.mkdir(parents=True)
        (folder / HEAD).write_text(json.dumps(head | {"id": folder.name}), encoding="utf-8")
    index = Index(root)
    assert len(index.entries(most=10_000)) == 5000
    started = time.perf_counter()
    assert len(index.entries("memit", (DONE,), most=10_000)) == index.count("memit", (DONE,)) == 5000
    assert index.entries(statuses=OPEN) == index.open() == []
    assert time.perf_counter() - started < 1.0
