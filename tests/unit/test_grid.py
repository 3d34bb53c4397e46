"""Grids: from one file to its cells, and cells that are there already."""

import tomllib

import pytest

from editing_core.bench.config import RunConfig
from editing_core.bench.grid import Grid, as_toml, enter, grid_of, read_grid
from editing_core.errors import EditingError
from editing_core.runs.folder import CANCELLED, DONE, QUEUED, RunFolder

TOML = """
editors = ["memit", "pmet"]
neighbors = ["off", "na"]
trials = 2
[common]
limit = 20
assist = { weight = 0.5 }
[editor.pmet]
iterations = 7
settings = { layers = [0, 1] }
"""
YAML = """
editors: [memit, pmet]
neighbors: ["off", na]
trials: 2
common: {limit: 20, assist: {weight: 0.5}}
editor: {pmet: {iterations: 7, settings: {layers: [0, 1]}}}
"""


@pytest.mark.parametrize(("name", "text"), [("grid.toml", TOML), ("grid.yaml", YAML)])
def test_a_file_describes_every_combination(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    cells = read_grid(tmp_path / name).cells
    assert [(c.editor, c.plan.assist.neighbors, c.trial) for c in cells] == [
        (editor, neighbors, trial) for editor in ("memit", "pmet") for neighbors in ("off", "na") for trial in (0, 1)
    ]
    assert {c.limit for c in cells} == {20}
    assert {c.iterations for c in cells if c.editor == "pmet"} == {7}
    assert {c.iterations for c in cells if c.editor == "memit"} == {10}
    assert [c.seed for c in cells[:2]] == [0, 1]
    assert cells[-1].plan.settings.layers == (0, 1)
    assert {c.plan.assist.weight for c in cells} == {0.5}
    assert len({c.key for c in cells}) == 8


RECIPES = """
editors = ["memit", "finetuning", "finetuning:ft-m", "finetuning:ft-mp"]
trials = 2
[common]
limit = 20
iterations = 3
settings = { steps = 9 }
[editor.finetuning]
iterations = 1
settings = { epochs = 2, rate = 0.01 }
[editor."finetuning:ft-mp"]
settings = { rate = 0.02 }
stop = "none"
"""


def test_an_editor_may_come_with_several_recipes(tmp_path):
    """One table is for all of an editor's cells, and one more for a recipe's, whose settings join the others."""
    (tmp_path / "grid.toml").write_text(RECIPES, encoding="utf-8")
    cells = read_grid(tmp_path / "grid.toml").cells
    assert [(c.editor, c.recipe, c.trial) for c in cells] == [
        (*editor, trial)
        for editor in (("memit", ""), ("finetuning", ""), ("finetuning", "ft-m"), ("finetuning", "ft-mp"))
        for trial in (0, 1)
    ]
    assert [c.settings for c in cells[::2]] == [
        {"steps": 9}, {"epochs": 2, "rate": 0.01}, {"epochs": 2, "rate": 0.01}, {"epochs": 2, "rate": 0.02}
    ]  # fmt: skip
    assert [(c.iterations, c.stop) for c in cells[::2]] == [(3, ""), (1, ""), (1, ""), (1, "none")]
    assert {c.limit for c in cells} == {20}
    assert len({c.key for c in cells}) == len(cells)


def test_recipes_come_back_from_the_text_of_a_grid(tmp_path):
    values = tomllib.loads(RECIPES)
    (tmp_path / "again.toml").write_text(as_toml(values), encoding="utf-8")
    assert tomllib.loads(as_toml(values)) == values
    assert read_grid(tmp_path / "again.toml") == grid_of(values)
    assert '[editor."finetuning:ft-mp"]' in as_toml(values)


def test_a_recipe_may_be_any_cells_key_too():
    (cell,) = grid_of({"editors": ["finetuning"], "common": {"recipe": "ft-mp"}}).cells
    assert cell == grid_of({"editors": ["finetuning:ft-mp"]}).cells[0]


def test_an_empty_grid_is_one_run():
    assert grid_of({}).cells == (RunConfig(seed=0),)
    assert [c.seed for c in grid_of({"trials": 2, "common": {"seed": 5}}).cells] == [5, 5]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"edtors": ["memit"]}, "Did you mean 'editors'"),
        ({"editors": "memit"}, "must be a list of names"),
        ({"editors": []}, "must be a list of names"),
        ({"editors": ["memit", "memit"]}, "names something twice"),
        ({"editors": ["memmit"]}, "Did you mean 'memit'"),
        ({"trials": 0}, "trials is 0"),
        ({"trials": True}, "trials is True"),
        ({"common": 3}, "common is 3"),
        ({"common": {"limt": 3}}, "pocket-gpt2, memit, pocket-facts: Unknown key 'limt'. Did you mean 'limit'"),
        ({"editor": {"pmet": {}}}, "editor.pmet is for no cell"),
        ({"editor": {"memit": 3}}, "editor.memit is 3"),
        ({"editors": ["finetuning:ft-mpp"]}, "pocket-gpt2, finetuning:ft-mpp, pocket-facts: .*Did you mean 'ft-mp'"),
        ({"editors": ["finetuning:"]}, "Unknown editor 'finetuning:'. Did you mean 'finetuning'"),
        ({"editors": ["memit:ft"]}, "Unknown recipe of MEMIT 'ft'"),
        ({"editors": ["finetuning:ft", "finetuning:ft"]}, "names something twice"),
        ({"editors": ["finetuning:ft"], "editor": {"finetuning:ft-m": {}}}, "editor.finetuning:ft-m is for no cell"),
        ({"editors": ["finetuning:ft"], "editor": {"finetuning:ft": 3}}, "editor.finetuning:ft is 3"),
        ({"neighbors": ["no"]}, "neighbors is 'no'"),
        ({"models": [str(i) for i in range(20)], "trials": 1000}, "20,000 runs"),
    ],
)
def test_what_is_wrong_is_named(values, sentence):
    with pytest.raises(EditingError, match=sentence):
        grid_of(values)


