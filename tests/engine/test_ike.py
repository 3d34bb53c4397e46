"""IKE: which known facts are shown, how, in which order, and what a model that can read does with them."""

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch

from editing_core.data.datasets import load_dataset
from editing_core.data.encoder import encoder_of, nearest
from editing_core.data.facts import bundled_facts, bundled_relations
from editing_core.data.pool import unedited
from editing_core.data.subjects import known_facts
from editing_core.editors.ike import IkeSettings, build_ike, longest
from editing_core.editors.ike_data import Pool, kinds
from editing_core.editors.materials import Alike, Materials
from editing_core.editors.steps.rows import Objective, log_perplexity
from editing_core.errors import BadRequest, BadSetting, Cancelled
from editing_core.evaluation.scoring import score_objects
from editing_core.models.demonstrations import Demonstrations
from editing_core.models.language_model import LanguageModel
from editing_core.types import EditRequest, Probe, ignore
from tests.conftest import THREE, cancel_after, each_of, left_alone, tiny_model
from tests.engine.conftest import HOME, by_words

tiny_lm = each_of(THREE)

MARY = EditRequest("Mary Walker", "{} lives in", "London", "Paris", neighbors=(Probe("Tom lives in", "Paris", "Tom"),))
JOHN = EditRequest("John Stone", "{} plays the", "guitar", "piano", case_id=1)
HOME_FORMS = ("{} lives in", "The home of {} is")
FACTS = [Probe(HOME_FORMS[n % 2].replace("{}", name), city, name, family="home") for n, (name, city) in enumerate(HOME)]


def built(lm, requests, seed=0, pool=FACTS, alike=by_words, **settings):
    values = {"demonstrations": 4, "room": 20, **settings}
    return build_ike(
        IkeSettings(**values), Materials(lm, None, None, seed, requests=requests, facts=lambda: pool, alike=alike)
    )


def edited(lm, requests, **more) -> Demonstrations:
    found = built(lm, requests, **more).edit(lm, requests).delta
    assert isinstance(found, Demonstrations)
    return found


def test_the_text_before_prompts_is_this_one(tiny_lm):
    assert edited(tiny_lm, [MARY], demonstrations=3).text == GOLDEN


GOLDEN = """\
New Fact: Emil lives in Oslo
Prompt: Emil lives in Oslo

New Fact: Carl lives in Rome
Prompt: The home of Dora is Oslo

New Fact: Anna lives in Oslo
Prompt: The home of Anna is Oslo

New Fact: Mary Walker lives in London
Prompt: Mary Walker lives in London

New Fact: Mary Walker lives in London
Prompt: """


