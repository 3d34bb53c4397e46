"""The benchmark form read: the grid that is meant, and one sentence for whatever else a browser may send."""

import math

import gradio as gr
import pytest

from components import bench_form
from components.bench_tab import BenchTab
from editing_core.bench.config import RunConfig
from editing_core.bench.grid import grid_of
from editing_core.errors import EditingError
from editing_core.models.catalog import DEFAULT
from editing_core.registry import editor_row
from editing_core.settings import shown

HUGE = 10**5000
DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.fixture(scope="module")
def form():
    with gr.Blocks():
        return bench_form.build(None)


def read(form, **changed):
    """The grid and its text with some widgets changed."""
    values = {widget: getattr(widget, "value", None) for widget in form.inputs}
    values |= {getattr(form, name): value for name, value in changed.items()}
    return bench_form.read_grid(values, form, DEFAULT, "pocket-facts:test")


def test_the_form_as_it_opens_is_one_run(form):
    grid, text = read(form)
    assert grid.cells == (RunConfig(dataset="pocket-facts:test", limit=100, iterations=5, stop="perplexity"),)
    assert grid_of(bench_form.tomllib.loads(text)) == grid


def test_what_is_chosen_and_written_becomes_a_grid(form):
    more = "[common]\nseed = 3\n[editor.pmet]\nsettings = { layers = [0, 1] }"
    grid, text = read(form, editors=["memit", "pmet"], neighbors=["off", "nap"], trials=2.0, limit=7, more=more)
    assert [(c.editor, c.assist.get("neighbors"), c.trial) for c in grid.cells] == [
        (editor, neighbors, trial) for editor in ("memit", "pmet") for neighbors in (None, "nap") for trial in (0, 1)
    ]
    assert {(c.seed, c.limit) for c in grid.cells} == {(3, 7)}
    assert {c.plan.settings.layers for c in grid.cells if c.editor == "pmet"} == {(0, 1)}
    assert grid_of(bench_form.tomllib.loads(text)) == grid


RECIPES = ["finetuning:ft-mp", "finetuning:ft"]


def test_chosen_recipes_become_runs_of_their_editor(form):
    more = '[editor."finetuning:ft-mp"]\nsettings = { epochs = 2 }'
    grid, text = read(form, editors=["memit", "finetuning"], recipes=RECIPES, more=more)
    # In the paper's order, whichever was chosen first.
    assert [(c.editor, c.recipe) for c in grid.cells] == [("memit", ""), ("finetuning", "ft"), ("finetuning", "ft-mp")]
    assert [dict(c.settings) for c in grid.cells] == [{}, {}, {"epochs": 2}]
    assert grid_of(bench_form.tomllib.loads(text)) == grid


@pytest.mark.parametrize("recipes", [None, []])
def test_without_a_recipe_it_is_the_preset(form, recipes):
    (cell,) = read(form, editors=["finetuning"], recipes=recipes)[0].cells
    assert (cell.editor, cell.recipe) == ("finetuning", "")


def test_recipes_of_an_editor_that_is_not_chosen_do_not_count(form):
    assert read(form, recipes=RECIPES) == read(form)


def test_the_choice_of_recipes_is_there_for_editors_that_have_some(form):
    tab = BenchTab(desk=None, visitor=None, model=None)
    tab.form = form
    for editors, there in ((["memit"], False), (["memit", "finetuning"], True), ([], False), (None, False), (3, False)):
        shown = tab.on_editors({form.editors: editors})
        assert shown[form.recipes].visible is there
    assert form.recipes.visible is False  # the form opens with MEMIT
    assert form.recipes in form.inputs
    assert [label for label, _ in form.recipes.choices] == [r.label for r in editor_row("finetuning").recipes]


def test_no_further_settings_may_come_as_nothing(form):
    assert read(form, more=None) == read(form, more="") == read(form)


