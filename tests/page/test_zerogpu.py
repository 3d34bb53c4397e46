"""ZeroGPU: tasks in a forked worker give what they give here, and whatever goes wrong there is one sentence."""

import hashlib
import importlib
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pandas as pd
import pytest
import torch

import app
from components import zerogpu
from components.jobs import Jobs
from components.run_store import StoredRun
from components.work import Asking, climbing, comparing, editing, looking
from components.zerogpu import LONGEST, ZeroGPU
from editing_core.bench.desk import Desk, Limits
from editing_core.comparing import prompts_of
from editing_core.editors.load import Load
from editing_core.editors.recipes import LADDER
from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadRequest, Cancelled, EditingError, NoGpu
from editing_core.evaluation.consistency import bundled_references
from editing_core.ladder import Rung
from editing_core.models.delta import WeightDelta
from editing_core.models.host import ModelHost
from editing_core.registry import editor_row
from editing_core.runs.record import NO_BASE, Base, EditPlan
from editing_core.session import run_edit
from editing_core.statistics.covariance import CovarianceStore
from editing_core.tasks import Task, pack
from editing_core.types import EditRequest, Step, ignore
from tests.conftest import bit_equal, snapshot

FAKE = Path(__file__).with_name("fake")
MODEL = "pocket-gpt2"
QUOTA = "You have exceeded your free ZeroGPU quota (40s requested vs. 12s left). Try again in 5:12:00. "
FACT = EditRequest("Edward Matthew Ward", "{} was born in", "Boston", "London")
ROW = editor_row("memit")
PLAN = EditPlan("memit", ROW.preset(MODEL).settings, StopSettings(iterations=1))
LONG = replace(PLAN, stop=StopSettings(iterations=10, stop="none", collapse_factor=0.0))


@pytest.fixture
def fake(monkeypatch):
    """The fake `spaces`, importable under its name; its workers are ended afterwards."""
    monkeypatch.syspath_prepend(str(FAKE))
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    module = zerogpu.spaces()
    assert module.__file__ == str(FAKE / "spaces.py")
    yield module.state
    for worker in module.state.workers:
        worker.process.kill()
        worker.process.join(10)
    del sys.modules["spaces"]


@pytest.fixture
def gpu(fake, host):
    assert not fake.workers
    return ZeroGPU(importlib.import_module("spaces"), host, CovarianceStore())


@pytest.fixture(scope="module")
def ours(pocket):
    """What this process gives."""
    return run_edit(pocket, [FACT], PLAN)


@pytest.fixture
def unchanged(pocket):
    before = snapshot(pocket.model)
    yield
    assert bit_equal(pocket.model, before)


def an_edit(requests=(FACT,), plan=PLAN, base=NO_BASE):
    return editing(MODEL, requests, plan, None, base)


def tell_process(_lm, _store, _watch):
    return os.getpid()


def break_down(_lm, _store, _watch):
    raise ZeroDivisionError


def end_process(_lm, _store, watch):
    watch(Step("measure", 0, 1))
    time.sleep(0.5)  # until what was told has left
    os._exit(9)


def say_name(lm, _store, _watch):
    return lm.name


def give_back(_lm, _store, _watch, value):
    return value


def fingerprint(lm, _store, _watch):
    """Of all weights, and the number of edits on them."""
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in lm.model.state_dict().values())).hexdigest()
    return digest, lm.edited


def small(do, model=MODEL, quick=False):
    return Task(do, model, (), Load(), quick)


