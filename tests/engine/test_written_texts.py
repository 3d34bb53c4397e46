"""Fluency and consistency of a run: those of its two models' texts, only where asked, and without a trace."""

import json
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from editing_core import cli, cli_plan
from editing_core.bench.config import RunConfig
from editing_core.bench.work import perform
from editing_core.data.prompts import MOST, with_prompts
from editing_core.errors import Cancelled
from editing_core.evaluation.consistency import References
from editing_core.evaluation.generation import generation_metrics
from editing_core.session import NO_REFERENCES, planned, run_edit
from editing_core.types import EditRequest
from tests.conftest import bit_equal, left_alone, snapshot
from tests.engine.conftest import EVALUATOR, plan

REFERENCES = References({("P19", "London"): ("Mary was born in London, a city on a river",)})
COLUMNS = ["fluency", "consistency"]


@pytest.fixture(scope="module")
def lm(tiny_models):
    """Shared: it must be left as it was, whatever happened to a run."""
    with left_alone(tiny_models("gpt2")) as lm:
        yield lm


@pytest.fixture
def edit(lm, statistics, facts):
    """A function that edits the first fact, with references unless told otherwise."""

    def run(requests=facts[:1], plan_=None, references=REFERENCES, **more):
        made = plan_ or plan()
        return run_edit(lm, requests, made, statistics, evaluator=EVALUATOR, references=references, **more)

    return run


def by_hand(lm, run, requests, k):
    with run.delta_at(k).applied(lm):
        return generation_metrics(lm, requests, REFERENCES, run.plan.seed)


def test_the_numbers_are_those_of_the_unedited_and_the_edited_model(lm, edit, facts):
    """A fact of the form goes by its own texts and its wording's relation, a record by its own prompts."""
    record = replace(facts[2], generation_prompts=("Anna Brown likes to play", "In her youth Anna Brown"))
    run = edit((facts[0], record), plan(seed=3))
    own = ("Mary Walker was born in", "The birthplace of Mary Walker is", "Mary Walker comes from")
    asked = (replace(run.requests[0], generation_prompts=own, relation_id="P19"), run.requests[1])
    assert run.chosen == 2
    before, after = by_hand(lm, run, asked, 0), by_hand(lm, run, asked, 2)
    assert run.iterations.loc[0, COLUMNS].to_dict() == before
    assert run.iterations.loc[2, COLUMNS].to_dict() == after
    assert run.iterations.loc[1, COLUMNS].isna().all()
    assert before != after
    assert before["fluency"] > 0
    assert before["consistency"] > 0


def test_requests_are_kept_as_they_were_given(edit, facts):
    assert edit().requests == edit(references=None).requests == facts[:1]


def test_who_does_not_ask_gets_no_columns(edit):
    plain, asked = edit(references=None), edit()
    assert not set(COLUMNS) & set(plain.iterations)
    pd.testing.assert_frame_equal(asked.iterations.drop(columns=COLUMNS), plain.iterations)
    assert plain.to_json()["generate"] is False
    assert asked.to_json()["generate"] is True


def test_a_saved_run_repeats_its_texts(edit):
    first = edit(plan_=plan(seed=5))
    requests, again = planned(json.loads(json.dumps(first.to_json())))
    pd.testing.assert_frame_equal(edit(requests, again).iterations, first.iterations)
    other = edit(requests, plan(seed=6)).iterations
    assert other["fluency"][0] != first.iterations["fluency"][0]


def test_a_run_that_was_rolled_back_is_measured_once(edit):
    steps = []
    run = edit(plan_=plan(collapse_factor=1e-9), watch=steps.append)
    assert run.chosen == 0
    assert {step.note for step in steps if step.stage == "generate"} == {"k = 0"}
    assert run.iterations["fluency"].notna().tolist() == [True, False]


def test_progress_counts_tokens_and_time_counts_as_measuring(edit):
    seen = []
    run = edit(watch=lambda step: seen.append((step, time.perf_counter())))
    for k in ("k = 0", "k = 2"):
        steps = [step for step, _ in seen if step.stage == "generate" and step.note == k]
        assert [step.done for step in steps] == sorted({step.done for step in steps})
        assert steps[-1].done == steps[-1].total > 100
    times = [at for step, at in seen if step.stage == "generate"]
    assert run.seconds - run.edit_seconds > times[-1] - times[0] > 0


@pytest.mark.parametrize("k", [0, 2])
def test_cancelling_in_the_middle_of_a_text_restores_the_model(lm, edit, k):
    before, changed = snapshot(lm.model), []

    def stop(step):
        if step.stage == "generate" and step.note == f"k = {k}" and step.done > step.total / 2:
            changed.append(not bit_equal(lm.model, before))
            raise Cancelled

    with pytest.raises(Cancelled):
        edit(watch=stop)
    assert changed == [k > 0]
    assert bit_equal(lm.model, before)


