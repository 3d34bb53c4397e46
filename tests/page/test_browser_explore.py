"""The Explore tab in a real browser: a fact traced, its layer used, the lens, what changed, and talk with Stop."""

import time

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import expect

from scripts.screenshot import run_example

pytestmark = pytest.mark.browser
CELLS = "p => p.data.find(t => t.type === 'heatmap').z.flat().filter(v => v !== 0).length"
ANSWER = "p => p.data[0].text.at(-1).at(-1)"
FIRST = "document.querySelector('#plot-changed-drift .js-plotly-plot').data[0].x[0]"


def press(sheet, name):
    """Start a piece of work and wait until it is done."""
    sheet.locator(f"#{name}").click()
    expect(sheet.locator(f"#{name}-line")).to_contain_text("Done in", timeout=30_000)


def plot(sheet, name):
    """A chart that can be seen."""
    found = sheet.locator(f"#plot-{name} .js-plotly-plot")
    assert found.bounding_box()["height"] > 100, name
    return found


def talk_and_stop(sheet, jobs):
    """A long text, stopped after its first words; nothing is written any more then."""
    sheet.locator("#explore-talk input[type=number]").first.fill("400")
    sheet.locator("#talk").click()
    expect(sheet.locator("#talk-texts")).to_contain_text("sitcom", timeout=30_000)
    sheet.locator("#talk-stop").click()
    expect(sheet.locator("#talk-line")).to_contain_text("Stopped; the model is as it was", timeout=20_000)
    end = time.monotonic() + 10
    while len(jobs) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(jobs) == 0
    written = sheet.locator("#talk-texts").inner_text()
    sheet.wait_for_timeout(600)
    assert sheet.locator("#talk-texts").inner_text() == written
    expect(sheet.locator("#talk-line")).to_contain_text("Stopped")
    expect(sheet.locator("#talk")).to_be_enabled()
    expect(sheet.locator("#talk-stop")).to_be_disabled()


def test_a_fact_is_traced_read_and_talked_about(opening, page, tab):
    sheet = opening(page.local_url)
    sheet.get_by_text("Edit stack").click()
    run_example(sheet, 0)
    sheet.locator("#stack-on input").check()
    expect(sheet.locator("#stack-about")).to_contain_text("1 of 1 on")
    sheet.get_by_role("tab", name="Explore").click()
    expect(sheet.locator("#trace-subject input, #trace-subject textarea")).to_have_value("Mario Del Monaco")

    press(sheet, "trace")
    for kind in ("hidden", "mlp", "attention"):
        assert plot(sheet, f"trace-{kind}").evaluate(CELLS) > 6, kind
    expect(sheet.locator("#trace-sentence")).to_contain_text("Suggested: layer")
    sheet.locator("#trace-use").click()
    expect(sheet.locator("#trace-used")).to_contain_text("MEMIT now edits layer")

    sheet.get_by_text("Layer by layer").click()
    press(sheet, "lens")
    assert "opera" in plot(sheet, "lens-before").evaluate(ANSWER)
    assert "sitcom" in plot(sheet, "lens-after").evaluate(ANSWER)

    sheet.get_by_text("What the edit changed").click()
    press(sheet, "changed")
    before = sheet.evaluate(FIRST)
    sheet.locator("#changed-by label", has_text="moved").click()
    sheet.wait_for_function(f"x => {FIRST} !== x", arg=before)

    sheet.get_by_text("Let it talk").click()
    talk_and_stop(sheet, tab.jobs)

    sheet.get_by_role("tab", name="Edit", exact=True).click()
    sheet.get_by_text("Stop rule, assistance, seed").click()
    layers = sheet.locator("#settings label", has_text="MLP layers that share").filter(visible=True)
    expect(layers.locator("input, textarea")).to_have_value("0")