@pytest.mark.usefixtures("unchanged")
def test_a_worker_gives_the_numbers_of_this_process(gpu, fake, ours):
    steps, alive = [], []

    def watch(step):
        steps.append(step.stage)
        alive.append([worker.process.is_alive() for worker in fake.workers])

    stored = gpu.do(an_edit(), watch)
    theirs = stored.run
    assert len(fake.workers) == 1
    for name in ("iterations", "probes", "cases"):
        one, other = (getattr(run, name).drop(columns="seconds", errors="ignore") for run in (ours, theirs))
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    (mine,), (its,) = (run.deltas for run in (ours, theirs))
    assert mine.tensors().keys() == its.tensors().keys()
    assert all(torch.equal(tensor, its.tensors()[name]) for name, tensor in mine.tensors().items())
    assert set(stored.looks) == {(0, 0), (0, 1)}
    # They came while the worker worked, not with the result.
    assert steps[0] == zerogpu.WAITING.stage
    assert {"measure", "optimise", "spread"} <= set(steps)
    assert alive[1] == [True]
    (asked,) = fake.asked
    assert 1 <= asked <= LONGEST


def test_no_tensor_becomes_shared_memory_on_the_way(gpu, ours):
    own = ours.delta_at(1).tensors()
    places = {name: tensor.data_ptr() for name, tensor in own.items()}
    there = gpu.do(Task(give_back, MODEL, (Base(ours.delta_at(1), (ours.id,)),), Load()), ignore)
    assert there.ids == (ours.id,)
    assert {name: tensor.data_ptr() for name, tensor in own.items()} == places
    for name, tensor in there.delta.tensors().items():
        assert torch.equal(tensor, own[name])
        assert not tensor.is_shared()
        assert not own[name].is_shared()


@pytest.mark.usefixtures("unchanged")
def test_a_cancel_ends_the_work_in_the_worker(gpu, fake, pocket):
    jobs, seen = Jobs(), threading.Event()

    def work(watch):
        def told(step):
            watch(step)
            if step.round:
                seen.set()

        return gpu.do(an_edit(plan=LONG), told)

    job = jobs.start(work)
    assert seen.wait(30)
    job.stop()
    assert isinstance(job.error, Cancelled)
    # The worker is free again: it takes the next task, and its model is as it was.
    fake.reuse = True
    assert jobs.thread.call(lambda: gpu.do(small(fingerprint), ignore)) == fingerprint(pocket, None, ignore)
    assert len(fake.workers) == 1


def test_what_the_engine_refuses_in_a_worker_is_its_own_sentence(gpu, pocket):
    wrong = replace(FACT, subject="Zoë")
    with pytest.raises(BadRequest) as here:
        run_edit(pocket, [wrong], PLAN)
    with pytest.raises(BadRequest) as there:
        gpu.do(an_edit([wrong]), ignore)
    assert str(there.value) == str(here.value)


def test_a_defect_in_a_worker_is_no_refusal(gpu):
    with pytest.raises(gr.Error, match="ZeroDivisionError") as found:
        gpu.do(small(break_down), ignore)
    assert not isinstance(found.value, EditingError)


def test_a_worker_that_is_gone_is_told_in_a_sentence(gpu):
    with pytest.raises(NoGpu, match=r"taken back after \d+ of"):
        gpu.do(small(end_process), ignore)


def test_work_that_takes_too_long_is_refused_before_it_starts(gpu, fake):
    facts = [replace(FACT, subject=f"Somebody {n}", case_id=n) for n in range(100)]
    plan = EditPlan("rome", editor_row("rome").preset(MODEL).settings, StopSettings(iterations=5))
    with pytest.raises(NoGpu, match=r"would take about \d+ seconds .* fewer facts, iterations or steps"):
        gpu.do(an_edit(facts, plan), ignore)
    assert not fake.asked


def test_looks_at_bundled_models_need_no_worker(gpu, fake):
    assert gpu.do(small(tell_process, quick=True), ignore) == os.getpid()
    assert not fake.asked
    assert gpu.do(small(tell_process), ignore) != os.getpid()