def test_when_memory_runs_out_the_numbers_stay(lm, edit, facts, monkeypatch):
    """A device that takes one row at a time; the two prompts are of one length."""
    request = replace(facts[0], generation_prompts=("Mary Walker was born", "Mary Walker was born"))
    wanted, most = edit((request,)), []
    write = lm.model.generate

    def small(ids, **options):
        most.append(len(ids))
        if len(ids) > 1:
            raise torch.OutOfMemoryError("no room")
        return write(ids, **options)

    monkeypatch.setitem(lm.model.__dict__, "generate", small)
    monkeypatch.setattr(lm, "divisor", 1)
    got = edit((request,)).iterations
    assert set(most) == {1, 2}
    np.testing.assert_allclose(got[COLUMNS], wanted.iterations[COLUMNS], equal_nan=True)


def test_without_reference_texts_consistency_is_open_and_the_run_says_so(edit, facts):
    strange = edit((facts[3],))
    assert strange.iterations["consistency"].isna().all()
    assert strange.iterations["fluency"].notna().tolist() == [True, False, True]
    assert NO_REFERENCES in strange.notes
    assert NO_REFERENCES not in edit().notes


# --- what is asked of a fact -----------------------------------------------------------------------------------------


def fact(**more):
    return EditRequest("Mary Walker", "{} was born in", "London", "Paris", **more)


def test_only_texts_that_name_the_subject_serve_and_only_a_few():
    named = [f"The year {number} saw Mary Walker in" for number in range(9)]
    found = with_prompts(fact(paraphrases=("Her birthplace is", "Mary Walker was born in", *named)))
    assert found.generation_prompts == ("Mary Walker was born in", *named[: MOST - 1])


def test_prompts_and_relation_of_a_record_are_its_own():
    record = fact(generation_prompts=("Mary Walker likes",), relation_id="P20", paraphrases=("Mary Walker comes from",))
    assert with_prompts(record) == record


def test_the_relation_is_that_of_the_wording_if_any():
    assert with_prompts(fact()).relation_id == "P19"
    strange = EditRequest("Mary Walker", "The favourite dish of {} is", "soup", "bread")
    assert with_prompts(strange).relation_id is None


# --- benchmark and command line --------------------------------------------------------------------------------------

BENCH = {"limit": 1, "editor": "r-rome", "settings": {"steps": 1}, "iterations": 1, "stop": "none", "generate": True}


@pytest.mark.slow
def test_a_benchmark_measures_by_the_same_means_and_can_be_cancelled(pocket):
    work = perform(RunConfig(**BENCH), lambda: pocket)
    table, run = work.result.iterations, work.result.run
    record = work.result.requests[0]
    assert record.generation_prompts
    again = run_edit(pocket, (record,), run.plan, references=cli.bundled_references())
    np.testing.assert_allclose(table[COLUMNS], again.iterations[COLUMNS])
    assert work.result.seconds > run.seconds
    before = snapshot(pocket.model)

    def stop(step):
        if step.stage == "generate" and step.note == "k = 1":
            raise Cancelled

    with pytest.raises(Cancelled):
        perform(RunConfig(**BENCH), lambda: pocket, stop)
    assert bit_equal(pocket.model, before)


@pytest.fixture
def command(pocket, monkeypatch, capsys):
    """A function that runs a command on the bundled model, loaded once, and gives what it printed."""
    monkeypatch.setattr(cli_plan, "load_model", lambda *_name: pocket)

    def run(*arguments):
        assert cli.run([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return run


FACT = ("edit", "--subject", "Fanny Davies", "--prompt", "{} plays the instrument called", "--new", "guitar")
SHORT = ("--editor", "r-rome", "--set", "steps=1", "--iterations", "1", "--stop", "none")


def test_the_command_line_prints_keeps_and_repeats_them(command, tmp_path):
    saved, again = tmp_path / "run.json", tmp_path / "again.json"
    printed = command(*FACT, *SHORT, "--generate", "--json", saved)
    assert all(column in printed for column in COLUMNS)
    first = json.loads(saved.read_text())
    assert first["generate"] is True
    assert all(row["fluency"] > 100 and 0 <= row["consistency"] <= 100 for row in first["iterations"])
    command("edit", "--repeat", saved, "--json", again)
    assert json.loads(again.read_text())["iterations"] == first["iterations"]


def test_without_the_flag_the_command_line_generates_nothing(command, tmp_path):
    saved = tmp_path / "run.json"
    assert "fluency" not in command(*FACT, *SHORT, "--json", saved)
    plain = json.loads(saved.read_text())
    assert plain["generate"] is False
    assert "fluency" not in plain["iterations"][0]
    repeated = json.loads(command("edit", "--repeat", saved, "--generate", "--json", "-"))
    assert repeated["generate"] is True
    del plain["generate"]  # as saved before there was one
    saved.write_text(json.dumps(plain))
    assert json.loads(command("edit", "--repeat", saved, "--json", "-"))["generate"] is False
