"""Benchmark and Runs tabs in real browsers: one queue for everybody at a machine, own runs only on a public page."""

import time
import warnings
from contextlib import contextmanager

import pytest

pytest.importorskip("playwright")

from gradio_client import Client
from playwright.sync_api import expect

import app
from editing_core.bench.desk import Desk, Limits, new_key
from editing_core.bench.executors import Dispatcher, LocalProcesses, folders
from editing_core.bench.grid import grid_of
from editing_core.bench.runner import work_on
from editing_core.cli import run
from editing_core.runs.folder import CANCELLED, DONE, OPEN, RUNNING

pytestmark = pytest.mark.browser
SLOW = 120_000  # ms: a worker's start takes seconds where the processors are shared
QUICK = "[editor.memit]\nsettings = { steps = 4 }"


@contextmanager
def served(host, desk):
    """The page on a desk of its own, with somebody to work off its queue."""
    with warnings.catch_warnings(), Dispatcher(desk.root, LocalProcesses()) as dispatcher:
        warnings.simplefilter("ignore")
        parts = app.assemble(host, desk)
        stop = app.serve_queue(dispatcher)
        parts.page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **app.LAUNCH)
        try:
            yield parts.page.local_url
        finally:
            stop()
            parts.page.close()
            for folder in folders(desk.root):
                if folder.status in OPEN:
                    folder.cancel()


@pytest.fixture
def local(host, tmp_path):
    desk = Desk(tmp_path / "runs", uploads=tmp_path / "uploads")
    with served(host, desk) as url:
        yield desk, url


@pytest.fixture
def public(host, tmp_path):
    desk = Desk(tmp_path / "runs", Limits(edits=20, iterations=3, waiting=2), tmp_path / "uploads")
    with served(host, desk) as url:
        yield desk, url


@pytest.fixture
def visit(opening):
    """Opens a page at one of its tabs, in a browser of its own."""

    def visited(url, tab="Benchmark"):
        sheet = opening(url)
        show(sheet, tab)
        return sheet

    return visited


def show(sheet, tab):
    sheet.get_by_role("tab", name=tab, exact=True).click()
    sheet.locator({"Benchmark": "#bench-start", "Runs": "#runs-list", "Edit": "#edit"}[tab]).wait_for()


def start(sheet, edits=2, iterations=2, trials=1, more=QUICK):
    settings = sheet.locator("#bench-settings textarea")
    if not settings.is_visible():
        sheet.get_by_text("Stop rule, protocol").click()
    write(settings, more)
    for name, value in (("#bench-limit", edits), ("#bench-trials", trials), ("#bench-iterations", iterations)):
        box = sheet.locator(f"{name} input[type=number]")
        box.fill(str(value))
        box.press("Tab")
    sheet.locator("#bench-start").click()


def again(sheet):
    """Reload the page. A look that is underway then is broken off, which the console calls an error, so none may be."""
    show(sheet, "Edit")
    time.sleep(1)
    sheet.reload()
    show(sheet, "Benchmark")


def write(box, text):
    """Fill a box in; one that was unfolded a moment ago may yet be given its first value, so it is looked at again."""
    for _ in range(20):
        box.fill(text)
        time.sleep(0.3)
        if box.input_value() == text:
            return
    raise AssertionError(f"the box holds {box.input_value()!r}")


def drawn(sheet, plot):
    return sheet.locator(f"#plot-{plot} .js-plotly-plot").evaluate("p => p.data.map(t => t.y.length)")


def until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not (done := true()) and time.monotonic() < end:
        time.sleep(0.05)
    return done


@pytest.fixture
def finished(pocket, tmp_path):
    """A desk with two finished trials."""
    desk = Desk(tmp_path / "runs", uploads=tmp_path / "uploads")
    common = {"limit": 2, "iterations": 2, "stop": "none", "settings": {"steps": 4}}
    for folder in desk.enter("", grid_of({"trials": 2, "common": common})).runs:
        assert work_on(folder, lambda *_: pocket) == DONE
    return desk


@pytest.fixture
def site(host, finished):
    """The page on that desk. A fixture of its own, so that it outlives the browsers."""
    with served(host, finished) as url:
        yield url


@pytest.fixture
def opened(site, visit):
    """The Runs tab with both opened."""
    sheet = visit(site, "Runs")
    for trial in ("trial 0", "trial 1"):
        sheet.locator("#runs-list [role=gridcell]", has_text=trial).first.click()
        expect(sheet.locator("#runs-opened")).to_contain_text(trial)
    assert until(lambda: drawn(sheet, "runs-left") == [3, 3])
    return sheet


