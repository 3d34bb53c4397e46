"""Neurons beside MLPs: the same as wider MLPs, whatever is spared or replayed, and removable case by case."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from editing_core.editors.steps.keys import SubjectRows
from editing_core.editors.steps.staged import Staged
from editing_core.editors.steps.tails import Tail
from editing_core.errors import BadRequest, NotFinite
from editing_core.models import edits
from editing_core.models.beside import Neurons, activation_of, beside, is_gated, mlp_inputs, up_of
from editing_core.models.delta import LowRank, WeightDelta
from editing_core.models.edit import edits_on
from editing_core.models.hooks import watching
from editing_core.models.language_model import LanguageModel
from editing_core.models.neurons import SideNeurons, neurons_on
from editing_core.models.reading import read
from editing_core.models.replay import Replay, Scene
from tests.conftest import DISTINCT, FAMILIES, THREE, WIDTH, bit_equal, each_of, seldom, snapshot, tiny_model

tiny_lm = each_of(seldom(DISTINCT, THREE))
every_lm = each_of(seldom(FAMILIES, DISTINCT))
PROMPTS = ["Mary Walker was born in", "The old bridge over the river was built by the", "John"]


def drawn(layer=1, n=3, gated=False, cases=None, seed=0, activation="gelu", queries=False):
    some = torch.Generator().manual_seed(seed)
    parts = {name: torch.randn(n, WIDTH, generator=some) for name in ("keys", "values", "gate", "queries")}
    return Neurons(
        layer,
        activation,
        parts["keys"],
        torch.randn(n, generator=some),
        parts["values"],
        tuple((case,) for case in cases or range(n)),
        parts["gate"] if gated else None,
        parts["queries"] if queries else None,
    )


@torch.no_grad()
def logits(lm, prompts=PROMPTS):
    """At every prompt's last token, in the shortest way: the last block runs at these only."""
    batch = lm.batch([lm.coder.encode(prompt) for prompt in prompts])
    return lm.logits_at(batch, torch.arange(len(prompts)), batch.lengths - 1)


@torch.no_grad()
def wider(lm, group):
    """A copy whose MLP has the neurons inside: concatenated weights."""
    model = deepcopy(lm.model)
    down, parent = lm.architecture.down(group.layer), lm.architecture.down(group.layer).rpartition(".")[0]
    ups = [up_of(lm, group.layer)] if group.gate is None else [f"{parent}.gate_proj", f"{parent}.up_proj"]

    def grown(name, rows, bias, inputs=False):
        old = model.get_submodule(name)
        weight = old.weight.T if isinstance(old, Conv1D) else old.weight
        weight = torch.cat([weight, rows], dim=1 if inputs else 0)
        new = nn.Linear(weight.shape[1], weight.shape[0], bias=old.bias is not None)
        new.weight.copy_(weight)
        if old.bias is not None:
            new.bias.copy_(torch.cat([old.bias, bias]))
        model.set_submodule(name, new)

    for name, rows in zip(ups, [group.keys, group.gate], strict=False):
        grown(name, rows, group.bias)
    grown(down, group.values.T, torch.zeros(0), inputs=True)
    return LanguageModel(model, lm.tokenizer, lm.name)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "opt", "llama", "gemma2"])
def test_the_edit_is_a_wider_mlp(tiny_models, family):
    lm = tiny_models(family)
    gated = is_gated(lm, 2)
    assert gated == (family in ("llama", "gemma2"))
    for layer in (0, 2):
        group = drawn(layer, gated=gated, activation=activation_of(lm))
        if gated:
            group = replace(group, bias=torch.zeros(3))  # these MLPs have none
        before = logits(lm)
        with SideNeurons((group,)).applied(lm) as edited:
            attached = logits(edited)
        merged = logits(wider(lm, group))
        assert torch.allclose(attached, merged, atol=2e-5, rtol=1e-5)  # float32 sums in another order
        assert not torch.allclose(attached, before, atol=1e-2)


