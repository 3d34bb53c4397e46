"""SWEA: a subject's facts are written together, the rest of it is kept, and everything else is never met."""

from collections import Counter

import pytest
import torch

from editing_core.data.datasets import load_dataset, sample
from editing_core.data.facts import bundled_facts, bundled_relations
from editing_core.editors.materials import Materials
from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.offset_rows import forms_of
from editing_core.editors.steps.rows import Objective, log_perplexity
from editing_core.editors.swea import Swea, SweaSettings, build_swea, by_subject, carrying, known
from editing_core.errors import Cancelled
from editing_core.evaluation.scoring import score_objects
from editing_core.models import edits
from editing_core.models.gates import gated
from editing_core.models.subjects import offsets_on, plain_embeddings
from editing_core.types import EditRequest, Probe
from tests.conftest import DISTINCT, THREE, bit_equal, cancel_after, each_of, seldom, snapshot, tiny_model

tiny_lm = each_of(seldom(DISTINCT, THREE))
CONTEXTS = Contexts.grouped(("The weather was fine. {}",))
FREE = {"steps": 12, "rate": 0.5, "relative_rate": True, "clamp": 4.0, "kl_factor": 0.0, "decay": 0.0, "points": 5}


def swea(kept=None, contexts=CONTEXTS, **values):
    return Swea(SweaSettings(**{**FREE, **values}), Objective(contexts), kept or {})


def pocket_swea(kept=None, **values):
    return Swea(SweaSettings(**values), Objective(CONTEXTS), kept or {})


def tensors_equal(a, b):
    left, right = a.tensors(), b.tensors()
    return a.facts() == b.facts() and all(torch.equal(left[key], right[key]) for key in left)


def answers(lm, pairs):
    return [score.hit for score in score_objects(lm, pairs)]


def test_writes_and_leaves_no_trace(tiny_lm, requests_, tmp_path):
    before, steps = snapshot(tiny_lm.model), []
    editor = swea()
    outcome = editor.edit(tiny_lm, requests_, steps.append)
    assert bit_equal(tiny_lm.model, before)
    assert not any(m._forward_hooks for m in tiny_lm.model.modules())
    assert {step.stage for step in steps} == {"optimise", "suppress"}
    assert "preserve" not in steps[0].terms
    log = outcome.targets
    assert (log.log_p_final < log.log_p_initial - 1).all()
    plain, _ = log_perplexity(tiny_lm, requests_, editor.objective)
    torch.testing.assert_close(log.log_p_initial, plain)
    with outcome.delta.applied(tiny_lm) as lm:
        torch.testing.assert_close(log.log_p_final, log_perplexity(lm, requests_, editor.objective)[0])
    outcome.delta.save(tmp_path / "edit.safetensors")
    assert tensors_equal(edits.load(tmp_path / "edit.safetensors"), outcome.delta)
    assert set(outcome.delta.wishes) == {r.subject for r in requests_}


def test_repeats_itself_and_can_be_stopped(tiny_lm, requests_):
    before, editor = snapshot(tiny_lm.model), swea(steps=3)
    assert tensors_equal(editor.edit(tiny_lm, requests_).delta, editor.edit(tiny_lm, requests_).delta)
    for count in (0, 2, 4):  # while offsets are optimised, and while dimensions are suppressed
        with pytest.raises(Cancelled):
            editor.edit(tiny_lm, requests_, cancel_after(count))
    assert bit_equal(tiny_lm.model, before)
    assert not gated(tiny_lm.model)
    assert offsets_on(tiny_lm.model) == ()
    assert not any(m._forward_hooks for m in tiny_lm.model.modules())


def test_together_is_as_if_alone(tiny_lm, requests_):
    """Subjects do not meet, however their rows are run. In double precision, for Adam raises rounding."""
    lm, editor = tiny_model(tiny_lm.name.removeprefix("tiny-"), torch.float64), swea(steps=4, suppress=0.0)
    both = editor.edit(lm, requests_).delta
    lm.divisor = 2**20
    for request in requests_:
        for ids, own in editor.edit(lm, [request]).delta.table.items():
            # Some families norm and rotate in float32 whatever the precision.
            assert (both.table[ids].learned - own.learned).norm() < 1e-2 * own.learned.norm()


def test_every_way_to_write_the_subject_is_in_the_table(tiny_lm, requests_):
    found = swea(steps=1).edit(tiny_lm, requests_[:1]).delta
    plain = [tuple(tiny_lm.tokenizer(text)["input_ids"]) for text in ("Mary Walker", " Mary Walker")]
    own = {ids[-len(key) :] for ids in plain for key in found.table if ids[-len(key) :] == key}
    assert own == set(found.table)
    assert len(found.table) == 2
    for text in ("Mary Walker is here", "So Mary Walker is here", 'The "Mary Walker'):
        assert all(row[1] == "Mary Walker" for row in found.findings(tiny_lm, [text]).rows)
    # A prompt in which it never stands first: the other way is learned with the tokens exchanged, and works too.
    request = EditRequest("John Stone", "The mother tongue of {} is", "French", "English")
    editor = swea(contexts=Contexts())
    forms = forms_of(tiny_lm, [request], editor.objective)
    assert len(forms) == 2
    outcome = editor.edit(tiny_lm, [request])
    assert {len(own.learned.unique()) > 1 for own in outcome.delta.table.values()} == {True}


