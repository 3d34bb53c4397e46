"""Behaviour on the bundled model: it knows its facts, they sit where editing needs them, and editing works."""

import json
import random
from dataclasses import replace

import pandas as pd
import pytest
import torch

from editing_core import paths
from editing_core.data.datasets import load_dataset, sample
from editing_core.data.examples import example
from editing_core.editors.assist import Assist
from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadRequest, Cancelled, UnknownName
from editing_core.evaluation.metrics import card
from editing_core.evaluation.scoring import score_objects
from editing_core.models.language_model import LanguageModel
from editing_core.registry import EDITORS, editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import look, present_answer, run_edit
from editing_core.types import EditRequest, Probe
from scripts.pocket.corpus import Templates
from scripts.pocket.facts import read_facts
from scripts.pocket.in_context import context_table
from scripts.pocket.report import Examiner, ask, patching_table
from scripts.train_pocket import RECORDS
from tests.conftest import bit_equal, snapshot

FACTS = paths.assets() / "facts"
READER = "pocket-gpt2-reader"


def plan(editor="memit", seed=0, **stop):
    settings = editor_row(editor).preset("pocket-gpt2").settings
    return EditPlan(editor, settings, StopSettings(**{"iterations": 3, "stop": "none", **stop}), seed)


@pytest.fixture(scope="module")
def knowledge(pocket):
    return (
        Examiner(pocket.model, pocket.tokenizer),
        read_facts(FACTS / "facts.tsv"),
        Templates.read(FACTS / "templates.json"),
    )


@pytest.fixture(scope="module")
def request_() -> EditRequest:
    return sample(load_dataset("pocket-facts"), 1, trial=4)[0]


@pytest.fixture(scope="module")
def run(pocket, request_):
    """One MEMIT edit of three iterations; the model must come out as it went in."""
    before = snapshot(pocket.model)
    result = run_edit(pocket, [request_], plan())
    assert bit_equal(pocket.model, before)
    return result


def test_knows_its_facts(knowledge):
    examiner, facts, templates = knowledge
    rng = random.Random(0)
    picked = rng.sample(facts, 300)
    assert examiner.recall([ask(f, rng.choice(templates.trained_with(f))) for f in picked]) >= 97


def test_facts_sit_at_the_subject_in_the_early_blocks(pocket, knowledge):
    examiner, facts, templates = knowledge
    blocks = [pocket.model.get_submodule(pocket.architecture.block(i)) for i in range(pocket.layers)]
    table = patching_table(examiner, blocks, facts, templates, 60, seed=1)
    assert max(table["subject_last"][:3]) >= 0.8
    assert min(table["subject_last"][:3]) >= 0.7  # 60 pairs: a share of .9 strays by some .04
    assert table["subject_last"][-1] <= 0.1
    assert table["prompt_last"][-1] >= 0.9


def test_benchmark_records_are_known_and_not_yet_edited(pocket):
    for request in sample(load_dataset("pocket-facts"), 20, trial=2):
        (true, new) = score_objects(
            pocket, [(request.full_prompt, o) for o in (request.target_true, request.target_new)]
        )
        assert true.hit == 1.0, request
        assert new.hit == 0.0


def test_memit_makes_the_new_object_likely(run):
    edit = run.probes[run.probes["kind"] == "edit"].set_index("k")
    assert edit["p_new"][0] < 0.1
    assert edit["p_new"][3] > 0.5
    assert edit["answer"][3] == run.requests[0].target_new
    assert list(run.iterations["k"]) == [0, 1, 2, 3]
    assert run.last == 3


def test_an_unrelated_fact_keeps_its_answer(pocket, run, request_):
    others = [r for r in load_dataset("pocket-facts") if r.relation_id != request_.relation_id][:10]
    pairs = [(r.full_prompt, r.target_true) for r in others]
    with run.delta_at(run.last).applied(pocket):
        after = score_objects(pocket, pairs)
    assert [s.hit for s in after] == [1.0] * len(pairs)


def test_a_look_shows_the_edit_and_takes_it_off(pocket, run, request_):
    before = snapshot(pocket.model)
    first, then = (look(pocket, request_.full_prompt, run.delta_at(k), tokens=5) for k in (0, run.last))
    assert first.top[0].token.strip() == request_.target_true
    assert then.top[0].token.strip() == request_.target_new
    assert then.text.split()[0].strip(".,") == request_.target_new
    assert bit_equal(pocket.model, before)


def test_the_same_plan_twice_gives_the_same_tables(pocket, run, request_):
    again = run_edit(pocket, [request_], plan())
    pd.testing.assert_frame_equal(again.iterations, run.iterations)
    pd.testing.assert_frame_equal(again.probes, run.probes)
    pd.testing.assert_frame_equal(again.cases, run.cases)
    assert again.contexts == run.contexts
    assert again.id != run.id


