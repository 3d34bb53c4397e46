"""A settings value that exists is valid; text from a form or a command line is read by type.

So is a configuration of a run, whose name tells it from others.
"""

import math
from dataclasses import asdict, fields, replace

import pytest

from editing_core.bench.config import MOST_NAME, RunConfig
from editing_core.editors.memit import MemitSettings
from editing_core.editors.pmet import PmetSettings
from editing_core.editors.recipes import RECIPES
from editing_core.editors.rome import RomeSettings
from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadSetting
from editing_core.registry import EDITORS, editor_row
from editing_core.settings import Settings, default_of, shown

HUGE = 10**5000  # more digits than Python writes out
DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]


def test_changed_replaces_and_leaves_the_rest():
    old = MemitSettings()
    new = old.changed({"steps": 7, "rate": 0.25})
    assert (new.steps, new.rate, new.decay) == (7, 0.25, old.decay)
    assert old.steps != 7


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", " 12 ", 12),
        ("rate", "1e-2", 0.01),
        ("relative_rate", "Yes", True),
        ("relative_rate", "0", False),
        ("layers", "0,2, 5", (0, 2, 5)),
        ("layers", "[3, 4]", (3, 4)),
        ("layers", "(1)", (1,)),
    ],
)
def test_text_is_read_by_type(name, text, value):
    got = getattr(MemitSettings().changed({name: text}), name)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", "abc", "steps is 'abc', but must be like 25; correct it"),
        ("steps", "2.5", "steps is '2.5'"),
        ("rate", "fast", "rate is 'fast', but must be like 0.5"),
        ("relative_rate", "maybe", "but must be true or false"),
        ("layers", "one", "layers is 'one'"),
        ("layers", "", "one or more layers in ascending order"),
        ("layers", "2,1", "one or more layers in ascending order"),
        ("layers", "1,1", "one or more layers in ascending order"),
        ("layers", "-1,1", "layers is -1, allowed are whole numbers from 0 to 1000"),
        ("steps", 0, "steps is 0, allowed are whole numbers from 1 to 200"),
        ("steps", 201, "steps is 201"),
        ("steps", 2.0, "allowed are whole numbers"),
        ("steps", True, "steps must be a number, got True"),
        ("rate", 0.0, "rate is 0.0, allowed are numbers from 0.0001 to 5"),
        ("rate", "nan", "rate is nan"),
        ("rate", "inf", "rate is inf"),
        ("relative_rate", 1, "relative_rate must be true or false, got 1"),
        ("covariance_weight", 0.0, "covariance_weight is 0.0"),
        ("covariance_floor", 1.5, "covariance_floor is 1.5"),
        ("clamp", 100, "clamp is 100"),
        ("clamp", "9" * 5000, "clamp is inf"),
        ("steps", (1,), r"steps is \(1,\), allowed are whole numbers from 1 to 200; choose"),
        ("rate", (0.5,), r"rate is \(0.5,\), allowed are numbers"),
        ("steps", None, "steps is None, allowed are whole numbers"),
        ("steps", "9" * 5000, "steps is '9{40}', but must be like 25"),
        ("steps", HUGE, "steps is an enormous int, allowed are whole numbers"),
        ("rate", HUGE, "rate is an enormous int, allowed are numbers"),
        ("steps", DEEP, "steps is an enormous list, allowed are whole numbers"),
        ("layers", ("a", 1), "layers is 'a', allowed are whole numbers from 0 to 1000"),
        ("layers", ([1], [2]), r"layers is \[1\], allowed are whole numbers"),
        ("layers", (True,), "layers is True, allowed are whole numbers"),
        ("layers", (1, math.nan), "layers is nan, allowed are whole numbers"),
        ("layers", 3, "one or more layers in ascending order such as 0,1,2, got 3"),
        ("layers", [3], r"one or more layers in ascending order such as 0,1,2, got \[3\]"),
    ],
    ids=shown,
)
def test_refuses(name, value, message):
    with pytest.raises(BadSetting, match=message):
        MemitSettings().changed({name: value})


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(BadSetting, match=r"Unknown setting 'step'. Did you mean 'steps'\? Known: "):
        MemitSettings().changed({"step": 3})


def test_choices():
    assert RomeSettings(key="bare").key == "bare"
    for key, told in (("other", "'other'"), (True, "True"), (["bare"], r"\['bare'\]"), ("x" * 9999, "'x{56}...")):
        with pytest.raises(
            BadSetting, match=f"^key is {told}, allowed are averaged, bare, mixed; choose one of them.$"
        ):
            RomeSettings(key=key)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations is 0, allowed are whole numbers from 1 to 10"),
        ({"iterations": 11}, "iterations is 11"),
        ({"tolerance": -0.1}, "tolerance is -0.1"),
        ({"stop": "never"}, "allowed are perplexity, monotone, small-change, none"),
    ],
)
def test_stop_settings(changes, message):
    with pytest.raises(BadSetting, match=message):
        StopSettings(**changes)


