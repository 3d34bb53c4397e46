"""The desk: who sees which runs, what a visitor may ask for, and what is left on the disc."""

import json
import os
import time
from pathlib import Path

import pytest

from editing_core.bench import desk as desk_module
from editing_core.bench.desk import Desk, Limits, new_key
from editing_core.bench.grid import as_toml, grid_of, read_grid
from editing_core.errors import BadRequest, EditingError
from editing_core.runs.bundle import pack
from editing_core.runs.folder import CANCELLED, DONE, FAILED, HEAD, QUEUED, RUNNING, RunFolder

ONE = {"common": {"limit": 2, "iterations": 1}}
ANN, BOB = new_key(), new_key()
LONG_AGO = "2020-01-01T00:00:00+00:00"


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
        lambda: public.export(BOB, run.id, public.root / "x.zip"),
    ):
        with pytest.raises(BadRequest, match="There is no run"):
            act()
    for many in (public.cancel, public.delete, public.resume):
        assert many(BOB, [run.id]) == 0
    assert (public.folders(BOB, [run.id]), public.going(BOB), public.count(BOB)) == ([], [], 0)
    assert run.status == QUEUED
    assert ANN not in json.dumps(run.head()), "the key itself is not kept"
    assert (public.going(ANN), public.count(ANN)) == ([run.id], 1)
    assert public.cancel(ANN, [run.id]) == 1
    assert run.status == CANCELLED
    assert public.going(ANN) == []
    assert public.delete(ANN, [run.id]) == 1
    assert public.entries(ANN) == []


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../runs", "../runs/{}", "{}/", "./{}", "{}/units", ".index.sqlite", "file", "*", "a" * 300]
)
def test_no_name_leads_out_of_the_folder(local, name):
    (run,) = local.enter("", grid()).runs
    (run.path / "units").mkdir()
    (local.root / "file").touch()
    with pytest.raises(BadRequest, match="There is no run"):
        local.folder("", name.format(run.id))


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_no_file_system_knows_is_no_run(local, name):
    local.enter("", grid())
    assert local.folders("", [name]) == []


def test_folders_come_in_the_order_asked_for(local, public):
    one, two = local.enter("", grid(trials=2)).runs
    assert local.folders("", [two.id, "gone", one.id, two.id]) == [two, one]
    assert public.folders(ANN, [one.id]) == [], "what belongs to no visitor is nobody's"
    (run,) = public.enter(ANN, grid()).runs
    run.update(config={"editor": "gone"})
    assert public.folders(ANN, [run.id]) == [run], "a run that is not readable any more may still be deleted"
    (run.path / HEAD).write_text("{", encoding="utf-8")
    assert public.folders(ANN, [run.id]) == []


def test_all_that_can_is_done_and_the_rest_is_left(local):
    done, early, failed, imported, waiting, running = local.enter("", grid(trials=6)).runs
    done.update(status=DONE)
    early.cancel()
    failed.update(status=FAILED)
    imported.update(status=CANCELLED, imported=True)
    running.update(status=RUNNING)
    ids = ["gone", *(run.id for run in (done, early, failed, imported, waiting, running)), early.id]
    with running.held():
        assert local.resume("", ids) == 2
        assert [run.status for run in (done, early, failed, imported)] == [DONE, QUEUED, QUEUED, CANCELLED]
        assert sorted(local.going("")) == sorted(run.id for run in (early, failed, waiting, running))
        assert local.cancel("", ids) == 4
        assert [run.status for run in (early, failed, waiting, running)] == [CANCELLED] * 3 + [RUNNING]
        assert running.cancel_wanted
        assert local.delete("", ids) == 5
    assert [entry.id for entry in local.entries("")] == [running.id]
    assert local.delete("", ids) == 1


def test_open_runs_come_with_the_oldest_first(local):
    runs = local.enter("", grid(trials=3)).runs
    assert local.going("") == [run.id for run in runs]


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
    with pytest.raises(BadRequest, match="1 more runs were asked for while 2 of yours wait or run, at most 2"):
        public.resume(ANN, [cancelled.id])


def test_there_is_room_for_all_resumed_runs_or_for_none(public):
    early = public.enter(ANN, grid(trials=2)).runs
    public.cancel(ANN, [run.id for run in early])
    public.enter(ANN, grid(editors=["rome"]))
    with pytest.raises(BadRequest, match="2 more runs were asked for while 1 of yours"):
        public.resume(ANN, [run.id for run in early])
    assert [run.status for run in early] == [CANCELLED] * 2
    assert public.resume(ANN, [early[0].id]) == 1


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


