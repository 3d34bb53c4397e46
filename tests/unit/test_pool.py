"""The pool: which facts may be trained on beside edits."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editing_core.data.datasets import load_dataset, sample
from editing_core.data.pool import true_facts, unedited
from editing_core.data.subjects import known_facts
from editing_core.types import EditRequest, Probe

EDIT = EditRequest(
    "Ann Lee",
    "{} was born in",
    "Rome",
    "Paris",
    ("The birthplace of Ann Lee is",),
    (Probe("Bob was born in", "Paris", "Bob", aliases=("Paname",)),),
    relation_id="P19",
    edit_neighbors=(Probe("Carl was born in", "Paris", "Carl"),),
    portability=(Probe("The country where Dora lives is", "Chad"),),
    locality=(Probe("Emil plays the", "flute"), Probe("Joann Lee met Ann in", "Oslo")),
)


def fact(prompt, answer, subject=None, family=""):
    return Probe(prompt, answer, subject, family=family)


@pytest.mark.parametrize(
    ("probe", "stays"),
    [
        # (a) an edit's subject and relation
        (fact("Ann Lee comes from", "Oslo", "Ann Lee", "P19"), False),
        (fact("ann  lee comes from", "Oslo", "ann  lee", "P19"), False),
        (fact("Ann Lee works as a", "painter", "Ann Lee", "P106"), True),
        (fact("Ann Lee comes from", "Oslo", "Ann Lee"), False),
        # (b) subject and object together in a text that is measured
        (fact("Where Bob lives is", "Paris", "Bob", "P551"), False),
        (fact("Where Bob lives is", "paname", "Bob", "P551"), False),
        (fact("Where Bob lives is", "Rome", "Bob", "P551"), True),
        (fact("Ann Lee died in", "Rome", "Ann Lee", "P20"), False),
        (fact("Ann Lee died in", "Paris", "Ann Lee", "P20"), False),
        (fact("Dora is at home in", "Chad", "Dora", "P17"), False),
        (fact("Emil's instrument is the", "flute", "Emil", "P1303"), False),
        (fact("Carl lives in", "Paris", "Carl", "P551"), True),  # an edit neighbor is not measured
        # whole words
        (fact("Bo lives in", "Paris", "Bo", "P551"), True),
        (fact("Bob lives in", "Par", "Bob", "P551"), True),
        (fact("Ann Lee died in", "Oslo", "Ann Lee", "P20"), True),  # the words are there, but not as one name
        # (c) the same sentence
        (fact("BOB was born  in", "Paris"), False),
        (fact("Carl was born in", "Paris"), True),
    ],
)
def test_what_is_left_out(probe, stays):
    assert unedited([probe], [EDIT]) == ([probe] if stays else [])
    assert unedited([probe], []) == [probe]


def test_without_a_relation_every_fact_about_the_subject_is_left_out():
    other = EditRequest("Ann Lee", "{} was born in", "Rome", "Paris")
    assert unedited([fact("Ann Lee works as a", "painter", "Ann Lee", "P106")], [other]) == []


def test_equal_sentences_stay_once_and_in_order():
    facts = [fact("B is", "c"), fact("A is", "b"), fact("b  IS", "C"), fact("A", "is b")]
    assert unedited(facts, []) == facts[:2]


def test_true_facts_are_what_held_before():
    silent = EditRequest("Dan", "{} was born in", "Rome")
    assert true_facts([EDIT, silent]) == [fact("Ann Lee was born in", "Paris", "Ann Lee", "P19")]


# --- against the definition ----------------------------------------------------------------------------------------


def plain(text):
    return " ".join(text.casefold().split())


def holds(text, part):
    return re.search(rf"(?<!\w){re.escape(plain(part))}(?!\w)", plain(text)) is not None


def texts_of(request):
    objects = [o for o in (request.target_new, request.target_true) if o]
    asked = [(p, objects) for p in (request.full_prompt, *request.paraphrases)]
    probes = (*request.neighbors, *request.locality, *request.portability)
    asked += [(p.prompt, (p.answer, *p.aliases)) for p in probes]
    return [f"{prompt} {answer}" for prompt, answers in asked for answer in answers]


def naive(facts, requests):
    texts, kept = [text for request in requests for text in texts_of(request)], []
    for one in facts:
        sentences = [f"{other.prompt} {other.answer}" for other in kept]
        twice = plain(f"{one.prompt} {one.answer}") in {plain(text) for text in [*texts, *sentences]}
        about = [r for r in requests if one.subject and plain(r.subject) == plain(one.subject)]
        edited = any(not one.family or not r.relation_id or r.relation_id == one.family for r in about)
        measured = one.subject and any(holds(text, one.subject) and holds(text, one.answer) for text in texts)
        if not (twice or edited or measured):
            kept.append(one)
    return kept


WORDS = st.sampled_from(["ann", "Ann", "ann lee", "lee", "bob", "bob's", "b", "o'hara", "paris", "Par", "é", "ann-lee"])
RELATIONS = st.sampled_from(["", "P1", "P2"])
FACTS = st.builds(
    lambda subject, form, answer, family: Probe(f"{subject} {form}", answer, subject, family=family),
    WORDS,
    st.sampled_from(["is in", "came  from", "knows lee of"]),
    WORDS,
    RELATIONS,
)
EDITS = st.builds(
    lambda subject, answer, relation, neighbors, paraphrase: EditRequest(
        subject, "{} is in", "new place", answer, (f"{subject} {paraphrase}",), neighbors, relation_id=relation or None
    ),
    WORDS,
    WORDS,
    RELATIONS,
    st.lists(FACTS, max_size=2).map(tuple),
    st.sampled_from(["comes from", "was seen by Bob in"]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(FACTS, max_size=8), st.lists(EDITS, max_size=3))
def test_the_index_finds_what_the_definition_says(facts, requests):
    assert unedited(facts, requests) == naive(facts, requests)


# --- bundled records -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "left"), [(200, 2872), (1200, 1120)])
def test_bundled_facts_beside_bundled_records(count, left):
    requests = sample(load_dataset("pocket-facts:all"), count, 0)
    facts = known_facts()
    started = time.process_time()
    kept = unedited(facts, requests)
    assert time.process_time() - started < 5
    assert len(kept) == left
    texts = [plain(text) for request in requests for text in texts_of(request)]
    by_subject = {}
    for one in kept:
        by_subject.setdefault(plain(one.subject), set()).add(plain(one.answer))
    anywhere = "\n".join(texts)
    for subject, answers in by_subject.items():
        if subject in anywhere:
            about = [text for text in texts if holds(text, subject)]
            assert not [a for a in answers for text in about if holds(text, a)], subject
