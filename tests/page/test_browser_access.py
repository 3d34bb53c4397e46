"""The page for everybody: axe-core finds nothing serious, the keyboard gets everywhere, and nothing jumps."""

import csv

import pytest

pytest.importorskip("playwright")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from scripts.screenshot import run_example

pytestmark = pytest.mark.browser
GRAVE = ("serious", "critical")
# What is left, each with its reason.
ACCEPTED = {
    ("aria-prohibited-attr", "Empty value"): "Gradio's own placeholder of a code box that has nothing to show yet",
    ("color-contrast", 'role="combobox"'): "a list that cannot be opened yet; inactive widgets need no contrast",
}
TABS = ("Edit", "Benchmark", "Runs", "Explore", "Learn")
ORDER = ("example-0", "example-4", "prompt", "subject", "old", "new", "probes", "editor", "iterations", "assistance")
ORDER += ("settings", "edit", "undo", "losses", "k", "log", "plot-probabilities", "plot-perplexity")
FOCUS = """() => {
  const element = document.activeElement, style = getComputedStyle(element);
  const seen = parseFloat(style.outlineWidth) >= 2 && style.outlineStyle !== 'none';
  return [element.closest('[id]:not([id^=range_id])')?.id ?? '', seen, element.textContent.trim()];
}"""
SHIFTS = """window.shifted = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifted += entry.value;
}).observe({ type: 'layout-shift', buffered: true });"""
# What https://web.dev/articles/cls calls good, and while loading not yet poor: on a busy machine style comes later than
# what it is about.
STEADY = {"loading": 0.25, "editing": 0.1, "learning": 0.1}
FOLDED = ("Paraphrases and neighbors", "Stop rule, assistance", "Edit stack", "Take it with you", "Files: adapter")


def found(tab_page):
    """Serious violations that are not accepted: rule and element."""
    results = Axe().run(tab_page).response["violations"]
    elements = [(v["id"], node["html"]) for v in results if v["impact"] in GRAVE for node in v["nodes"]]
    return [(rule, html) for rule, html in elements if not any(rule == r and part in html for r, part in ACCEPTED)]


DARK = pytest.param("dark", ("Edit", "Explore", "Learn"), marks=pytest.mark.slow)


@pytest.mark.parametrize(("theme", "tabs"), [("light", TABS), DARK])
def test_nothing_serious_stands_in_anybodys_way(opening, page, theme, tabs):
    tab_page = opening(f"{page.local_url}?__theme={theme}")
    run_example(tab_page, 0)
    for text in FOLDED:
        tab_page.get_by_text(text).first.click()
    for name in tabs:
        tab_page.get_by_role("tab", name=name).click()
        tab_page.wait_for_timeout(800)
        assert found(tab_page) == [], name


def test_marks_say_what_things_are_by_mouse_and_by_keyboard(opening, page):
    tab_page = opening(page.local_url)
    tip = tab_page.locator("#es-tip")
    mark = tab_page.locator("#iterations .es-mark-info")
    expect(mark).to_have_attribute(
        "aria-label",
        "About Iterations: How often optimising and writing are repeated at "
        "most; each starts from the weights the last one left.",
    )
    mark.hover()
    expect(tip).to_contain_text("How often optimising")
    tab_page.mouse.move(5, 5)
    expect(tip).to_be_hidden()
    tab_page.locator("#plot-drift .es-mark-info").focus()
    expect(tip).to_contain_text("neighbor's own answer")
    tab_page.keyboard.press("Escape")
    expect(tip).to_be_hidden()


def test_charts_leave_as_png_svg_and_csv(opening, page, tmp_path):
    tab_page = opening(page.local_url)
    run_example(tab_page, 0)
    plot = tab_page.locator("#plot-probabilities")
    plot.hover()
    files = {}
    for kind in ("PNG", "SVG", "CSV"):
        with tab_page.expect_download() as waiting:
            plot.get_by_text(kind, exact=True).click()
        name = waiting.value.suggested_filename
        assert name == f"editscope-probabilities.{kind.lower()}"
        waiting.value.save_as(tmp_path / name)
        files[kind] = (tmp_path / name).read_bytes()
    assert files["PNG"].startswith(b"\x89PNG")
    assert b"<svg" in files["SVG"][:500]
    rows = list(csv.reader(files["CSV"].decode().splitlines()))
    assert rows[0] == ["trace", "x", "y", "value"]
    drawn = plot.locator(".js-plotly-plot").evaluate("p => p.data.map(t => t.y.length).reduce((a, b) => a + b)")
    assert len(rows) - 1 == drawn > 10
    assert {row[1] for row in rows[1:]} >= {"edit", "P1", "N1"}


def test_the_keyboard_goes_from_the_form_to_the_charts_and_is_seen(opening, page):
    tab_page = opening(page.local_url)
    run_example(tab_page, 0)
    tab_page.get_by_role("tab", name="Learn").focus()
    places, unseen, downloads = [], [], []
    for _ in range(70):
        tab_page.keyboard.press("Tab")
        place, seen, text = tab_page.evaluate(FOCUS)
        places += [place] if places[-1:] != [place] else []
        unseen += [] if seen else [place]
        downloads += [text] if place == "plot-probabilities" else []
    assert [place for place in places if place in ORDER] == list(ORDER)
    assert unseen == []
    assert downloads == ["PNG", "SVG", "CSV", "i"]


@pytest.mark.parametrize("size", [(1440, 900), pytest.param((380, 800), marks=pytest.mark.slow)], ids=str)
def test_nothing_jumps(opening, page, size):
    """While loading, and while work goes on; what a click brings may take its place."""
    tab_page = opening(page.local_url, dict(zip(("width", "height"), size, strict=True)), SHIFTS)
    tab_page.locator("#plot-probabilities .js-plotly-plot").wait_for()
    moved = {"loading": tab_page.evaluate("window.shifted")}
    run_example(tab_page, 0)
    tab_page.evaluate("window.shifted = 0")
    tab_page.locator("#edit").click()
    expect(tab_page.locator("#progress")).not_to_contain_text("Done")
    expect(tab_page.locator("#progress")).to_contain_text("Done")
    moved["editing"] = tab_page.evaluate("window.shifted")
    tab_page.get_by_role("tab", name="Learn").click()
    expect(tab_page.locator("#plot-lesson")).to_contain_text("Press the button")
    tab_page.evaluate("window.shifted = 0")
    tab_page.locator("#lesson-run").click()
    expect(tab_page.locator("#lesson-line")).to_contain_text("done")
    moved["learning"] = tab_page.evaluate("window.shifted")
    assert {what: value for what, value in moved.items() if value >= STEADY[what]} == {}