@pytest.mark.parametrize(
    ("room", "stay"),
    [(110_000, [True, True, False, False, True, True]), (60_000, [False, True, False, False, False, True])],
)
def test_whoever_takes_most_of_a_full_disc_gives_way_first(tmp_path, room, stay):
    desk = Desk(tmp_path, Limits(waiting=9, all_stored=room), tmp_path / "uploads")
    bobs = desk.enter(BOB, grid(trials=2)).runs
    anns = desk.enter(ANN, grid(trials=4)).runs
    for number, run in enumerate((*bobs, *anns)):
        run.update(status=DONE, created=f"2026-01-0{number + 1}T00:00:00+00:00")
        (run.path / "probes.parquet").write_bytes(bytes(20_000 if run in bobs else 25_000))
    anns[1].update(imported=True)
    anns[3].update(status=QUEUED)
    desk.enter(BOB, grid(editors=["rome"]))
    assert [run.path.exists() for run in (*bobs, *anns)] == stay


def test_the_queue_has_one_order_for_all_visitors(public):
    (first,) = public.enter(ANN, grid()).runs
    (second,) = public.enter(BOB, grid()).runs
    second.update(created=LONG_AGO)
    assert public.waiting() == [second.id, first.id]


def test_visitors_wait_in_turn(public):
    anns, bobs = (public.enter(key, grid(trials=2)).runs for key in (ANN, BOB))
    assert public.waiting() == [anns[0].id, bobs[0].id, anns[1].id, bobs[1].id]


def test_a_visitors_run_has_so_much_time(public, local):
    assert public.enter(ANN, grid()).runs[0].head()["minutes"] == 30
    assert "minutes" not in local.enter("", grid()).runs[0].head()


@pytest.fixture
def edits(tmp_path, monkeypatch):
    """A file of one record."""
    monkeypatch.setenv("EDITSCOPE_HOME", str(tmp_path))
    given = tmp_path / "my edits.csv"
    given.write_text("subject,prompt,target_new\nMarie Curie,{} studied,botany\n", encoding="utf-8")
    return given


def test_a_file_is_kept_under_a_name_of_ours_and_leaves_with_its_runs(local, edits):
    entered = local.enter("", grid(datasets=["table"]), edits)
    (run,) = entered.runs
    name = entered.grid.cells[0].dataset
    assert run.head()["config"]["dataset"] == name
    assert name.startswith("table:my-edits-")
    again = local.enter("", grid(datasets=["table"]), edits)
    assert (again.runs, again.new) == ((run,), 0)
    kept = local.uploads / name.partition(":")[2]
    assert kept.read_bytes() == edits.read_bytes()
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


def test_visitors_files_have_a_limit_together(tmp_path, edits):
    desk = Desk(tmp_path / "runs", Limits(all_stored=100), tmp_path / "uploads")
    desk.uploads.mkdir()
    other = desk.uploads / "other.csv"
    other.write_bytes(bytes(101))
    with pytest.raises(BadRequest, match="take too much room"):
        desk.enter(ANN, grid(datasets=["table"]), edits)
    assert list(desk.uploads.iterdir()) == [other]
    assert desk.entries(ANN) == []
    other.write_bytes(bytes(100))
    assert desk.enter(ANN, grid(datasets=["table"]), edits).new == 1


def test_a_file_that_cannot_be_read_is_not_kept(local, edits):
    edits.write_text("subject,prompt,target_new\nMarie Curie,no place,botany\n", encoding="utf-8")
    with pytest.raises(EditingError, match="Row 1, prompt"):
        local.enter("", grid(datasets=["table"]), edits)
    assert not local.uploads.exists()
    assert local.entries("") == []


@pytest.mark.parametrize(
    ("key", "more", "told"),
    [
        ("guessed", {}, "key is missing or damaged"),
        (ANN, {"common": {"limit": 11, "iterations": 1}}, "11 edits"),
        (ANN, {"trials": 3}, "3 more runs"),
    ],
    ids=["the key", "a limit", "the room"],
)
def test_of_what_is_refused_no_file_is_kept(public, edits, key, more, told):
    with pytest.raises(BadRequest, match=told):
        public.enter(key, grid(datasets=["table"], **more), edits)
    assert not public.uploads.exists()
    assert list(public.root.glob("[!.]*")) == []


@pytest.mark.parametrize("created", [0, 1])
def test_a_file_stays_when_a_late_refusal_leaves_a_run(local, edits, monkeypatch, created):
    """The disc may be full after any number of runs."""
    steps = iter([RunFolder.create] * created)

    def create(*given):
        for step in steps:
            return step(*given)
        raise BadRequest("There is no room; make some.")

    monkeypatch.setattr(RunFolder, "create", create)
    with pytest.raises(BadRequest, match="no room"):
        local.enter("", grid(datasets=["table"], trials=2), edits)
    assert len(list(local.uploads.iterdir())) == len(local.entries("")) == created


def test_good_records_of_a_file_with_bad_ones_are_taken_if_asked_for(local, edits):
    with edits.open("a", encoding="utf-8") as file:
        file.write("Lise Meitner,no place,physics\n")
    asked = grid(datasets=["table"], common={**ONE["common"], "skip_bad": True})
    assert local.enter("", asked, edits).new == 1


