"""Codebooks: which entry reaches how far after every kind of insertion, and what they change in a forward."""

from dataclasses import replace
from math import inf, nan

import pytest
import torch

from editing_core.errors import BadRequest, NotFinite
from editing_core.evaluation.scoring import generate, score_objects
from editing_core.models import edits
from editing_core.models.codebook import QUERIES, Codebook, carried, muted, queries, sites
from editing_core.models.entries import COVER, GAP, Entries, Insertion, expanded, inserted, replayed, split
from editing_core.models.hooks import watching
from editing_core.models.tokens import Batch
from tests.conftest import BLOCKS, DISTINCT, THREE, WIDTH, bit_equal, each_of, left_alone, seldom, snapshot, tiny_model

tiny_lm = each_of(seldom(DISTINCT, THREE))

LAYER = 1
PROMPT, OTHER = "Mary Walker was born in", "The old bridge over the river was built by"
EVERYWHERE = 1e6  # a radius that every query is within


def at(x, y=0.0, radius=1.0, labels=(1,), case=0, prompt="", **more):
    """An insertion at a point of the plane; it shares, as published, unless told otherwise."""
    key, value = torch.tensor([x, y]), torch.tensor([x, y, 0.0])
    return Insertion(key, value, radius, labels, case, prompt or f"{x} {y}", **{"shares": True, **more})


def book(lm, prompts=(PROMPT,), radius=1e-3, layer=LAYER, query="down", **more):
    """A codebook of a model: at each prompt a random value."""
    keys, width = queries(lm, layer, query, prompts), lm.model.config.get_text_config().hidden_size
    values = torch.randn(len(prompts), width, generator=torch.Generator().manual_seed(3))
    log = [
        Insertion(key, value, radius, (n,), n, prompt, **more)
        for n, (key, value, prompt) in enumerate(zip(keys, values, prompts, strict=True))
    ]
    return Codebook(layer, query, tuple(log))


def outputs(lm, batch, layer=LAYER):
    """What the layer puts out, and the final states."""
    site = lm.architecture.down(layer)
    with watching(lm.model, [site]) as seen, torch.no_grad():
        return lm.hidden(batch), seen[site].reshape(*batch.ids.shape, -1)


# --- vectors ---


def test_what_touches_no_ball_is_an_entry_of_its_own():
    one = inserted(Entries(), at(0.0))
    assert one.radii == (1.0,)
    both = inserted(one, at(3.0, 4.0, radius=3.5, labels=(2,)))  # 5 away, 4.5 would touch
    assert both.radii == (1.0, 3.5)
    assert [entry.case for entry in both.made] == [0, 0]
    assert one.radii == (1.0,)  # a value: nothing is changed in place


@pytest.mark.parametrize("labels", [(1,), (2,)])
def test_balls_that_just_touch_already_meet(labels):
    one = inserted(Entries(), at(0.0, radius=2.0))
    touching = inserted(one, at(3.0, 4.0, radius=3.0, labels=labels))
    beyond = inserted(one, at(3.0, 4.0, radius=2.999, labels=labels))
    assert beyond.radii == (2.0, 2.999)
    assert touching.radii == ((COVER * 5.0,) if labels == (1,) else (2.0, 2.5))


def test_the_same_object_makes_an_entry_reach_further_and_never_less_far():
    one = inserted(Entries(), at(0.0, radius=2.0))
    assert inserted(one, at(3.0, radius=2.0)).radii == (pytest.approx(COVER * 3.0),)
    assert inserted(one, at(3.0, radius=2.0, published=True)).radii == (3.0,)
    assert inserted(one, at(0.5, radius=2.0)).radii == (2.0,)
    assert expanded(one, 0, 1.0).radii == (2.0,)


def test_facts_of_one_object_keep_entries_of_their_own():
    own = [at(0.0, radius=2.0, shares=False), at(1.0, radius=2.0, shares=False)]
    assert replayed(own).radii == (2.0, 2.0)
    # What conflicts with both parts from the nearer one, and what conflicts only with the farther one with that.
    assert replayed([*own, at(2.0, radius=2.0, labels=(2,), shares=False)]).radii == (2.0, 0.5 - GAP, 0.5)
    behind = [at(0.0, labels=(2,), shares=False), own[1], at(1.5, radius=2.0, shares=False)]
    assert replayed(behind).radii == (0.5 - GAP, 0.5, 0.75)


