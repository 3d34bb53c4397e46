"""The page's edit stack: what edits, switches and buttons make of it, and that the next edit stands on what is on."""

import gradio as gr
import pytest

from components import stack_view
from components.edit_tab import stacked
from components.shelf import EditShelf
from components.stack_panel import NOTHING
from editing_core.editors.stopping import StopSettings
from editing_core.models.delta import LowRank, WeightDelta
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import run_edit
from editing_core.stack import Stack, StackedEdit, Timeline
from editing_core.types import EditRequest, Probe

FACTS = [
    EditRequest(
        "Edward Matthew Ward",
        "{} was born in",
        "Boston",
        "London",
        (),
        (Probe("Birthplace of Bernard Cornwell:", "London"),),
    ),
    EditRequest("Edward Matthew Ward", "{} was born in", "Paris", "London"),
]


@pytest.fixture(scope="module")
def runs(pocket):
    plan = EditPlan("memit", editor_row("memit").preset("pocket-gpt2").settings, StopSettings(2, "none"))
    return [run_edit(pocket, [fact], plan) for fact in FACTS]


@pytest.fixture
def panel(assembled):
    return assembled.stack


@pytest.fixture
def ids(panel, runs):
    return [panel.edit.shelf.add(stacked(run)) for run in runs]


def held(panel, line=None, **more):
    """What the stack's widgets hold, with some of it changed."""
    view = panel.view
    usual = {
        view.on: [],
        view.keep: False,
        view.chosen: None,
        view.note: "",
        view.first: [],
        view.second: [],
        view.prompts: "",
        panel.edit.settings.chat: "none",
        panel.edit.settings.editor: "memit",
    }
    own = {panel.edit.stack: line or Timeline(), panel.edit.made: "", panel.edit.header.model: "pocket-gpt2"}
    return {
        **usual,
        **own,
        **{
            getattr(view, name) if hasattr(view, name) else getattr(panel.edit, name): value
            for name, value in more.items()
        },
    }


def test_a_finished_edit_comes_on_top_switched_off_unless_wanted(panel, ids):
    shown = panel.on_made(held(panel, made=ids[0]))
    assert [(e.id, e.on) for e in shown[panel.edit.stack].now.entries] == [(ids[0], False)]
    shown = panel.on_made(held(panel, shown[panel.edit.stack], made=ids[1], keep=True))
    assert [(e.id, e.on) for e in shown[panel.edit.stack].now.entries] == [(ids[0], False), (ids[1], True)]
    again = panel.on_made(held(panel, shown[panel.edit.stack], made=ids[1]))
    assert again[panel.edit.stack] is shown[panel.edit.stack]


def test_switches_notes_and_buttons_change_it_and_can_be_undone(panel, ids):
    line = Timeline(Stack().add(ids[0]).add(ids[1]))
    for act, check in (
        (lambda v: panel.on_switch({**v, panel.view.on: [ids[1]]}), lambda s: s.on == (ids[1],)),
        (
            lambda v: panel.on_note({**v, panel.view.chosen: ids[0], panel.view.note: "first"}),
            lambda s: s.entries[0].note == "first",
        ),
        (lambda v: panel.on_act("later", {**v, panel.view.chosen: ids[0]}), lambda s: s.ids == (ids[1], ids[0])),
        (lambda v: panel.on_act("remove", {**v, panel.view.chosen: ids[1]}), lambda s: s.ids == (ids[0],)),
    ):
        line = act(held(panel, line))[panel.edit.stack]
        assert check(line.now)
    for _ in range(4):
        line = panel.on_act("undo", held(panel, line))[panel.edit.stack]
    assert line.now == Stack().add(ids[0]).add(ids[1])
    assert panel.on_act("redo", held(panel, line))[panel.edit.stack].now.on == (ids[1],)


def test_a_wrong_note_is_refused_and_nothing_is_lost(panel, ids):
    line = Timeline(Stack().add(ids[0]))
    shown = panel.on_note(held(panel, line, chosen=ids[0], note="<b>loud</b>"))
    assert "markup" in shown[panel.edit.progress.message]
    assert shown[panel.edit.stack] is line
    assert "not in the stack" in panel.on_act("remove", held(panel, line, chosen=None))[panel.edit.progress.message]


