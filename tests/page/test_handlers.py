"""Handlers: what the form refuses and in which words, what the stores keep, what views show."""

import json
import threading
import warnings
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pandas as pd
import pytest
from gradio_client import Client

import app
from components import edit_form, header, progress_view, result_html, result_view, runs_view
from components.edit_form import Asking
from components.files import Files
from components.jobs import Jobs
from components.run_store import RunStore, StoredRun
from editing_core import charts
from editing_core.bench.desk import Desk, Limits
from editing_core.data.examples import example
from editing_core.editors.assist import Assist
from editing_core.editors.stopping import StopSettings
from editing_core.registry import EDITORS, editor_row
from editing_core.runs.record import EditPlan
from editing_core.runs.tables import Finished
from editing_core.session import look, run_edit
from editing_core.types import EditRequest, Probe, Step


@pytest.fixture(scope="module")
def run(pocket):
    request = EditRequest(
        "Edward Matthew Ward",
        "{} was born in",
        "Boston",
        "London",
        ("The birthplace of Edward Matthew Ward is",),
        (Probe("Birthplace of Bernard Cornwell:", "London"),),
    )
    plan = EditPlan(
        "memit", editor_row("memit").preset("pocket-gpt2").settings, StopSettings(iterations=2, stop="none")
    )
    return run_edit(pocket, [request], plan)


@pytest.fixture(scope="module")
def client(page):
    return Client(page.local_url, verbose=False)


@pytest.mark.parametrize(
    ("fact", "sentence"),
    [
        ({"prompt": "no place for it"}, "exactly one is needed"),
        ({"subject": ""}, "The subject is empty"),
        ({"new": "London"}, "equals the old one"),
        ({"subject": "Zoë"}, "plain English letters only"),
        ({"new": "<b>Boston</b>"}, "markup"),
        ({"seed": -1}, "The seed is -1"),
        ({"seed": None}, "seed is empty"),
    ],
)
def test_what_cannot_be_edited_is_refused_in_one_sentence(client, saying, output_of, tab, fact, sentence):
    message = output_of(client.predict(**saying(**fact), api_name="/edit"), tab.progress.message)
    assert sentence in message
    assert "Traceback" not in message


def test_an_edit_shows_verdict_charts_and_downloads(client, saying, output_of, tab):
    done = client.predict(**saying(), api_name="/edit")
    assert "Done in" in output_of(done, tab.progress.line)
    outputs = client.predict(api_name="/shown")
    assert "Boston" in output_of(outputs, tab.view.verdict, "shown")
    for plot in (tab.view.probabilities, tab.view.perplexity, tab.view.next_token, tab.view.metrics, tab.view.loss):
        assert output_of(outputs, plot, "shown")["data"]
    whole = output_of(outputs, tab.view.whole, "shown")
    with open(whole, encoding="utf-8") as file:
        assert json.load(file)["editor"] == "memit"


def test_every_example_fills_the_form(tab):
    for name in tab.form.chips:
        shown = tab.on_example(name, {tab.header.model: "pocket-gpt2"})
        assert shown[tab.form.subject]
        assert shown[tab.settings.editor] in EDITORS
        widgets = tab.settings.widgets[shown[tab.settings.editor]]
        for setting, value in example(name).settings.items():
            assert shown[widgets[setting]] == value


def test_every_setting_of_every_editor_has_a_widget(tab):
    for name, widgets in tab.settings.widgets.items():
        assert set(widgets) == set(EDITORS[name].settings_class.__dataclass_fields__)


def test_the_store_keeps_no_more_than_it_may(run):
    store = RunStore(capacity=2)
    ids = []
    for _ in range(3):
        stored = StoredRun(type(run)(**{**vars(run), "id": f"id{len(ids)}"}))
        ids.append(store.add(stored))
        store.files(stored)
    assert len(store) == 2
    assert store.get(ids[0]) is None
    assert store.get(ids[2]) is not None


