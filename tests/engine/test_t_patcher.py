"""T-Patcher: a neuron for every wrong token, silent elsewhere, trained on the last block alone."""

from dataclasses import replace

import pytest
import torch

from editing_core.data.datasets import load_dataset, sample
from editing_core.data.pool import silent
from editing_core.editors.assist import Assist
from editing_core.editors.materials import Materials
from editing_core.editors.steps.patching import Patching
from editing_core.editors.steps.rows import Objective
from editing_core.editors.steps.tails import Tail
from editing_core.editors.t_patcher import TPatcherSettings, build_t_patcher, draw_memory
from editing_core.errors import Cancelled, NotFinite
from editing_core.models import edits
from editing_core.models.beside import mlp_inputs
from editing_core.statistics.covariance import Corpus
from editing_core.types import Probe, ignore
from tests.conftest import DISTINCT, THREE, bit_equal, cancel_after, each_of, left_alone, seldom, snapshot

tiny_lm = each_of(seldom(DISTINCT, THREE))
TEXTS = ("The weather was fine, and therefore we went home.", "The river runs through the old city.")
QUICK = TPatcherSettings(layer=2, memory=20, steps=40, first_look=20, look_every=10, rate=3e-2)
POCKET = TPatcherSettings(layer=5)


def editor(lm, requests=(), settings=QUICK, texts=TEXTS, **more):
    return build_t_patcher(settings, Materials(lm, None, None, 0, requests=requests, texts=lambda: texts, **more))


def right(lm, request):
    """Per token of the new object whether it comes first."""
    row = Objective().rows(lm, request, 0)[0]
    with torch.no_grad():
        logits = lm.logits(lm.hidden(lm.batch([row.ids]))[0, list(row.positions)])
    return (logits.argmax(-1) == torch.tensor(row.labels)).tolist()


def begun(lm, request, settings=QUICK, memory=None):
    rows = Objective().rows(lm, request, 0)
    return Patching(lm, settings, rows, torch.zeros(0, 32) if memory is None else memory)


def test_a_neuron_begins_with_one_at_its_own_query(tiny_lm, requests_):
    patching = begun(tiny_lm, requests_[1])
    (group,) = patching.patch("x").groups
    assert group.activation in ("gelu", "gelu_new", "relu", "silu", "gelu_pytorch_tanh")
    own = group.queries @ group.keys.T + group.bias
    assert torch.allclose(own.diagonal(), torch.ones(len(own)), atol=1e-5)
    assert not group.values.any()
    assert group.cases == (("x",),) * patching.wrong


def test_it_does_the_edit_and_leaves_the_model(tiny_lm, requests_, tmp_path):
    before = snapshot(tiny_lm.model)
    outcome = editor(tiny_lm).edit(tiny_lm, requests_)
    assert bit_equal(tiny_lm.model, before)
    edit = outcome.delta
    assert not any(t.requires_grad for t in edit.tensors().values())
    assert edit.cases == (1, "two")
    assert not all(right(tiny_lm, requests_[0]))
    if tiny_lm.architecture.mlp_norm is None:  # behind a norm a neuron is too weak for a random model
        with edit.applied(tiny_lm) as lm:
            assert all(right(lm, requests_[0]) + right(lm, requests_[1]))
    assert (outcome.targets.log_p_final < outcome.targets.log_p_initial).all()
    assert outcome.targets.history[0].keys() == {"target", "fire", "silence", "loss"}
    again = editor(tiny_lm).edit(tiny_lm, requests_).delta
    assert all(torch.equal(t, again.tensors()[name]) for name, t in edit.tensors().items())
    edit.save(tmp_path / "edit")
    loaded = edits.load(tmp_path / "edit")
    assert all(torch.equal(t, loaded.tensors()[name]) for name, t in edit.tensors().items())


