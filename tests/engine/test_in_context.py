"""The documents that teach a pocket model to read: every answer follows, and nothing measured stands in them."""

import json
import random
from itertools import islice

import pytest

from editing_core import paths
from scripts.pocket.corpus import Templates
from scripts.pocket.facts import read_facts
from scripts.pocket.in_context import Documents, Question, context_rows
from scripts.train_in_context import untested
from tests.conftest import pocket_tokenizer

FACTS = read_facts(paths.assets() / "facts" / "facts.tsv")
TEMPLATES = Templates.read(paths.assets() / "facts" / "templates.json")
RECORDS = json.loads((paths.assets() / "benchmark" / "pocket-facts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def free():
    return untested(FACTS, RECORDS)


@pytest.fixture(scope="module")
def elsewhere(free):
    return {fact.subject: [("P0", Question(f"As for {fact.subject}, it is", "elsewhere"))] for fact in free}


def drawn(free, elsewhere, count=600):
    return list(islice(Documents(free, TEMPLATES, elsewhere, random.Random(1)).draw(), count))


def answers_to(prompt, facts):
    """Objects of facts whose relation and subject a prompt asks for, all told in any wording."""
    return {
        answer
        for relation, subject, answer in facts
        if subject in prompt
        for form in TEMPLATES.forms[relation]
        if form.replace("{}", subject) == prompt
    }


def test_every_answer_follows_from_the_facts_or_is_as_without_them(free, elsewhere):
    kinds = dict.fromkeys(("told", "true", "elsewhere"), 0)
    true = [(fact.relation, fact.subject, fact.object) for fact in free]
    by_subject = {}
    for fact in free:
        by_subject.setdefault(fact.subject, set()).add(fact.object)
    for document in drawn(free, elsewhere):
        subjects = [name for name in by_subject if any(name in sentence for sentence in document.facts)]
        told = [
            (relation, name, sentence.removeprefix(f"{form.replace('{}', name)} "))
            for sentence in document.facts
            for name in subjects
            for relation, forms in TEMPLATES.forms.items()
            for form in forms
            if sentence.startswith(f"{form.replace('{}', name)} ")
        ]
        prompt, answer = document.question.prompt, document.question.answer
        if found := answers_to(prompt, told):
            assert answer in found
            kinds["told"] += 1
        elif answer == "elsewhere":
            assert any(name in prompt for name in subjects)
            kinds["elsewhere"] += 1
        else:
            assert answer in answers_to(prompt, true)
            kinds["true"] += 1
        assert document.text[slice(*document.answer)] == f" {answer}"
    assert min(kinds.values()) > 60  # a tenth of them
    assert kinds["told"] > kinds["true"]


def test_no_subject_of_a_test_record_is_told_or_asked(free, elsewhere):
    tested = [record for record in RECORDS if record["part"] == "test"]
    taken = {r["requested_rewrite"]["subject"] for r in tested}
    taken |= {sample["subject"] for r in tested for sample in r["neighborhood_samples"]}
    assert len(free) > 1000
    assert not taken & {fact.subject for fact in free}
    assert taken & {fact.subject for fact in FACTS}
    assert drawn(free, elsewhere, 20) == drawn(free, elsewhere, 20)


def test_only_answers_weigh(free, elsewhere):
    documents = drawn(free, elsewhere, 40)
    rows = context_rows(iter(documents), pocket_tokenizer(), 2, 64)
    assert rows.ids.shape == rows.weight.shape == (2, 64)
    assert set(rows.weight.ravel().tolist()) == {0.0, 3.0}
    assert (rows.span_end == -1).all()
    text = "".join(document.text for document in documents)
    for ids, weight in zip(rows.ids, rows.weight, strict=True):
        whole = pocket_tokenizer().decode(ids)
        assert whole.startswith("New Fact: ")
        assert whole in text
        answers = [pocket_tokenizer().decode([token]) for token, counts in zip(ids, weight, strict=True) if counts]
        assert answers
        assert all(answer in [f" {d.question.answer}" for d in documents] for answer in answers)