def test_another_seed_draws_other_contexts(pocket, run, request_):
    other = run_edit(pocket, [request_], plan(seed=1, iterations=1))
    assert other.contexts != run.contexts


def test_json_of_a_run(run, request_):
    record = json.loads(json.dumps(run.to_json(), allow_nan=False))
    assert {"verdict", "reason", "model", "editor", "iterations", "probes", "delta", "seconds"} <= set(record)
    assert (record["model"], record["editor"], record["verdict"]) == ("pocket-gpt2", "memit", "edited")
    assert [row["k"] for row in record["iterations"]] == [0, 1, 2, 3]
    assert {row["case_id"] for row in record["probes"]} == {request_.case_id}
    per_k = 1 + len(request_.paraphrases) + len(request_.neighbors)
    assert len(record["probes"]) == 4 * per_k
    ranks = [row["rank"] for row in record["delta"]]
    assert ranks[0] == 1  # no edit moves the first layer's key, so three updates lie along the same one
    assert all(1 <= rank <= 3 for rank in ranks)
    assert all(0 < row["changed"] <= row["total"] for row in record["delta"])
    assert record["iterations"][0]["ppl_spread"] > 100 * record["iterations"][3]["ppl_spread"]
    assert record["iterations"][0]["ppl_optimised"] is None
    assert record["iterations"][0]["specificity_accuracy"] is None
    assert record["seconds"] > record["edit_seconds"] > 0


def test_every_metric_column_has_a_card(run):
    assert all(card(column) for column in run.iterations.columns if column != "k")


def test_perplexities_of_the_table_are_those_of_the_cases(run):
    table, cases = run.iterations.set_index("k"), run.cases.set_index("k")
    for k in (1, 2, 3):
        assert table["ppl_spread"][k] == pytest.approx(cases["p_spread"][k])
        assert table["delta_ppl"][k] == pytest.approx(table["ppl_spread"][k] - table["ppl_optimised"][k])


def test_the_perplexity_rule_stops_early(pocket, request_):
    result = run_edit(pocket, [request_], plan(stop="perplexity", tolerance=1.0, iterations=10))
    assert result.converged
    assert 1 <= result.last < 10
    gaps = result.iterations["delta_ppl"].abs()
    assert gaps[result.last] <= 1.0
    assert (gaps[1 : result.last] > 1.0).all()
    assert f"Stopped after iteration {result.last}" in result.stopped


# Not IKE's: the model makes nothing of facts it reads, see docs/log.md.
OTHERS = [name for name in EDITORS if name not in ("memit", "finetuning", "ike")]


@pytest.mark.parametrize("editor", [*OTHERS, pytest.param("finetuning", marks=pytest.mark.slow)])
def test_other_editors_make_the_new_object_the_answer(pocket, request_, editor):
    before = snapshot(pocket.model)
    result = run_edit(pocket, [request_], plan(editor))
    assert bit_equal(pocket.model, before)
    edit = result.probes[result.probes["kind"] == "edit"].set_index("k")
    assert edit["p_new"][result.last] > edit["p_new"][0]
    assert edit["rank_new"][0] > 1
    assert edit["rank_new"][result.last] == 1
    assert result.iterations["collapse_ppl"].iloc[-1] < 2 * result.iterations["collapse_ppl"].iloc[0]


def test_editing_in_context_takes_a_model_that_reads(pocket, request_):
    reader = LanguageModel.load(READER)
    outcome = {}
    for lm in (pocket, reader):
        how = replace(plan("ike"), settings=editor_row("ike").preset(lm.name).settings)
        result = run_edit(lm, [request_], how)
        edit = result.probes[result.probes["kind"] == "edit"].set_index("k")
        outcome[lm.name] = edit["rank_new"][0], edit["rank_new"][1]
        assert result.last == 1
    assert min(rank for rank, _ in outcome.values()) > 1
    assert outcome[READER][1] == 1
    assert outcome["pocket-gpt2"][1] > 1


def test_the_reader_knows_the_facts_and_reads_new_ones():
    """Measured on 200 test records: with the new fact 97 and 96.5, neighbors 50, without it 100."""
    facts, templates = read_facts(FACTS / "facts.tsv"), Templates.read(FACTS / "templates.json")
    reader, plain = (Examiner(lm.model, lm.tokenizer) for lm in map(LanguageModel.load, (READER, "pocket-gpt2")))
    rng = random.Random(0)
    assert reader.recall([ask(f, rng.choice(templates.trained_with(f))) for f in rng.sample(facts, 200)]) >= 97
    records = [r for r in json.loads(RECORDS.read_text(encoding="utf-8")) if r["part"] == "test"][:20]
    read, unread = (context_table(examiner, records, templates, 0) for examiner in (reader, plain))
    assert read["edit"] >= 85
    assert read["paraphrases"] >= 85
    assert read["neighbors"] >= 30
    assert unread["edit"] <= 5