def test_it_shows_conflicts_and_edits_that_lost_their_ground(panel, ids):
    shown = panel.on_stack(held(panel, Timeline(Stack().add(ids[0]).add(ids[1]))))
    assert "both write Edward Matthew Ward" in shown[panel.view.about]
    on_top = StackedEdit("above", WeightDelta(), FACTS[:1], "pocket-gpt2", "r", (ids[0],), "MEMIT")
    edits = {**panel.edit.shelf.having(ids), "above": on_top}
    told = stack_view.about_html(Stack().add(ids[0]).switch(ids[0], False).add("above"), edits)
    assert "made on top of edits that are not on now" in told
    assert "made on 1" in stack_view.label(Stack().add(ids[0]).add("above"), edits, 1)


def test_two_states_are_compared_on_the_facts_or_on_own_prompts(panel, ids):
    line = Timeline(Stack().add(ids[0]))
    *_, shown = panel.on_compare(held(panel, line, first=[], second=[ids[0]]))
    html = shown[panel.view.compared]
    assert "model ready" in shown[panel.edit.header.state]
    assert "≠ Edward Matthew Ward was born in" in html
    assert "Boston" in html
    *_, shown = panel.on_compare(
        held(panel, line, first=[ids[0]], second=[ids[0]], prompts="Birthplace of Bernard Cornwell:")
    )
    assert "0 of 1 prompts have another first choice" in shown[panel.view.compared]
    *_, shown = panel.on_compare(held(panel, first=[], second=[]))
    assert NOTHING in shown[panel.view.compared]
    *_, shown = panel.on_compare(held(panel, line, prompts="Zoë"))
    assert "plain English letters" in shown[panel.view.compared]


def test_the_next_edit_stands_on_what_is_on(panel, ids, runs, tab):
    base = panel.edit.shelf.base(Stack().add(ids[0]), "pocket-gpt2")
    assert base.ids == (ids[0],)
    assert base.delta.updates.keys() == runs[0].delta_at(runs[0].chosen).updates.keys()
    assert not panel.edit.shelf.base(Stack().add(ids[0]).switch(ids[0], False), "pocket-gpt2").ids
    assert not panel.edit.shelf.base(Stack().add(ids[0]), "gpt2").ids
    assert tab.stack in tab.inputs()


def test_undo_takes_the_edit_out_of_the_stack_too(ids, tab):
    line = Timeline(Stack().add(ids[0]).add(ids[1]))
    shown = tab.on_undo({tab.history: [ids[0], ids[1]], tab.stack: line})
    assert shown[tab.stack].now.ids == (ids[0],)


def test_the_shelf_is_bounded_and_what_left_counts_as_off(runs):
    def edit(name):
        return StackedEdit(
            name,
            WeightDelta(
                {"w": LowRank(*[runs[0].delta_at(1).tensors()[k] for k in list(runs[0].delta_at(1).tensors())[:2]])}
            ),
            (),
            "m",
            "r",
        )

    size = edit("x").delta.size
    shelf = EditShelf(room=2 * size)
    for name in "abc":
        shelf.add(edit(name))
    assert list(shelf.having("abc")) == ["b", "c"]
    stack = Stack().add("a").add("b")
    assert shelf.base(stack, "m").ids == ("b",)
    assert "no longer kept" in stack_view.label(stack, shelf.having(stack.ids), 0)


def test_texts_in_the_stack_are_escaped():
    edit = StackedEdit("a", WeightDelta(), (), "m", "r", origin="x & y")
    assert "&amp;" not in stack_view.label(Stack().add("a"), {"a": edit}, 0)  # the widget escapes by itself
    other = StackedEdit("b", WeightDelta(), (EditRequest("A & B", "{} is", "c"),), "m", "r")
    twice = {"a": StackedEdit("a", WeightDelta(), (EditRequest("A & B", "{} is", "d"),), "m", "r"), "b": other}
    assert "A &amp; B" in stack_view.about_html(Stack().add("a").add("b"), twice)


def test_nothing_is_switched_on_in_an_empty_stack(panel):
    shown = panel.on_stack(held(panel))
    assert shown[panel.view.about] == stack_view.EMPTY
    assert isinstance(shown[panel.view.on], gr.CheckboxGroup)
