"""Who dispatches, on which places, and what becomes of runs whose worker was lost; at the end with a real cluster."""

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
import torch

from editing_core.bench import executors
from editing_core.bench.executors import MOST_LOST, Dispatcher, Fate, LocalProcesses, executor_of
from editing_core.bench.runner import work_on
from editing_core.cli import run
from editing_core.errors import BadSetting
from editing_core.runs.folder import CANCELLED, DONE, FAILED, INTERRUPTED, QUEUED, RUNNING, RunFolder
from tests.engine.test_runs import LONG, SMALL, numbers, until

LEADER = """
import sys, time
from pathlib import Path
from editing_core.bench.executors import Dispatcher, LocalProcesses
dispatcher = Dispatcher(Path(sys.argv[1]), LocalProcesses())
print(dispatcher.leads, flush=True)
time.sleep(60)
"""
STEP = {
    "stage": "optimise",
    "done": 4,
    "total": 8,
    "round": 1,
    "note": "",
    "terms": {},
    "seconds": 2.0,
    "memory": 2**30,
}
NO_RAY = "Ray is not installed: pip install -r requirements-ray.txt"


class Hands:
    """An executor whose workers do what the test says. died: what becomes of those that are gone, by run."""

    def __init__(self, places=2):
        self.places, self.started, self.gone = places, [], {}

    def start(self, folder, place):
        self.started.append((folder.id, place))
        self.gone.pop(folder.id, None)
        return type("Worker", (), {"poll": lambda _self: self.gone.get(folder.id)})()

    def close(self):
        pass

    def lose(self, folder):
        """The worker had begun, and is gone."""
        folder.update(status=RUNNING)
        self.gone[folder.id] = Fate.LOST


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def hands():
    return Hands()


@pytest.fixture
def leader(root, hands):
    with Dispatcher(root, hands) as dispatcher:
        yield dispatcher


def queued(root, count=1):
    """Runs, the oldest first."""
    made = [RunFolder.create(root, SMALL.to_json()) for _ in range(count)]
    for number, folder in enumerate(made):
        folder.update(created=f"2026-01-01T00:00:{number:02}+00:00")
    return made


def test_one_dispatcher_leads_and_the_next_takes_over(root, hands, leader):
    (folder,) = queued(root)
    other = Dispatcher(root, Hands())
    assert leader.leads
    assert not other.leads
    assert other.step() == 1, "it counts"
    assert other.executor.started == []
    leader.close()
    assert other.step() == 1
    assert other.executor.started == [(folder.id, 0)]
    assert not leader.leads
    leader.step()
    assert hands.started == []
    other.close()