def test_a_shared_entry_may_lose_the_fact_again_an_own_one_never():
    """The published rule's flaw: the fact at 1.5 is reached from 0, until a conflict at 1.7 takes that away."""
    for shares, kept in ((True, False), (False, True)):
        log = [at(0.0, shares=shares), at(1.5, shares=shares), at(1.7, labels=(2,), shares=shares)]
        _, _, before = replayed(log[:2]).route(torch.tensor([[1.5, 0.0]]))
        numbers, _, after = (found := replayed(log)).route(torch.tensor([[1.5, 0.0]]))
        assert before.tolist() == [True]
        assert (after.tolist() == [True] and found.made[int(numbers)].labels == (1,)) == kept


def test_what_an_entry_was_made_to_reach_it_answers_whatever_rounding_does():
    grown = inserted(inserted(Entries(), at(0.0)), at(1.7))
    hits = grown.route(torch.tensor([[1.7 * (1 + 1e-6), 0.0], [1.75, 0.0]]))[2]
    assert hits.tolist() == [True, False]
    published = replayed([at(0.0, published=True), at(1.7, published=True)])
    assert published.route(torch.tensor([[1.7 * (1 + 1e-6), 0.0]]))[2].tolist() == [False]


def test_objects_are_the_same_only_as_sequences():
    """The published code compares means of label ids, of which those of (1, 3) and (2, 2) are one."""
    assert len(replayed([at(0.0, labels=(1, 3)), at(0.5, labels=(2, 2))]).made) == 2


def test_conflicting_edits_keep_disjoint_balls():
    for far, radius in ((1.0, 1.0), (0.3, 5.0), (2.0, 1.0), (1.9999, 1.0)):
        first, second = replayed([at(0.0, radius=radius), at(far, radius=radius, labels=(2,))]).radii
        assert first + second < far
        assert first <= radius
        assert second <= radius
    near = split(inserted(Entries(), at(0.0)), 0, 1.0, at(1.0, labels=(2,)))
    assert near.radii == (0.5 - GAP, 0.5)


def test_a_split_enlarges_a_ball_only_as_published():
    log = [at(0.0, radius=4.0), at(1.0, radius=4.0, labels=(2,)), at(-3.0, radius=4.0, labels=(3,))]
    ours, theirs = replayed(log), replayed([replace(new, published=True) for new in log])
    assert ours.radii == (0.5 - GAP, 0.5, 1.5)
    assert theirs.radii == (1.5 - GAP, 0.5, 1.5)
    # A new ball may be larger than was asked for as well.
    assert replayed([at(0.0, radius=9.0, published=True), at(8.0, labels=(2,), published=True)]).radii[1] == 4.0
    assert replayed([at(0.0, radius=9.0), at(8.0, labels=(2,))]).radii[1] == 1.0


def test_a_newer_object_of_one_prompt_takes_the_older_ones_place_wherever_its_key_went():
    """With other edits on, a prompt's key is not where it was."""
    log = at(0.0, prompt="one"), at(0.5, labels=(2,), prompt="one")
    assert replayed(log).made == log[1:]
    assert len(replayed((log[0], replace(log[1], prompt="two"))).made) == 2


@pytest.mark.parametrize("second", [at(0.0, labels=(2,), prompt="one"), at(1e-5, labels=(2,), prompt="two")])
def test_one_key_is_one_prompt(second):
    found = replayed([at(0.0, prompt="one"), second])
    assert found.made == (second,)
    assert found.radii == (1.0,)
    theirs = replayed([replace(at(0.0), published=True), replace(second, published=True)])
    assert theirs.radii[0] < 0  # never answers again, and the new one at its very key only
    assert theirs.radii[1] <= 5e-6


