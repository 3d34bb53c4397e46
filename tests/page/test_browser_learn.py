"""The lesson in a real browser: from the first step to the vocabulary, Reset, Stop, and a case opened."""

import re

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import expect

from editing_core.lesson import STEPS
from tests.conftest import bit_equal, snapshot

pytestmark = pytest.mark.browser
POINTS = "p => p.data.map(t => t.x ? t.x.length : 0).reduce((a, b) => a + b, 0)"
PLOT = "#plot-lesson .js-plotly-plot"


def at_learn(opening, page):
    sheet = opening(page.local_url)
    sheet.get_by_role("tab", name="Learn").click()
    sheet.locator("#lesson-text").wait_for()
    return sheet


def test_the_whole_lesson(opening, page, pocket, tab):
    before = snapshot(pocket.model)
    sheet = at_learn(opening, page)
    for step in STEPS:
        expect(sheet.locator("#lesson-text")).to_contain_text(f"{step.number}. {step.title}")
        expect(sheet.locator("#lesson-run")).to_have_text(step.button)
        expect(sheet.locator("#plot-lesson")).to_contain_text("Press the button")
        sheet.locator("#lesson-run").click()
        expect(sheet.locator("#lesson-line")).to_contain_text(f"Step {step.number} done", timeout=60_000)
        expect(sheet.locator(f"#lesson-at label:nth-of-type({step.number})")).to_contain_text("✔")
        plot = sheet.locator(PLOT)
        sheet.wait_for_function(f"document.querySelector('{PLOT}')?.data?.length > 0")
        assert plot.evaluate(POINTS) >= 7
        boxes = [sheet.locator(name).bounding_box() for name in (PLOT, "#lesson-text", "#lesson-run")]
        assert boxes[0]["height"] > 300
        assert all(box["y"] >= 0 and box["y"] + box["height"] <= 900 for box in boxes)
        expect(sheet.locator("#lesson-stop")).to_be_disabled()
        sheet.locator("#lesson-next").click()
    expect(sheet.locator("#lesson-class")).to_contain_text("20 browsers")
    sheet.locator("#lesson-next").click()
    expect(sheet.locator("#lesson-vocabulary")).to_contain_text("Harmonic mean of efficacy")
    expect(sheet.locator("#lesson-next")).to_be_disabled()
    sheet.locator("#lesson-at label").nth(1).click()
    expect(sheet.locator("#lesson-text")).to_contain_text("fell short")
    sheet.locator("#lesson-reset").click()
    expect(sheet.locator("#lesson-text")).to_contain_text(STEPS[0].before[0])
    expect(sheet.locator("#plot-lesson")).to_contain_text("Press the button")
    expect(sheet.locator("#lesson-at")).not_to_contain_text("✔")
    assert len(tab.jobs) == 0
    with pocket.lock:
        assert bit_equal(pocket.model, before)


@pytest.mark.slow
def test_a_step_is_left_stopped_and_its_case_opened(opening, page, pocket):
    before = snapshot(pocket.model)
    sheet = at_learn(opening, page)
    sheet.locator("#lesson-at label").nth(2).click()
    expect(sheet.locator("#lesson-text")).to_contain_text(STEPS[2].title)
    sheet.locator("#lesson-run").click()
    expect(sheet.locator("#lesson-line")).to_contain_text("Step 3: iteration", timeout=30_000)
    sheet.locator("#lesson-next").click()
    expect(sheet.locator("#lesson-text")).to_contain_text(STEPS[3].title)
    sheet.locator("#lesson-stop").click()
    expect(sheet.locator("#lesson-line")).to_contain_text("Stopped; the model is as it was", timeout=30_000)
    expect(sheet.locator("#lesson-run")).to_be_enabled()
    with pocket.lock:
        assert bit_equal(pocket.model, before)
    sheet.locator("#lesson-open").click()
    expect(sheet.locator("#subject input, #subject textarea")).to_have_value("Alfa Romeo Brera")
    expect(sheet.locator("#edit")).to_be_visible()
    expect(sheet.locator("#message")).to_contain_text("press Edit")
    expect(sheet.locator("#strip .es-token-edited")).to_have_count(1)
    expect(sheet.locator("#verdict")).to_have_text(re.compile("No edit yet"))


@pytest.mark.slow
def test_a_narrow_page_does_not_scroll_sideways(opening, page):
    sheet = at_learn(opening, page)
    sheet.set_viewport_size({"width": 380, "height": 800})
    sheet.locator("#lesson-run").click()
    expect(sheet.locator("#lesson-line")).to_contain_text("Step 1 done", timeout=30_000)
    assert sheet.evaluate("document.documentElement.scrollWidth") <= 380
    for place, shown in ((-2, "#lesson-class"), (-1, "#lesson-vocabulary")):
        sheet.locator("#lesson-at label").nth(place).click()
        expect(sheet.locator(shown)).to_be_visible()
        assert sheet.evaluate("document.documentElement.scrollWidth") <= 380
