"""Demonstrations: the text before prompts, where subjects and objects are then, and that nothing else changes."""

from dataclasses import asdict, replace

import pytest
import torch

from editing_core.errors import BadRequest
from editing_core.evaluation.scoring import generate, next_tokens, score_objects
from editing_core.models import edits, reading
from editing_core.models.delta import LowRank, WeightDelta
from editing_core.models.demonstrations import Demonstration, Demonstrations, NewFact, Shown
from editing_core.models.reading import shared_beginnings
from editing_core.models.tokens import PLAIN, Coder, Frame
from tests.conftest import (
    DISTINCT,
    ROUGH,
    THREE,
    bit_equal,
    each_of,
    left_alone,
    pocket_tokenizer,
    seldom,
    snapshot,
    tiny_model,
)

tiny_lm = each_of(seldom(DISTINCT, THREE))

NEAR = Demonstration("update", "Anna", "Anna lives in Rome", "The home of Anna is", "Rome", 1, 0.9)
FAR = Demonstration("retain", "Tom", "Tom lives in Oslo", "Eve lives in", "Paris", 2, 0.5)
MARY = NewFact("Mary Walker", "{} lives in", "London")
EDIT = Demonstrations((NEAR, FAR), (MARY,), room=20)
PROMPT = "The home of Mary Walker is"


def test_the_text_is_this_one():
    assert EDIT.text == (
        "New Fact: Tom lives in Oslo\nPrompt: Eve lives in Paris\n\n"
        "New Fact: Anna lives in Rome\nPrompt: The home of Anna is Rome\n\n"
        "New Fact: Mary Walker lives in London\nPrompt: Mary Walker lives in London\n\n"
        "New Fact: Mary Walker lives in London\nPrompt: "
    )
    other = replace(EDIT, nearest_last=False, repeated=False, new=(MARY, NewFact("Eve", "The age of {} is", "9")))
    assert other.text == (
        "New Fact: Anna lives in Rome\nPrompt: The home of Anna is Rome\n\n"
        "New Fact: Tom lives in Oslo\nPrompt: Eve lives in Paris\n\n"
        "New Fact: Mary Walker lives in London\nNew Fact: The age of Eve is 9\nPrompt: "
    )


@pytest.mark.parametrize("inside", [PLAIN, Frame("user says: ", " assistant says:", " ", special=False)])
@pytest.mark.parametrize("template", ["{} was born in", "The mother of {}, they say, is", "{}:"])
@pytest.mark.parametrize("subject", ["Mary Walker", "St. John's", '"Weird Al" Yankovic', "Q"])
def test_subjects_and_objects_are_found_behind_the_text(inside, template, subject):
    coder, plain = Coder(pocket_tokenizer(), EDIT.framed(inside)), Coder(pocket_tokenizer(), inside)
    prompt = template.replace("{}", subject)
    places = coder.places(prompt)
    within = coder.subject_tokens(template, subject)
    assert subject in "".join(places[t][1] for t in within)
    assert coder.subject_last(template, subject) == within[-1]
    # Behind the text a prompt has the tokens it has behind a space.
    start = len(coder.encode("")) - len(plain.encode("")) if inside == PLAIN else None
    text = coder.continuation(prompt, "the city of Rome")
    assert text.object_ids == plain.continuation(prompt, "the city of Rome").object_ids
    assert coder.tokenizer.decode(list(text.ids)) == f"{coder.frame.around(prompt)}{inside.joint}the city of Rome"
    if start is not None:
        assert list(coder.encode(prompt))[start - 1 :] == pocket_tokenizer()(f" {prompt}")["input_ids"]


def test_the_text_stands_next_to_the_prompt_inside_a_chat_template():
    frame = EDIT.framed(Frame("<user>", "<model>", "", special=False))
    assert frame.around("Who?") == f"<user>{EDIT.text}Who?<model>"


@torch.no_grad()
def test_inside_the_prompt_is_read_behind_the_text_and_afterwards_all_is_as_before(tiny_lm):
    before, plain = snapshot(tiny_lm.model), next_tokens(tiny_lm, PROMPT)
    with EDIT.applied(tiny_lm) as view:
        assert (view.edited, tiny_lm.edited) == (True, True)
        assert (view.lock, view.model, tiny_lm.frame) == (tiny_lm.lock, tiny_lm.model, PLAIN)
        found = next_tokens(view, PROMPT)
        assert bit_equal(tiny_lm.model, before)
        ids = tiny_lm.tokenizer(EDIT.text + PROMPT, return_tensors="pt")["input_ids"]
        logits = tiny_lm.model(input_ids=ids).logits[0, -1].softmax(-1)
        assert [t.probability for t in found] == pytest.approx(logits.topk(10).values.tolist(), rel=1e-4)
        assert generate(view, PROMPT, 5) == generate(tiny_lm, EDIT.text + PROMPT, 5)
        assert generate(view, PROMPT, 5) != generate(tiny_lm, PROMPT, 5)
    assert not tiny_lm.edited
    assert next_tokens(tiny_lm, PROMPT) == plain != found