def test_gradients_of_the_tail_are_those_of_the_full_forward(tiny_lm, requests_, monkeypatch):
    """Only rounding differs, of float32 sums in another order."""
    found = []
    for whole in (False, True):
        with monkeypatch.context() as patch:
            if whole:  # as under an edit that looks at prompts: rows are read from their beginning
                patch.setattr(Tail, "_states", lambda _self: {})
            patching = begun(
                tiny_lm, requests_[1], memory=torch.randn(30, 32, generator=torch.Generator().manual_seed(1))
            )
            assert all((piece.state is None) == whole for piece in patching.pieces)
            patching.value += 0.1 * torch.randn(patching.value.shape, generator=torch.Generator().manual_seed(2))
            tensors = [t.requires_grad_() for t in (patching.keys, patching.bias, patching.value)]
            terms = patching._gradients()
            found.append((terms, [t.grad for t in tensors]))
    (tail, own), (full, wanted) = found
    assert tail == pytest.approx(full, rel=1e-5)
    for a, b in zip(own, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))
        assert b.abs().max() > 0


def test_weights_get_no_gradient(tiny_lm, requests_):
    editor(tiny_lm).edit(tiny_lm, requests_[:1])
    assert all(p.grad is None and not p.requires_grad for p in tiny_lm.model.parameters())


def test_the_loss_is_what_it_is_said_to_be(tiny_lm, requests_):
    memory = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    s = replace(QUICK, top_memory=3, fire=2.0, silence=5.0, beta=-1.0, gamma=0.5)
    patching = begun(tiny_lm, requests_[1], s, memory)
    assert patching.wrong > 1
    patching.keys += 0.1
    for tensor in (patching.keys, patching.bias, patching.value):
        tensor.requires_grad_()
    terms = patching._gradients()
    own = torch.stack([q @ k for q, k in zip(patching.own, patching.keys, strict=True)])
    worst = []
    for n in range(patching.wrong):
        at = patching.memory @ patching.keys[n]
        for exponent in (at + 1.0, at - own[n] + 0.5):
            worst.append(float(exponent.detach().clamp(max=20).exp().sort(descending=True).values[:3].mean()))
    assert terms["silence"] == pytest.approx(5.0 * 2 * sum(worst) / len(worst), rel=1e-4)
    assert terms["fire"] == pytest.approx(2.0 * float((-own.detach()).exp().mean()), rel=1e-4)
    assert terms["loss"] == pytest.approx(sum(terms[name] for name in ("target", "fire", "silence")), rel=1e-4)


def test_its_own_query_is_no_part_of_the_memory(tiny_lm, requests_):
    """Else a second round, whose memory has the first one's queries, would be asked to be silent where it must fire."""
    first = begun(tiny_lm, requests_[0])
    memory = torch.cat([first.own, first.own * (1 + 1e-5), -first.own])
    assert len(begun(tiny_lm, requests_[0], memory=memory).memory) == len(first.own)


def test_what_is_right_already_gets_no_neuron(tiny_models, requests_):
    with left_alone(tiny_models("gptj")) as tiny:
        edit = editor(tiny).edit(tiny, requests_[:1]).delta
        with edit.applied(tiny) as lm:
            again = editor(tiny).edit(lm, requests_[:1])
    assert again.delta.empty
    assert again.targets.steps.tolist() == [0]
    assert "1 of 1 facts were right already" in again.notes[-1]
    assert (edit + again.delta).tensors().keys() == edit.tensors().keys()


def test_no_more_neurons_than_allowed(tiny_lm, requests_):
    outcome = editor(tiny_lm, settings=replace(QUICK, patches=1, steps=1)).edit(tiny_lm, requests_[1:])
    assert len(outcome.delta.groups[0].cases) == 1
    assert "more than 1 wrong token" in outcome.notes[-1]


def test_the_memory_has_what_the_edit_that_is_on_was_made_for(tiny_lm, requests_):
    one = editor(tiny_lm)
    assert len(one._memory(tiny_lm)) == len(one.memory) == 20
    first = one.edit(tiny_lm, requests_[:1]).delta
    with first.applied(tiny_lm) as lm:
        grown = one._memory(lm)
        assert torch.equal(grown[20:], first.groups[0].queries)
        sequential = one.edit(lm, requests_[1:]).delta
    batch = one.edit(tiny_lm, requests_).delta
    both = first + sequential
    assert both.cases == batch.cases
    for name, t in batch.tensors().items():  # a batch is the sequence
        assert torch.allclose(t, both.tensors()[name], rtol=1e-4, atol=1e-5)


def test_stop_leaves_nothing(tiny_lm, requests_):
    before = snapshot(tiny_lm.model)
    for count in (0, 25):
        with pytest.raises(Cancelled):
            editor(tiny_lm).edit(tiny_lm, requests_, cancel_after(count))
    assert bit_equal(tiny_lm.model, before)