def test_locks_held_by_others_at_the_fork_do_not_stop_a_worker(gpu, fake, host):
    held, over = threading.Event(), threading.Event()

    def hold():
        with host._lock:
            held.set()
            over.wait(30)

    holder = threading.Thread(target=hold)
    fake.at_fork = lambda: (holder.start(), held.wait(10))
    try:
        assert gpu.do(small(tell_process), ignore) != os.getpid()
    finally:
        over.set()
        holder.join()


def test_a_worker_that_is_used_again_loads_what_came_after_it(fake):
    host = ModelHost(device="cpu")
    gpu, fake.reuse = ZeroGPU(importlib.import_module("spaces"), host, CovarianceStore()), True
    assert gpu.do(small(say_name), ignore) == MODEL
    assert not host.is_loaded("pocket-llama")
    assert gpu.do(small(say_name, "pocket-llama"), ignore) == "pocket-llama"
    assert len(fake.workers) == 1


def test_a_refusal_reaches_the_visitor(gpu, fake):
    fake.refusal = gr.Error(QUOTA, title="ZeroGPU quota exceeded")
    with pytest.raises(NoGpu, match="try again in 5:12:00"):
        gpu.do(small(tell_process), ignore)


def test_every_task_of_the_page_can_travel(ours, gpu):
    stored = StoredRun(ours)
    delta = stored.run.delta_at(1)
    tasks = [
        editing(MODEL, [FACT], PLAN, bundled_references(), Base(delta, (stored.run.id,))),
        climbing(MODEL, [FACT], PLAN, None),
        looking(MODEL, Asking.of(stored, 0, 1, distances=True)),
        comparing(MODEL, prompts_of([FACT]), WeightDelta(), delta, "none"),
    ]
    for task in tasks:
        there = pack(task).unpacked()
        assert (there.do, there.model, there.load, there.quick) == (task.do, task.model, task.load, task.quick)
        assert len(there.arguments) == len(task.arguments)
    recipe = next(r for r in editor_row("finetuning").recipes if r.name == LADDER[0])
    (rung,), looked = pack(([Rung(recipe, stored.run)], stored)).unpacked()
    assert rung.recipe == recipe
    assert rung.run is looked.run
    shown = gpu.do(replace(tasks[2], quick=False), ignore).added_to(stored, FACT)
    assert set(shown.looks) == {(0, 0), (0, 1)}
    rows = gpu.do(replace(tasks[3], quick=False), ignore)
    assert rows[0].second.p_new > rows[0].first.p_new


def test_without_zerogpu_the_same_task_runs_here(tab, monkeypatch, caplog):
    assert zerogpu.spaces() is None
    assert tab.gpu is None
    assert tab.do(small(tell_process)) == os.getpid()
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", None)
    assert zerogpu.spaces() is None
    assert "package spaces is missing" in caplog.text


def test_the_page_of_a_zerogpu_space_edits_in_a_worker(fake, tmp_path):
    parts = app.assemble(desk=Desk(tmp_path, Limits()))
    tab = parts.edit
    assert tab.gpu
    assert tab.host.device == "cpu"
    assert "gpt2-xl" in tab.header.names
    assert "gpt-j-6b" not in tab.header.names
    assert any(zerogpu.BENCHMARKS in str(getattr(block, "value", "")) for block in parts.page.blocks.values())
    form = tab.form
    values = {widget: getattr(widget, "value", None) for widget in tab.inputs()}
    values |= {form.subject: FACT.subject, form.prompt: FACT.prompt, form.old: FACT.target_true, form.new: "Boston"}
    values |= {tab.settings.iterations: 1, tab.history: [], tab.job: "", form.filled: None}
    *_, done = tab.on_edit(values)
    assert "Done in" in done[tab.progress.line]
    assert tab.runs.get(done[tab.made]).run.last == 1
    assert len(fake.workers) == 1
    fake.refusal = gr.Error(QUOTA, title="ZeroGPU quota exceeded")
    *_, refused = tab.on_edit(values)
    assert "try again in 5:12:00" in refused[tab.progress.message]
