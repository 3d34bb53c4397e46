"""Fine-tuning on the page: recipes, switches, and the comparison of ingredients."""

import pytest

from components import ingredients
from components.ladder import Ladder, table_html
from editing_core.editors.recipes import LADDER
from editing_core.registry import editor_row
from tests.conftest import bit_equal, snapshot

MODEL = "pocket-gpt2"


@pytest.fixture
def values(tab):
    """What the form holds with fine-tuning chosen and a fact in it."""
    form, settings = tab.form, tab.settings
    held = {widget: widget.value for widget in tab.inputs()}
    held |= {form.subject: "Edward Matthew Ward", form.prompt: "{} was born in", form.old: "London", form.new: "Boston"}
    held |= {tab.history: [], tab.job: "", form.filled: None, settings.editor: "finetuning", tab.header.model: MODEL}
    return held | preset(tab, "")


def preset(tab, recipe):
    own = editor_row("finetuning").preset(MODEL, recipe=recipe).settings
    shown = ingredients.show(tab.settings.ingredients, "finetuning", own, MODEL, "clean")
    fields = {w: getattr(own, name) for name, w in tab.settings.widgets["finetuning"].items()}
    return {**fields, **shown, tab.settings.widgets["finetuning"]["layers"]: "3, 4, 5"}


def test_a_recipe_fills_in_all_it_sets(tab, values):
    view, widgets = tab.settings.ingredients, tab.settings.widgets["finetuning"]
    shown = tab.on_recipe({**values, view.recipe: "ft-l"})
    wanted = editor_row("finetuning").preset(MODEL, recipe="ft-l").settings
    assert shown[widgets["bound"]] == wanted.bound == 5e-3
    assert shown[widgets["where"]] == "down"
    assert shown[widgets["layers"]] == "0"
    assert shown[view.switches] == ["mask"]
    assert shown[view.recipe] == "ft-l"


@pytest.mark.parametrize(
    ("on", "recipe"),
    [
        ([], "ft"),
        (["mask"], "ft-m"),
        (["mask", "paraphrases"], "ft-mp"),
        (["mask", "paraphrases", "random_facts"], "ft-mpr"),
        (["mask", "paraphrases", "similar_facts"], "ft-mps"),
        (["mask", "paraphrases", "random_facts", "language"], "ft-mpr-text"),
        (["mask", "similar_facts"], ingredients.OWN),
    ],
)
def test_switches_make_the_recipe_they_are(tab, values, on, recipe):
    view, widgets = tab.settings.ingredients, tab.settings.widgets["finetuning"]
    shown = tab.on_switches({**values, view.switches: on})
    assert shown[view.recipe] == recipe
    assert [
        name for name in ("mask", "paraphrases", "random_facts", "similar_facts", "language") if shown[widgets[name]]
    ] == on


def test_an_amount_typed_by_hand_moves_its_switch(tab, values):
    view, widgets = tab.settings.ingredients, tab.settings.widgets["finetuning"]
    shown = tab.on_ingredients({**values, widgets["random_facts"]: 0})
    assert shown[view.switches] == ["mask", "paraphrases"]
    assert shown[view.recipe] == "ft-mp"
    shown = tab.on_ingredients({**values, widgets["random_facts"]: 7})
    assert shown[view.recipe] == ingredients.OWN
    refused = tab.on_ingredients({**values, widgets["random_facts"]: 700})
    assert "allowed are whole numbers from 0 to 100" in refused[tab.progress.message]
    assert view.recipe not in refused


def test_an_amount_survives_other_switches(tab, values):
    view, widgets = tab.settings.ingredients, tab.settings.widgets["finetuning"]
    on = ["mask", "paraphrases", "random_facts", "dpo"]
    shown = tab.on_switches({**values, widgets["random_facts"]: 7, view.switches: on})
    assert shown[widgets["random_facts"]] == 7
    assert shown[widgets["dpo"]] == 0.5


def test_the_ingredients_are_shown_for_their_editor_only(tab, values):
    view = tab.settings.ingredients
    for editor in ("memit", "finetuning"):
        shown = tab.on_editor({**values, tab.settings.editor: editor})
        assert shown[view.box].visible == (editor == "finetuning")
        assert shown[view.recipe] == "ft-mpr"


@pytest.fixture
def ladder(assembled):
    return assembled.ladder


@pytest.mark.slow
def test_comparing_trains_every_recipe_and_shows_them(tab, ladder, host, values):
    model = host.get(MODEL).model
    before = snapshot(model)
    widgets = tab.settings.widgets["finetuning"]
    *running, done = list(ladder.on_ladder({**values, widgets["epochs"]: 1, widgets["encoder"]: "own"}))
    assert running
    assert bit_equal(model, before)
    assert f"{len(LADDER)} recipes" in done[tab.progress.line]
    assert len(done[tab.history]) == len(LADDER)
    assert len(done[ladder.chart].data) == 4
    for name in LADDER:
        label = next(r.label for r in editor_row("finetuning").recipes if r.name == name)
        assert f"<td>{label}</td>" in done[ladder.table]
    assert done[ladder.table].count("the paper: GPT-J") == 5  # and the unedited model
    runs = [tab.runs.get(run_id).run for run_id in done[tab.history]]
    assert [run.plan.settings.epochs for run in runs] == [1] * len(LADDER)
    assert len({tuple(run.plan.settings.__dict__.items()) for run in runs}) == len(LADDER)


def test_a_wrong_form_is_refused_and_a_stop_leaves_nothing(tab, ladder, host, values):
    (refused,) = ladder.on_ladder({**values, tab.form.new: ""})
    assert "new object is empty" in refused[tab.progress.message]
    model = host.get(MODEL).model
    before = snapshot(model)
    going = ladder.on_ladder(values)
    started = next(going)
    next(going)
    shown = tab.on_stop(started[tab.job])
    assert "Stopped" in shown[tab.progress.line]
    assert "Stopped" in list(going)[-1][tab.progress.line]
    assert bit_equal(model, before)
    assert not len(tab.jobs)


def test_before_anything_was_compared_it_says_how(ladder):
    assert "press Compare ingredients" in table_html(())
    assert isinstance(ladder, Ladder)
