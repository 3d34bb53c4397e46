"""The desk: who sees which runs, what a visitor may ask for, and what is left on the disc."""

import json
import os
import time

import pytest

from editing_core.bench import desk as desk_module
from editing_core.bench.desk import Desk, Limits, new_key
from editing_core.bench.grid import as_toml, grid_of, read_grid
from editing_core.errors import BadRequest, EditingError
from editing_core.runs.folder import CANCELLED, DONE, QUEUED

ONE = {"common": {"limit": 2, "iterations": 1}}
ANN, BOB = new_key(), new_key()


@pytest.fixture
def local(tmp_path):
    return Desk(tmp_path / "runs", uploads=tmp_path / "uploads")


@pytest.fixture
def public(tmp_path):
    return Desk(tmp_path / "runs", Limits(edits=10, iterations=2, waiting=2), tmp_path / "uploads")


def grid(**more):
    return grid_of({**ONE, **more})


def test_keys_cannot_be_guessed_and_differ():
    assert len({new_key() for _ in range(100)}) == 100
    assert len(ANN) >= 32


@pytest.mark.parametrize("key", ["", "short", "a" * 31, "a" * 65, "../" * 12, None, 7])
def test_a_public_desk_wants_a_whole_key(public, key):
    for ask in (lambda: public.entries(key), lambda: public.enter(key, grid()), lambda: public.folder(key, "x")):
        with pytest.raises(BadRequest, match="key is missing or damaged"):
            ask()


def test_on_ones_own_machine_everybody_sees_everything(local):
    entered = local.enter("", grid())
    assert [entry.id for entry in local.entries(BOB)] == [run.id for run in entered.runs]
    assert local.folder(ANN, entered.runs[0].id).status == QUEUED
    assert "owner" not in entered.runs[0].head()


def test_a_visitor_sees_cancels_and_deletes_only_own_runs(public):
    (run,) = public.enter(ANN, grid()).runs
    assert [entry.id for entry in public.entries(ANN)] == [run.id]
    assert public.entries(BOB) == []
    for act in (
        lambda: public.folder(BOB, run.id),
        lambda: public.cancel(BOB, [run.id]),
        lambda: public.delete(BOB, [run.id]),
        lambda: public.resume(BOB, run.id),
        lambda: public.export(BOB, run.id, public.root / "x.zip"),
    ):
        with pytest.raises(BadRequest, match="There is no run"):
            act()
    assert run.status == QUEUED
    assert ANN not in json.dumps(run.head()), "the key itself is not kept"
    assert public.cancel(ANN, [run.id]) == 1
    assert run.status == CANCELLED
    public.delete(ANN, [run.id])
    assert public.entries(ANN) == []


@pytest.mark.parametrize("name", ["..", ".", "", "../runs", ".index.sqlite", "a/b", "*"])
def test_no_name_leads_out_of_the_folder(local, name):
    local.enter("", grid())
    with pytest.raises(BadRequest, match="There is no run"):
        local.folder("", name)


def test_the_same_grid_is_not_run_twice_but_another_visitors_is_another_run(public):
    (mine,) = public.enter(ANN, grid()).runs
    again = public.enter(ANN, grid())
    assert (again.runs[0].id, again.new, again.done) == (mine.id, 0, 0)
    (other,) = public.enter(BOB, grid()).runs
    assert other.id != mine.id
    mine.update(status=DONE)
    assert public.enter(ANN, grid()).done == 1


@pytest.mark.parametrize(
    ("common", "told"),
    [
        ({"limit": 11}, "11 edits were asked for, a run on this public page has at most 10"),
        ({"iterations": 3}, "3 iterations were asked for"),
    ],
)
def test_a_visitors_run_has_limits(public, common, told):
    with pytest.raises(BadRequest, match=told):
        public.enter(ANN, grid_of({"common": {**ONE["common"], **common}}))
    assert public.entries(ANN) == []


def test_a_run_without_a_number_of_edits_is_refused(public):
    with pytest.raises(BadRequest, match="All edits were asked for"):
        public.enter(ANN, grid_of({"common": {"iterations": 1}}))


def test_a_large_model_is_refused_on_a_public_page(public, local):
    with pytest.raises(EditingError, match="Unknown model of this public page 'gpt-j-6b'"):
        public.enter(ANN, grid(models=["gpt-j-6b"]))
    assert local.enter("", grid(models=["gpt-j-6b"])).new == 1


def test_a_visitors_queue_is_short_and_another_ones_is_not_touched(public):
    public.enter(ANN, grid(trials=2))
    with pytest.raises(BadRequest, match="1 more runs were asked for while 2 of yours wait or run, at most 2"):
        public.enter(ANN, grid(editors=["rome"]))
    assert public.enter(BOB, grid(trials=2)).new == 2
    public.cancel(ANN, [public.entries(ANN)[0].id])
    assert public.enter(ANN, grid(editors=["rome"])).new == 1
    cancelled = next(entry for entry in public.entries(ANN) if entry.status == CANCELLED)
    with pytest.raises(BadRequest, match="at most 2"):
        public.resume(ANN, cancelled.id)