def test_one_queue_for_two_browsers_a_reloaded_page_and_the_command_line(local, visit, capsys):
    desk, url = local
    first = visit(url)
    start(first, trials=2)
    expect(first.locator("#bench-message")).to_contain_text("2 runs entered")
    expect(first.locator("#bench-queue .es-run")).to_have_count(2)
    again(first)  # at once, while both are still waiting or at work
    expect(first.locator("#bench-queue .es-run")).to_have_count(2)
    second = visit(url)
    assert run(["runs", "list", "--root", str(desk.root)]) == 0
    assert capsys.readouterr().out.count("memit, pocket-facts") == 2
    expect(first.locator("#bench-queue .es-run-done")).to_have_count(2, timeout=SLOW)
    assert until(lambda: drawn(first, "bench-left") == [3, 3])
    expect(first.locator("#bench-table tr.result")).to_have_count(1)
    expect(first.locator("#bench-table")).to_contain_text("mean of 2")
    start(first, trials=2)
    expect(first.locator("#bench-message")).to_contain_text("2 runs done before and not run again")
    show(second, "Runs")
    expect(second.locator("#runs-list")).to_contain_text("trial 1")


def test_runs_are_compared_and_taken_away(opened):
    opened.get_by_text("Differences between").click()
    expect(opened.locator("#runs-differences")).to_contain_text("independent")
    for number, ending in enumerate((".csv", ".tex", ".md", ".html")):
        with opened.expect_download() as found:
            opened.locator(f"#runs-take-{number}").click()
        assert found.value.suggested_filename.endswith(ending)
        assert len(found.value.path().read_bytes()) > 200
    opened.locator("#runs-take-4").click()
    expect(opened.locator("#runs-message")).to_contain_text("a bundle holds one")


def test_a_bundle_goes_out_and_comes_back(opened, finished, tmp_path):
    opened.locator("#runs-opened button[title='Remove item'], #runs-opened .token-remove").first.click()
    assert until(lambda: drawn(opened, "runs-left") == [3])
    with opened.expect_download() as found:
        opened.locator("#runs-take-4").click()
    bundle = tmp_path / "run.zip"
    found.value.save_as(bundle)
    with opened.expect_file_chooser() as chooser:
        opened.locator("#runs-import").click()
    chooser.value.set_files(bundle)
    expect(opened.locator("#runs-message")).to_contain_text("Imported")
    assert until(lambda: drawn(opened, "runs-left") == [3, 3])
    assert len(list(folders(finished.root))) == 3
    bundle.write_bytes(b"PK nothing")
    with opened.expect_file_chooser() as chooser:
        opened.locator("#runs-import").click()
    chooser.value.set_files(bundle)
    expect(opened.locator("#runs-message .es-error")).to_be_visible()
    assert len(list(folders(finished.root))) == 3


def test_a_case_opens_in_the_panels_of_the_edit_tab(opened):
    expect(opened.locator("#runs-cases")).to_contain_text("UnderEdit (1-2)")
    opened.locator("#runs-cases [role=gridcell]").first.click()
    expect(opened.get_by_role("tab", name="Edit", exact=True)).to_have_attribute("aria-selected", "true")
    expect(opened.locator("#verdict")).not_to_contain_text("No edit yet")
    expect(opened.locator("#subject input, #subject textarea")).not_to_have_value("")
    assert until(lambda: sum(drawn(opened, "probabilities")) > 0)
    assert until(lambda: sum(drawn(opened, "next_token")) > 0)
    box = opened.locator("#k input[type=number]")
    box.fill("1")
    box.press("Enter")
    expect(opened.locator("#generations")).to_contain_text("The weights of iteration 1 were not kept")


@pytest.mark.slow
def test_deletion_means_what_was_asked_about(opened, finished):
    opened.locator("#runs-opened .token-remove").first.click()
    assert until(lambda: drawn(opened, "runs-left") == [3])
    opened.locator("#runs-delete").click()
    expect(opened.locator("#runs-confirm")).to_contain_text("Delete this run for good?")
    opened.locator("#runs-list [role=gridcell]", has_text="trial 0").first.click()
    assert until(lambda: drawn(opened, "runs-left") == [3, 3])
    opened.locator("#runs-sure").click()
    expect(opened.locator("#runs-message")).to_contain_text("1 run deleted")
    assert [folder.head()["config"]["trial"] for folder in folders(finished.root)] == [0]