COMMON = "[common]\n"
SETTINGS = "[editor.memit]\nsettings = "


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("a=" + "[" * 4000, "The settings are not readable TOML"),
        ("a=" + "{a=" * 1600, "The settings are not readable TOML"),
        ("a=" + "9" * 4400, "The settings are not readable TOML"),
        ("a=", "The settings are not readable TOML"),
        ("#" * 5001, "The settings are 5,001 characters, allowed is text of at most 5,000 characters; shorten it."),
        (3, "The settings are 3, allowed is text"),
        (["a"], r"The settings are \['a'\], allowed is text"),
        (DEEP, "The settings are an enormous list, allowed is text"),
        ("common = 3", "Unknown table 'common'"),
        ("models = []", "Unknown table 'models'"),
        (SETTINGS + "{ layers = ['a', 1] }", "layers is 'a', allowed"),
        (SETTINGS + "{ layers = [[1], [2]] }", r"layers is \[1\], allowed"),
        (SETTINGS + "{ steps = [1] }", r"steps is \(1,\), allowed"),
        (SETTINGS + "{ steps = 0x" + "f" * 4900 + " }", "steps is an enormous int, allowed"),
        (SETTINGS + "{ steps" + ".a" * 2000 + " = 1 }", "steps is .*, allowed"),
        (SETTINGS + "{ steps = 2020-01-01 }", "steps is datetime.date.*, allowed"),
        (SETTINGS + "3", "settings must be a table of settings, got 3"),
        (COMMON + "seed = 100000000000000000000", "seed is 1000.*, allowed"),
        (COMMON + "limit = 0", "limit is 0, allowed"),
        (COMMON + "tolerance = nan", "tolerance is nan, allowed"),
        (COMMON + "tolerance = inf", "tolerance is inf, allowed"),
        (COMMON + "chunk = 0", "chunk is 0, allowed"),
        (COMMON + "texts = '/etc/passwd'", "name files, which only the command line reads"),
    ],
    ids=shown,
)
def test_settings_nobody_can_mean_are_refused(form, more, sentence):
    refused(form, sentence, more=more)


@pytest.mark.parametrize("name", ["limit", "trials", "iterations", "chunk"])
@pytest.mark.parametrize(
    "given", [math.nan, math.inf, -math.inf, 1e300, HUGE, 1.5, None, True, "3", [3], {}, DEEP], ids=shown
)
def test_what_is_no_whole_number_is_refused(form, name, given):
    refused(form, f"{name} is .*, but must be a whole number such as 1; correct it", **{name: given})


@pytest.mark.parametrize("name", ["limit", "trials", "iterations", "chunk"])
@pytest.mark.parametrize("given", [0, -1, 2**52])
def test_numbers_out_of_range_are_refused(form, name, given):
    refused(form, f"{name} is {given}, allowed are whole numbers from 1 to", **{name: given})


@pytest.mark.parametrize("name", ["editors", "neighbors"])
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "is chosen, a benchmark needs at least one; choose one"),
        ([], "is chosen, a benchmark needs at least one; choose one"),
        (3, "is chosen, a benchmark needs at least one; choose one"),
        ("memit", "is chosen, a benchmark needs at least one; choose one"),
        ({"memit": 1}, "is chosen, a benchmark needs at least one; choose one"),
        ([3], r"\[3\] came, allowed are .*; choose each at most once"),
        ([None], r"\[None\] came, allowed are"),
        ([["memit"]], "came, allowed are"),
        (DEEP, "an enormous list came, allowed are"),
        (["memmit"], "came, allowed are"),
        (["off", "memit"], "came, allowed are"),
        (["memit"] * 10_000, "came, allowed are"),
        (["off"] * 10_000, "came, allowed are"),
    ],
    ids=shown,
)
def test_choices_that_are_not_on_offer_are_refused(form, name, given, sentence):
    refused(form, sentence, **{name: given})


@pytest.mark.parametrize(
    "given", [3, "finetuning:ft", ["ft"], ["finetuning:ft"] * 100, [3], [["finetuning:ft"]], DEEP], ids=shown
)
def test_recipes_that_are_not_on_offer_are_refused(form, given):
    refused(form, "recipe", editors=["finetuning"], recipes=given)


@pytest.mark.parametrize("name", ["stop", "protocol", "preset", "direction", "eligible", "skip_bad", "generate"])
@pytest.mark.parametrize("given", [None, 3, ["batch"], "x" * 10_000, DEEP], ids=shown)
def test_other_values_are_refused_too(form, name, given):
    refused(form, "must be|Unknown|allowed are", **{name: given})


def refused(form, sentence, **changed):
    with pytest.raises(EditingError, match=sentence) as caught:
        read(form, **changed)
    told = str(caught.value)
    assert told.endswith(".")
    assert "\n" not in told
    assert len(told) < 400