def test_all_visitors_together_have_a_limit_too(tmp_path):
    desk = Desk(tmp_path, Limits(all_waiting=2), tmp_path / "uploads")
    desk.enter(ANN, grid(trials=2))
    with pytest.raises(BadRequest, match="More than 2 runs of all visitors"):
        desk.enter(BOB, grid())


def test_a_visitors_runs_take_a_limited_part_of_the_disc(tmp_path):
    desk = Desk(tmp_path, Limits(stored=10_000), tmp_path / "uploads")
    (run,) = desk.enter(ANN, grid()).runs
    run.update(status=DONE)
    (run.path / "probes.parquet").write_bytes(bytes(10_001))
    with pytest.raises(BadRequest, match="export and delete some"):
        desk.enter(ANN, grid(editors=["rome"]))
    assert desk.enter(BOB, grid()).new == 1


def test_the_oldest_visitors_run_leaves_when_the_disc_is_full(tmp_path):
    desk = Desk(tmp_path, Limits(all_stored=25_000), tmp_path / "uploads")
    runs = [desk.enter(key, grid()).runs[0] for key in (ANN, BOB)]
    mine = Desk(tmp_path, uploads=tmp_path / "uploads").enter("", grid()).runs[0]
    for number, run in enumerate((mine, *runs)):
        run.update(status=DONE, created=f"2026-01-0{number + 1}T00:00:00+00:00")
        (run.path / "probes.parquet").write_bytes(bytes(20_000))
    desk.enter(BOB, grid(editors=["rome"]))
    assert not runs[0].path.exists()
    assert runs[1].path.exists()
    assert mine.path.exists(), "what belongs to no visitor stays"


def test_a_running_run_is_deleted_by_nobody_and_the_others_stay_too(local):
    first, second = local.enter("", grid(trials=2)).runs
    with second.held():
        second.update(status="running")
        with pytest.raises(BadRequest, match="still running"):
            local.delete("", [first.id, second.id])
    assert first.path.exists()


def test_the_queue_has_one_order_for_all_visitors(public):
    (first,) = public.enter(ANN, grid()).runs
    (second,) = public.enter(BOB, grid()).runs
    second.update(created="2020-01-01T00:00:00+00:00")
    assert public.waiting() == [second.id, first.id]


def test_a_file_is_kept_under_a_name_of_ours_and_leaves_with_its_runs(local, tmp_path, monkeypatch):
    monkeypatch.setenv("EDITSCOPE_HOME", str(tmp_path))
    given = tmp_path / "my edits.csv"
    given.write_text("subject,prompt,target_new\nMarie Curie,{} studied,botany\n", encoding="utf-8")
    name = local.accept(given, "table")
    assert name.startswith("table:my-edits-")
    (run,) = local.enter("", grid_of({"datasets": [name]})).runs
    kept = local.uploads / name.partition(":")[2]
    assert kept.read_bytes() == given.read_bytes()
    other = local.uploads / "other.csv"
    other.write_text("x", encoding="utf-8")
    long_ago = time.time() - desk_module.FRESH - 1
    os.utime(other, (long_ago, long_ago))
    os.utime(kept, (long_ago, long_ago))
    (another,) = local.enter("", grid()).runs
    local.delete("", [another.id])
    assert kept.exists()
    assert not other.exists()
    local.delete("", [run.id])
    assert not kept.exists()


def test_visitors_files_have_a_limit_together(tmp_path):
    desk = Desk(tmp_path / "runs", Limits(all_stored=100), tmp_path / "uploads")
    given = tmp_path / "edits.csv"
    for subject in ("Marie Curie", "Lise Meitner"):
        given.write_text(f"subject,prompt,target_new\n{subject},{{}} studied the science of,botany\n", encoding="utf-8")
        desk.accept(given, "table")
    given.write_text("subject,prompt,target_new\nNiels Bohr,{} studied,botany\n", encoding="utf-8")
    with pytest.raises(BadRequest, match="take too much room"):
        desk.accept(given, "table")
    assert len(list(desk.uploads.iterdir())) == 2


def test_a_file_that_cannot_be_read_is_not_kept(local, tmp_path):
    given = tmp_path / "bad.csv"
    given.write_text("subject,prompt,target_new\nMarie Curie,no place,botany\n", encoding="utf-8")
    with pytest.raises(EditingError, match="Row 1, prompt"):
        local.accept(given, "table")
    assert not local.uploads.exists()


def test_what_the_form_asked_for_can_be_saved_as_a_file(tmp_path):
    values = {
        "editors": ["memit", "pmet"],
        "trials": 2,
        "common": {"limit": 5, "eligible": True, "assist": {"minimum": 1}},
        "editor": {"memit": {"settings": {"steps": 4, "layers": [1, 2]}}},
    }
    file = tmp_path / "grid.toml"
    file.write_text(as_toml(values), encoding="utf-8")
    assert read_grid(file) == grid_of(values)
