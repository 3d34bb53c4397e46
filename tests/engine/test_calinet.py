"""CaliNET: neurons trained together on facts to correct, with and without facts that should stay."""

from dataclasses import replace

import pytest
import torch

from editing_core.data.datasets import load_dataset, sample
from editing_core.data.pool import unedited
from editing_core.data.subjects import known_facts
from editing_core.editors.assist import Assist
from editing_core.editors.calinet import CaliNetSettings, build_calinet
from editing_core.editors.materials import Alike, Materials
from editing_core.editors.steps.calibration import Calibration
from editing_core.editors.steps.rows import Objective
from editing_core.editors.steps.tails import Tail
from editing_core.errors import BadRequest, BadSetting, Cancelled, NotFinite
from editing_core.models import edits
from editing_core.models.beside import beside, is_gated
from editing_core.models.neurons import neurons_on
from editing_core.types import Probe
from tests.conftest import DISTINCT, THREE, bit_equal, cancel_after, each_of, left_alone, seldom, snapshot

tiny_lm = each_of(seldom(DISTINCT, THREE))
FACTS = tuple(Probe(f"{name} was born in", "Paris", name, family="P19") for name in ("Ann", "Bob", "Carl", "Dora"))
QUICK = CaliNetSettings(
    layers=(1, 2), neurons=8, contexts=1, random_facts=2, similar_facts=0, steps=25, rate=3e-2, enough=1e-3
)
POCKET = CaliNetSettings(layers=(5,), neurons=16, rate=3e-3, kl=10.0, random_facts=64, similar_facts=64)


def editor(lm, requests, settings=QUICK, facts=FACTS, **more):
    return build_calinet(settings, Materials(lm, None, None, 0, requests=requests, facts=lambda: facts, **more))


def begun(lm, requests, settings=QUICK, seed=0):
    rows = [row for i, request in enumerate(requests) for row in Objective().rows(lm, request, i)]
    texts = [lm.coder.continuation(fact.prompt, fact.answer) for fact in FACTS]
    return Calibration(lm, settings, rows, [(text.inputs, tuple(text.positions)) for text in texts], seed)


def test_neurons_begin_without_changing_a_bit(tiny_lm, requests_):
    calibration = begun(tiny_lm, requests_)
    assert [group.gate is not None for group in calibration.neurons] == [is_gated(tiny_lm, 1)] * 2
    batch = tiny_lm.batch([tiny_lm.coder.encode("Mary Walker was born in")])
    with torch.no_grad():
        plain = tiny_lm.hidden(batch)
        with beside(tiny_lm, calibration.neurons):
            assert torch.equal(tiny_lm.hidden(batch), plain)
        with begun(tiny_lm, requests_, QUICK.changed({"start": "random"})).edit((1,)).applied(tiny_lm):
            assert not torch.equal(tiny_lm.hidden(batch), plain)
    assert calibration.edit((1,)).empty


def test_what_is_learned_already_gets_no_neuron(tiny_models, requests_):
    with left_alone(tiny_models("llama")) as lm:
        one = editor(lm, requests_, QUICK.changed({"enough": 10.0}))
        edit = editor(lm, requests_).edit(lm, requests_).delta
        with edit.applied(lm):
            assert one.edit(lm, requests_).delta.empty