def test_the_clamp_and_its_log(tiny_models, requests_):
    lm = tiny_models("gpt2")
    outcome = swea(clamp=0.3, suppress=0.0, rate=2.0).edit(lm, requests_)
    assert outcome.targets.clamped.all()
    for number, request in enumerate(requests_):
        longest = next(ids for ids, own in outcome.delta.table.items() if own.subject == request.subject)
        limit = 0.3 * plain_embeddings(lm, longest).norm()
        torch.testing.assert_close(outcome.delta.table[longest].learned.norm(), limit, rtol=1e-3, atol=0)
        torch.testing.assert_close(outcome.targets.norm[number], limit, rtol=1e-3, atol=0)
    assert not swea(clamp=50.0, steps=1).edit(lm, requests_).targets.clamped.any()


def test_the_offsets_may_begin_at_the_embeddings(tiny_models, requests_):
    """As published: one tiny step from there is almost there."""
    lm = tiny_models("gpt2")
    found = swea(start="embeddings", steps=1, rate=1e-5, suppress=0.0).edit(lm, requests_[:1]).delta
    ids, own = next(iter(found.table.items()))
    torch.testing.assert_close(own.learned, plain_embeddings(lm, ids), atol=1e-3, rtol=0)


def test_what_carries_the_old_object_is_suppressed(tiny_models, requests_):
    lm = tiny_models("gpt2")
    found = swea(suppress=0.5).edit(lm, requests_).delta
    for ids, own in found.table.items():
        gone = own.taken != 0
        assert gone.any()
        assert not gone.all()
        assert torch.equal(own.taken[gone], 0.5 * plain_embeddings(lm, ids)[gone])
    for change in ({"suppress": 0.0}, {"threshold": 1.5}):
        assert not any(own.taken.any() for own in swea(**change).edit(lm, requests_).delta.table.values())


def test_which_dimensions_carry():
    scores = torch.tensor([[1.0, 0.3, -2.0], [0.36, 0.0, 0.35]])
    assert carrying(scores, 0.35).tolist() == [[True, False, False], [True, False, False]]
    assert carrying(scores, 0.0).tolist() == [[True, True, False], [True, False, True]]
    assert not carrying(scores, 1.1).any()
    assert not carrying(-scores.abs(), 0.0).any()


def test_facts_of_one_subject_are_written_together(tiny_lm):
    facts = [
        EditRequest("Mary Walker", "{} was born in", "London", "Paris", case_id=1),
        EditRequest("Mary Walker", "{} plays the", "guitar", "piano", case_id=2),
    ]
    editor = swea(contexts=Contexts(), suppress=0.0, steps=40)
    log = editor.edit(tiny_lm, facts).targets
    assert (log.log_p_final < log.log_p_initial - 0.5).all()
    # The control: made for the second alone, the offsets do less for the first.
    with editor.edit(tiny_lm, facts[1:]).delta.applied(tiny_lm) as lm:
        other, _ = log_perplexity(lm, facts, editor.objective)
    assert other[0] > log.log_p_final[0] + 1


def test_a_later_edit_keeps_a_subjects_earlier_facts(tiny_lm):
    one = EditRequest("Mary Walker", "{} was born in", "London", "Paris", case_id=1)
    two = EditRequest("Mary Walker", "{} plays the", "guitar", "piano", case_id=2)
    editor = swea(contexts=Contexts(), steps=40)
    first = editor.edit(tiny_lm, [one]).delta
    with first.applied(tiny_lm) as lm:
        assert [r.prompt for r in by_subject(lm, [two])["Mary Walker"]] == [two.prompt, one.prompt]
        assert [r.target_new for r in by_subject(lm, [one])["Mary Walker"]] == ["London"]  # asked anew, once
        second = editor.edit(lm, [two]).delta
    assert [w.prompt for w in second.wishes["Mary Walker"]] == [two.prompt]
    both = first + second
    plain, _ = log_perplexity(tiny_lm, [one, two], editor.objective)
    with both.applied(tiny_lm) as lm:
        joint, _ = log_perplexity(lm, [one, two], editor.objective)
    assert (joint < plain - 1).all()
    unaware = first + editor.edit(tiny_lm, [two]).delta
    with unaware.applied(tiny_lm) as lm:
        apart, _ = log_perplexity(lm, [one, two], editor.objective)
    assert joint[0] < apart[0]


def test_a_second_iteration_suppresses_nothing_twice(tiny_models, requests_):
    lm = tiny_models("gpt2")
    editor = swea(steps=3)
    first = editor.edit(lm, requests_).delta
    with first.applied(lm) as edited:
        second = editor.edit(edited, requests_).delta
    assert any(own.taken.any() for own in first.table.values())
    assert not any(own.taken.any() for own in second.table.values())