def test_every_family_has_its_input_where_it_is_looked_for(every_lm):
    """On, off, and bit-equal; what an MLP reads is what the neurons read, however much is spared."""
    lm, before = every_lm, snapshot(every_lm.model)
    edit = SideNeurons((drawn(0), drawn(lm.layers - 1)))
    plain = logits(lm)
    with edit.applied(lm):
        spared = logits(lm)
        batch = lm.batch([lm.coder.encode(prompt) for prompt in PROMPTS])
        with torch.no_grad():
            whole = lm.logits(lm.hidden(batch)[torch.arange(3), batch.lengths - 1])
        texts = [" ".join([PROMPTS[0]] * 9) + end for end in (" the", " a", " London")]
        rows = [lm.coder.encode(text) for text in texts]
        shared = {
            n: row for ns, got in read(lm, rows, [(len(r) - 1,) for r in rows]) for n, row in zip(ns, got, strict=True)
        }
        alone = logits(lm, texts)
    assert torch.allclose(spared, whole, atol=2e-5)
    assert not torch.allclose(spared, plain, atol=1e-3)
    assert torch.allclose(torch.stack([shared[n] for n in range(3)]), alone, atol=2e-5)
    assert bit_equal(lm.model, before)
    assert torch.equal(logits(lm), plain)


def test_neurons_of_no_value_change_no_bit(tiny_lm):
    group = drawn(2)
    zero = SideNeurons((replace(group, values=torch.zeros_like(group.values)),))
    plain = logits(tiny_lm)
    with zero.applied(tiny_lm):
        assert torch.equal(logits(tiny_lm), plain)
    with SideNeurons((group,)).applied(tiny_lm):
        assert not torch.equal(logits(tiny_lm), plain)


def test_editors_that_replay_and_wait_see_the_neurons(tiny_lm):
    """Replayed rows and rows that wait in front of a down-projection run parts of blocks only."""
    lm, layer = tiny_lm, 1
    block, down = lm.architecture.block(layer), lm.architecture.down(layer)
    ids = lm.coder.encode("The mother of Mary Walker was born in the")
    with SideNeurons((drawn(layer), drawn(2, seed=1))).applied(lm), torch.no_grad():
        batch = lm.batch([ids])
        hidden = lm.hidden(batch)[0, -1:]
        shift = torch.linspace(-1, 1, WIDTH)[None]  # no constant, which a norm takes out
        for site in (block, down):
            replay = Replay(lm, [site], [Scene(ids, 3, (len(ids) - 1,))])
            assert torch.allclose(replay.run({site: 0 * shift}), hidden, atol=1e-4)
            assert not torch.allclose(replay.run({site: shift}), hidden, atol=1e-4)
        rows = SubjectRows(ids=(ids[:5], ids[:7]), templates=1, openings=((),))
        staged = Staged(lm, rows)
        for at in (1, 2):
            name = lm.architecture.down(at)
            with watching(lm.model, inputs=[name]) as seen:
                lm.hidden(lm.batch([ids[:7]]))
            assert torch.allclose(staged.keys(at)[1, 0], seen[f"{name}.input"][0, 6].double(), atol=1e-4)


def test_a_tail_is_the_full_forward(every_lm):
    lm = every_lm
    rows = [lm.coder.encode(prompt) for prompt in PROMPTS]
    looked = [(len(row) - 1, max(0, len(row) - 2)) for row in rows]
    for layer in range(lm.layers):
        groups = [drawn(n, seed=n) for n in range(layer, lm.layers)]
        tail = Tail(lm, layer, rows, looked)
        with beside(lm, groups), torch.no_grad():
            pieces = tail.pieces([2, 0, 1])
            order = torch.cat([piece.looked for piece in pieces]).argsort()
            found = torch.cat([piece.hidden() for piece in pieces])[order]
            batch = lm.batch(rows)
            whole = lm.hidden(batch)
        wanted = torch.stack([whole[row, at] for row, of in enumerate(looked) for at in of])
        assert torch.allclose(found, wanted, atol=2e-5)


