"""Stored runs: what is on disk at any moment, and that a killed or stopped run goes on to the same numbers."""

import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pandas as pd
import pytest

from editing_core.bench import runner
from editing_core.bench.config import RunConfig
from editing_core.bench.executors import Dispatcher, Fate, folders
from editing_core.bench.report import SHOWN, _without_folder
from editing_core.bench.runner import LiveJournal, work_on
from editing_core.bench.stored import read_cases, read_finished
from editing_core.cli import run
from editing_core.errors import BadRequest, BadSetting
from editing_core.files import write_text
from editing_core.runs.folder import (
    CANCEL,
    CANCELLED,
    DONE,
    FAILED,
    HEAD,
    INTERRUPTED,
    LOCK,
    QUEUED,
    RUNNING,
    UNITS,
    Busy,
    RunFolder,
)

SMALL = RunConfig(limit=4, iterations=3, stop="none", settings={"steps": 8}, collapse_factor=0.0)
LONG = RunConfig(limit=20, iterations=10, stop="none", collapse_factor=0.0)
FILES = {"run.json", "records.json", "iterations.csv", "rounds.json", "probes.parquet", "cases.csv", "run.lock"}
FILES |= {"delta.safetensors"}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, pocket):
    """The small run, done in one go."""
    folder = RunFolder.create(tmp_path_factory.mktemp("undisturbed"), SMALL.to_json())
    assert work_on(folder, lambda *_: pocket) == DONE
    return folder


def numbers(folder):
    return pd.read_csv(folder.path / "iterations.csv").select_dtypes("number")


def worker(folder):
    command = [sys.executable, "-m", "editing_core", "runs", "work", folder.id, "--root", str(folder.path.parent)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def test_a_done_run_says_what_decided_its_numbers(undisturbed):
    head = undisturbed.head()
    assert {path.name for path in undisturbed.path.iterdir()} == FILES
    assert (head["status"], head["id"], head["result"]["n_edits"]) == (DONE, undisturbed.id, 4)
    assert RunConfig.of(head["config"]) == SMALL
    assert {"created", "started", "finished", "versions", "device", "memory", "schema"} <= set(head)
    assert {"contexts", "revision", "seconds", "stopped", "seed"} <= set(head["result"])
    assert len(numbers(undisturbed)) == 4


def test_a_new_run_waits_whole(root):
    folder = RunFolder.create(root, SMALL.to_json(), owner="hash")
    assert [f.id for f in folders(root)] == [folder.id]
    assert folder.status == QUEUED
    assert folder.head()["owner"] == "hash"
    assert len(folder.id) >= 16
    assert RunFolder.create(root, SMALL.to_json()).id != folder.id


def test_a_run_that_says_running_while_nobody_works_on_it_was_interrupted(root):
    folder = RunFolder.create(root, SMALL.to_json())
    folder.update(status=RUNNING)
    assert folder.status == INTERRUPTED
    with folder.held():
        assert folder.status == RUNNING
        with pytest.raises(Busy), folder.held():
            pass
        with pytest.raises(BadRequest, match="still running"):
            folder.delete()
        with pytest.raises(BadRequest, match="still running"):
            folder.queue()
    folder.queue()
    assert folder.status == QUEUED
    folder.cancel()
    assert folder.status == CANCELLED
    folder.delete()
    assert list(root.iterdir()) == []


def test_looking_at_a_run_takes_no_lock_from_anybody(root, monkeypatch):
    folder = RunFolder.create(root, SMALL.to_json())
    folder.update(status=RUNNING)
    assert folder.status == INTERRUPTED
    assert not (folder.path / LOCK).exists(), "who only looks writes nothing"
    with folder.held():
        pass
    with (folder.path / LOCK).open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # somebody else looks at the same time
        assert folder.status == INTERRUPTED
        monkeypatch.setattr(time, "sleep", lambda _: other.close())
        with folder.held():
            assert folder.is_held()


@pytest.mark.parametrize("act", [RunFolder.queue, RunFolder.delete, RunFolder.cancel])
def test_a_run_is_not_busy_because_somebody_looks_at_it(root, monkeypatch, act):
    folder = RunFolder.create(root, SMALL.to_json())
    folder.update(status=RUNNING)
    with folder.held():
        pass
    with (folder.path / LOCK).open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda seconds: seconds and other.close())
        act(folder)
    assert not (folder.path / CANCEL).exists()