@pytest.fixture
def bundle(local, tmp_path):
    """A finished run to import, of some 20,000 bytes."""
    (run,) = local.enter("", grid()).runs
    run.update(status=DONE, created=LONG_AGO)
    (run.path / "iterations.csv").write_text("k,ppl\n0,1\n", encoding="utf-8")
    (run.path / "log.txt").write_text("".join(map(str, range(5000))), encoding="utf-8")
    local.export("", run.id, tmp_path / "run.zip")
    run.delete()
    return tmp_path / "run.zip"


def runs_in(desk):
    return [path.name for path in desk.root.iterdir() if not path.name.startswith(".index")]


def test_an_import_is_the_visitors_from_the_first_moment(public, bundle, monkeypatch):
    rename, seen = os.rename, []
    monkeypatch.setattr(os, "rename", lambda a, b: (seen.append(RunFolder(Path(a)).head()["owner"]), rename(a, b)))
    folder = public.take_in(ANN, bundle)
    assert seen == [public.owner(ANN)]
    assert [entry.id for entry in public.entries(ANN)] == [folder.id]
    assert public.entries(BOB) == []
    head = folder.head()
    assert head["created_there"] == LONG_AGO
    assert head["created"] > "2026"
    assert public.resume(ANN, [folder.id]) == 0


def test_on_ones_own_machine_an_import_has_no_owner(local, bundle):
    assert "owner" not in local.take_in("", bundle).head()


@pytest.mark.parametrize("config", [{"editor": "gone"}, {"colour": "red"}, {"limit": "many"}])
def test_what_could_not_be_listed_is_not_imported(public, tmp_path, bundle, config):
    folder = public.take_in(BOB, bundle)
    folder.update(config=config)
    pack(folder.path, tmp_path / "strange.zip")
    folder.delete()
    with pytest.raises(BadRequest, match=r"The bundle's run\.json says what no run says of itself"):
        public.take_in(ANN, tmp_path / "strange.zip")
    assert runs_in(public) == []


@pytest.mark.parametrize(("room", "taken"), [(10_000, False), (30_000, True), (45_000, True)])
def test_an_import_takes_no_more_room_than_the_visitor_has(tmp_path, bundle, room, taken):
    desk = Desk(tmp_path / "runs", Limits(stored=room), tmp_path / "uploads")
    if taken:
        desk.take_in(ANN, bundle)
    if room < 45_000:
        with pytest.raises(BadRequest, match="bytes in all are allowed"):
            desk.take_in(ANN, bundle)
        assert len(runs_in(desk)) == len(desk.entries(ANN)) == taken
    else:
        desk.take_in(ANN, bundle)
    assert desk.take_in(BOB, bundle) if taken else True


def test_an_import_that_does_not_fit_in_the_end_is_removed_again(tmp_path, bundle, monkeypatch):
    desk = Desk(tmp_path / "runs", Limits(stored=30_000), tmp_path / "uploads")
    meanwhile = desk.root / "another-import"

    def import_both(*given, once=desk_module.import_run):
        once(*given).path.rename(meanwhile)
        return once(*given)

    monkeypatch.setattr(desk_module, "import_run", import_both)
    with pytest.raises(BadRequest, match="export and delete some"):
        desk.take_in(ANN, bundle)
    assert runs_in(desk) == [meanwhile.name]


def test_an_import_that_would_have_to_give_way_is_refused(tmp_path, bundle):
    desk = Desk(tmp_path / "runs", Limits(all_stored=30_000), tmp_path / "uploads")
    (run,) = desk.enter(BOB, grid()).runs
    run.update(status=DONE)
    (run.path / "log.txt").write_bytes(bytes(12_000))
    with pytest.raises(BadRequest, match="leave no room for one of this size"):
        desk.take_in(ANN, bundle)
    assert runs_in(desk) == [run.id]


def test_one_run_among_thousands_is_entered_at_once(public):
    (first,) = public.enter(ANN, grid()).runs
    head = first.head()
    for number in range(5000):
        folder = public.root / f"run-{number:05d}-abcdefgh"
        folder.mkdir()
        values = {**head, "id": folder.name, "status": DONE, "owner": f"other-{number % 50}"}
        (folder / HEAD).write_text(json.dumps(values), encoding="utf-8")
    started = time.process_time()
    public.entries(ANN)
    every = time.process_time() - started  # all heads are read once; a busy machine is slow at both
    started = time.process_time()
    assert public.enter(ANN, grid(editors=["rome"])).new == 1
    assert time.process_time() - started < max(0.5, every)
    ids = [f"run-{number:05d}-abcdefgh" for number in range(60)]
    started = time.process_time()
    assert public.folders(ANN, [first.id, *ids]) == [first]
    assert time.process_time() - started < max(0.05, every / 10)


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