def test_a_loss_that_is_no_number_is_refused(tiny_lm, requests_):
    broken = replace(editor(tiny_lm), memory=torch.full((3, 32), float("nan")))
    with pytest.raises(NotFinite, match="smaller rate"):
        broken.edit(tiny_lm, requests_)


def test_neighbors_assist(tiny_lm, requests_):
    request = replace(requests_[0], edit_neighbors=(Probe("Peter Smith was born in", "Paris", "Peter Smith"),))
    assisted = editor(tiny_lm, assist=Assist(neighbors="na", weight=3.0))
    plain = editor(tiny_lm).edit(tiny_lm, [request]).delta
    edit = assisted.edit(tiny_lm, [request]).delta
    assert len(edit.groups[0].cases) == len(plain.groups[0].cases)
    assert not torch.equal(edit.groups[0].values, plain.groups[0].values)


@pytest.mark.parametrize("changes", [{"value": "amplified"}, {"smoothing": 0.1}])
def test_published_switches(tiny_models, requests_, changes):
    with left_alone(tiny_models("gpt2")) as lm:
        outcome = editor(lm, settings=QUICK.changed(changes)).edit(lm, requests_[:1])
        other = editor(lm).edit(lm, requests_[:1]).delta
        assert not torch.equal(outcome.delta.groups[0].values, other.groups[0].values)
        with outcome.delta.applied(lm):
            assert all(right(lm, requests_[0]))


def test_a_model_without_a_corpus_writes_its_memory(tiny_models):
    lm = tiny_models("gpt2")
    one = editor(lm, settings=replace(QUICK, memory=50), texts=())
    assert one.memory.shape == (50, 32)
    assert "wrote itself" in one.about[0]
    row = lm.coder.encode(TEXTS[1])
    assert torch.equal(draw_memory(lm, 2, TEXTS[1:], 1000, 0), mlp_inputs(lm, 2, [row], [range(len(row))]))
    assert editor(lm, settings=replace(QUICK, memory=0)).memory.shape == (0, 32)


@pytest.fixture(scope="module")
def ten():
    return sample(load_dataset("pocket-facts").requests, 10, trial=0)


def pocket_editor(lm, requests, settings=POCKET):
    return editor(lm, requests, settings, silent(Corpus.bundled(lm.name).documents, requests))


def answers(lm, requests):
    prompts = [neighbor.prompt for request in requests for neighbor in request.neighbors]
    batch = lm.batch([lm.coder.encode(prompt) for prompt in prompts])
    with torch.no_grad():
        return lm.logits_at(batch, torch.arange(len(prompts)), batch.lengths - 1).argmax(-1)


@pytest.mark.parametrize("count", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_edits_in_a_row_on_the_bundled_model(pocket, ten, count):
    ten = ten[:count]
    with left_alone(pocket) as lm:
        before = answers(lm, ten)
        edit = pocket_editor(lm, ten).edit(lm, ten, ignore).delta
        assert not any(all(right(lm, request)) for request in ten)
        with edit.applied(lm):
            assert all(all(right(lm, request)) for request in ten)
            assert (answers(lm, ten) == before).float().mean() > 0.9
        gone = ten[1].case_id
        with edit.without(gone).applied(lm):
            assert [all(right(lm, request)) for request in ten] == [request.case_id != gone for request in ten]


def test_the_memory_keeps_neurons_silent(pocket, ten):
    with left_alone(pocket) as lm:
        held_out = Corpus.bundled(lm.name).documents[-40:]
        elsewhere = draw_memory(lm, 5, held_out, 600, 3)
        most, kept, before = {}, {}, answers(lm, ten[:1])
        for silence in (0.0, 10.0):
            one = pocket_editor(lm, ten[:1], replace(POCKET, silence=silence))
            edit = one.edit(lm, ten[:1]).delta
            most[silence] = float(edit.groups[0].activations(elsewhere).quantile(0.99))
            with edit.applied(lm):
                assert all(right(lm, ten[0]))
                kept[silence] = float((answers(lm, ten[:1]) == before).float().mean())
        assert most[10.0] < 0.5 * most[0.0]
        assert kept[0.0] < 0.6
        assert kept[10.0] > 0.8