def test_a_busy_run_is_told_soon(root):
    folder = RunFolder.create(root, SMALL.to_json())
    with folder.held():
        started = time.monotonic()
        with pytest.raises(Busy), folder.held():
            pass
        assert 0.045 < time.monotonic() - started < 0.5


@pytest.mark.parametrize(
    "ask",
    [
        RunFolder.is_held,
        RunFolder.head,
        RunFolder.update,
        RunFolder.queue,
        RunFolder.delete,
        RunFolder.cancel,
        lambda folder: folder.status,
        lambda folder: folder.held().__enter__(),
        lambda folder: folder.standing(RUNNING),
    ],
)
@pytest.mark.parametrize("began", [False, True])
def test_a_run_that_is_gone_is_told_in_a_sentence(root, ask, began):
    folder = RunFolder.create(root, SMALL.to_json())
    if began:
        with folder.held():
            pass
    folder.delete()
    with pytest.raises(BadRequest, match=folder.id):
        ask(folder)
    assert list(root.iterdir()) == []


def test_a_run_that_goes_while_its_lock_is_waited_for_is_told_too(root, monkeypatch):
    folder = RunFolder.create(root, SMALL.to_json())
    with folder.held():
        monkeypatch.setattr(time, "sleep", lambda _: shutil.rmtree(folder.path, ignore_errors=True))
        with pytest.raises(BadRequest, match="is not there any more"):
            folder.cancel()


@pytest.mark.parametrize("change", [{"status": 5}, {"status": None}, {"config": []}, {"config": None}])
def test_a_head_without_status_or_configuration_is_unreadable(root, change):
    folder = RunFolder.create(root, SMALL.to_json())
    write_text(folder.path / HEAD, json.dumps({**folder.head(), **change}))
    with pytest.raises(BadRequest, match=r"has no readable run\.json"):
        folder.head()


def test_an_imported_run_does_not_go_on_here(root):
    folder = RunFolder.create(root, SMALL.to_json())
    folder.update(status=CANCELLED, imported=True)
    with pytest.raises(BadRequest, match="was imported"):
        folder.queue()


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_numbers_of_an_undisturbed_one(root, undisturbed, kills):
    folder, moments = RunFolder.create(root, SMALL.to_json()), random.Random(kills)
    for _ in range(kills):
        process = worker(folder)
        assert until(lambda p=process: folder.head()["status"] == RUNNING or p.poll() is not None)
        time.sleep(moments.uniform(0.0, 2.0))
        process.kill()
        process.wait()
        if folder.head()["status"] == DONE:
            break
        assert folder.status == INTERRUPTED
        folder.queue()
    assert worker(folder).wait(120) == 0
    assert folder.status == DONE
    pd.testing.assert_frame_equal(numbers(folder), numbers(undisturbed), rtol=1e-5, atol=1e-5)
    assert {path.name for path in folder.path.iterdir()} == FILES


@pytest.mark.parametrize(
    ("protocol", "shown"),
    [
        pytest.param("single", [(2, 1), (2, 2), (2, 3), (2, 4)], marks=pytest.mark.slow),
        pytest.param("sequential", [(1, 1), (1, 2), (1, 2), (1, 3), (1, 4)], marks=pytest.mark.slow),
    ],
)
def test_tables_of_several_edits_grow_while_their_run_goes_on(root, pocket, monkeypatch, protocol, shown):
    """Stopped after its second showing a run has tables of what is done, and it ends as an undisturbed one."""
    config = replace(SMALL, protocol=protocol, iterations=2, settings={"steps": 4})
    folder, whole = (RunFolder.create(root, config.to_json()) for _ in range(2))
    assert work_on(whole, lambda *_: pocket) == DONE
    found = []

    def show(self, so_far, show=LiveJournal.show):
        show(self, so_far)
        found.append(consistent(folder))
        if len(found) == 2:
            folder.cancel()
            raise runner.Cancelled

    def followed(write):
        """A writer after which the run is read, with tables that were written and tables still to be."""

        def written(*given):
            write(*given)
            if (folder.path / "iterations.csv").exists():
                consistent(folder)

        return written

    monkeypatch.setattr(LiveJournal, "show", show)
    for name in ("write_probes", "write_text"):
        monkeypatch.setattr(runner, name, followed(getattr(runner, name)))
    assert work_on(folder, lambda *_: pocket) == CANCELLED
    assert consistent(folder) == shown[1]
    assert (folder.path / "checkpoints.csv").exists() == (protocol == "sequential")
    folder.queue()
    assert work_on(folder, lambda *_: pocket) == DONE
    assert found == shown
    assert consistent(folder) == shown[-1]
    for one, other in zip(tables(folder), tables(whole), strict=True):
        pd.testing.assert_frame_equal(one, other)


