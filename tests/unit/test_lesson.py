"""The lesson's texts and charts: two sentences each, words that fit the cases, numbers that were found."""

import re
from dataclasses import replace

import pytest

from components.learn_class import HOST, NEXT, QUESTIONS, class_html, pace
from components.learn_html import TERMS, explained, step_html, words_html
from editing_core import charts_lesson
from editing_core.evaluation.scoring import TokenChance
from editing_core.lesson import MODEL, ROUNDS, STEPS, seven, wanted
from editing_core.lesson_findings import Drift, Fact, Kept, Knowledge, Round, Written

ENDS = re.compile(r"[.!?](?=\s|$)")
SUBJECTS = ("Ann", "Bob", "Cid")


def fact(subject, took, p_old=0.9, p_new=0.02):
    p_old, p_new = (p_new, p_old) if took else (p_old, p_new)
    return Fact(subject, f"{subject} plays the", "piano", "violin", p_old, p_new, not took, took)


def kept(subject, before, after, lost=False, known=True):
    return Kept(subject, f"The maker of {subject} is", "Fiat", before, after, known, lost)


MISSED = tuple(fact(name, took) for name, took in zip(SUBJECTS, (True, False, False), strict=True))
TOOK = tuple(fact(name, True) for name in SUBJECTS)
ONE = Round(1, 1, 2, 1.02, 3.5, 2.48)
TWO = Round(2, 3, 4, 1.02, 1.05, 0.03)
THREE = Round(3, 3, 6, 1.02, 1.021, 0.001)
ALONE = Drift(
    fact("Brera", True),
    (kept("Lybra", 0.99, 0.9), kept("Dedra", 0.98, 0.111, True), kept("MiTo", 1.0, 0.02, True)),
    (0.99, 0.97),
    0,
    3.0,
)
HELD = Drift(fact("Brera", True, p_old=0.8), (kept("Lybra", 0.99, 0.95), kept("Dedra", 0.98, 0.97)), (0.8, 0.7), 1, 4.0)
FOUND = {
    1: Knowledge(tuple(fact(name, False, p_new=3e-4) for name in SUBJECTS), (TokenChance(" piano", 0.9),), 0.5),
    2: Written(MISSED, 6, (ONE,), 1.0, None, 2.0),
    3: Written(TOOK, 6, (ONE, TWO, THREE), 1.0, 2, 6.0),
    4: ALONE,
    5: HELD,
}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.short)
@pytest.mark.parametrize("found", [{}, FOUND], ids=["before", "after"])
def test_every_step_has_two_sentences(step, found):
    sentences = step.text(found)
    assert len(sentences) == 2
    for sentence in sentences:
        assert ENDS.findall(sentence) == ["."], sentence
        assert sentence[0].isupper() or sentence.startswith("|delta p|"), sentence
    assert step.title
    assert step.button
    assert ENDS.search(step.look[-1])


def test_the_steps_are_numbered_and_need_only_earlier_ones():
    assert [step.number for step in STEPS] == [1, 2, 3, 4, 5]
    for step in STEPS:
        assert all(n < step.number for n in step.needs)
    assert [step.number for step in wanted(5)] == [4, 5]
    assert [step.number for step in wanted(5, (4,))] == [5]
    assert [step.number for step in wanted(3)] == [3]


def test_the_words_fit_the_cases():
    assert len(seven()) == 7
    assert len({request.subject for request in seven()}) == 7
    assert {request.relation_id for request in seven()} == {"P1303"}  # instrument
    one, again, alone, held = (step.case() for step in STEPS[1:])
    assert {case.model for case in (one, again, alone, held)} == {MODEL}
    assert (one.plan.stop.iterations, again.plan.stop.iterations) == (1, ROUNDS)
    assert one.requests == again.requests == seven()
    assert replace(one.plan, stop=again.plan.stop) == again.plan
    told = " ".join(STEPS[3].before)
    (request,) = alone.requests
    for word in (request.subject, request.target_true, request.target_new):
        assert word in told
    assert {neighbor.answer for neighbor in request.neighbors} == {request.target_true}
    assert len({neighbor.subject for neighbor in request.neighbors}) == len(request.neighbors)
    assert [replace(r, source=request.source) for r in held.requests] == [request]
    assert (held.plan.assist.neighbors, held.plan.assist.count) == ("na", 3)
    assert held.plan.assist.keys > 0
    assert not alone.plan.assist.uses_neighbors
    assert replace(held.plan, assist=alone.plan.assist) == alone.plan