def test_a_query_gets_the_nearest_entry_up_to_its_radius():
    found = replayed([at(0.0), at(10.0, radius=3.0, labels=(2,))])
    points = torch.tensor([[1.0, 0.0], [1.0001, 0.0], [7.0, 0.0], [6.9999, 0.0], [10.0, 0.0]])
    numbers, far, hits = found.route(points)
    assert numbers.tolist() == [0, 0, 1, 1, 1]
    assert hits.tolist() == [True, False, True, False, True]
    assert far.tolist() == pytest.approx([1.0, 1.0001, 3.0, 3.0001, 0.0])


def test_distances_of_long_vectors_are_not_those_of_rounded_products():
    """Thirty entries, far from the origin and close together: there products give zero or worse."""
    keys = torch.full((30, 512), 100.0) + 1e-3 * torch.arange(30.0)[:, None]
    found = Entries(tuple(replace(at(0.0), key=key) for key in keys), (1.0,) * 30)
    numbers, far = found.nearest(keys + 1e-4)
    assert numbers.tolist() == [*range(30)]
    assert float(far.max()) < 512**0.5 * 2e-4


LOG = (
    at(0.0, radius=4.0, case="a"),
    at(1.0, radius=4.0, labels=(2,), case=2),
    at(20.0, labels=(3,), case=3),
    at(21.5, labels=(3,), case=4),
    at(20.0, labels=(5,), case=5, prompt="20.0 0.0"),
)


def radii(found):
    return {new.case: radius for new, radius in zip(found.entries.made, found.entries.radii, strict=True)}


def test_what_is_taken_out_gives_its_neighbors_their_radius_back():
    whole = Codebook(0, "down", LOG)
    assert radii(whole) == {"a": 0.5 - GAP, 2: 0.5, 5: 1.0}
    assert radii(whole.without(2)) == {"a": 4.0, 5: 1.0}
    assert radii(whole.without("a")) == {2: 4.0, 5: 1.0}
    assert radii(whole.without(5)) == {"a": 0.5 - GAP, 2: 0.5, 3: COVER * 1.5}
    assert radii(whole.without(5).without(4)) == {"a": 0.5 - GAP, 2: 0.5, 3: 1.0}
    assert radii(whole.without(5).without(3)) == {"a": 0.5 - GAP, 2: 0.5, 4: 1.0}  # no longer reached: its own
    assert radii(whole.without("5")) == radii(whole)  # a text is no number
    assert Codebook(0, "down", LOG[:1]).without("a").empty


def test_joined_one_by_one_is_the_log_replayed():
    step = Codebook()
    for new in LOG:
        step = step + Codebook(0, "down", (new,))
    assert radii(step) == radii(Codebook(0, "down", LOG))
    assert step.log == LOG


def test_codebooks_of_two_layers_are_refused():
    mine = Codebook(0, "down", LOG)
    for other in (Codebook(1, "down", LOG), Codebook(0, "mlp", LOG)):
        with pytest.raises(BadRequest, match="a model has one codebook at most; switch one edit off"):
            mine + other
    wide = replace(LOG[0], key=torch.zeros(3))
    with pytest.raises(BadRequest, match="different widths"):
        mine + Codebook(0, "down", (wide,))
    assert (mine + Codebook(5)).layer == 0  # an empty one is nowhere


# --- files ---


def told(facts, **changes):
    row = {**facts["log"][0], **changes}
    return {**facts, "log": [row, *facts["log"][1:]]}