def test_the_store_keeps_no_more_bytes_than_it_may(run):
    size = StoredRun(run).size
    assert size == sum(t.nbytes for delta in run.deltas for t in delta.tensors().values()) > 0
    store = RunStore(room=2 * size)
    for name in ("a", "b", "c"):
        store.add(StoredRun(replace(run, id=name)))
    assert [store.get(name) is not None for name in ("a", "b", "c")] == [False, True, True]
    small = RunStore(room=1)
    small.add(StoredRun(run))
    assert small.get(run.id) is not None  # the newest stays, whatever it takes


def test_work_that_takes_longer_than_the_page_gives_is_refused():
    def endless(watch):
        while True:
            watch(Step("train", 1, 2))

    job = Jobs(limit=0.05).start(endless)
    job.wait(20)
    assert job.done
    assert "stopped after 0.05 seconds" in str(job.error)
    quick = Jobs(limit=1000.0).start(lambda watch: watch(Step("train", 1, 2)) or "done")
    quick.wait(20)
    assert quick.result == "done"


def test_only_a_public_page_has_a_limit(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        public = app.assemble(desk=Desk(tmp_path, Limits())).edit
        assert public.jobs.limit == app.PATIENCE
        assert app.assemble(desk=Desk(tmp_path)).edit.jobs.limit is None


def test_a_slow_reader_loses_the_oldest_steps_only():
    job = Jobs().start(lambda watch: [watch(Step("optimise", i, 1000, round=1)) for i in range(1000)])
    job.wait()
    steps = [step for steps in job.updates() for step in steps]
    assert steps[-1].done == 999
    assert len(steps) < 1000


def test_that_work_was_stopped_is_said_only_when_it_has_ended():
    jobs, slow = Jobs(), threading.Event()
    job = jobs.start(lambda _watch: slow.wait(20))
    told = job.updates(every=0.01)
    next(told)
    stopping = threading.Thread(target=job.stop)
    stopping.start()
    while not job.stopped:
        pass
    threading.Timer(0.3, slow.set).start()
    assert list(told) == []
    assert slow.is_set()
    assert job.done
    stopping.join()


def test_work_stopped_before_its_turn_is_never_done():
    jobs, gate, done = Jobs(), threading.Event(), []
    first, second = jobs.start(lambda _watch: gate.wait(10)), jobs.start(lambda _watch: done.append("second"))
    second.stop()
    gate.set()
    first.wait()
    jobs.thread.call(lambda: done.append("third"))
    assert second.stopped
    assert done == ["third"]


def test_models_compute_in_one_thread_and_errors_come_back():
    thread = Jobs().thread
    assert thread.call(threading.get_ident) == thread.call(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 / 0)


def test_a_job_that_fails_keeps_its_error():
    job = Jobs().start(lambda _watch: 1 / 0)
    job.wait()
    assert isinstance(job.error, ZeroDivisionError)


def test_texts_from_outside_are_escaped():
    left, right = result_html.diff_html("a <b>", "a <script>")
    assert "<b>" not in left
    assert "<mark>&lt;script&gt;</mark>" in right
    assert "<i>" not in progress_view.error_html("<i>")


def test_neighbor_rows_survive_the_way_there_and_back():
    probes = (Probe("Birthplace of Bernard Cornwell:", "London", "Bernard Cornwell"), Probe("It lies in", "Rome"))
    assert edit_form.read_neighbors(edit_form.neighbor_rows(probes)) == probes
    assert edit_form.read_neighbors([["", "", ""]]) == ()
    assert edit_form.read_paraphrases("nonsense") == ()


@pytest.mark.parametrize(
    ("value", "text"), [(0.98765, "0.988"), (12345.6, "12,346"), (3.2e9, "3.20 · 10<sup>9</sup>"), (0.0, "0")]
)
def test_numbers_have_three_digits_and_powers_of_ten(value, text):
    assert result_html.number(value) == text


def test_neighbors_stand_as_the_model_and_the_assistance_have_it(pocket):
    form = SimpleNamespace(neighbors="neighbors", facts="facts", together="together", standing="standing")
    known, unknown = ["Birthplace of Bernard Cornwell:", "London", "Bernard Cornwell"], ["It lies in", "Rome", ""]
    values = {"neighbors": [known, unknown, [*known[:2], ""]], "facts": (), "together": True}
    shown = edit_form.stand(pocket, values, form, Asking())["standing"]
    assert shown.count("known") == 3
    assert "assists" not in shown
    shown = edit_form.stand(pocket, values, form, Asking(Assist(neighbors="na")))["standing"]
    first, second, third = shown.split("<li>")[1:4]
    assert "assists the edit" in first
    assert "not known now" in second
    assert "enter the subject" in third
    assisted, only = Asking(Assist(neighbors="na")), {**values, "neighbors": [unknown]}
    alone = edit_form.stand(pocket, only, form, assisted)["standing"]
    assert "No neighbor assists" in alone
    half = edit_form.stand(pocket, {**values, "neighbors": [["a prompt", "", ""]]}, form, Asking())["standing"]
    assert "is empty" in half


def test_the_papers_rows_stand_beside_a_run_where_there_are_any(run):
    assert "has no rows for pocket-gpt2 with memit" in result_html.run_paper_html(run)
    shown = result_html.run_paper_html(replace(run, model="gpt2-xl"))
    assert "1,000 CounterFact edits at once" in shown
    assert shown.count("<tr>") == 7


def test_a_case_list_escapes_and_says_when_nothing_fits(run):
    cases = run.cases.assign(prompt="<b>x</b>", reason="'\"<")
    assert "<b>x" not in result_html.cases_html(cases)
    assert "No record fits" in result_html.cases_html(cases.head(0))
    choice = result_view.CaseChoice(state="collapsed")
    assert "No record fits" in choice.html(run, 1)
    assert "case-table" in result_view.CaseChoice(order="p_new").html(run, 1)
    assert "Nothing is edited" in choice.html(run, 0)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_every_chart_draws_every_iteration(pocket, run, k):
    looks = tuple(look(pocket, run.requests[0].full_prompt, run.delta_at(at), 3) for at in (0, k))
    figures = charts.all_figures(run, 0, k, looks)
    for title, figure in figures.items():
        assert figure.layout.height, title
        assert len(figure.data) or (k == 0 and title == "Target optimisation"), title
        assert {trace.type for trace in figure.data} <= {"bar", "scatter", "heatmap"}
    assert result_html.table_html(run, k).count("<tr") == 4


def test_the_forms_handlers_do_not_read_the_slider(tab):
    """A press while a longer run ends would send a k beyond the new run's end, which Gradio refuses."""
    assert tab.view.k not in tab.inputs()
    assert tab.view.k in tab.view.inputs


def test_downloads_are_bounded_and_the_oldest_leaves_first():
    files = Files(kept=2)
    places = [files.place("table.csv") for _ in range(3)]
    assert [place.parent.exists() for place in places] == [False, True, True]
    assert len({place.parent for place in places}) == 3


def test_large_downloads_leave_for_the_next(monkeypatch):
    monkeypatch.setattr("components.files.MOST", 10)
    files = Files()
    first = files.place("run.zip")
    first.write_bytes(bytes(11))
    second = files.place("run.zip")
    assert (first.exists(), second.parent.exists()) == (False, True)


def test_a_case_of_a_model_that_is_not_on_offer_leaves_the_page_as_it_is(tab, run):
    stranger = replace(run, model="gpt-j-6b-of-another-host")
    shown = tab.show_case({tab.header.model: "pocket-gpt2", tab.history: []}, stranger)
    assert shown[tab.header.model] == "pocket-gpt2"
    assert "not on offer here" in shown[tab.progress.line]
    assert shown[tab.form.subject] == "Edward Matthew Ward"
    assert shown[tab.history] == [stranger.id]


def test_a_public_page_offers_no_model_that_fills_its_host():
    with gr.Blocks():
        assert header.build(200e6).names == ("pocket-gpt2", "pocket-llama", "pocket-gptj", "pocket-gpt2-reader", "gpt2")
        assert "gpt-j-6b" in header.build().names


def test_a_run_that_has_only_begun_is_not_shown_as_a_result():
    begun = Finished("id", "a run", "m", "memit", "off", "d", "batch", 0, 3, 0, pd.DataFrame({"k": [0]}))
    with gr.Blocks():
        view = runs_view.build("some", "Nothing yet.")
        shown = runs_view.show(view, [begun], {widget: None for widget in view.inputs})
    assert "Nothing yet." in shown[view.table]
    assert "<table" not in shown[view.table]
