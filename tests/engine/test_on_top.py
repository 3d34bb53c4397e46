"""Edits on top of edits: the base is on while the next one is made, and nothing of it stays."""

import pytest
import torch

from editing_core.comparing import Asked, compare, prompts_of
from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadRequest
from editing_core.evaluation.scoring import score_objects
from editing_core.models.delta import Dense, LowRank, WeightDelta
from editing_core.registry import editor_row
from editing_core.runs.record import Base, EditPlan
from editing_core.session import look, planned, run_edit
from editing_core.stack import Stack, StackedEdit
from editing_core.types import EditRequest

FACTS = [
    EditRequest("Edward Matthew Ward", "{} was born in", "Boston", "London", case_id=0),
    EditRequest("Mario Del Monaco", "{}, often placed in the genre", "sitcom", "opera", case_id=1),
]


def plan(iterations=2):
    return EditPlan("memit", editor_row("memit").preset("pocket-gpt2").settings, StopSettings(iterations, "none"))


@pytest.fixture(scope="module")
def first(pocket):
    return run_edit(pocket, FACTS[:1], plan())


@pytest.fixture(scope="module")
def second(pocket, first):
    return run_edit(pocket, FACTS[1:], plan(), base=Base(first.delta_at(2), (first.id,)))


def p(pocket, delta, fact):
    with delta.applied(pocket):
        return score_objects(pocket, [(fact.full_prompt, fact.target_new)])[0].logp


def test_the_second_edit_is_measured_with_the_first_one_on(pocket, first, second):
    with first.delta_at(2).applied(pocket):
        alone = score_objects(pocket, [(FACTS[1].full_prompt, FACTS[1].target_new)])[0].logp
    before = second.probes_at(0)
    assert float(before["logp_new"].iloc[0]) == pytest.approx(alone, abs=1e-5)
    assert second.to_json()["made_on"] == [first.id]
    assert any("on top of" in note for note in second.notes)


def test_its_delta_does_not_hold_the_first_and_both_together_hold_both(pocket, second):
    own, whole = second.delta_at(2), second.state_at(2)
    names = list(own.updates)
    assert [own.updates[n].left.shape[1] for n in names] == [2] * len(names)  # one fact, two iterations
    assert p(pocket, own, FACTS[0]) < p(pocket, whole, FACTS[0]) - 1.0
    for fact in FACTS:
        assert torch.tensor(p(pocket, whole, fact)).exp() > 0.5
    assert look(pocket, FACTS[0].full_prompt, whole).top[0].token.strip() == "Boston"


def test_an_edit_on_a_base_is_another_than_one_on_none(pocket, second):
    alone = run_edit(pocket, FACTS[1:], plan())
    name = next(iter(alone.delta_at(2).updates))
    assert not torch.equal(alone.delta_at(2).updates[name].left, second.delta_at(2).updates[name].left)


def test_statistics_and_contexts_stay_those_of_the_unedited_model(first, second):
    assert first.contexts == second.contexts


def test_switching_everything_off_restores_every_logit(pocket, first, second):
    ids = torch.tensor([pocket.tokenizer("Edward Matthew Ward was born in")["input_ids"]])
    with torch.no_grad():
        before = pocket.model(ids).logits
        edits = {r.id: StackedEdit(r.id, r.delta_at(2), r.requests, r.model, r.revision) for r in (first, second)}
        stack = Stack().add(first.id).add(second.id)
        with stack.delta(edits).applied(pocket):
            assert not torch.equal(pocket.model(ids).logits, before)
        with stack.only(()).delta(edits).applied(pocket):
            assert torch.equal(pocket.model(ids).logits, before)
        assert torch.equal(pocket.model(ids).logits, before)


def test_a_refused_edit_on_a_base_leaves_the_model_as_it_was(pocket, first):
    before = {name: t.clone() for name, t in pocket.model.state_dict().items()}
    with pytest.raises(BadRequest):
        run_edit(pocket, [EditRequest("Zoë", "{} was born in", "Boston")], plan(), base=Base(first.delta_at(2), ("x",)))
    assert all(torch.equal(before[name], t) for name, t in pocket.model.state_dict().items())


def test_a_base_of_another_model_is_refused(pocket):
    foreign = WeightDelta({"transformer.h.0.mlp.other.weight": Dense(torch.zeros(2, 2))})
    with pytest.raises(BadRequest, match="does not have"):
        run_edit(pocket, FACTS[:1], plan(1), base=Base(foreign, ("x",)))


def test_factors_without_a_product_are_no_edit():
    with pytest.raises(ValueError, match="no product"):
        LowRank(torch.ones(2, 3), torch.ones(2, 3))


def test_a_run_on_a_base_cannot_be_repeated_without_it(second):
    with pytest.raises(BadRequest, match="on top of 1 other edits"):
        planned(second.to_json())


def test_two_states_are_compared_on_the_same_prompts(pocket, first):
    rows = compare(pocket, prompts_of(FACTS), WeightDelta(), first.delta_at(2))
    by = {row.asked.prompt: row for row in rows}
    changed, kept = by[FACTS[0].full_prompt], by[FACTS[1].full_prompt]
    assert changed.differs
    assert changed.second.p_new > changed.first.p_new + 0.3
    assert not kept.differs
    (same,) = compare(pocket, [Asked(FACTS[0].full_prompt)], first.delta_at(2), first.delta_at(2))
    assert same.first == same.second
    assert same.first.p_new is None
    for wrong in ([], [Asked("x")] * 51, [Asked("<b>")]):
        with pytest.raises(BadRequest):
            compare(pocket, wrong, WeightDelta(), WeightDelta())
