"""Index: rows follow the folders, whatever happens to them or to it."""

import json
import time

import pytest

from editing_core.bench.config import RunConfig
from editing_core.bench.index import BROKEN, FILE, Index
from editing_core.runs.folder import DONE, HEAD, INTERRUPTED, QUEUED, RUNNING, RunFolder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def made(root, number=0, owner="", **config):
    folder = RunFolder.create(root, RunConfig(**config).to_json(), owner)
    folder.update(created=f"2026-01-01T00:00:{number:02d}+00:00")
    return folder


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
    assert ids(Index(root).entries(status=INTERRUPTED)) == [folder.id]
    assert Index(root).entries(status=RUNNING) == []
    with folder.held():
        assert Index(root).entries()[0].status == RUNNING


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
    assert ids(index.entries(status=QUEUED, most=1)) == [pmet.id]


@pytest.mark.parametrize("damage", [b"no database at all, but long enough to be looked at", b""])
def test_a_damaged_index_is_made_anew(root, damage):
    folder = made(root)
    Index(root).refresh()
    for path in root.glob(f"{FILE}*"):
        path.unlink()
    (root / FILE).write_bytes(damage)
    assert ids(Index(root).entries()) == [folder.id]


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


def test_five_thousand_runs_are_listed_in_less_than_a_second(root):
    head = {"schema": 2, "status": DONE, "created": "2026-01-01T00:00:00+00:00", "config": RunConfig().to_json()}
    for number in range(5000):
        folder = root / f"run-{number:05d}-abcdefgh"
        folder.mkdir(parents=True)
        (folder / HEAD).write_text(json.dumps(head | {"id": folder.name}), encoding="utf-8")
    index = Index(root)
    assert len(index.entries(most=10_000)) == 5000
    started = time.perf_counter()
    assert len(index.entries("memit", DONE, most=10_000)) == 5000
    assert time.perf_counter() - started < 1.0