def test_deletion_asks_before(opened, finished):
    opened.locator("#runs-delete").click()
    expect(opened.locator("#runs-confirm")).to_contain_text("Delete these 2 runs for good?")
    opened.locator("#runs-keep").click()
    expect(opened.locator("#runs-confirm")).to_be_hidden()
    assert len(list(folders(finished.root))) == 2
    opened.locator("#runs-delete").click()
    opened.locator("#runs-sure").click()
    expect(opened.locator("#runs-message")).to_contain_text("2 runs deleted")
    assert list(folders(finished.root)) == []
    expect(opened.locator("#runs-count")).to_contain_text("There are no runs yet")


def test_cancel_keeps_what_was_finished_and_resume_goes_on(local, visit):
    desk, url = local
    sheet = visit(url)
    start(sheet, edits=30, iterations=8, more="[common]\nstop = 'none'")
    expect(sheet.locator("#bench-message")).to_contain_text("1 run entered")
    (folder,) = folders(desk.root)
    assert until(lambda: (folder.path / "iterations.csv").exists() and folder.status == RUNNING)
    asked = time.monotonic()
    sheet.locator("#bench-cancel").click()
    expect(sheet.locator("#bench-queue")).to_contain_text("cancelled", timeout=20_000)
    assert folder.status == CANCELLED
    assert time.monotonic() - asked < 10
    kept = len((folder.path / "iterations.csv").read_text().splitlines())
    sheet.locator("#bench-resume").click()
    expect(sheet.locator("#bench-message")).to_contain_text("1 run resumed")
    assert until(lambda: len((folder.path / "iterations.csv").read_text().splitlines()) > kept, 120)
    expect(sheet.locator("#bench-queue .es-run-running")).to_have_count(1)
    sheet.locator("#bench-cancel").click()
    assert until(lambda: folder.status == CANCELLED)


@pytest.mark.slow
def test_what_cannot_run_is_told_beside_the_button(local, visit):
    desk, url = local
    sheet = visit(url)
    start(sheet, edits=5000, more="")
    expect(sheet.locator("#bench-queue")).to_contain_text("5000 edits were asked for", timeout=SLOW)
    start(sheet, edits=2, more="[editor.memit]\nsettings = { steps = 4000 }")
    expect(sheet.locator("#bench-message")).to_contain_text("steps is 4000")
    start(sheet, edits=2, more="[common]\ntexts = '/etc/passwd'")
    expect(sheet.locator("#bench-message")).to_contain_text("only the command line reads")
    assert len(list(folders(desk.root))) == 1


def test_on_a_public_page_visitors_see_cancel_and_delete_their_own_runs_only(public, visit):
    desk, url = public
    ann, bob = visit(url), visit(url)
    start(ann)
    expect(ann.locator("#bench-message")).to_contain_text("1 run entered")
    (folder,) = folders(desk.root)
    show(bob, "Runs")
    expect(bob.locator("#runs-count")).to_contain_text("There are no runs yet")
    show(bob, "Benchmark")
    expect(bob.locator("#bench-queue .es-run")).to_have_count(0)
    start(bob, edits=21)
    expect(bob.locator("#bench-message")).to_contain_text("at most 20")
    start(bob, trials=3)
    expect(bob.locator("#bench-message")).to_contain_text("at most 2 may")
    assert len(list(folders(desk.root))) == 1
    client = Client(url, verbose=False)
    assert "None of these runs waits or goes on" in client.predict(new_key(), [folder.id], api_name="/bench_cancel")
    again(ann)
    expect(ann.locator("#bench-queue .es-run")).to_have_count(1)
    assert until(lambda: folder.status == DONE, 120)
    assert folder.path.exists()

    show(ann, "Runs")
    ann.get_by_text("Your key:").click()
    ann.locator("#runs-reveal").click()
    box = ann.locator("#runs-key input")
    assert until(lambda: len(box.input_value()) >= 32)
    show(bob, "Runs")
    bob.get_by_text("Your key:").click()
    write(bob.locator("#runs-key input"), box.input_value())
    bob.locator("#runs-use").click()
    expect(bob.locator("#runs-list")).to_contain_text("memit")
    write(bob.locator("#runs-key input"), "guessed")
    bob.locator("#runs-use").click()
    expect(bob.locator("#runs-message")).to_contain_text("key is missing or damaged")
