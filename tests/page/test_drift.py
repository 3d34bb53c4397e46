"""Neighbor drift by distance, and suggestions: what the handlers show, with and without a loaded model."""

import pytest

from components import result_view
from components.result_view import DISTANCE, NEIGHBOR
from components.run_store import StoredRun
from editing_core import charts
from editing_core.editors.stopping import StopSettings
from editing_core.models.host import ModelHost
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import run_edit
from editing_core.types import EditRequest, Probe

NEIGHBORS = (
    Probe("Birthplace of Bernard Cornwell:", "London", "Bernard Cornwell"),
    Probe("Quentin Bell, born in", "London", "Quentin Bell"),
)


@pytest.fixture(scope="module")
def run(pocket):
    request = EditRequest("Edward Matthew Ward", "{} was born in", "Boston", "London", (), NEIGHBORS)
    settings = editor_row("memit").preset("pocket-gpt2").settings
    return run_edit(pocket, [request], EditPlan("memit", settings, StopSettings(iterations=1, stop="none")))


@pytest.fixture
def stored(tab, run):
    kept = StoredRun(run)
    tab.runs.add(kept)
    return kept


def values(tab, run, by):
    view = tab.view
    return {tab.history: [run.id], view.case: 0, view.k: 1, view.log: False, view.drift_by: by} | {
        widget: "" for widget in (view.state, view.text, view.order)
    }


def said(figure):
    return " ".join(note.text for note in figure.layout.annotations)


def test_the_chart_has_every_neighbor_at_its_distance(run):
    distances = {NEIGHBORS[0].prompt: 0.25, NEIGHBORS[1].prompt: 0.75}
    figure = charts.drift_by_distance(run, 0, 1, distances, "<letters>")
    before, now = run.probes_at(0, 0), run.probes_at(1, 0)
    here = now["kind"] == "neighbor"
    change = dict(zip(now["prompt"][here], (now["p_true"] - before["p_true"])[here], strict=True))
    drawn = {x: y for trace in figure.data for x, y in zip(trace.x, trace.y, strict=True)}
    assert drawn == {distances[prompt]: pytest.approx(value) for prompt, value in change.items()}
    assert "&lt;letters&gt;" in figure.layout.xaxis.title.text
    assert {trace.name for trace in figure.data} <= {"neighbor kept", "neighbor lost"}


def test_a_lost_neighbor_is_marked(run):
    probes = run.probes.copy()
    lost = (probes["k"] == 1) & (probes["prompt"] == NEIGHBORS[1].prompt)
    probes.loc[lost, "hit_true"] = 0.0
    before = (probes["k"] == 0) & (probes["kind"] == "neighbor")
    probes.loc[before, "hit_true"], probes.loc[before, "logp_new"] = 1.0, -99.0
    changed = type(run)(**{**vars(run), "probes": probes})
    figure = charts.drift_by_distance(changed, 0, 1, {probe.prompt: 0.5 for probe in NEIGHBORS}, "letters")
    crossed = next(trace for trace in figure.data if trace.name == "neighbor lost")
    assert (crossed.marker.symbol, "N2" in crossed.text) == ("x", True)


def test_an_empty_chart_says_what_to_do(run):
    alone = type(run)(**{**vars(run), "probes": run.probes[run.probes["kind"] == "edit"]})
    assert "Add neighbors" in said(charts.drift_by_distance(alone, 0, 1, {}, "letters"))
    assert "look at the fact again" in said(charts.drift_by_distance(run, 0, 1, {}, "letters"))


def test_distances_are_measured_when_they_are_asked_for(tab, run, stored):
    drawn = tab.on_view(values(tab, run, NEIGHBOR))[tab.view.drift]
    assert "by distance" not in drawn.layout.title.text
    list(tab.on_look(values(tab, run, NEIGHBOR)))
    assert stored.distances == {}
    assert "One moment" in said(tab.on_view(values(tab, run, DISTANCE))[tab.view.drift])
    shown = list(tab.on_look(values(tab, run, DISTANCE)))[-1]
    assert set(stored.distances[0]) == {probe.prompt for probe in NEIGHBORS}
    assert all(0 < distance < 2 for distance in stored.distances[0].values())
    assert "mean hidden state of pocket-gpt2" in shown[tab.view.drift].layout.xaxis.title.text
    assert shown[tab.view.drift] == tab.on_view(values(tab, run, DISTANCE))[tab.view.drift]
    assert not any(
        isinstance(more, dict) and tab.view.drift in more for more in tab.on_look(values(tab, run, DISTANCE))
    )


def test_without_the_model_the_chart_says_so(tab, run, stored, monkeypatch):
    monkeypatch.setattr(tab, "host", ModelHost())
    shown = list(tab.on_look(values(tab, run, DISTANCE)))[-1]
    assert "Load the model" in said(shown[tab.view.drift])
    assert stored.distances == {}


def test_a_new_run_keeps_the_kind_of_drift_chosen(tab, stored):
    shown = result_view.show_run(tab.view, stored, ("a", "b"), False, DISTANCE)
    assert "One moment" in said(shown[tab.view.drift])
    assert tab.view.drift_by not in shown


def fact(tab, prompt):
    form = tab.form
    return {form.subject: "Somebody", form.prompt: prompt, form.old: "", tab.header.model: "pocket-gpt2"}


def test_suggest_says_what_it_used(tab):
    shown = list(tab.on_suggest(fact(tab, "{} plays in the position of")))[-1]
    message = shown[tab.progress.message]
    assert "Relation: sports position, found by the nearest wording" in message
    assert "No sentence encoder could be loaded" in message
    assert len(shown[tab.form.neighbors]) == 10
    assert len(shown[tab.form.paraphrases]) == 4


def test_suggest_without_a_loaded_model_uses_no_encoder(tab, monkeypatch):
    monkeypatch.setattr(tab, "host", ModelHost())
    (shown,) = tab.on_suggest(fact(tab, "{} was born in"))
    assert "drawn at random" in shown[tab.progress.message]
    (refused,) = tab.on_suggest(fact(tab, "{} plays in the position of"))
    assert "No bundled relation fits" in refused[tab.progress.message]
    assert not tab.host.is_loaded("pocket-gpt2")


@pytest.mark.browser
def test_the_radio_switches_the_chart_and_later_edits_keep_it(opening, page):
    expect = pytest.importorskip("playwright.sync_api").expect
    from scripts.screenshot import run_example

    sheet = opening(page.local_url)
    run_example(sheet, 1)
    sheet.locator("#drift-by label", has_text=DISTANCE).click()
    axis = sheet.locator("#plot-drift .xtitle")
    expect(axis).to_contain_text("mean hidden state of pocket-gpt2", timeout=60_000)
    sheet.locator("#k input[type=number]").fill("0")
    sheet.locator("#k input[type=number]").press("Enter")
    expect(axis).to_contain_text("1 - cosine")
    sheet.locator("#drift-by label", has_text=NEIGHBOR).click()
    expect(axis).to_have_count(0)