def test_they_add_up_in_any_order_and_with_weights(tiny_lm):
    lm, a, b = tiny_lm, SideNeurons((drawn(1, cases="abc"),)), SideNeurons((drawn(1, seed=1, cases="def"), drawn(2)))
    name = f"{lm.architecture.down(0)}.weight"
    inner = lm.model.get_submodule(lm.architecture.down(0)).weight.numel() // WIDTH
    weights = WeightDelta({name: LowRank(torch.linspace(-1, 1, WIDTH)[:, None], torch.full((1, inner), 0.1))})
    both = a + b
    assert [group.layer for group in both.groups] == [1, 2]
    assert both.cases == ("a", "b", "c", "d", "e", "f", 0, 1, 2)
    with a.applied(lm), b.applied(lm):
        nested = logits(lm)
        assert len(neurons_on(lm)) == 3
        assert edits_on(lm.model) == 2
    with both.applied(lm):
        assert torch.allclose(logits(lm), nested, atol=1e-5)
    together = both + weights
    assert set(together.parts) == {"neurons", "weights"}
    with together.applied(lm):
        assert not torch.allclose(logits(lm), nested, atol=1e-4)
    assert neurons_on(lm) == []
    assert edits_on(lm.model) == 0


def test_neurons_of_other_kinds_stand_in_one_layer(tiny_lm):
    """Gated ones, ones with another activation and ones that know their queries are kept apart and all count."""
    groups = [drawn(1), drawn(1, gated=True), drawn(1, activation="relu"), drawn(1, queries=True)]
    joined = sum((SideNeurons((group,)) for group in groups), SideNeurons())
    assert len(joined.groups) == 4
    with beside(tiny_lm, groups):
        expected = logits(tiny_lm)
    with joined.applied(tiny_lm):
        assert torch.equal(logits(tiny_lm), expected)


def test_one_case_is_taken_out(tiny_lm):
    group = drawn(2, n=4, cases=(1, "two", 1, 3))
    edit = SideNeurons((group, drawn(0, n=1, cases=("two",))))
    rest = edit.without("two")
    assert rest.cases == (1, 3)
    assert [g.layer for g in rest.groups] == [2]
    with beside(tiny_lm, [group.select([0, 2, 3])]):
        expected = logits(tiny_lm)
    with rest.applied(tiny_lm):
        assert torch.equal(logits(tiny_lm), expected)
    assert edit.without(1, "two", 3).empty
    with pytest.raises(BadRequest, match="No neuron belongs to case 7"):
        edit.without(1, 7)
    shared = replace(group, cases=((1, 2),) * 4)
    with pytest.raises(BadRequest, match="together"):
        SideNeurons((shared,)).without(1)
    assert SideNeurons((shared,)).without(1, 2).empty


def test_what_does_not_fit_is_refused_and_leaves_nothing(tiny_lm):
    wide = replace(drawn(1, n=1), keys=torch.ones(1, 5), values=torch.ones(1, 5))
    broken = replace(drawn(1), bias=torch.tensor([1.0, float("nan"), 0.0]))
    for edit, kind, words in (
        (SideNeurons((drawn(99),)), BadRequest, "layers 0 to 2"),
        (SideNeurons((wide,)), BadRequest, "read 5 numbers"),
        (SideNeurons((broken,)), NotFinite, "infinite or undefined"),
    ):
        with pytest.raises(kind, match=words), edit.applied(tiny_lm):
            pytest.fail("it was put on")
    with pytest.raises(ZeroDivisionError), SideNeurons((drawn(),)).applied(tiny_lm):
        raise ZeroDivisionError
    assert not neurons_on(tiny_lm)


def test_saved_and_loaded(tiny_lm, tmp_path):
    edit = SideNeurons((drawn(1, gated=True), drawn(2, queries=True, cases=("a", 4, "a")))).described({"editor": "x"})
    edit.save(tmp_path / "edit.safetensors")
    loaded = edits.load(tmp_path / "edit.safetensors")
    assert isinstance(loaded, SideNeurons)
    assert loaded.provenance == {"editor": "x"}
    assert loaded.facts() == edit.facts()
    with edit.applied(tiny_lm):
        expected = logits(tiny_lm)
    with loaded.applied(tiny_lm):
        assert torch.equal(logits(tiny_lm), expected)