def test_a_dead_process_leads_no_more(root, leader):
    queued(root)
    process = subprocess.Popen([sys.executable, "-c", LEADER, str(root)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "True\n"
        assert leader.step() == 1
        assert leader.executor.started == []
    finally:
        process.kill()
        process.communicate()
    leader.step()
    assert len(leader.executor.started) == 1


def test_a_new_leader_keeps_off_the_places_of_living_workers(root, hands):
    first, second, third, dead = queued(root, 4)
    with Dispatcher(root, hands) as before:
        before.step()
    assert hands.started == [(first.id, 0), (second.id, 1)]
    first.update(status=DONE)
    second.update(status=RUNNING)
    dead.update(status=RUNNING, place=0)
    with second.held(), Dispatcher(root, Hands()) as after:
        assert after.step() == 2
        assert after.executor.started == [(third.id, 0)], "one place is taken, not that of the dead"
        after.executor.places = 1
        after.step()
        assert len(after.executor.started) == 1, "there are more workers than places now"


def test_a_run_whose_worker_is_still_on_its_way_keeps_its_place(root, hands):
    first, second = queued(root, 2)
    with Dispatcher(root, hands) as before:
        before.step()
    first.update(status=DONE)
    with Dispatcher(root, Hands()) as after:
        after.step()
        assert after.executor.started == [(second.id, 1)]


def after_the_look(monkeypatch, act):
    """Something happens between the dispatcher's look at the runs and what it does about them."""
    look = executors._open_runs

    def slow(where):
        found = look(where)
        act()
        return found

    monkeypatch.setattr(executors, "_open_runs", slow)


def test_a_run_that_was_cancelled_since_the_look_is_not_started(root, hands, leader, monkeypatch):
    first, second = queued(root, 2)
    after_the_look(monkeypatch, first.cancel)
    leader.step()
    assert hands.started == [(second.id, 0)]
    assert first.status == CANCELLED


def test_the_oldest_runs_of_all_owners_are_started_first(root, hands, leader):
    ann, more, bob = queued(root, 3)
    for folder in (ann, more):
        folder.update(owner="ann")
    hands.places = 1
    leader.step()
    ann.update(status=DONE, started="2026-01-01T00:01:00+00:00")
    hands.gone[ann.id] = Fate.ENDED
    leader.step()
    assert [name for name, _ in hands.started] == [ann.id, bob.id]


@pytest.mark.parametrize(("minutes", "late"), [(30, False), (9.99, True), (None, False)])
def test_a_run_that_takes_longer_than_it_may_is_cancelled_and_says_why(root, hands, leader, minutes, late):
    (folder,) = queued(root)
    leader.step()
    began = datetime.now(UTC) - timedelta(minutes=10)
    with folder.held():
        folder.update(status=RUNNING, started=began.isoformat(timespec="seconds"), minutes=minutes)
        leader.step()
        assert folder.cancel_wanted == late
        folder.update(status=CANCELLED, error=folder.why_cancelled)  # as its worker does
    hands.gone[folder.id] = Fate.ENDED
    leader.step()
    assert folder.status == CANCELLED
    assert ("more than 9.99 minutes" in folder.head().get("error", "")) == late
    folder.queue()
    assert "error" not in folder.head()
    assert not folder.cancel_wanted


def test_a_lost_run_that_took_too_long_says_so(root, hands, leader):
    (folder,) = queued(root)
    leader.step()
    with folder.held():
        folder.update(status=RUNNING, started="2026-01-01T00:00:00+00:00", minutes=30)
        leader.step()
    hands.gone[folder.id] = Fate.LOST
    leader.step()
    assert folder.status == CANCELLED
    assert "more than 30 minutes" in folder.head()["error"]


def test_a_person_who_cancels_first_is_not_told_of_minutes(root, leader):
    (folder,) = queued(root)
    leader.step()
    with folder.held():
        folder.update(status=RUNNING, started="2026-01-01T00:00:00+00:00", minutes=30)
        folder.cancel()
        leader.step()
        assert folder.why_cancelled is None


def test_a_run_that_is_deleted_since_the_look_is_not_started(root, hands, leader, monkeypatch):
    first, second = queued(root, 2)
    after_the_look(monkeypatch, first.delete)
    assert leader.step() == 2
    assert hands.started == [(second.id, 0)]


def test_a_lost_run_goes_on_but_not_for_ever(root, hands, leader):
    (folder,) = queued(root)
    leader.step()
    for lost in range(1, MOST_LOST + 1):
        hands.lose(folder)
        leader.step()
        assert len(hands.started) == 1 + lost
        assert folder.status == QUEUED
        assert leader.minds(folder)
    hands.lose(folder)
    assert leader.step() == 0
    assert folder.status == FAILED
    assert f"lost {MOST_LOST + 1} times" in folder.head()["error"]
    assert len(hands.started) == 1 + MOST_LOST
    assert not leader.minds(folder)


def test_a_lost_run_waits_for_its_lock(root, hands, leader):
    (folder,) = queued(root)
    leader.step()
    with folder.held():
        hands.lose(folder)
        leader.step()
        assert leader.minds(folder)
        assert folder.status == RUNNING
    assert folder.status == INTERRUPTED
    leader.step()
    assert len(hands.started) == 2


@pytest.mark.parametrize("status", [DONE, FAILED, CANCELLED])
def test_a_lost_worker_changes_nothing_in_a_run_that_ended(root, hands, leader, status):
    (folder,) = queued(root)
    leader.step()
    folder.update(status=status)
    hands.gone[folder.id] = Fate.LOST
    assert leader.step() == 0
    assert folder.status == status
    assert len(hands.started) == 1


def test_a_lost_run_that_was_to_be_cancelled_is(root, hands, leader):
    (folder,) = queued(root)
    leader.step()
    with folder.held():
        folder.update(status=RUNNING)
        folder.cancel()
    hands.gone[folder.id] = Fate.LOST
    leader.step()
    assert folder.status == CANCELLED
    assert len(hands.started) == 1


def test_a_run_whose_local_worker_was_killed_stays_interrupted(root, hands, leader):
    (folder,) = queued(root)
    leader.step()
    folder.update(status=RUNNING)
    hands.gone[folder.id] = Fate.ENDED
    leader.step()
    assert folder.status == INTERRUPTED
    assert len(hands.started) == 1
    assert not leader.minds(folder)


def test_workers_that_never_begin_are_not_started_for_ever(root, hands, leader):
    (folder,) = queued(root)
    for _ in range(3 * MOST_LOST):
        leader.step()
        hands.gone[folder.id] = Fate.ENDED
    assert folder.status == FAILED
    assert len(hands.started) == 1 + MOST_LOST


def test_a_deleted_run_is_forgotten(root, hands, leader):
    (folder,) = queued(root)
    leader.step()
    folder.delete()
    hands.gone[folder.id] = Fate.LOST
    assert leader.step() == 0
    assert not leader.minds(folder)


@pytest.mark.parametrize(("visible", "device"), [("2,3", "3"), (None, "1"), ("", "1")])
def test_a_place_is_one_of_the_gpus_this_process_may_use(root, monkeypatch, visible, device):
    (folder,) = queued(root)
    seen = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: seen.update(env))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    LocalProcesses(places=2).start(folder, 1)
    assert seen["CUDA_VISIBLE_DEVICES"] == device


def test_a_killed_local_worker_ended_and_a_living_one_has_no_fate(root):
    (folder,) = queued(root)
    worker = LocalProcesses(places=1).start(folder, 0)
    assert worker.poll() is None
    worker.process.kill()
    worker.process.wait()
    assert worker.poll() is Fate.ENDED


@pytest.mark.parametrize("text", ["", "Ray", "local:3", "ray:", "slurm"])
def test_unknown_executors_are_refused_in_one_sentence(text):
    with pytest.raises(BadSetting, match=r"allowed are local, ray and ray:ADDRESS"):
        executor_of(text)


def test_without_ray_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "editing_core.bench.ray_executor", raising=False)
    for text in ("ray", "ray:10.0.0.1:6379"):
        with pytest.raises(BadSetting, match=r"pip install -r requirements-ray\.txt"):
            executor_of(text)
    assert executor_of("local") == LocalProcesses()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nowhere", "a:b", "[::1]:9", "256.1.1.1:6379"])