@pytest.mark.parametrize(
    ("name", "text"), [("g.toml", "a = "), ("g.yaml", "a: ["), ("g.yaml", "- 1"), ("g.yaml", ""), ("g.toml", None)]
)
def test_an_unreadable_file_is_refused(tmp_path, name, text):
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(EditingError, match=name):
        read_grid(tmp_path / name)


def test_yaml_makes_no_objects(tmp_path):
    (tmp_path / "g.yaml").write_text("common: !!python/object/apply:os.system ['true']", encoding="utf-8")
    with pytest.raises(EditingError, match="not a readable"):
        read_grid(tmp_path / "g.yaml")


def test_finished_cells_are_not_done_again_and_early_ends_go_on(tmp_path):
    grid = Grid(grid_of({"trials": 3}).cells)
    first = enter(grid, tmp_path)
    assert len({folder.id for folder in first}) == 3
    first[0].update(status=DONE)
    first[1].cancel()
    assert first[1].status == CANCELLED
    second = enter(grid, tmp_path)
    assert [folder.id for folder in second] == [folder.id for folder in first]
    assert [folder.status for folder in second] == [DONE, QUEUED, QUEUED]
    more = enter(grid_of({"trials": 4}), tmp_path)
    assert [folder.id for folder in more[:3]] == [folder.id for folder in first]


def test_of_equal_runs_a_finished_one_counts_then_one_underway(tmp_path):
    cell = grid_of({})
    (first,) = enter(cell, tmp_path)
    first.cancel()
    second = RunFolder.create(tmp_path, cell.cells[0].to_json())
    third = RunFolder.create(tmp_path, cell.cells[0].to_json())
    third.cancel()
    assert enter(cell, tmp_path) == [second]
    third.update(status=DONE)
    assert enter(cell, tmp_path) == [third]
    third.update(imported=True)
    assert enter(cell, tmp_path) == [second]
    assert first.status == CANCELLED


def test_only_the_owners_runs_are_there(tmp_path):
    cell = grid_of({})
    (anns,) = enter(cell, tmp_path, "ann", 5)
    (bobs,) = enter(cell, tmp_path, "bob")
    assert anns != bobs
    assert enter(cell, tmp_path, "ann") == [anns]
    assert enter(cell, tmp_path) not in ([anns], [bobs])
    assert [(run.head()["owner"], run.head().get("minutes")) for run in (anns, bobs)] == [("ann", 5), ("bob", None)]


def test_a_run_that_cannot_be_read_is_none_of_the_cells(tmp_path):
    (run,) = enter(grid_of({}), tmp_path)
    run.update(config={"colour": "red"})
    assert enter(grid_of({}), tmp_path) != [run]