def damaged(facts, **changes):
    return {"groups": [{**facts["groups"][0], **changes}]}


def test_what_was_never_saved_is_refused():
    edit = SideNeurons((drawn(1, cases=("a", "b", "a")),))
    tensors, facts = edit.tensors(), edit.facts()
    assert SideNeurons.of(tensors, facts).cases == ("a", "b")
    for other in (
        {},
        {"groups": 3},
        {"groups": [7]},
        {"groups": facts["groups"] * 2},
        damaged(facts, layer="1"),
        damaged(facts, layer=True),
        damaged(facts, layer=10**9),
        damaged(facts, layer=-1),
        damaged(facts, activation="prelu"),
        damaged(facts, activation=["gelu"]),
        damaged(facts, cases="ab"),
        damaged(facts, cases=["ab", "b"]),
        damaged(facts, cases=[["a"], [1.5]]),
        damaged(facts, cases=[["a"], [["b"]]]),
        damaged(facts, of=[0, 1]),
        damaged(facts, of=[0, 1, 2]),
        damaged(facts, of=[0, True, 0]),
        damaged(facts, of="010"),
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            SideNeurons.of(tensors, other)
    for change in (
        {"0|bias": torch.zeros(3, 1)},
        {"0|bias": torch.zeros(2)},
        {"0|bias": torch.tensor(1.0)},
        {"0|keys": torch.zeros(3)},
        {"0|keys": torch.zeros(3, WIDTH, dtype=torch.long)},
        {"0|values": torch.zeros(3, WIDTH, dtype=torch.float64)},
        {"0|gate": torch.zeros(3, 4)},
        {"0|other": torch.zeros(3, WIDTH)},
        {"1|keys": torch.zeros(3, WIDTH)},
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            SideNeurons.of({**tensors, **change}, facts)
    with pytest.raises((KeyError, TypeError, ValueError)):
        SideNeurons.of({name: t for name, t in tensors.items() if name != "0|values"}, facts)


def test_findings_tell_which_neuron_adds_most(tiny_lm):
    lm = tiny_lm
    edit = SideNeurons((drawn(0), drawn(2, n=2, cases=("a", "b"), seed=3)))
    found = edit.findings(lm, PROMPTS[:2])
    assert [row[0] for row in found.rows] == PROMPTS[:2]
    added = []
    with edit.applied(lm):
        ids = [lm.coder.encode(p) for p in PROMPTS[:2]]
        for group in edit.groups:
            fired = group.activations(mlp_inputs(lm, group.layer, ids, [[len(row) - 1] for row in ids]))
            added.append(fired.abs() * group.values.norm(dim=1))
    added = torch.cat(added, dim=1)
    names = ["0:0", "0:1", "0:2", "2:0 (a)", "2:1 (b)"]
    for row, own in zip(found.rows, added, strict=True):
        assert row[1].startswith(names[int(own.argmax())])
        assert row[3:] == pytest.approx((float(own.max()), float(own.sum())), rel=1e-4)
        assert abs(row[2]) <= row[3] / float(min(g.values.norm(dim=1).min() for g in edit.groups)) + 1e-6
    assert found.said.startswith("5 neurons stand beside the MLP of layer 0, 2,")
    assert edit.findings(lm, ()).rows == ()
    assert SideNeurons().findings(lm, PROMPTS).rows == ()


def test_sixteen_bit_models_keep_neurons_in_float32():
    lm = tiny_model("gpt2", torch.bfloat16)
    small = SideNeurons((replace(drawn(1), values=torch.full((3, WIDTH), 1e-9)),))
    plain = logits(lm)
    with small.applied(lm):
        assert torch.equal(logits(lm), plain)
    with SideNeurons((drawn(1),)).applied(lm):
        assert not torch.equal(logits(lm), plain)
        assert logits(lm).isfinite().all()
