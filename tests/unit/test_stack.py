"""The edit stack: switches, order, undo and redo as values."""

from dataclasses import replace

import pytest
import torch

from editing_core.errors import BadRequest
from editing_core.models.delta import LowRank, WeightDelta
from editing_core.stack import MOST, MOST_STEPS, NOTE, Stack, StackedEdit, Timeline, conflicts
from editing_core.types import EditRequest


def delta(value):
    return WeightDelta({"w": LowRank(torch.full((2, 1), float(value)), torch.ones(1, 3))})


def edit(name, value=1.0, *requests):
    return StackedEdit(name, delta(value), requests, "pocket-gpt2", "local")


def fact(subject, prompt, new, **more):
    return EditRequest(subject, prompt, new, **more)


@pytest.fixture
def three():
    return Stack().add("a").add("b").add("c")


def test_a_new_edit_is_on_and_on_top(three):
    assert three.ids == three.on == ("a", "b", "c")


def test_only_what_is_on_is_added(three):
    edits = {name: edit(name, value) for name, value in (("a", 1), ("b", 10), ("c", 100))}
    found = three.switch("b", False).delta(edits).updates["w"].dense()
    assert torch.equal(found, torch.full((2, 3), 101.0))
    assert not three.only(()).delta(edits).updates
    assert torch.equal(
        three.switch("b", False).switch("b", True).delta(edits).updates["w"].dense(), torch.full((2, 3), 111.0)
    )


def test_a_change_leaves_the_stack_it_came_from_alone(three):
    before = three.entries
    three.switch("a", False), three.move("a", 2), three.remove("b"), three.note("c", "why")
    assert three.entries == before


@pytest.mark.parametrize(
    ("name", "by", "order"),
    [("a", 1, "bac"), ("c", -1, "acb"), ("a", 99, "bca"), ("a", -5, "abc"), ("b", 0, "abc")],
)
def test_an_edit_moves_within_the_stack(three, name, by, order):
    assert "".join(three.move(name, by).ids) == order


def test_moving_keeps_switch_and_note(three):
    moved = three.switch("a", False).note("a", " mine ").move("a", 1)
    assert [(e.id, e.on, e.note) for e in moved.entries] == [("b", True, ""), ("a", False, "mine"), ("c", True, "")]


def test_what_cannot_be_done_is_said(three):
    with pytest.raises(BadRequest, match="in the stack already"):
        three.add("a")
    for change in (
        lambda: three.remove("z"),
        lambda: three.switch("z", True),
        lambda: three.note("z", ""),
        lambda: three.move("z", 1),
    ):
        with pytest.raises(BadRequest, match="not in the stack any more"):
            change()
    with pytest.raises(BadRequest, match="markup"):
        three.note("a", "<script>")
    with pytest.raises(BadRequest, match="at most 200"):
        three.note("a", "x" * (NOTE + 1))
    full = Stack()
    for number in range(MOST):
        full = full.add(str(number))
    with pytest.raises(BadRequest, match=f"at most {MOST}"):
        full.add("one more")


def test_undo_and_redo_give_back_the_same_values(three):
    line = Timeline()
    states = [Stack(), Stack().add("a"), Stack().add("a").add("b"), Stack().add("a").add("b").switch("a", False)]
    for state in states[1:]:
        line = line.to(state)
    for state in reversed(states[:-1]):
        line = line.undo()
        assert line.now == state
    assert line.undo() is line
    for state in states[1:]:
        line = line.redo()
        assert line.now == state
    assert line.redo() is line
    assert line.undo().to(three).redo().now == three  # a change forgets what could be redone


def test_a_change_that_changes_nothing_is_no_step(three):
    line = Timeline(three)
    assert line.to(three.switch("a", True)) is line


def test_the_past_is_bounded():
    line = Timeline(Stack().add("a"))
    for number in range(2 * MOST_STEPS):
        line = line.to(line.now.switch("a", bool(number % 2)))
    assert len(line.past) == MOST_STEPS


def test_facts_about_the_same_thing_are_conflicts():
    edits = {
        "a": edit("a", 1, fact("Apple", "{} was founded in", "Rome"), fact("Paul Allen", "{} worked for", "Apple")),
        "b": edit("b", 1, fact("apple", "{}  was founded  in", "Paris")),
        "c": edit("c", 1, fact("Apple", "The founding place of {} is", "Rome")),
        "d": edit("d", 1, fact("Paul Allen", "{} worked for", "apple")),
    }
    stack = Stack()
    for name in edits:
        stack = stack.add(name)
    found = conflicts(stack, edits)
    assert [(c.first, c.second, c.objects, c.same) for c in found] == [
        ("a", "b", ("Rome", "Paris"), False),
        ("a", "d", ("Apple", "apple"), True),
    ]
    assert [c.second for c in conflicts(stack.switch("b", False), edits)] == ["d"]


def test_the_data_sets_relation_counts_where_wordings_differ():
    first = fact("Apple", "{} was founded in", "Rome", relation_id="P740")
    edits = {
        "a": edit("a", 1, first),
        "b": edit("b", 1, replace(first, prompt="The founding place of {} is", target_new="Paris")),
    }
    assert len(conflicts(Stack().add("a").add("b"), edits)) == 1


def test_facts_of_one_edit_are_no_conflict_with_themselves():
    first = fact("Apple", "{} was founded in", "Rome", relation_id="P740")
    edits = {"a": edit("a", 1, first, replace(first, prompt="The founding place of {} is"))}
    assert not conflicts(Stack().add("a"), edits)


def test_its_title_tells_the_first_fact_and_how_many_more():
    facts = [fact(name, "{} worked for", "Apple") for name in ("Paul Allen", "Ann", "Bob")]
    assert edit("a", 1, *facts).title == "Paul Allen worked for Apple (and 2 more)"
    assert StackedEdit("a", delta(1), (), "m", "r", origin="adapter x").title == "adapter x"