def test_an_address_without_a_cluster_is_refused_at_once(address):
    pytest.importorskip("ray", reason=NO_RAY)
    with pytest.raises(BadSetting, match=r"Ray cannot be used at .*; start a cluster there"):
        executor_of(f"ray:{address}")


def test_a_second_process_does_not_send_another_ones_queue_elsewhere(root, tmp_path, leader, monkeypatch, capsys):
    assert leader.leads
    grid = tmp_path / "grid.toml"
    grid.write_text("[common]\nlimit = 2\niterations = 1\n", encoding="utf-8")
    monkeypatch.setattr("editing_core.cli_runs.executor_of", lambda _: Hands())
    assert run(["bench", "--config", str(grid), "--root", str(root), "--executor", "ray"]) == 2
    assert "another folder with --root" in capsys.readouterr().err
    assert [path.name for path in root.iterdir()] == [".dispatcher.lock"]


def test_the_end_of_a_run_is_waited_for_with_its_progress_on_a_terminal(root, monkeypatch, capsys):
    (folder,) = queued(root)
    looks = iter((QUEUED, RUNNING, DONE))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("time.sleep", lambda _: folder.update(status=next(looks), started="2026-01-01T00:00:00+00:00"))
    with folder.held():
        folder.tell({**STEP, "round": 2, "done": 4})
        assert run(["runs", "show", folder.id, "--root", str(root), "--follow"]) == 0
    printed, line = capsys.readouterr()
    assert f"{folder.id}: done" in printed
    assert "Waiting" in line
    assert "Iteration 2/3: Optimising the target state 4/8" in line
    assert line.endswith("\r\x1b[K")