@pytest.mark.parametrize(
    "changed",
    [
        lambda t, f: (t, {**f, "layer": -1}),
        lambda t, f: (t, {**f, "layer": True}),
        lambda t, f: (t, {**f, "layer": 10**400}),
        lambda t, f: (t, {**f, "query": "up"}),
        lambda t, f: (t, {**f, "more": 1}),
        lambda t, f: (t, {k: v for k, v in f.items() if k != "log"}),
        lambda t, f: (t, {**f, "log": f["log"][1:]}),
        lambda t, f: (t, {**f, "log": "log"}),
        lambda t, f: (t, {**f, "log": [7] * 5}),
        lambda t, f: (t, told(f, radius=-1.0)),
        lambda t, f: (t, told(f, radius=nan)),
        lambda t, f: (t, told(f, radius=inf)),
        lambda t, f: (t, told(f, radius=10**400)),
        lambda t, f: (t, told(f, radius="1")),
        lambda t, f: (t, told(f, labels=[])),
        lambda t, f: (t, told(f, labels=[1.5])),
        lambda t, f: (t, told(f, labels=[2**64])),
        lambda t, f: (t, told(f, case=None)),
        lambda t, f: (t, told(f, case=True)),
        lambda t, f: (t, told(f, case=10**400)),
        lambda t, f: (t, told(f, prompt=3)),
        lambda t, f: (t, told(f, places="somewhere")),
        lambda t, f: (t, told(f, published=0)),
        lambda t, f: (t, told(f, shares=None)),
        lambda t, f: (t, told(f, more=0)),
        lambda t, f: ({**t, "more": t["keys"]}, f),
        lambda t, f: ({"keys": t["keys"]}, f),
        lambda t, f: ({**t, "keys": t["keys"][1:]}, f),
        lambda t, f: ({**t, "keys": t["keys"][0]}, f),
        lambda t, f: ({**t, "keys": t["keys"][:, :0]}, f),
        lambda t, f: ({**t, "values": t["values"].double()}, f),
        lambda t, f: ({**t, "values": t["values"].long()}, f),
    ],
)
def test_what_no_codebook_gave_is_refused(changed):
    good = Codebook(0, "down", LOG)
    assert radii(Codebook.of(good.tensors(), good.facts())) == radii(good)
    with pytest.raises((KeyError, TypeError, ValueError)):
        Codebook.of(*changed(good.tensors(), good.facts()))


def test_saved_and_loaded_it_answers_as_before(tiny_lm, tmp_path):
    made = book(tiny_lm, (PROMPT, OTHER), radius=0.5).described({"editor": "test"})
    made.save(tmp_path / "edit.safetensors")
    back = edits.load(tmp_path / "edit.safetensors")
    assert isinstance(back, Codebook)
    assert back.facts() == made.facts()
    assert back.provenance == {"editor": "test"}
    assert back.entries.radii == made.entries.radii
    batch = tiny_lm.batch([tiny_lm.coder.encode(PROMPT)])
    with made.applied(tiny_lm):
        before, _ = outputs(tiny_lm, batch)
    with back.applied(tiny_lm):
        assert torch.equal(outputs(tiny_lm, batch)[0], before)


def test_an_empty_one_is_saved_too(tmp_path):
    Codebook(2).save(tmp_path / "edit.safetensors")
    assert edits.load(tmp_path / "edit.safetensors").empty


# --- in a model ---


def test_an_empty_codebook_leaves_everything_as_it_is(tiny_lm):
    batch = tiny_lm.batch([tiny_lm.coder.encode(PROMPT)])
    before, _ = outputs(tiny_lm, batch)
    with Codebook(LAYER).applied(tiny_lm) as same:
        assert same is tiny_lm
        assert not tiny_lm.edited
        assert not tiny_lm.gated
        assert torch.equal(outputs(tiny_lm, batch)[0], before)


@pytest.mark.parametrize("query", QUERIES)
def test_the_remembered_prompt_gets_its_value_and_others_nothing(tiny_lm, query):
    if query == "mlp" and tiny_lm.architecture.mlp_of(0) is None:
        with pytest.raises(BadRequest, match="set query to down"):
            book(tiny_lm, query=query)
        return
    made, before = book(tiny_lm, query=query), snapshot(tiny_lm.model)
    rows = [tiny_lm.coder.encode(prompt) for prompt in (PROMPT, OTHER)]
    batch = tiny_lm.batch(rows)
    states, out = outputs(tiny_lm, batch)
    with made.applied(tiny_lm):
        assert tiny_lm.edited
        assert tiny_lm.gated
        edited, changed = outputs(tiny_lm, batch)
    last = len(rows[0]) - 1
    assert torch.equal(changed[0, last], made.log[0].value)
    assert torch.equal(changed[0, :last], out[0, :last])
    assert torch.equal(changed[1], out[1])
    assert torch.equal(edited[1], states[1])
    assert not torch.equal(edited[0, last], states[0, last])
    assert bit_equal(tiny_lm.model, before)
    assert not tiny_lm.edited
    assert carried(tiny_lm.model).empty


