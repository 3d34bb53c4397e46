"""Every refusal of a request, and what a valid one looks like."""

import pytest

from editing_core.errors import BadRequest, SubjectMissing
from editing_core.types import MAX_CHARACTERS, MAX_PROBES, EditRequest, Probe

GOOD = {"subject": "Mary", "prompt": "{} lives in", "target_new": "Rome", "target_true": "Paris"}


def make(**changes):
    return EditRequest(**{**GOOD, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompt": "Mary lives in"}, SubjectMissing, r"has 0 places \{\} for the subject, exactly one is needed"),
        ({"prompt": "{} and {} live in"}, SubjectMissing, r"has 2 places"),
        ({"subject": "M{}ry"}, BadRequest, r"The subject 'M\{\}ry' contains \{\}"),
        ({"subject": ""}, BadRequest, "The subject is empty; enter some text"),
        ({"subject": "   "}, BadRequest, "The subject is empty"),
        ({"prompt": ""}, BadRequest, "The prompt is empty"),
        ({"target_new": " "}, BadRequest, "The new object is empty"),
        ({"target_true": ""}, BadRequest, "The old object is empty"),
        ({"target_new": "Paris"}, BadRequest, "The new object 'Paris' equals the old one"),
        ({"target_new": " pARIS "}, BadRequest, "equals the old one"),
        ({"subject": "x" * (MAX_CHARACTERS + 1)}, BadRequest, "has 1,001 characters, at most 1,000 are allowed"),
        ({"target_new": "x" * 5000}, BadRequest, "has 5,000 characters"),
        ({"subject": "<b>Mary</b>"}, BadRequest, "contains the markup '<b>'; only plain text is allowed"),
        ({"target_new": "<|endoftext|>"}, BadRequest, "contains the markup"),
        ({"target_true": "</s>"}, BadRequest, "contains the markup"),
        ({"prompt": "<!--x--> {} is"}, BadRequest, "contains the markup"),
        ({"subject": "Mary\nWalker"}, BadRequest, "contains a line break or a control character"),
        ({"subject": "Mary\x1b[31mWalker"}, BadRequest, "control character"),
        ({"paraphrases": ("a\x07b",)}, BadRequest, "control character"),
        ({"subject": None}, BadRequest, "The subject must be text, got NoneType; put it in quotes"),
        ({"case_id": [1]}, BadRequest, "The case_id must be a number or text, got list"),
        ({"target_new": 7}, BadRequest, "The new object must be text, got int"),
        ({"paraphrases": ("fine", "")}, BadRequest, "The paraphrase is empty"),
        ({"paraphrases": ("a",) * (MAX_PROBES + 1)}, BadRequest, "At most 200 paraphrases fit one edit"),
        ({"neighbors": (Probe("a", "b"),) * (MAX_PROBES + 1)}, BadRequest, "At most 200 neighbors"),
    ],
)
def test_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("prompt", "answer", "message"),
    [
        ("", "x", "The prompt of a probe is empty"),
        ("x", " ", "The answer of a probe is empty"),
        ("<i>", "x", "markup"),
    ],
)
def test_probe_refuses(prompt, answer, message):
    with pytest.raises(BadRequest, match=message):
        Probe(prompt, answer)


def test_refusals_are_one_line():
    with pytest.raises(BadRequest) as caught:
        make(prompt="no place " * 50)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_strips_and_fills_in():
    request = make(subject="  Mary Walker ", target_new=" Rome ", paraphrases=(" Mary is in ",))
    assert (request.subject, request.target_new, request.paraphrases) == ("Mary Walker", "Rome", ("Mary is in",))
    assert request.full_prompt == "Mary Walker lives in"


def test_longest_text_and_most_probes_are_allowed():
    request = make(subject="x" * MAX_CHARACTERS, paraphrases=("a",) * MAX_PROBES)
    assert len(request.subject) == MAX_CHARACTERS


def test_braces_in_texts_are_literal():
    request = make(subject="a {name} and {0}", prompt="Of {curly} {} we say", target_new="{x}")
    assert request.full_prompt == "Of {curly} a {name} and {0} we say"


@pytest.mark.parametrize("text", ["a < b", "3 <4> 5", "x > y", "Q&A", "1 <2 and 3> 2", "Žofie"])
def test_plain_signs_are_no_markup(text):
    assert make(subject=text).subject == text


def test_old_object_may_be_open():
    assert make(target_true=None).target_true is None


def test_real_texts_with_line_breaks_and_odd_spaces_are_allowed():
    request = make(subject="J.\xa0R. Tolkien", paraphrases=("References\n\nMary is in",))
    assert request.paraphrases == ("References\n\nMary is in",)


@pytest.mark.parametrize(
    ("prompt", "subject", "template"),
    [
        ("Rome lies in", "Rome", "{} lies in"),
        ("In Rome, old Rome lies in", "Rome", "In Rome, old {} lies in"),
        ("Rome lies in", None, None),
        ("Rome lies in", "Paris", None),
        ("Rome {} lies in", "Rome", None),
    ],
)
def test_template_of_a_probe(prompt, subject, template):
    assert Probe(prompt, "Italy", subject).template == template
