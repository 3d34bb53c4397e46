"""The page in a real browser: an example from click to charts, slider, undo, a refusal, a closed tab."""

import re
import time

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import expect

from scripts.screenshot import run_example

pytestmark = pytest.mark.browser
PLOTS = ("probabilities", "perplexity", "next_token", "drift", "metrics", "loss")


@pytest.fixture
def tab_page(opening, page):
    """A fresh tab."""
    return opening(page.local_url)


def test_an_example_from_click_to_charts_slider_and_undo(tab_page):
    run_example(tab_page, 0)
    expect(tab_page.locator("#verdict")).to_contain_text("sitcom")
    for name in PLOTS:
        plot = tab_page.locator(f"#plot-{name} .js-plotly-plot")
        plot.scroll_into_view_if_needed()
        assert plot.bounding_box()["height"] > 100, name
        drawn = tab_page.locator(f"#plot-{name} .js-plotly-plot").evaluate("p => p.data.filter(t => t.y.length).length")
        assert drawn > 0, name
    chosen = tab_page.locator("#iteration-table .es-chosen td").first
    expect(chosen).not_to_have_text("0")
    box = tab_page.locator("#k input[type=number]")
    box.fill("0")
    box.press("Enter")
    expect(tab_page.locator("#iteration-table .es-chosen td").first).to_have_text("0")
    expect(tab_page.locator("#verdict")).to_contain_text("Unedited model")
    for k in ("1", "0", "1"):  # also a place that was looked at before
        box.fill(k)
        box.press("Enter")
        expect(tab_page.locator("#iteration-table .es-chosen td").first).to_have_text(k)
        expect(tab_page.locator("#plot-next_token .js-plotly-plot")).to_have_count(1)
    tab_page.locator("#undo").click()
    expect(tab_page.locator("#verdict")).to_contain_text("No edit yet")
    expect(tab_page.locator("#undo")).to_be_disabled()


def test_the_first_screen_answers_without_scrolling(tab_page):
    run_example(tab_page, 0)
    for name in ("#verdict", "#plot-probabilities", "#plot-perplexity", "#edit"):
        box = tab_page.locator(name).bounding_box()
        assert box["y"] + box["height"] <= 900, name


def test_enter_runs_and_a_prompt_without_a_place_is_refused_beside_the_form(tab_page):
    tab_page.locator("#subject input, #subject textarea").fill("Mario Del Monaco")
    tab_page.locator("#prompt input, #prompt textarea").fill("no place for it")
    tab_page.locator("#new input, #new textarea").fill("sitcom")
    tab_page.locator("#new input, #new textarea").press("Enter")
    expect(tab_page.locator("#message")).to_contain_text("exactly one is needed")


def test_suggest_fills_paraphrases_and_neighbors(tab_page):
    tab_page.locator("#subject input, #subject textarea").fill("Mario Del Monaco")
    tab_page.locator("#prompt input, #prompt textarea").fill("{}, often placed in the genre")
    tab_page.locator("#prompt input, #prompt textarea").blur()
    expect(tab_page.locator("#old input, #old textarea")).not_to_have_value("")
    tab_page.get_by_text("Paraphrases and neighbors").click()
    tab_page.locator("#suggest").click()
    expect(tab_page.locator("#neighbors")).to_contain_text("opera")
    expect(tab_page.locator("#standing")).to_contain_text("known")
    expect(tab_page.locator("#standing")).not_to_contain_text("assists")


def test_a_neighbor_assists_and_is_not_measured(tab_page):
    tab_page.locator("#example-0").click()
    tab_page.locator("#strip .es-token-edited").wait_for()
    tab_page.get_by_text("Paraphrases and neighbors").click()
    tab_page.locator("#assistance label", has_text="NAP").click()
    expect(tab_page.locator("#standing")).to_contain_text("assists the edit")
    neighbors = tab_page.locator("#standing li").count()
    tab_page.locator("#edit").click()
    tab_page.locator("#verdict .es-sign").wait_for(timeout=60_000)
    expect(tab_page.locator("#proof")).to_contain_text("NAP, assisted by")
    labels = tab_page.locator("#plot-probabilities .js-plotly-plot").evaluate("p => p.data[0].x")
    assert sum(label.startswith("N") for label in labels) == neighbors - 1
    expect(tab_page.locator("#table")).to_contain_text("Every rule's choice")