@pytest.mark.parametrize("count", [8, 16, 32])
def test_one_copy_to_three_updates_to_four_retentions_in_shuffled_order(count):
    assert Counter(kinds(count, "a")) == {"copy": count // 8, "update": 3 * count // 8, "retain": count // 2}
    assert kinds(count, "a") == kinds(count, "a") != kinds(count, "b")


def test_of_few_there_is_one_of_each_kind():
    assert Counter(kinds(3, "a")) == {"copy": 1, "update": 1, "retain": 1}


@cache
def bundled(count=3):
    return tuple(load_dataset("pocket-facts:test").requests[:count])


def pool_of(requests):
    """Known facts of the requests' relations, without what is measured."""
    relations = {request.relation_id for request in requests}
    return unedited([fact for fact in known_facts(0) if fact.family in relations], requests)


@pytest.fixture(scope="module")
def wide():
    """A model that reads so much that every demonstration fits."""
    return Reader.new()


def test_of_the_bundled_facts_the_ratio_is_kept_and_every_kind_shows_what_it_should(wide):
    found = edited(wide, bundled(1), pool=pool_of(bundled(1)), demonstrations=32).demonstrations
    assert Counter(d.kind for d in found) == {"copy": 4, "update": 12, "retain": 16}
    assert [d.rank for d in found] == list(range(1, 33))
    assert [d.similarity for d in found] == sorted((d.similarity for d in found), reverse=True)
    true = {(s, r): o for r, s, o in bundled_facts()}
    for d in found:
        told = [(r, o) for (s, r), o in true.items() if s == d.subject and (o, r) in objects()]
        new = d.fact.rpartition(" ")[2]
        assert told
        assert all(new != o for _, o in told)
        own = d.fact.removesuffix(f" {new}")
        assert {"copy": d.prompt == own, "update": d.subject in d.prompt != own, "retain": d.subject not in d.prompt}[
            d.kind
        ]
        assert d.answer == new if d.kind != "retain" else d.answer in {o for _, o in told}


def objects():
    return {(o, r) for r, _, o in bundled_facts()}


def test_the_most_similar_stands_last_in_the_paper_and_first_in_the_framework(wide):
    for form, step in (("paper", -1), ("framework", 1)):
        found = edited(wide, [MARY], form=form)
        places = [found.text.index(d.text) for d in found.demonstrations]
        assert places == sorted(places)[::step]
        assert [d.rank for d in found.demonstrations] == [1, 2, 3, 4]
        assert found.text.count("New Fact: Mary Walker") == (2 if form == "paper" else 1)


def test_the_framework_searches_all_three_of_each_fact(wide):
    found = edited(wide, [MARY], form="framework", demonstrations=128).demonstrations
    assert Counter(d.kind for d in found) == {"copy": 6, "update": 6, "retain": 6}
    query = "New Fact: Mary Walker lives in London\nPrompt: Mary Walker lives in\n\n"
    expected = by_words([query], [d.text for d in found], 1, False).cosines[0][0]
    assert found[0].similarity == max(d.similarity for d in found) == expected


def test_no_demonstration_is_about_what_is_edited_or_measured(wide):
    same = [
        Probe("MARY Walker was born in", "Rome", "MARY Walker", family="home"),
        Probe("Tom plays the", "drums", "Tom", family="plays"),
        Probe("Eve plays the", "drums", "Eve", family="plays"),
        Probe("Guy plays the", "horn", "Guy", family="plays"),
    ]
    pool = Pool.of([*FACTS, *same], [MARY], 0)
    assert {known.fact.subject for known in pool.known} == {name for name, _ in HOME} | {"Eve", "Guy"}
    text = edited(wide, [MARY], pool=[*FACTS, *same], demonstrations=32).text.partition("New Fact: Mary Walker")[0]
    assert "Tom" not in text
    assert "MARY" not in text
    assert {known.fact.subject for known in Pool.of([*FACTS, *same], [JOHN], 0).known} >= {"Tom", "MARY Walker"}


def test_nothing_bundled_that_is_measured_is_shown(wide):
    requests = bundled()
    found = edited(wide, requests, pool=pool_of(requests), demonstrations=64)
    shown = replace(found, new=found.new[:1], repeated=False).text
    shown = shown[: shown.rindex("New Fact:")]
    for request in requests:
        for subject in (request.subject, *(probe.subject for probe in request.neighbors)):
            assert subject not in shown


def test_facts_that_cannot_show_a_kind_leave_it_to_others(wide):
    alone = [Probe("Gus lives in", "Rome", "Gus", family="one"), Probe("Hal lives in", "Oslo", "Hal", family="one")]
    found = edited(wide, [MARY], pool=alone, demonstrations=8).demonstrations
    assert Counter(d.kind for d in found) == {"copy": 1}  # no other wording, nobody with the same answer
    assert not edited(wide, [MARY], pool=[replace(alone[0], family="")]).demonstrations


def test_what_does_not_fit_is_left_out_and_said(tiny_lm):
    outcome = built(tiny_lm, [MARY], demonstrations=6).edit(tiny_lm, [MARY])
    fitted = outcome.delta.fitted(tiny_lm)
    assert 0 < len(fitted.demonstrations) < len(outcome.delta.demonstrations) == 6
    assert fitted.demonstrations == outcome.delta.demonstrations[: len(fitted.demonstrations)]
    assert f"{len(fitted.demonstrations)} of 6 demonstrations among them" in outcome.notes[-1]
    assert outcome.notes[0] == "Alike are facts that share words."


def test_room_is_what_the_longest_measured_prompt_takes(tiny_lm):
    far = replace(MARY, neighbors=(Probe("word " * 50 + "is", "Paris"),))
    whole = len(tiny_lm.coder.continuation("word " * 50 + "is", "Paris").ids)
    assert longest(tiny_lm, [far]) == whole
    assert edited(tiny_lm, [far], room=8).room == whole
    assert edited(tiny_lm, [MARY], room=40).room == 40


def test_several_facts_stand_in_lines_up_to_a_limit(wide):
    found = edited(wide, [MARY, JOHN])
    assert found.text.endswith("New Fact: Mary Walker lives in London\nNew Fact: John Stone plays the guitar\nPrompt: ")
    with pytest.raises(BadRequest, match="2 new facts would stand before every prompt, at most 1 may"):
        edited(wide, [MARY, JOHN], facts=1)


def test_facts_shown_already_count(wide):
    first = edited(wide, [MARY])
    with first.applied(wide) as view:
        assert built(view, [MARY]).edit(view, [MARY]).delta.text == first.text  # itself again is no further fact
        with pytest.raises(BadRequest, match="2 new facts"):
            build_limited(view).edit(view, [JOHN])


class Reader(LanguageModel):
    """Answers from the last new fact whose subject and relation are asked for, else what the bundled facts say.

    It reads token ids and nothing else, as any model does; its objects are of one token.
    """

    gated, context = True, 4096

    @staticmethod
    def new() -> "Reader":
        return Reader(tiny_model("gpt2").model, tiny_model("gpt2").tokenizer, "reader")

    def hidden(self, batch, _cache=None):
        state = torch.zeros(*batch.ids.shape, 1)
        for row, (end, length) in enumerate(zip(batch.ends.tolist(), batch.lengths.tolist(), strict=True)):
            for at in range(end - 1, length):
                state[row, at] = self.next(self.tokenizer.decode(batch.ids[row, : at + 1]))
        return state

    def logits(self, hidden):
        return torch.nn.functional.one_hot(hidden[:, 0].long(), len(self.tokenizer)).float() * 9

    def next(self, text):
        facts, _, asked = text.rpartition("Prompt: ")
        for relation, subject, answer in bundled_facts():
            for form in wordings(relation) if subject in asked else ():
                if asked.endswith(form.replace("{}", subject)):
                    told = self.told(facts.rpartition("\n\n")[2], relation, subject)
                    return self.tokenizer(f" {told or answer}")["input_ids"][0]
        return 0

    def told(self, facts, relation, subject):
        found = None
        for line in facts.splitlines():
            for form in wordings(relation):
                head = f"New Fact: {form.replace('{}', subject)} "
                found = line.removeprefix(head) if line.startswith(head) else found
        return found


def wordings(relation):
    return bundled_relations()[relation]["forms"]


def shares(lm, request):
    """Whether the edit, its paraphrases and its neighbors are answered as they should be."""
    scored = {
        "E": [(request.full_prompt, request.target_new)],
        "P": [(prompt, request.target_new) for prompt in request.paraphrases],
        "N": [(probe.prompt, probe.answer) for probe in request.neighbors],
    }
    return {kind: [score.hit for score in score_objects(lm, pairs)] for kind, pairs in scored.items()}


@pytest.mark.parametrize("form", ["paper", "framework"])
def test_a_model_that_can_read_takes_the_edit_its_paraphrases_and_nothing_else(wide, form):
    for request in bundled(2):
        edit = edited(wide, [request], pool=pool_of([request]), form=form)
        before = shares(wide, request)
        assert (set(before["E"]), set(before["P"]), set(before["N"])) == ({0.0}, {0.0}, {1.0})
        with edit.applied(wide) as view:
            assert all(set(found) == {1.0} for found in shares(view, request).values())
            assert set(shares(wide, request)["E"]) == {0.0}  # the control: the model itself, while the edit is on
        assert shares(wide, request) == before


def test_it_takes_several_facts_and_later_ones_alike(wide):
    one, two, three = bundled(3)
    pool = pool_of([one, two, three])
    both = edited(wide, [one, two], pool=pool) + edited(wide, [three], pool=pool)
    other = next(
        o for r, _, o in bundled_facts() if r == one.relation_id and o not in (one.target_new, one.target_true)
    )
    again = both + edited(wide, [replace(one, target_new=other)], pool=pool)
    with both.applied(wide) as view:
        assert all(set(shares(view, request)["E"]) == {1.0} for request in (one, two, three))
    with again.applied(wide) as view:
        assert shares(view, replace(one, target_new=other))["E"] == [1.0]
        assert shares(view, two)["E"] == [1.0]


def test_the_log_tells_both_perplexities_and_the_model_is_left_alone(tiny_lm):
    editor = built(tiny_lm, [MARY, JOHN])
    outcome = editor.edit(tiny_lm, [MARY, JOHN])
    before, _ = log_perplexity(tiny_lm, [MARY, JOHN], Objective())
    with outcome.delta.applied(tiny_lm) as view:
        after, _ = log_perplexity(view, [MARY, JOHN], Objective())
    assert torch.equal(outcome.targets.log_p_initial, before)
    assert torch.equal(outcome.targets.log_p_final, after)
    assert not torch.equal(before, after)
    assert all(len(values) == 2 for values in outcome.targets.tensors().values())
    assert not tiny_lm.edited


def test_same_seed_same_text_other_seed_another(wide):
    texts = [edited(wide, bundled(1), seed=seed, pool=pool_of(bundled(1))).text for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_once_more_adds_nothing(tiny_lm):
    editor = built(tiny_lm, [MARY])
    first = editor.edit(tiny_lm, [MARY])
    with first.delta.applied(tiny_lm):
        second = editor.edit(tiny_lm, [MARY])
    assert first.delta.joined(second.delta).facts() == first.delta.facts()
    assert float(second.targets.log_p_final) == pytest.approx(float(first.targets.log_p_final), abs=1e-6)


def test_stopped_it_leaves_nothing(tiny_lm):
    editor, steps = built(tiny_lm, [MARY]), []
    editor.edit(tiny_lm, [MARY], steps.append)
    assert [step.done for step in steps] == [0, 1]
    for count in range(len(steps)):
        with pytest.raises(Cancelled):
            editor.edit(tiny_lm, [MARY], cancel_after(count))
        assert not tiny_lm.edited


def test_without_facts_the_new_ones_stand_alone(tiny_lm):
    with pytest.raises(BadSetting, match="none by likeness"):
        built(tiny_lm, [MARY], alike=None)
    assert built(tiny_lm, [MARY], alike=None, demonstrations=0).edit(tiny_lm, [MARY], ignore).delta.new
    outcome = built(tiny_lm, [MARY], pool=[]).edit(tiny_lm, [MARY])
    assert outcome.notes[0] == "No known fact is left to demonstrate with; the new facts stand alone."


def test_on_the_bundled_model_with_its_own_states(pocket):
    (request,) = bundled(1)

    def own(asked, known, count, _own):
        encoder = encoder_of(pocket, own=True)
        return Alike(*nearest(encoder.encode(asked), encoder.encode_once(known), count), encoder.note)

    with left_alone(pocket):
        outcome = built(pocket, [request], pool=pool_of([request]), alike=own, demonstrations=8).edit(pocket, [request])
        fitted = outcome.delta.fitted(pocket)
        assert 0 < len(fitted.demonstrations) < 8
        with outcome.delta.applied(pocket) as view:
            asked = (request.full_prompt, *request.paraphrases)
            pairs = [(prompt, answer) for prompt in asked for answer in (request.target_new, request.target_true)]
            score_objects(view, pairs)
            pocket.check_length(max(len(text.ids) for text in view.coder.continuations(pairs)))
    assert not pocket.edited


def build_limited(lm):
    return built(lm, [JOHN], facts=1, demonstrations=0)
