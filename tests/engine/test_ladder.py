"""The ladder: recipes one after the other on the same facts, each from the unedited model."""

from dataclasses import replace

import pytest

from editing_core import charts_ladder
from editing_core.data.datasets import load_dataset, sample
from editing_core.editors.finetuning import FineTuningSettings
from editing_core.editors.memit import MemitSettings
from editing_core.editors.recipes import LADDER
from editing_core.editors.stopping import StopSettings
from editing_core.errors import Cancelled, UnknownName
from editing_core.evaluation.evaluator import Evaluator
from editing_core.ladder import SUCCESSES, UNEDITED, ladder_table, printed_row, run_ladder, rung_plan
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import run_edit
from tests.conftest import bit_equal, cancel_after, snapshot

SHORT = FineTuningSettings(epochs=1, rate=1e-3, rank=4, alpha=8.0, batch=64, encoder="own")
TEXTS = Evaluator(("The weather was fine, and therefore we went home.",))


def plan(settings=SHORT, seed=3):
    return EditPlan("finetuning", settings, StopSettings(iterations=7), seed)


@pytest.fixture(scope="module")
def records():
    return sample(load_dataset("pocket-facts:tune"), 2, 0)


@pytest.fixture(scope="module")
def told(pocket, records):
    steps = []
    before = snapshot(pocket.model)
    rungs = run_ladder(pocket, records, plan(), watch=steps.append, evaluator=TEXTS)
    assert bit_equal(pocket.model, before)
    return rungs, steps


def test_a_rung_has_the_recipes_ingredients_and_the_plans_training():
    own = rung_plan(plan(replace(SHORT, paraphrases=3, mask=False)), "pocket-gpt2", "ft-mp")
    assert (own.settings.mask, own.settings.paraphrases, own.settings.random_facts) == (True, 15, 0)
    assert (own.settings.rank, own.settings.epochs, own.seed) == (4, 1, 3)
    assert (own.stop.iterations, own.stop.stop, own.stop.collapse_factor) == (1, "none", 0.0)


def test_a_recipe_that_breaks_the_model_is_shown_as_it_is(pocket, records):
    """A guard would roll it back, and the row would be that of the unedited model."""
    wild = plan(replace(SHORT, rate=0.05, lora=False, epochs=3))
    (rung,) = run_ladder(pocket, records, wild, ["ft-m"], evaluator=TEXTS)
    assert rung.run.chosen == 1
    assert ladder_table([rung])["collapse_ppl"].iloc[1] > 10 * ladder_table([rung])["collapse_ppl"].iloc[0]


def test_what_a_recipe_sets_beside_its_ingredients_counts_too():
    own = rung_plan(plan(), "pocket-gpt2", "ft-l").settings
    assert (own.lora, own.where, own.layers, own.bound, own.optimiser) == (False, "down", (0,), 5e-3, "adam")
    assert own.rank == 4
    layers = rung_plan(plan(), "pocket-gpt2", "ft-mpr-3-5").settings
    assert (layers.lora, layers.where, layers.layers, layers.rate) == (False, "blocks", (1, 2), SHORT.rate)


def test_another_editors_plan_gives_the_preset():
    own = rung_plan(EditPlan("memit", MemitSettings(), StopSettings(), 5), "pocket-gpt2", "ft-m")
    assert own.settings == editor_row("finetuning").preset("pocket-gpt2", recipe="ft-m").settings
    assert own.seed == 5


def test_every_rung_is_what_a_run_alone_gives(pocket, records, told):
    rungs, _ = told
    assert [rung.recipe.name for rung in rungs] == list(LADDER)
    alone = run_edit(pocket, records, rung_plan(plan(), pocket.name, "ft-mp"), evaluator=TEXTS)
    assert alone.iterations.equals(rungs[2].run.iterations)
    assert not alone.iterations.equals(rungs[1].run.iterations)


def test_progress_says_which_recipe(told):
    _, steps = told
    notes = [step.note for step in steps]
    for number, name in enumerate(("FT", "FT + Mask", "FT + Mask + Para"), start=1):
        assert any(note.startswith(f"recipe {number} of 5, {name}") for note in notes)
    assert any("epoch 1 of 1" in note for note in notes)


def test_the_table_starts_with_the_unedited_model(told):
    rungs, _ = told
    table = ladder_table(rungs)
    assert list(table["recipe"]) == [UNEDITED, *(rung.recipe.label for rung in rungs)]
    for metric in SUCCESSES:
        values = [rungs[0].run.iterations[metric].iloc[0], *(r.run.iterations[metric].iloc[1] for r in rungs)]
        assert list(table[metric]) == values
    assert table["seconds"].iloc[1:].gt(0).all()
    assert table["fluency"].isna().all()
    assert len(ladder_table([])) == 0


def test_the_papers_row_stands_beside_where_there_is_one(told):
    rungs, _ = told
    told, row = printed_row("FT + Mask")
    assert told == "the paper: GPT-J, 10,000 facts at once"
    assert row == {
        "efficacy_success": 97.1,
        "generalization_success": 62.1,
        "specificity_success": 34.7,
        "score_success": 54.3,
        "fluency": 563.6,
        "consistency": 6.1,
    }
    named = [printed_row(rung.recipe.label)[0].split(",")[0] for rung in rungs]
    assert named == ["the paper: GPT-J"] * 4 + ["the paper: GPT-2 XL"]
    assert printed_row(UNEDITED)[1]["score_success"] == 22.4
    assert printed_row(UNEDITED, alone=True)[1]["score_success"] == 30.5
    assert printed_row("FT + Mask", alone=True) == ("", {})
    assert printed_row("FT + Mask + Para + Rand, LoRA on layers 3-5") == ("", {})


def test_the_chart_has_a_bar_for_every_number(told):
    rungs, _ = told
    figure = charts_ladder.ladder(rungs)
    assert [len(trace.y) for trace in figure.data] == [6] * 4
    table = ladder_table(rungs)
    assert list(figure.data[0].y) == list(table["efficacy_success"])
    assert not charts_ladder.ladder(()).data


def test_a_stop_leaves_nothing(pocket, records):
    before = snapshot(pocket.model)
    for count in (0, 3, 8):
        with pytest.raises(Cancelled):
            run_ladder(pocket, records, plan(), watch=cancel_after(count), evaluator=TEXTS)
        assert bit_equal(pocket.model, before)


def test_an_unknown_recipe_is_refused_before_anything_is_trained(pocket, records):
    with pytest.raises(UnknownName, match="ft-x"):
        run_ladder(pocket, records, plan(), ["ft", "ft-x"], watch=pytest.fail)
