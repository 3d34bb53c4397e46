"""What leaves the page and comes back: link, Python, command, files and sessions."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from components.edit_tab import stacked
from components.export_view import KINDS, SHOWN, STACK
from components.run_store import StoredRun
from editing_core.editors.stopping import StopSettings
from editing_core.registry import editor_row
from editing_core.runs.record import Base, EditPlan
from editing_core.session import run_edit
from editing_core.share import Case
from editing_core.stack import Stack, Timeline
from editing_core.types import EditRequest

NAMES = {kind: name for name, kind in KINDS.items()}


@pytest.fixture(scope="module")
def run(pocket):
    plan = EditPlan("memit", editor_row("memit").preset("pocket-gpt2").settings, StopSettings(1, "none"), seed=3)
    return run_edit(pocket, [EditRequest("Edward Matthew Ward", "{} was born in", "Boston", "London")], plan)


@pytest.fixture
def shown(assembled, run):
    """The page's values with the run on show and in the stack, switched on."""
    tab, export = assembled.edit, assembled.export
    tab.runs.add(StoredRun(run))
    line = Timeline(Stack().add(tab.shelf.add(stacked(run))))
    chosen = {export.kind: NAMES["adapter"], export.what: SHOWN, export.rank: 0, export.bring: None}
    return {tab.history: [run.id], tab.stack: line, tab.header.model: "pocket-gpt2", **chosen}


def test_what_is_on_show_is_shared_as_it_was_made(assembled, shown, run):
    take = assembled.take
    told = take.on_show(shown)
    case = Case.of_text(told[take.text])
    assert (case.model, case.requests, case.plan) == (run.model, run.requests, run.plan)
    assert "run_edit" in told[take.python]
    assert told[take.command].startswith("python -m editing_core edit")
    assert told[take.message] == ""


def test_an_edit_made_on_others_says_that_the_link_repeats_it_alone(assembled, pocket, run):
    on_top = run_edit(pocket, run.requests, run.plan, base=Base(run.delta_at(1), (run.id,)))
    assembled.edit.runs.add(StoredRun(on_top))
    told = assembled.take.on_show({assembled.edit.history: [on_top.id]})
    assert "on top of others" in told[assembled.take.message]


def opened(take, text):
    return take.on_link(SimpleNamespace(query_params={"case": text} if text else {}))


def test_a_link_fills_the_form_and_runs_nothing(assembled, run):
    tab, case = assembled.edit, Case(run.model, run.requests, run.plan)
    told = opened(assembled.take, case.to_text())
    assert told[tab.form.subject] == "Edward Matthew Ward"
    assert told[tab.settings.seed] == 3
    assert tab.history not in told
    assert "press Edit" in told[tab.progress.message]
    assert opened(assembled.take, "") == {tab.progress.message: ""}


@pytest.mark.parametrize("text", ["AAAA", "../../etc", "x" * 20_000])
def test_a_hostile_link_is_one_sentence_and_leaves_the_form_alone(assembled, text):
    told = opened(assembled.take, text)
    assert list(told) == [assembled.edit.progress.message]
    assert "es-error" in told[assembled.edit.progress.message]


def test_a_link_to_a_model_that_is_not_offered_is_refused(assembled, run, monkeypatch):
    monkeypatch.setattr(assembled.edit, "header", replace(assembled.edit.header, open=False))  # as a public page has it
    told = opened(assembled.take, Case("some/model", run.requests, run.plan).to_text())
    assert "Unknown model" in told[assembled.edit.progress.message]


def made(export, values):
    *_, told = export.on_make(values)
    return told[export.message], told[export.file].value


def test_an_edit_leaves_as_a_checked_file_and_comes_back_into_the_stack(assembled, shown, run):
    tab, export = assembled.edit, assembled.export
    message, file = made(export, {**shown, export.kind: NAMES["edit"]})
    assert "logits differ by at most" in message
    told = export.on_bring({**shown, export.bring: file["path"] if isinstance(file, dict) else file})
    ids = told[tab.stack].now.ids
    assert len(ids) == 2
    back = tab.shelf.having(ids)[ids[1]]
    assert back.requests[0].subject == "Edward Matthew Ward"
    assert back.delta.tensors().keys() == run.delta_at(1).tensors().keys()


def test_a_session_leaves_and_comes_back(assembled, shown):
    tab, export = assembled.edit, assembled.export
    message, file = made(export, {**shown, export.kind: NAMES["session"]})
    assert "1 edits with their switches" in message
    told = export.on_bring(
        {**shown, tab.stack: Timeline(), export.bring: file["path"] if isinstance(file, dict) else file}
    )
    assert len(told[tab.stack].now.on) == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rank": -1}, "allowed are whole numbers"),
        ({"history": []}, "No edit is on show"),
        ({"what": STACK, "stack": Timeline()}, "Nothing in the stack is on"),
        ({"kind": NAMES["session"], "stack": Timeline()}, "no edit to save"),
    ],
)
def test_what_cannot_leave_is_said(assembled, shown, changes, sentence):
    export, tab = assembled.export, assembled.edit
    widgets = {
        "rank": export.rank,
        "history": tab.history,
        "what": export.what,
        "stack": tab.stack,
        "kind": export.kind,
    }
    message, _ = made(export, {**shown, **{widgets[name]: value for name, value in changes.items()}})
    assert sentence in message


def test_files_that_are_no_edits_are_refused_and_the_stack_stays(assembled, shown, tmp_path):
    export, tab = assembled.export, assembled.edit
    for name, text in (("a.safetensors", b"hello"), ("b.zip", b"PK"), ("c.bin", b"x")):
        (tmp_path / name).write_bytes(text)
        told = export.on_bring({**shown, export.bring: str(tmp_path / name)})
        assert "es-error" in told[export.message]
        assert told[tab.stack] is shown[tab.stack]


def test_visitors_of_a_public_page_get_no_whole_models(assembled, shown, monkeypatch):
    monkeypatch.setattr(assembled.export, "public", True)
    message, _ = made(assembled.export, {**shown, assembled.export.kind: NAMES["merged"]})
    assert "not made for visitors" in message