def test_numbers_are_those_that_were_found():
    told = {number: " ".join(STEPS[number - 1].text(FOUND)) for number in FOUND}
    assert "3 of 3 prompts" in told[1]
    assert "“Ann plays the”, for example, goes on with “piano” with a probability of 0.9" in told[1]
    assert "below 0.001" in told[1]
    assert "1 of 3 facts took, and Bob and Cid fell short" in told[2]
    assert "1.02 (p optimised)" in told[2]
    assert "3.5 (p spread)" in told[2]
    assert "from 2.48 in iteration 1 to 0.03 in iteration 2, at most the tolerance of 1, and 3 of 3" in told[3]
    assert "against 1." in told[3]
    assert "By iteration 3, 6 of 6 paraphrases" in told[3]
    assert "against 2 after iteration 1" in told[3]
    assert "2 of 3 neighbors" in told[4]
    assert "“The maker of MiTo is”, whose answer “Fiat” went from 1 to 0.02" in told[4]
    assert "Of the 2 neighbors that did not assist, 1 were lost" in told[5]
    assert "0 with it" in told[5]
    assert "0.8, against 0.9 in step 4" in told[5]


def test_other_findings_are_told_as_they_are():
    for number, finding, words in (
        (2, Written(TOOK, 6, (TWO,), 1.0, 2, 1.0), "none fell short"),
        (3, Written(MISSED, 6, (ONE,), 1.0, None, 1.0), "still above the tolerance"),
        (4, replace(ALONE, fact=fact("Brera", False)), "did not take"),
        (5, replace(HELD, fact=fact("Brera", False)), "does not take any more"),
    ):
        sentences = STEPS[number - 1].text({**FOUND, number: finding})
        assert words in " ".join(sentences)
        assert [len(ENDS.findall(sentence)) for sentence in sentences] == [1, 1]


def test_a_finding_of_another_step_is_a_defect():
    with pytest.raises(TypeError, match="step 2 found a Drift, not a Written"):
        STEPS[1].text({2: ALONE})


def test_charts_are_readable_and_hold_every_row():
    for number in FOUND:
        empty, full = charts_lesson.chart(number, {}), charts_lesson.chart(number, FOUND)
        for figure in (empty, full):
            assert figure.layout.height == charts_lesson.HEIGHT
            assert figure.layout.font.size >= 14
        assert not empty.data
        assert empty.layout.title.text == full.layout.title.text
    old = charts_lesson.chart(1, FOUND).data[1]
    assert list(old.x) == [0.9] * 3
    assert list(old.text) == ["piano 0.90"] * 3
    marks = charts_lesson.chart(2, FOUND).data[0].y
    assert [mark[0] for mark in marks] == ["✔", "▽", "▽"]
    rounds = {trace.name: trace for trace in charts_lesson.chart(3, FOUND).data}
    assert list(rounds["facts (of 3)"].text) == ["1", "3", "3"]
    assert list(rounds["paraphrases (of 6)"].text) == ["2", "4", "6"]
    assert list(rounds["|Δp|"].y) == [2.48, 0.03, 0.001]
    assert list(rounds["stops at k = 2"].x) == [2]
    lost = {trace.name: trace for trace in charts_lesson.chart(4, FOUND).data}
    assert list(lost["lost"].y) == ["Dedra", "MiTo"]
    assert list(lost["kept"].x) == [0.9]
    compared = {trace.name: trace for trace in charts_lesson.chart(5, FOUND).data}
    assert list(compared["lost without"].y) == ["Dedra"]  # MiTo was not measured with assistance
    assert list(compared["kept with assistance"].x) == [0.95, 0.97]


def test_terms_are_explained_once_and_text_is_escaped():
    seen = set()
    html = explained("A <b> neighbor keys, neighbors and neighbors", seen)
    assert html.count("<abbr") == 2
    assert "&lt;b&gt;" in html
    assert seen == {"neighbor keys", "neighbors"}
    assert "<abbr" not in explained("neighborsome", set())
    for step in STEPS:
        html = step_html(step, step.before)
        assert "What to look at:" in html
        assert words_html((*step.before, step.look)).count("<dt>") >= 1
    assert all(text.endswith(".") for text in TERMS.values())


def test_lecturers_are_told_how_what_to_ask_and_where_to_go_on():
    html = class_html(())
    assert 6 <= len(QUESTIONS) <= 10
    assert all(question.endswith("?") and answer.endswith(".") for question, answer in QUESTIONS)
    assert "GRADIO_SERVER_NAME=0.0.0.0" in html
    assert "python app.py --public" in html
    assert "2503.11895" in "".join(NEXT)
    assert all(tab in "".join(NEXT) for tab in ("Edit", "Explore", "Benchmark"))
    assert "nothing of each other" in "".join(HOST)
    assert "Run all five steps once" in html


def test_the_pace_is_that_of_this_host():
    told = pace(list(FOUND.values()))
    assert "16 seconds" in told  # 15.5
    assert "20 browsers that makes 5 minutes" in told
    assert told in class_html(FOUND.values())
