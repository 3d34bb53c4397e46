"""The Learn tab's handlers: moving, running in any order, stopping, resetting, and opening a case in the Edit tab."""

import pytest

from components.edit_form import read_requests
from components.edit_tab import STOPPED
from components.learn_tab import LECTURERS, WORDS
from components.settings_form import read_plan
from components.work import learning
from editing_core.lesson import MODEL, STEPS
from editing_core.lesson_findings import Drift, Knowledge
from tests.conftest import bit_equal, snapshot


@pytest.fixture
def learn(assembled):
    return assembled.learn


def at(learn, number, found=None, **more):
    return {learn.at: number, learn.found: found or {}, learn.bar.job: "", **more}


def test_it_begins_at_the_first_step_with_nothing_found(learn):
    assert learn.at.value == 1
    assert learn.found.value == {}
    assert STEPS[0].before[0][:20] in learn.text.value
    assert not learn.open.visible
    assert [number for _, number in learn.at.choices] == [1, 2, 3, 4, 5, LECTURERS, WORDS]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.short)
def test_every_step_is_shown_before_it_was_run(learn, step):
    shown = learn.on_show(at(learn, step.number))
    assert f"{step.number}. {step.title}" in shown[learn.text]
    assert shown[learn.run].value == step.button
    assert shown[learn.chart].layout.height > 300
    assert not shown[learn.chart].data
    assert shown[learn.open].visible == (step.case is not None)
    assert shown[learn.lesson].visible
    assert not shown[learn.lecturers].visible
    assert set(shown) <= set(learn.page)


def test_back_and_next_stay_within_the_lesson(learn):
    places = [1]
    for by in (1, 1, 1, 1, 1, 1, 1, -1):
        places.append(learn.on_move(by, at(learn, places[-1]))[learn.at].value)
    assert places == [1, 2, 3, 4, 5, 6, 7, 7, 6]
    first, asked, last = (learn.on_move(by, at(learn, start)) for by, start in ((-1, 1), (1, 5), (1, 6)))
    assert (first[learn.back].interactive, first[learn.next].interactive) == (False, True)
    assert (last[learn.back].interactive, last[learn.next].interactive) == (True, False)
    assert "What to ask" in asked[learn.lecturers].value
    for shown, pages in ((first, (True, False, False)), (asked, (False, True, False)), (last, (False, False, True))):
        assert tuple(shown[page].visible for page in (learn.lesson, learn.lecturers, learn.vocabulary)) == pages


def test_the_vocabulary_has_the_papers_symbols(learn):
    assert "| delta p | Δp |" in learn.vocabulary.value


def test_a_step_runs_what_it_needs_and_the_model_is_as_it_was(learn, host):
    model = host.get(MODEL).model
    before = snapshot(model)
    *running, done = learn.on_run(at(learn, 5))
    assert any("Step 5: iteration" in str(shown.get(learn.bar.line, "")) for shown in running)
    assert bit_equal(model, before)
    assert not len(learn.edit.jobs)
    found = done[learn.found]
    assert set(found) == {4, 5}
    assert all(isinstance(finding, Drift) for finding in found.values())
    assert "Step 5 done" in done[learn.bar.line]
    assert (done[learn.run].interactive, done[learn.bar.stop].interactive) == (True, False)
    shown = learn.on_show(at(learn, 5, found))
    assert "2 were <abbr" in shown[learn.text]
    assert shown[learn.chart].data
    assert [number for label, number in shown[learn.at].choices if label.endswith("✔")] == [4, 5]
    assert learn.on_show(at(learn, 4, found))[learn.chart].data
    assert not learn.on_show(at(learn, 3, found))[learn.chart].data
    shown = learn.on_reset(at(learn, 5, found))
    assert shown[learn.found] == {}
    assert shown[learn.at].value == 1
    assert not shown[learn.chart].data


def test_the_first_step_only_asks(learn, monkeypatch):
    monkeypatch.setattr("editing_core.lesson.run_edit", lambda *_: pytest.fail("an edit was made"))
    *_, done = learn.on_run(at(learn, 1))
    (finding,) = done[learn.found].values()
    assert isinstance(finding, Knowledge)
    shown = learn.on_show(at(learn, 1, done[learn.found]))
    assert "likeliest next words" in shown[learn.more]
    assert "piano" in shown[learn.more]
    assert learn.on_show(at(learn, 2, done[learn.found]))[learn.more] == ""


def test_earlier_findings_are_kept_and_used(learn):
    *_, done = learn.on_run(at(learn, 1, {4: "kept"}))
    assert done[learn.found][4] == "kept"
    assert learning(5, (4,)).load.passes < learning(5, ()).load.passes
    assert learning(5, (4,)).model == MODEL


def test_a_stop_tells_so_and_a_reset_stops_too(learn, host):
    model = host.get(MODEL).model
    before = snapshot(model)
    for stop in (
        lambda job: learn.edit.jobs.stop(job),
        lambda job: learn.on_reset(at(learn, 3) | {learn.bar.job: job}),
    ):
        going = learn.on_run(at(learn, 3))
        started = next(going)
        assert started[learn.bar.stop].interactive
        next(going)
        stop(started[learn.bar.job])
        last = list(going)[-1]
        assert STOPPED in last[learn.bar.line]
        assert learn.found not in last
        assert bit_equal(model, before)
        assert not len(learn.edit.jobs)


def test_a_closed_page_stops_the_work(learn, host):
    model = host.get(MODEL).model
    before = snapshot(model)
    going = learn.on_run(at(learn, 3))
    next(going)
    next(going)
    going.close()
    assert bit_equal(model, before)
    assert not len(learn.edit.jobs)


@pytest.mark.parametrize("number", [LECTURERS, WORDS])
def test_pages_behind_the_lesson_have_no_buttons_whatever_a_browser_sends(learn, number):
    (shown,) = learn.on_run(at(learn, number))
    assert learn.found not in shown
    assert set(learn.on_open(at(learn, number))) == {learn.edit.progress.message}
    assert not len(learn.edit.jobs)


@pytest.mark.parametrize("step", STEPS[1:], ids=lambda step: step.short)
def test_a_case_opens_in_the_form_as_it_is(learn, tab, step):
    shown = learn.on_open(at(learn, step.number))
    assert set(shown) <= set(learn.opened)
    case = step.case()
    held = {widget: getattr(widget, "value", None) for widget in (*tab.form.inputs, *tab.settings.inputs)}
    held |= {widget: getattr(value, "value", value) for widget, value in shown.items()}
    requests = read_requests(held, tab.form)
    assert [(r.full_prompt, r.target_new, r.neighbors) for r in requests] == [
        (r.full_prompt, r.target_new, r.neighbors) for r in case.requests
    ]
    assert read_plan(held, tab.settings) == case.plan
    assert shown[tab.header.model] == MODEL
    assert "press Edit" in shown[tab.progress.message]
    assert tab.history not in shown


def test_the_first_step_has_no_case_to_open(learn, tab):
    assert learn.on_open(at(learn, 1)) == {tab.progress.message: ""}