def test_it_does_the_edits_and_leaves_the_model(tiny_lm, requests_, tmp_path):
    before = snapshot(tiny_lm.model)
    one = editor(tiny_lm, requests_)
    outcome = one.edit(tiny_lm, requests_)
    assert bit_equal(tiny_lm.model, before)
    assert all(p.grad is None and not p.requires_grad for p in tiny_lm.model.parameters())
    edit = outcome.delta
    assert not any(t.requires_grad for t in edit.tensors().values())
    assert edit.cases == (1, "two")
    assert [group.layer for group in edit.groups] == [1, 2]
    assert not any(group.bias.any() for group in edit.groups)
    assert (outcome.targets.log_p_final < outcome.targets.log_p_initial - 1).all()
    assert outcome.targets.history[0].keys() == {"target", "kl", "loss"}
    assert outcome.targets.history[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert "4 sentences of edits and " in outcome.notes[-1]
    again = editor(tiny_lm, requests_).edit(tiny_lm, requests_).delta
    assert all(torch.equal(t, again.tensors()[name]) for name, t in edit.tensors().items())
    edit.save(tmp_path / "edit")
    loaded = edits.load(tmp_path / "edit")
    assert loaded.facts() == edit.facts()
    assert all(torch.equal(t, loaded.tensors()[name]) for name, t in edit.tensors().items())
    with pytest.raises(BadRequest, match="together"):
        edit.without("two")


def test_gradients_from_the_cached_states_are_those_of_the_full_forward(tiny_lm, requests_, monkeypatch):
    """Only rounding differs, of float32 sums in another order."""
    found = []
    for whole in (False, True):
        with monkeypatch.context() as patch:
            if whole:
                patch.setattr(Tail, "_states", lambda _self: {})
            calibration = begun(tiny_lm, requests_, QUICK.changed({"start": "random"}))
            with monkeypatch.context() as once:
                once.setattr("editing_core.editors.steps.calibration.descend", lambda *args: [args[2]()])
                with torch.enable_grad():
                    (terms,) = calibration.solve(lambda _step: None)
            grads = [t.grad for group in calibration.neurons for t in group.tensors().values() if t.grad is not None]
            found.append((terms, grads))
    (tail, own), (full, wanted) = found
    assert tail == pytest.approx(full, rel=1e-4, abs=1e-6)
    assert len(own) == len(wanted) == 2 * (3 if is_gated(tiny_lm, 1) else 2)
    for a, b in zip(own, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))
        assert b.abs().max() > 0


def test_pieces_and_batches_change_nothing_but_rounding(tiny_models, requests_):
    with left_alone(tiny_models("llama")) as lm:
        plain = editor(lm, requests_, QUICK.changed({"steps": 3})).edit(lm, requests_)
        try:
            lm.divisor = 10**6
            pieces = editor(lm, requests_, QUICK.changed({"steps": 3})).edit(lm, requests_)
        finally:
            lm.divisor = 1
        assert plain.targets.history[0] == pytest.approx(pieces.targets.history[0], rel=1e-4, abs=1e-5)
        few = begun(lm, requests_, QUICK.changed({"batch": 1}))
        drawn = [next(few.batches) for _ in range(4)]
        assert sorted(n for own, _ in drawn[:2] for n in own) == [0, 1]
        assert sorted(n for _, kept in drawn[:2] for n in kept) == [0, 1, 2, 3]


@pytest.mark.parametrize("changes", [{"optimiser": "adafactor", "warmup": 5}, {"gated": False}, {"start": "random"}])
def test_switches(tiny_models, requests_, changes):
    with left_alone(tiny_models("llama")) as lm:
        outcome = editor(lm, requests_, QUICK.changed(changes)).edit(lm, requests_)
        assert outcome.targets.log_p_final.mean() < outcome.targets.log_p_initial.mean()
        assert [group.gate is None for group in outcome.delta.groups] == [changes == {"gated": False}] * 2


def test_without_facts_it_is_as_in_the_survey(tiny_models, requests_):
    with left_alone(tiny_models("gpt2")) as lm:
        one = editor(lm, requests_, QUICK.changed({"random_facts": 0, "contexts": 0}))
        assert len(one.objective.contexts) == 1
        outcome = one.edit(lm, requests_)
    assert outcome.targets.history[0].keys() == {"target", "loss"}
    assert "2 sentences of edits and 0 unrelated facts" in outcome.notes[-1]


def test_facts_are_taken_in_turn_and_once(tiny_models, requests_):
    lm = tiny_models("gpt2")

    def alike(asked, _known, count, _own):
        return Alike([list(range(count))] * len(asked), [[0.5] * count] * len(asked), "told")

    one = editor(lm, requests_, QUICK.changed({"similar_facts": 2, "most_facts": 3}), alike=alike)
    assert one.about == ("told",)
    assert [fact.kind for fact in one.unrelated[1]][:2] == ["similar", "random"]
    kept = one._kept(requests_)
    assert len(kept) == len({fact.prompt for fact in kept}) == 3
    with pytest.raises(BadSetting, match="none by likeness"):
        editor(lm, requests_, QUICK.changed({"similar_facts": 2}))
    with pytest.raises(BadRequest, match="No unedited facts"):
        editor(lm, requests_, facts=())