def consistent(folder):
    """The last k of a run's tables, which have all up to it, and of how many records they are."""
    run, (cases, last) = read_finished(folder), read_cases(folder)
    assert run.iterations["k"].tolist() == list(range(last + 1))
    assert run.probes["k"].unique().tolist() == list(range(last + 1))
    assert cases["k"].unique().tolist() == list(range(1, last + 1))
    return last, run.n_edits


def tables(folder):
    """Every table of a run."""
    run, (cases, _) = read_finished(folder), read_cases(folder)
    return [run.iterations, run.probes, cases, *map(pd.read_csv, folder.path.glob("checkpoints.csv"))]


def test_a_cancel_ends_within_two_seconds_and_keeps_what_was_finished(root):
    folder = RunFolder.create(root, LONG.to_json())
    process = worker(folder)
    assert until(lambda: (folder.path / UNITS / "iteration-1.safetensors").is_file(), 120)
    assert folder.progress()["round"] >= 1
    started = time.monotonic()
    folder.cancel()
    process.wait(10)
    assert time.monotonic() - started < 2.0
    assert folder.status == CANCELLED
    assert len(numbers(folder)) >= 2
    assert (folder.path / "probes.parquet").is_file()
    assert (folder.path / "cases.csv").is_file()


def test_what_cannot_be_done_is_told_in_the_run(root, pocket):
    folder = RunFolder.create(root, {**SMALL.to_json(), "dataset": "table:/nowhere.csv"})
    assert work_on(folder, lambda *_: pocket) == FAILED
    assert "nowhere.csv" in folder.head()["error"]
    broken = RunFolder.create(root, SMALL.to_json())
    assert work_on(broken, lambda *_: 1 / 0) == FAILED
    assert "Something went wrong" in broken.head()["error"]


def test_a_second_worker_leaves_a_finished_run_alone(undisturbed):
    before = undisturbed.head()
    assert work_on(undisturbed, lambda *_: pytest.fail("loaded again")) == DONE
    assert undisturbed.head() == before


class Threads:
    """An executor whose workers are threads that only say they ran."""

    places = 2

    def __init__(self):
        self.order, self.most, self.gate = [], 0, threading.Event()

    def start(self, folder, place):
        self.order.append((folder.id, place))
        done = threading.Event()
        ready = threading.Event()

        def work():
            with folder.held():
                folder.update(status=RUNNING)
                ready.set()
                self.gate.wait(10)
                folder.update(status=DONE)
            done.set()

        threading.Thread(target=work, daemon=True).start()
        ready.wait(10)
        return type("Handle", (), {"poll": lambda _self: Fate.ENDED if done.is_set() else None})()