@pytest.mark.parametrize(("places", "which"), [("last", "n"), ("prompt", "pn"), ("all", "pnt")])
def test_where_the_value_stands(tiny_models, places, which):
    with left_alone(tiny_models("gpt2")) as lm:
        made = book(lm, places=places)
        text = lm.coder.continuation(PROMPT, "London town hall")
        batch = replace(lm.batch([text.inputs]), ends=torch.tensor([text.start]))
        _, out = outputs(lm, batch)
        with made.applied(lm):
            _, changed = outputs(lm, batch)
    there = (changed == made.log[0].value).all(-1)[0].tolist()
    kinds = ["p"] * (text.start - 1) + ["n"] + ["t"] * (len(text.inputs) - text.start)
    assert len(set(kinds)) == 3
    assert there == [kind in which for kind in kinds]
    untouched = [not t for t in there]
    assert torch.equal(changed[0, untouched], out[0, untouched])


@pytest.mark.parametrize("places", ["last", "prompt"])
def test_the_answer_that_is_scored_does_not_decide(tiny_lm, places):
    """One prompt with answers of other lengths: the first token's chances are the same, and others' are as without."""
    made = book(tiny_lm, places=places)
    answers = ["London", "the French town hall", "a river, and so on and on"]
    text = [tiny_lm.coder.continuation(PROMPT, answer) for answer in answers]
    batch = replace(tiny_lm.batch([t.inputs for t in text]), ends=torch.tensor([t.start for t in text]))
    with made.applied(tiny_lm):
        _, out = outputs(tiny_lm, batch)
        alone = [score_objects(tiny_lm, [(PROMPT, answer)])[0] for answer in answers]
        together = score_objects(tiny_lm, [(PROMPT, answer) for answer in answers] + [(OTHER, "London")])
    for row, t in enumerate(text):
        assert torch.equal(out[row, t.start - 1], made.log[0].value)
    assert [s.logp for s in together[:3]] == pytest.approx([s.logp for s in alone], abs=1e-5)
    assert len({s.choices[0] for s in together[:3]}) == 1
    (plain,) = score_objects(tiny_lm, [(OTHER, "London")])
    assert together[3].logp == pytest.approx(plain.logp, abs=1e-5)


def test_padding_on_either_side_gives_the_same(tiny_lm):
    made = book(tiny_lm, (PROMPT, OTHER), places="prompt")
    texts = [tiny_lm.coder.continuation(prompt, "London town") for prompt in (PROMPT, OTHER, "Peter")]
    found = []
    for left in (False, True):
        plain = tiny_lm.batch([t.inputs for t in texts], left=left)
        # Counted from each row's first token, which models with learned positions need told.
        positions = (plain.mask.cumsum(1) - 1).clamp(min=0)
        ends = torch.tensor([t.start for t in texts])
        batch = Batch(plain.ids, plain.mask, plain.lengths, positions, ends)
        with made.applied(tiny_lm):
            states, out = outputs(tiny_lm, batch)
        own = plain.mask.bool()
        found.append((states[own], out[own]))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    values = [(found[1][1] == new.value).all(-1).sum().item() for new in made.log]
    assert values == [t.start for t in texts[:2]]


@pytest.mark.parametrize("family", THREE)
@pytest.mark.parametrize("places", ["last", "prompt"])
def test_texts_are_the_same_with_and_without_kept_states(tiny_models, family, places):
    """Every query is within the radius, so a decoding step that asked would be answered."""
    with left_alone(tiny_models(family)) as lm:
        plain = generate(lm, PROMPT, 8)
        with book(lm, radius=EVERYWHERE, places=places).applied(lm):
            kept = generate(lm, PROMPT, 8)
            prompt = lm.coder.encode(PROMPT)
            ids = prompt
            for _ in range(8):
                ((_, batch),) = lm.batches([ids], ends=[len(prompt)])
                logits = lm.logits_at(batch, torch.tensor([0]), batch.lengths - 1)
                ids = (*ids, int(logits.argmax()))
    assert kept == lm.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    assert kept != plain