def test_a_worker_leaves_a_run_alone_that_another_one_is_at(root):
    (folder,) = queued(root)
    command = [sys.executable, "-m", "editing_core", "runs", "work", folder.id, "--root", str(root)]
    with folder.held():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Another process works on run" in done.stderr
    assert "Traceback" not in done.stderr
    assert folder.status == QUEUED


@pytest.fixture(scope="module")
def grid(tmp_path_factory, pocket):
    """Three small runs, and their numbers when nothing disturbs them."""
    configs = [replace(SMALL, trial=trial, seed=trial) for trial in range(3)]
    root = tmp_path_factory.mktemp("alone")
    made = [RunFolder.create(root, config.to_json()) for config in configs]
    assert [work_on(folder, lambda *_: pocket) for folder in made] == [DONE] * 3
    return configs, [numbers(folder) for folder in made]


@pytest.fixture
def ray():
    return pytest.importorskip("ray", reason=NO_RAY)


@pytest.fixture
def cluster():
    """Two hosts with a processor each, and one that only keeps the books."""
    utils = pytest.importorskip("ray.cluster_utils", reason=NO_RAY)
    cluster = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
def test_a_person_cancels_a_run_on_a_cluster_and_its_end_interrupts_one(root, ray):
    cancelled, stopped = made = [RunFolder.create(root, replace(LONG, seed=seed).to_json()) for seed in range(2)]
    executor = executor_of("ray")
    with Dispatcher(root, executor) as dispatcher:
        try:
            assert until(lambda: dispatcher.step() and all(f.progress().get("round", 0) for f in made), 120)
            cancelled.cancel()
            assert until(lambda: dispatcher.step() and not dispatcher.minds(cancelled), 20)
            assert stopped.status == RUNNING
        finally:
            executor.close()
    assert not ray.is_initialized()
    assert until(lambda: stopped.status == INTERRUPTED, 20)
    assert cancelled.status == CANCELLED
    assert stopped.head()["place"] in (0, 1)


@pytest.mark.slow
def test_runs_on_a_cluster_survive_the_loss_of_a_host(root, grid, cluster):
    configs, undisturbed = grid
    made = [RunFolder.create(root, config.to_json()) for config in configs]
    executor = executor_of(f"ray:{cluster.address}")
    with Dispatcher(root, executor) as dispatcher:
        try:
            assert executor.places == 2
            dispatcher.step()
            going = made[:2]
            assert until(lambda: dispatcher.step() and all(f.progress().get("round", 0) for f in going), 120)
            assert [folder.status for folder in made] == [RUNNING, RUNNING, QUEUED]
            cluster.remove_node(
                next(iter(cluster.worker_nodes)), allow_graceful=False
            )  # SIGKILL, as when its power fails
            dispatcher.drain()
            assert executor.places == 1
        finally:
            executor.close()
    assert [folder.status for folder in made] == [DONE] * 3
    assert sum(dispatcher._lost.values()) == 1
    for folder, numbers_then in zip(made, undisturbed, strict=True):
        pd.testing.assert_frame_equal(numbers(folder), numbers_then, rtol=1e-5, atol=1e-5)