def test_the_dispatcher_starts_the_oldest_first_and_no_more_than_there_is_room_for(root):
    made = []
    for number in range(4):
        made.append(RunFolder.create(root, SMALL.to_json()))
        made[-1].update(created=f"2026-01-01T00:00:0{number}+00:00")
    executor = Threads()
    with Dispatcher(root, executor) as dispatcher:
        assert dispatcher.step() == 4
        assert executor.order == [(made[0].id, 0), (made[1].id, 1)]
        assert dispatcher.step() == 4, "nothing more fits"
        assert len(executor.order) == 2
        made[2].cancel()
        executor.gate.set()
        dispatcher.drain()
    assert [name for name, _ in executor.order] == [made[0].id, made[1].id, made[3].id]
    assert [folder.status for folder in made] == [DONE, DONE, CANCELLED, DONE]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"editr": "memit"}, "Did you mean 'editor'"),
        ({"editor": "memmit"}, "Did you mean 'memit'"),
        ({"limit": "many"}, "limit must be a whole number"),
        ({"limit": True}, "limit must be a whole number"),
        ({"settings": {"stepss": 3}}, "stepss"),
        ({"settings": 3}, "settings must be a table"),
        ({"conventions": {"padding": "up"}}, "padding"),
        ({"protocol": "all"}, "Unknown protocol"),
        ({"stop": "never"}, "stop"),
        ({"dataset": "facts"}, "pocket-facts"),
        ({"iterations": 0}, "iterations"),
        ({"generate": True, "protocol": "single"}, "generate needs one edit"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(values, sentence):
    with pytest.raises(BadSetting, match=sentence):
        RunConfig.of(values, "cell 1")


def test_a_configuration_comes_back_from_plain_values():
    config = RunConfig(editor="memit", settings={"layers": [0, 1]}, assist={"neighbors": "na"}, limit=5)
    assert RunConfig.of(config.to_json()) == config
    assert config.plan.settings.layers == (0, 1)
    assert config.key == RunConfig.of(config.to_json()).key != SMALL.key
    assert "NA" in config.name


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("table:/home/me/edits.csv", "table:edits.csv"),
        ("/a/b/texts.json", "texts.json"),
        ("pocket-facts", "pocket-facts"),
        (3, 3),
    ],
)
def test_a_report_names_no_folders(value, shown):
    assert _without_folder(value) == shown


def test_runs_are_listed_shown_and_deleted_from_the_command_line(root, capsys):
    folder = RunFolder.create(root, SMALL.to_json())
    where = ["--root", str(root)]
    assert run(["runs", "list", *where]) == 0
    assert run(["runs", "show", folder.id, *where]) == 0
    assert capsys.readouterr().out.count(folder.id) == 2
    assert run(["runs", "resume", folder.id, *where]) == 2
    assert "only one that ended early" in capsys.readouterr().err
    assert run(["runs", "cancel", folder.id, *where]) == 0
    assert run(["runs", "resume", folder.id, *where]) == 0
    assert folder.status == QUEUED
    assert run(["runs", "delete", folder.id, *where]) == 0
    assert run(["runs", "show", f"../{folder.id}", *where]) == 2
    assert "There is no run" in capsys.readouterr().err
    assert list(folders(root)) == []


def test_a_grid_is_done_once_and_printed_as_a_table(root, tmp_path, capsys):
    grid = tmp_path / "grid.toml"
    grid.write_text(
        "editors = ['memit', 'rome']\n[common]\nlimit = 2\niterations = 1\nstop = 'none'\n[editor.memit]\n"
        "settings = { steps = 4 }\n[editor.rome]\nsettings = { steps = 400 }\n",
        encoding="utf-8",
    )
    assert run(["bench", "--config", str(grid), "--root", str(root)]) == 2
    assert "pocket-gpt2, rome, pocket-facts: steps is 400" in capsys.readouterr().err
    assert not root.exists()
    grid.write_text(grid.read_text(encoding="utf-8").replace("400", "4"), encoding="utf-8")
    assert run(["bench", "--config", str(grid), "--root", str(root)]) == 0
    told = capsys.readouterr().out
    assert told.count("  done  ") == 2
    assert "| " in told
    before = {folder.id: folder.head()["finished"] for folder in folders(root)}
    assert len(before) == 2
    assert run(["bench", "--config", str(grid), "--root", str(root)]) == 0
    assert {folder.id: folder.head()["finished"] for folder in folders(root)} == before
    one, other = before
    where = ["--root", str(root)]
    assert run(["runs", "compare", one, other, "--against", one, *where]) == 0
    assert "paired over 2 records" in capsys.readouterr().out
    assert run(["runs", "compare", one, other, "--format", "latex", *where]) == 0
    assert "toprule" in capsys.readouterr().out
    assert run(["runs", "report", one, other, "--out", str(tmp_path / "report.html"), *where]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("Plotly.newPlot") == len(SHOWN)
    assert "<table>" in page
    assert one not in page, "who has an id may see the run"
    assert run(["runs", "export", one, str(tmp_path / "run.zip"), *where]) == 0
    assert run(["runs", "import", str(tmp_path / "run.zip"), *where]) == 0
    imported = capsys.readouterr().out.strip()
    assert imported not in before
    assert RunFolder(root / imported).status == DONE
    pd.testing.assert_frame_equal(numbers(RunFolder(root / imported)), numbers(RunFolder(root / one)))
