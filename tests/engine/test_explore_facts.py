"""Which facts are traced together, how they are blurred, and what Explore refuses to read."""

import pytest
import torch

from editing_core.data.subjects import known_facts
from editing_core.errors import BadRequest, BadSetting, SubjectMissing
from editing_core.evaluation.scoring import score_objects
from editing_core.explore import facts as module
from editing_core.explore.changed import changes_of, key_table
from editing_core.explore.facts import facts_known_to, noise_of, trace_facts
from editing_core.explore.lens import through_lens
from editing_core.explore.trace import KINDS, TraceSettings, trace
from editing_core.models.delta import Dense, LowRank, WeightDelta

PLACE = ("{} was born in", "Edward Matthew Ward")
FEW = TraceSettings(samples=1)


def test_facts_of_the_relation_come_first_and_all_are_known(pocket):
    relation = known_facts(0)[0].family
    found = facts_known_to(pocket, 6, relation)
    assert len(found) == len({fact.prompt for fact in found}) == 6
    assert {fact.family for fact in found} == {relation}
    assert all(s.hit == 1.0 for s in score_objects(pocket, [(fact.prompt, fact.answer) for fact in found]))
    assert len({fact.family for fact in facts_known_to(pocket, 6)}) > 1
    assert facts_known_to(pocket, 6) == facts_known_to(pocket, 6)
    assert facts_known_to(pocket, 6) != facts_known_to(pocket, 6, seed=1)


def test_facts_the_model_does_not_know_are_left_out(pocket, monkeypatch):
    own = known_facts(0)[:8]
    wrong = [type(fact)(fact.prompt, "nowhere", fact.subject, family="wrong") for fact in own]
    monkeypatch.setattr(module, "known_facts", lambda _seed: [*wrong, *own])
    found = facts_known_to(pocket, 4, "wrong")
    assert found
    assert {fact.answer for fact in found}.isdisjoint({"nowhere"})


@pytest.mark.parametrize("count", [0, 51, 2.5])
def test_so_many_facts_are_not_averaged(pocket, count):
    with pytest.raises(BadSetting, match="1 to 50"):
        facts_known_to(pocket, count)


def test_a_model_that_knows_nothing_is_told(tiny_models):
    with pytest.raises(BadRequest, match="knows none of the 16 bundled facts"):
        facts_known_to(tiny_models("gpt2"), 2)


def test_several_traces_are_the_traces_of_each(pocket):
    some, told = facts_known_to(pocket, 2), []
    found = trace_facts(pocket, some, FEW, told.append)
    for fact, one in zip(some, found, strict=True):
        alone = trace(pocket, fact.place, noise_of(pocket, FEW), FEW, fact.answer)
        assert all(torch.equal(alone.restored[kind], one.restored[kind]) for kind in KINDS)
    count = 2 * len(KINDS) * pocket.layers
    assert [(s.done, s.total) for s in told] == [(i + 1, count) for i in range(count)]
    assert told[-1].note.startswith("fact 2 of 2, attention")


def test_noise_goes_with_the_level(pocket):
    assert noise_of(pocket, TraceSettings(level=6.0)) == pytest.approx(2 * noise_of(pocket, TraceSettings(level=3.0)))


@pytest.mark.parametrize(
    ("place", "answer", "said"),
    [
        (("no place", "Ward"), None, "exactly one is needed"),
        (("{} was born in", ""), None, "is empty"),
        (("{} was born in", "Zoë"), None, "plain English"),
        (PLACE, "Zürich", "plain English"),
        (("{} " + "and " * 110, "Ward"), None, "at most 100 are traced"),
    ],
)
def test_a_fact_that_cannot_be_read_is_refused(pocket, place, answer, said):
    with pytest.raises((BadRequest, SubjectMissing), match=said):
        trace(pocket, place, 0.5, FEW, answer)


@pytest.mark.parametrize(("prompt", "objects"), [("", ()), ("Zoë lives in", ()), ("He lives in", ("Zürich",))])
def test_a_lens_on_what_cannot_be_read_is_refused(pocket, prompt, objects):
    with pytest.raises(BadRequest):
        through_lens(pocket, prompt, objects)


def test_blanks_around_a_prompt_change_nothing(pocket):
    """The tokenizer sees none behind a prompt, so there must be as many texts as tokens."""
    bare, found = (trace(pocket, (text, PLACE[1]), 0.5, FEW) for text in (PLACE[0], f" {PLACE[0]}  "))
    assert found.tokens == bare.tokens
    assert found.restored["mlp"].shape == (pocket.layers, len(found.tokens))
    assert torch.equal(found.restored["mlp"], bare.restored["mlp"])
    plain, lens = (through_lens(pocket, text, ()) for text in ("He was born in", "He was born in "))
    assert lens.tokens == plain.tokens
    assert len(lens.top[0]) == len(lens.tokens)


def test_of_large_whole_updates_there_are_norms_and_no_singular_values(pocket, monkeypatch):
    name = f"{pocket.architecture.down(0)}.weight"
    value = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    (small,) = changes_of(pocket, WeightDelta({name: Dense(value)}))
    monkeypatch.setattr("editing_core.explore.changed.WIDEST", 100)
    (large,) = changes_of(pocket, WeightDelta({name: Dense(value)}))
    assert large.values == ()
    assert small.values[0] > 1
    assert large.norm == pytest.approx(small.norm)
    assert large.relative == small.relative


def test_factors_and_their_product_move_keys_alike(pocket, requests_):
    name = f"{pocket.architecture.down(2)}.weight"
    drawn = torch.Generator().manual_seed(1)
    factors = LowRank(torch.randn(256, 3, generator=drawn), torch.randn(3, 1024, generator=drawn))
    by_factors, by_product = (
        key_table(pocket, requests_, WeightDelta({name: update})) for update in (factors, Dense(factors.dense()))
    )
    assert by_factors["moved"].tolist() == pytest.approx(by_product["moved"].tolist(), rel=1e-4)
    assert by_factors["moved"].min() > 0