PAIRS = [(PROMPT, "London"), (PROMPT, "Paris"), ("Eve lives in", "the city of Rome"), ("Tom", "walks"), ("A", "b")]


@torch.no_grad()
@pytest.mark.parametrize("family", DISTINCT)
def test_a_text_read_once_gives_the_numbers_of_one_read_every_time(family, monkeypatch):
    lm = tiny_model(family, torch.float64)
    leads = []

    def spied(rows, worth=0):
        leads.append(shared_beginnings(rows, worth))
        return leads[-1]

    with EDIT.applied(lm) as view:
        monkeypatch.setattr(reading, "shared_beginnings", spied)
        cached = score_objects(view, PAIRS)
        monkeypatch.setattr(reading, "shared_beginnings", lambda rows: [0] * len(rows))
        whole = score_objects(view, PAIRS)
        prefix = EDIT.tokens(lm, PLAIN)
    assert all(lead >= prefix - 1 for lead in leads[0])  # the space at the text's end belongs to the prompt
    exact = 1e-6 if family in ROUGH else 1e-10
    for (prompt, answer), a, b in zip(PAIRS, cached, whole, strict=True):
        ids = lm.tokenizer(f"{EDIT.text}{prompt} {answer}", return_tensors="pt")["input_ids"]
        logp = lm.model(input_ids=ids).logits[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])
        alone = float(logp[-len(a.labels) :].mean())
        assert a.logp == pytest.approx(b.logp, abs=exact)
        assert a.logp == pytest.approx(alone, abs=exact)
        assert (a.rank, a.choices) == (b.rank, b.choices)


def test_the_least_similar_go_first_then_repetitions_and_never_a_fact(tiny_lm, monkeypatch):
    kept = []
    least = replace(EDIT, demonstrations=(), repeated=False).tokens(tiny_lm, PLAIN) + EDIT.room
    for most in range(tiny_lm.context, least - 1, -1):
        monkeypatch.setattr(type(tiny_lm), "context", most)
        fitted = EDIT.fitted(tiny_lm)
        assert fitted.tokens(tiny_lm, PLAIN) + EDIT.room <= most
        assert fitted.new == EDIT.new
        kept.append((fitted.demonstrations, fitted.repeated))
    assert list(dict.fromkeys(kept)) == [((NEAR, FAR), True), ((NEAR,), True), ((), True), ((), False)]
    monkeypatch.setattr(type(tiny_lm), "context", least - 1)
    with pytest.raises(BadRequest, match=f"and 20 stay free for a prompt, but {tiny_lm.name} reads {least - 1};"):
        EDIT.fitted(tiny_lm)


def test_what_does_not_fit_is_refused_before_anything_is_touched(tiny_lm):
    long = replace(EDIT, room=tiny_lm.context)
    with (
        pytest.raises(BadRequest, match="show it fewer facts, or choose a model that reads more"),
        long.applied(tiny_lm),
    ):
        pass
    assert not tiny_lm.edited


def test_an_error_inside_leaves_nothing(tiny_lm):
    with pytest.raises(ZeroDivisionError), EDIT.applied(tiny_lm):
        raise ZeroDivisionError
    assert not tiny_lm.edited


def test_a_later_fact_takes_the_place_of_the_same_question():
    eve, again = NewFact("Eve", "{} lives in", "Rome"), NewFact("MARY WALKER", "{} Lives in", "Berlin")
    both = EDIT + Demonstrations((), (eve,)) + Demonstrations((FAR,), (again,))
    assert isinstance(both, Demonstrations)
    assert both.new == (eve, again)
    assert both.room == EDIT.room
    assert (Demonstrations((), (again,)) + EDIT).facts()["new"] == [asdict(MARY)]


def test_joined_demonstrations_are_the_most_similar_and_about_nobody_edited():
    better = replace(FAR, rank=1)
    assert (EDIT + Demonstrations((better,), (NewFact("Eve", "{} is", "old"),))).demonstrations == (NEAR, better)
    assert (EDIT + Demonstrations((), (NewFact("Anna", "{} is", "old"),))).demonstrations == (FAR,)
    assert (EDIT + EDIT).facts() == EDIT.facts()
    third = replace(NEAR, prompt="At home, Anna is in", rank=2)
    assert (EDIT + Demonstrations((third,), (MARY,))).demonstrations == (NEAR, third)  # two, as the longer list had