@pytest.mark.parametrize("kind", [MemitSettings, PmetSettings, RomeSettings, StopSettings])
def test_every_field_has_a_help_and_a_valid_default(kind: type[Settings]):
    kind()
    for f in fields(kind):
        assert f.metadata["help"].strip()
        assert default_of(f) == f.default
        numeric = isinstance(f.default, int | float | tuple) and not isinstance(f.default, bool)
        assert numeric == (f.metadata["low"] is not None), f.name


@pytest.mark.parametrize("name", EDITORS)
def test_presets_are_of_their_editor_and_named(name):
    row = editor_row(name)
    for model, preset in row.presets.items():
        assert type(preset.settings) is row.settings_class
        assert preset.source, model
    assert row.preset("unheard-of").suggested


@pytest.mark.parametrize("value", ["a" * 1000, list(range(1000)), HUGE, DEEP, math.nan, None, "\ud800"], ids=shown)
def test_anything_is_shown_in_short(value):
    assert 0 < len(shown(value)) <= 60
    assert shown("a" * 58) == repr("a" * 58)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"limit": 0}, "limit is 0, allowed are whole numbers from 1 to 1000000; choose one of them."),
        ({"limit": -1}, "limit is -1, allowed"),
        ({"limit": HUGE}, "limit is an enormous int, allowed"),
        ({"trial": -1}, "trial is -1, allowed are whole numbers from 0 to 1000000"),
        ({"seed": 10**20}, f"seed is {10**20}, allowed are whole numbers from 0 to 2147483647"),
        ({"seed": -1}, "seed is -1, allowed"),
        ({"seed": math.nan}, "seed must be a whole number, got nan"),
        ({"chunk": 0}, "chunk is 0, allowed are whole numbers from 1"),
        ({"iterations": HUGE}, "iterations is an enormous int, allowed"),
        ({"tolerance": math.nan}, "tolerance is nan, allowed are numbers from 0"),
        ({"tolerance": math.inf}, "tolerance is inf, allowed"),
        ({"tolerance": HUGE}, "tolerance is an enormous int, allowed"),
        ({"collapse_factor": math.nan}, "collapse_factor is nan, allowed"),
        ({"direction": "back"}, "Unknown direction 'back'. Known: alt, answers."),
        ({"editor": DEEP}, "editor must be text, got an enormous list; correct it."),
        ({"settings": {"steps": [1]}}, r"steps is \(1,\), allowed"),
        ({"settings": {"layers": ["a", 1]}}, "layers is 'a', allowed"),
        ({"settings": {"layers": [[1], [2]]}}, r"layers is \[1\], allowed"),
        ({"assist": {"count": [1]}}, r"count is \[1\], allowed"),
    ],
    ids=shown,
)
def test_a_configuration_that_cannot_run_is_refused_at_once(values, message):
    with pytest.raises(BadSetting, match=f"^run 1: {message}") as caught:
        RunConfig.of(values, "run 1")
    assert len(str(caught.value)) < 300


PLAIN = RunConfig(trial=2, seed=2)
NAME = "pocket-gpt2, memit, pocket-facts, trial 2"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, NAME),
        ({"limit": 100}, f"{NAME}, N 100"),
        ({"limit": 100, "iterations": 5}, f"{NAME}, N 100, iterations 5"),
        ({"settings": {"steps": 8, "layers": [0, 1]}}, f"{NAME}, steps 8, layers 0,1"),
        ({"settings": {"rate": 1, "relative_rate": False}}, f"{NAME}, rate 1, relative_rate off"),
        ({"settings": {"steps": 30}, "stop": "perplexity"}, NAME),  # the preset's
        ({"protocol": "sequential", "chunk": 5}, f"{NAME}, sequential, chunks of 5"),
        ({"preset": "faithful"}, f"{NAME}, faithful"),
        ({"preset": "faithful", "conventions": {"padding": "right"}}, f"{NAME}, faithful, padding right"),
        ({"seed": 0}, f"{NAME}, seed 0"),
        ({"dataset": "pocket-facts:test"}, NAME),
        ({"dataset": "pocket-facts:tune"}, f"{NAME}, tune"),
        ({"dataset": "table:/home/me/edits.csv"}, "pocket-gpt2, memit, table, trial 2, edits.csv"),
        ({"texts": "/home/me/texts.json"}, f"{NAME}, texts texts.json"),
        ({"assist": {"neighbors": "na", "count": 2}}, "pocket-gpt2, memit + NA, pocket-facts, trial 2, count 2"),
    ],
)
def test_a_name_tells_what_departs_from_the_defaults(changes, name):
    assert replace(PLAIN, **changes).name == name