def test_a_subject_inside_a_longer_one_is_left_out(tiny_models):
    lm = tiny_models("gpt2")
    asked = [
        EditRequest("Mary Walker", "{} was born in", "London", "Paris", case_id=1),
        EditRequest("Walker", "Mary {} plays the", "guitar", "piano", case_id=2),
    ]
    outcome = swea(steps=2).edit(lm, asked)
    assert set(outcome.delta.wishes) == {"Mary Walker"}
    assert "left out" in outcome.notes[0]
    assert outcome.targets.steps.tolist()[1] == 0


def test_misses_among_the_paraphrases_are_told(tiny_models):
    request = EditRequest("Mary Walker", "{} was born in", "London", "Paris", ("MARY WALKER is from", "So Mary Walker"))
    notes = swea(steps=1).edit(tiny_models("gpt2"), [request]).notes
    assert notes[0].startswith("1 of 2 paraphrases")


@pytest.fixture(scope="module")
def double():
    """A subject with two bundled facts: an edit of the first, and wordings of the second with its object."""
    facts: dict[str, list[tuple[str, str]]] = {}
    for relation, subject, answer in bundled_facts():
        facts.setdefault(subject, []).append((relation, answer))
    relations, found = bundled_relations(), []
    objects = Counter((relation, answer) for relation, _, answer in bundled_facts())
    for subject, own in facts.items():
        if len({relation for relation, _ in own}) < 2:
            continue
        (relation, old), (other, stays) = own[:2]
        new = next(a for (r, a), _ in objects.most_common() if r == relation and a != old)
        request = EditRequest(subject, relations[relation]["forms"][0], new, old, relation_id=relation)
        asked = [(form.replace("{}", subject), stays) for form in relations[other]["forms"][:6]]
        found.append((request, asked, Probe(*asked[0], subject=subject, family=other)))
    return found


def test_other_facts_of_the_subject_are_kept_where_some_are_known(pocket, double):
    kept, lost, of = [], [], []
    for request, asked, fact in double[:2]:
        made = build_swea(SweaSettings(), Materials(pocket, None, None, requests=[request], facts=lambda f=fact: [f]))
        assert made.kept == {request.subject: (fact.prompt,)}
        of += answers(pocket, asked[1:])  # other wordings than the one that is kept
        edit = pocket_swea(made.kept, points=5).edit(pocket, [request])
        assert "kept as they were" in edit.notes[-1]
        assert "preserve" in edit.targets.history[0]
        for into, delta in ((kept, edit.delta), (lost, pocket_swea(points=5).edit(pocket, [request]).delta)):
            with delta.applied(pocket) as lm:
                assert answers(lm, [(request.full_prompt, request.target_new)]) == [1.0]
                into += answers(lm, asked[1:])
    assert sum(kept) >= 0.8 * sum(of)
    assert sum(lost) < 0.5 * sum(of)


def test_only_known_facts_of_the_subjects_are_kept(pocket, double):
    (request, _, fact), (_, _, other) = double[:2]
    wrong = Probe(fact.prompt, "the weather", subject=request.subject)
    assert known(pocket, [wrong, fact]) == [fact]
    made = build_swea(SweaSettings(), Materials(pocket, None, None, requests=[request], facts=lambda: [wrong, other]))
    assert made.kept == {}
    off = build_swea(
        SweaSettings(preserve=0.0), Materials(pocket, None, None, requests=[request], facts=lambda: [fact])
    )
    assert off.kept == {}


def test_the_bundled_model_changes_its_answers(pocket):
    """Two facts at once; neighbors, being about others, keep every choice. The control: the same edit of others."""
    facts = sample(load_dataset("pocket-facts"), 4, trial=1)
    asked, others = facts[:2], facts[2:]
    pairs = [(r.full_prompt, r.target_new) for r in asked]
    neighbors = [(n.prompt, n.answer) for r in asked for n in r.neighbors]
    before = [s.choices for s in score_objects(pocket, neighbors)]
    assert answers(pocket, pairs) == [0.0] * 2
    outcome = pocket_swea().edit(pocket, asked)
    with outcome.delta.applied(pocket) as lm:
        assert answers(lm, pairs) == [1.0] * 2
        assert [s.choices for s in score_objects(lm, neighbors)] == before
        assert sum(answers(lm, [(p, r.target_new) for r in asked for p in r.paraphrases])) >= 3
    with pocket_swea(steps=3).edit(pocket, others).delta.applied(pocket) as lm:
        assert answers(lm, pairs) == [0.0] * 2


@pytest.mark.slow
def test_ten_facts_at_once(pocket):
    facts = sample(load_dataset("pocket-facts"), 10, trial=2)
    with pocket_swea().edit(pocket, facts).delta.applied(pocket) as lm:
        assert sum(answers(lm, [(r.full_prompt, r.target_new) for r in facts])) == 10