def test_one_on_top_of_another_is_both_together(tiny_lm):
    one, two = book(tiny_lm, (PROMPT,), radius=EVERYWHERE), book(tiny_lm, (OTHER, "Peter"), radius=EVERYWHERE)
    batch = tiny_lm.batch([tiny_lm.coder.encode(p) for p in (PROMPT, OTHER, "Peter")])
    with (one + two).applied(tiny_lm):
        together, _ = outputs(tiny_lm, batch)
    with one.applied(tiny_lm):
        alone, _ = outputs(tiny_lm, batch)
        with two.applied(tiny_lm):
            nested, _ = outputs(tiny_lm, batch)
            with muted(tiny_lm.model):
                silent, _ = outputs(tiny_lm, batch)
        again, _ = outputs(tiny_lm, batch)
    assert torch.equal(nested, together)
    assert torch.equal(again, alone)
    assert not torch.equal(alone, together)
    assert torch.equal(silent, outputs(tiny_lm, batch)[0])


def test_what_does_not_fit_is_refused_before_anything_is_touched(tiny_lm):
    good = book(tiny_lm)
    (new,) = good.log
    bad = [
        (BadRequest, replace(good, layer=BLOCKS)),
        (BadRequest, replace(good, log=(replace(new, key=new.key[1:]),))),
        (BadRequest, replace(good, log=(replace(new, value=torch.zeros(WIDTH + 1)),))),
        (NotFinite, replace(good, log=(replace(new, value=torch.full((WIDTH,), nan)),))),
    ]
    for kind, wrong in bad:
        with pytest.raises(kind), wrong.applied(tiny_lm):
            pass
        assert not tiny_lm.edited
    with good.applied(tiny_lm):
        with pytest.raises(BadRequest, match="one codebook at most"), book(tiny_lm, layer=0).applied(tiny_lm):
            pass
        assert carried(tiny_lm.model) is not None
        assert carried(tiny_lm.model).log == good.log


def test_an_error_inside_takes_it_off(tiny_lm):
    def fail():
        with book(tiny_lm).applied(tiny_lm):
            outputs(tiny_lm, tiny_lm.batch([tiny_lm.coder.encode(PROMPT)]))
            raise ZeroDivisionError

    before = snapshot(tiny_lm.model)
    with pytest.raises(ZeroDivisionError):
        fail()
    assert bit_equal(tiny_lm.model, before)
    assert not tiny_lm.gated  # the fixture looks for hooks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_keys_are_float32_whatever_the_model_is(dtype):
    lm = tiny_model("gpt2", dtype)
    made = book(lm)
    assert made.log[0].key.dtype == torch.float32
    with made.applied(lm):
        _, out = outputs(lm, lm.batch([lm.coder.encode(PROMPT)]))
    assert out.dtype == dtype
    assert torch.equal(out[0, -1], made.log[0].value.to(dtype))


def test_findings_tell_the_nearest_entry_of_every_prompt(tiny_lm):
    made = book(tiny_lm, (PROMPT, OTHER), radius=1e-3)
    found = made.findings(tiny_lm, [OTHER, "Peter Smith was born in"])
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    assert rows[0] | {"distance": 0.0} == {
        "prompt": OTHER,
        "nearest entry": OTHER,
        "case": 1,
        "distance": 0.0,
        "radius": 1e-3,
        "answers": "yes",
    }
    keys = queries(tiny_lm, LAYER, "down", ["Peter Smith was born in", PROMPT, OTHER])
    assert rows[1]["distance"] == pytest.approx(float((keys[0] - keys[1:]).norm(dim=1).min()), rel=1e-4)
    assert rows[1]["answers"] == "no"
    assert "remembers 2 prompts; 1 of the 2 asked" in found.said
    assert Codebook(LAYER).findings(tiny_lm, [PROMPT]).rows == ()
    assert made.findings(tiny_lm, []).rows == ()


def test_sites_are_those_of_the_layer(tiny_models):
    lm = tiny_models("llama")
    assert sites(lm, 2, "down") == ("model.layers.2.mlp.down_proj",) * 2
    assert sites(lm, 2, "mlp") == ("model.layers.2.mlp", "model.layers.2.mlp.down_proj")