OTHER = {
    "dataset": "zsre",
    "limit": 3,
    "trial": 1,
    "direction": "alt",
    "skip_bad": True,
    "eligible": True,
    "model": "gpt2",
    "dtype": "float16",
    "quantised": "nf4",
    "revision": "v2",
    "editor": "pmet",
    "settings": {"decay": 1e-3},
    "iterations": 1,
    "stop": "none",
    "tolerance": 0.5,
    "collapse_factor": 0,
    "assist": {"minimum": 1},
    "preset": "faithful",
    "conventions": {"zeros": "dropped"},
    "protocol": "single",
    "seed": 5,
    "texts": "x.json",
    "generate": True,
    "references": "y.json",
}


def test_every_key_of_a_run_is_told():
    """A chunk has a meaning in one protocol only, where it is told; a recipe in one editor."""
    assert OTHER.keys() | {"chunk", "recipe"} == {f.name for f in fields(RunConfig)}
    assert len({replace(PLAIN, **{key: value}).name for key, value in OTHER.items()} | {NAME}) == len(OTHER) + 1


def tuned(recipe="", **more):
    return RunConfig(editor="finetuning", recipe=recipe, **more)


def test_a_recipe_is_the_preset_changed_and_settings_change_that():
    row = editor_row("finetuning")
    assert tuned("ft-mp").plan.settings == row.preset("pocket-gpt2", recipe="ft-mp").settings
    assert tuned().plan.settings == row.preset("pocket-gpt2").settings != tuned("ft-mp").plan.settings
    both = tuned("ft-mp", settings={"epochs": 2, "paraphrases": 3}).plan.settings
    assert (both.mask, both.random_facts, both.epochs, both.paraphrases) == (True, 0, 2, 3)


def test_a_recipe_is_told_by_its_label_and_not_by_its_settings():
    assert tuned("ft-mp").name == "pocket-gpt2, finetuning: FT + Mask + Para, pocket-facts, trial 0"
    assert tuned("ft-mp").variant == "FT + Mask + Para"
    assert tuned("ft-mp", settings={"epochs": 2}, stop="none").variant == "FT + Mask + Para, stop none, epochs 2"
    assert tuned("ft", assist={"neighbors": "na"}).name.startswith("pocket-gpt2, finetuning: FT + NA, pocket-facts")
    assert len({tuned(recipe.name).variant for recipe in RECIPES}) == len(RECIPES)
    assert len({tuned(recipe.name).key for recipe in RECIPES} | {tuned().key}) == len(RECIPES) + 1


def test_the_same_settings_without_the_recipes_name_are_the_same_method():
    """Otherwise trials of one method would stand apart, by how their runs were asked for."""
    preset = editor_row("finetuning").preset("pocket-gpt2", recipe="ft-m").settings
    assert tuned(settings=asdict(preset)).variant == tuned("ft-m").variant == "FT + Mask"
    assert tuned().variant == tuned("ft-mpr").variant == "FT + Mask + Para + Rand"
    assert tuned(settings={"epochs": 2}).variant == "epochs 2"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"editor": "finetuning", "recipe": "ft-mpp"}, "Unknown recipe of Fine-tuning 'ft-mpp'. Did you mean 'ft-mp'?"),
        ({"editor": "memit", "recipe": "ft"}, "Unknown recipe of MEMIT 'ft'"),
        ({"editor": "finetuning", "recipe": ["ft"]}, "recipe must be text"),
        ({"editor": "finetuning", "recipe": None}, "recipe must be text"),
    ],
)
def test_a_recipe_that_the_editor_has_not_is_refused(values, message):
    with pytest.raises(BadSetting, match=f"^run 1: {message}"):
        RunConfig.of(values, "run 1")


@pytest.mark.parametrize("recipe", ["", "ft-mp"])
def test_a_configuration_with_or_without_a_recipe_comes_back(recipe):
    config = tuned(recipe)
    assert ("recipe" in config.to_json()) == bool(recipe)
    assert RunConfig.of(config.to_json()) == config


def test_runs_without_a_recipe_keep_the_key_they_are_stored_with():
    assert RunConfig().key == "0ab7eafe3910f045"
    assert tuned("ft-mp").key != tuned().key


def test_a_long_name_ends_with_what_only_this_run_has():
    long = replace(PLAIN, settings={"steps": 8, "rate": 0.123, "decay": 0.25, "clamp": 2.5, "kl_factor": 0.125})
    other = replace(long, settings={**long.settings, "stop_below": 0.125})
    assert long.name == f"{NAME}, steps 8, rate 0.123, decay 0.25, … {long.key[:4]}"
    assert long.name[:-4] == other.name[:-4]
    assert long.name != other.name
    endless = replace(long, model="a" * 200)
    assert endless.name == f"{'a' * 82}, … {endless.key[:4]}"
    assert len(endless.name) == MOST_NAME > len(long.name)


def test_trials_of_a_variant_differ_in_records_and_seed_only():
    runs = [replace(PLAIN, trial=trial, seed=trial, settings={"steps": 8}) for trial in range(3)]
    assert {run.variant for run in runs} == {"steps 8"}
    assert replace(runs[0], seed=9, limit=5, dataset="zsre", protocol="single").variant == "steps 8"
    assert PLAIN.variant == ""