def test_it_is_added_to_what_is_there(tiny_lm, requests_):
    one = editor(tiny_lm, requests_, QUICK.changed({"steps": 3}))
    first = one.edit(tiny_lm, requests_[:1])
    with first.delta.applied(tiny_lm) as lm:
        second = one.edit(lm, requests_[1:])
        assert len(neurons_on(lm)) == 2
    both = first.delta + second.delta
    assert [len(group.cases) for group in both.groups] == [16, 16]
    assert both.without("two").cases == (1,)


def test_stop_leaves_nothing(tiny_lm, requests_):
    before = snapshot(tiny_lm.model)
    for count in (0, 5):
        with pytest.raises(Cancelled):
            editor(tiny_lm, requests_).edit(tiny_lm, requests_, cancel_after(count))
    assert bit_equal(tiny_lm.model, before)


def test_assistance(tiny_models, requests_):
    request = replace(requests_[0], edit_neighbors=(Probe("Peter Smith was born in", "Paris", "Peter Smith"),))
    with left_alone(tiny_models("gpt2")) as lm:
        plain = editor(lm, [request]).edit(lm, [request]).targets
        assisted = editor(lm, [request], assist=Assist(neighbors="na", weight=3.0)).edit(lm, [request]).targets
        assert assisted.history[0]["target"] != pytest.approx(plain.history[0]["target"], rel=1e-3)


def test_a_loss_that_is_no_number_is_refused(tiny_models, requests_, monkeypatch):
    monkeypatch.setattr(Calibration, "_keep", lambda *_: float("nan"))
    with left_alone(tiny_models("llama")) as lm:
        one = editor(lm, requests_)
        with pytest.raises(NotFinite, match="smaller rate"):
            one.edit(lm, requests_)


@pytest.fixture(scope="module")
def ten():
    return sample(load_dataset("pocket-facts").requests, 10, trial=0)


def on_pocket(lm, requests, settings=POCKET):
    def alike(asked, known, count, _own):
        """Those that share most words; the sentence encoder takes longer than the test should."""
        words = [set(text.split()) for text in known]
        mine = [set(text.split()) for text in asked]
        found = [sorted(range(len(known)), key=lambda n: -len(words[n] & own))[:count] for own in mine]
        return Alike(found, [[0.5] * count] * len(asked), "")

    one = editor(lm, requests, settings, unedited(known_facts(0), requests), alike=alike)
    return one.edit(lm, requests).delta


def right(lm, requests):
    found = []
    for request in requests:
        row = Objective().rows(lm, request, 0)[0]
        with torch.no_grad():
            logits = lm.logits(lm.hidden(lm.batch([row.ids]))[0, list(row.positions)])
        found.append(bool((logits.argmax(-1) == torch.tensor(row.labels)).all()))
    return found


def answers(lm, requests):
    prompts = [neighbor.prompt for request in requests for neighbor in request.neighbors]
    batch = lm.batch([lm.coder.encode(prompt) for prompt in prompts])
    with torch.no_grad():
        return lm.logits_at(batch, torch.arange(len(prompts)), batch.lengths - 1).argmax(-1)


def test_unrelated_facts_keep_neighbors_on_the_bundled_model(pocket, ten):
    """One edit flips its prompt; with unrelated facts beside it most neighbors stay, without hardly any does."""
    with left_alone(pocket) as lm:
        assert not any(right(lm, ten[:1]))
        before, kept = answers(lm, ten[:1]), {}
        for count in (0, 64):
            edit = on_pocket(lm, ten[:1], POCKET.changed({"random_facts": count, "similar_facts": count}))
            with edit.applied(lm):
                assert all(right(lm, ten[:1]))
                kept[count] = float((answers(lm, ten[:1]) == before).float().mean())
        assert kept[0] < 0.4
        assert kept[64] > 0.7


@pytest.mark.slow
def test_ten_edits_at_once_on_the_bundled_model(pocket, ten):
    with left_alone(pocket) as lm:
        assert not any(right(lm, ten))
        edit = on_pocket(lm, ten, POCKET.changed({"random_facts": 8, "similar_facts": 8}))
        with edit.applied(lm):
            assert all(right(lm, ten))