def test_several_facts_at_once(pocket):
    requests = sample(load_dataset("pocket-facts"), 4, trial=7)
    result = run_edit(pocket, requests, plan(iterations=2))
    assert result.iterations["efficacy_accuracy"].iloc[-1] >= 75
    assert set(result.cases["case_id"]) == {r.case_id for r in requests}
    assert len(result.cases) == 2 * len(requests)
    assert {result.verdict(r.case_id).states for r in requests}


def test_an_open_old_object_is_filled_in(pocket, request_):
    result = run_edit(pocket, [replace(request_, target_true=None)], plan(iterations=1))
    assert result.requests[0].target_true == request_.target_true == present_answer(pocket, request_.full_prompt)
    assert result.probes["target_true"].iloc[0] == request_.target_true


def test_an_open_old_object_that_equals_the_new_one_is_refused(pocket, request_):
    known = replace(request_, target_new=request_.target_true, target_true=None)
    with pytest.raises(BadRequest, match="equals the old one"):
        run_edit(pocket, [known], plan())


def test_cancelling_restores_the_model(pocket, request_):
    before, seen = snapshot(pocket.model), []

    def stop(step):
        seen.append(step)
        if step.round == 2 and step.stage == "spread":
            raise Cancelled

    with pytest.raises(Cancelled):
        run_edit(pocket, [request_], plan(), watch=stop)
    assert {step.stage for step in seen} >= {"measure", "optimise", "spread", "iteration"}
    assert bit_equal(pocket.model, before)
    assert pocket.lock.acquire(blocking=False)
    pocket.lock.release()


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([], "0 edits were given, 1 to 2000 are allowed"),
        ([EditRequest("Mary", "{} is in", "Rome"), EditRequest("Peter", "{} is in", "Rome")], "share a case_id"),
        (
            [EditRequest("Mary", "{} is in", "Rome"), EditRequest("Mary", "{} is in", "Bonn", case_id=1)],
            "is given twice with different new objects",
        ),
        ([EditRequest("Мария", "{} is in", "Rome")], "trained on plain English letters only"),
        ([EditRequest("Mary", "{} is in", "Rome", neighbors=(Probe("Zoë is in", "Rome"),))], "contains 'ë'"),
        ([EditRequest("Mary", "7, " * 300 + "{} is in", "Rome")], "reads at most 256"),
    ],
)
def test_refuses_requests(pocket, requests, message):
    before = snapshot(pocket.model)
    with pytest.raises(BadRequest, match=message):
        run_edit(pocket, requests, plan())
    assert bit_equal(pocket.model, before)


def test_data_set_parts():
    test, tune = load_dataset("pocket-facts"), load_dataset("pocket-facts:tune")
    assert len(test) + len(tune) == 1200
    assert not {r.case_id for r in test} & {r.case_id for r in tune}
    assert load_dataset("pocket-facts:test") == test
    assert sample(test, 5, 1) == sample(test, 5, 1) != sample(test, 5, 2)
    with pytest.raises(UnknownName, match="Unknown data set"):
        load_dataset("pocket-fact")
    with pytest.raises(UnknownName, match="Unknown part of pocket-facts"):
        load_dataset("pocket-facts:dev")
    with pytest.raises(BadRequest, match="this data set part has 800; ask for 1 to 800"):
        sample(test, 801, 0)


def test_nothing_stays_attached(pocket, run):
    assert run.last
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pocket.model.modules())
    assert all(not p.requires_grad for p in pocket.model.parameters())
    assert torch.isfinite(torch.tensor(run.seconds))


def played(pocket, name):
    """A bundled example as the page and the command line run it."""
    case = example(name)
    row = editor_row(case.editor)
    settings = row.preset(pocket.name).settings.changed(case.settings)
    stop = StopSettings(iterations=case.iterations, stop=case.stop, collapse_factor=case.collapse_factor)
    return run_edit(pocket, case.requests, EditPlan(case.editor, settings, stop, 0, Assist().changed(case.assist)))


def test_the_examples_show_what_they_tell(pocket):
    takes = played(pocket, "takes")
    assert (takes.verdict().label, takes.chosen) == ("edited", 1)
    cured = played(pocket, "underedit")
    assert "UnderEdit" in cured.verdict(k=1).label
    assert cured.verdict().label == "edited"
    over, held = played(pocket, "overedit"), played(pocket, "held")
    assert over.verdict().label == "OverEdit"
    assert held.verdict().label == "edited"
    measured = {n.prompt for n in held.requests[0].neighbors}
    assert len(measured) == 7
    assert len(measured & set(over.verdict().lost)) == 2
