"""A settings value that exists is valid; text from a form or a command line is read by type."""

from dataclasses import fields

import pytest

from editing_core.editors.memit import MemitSettings
from editing_core.editors.pmet import PmetSettings
from editing_core.editors.rome import RomeSettings
from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadSetting
from editing_core.registry import EDITORS, editor_row
from editing_core.settings import Settings, default_of


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
    ],
)
def test_refuses(name, value, message):
    with pytest.raises(BadSetting, match=message):
        MemitSettings().changed({name: value})


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(BadSetting, match=r"Unknown setting 'step'. Did you mean 'steps'\? Known: "):
        MemitSettings().changed({"step": 3})


def test_choices():
    assert RomeSettings(key="bare").key == "bare"
    with pytest.raises(BadSetting, match="key is 'other', allowed are averaged, bare, mixed; choose one"):
        RomeSettings(key="other")


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
