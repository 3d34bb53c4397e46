"""Portability questions of bundled facts: sensible, by kind, and without their answers in them."""

import re

import pytest

from editing_core.data.datasets import load_dataset
from editing_core.data.facts import bundled_facts, bundled_relations
from editing_core.data.follow_ups import (
    HOP,
    KINDS,
    REPLACED,
    REVERSED,
    surname,
    with_controls,
    with_follow_ups,
    wordings,
)
from editing_core.types import EditRequest


@pytest.fixture(scope="module")
def records():
    return load_dataset("pocket-facts:test").requests


@pytest.fixture(scope="module")
def asked(records):
    return with_follow_ups(records)


@pytest.fixture(scope="module")
def controls(records):
    return with_controls(records)


def words(text):
    return set(re.findall(r"\w+", text.casefold()))


def test_no_question_contains_its_answer(asked, controls):
    for request in (*asked, *controls):
        for probe in request.portability:
            for answer in (probe.answer, *probe.aliases):
                assert not re.search(rf"\b{re.escape(answer)}\b", probe.prompt), probe
            assert not words(probe.answer) <= words(probe.prompt), probe


def test_no_question_is_a_prompt_of_the_record_or_a_wording_the_model_knows(asked):
    known = {form for relation in bundled_relations().values() for form in relation["forms"]}
    for kind in (REVERSED,):
        assert not known & set(wordings()[kind].values())
    assert not known & {question for _, question in wordings()[HOP].values()}
    for request in asked:
        own = {request.full_prompt, *request.paraphrases, *(n.prompt for n in request.neighbors)}
        assert not own & {probe.prompt for probe in request.portability}


def test_prompts_are_sentences_to_go_on_with(asked):
    for request in asked:
        for probe in request.portability:
            assert probe.prompt[0].isupper() or probe.family == REPLACED
            assert "{" not in probe.prompt
            assert "  " not in probe.prompt
            assert not probe.prompt.endswith((".", " "))


def test_every_kind_is_asked_at_most_once_and_often_enough(asked):
    count = dict.fromkeys(KINDS, 0)
    for request in asked:
        kinds = [probe.family for probe in request.portability]
        assert len(set(kinds)) == len(kinds)
        for kind in kinds:
            count[kind] += 1
    assert count[REVERSED] == len(asked)
    assert count[REPLACED] > len(asked) / 4
    assert count[HOP] > len(asked) / 8


def test_answers_are_what_follows(asked):
    for request in asked:
        for probe in request.portability:
            if probe.family == REPLACED:
                assert probe.answer == request.target_new
                assert probe.prompt == request.prompt.replace("{}", request.subject.split()[-1])
            elif probe.family == REVERSED:
                assert probe.answer == request.subject
                assert request.target_new in probe.prompt
            else:
                assert probe.answer not in (request.target_new, request.target_true)


def test_a_hop_leads_somewhere_else_than_before(asked, controls):
    for after, before in zip(asked, controls, strict=True):
        answers = [{p.family: p.answer for p in r.portability}.get(HOP) for r in (after, before)]
        assert None in answers or answers[0] != answers[1]


def test_controls_ask_the_same_about_the_true_object(asked, controls):
    facts = set(bundled_facts())
    for after, before in zip(asked, controls, strict=True):
        both = [{p.family: p for p in r.portability} for r in (after, before)]
        if REPLACED in both[0]:
            assert both[0][REPLACED].prompt == both[1][REPLACED].prompt
            assert both[1][REPLACED].answer == after.target_true
        prompts = [both[i][REVERSED].prompt.split(o) for i, o in enumerate((after.target_new, after.target_true))]
        assert prompts[0] == prompts[1]
        backwards = both[1][REVERSED]
        assert after.subject not in backwards.aliases
        assert all((after.relation_id, alias, after.target_true) in facts for alias in backwards.aliases)
        if HOP in both[0] and HOP in both[1]:
            assert both[0][HOP].prompt == both[1][HOP].prompt


@pytest.mark.parametrize(
    ("subject", "relation", "name"),
    [
        ("Thomas Crerar", "P937", "Crerar"),
        ("Leo IX", "P39", ""),  # a number is no surname
        ("Thomas Crerar", "P159", ""),  # a relation of organizations
        ("Emile Berlin", "P19", ""),  # an object of other facts
        ("Crerar", "P937", ""),
        ("John Smith of Jordanhill", "P106", ""),
        ("John Qwxyz", "P106", ""),  # of no bundled subject
    ],
)
def test_surnames(subject, relation, name):
    request = EditRequest(subject, "{} is", "new", relation_id=relation)
    assert surname(request) == name


def test_surnames_are_of_one_bundled_subject_only(records):
    subjects = {s for _, s, _ in bundled_facts()}
    for name in filter(None, map(surname, records)):
        assert len([s for s in subjects if re.search(rf"\b{name}\b", s)]) == 1


def test_wordings_are_of_known_relations_and_steps_lead_to_bundled_objects():
    relations, objects = bundled_relations(), {o for _, _, o in bundled_facts()}
    found = wordings()
    assert set(found[REVERSED]) == set(relations)
    assert set(found[HOP]) | set(found["people"]) <= set(relations)
    for question in (*found[REVERSED].values(), *(question for _, question in found[HOP].values())):
        assert question.count("{}") == 1
    assert {step for step, _ in found[HOP].values()} == set(found["steps"])
    for step in found["steps"].values():
        assert set(step) | set(step.values()) <= objects


def test_requests_stay_as_they_were_besides(records, asked):
    assert [r.case_id for r in asked] == [r.case_id for r in records]
    assert all(
        a.neighbors == r.neighbors and a.paraphrases == r.paraphrases for a, r in zip(asked, records, strict=True)
    )