def test_on_a_view_both_are_shown_as_one_text(tiny_lm):
    other = Demonstrations((), (NewFact("Eve", "The age of {} is", "9"),), room=5, repeated=False)
    with EDIT.applied(tiny_lm) as outer, other.applied(outer) as inner:
        assert isinstance(inner.frame, Shown)
        assert inner.frame.inside == PLAIN
        assert inner.frame.head == (EDIT + other).text
        assert inner.frame.head.count("Prompt: ") == 3
        assert outer.frame.head == EDIT.text
    assert not tiny_lm.edited


def test_with_weights_both_are_on():
    lm = tiny_model("gpt2")
    name, weight = "transformer.h.1.mlp.c_proj.weight", lm.model.transformer.h[1].mlp.c_proj.weight
    factors = torch.ones(weight.shape[1], 1), torch.ones(1, weight.shape[0])  # kept transposed
    both = EDIT + WeightDelta({name: LowRank(*factors)})
    with left_alone(lm), both.applied(lm) as view:
        assert isinstance(view.frame, Shown)
        assert not torch.equal(weight, tiny_model("gpt2").model.transformer.h[1].mlp.c_proj.weight)


def test_without_a_new_fact_nothing_is_shown(tiny_lm):
    empty = Demonstrations((NEAR,))
    assert empty.empty
    assert (empty + EDIT) is EDIT
    with empty.applied(tiny_lm) as view:
        assert view is tiny_lm
        assert not view.edited


@pytest.mark.parametrize("edit", [EDIT, replace(EDIT, demonstrations=(replace(NEAR, similarity=None),), room=0)])
def test_saved_and_loaded_it_is_the_same(edit, tmp_path):
    edit.described({"editor": "ike"}).save(tmp_path / "edit.safetensors")
    found = edits.load(tmp_path / "edit.safetensors")
    assert isinstance(found, Demonstrations)
    assert (found.facts(), found.text, dict(found.provenance)) == (edit.facts(), edit.text, {"editor": "ike"})
    assert (found.size, found.finite, found.can_merge, found.can_export_as_adapter) == (0, True, False, False)


def spoiled(*path_and_value):
    *path, last, value = path_and_value
    facts = EDIT.facts()
    place = facts
    for key in path:
        place = place[key]
    place[last] = value
    return facts


@pytest.mark.parametrize(
    "facts",
    [
        {},
        spoiled("more", 1),
        spoiled("room", -1),
        spoiled("room", True),
        spoiled("room", 10**30),
        spoiled("repeated", 1),
        spoiled("new", {"subject": "a"}),
        spoiled("new", [None]),
        spoiled("new", [asdict(MARY)] * 1001),
        spoiled("new", 0, "prompt", "lives in"),
        spoiled("new", 0, "object", " "),
        spoiled("new", 0, "object", 7),
        spoiled("new", 0, "object", "x" * 4001),
        spoiled("demonstrations", None),
        spoiled("demonstrations", 0, "kind", "other"),
        spoiled("demonstrations", 0, "rank", 0),
        spoiled("demonstrations", 0, "rank", 1.0),
        spoiled("demonstrations", 0, "similarity", float("nan")),
        spoiled("demonstrations", 0, "similarity", 10**400),
        spoiled("demonstrations", 0, "similarity", "1"),
        spoiled("demonstrations", 0, ["kind"]),
    ],
)
def test_anything_else_is_refused(facts):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Demonstrations.of({}, facts)


def test_tensors_are_refused_and_what_was_given_is_not():
    with pytest.raises(ValueError, match="no tensors"):
        Demonstrations.of({"a": torch.ones(1)}, EDIT.facts())
    assert Demonstrations.of({}, EDIT.facts()).facts() == EDIT.facts()


def test_findings_tell_what_stands_before_prompts(tiny_lm):
    found = EDIT.findings(tiny_lm, [PROMPT, "Who?"])
    fits = EDIT.fitted(tiny_lm)
    assert f"{EDIT.tokens(tiny_lm, PLAIN)} tokens of the 128" in found.said
    assert "2 of 2 demonstrations" in found.said
    lengths = [len(Coder(tiny_lm.tokenizer, fits.framed(PLAIN)).encode(prompt)) for prompt in (PROMPT, "Who?")]
    assert f"take {min(lengths)} to {max(lengths)} tokens" in found.said
    kinds = ["retain", "update", "the new fact as a copy", "new fact"]
    assert [(row[0], row[1]) for row in found.rows] == [(n, kind) for n, kind in enumerate(kinds, 1)]
    assert found.rows[0][2:] == (2, 0.5, FAR.fact, "Eve lives in Paris")
    assert all(len(row) == len(found.columns) for row in found.rows)
    assert not tiny_lm.edited
    less = replace(EDIT, room=tiny_lm.context - fits.tokens(tiny_lm, PLAIN) + 1).findings(tiny_lm, [])
    assert "1 of 2 demonstrations, the least similar left out" in less.said
    assert [row[1] for row in less.rows] == kinds[1:]