def test_cases_are_narrowed_and_runs_stand_in_the_tradeoff(tab_page):
    run_example(tab_page, 1)
    tab_page.get_by_text("Cases: every fact").click()
    rows = tab_page.locator("#case-table tr")
    expect(rows).to_have_count(8)
    field = tab_page.locator("#case-text input, #case-text textarea")
    field.press_sequentially("paul allen")
    expect(rows).to_have_count(2)
    field.press_sequentially(" was here")
    expect(tab_page.locator("#cases")).to_contain_text("No record fits")
    tab_page.get_by_text("Trade-off: what methods").click()
    plot = tab_page.locator("#plot-tradeoff .js-plotly-plot")
    points = "p => p.data.map(t => t.x.length)"
    assert len(plot.evaluate(points)) > 5
    expect(tab_page.locator("#tradeoff-table")).to_contain_text("subject statistics")
    tab_page.locator("#tradeoff-source label").last.click()
    assert until(lambda: plot.evaluate(points) == [5])


def until(true, seconds=20.0):
    """Wait for something to become true; False when it did not."""
    end = time.monotonic() + seconds
    while not (done := true()) and time.monotonic() < end:
        time.sleep(0.02)
    return done


def test_stop_and_a_closed_tab_end_the_work(tab_page, tab):
    tab_page.locator("#example-4").click()
    tab_page.locator("#strip .es-token-edited").wait_for()
    tab_page.locator("#edit").click()
    assert until(lambda: len(tab.jobs) == 1)
    expect(tab_page.locator("#progress")).to_contain_text("Optimising", timeout=60_000)
    tab_page.locator("#stop").click()
    expect(tab_page.locator("#progress")).to_contain_text("Stopped; the model is as it was", timeout=20_000)
    assert until(lambda: len(tab.jobs) == 0)
    expect(tab_page.locator("#stop")).to_be_disabled()
    tab_page.locator("#edit").click()
    assert until(lambda: len(tab.jobs) == 1)
    tab_page.close()
    assert until(lambda: len(tab.jobs) == 0)


def test_a_narrow_page_does_not_scroll_sideways(tab_page):
    tab_page.set_viewport_size({"width": 380, "height": 800})
    run_example(tab_page, 0)
    assert tab_page.evaluate("document.documentElement.scrollWidth") <= 380


def test_edits_are_stacked_compared_and_shared(tab_page, opening):
    tab_page.get_by_text("Edit stack").click()
    run_example(tab_page, 0)
    about = tab_page.locator("#stack-about")
    expect(about).to_contain_text("0 of 1 on")
    tab_page.locator("#stack-on input").check()
    expect(about).to_contain_text("1 of 1 on")
    tab_page.get_by_text("Compare two states").click()
    tab_page.locator("#compare").click()
    expect(tab_page.locator("#compared")).to_contain_text("have another first choice", timeout=60_000)
    expect(tab_page.locator("#compared")).to_contain_text("sitcom")
    tab_page.locator("#stack-remove").click()
    expect(about).to_contain_text("Every edit of this page")
    tab_page.locator("#stack-undo").click()
    expect(about).to_contain_text("1 of 1 on")
    tab_page.get_by_text("Take it with you").click()
    tab_page.locator("#take").click()
    link = tab_page.locator("#take-link textarea, #take-link input").first
    expect(link).to_have_value(re.compile("case="))
    other = opening(link.input_value())
    expect(other.locator("#subject input, #subject textarea")).to_have_value("Mario Del Monaco")
    expect(other.locator("#message")).to_contain_text("press Edit")
    expect(other.locator("#verdict")).to_contain_text("No edit yet")
