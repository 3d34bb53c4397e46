"""Layers by relative depth: close to what was published, inside every model, and marked as suggestions."""

import json

import pytest

from editing_core import depths
from editing_core.depths import SINGLE, SPREAD, TRAINED, depth_of, layers_at
from editing_core.models.catalog import CATALOG
from editing_core.registry import EDITORS, editor_row


@pytest.mark.parametrize(
    ("rule", "depth", "layers"),
    [
        (SPREAD, 28, (4, 5, 6, 7, 8)),  # GPT-J's 3-8
        (SPREAD, 32, (5, 6, 7, 8, 9)),  # Llama-2's 4-8
        (SPREAD, 48, (10, 11, 12, 13, 14)),  # GPT-2 XL's 13-17
        (SPREAD, 12, (0, 1, 2, 3)),
        (SPREAD, 1, (0,)),
        (SINGLE, 28, (7,)),
        (SINGLE, 2, (0,)),
        (TRAINED, 28, (3, 4, 5)),
        (TRAINED, 32, (4, 5, 6)),
    ],
)
def test_rules(rule, depth, layers):
    assert layers_at(rule, depth) == layers


@pytest.mark.parametrize("name", [name for name, row in EDITORS.items() if row.layers(row.settings_class())])
def test_every_model_has_the_layers_suggested_for_it(name):
    row = editor_row(name)
    for depth in range(1, 100):
        preset = row.preset("unheard-of", depth=depth)
        layers = getattr(preset.settings, "layers", None) or (preset.settings.layer,)
        assert 0 <= min(layers) <= max(layers) < depth
        assert preset.suggested
        assert "not validated" in preset.source


def test_a_published_preset_comes_before_any_rule():
    row = editor_row("memit")
    assert row.preset("gpt-j-6b", depth=6) == row.preset("gpt-j-6b")
    assert not row.preset("gpt-j-6b").suggested


def test_a_model_of_the_catalog_knows_its_depth():
    assert all(depth_of(name) for name in CATALOG)
    assert depth_of("pocket-gpt2") == 6
    found = editor_row("memit").preset("qwen2.5-0.5b")
    assert found.settings.layers == layers_at(SPREAD, 24)
    assert "24 blocks" in found.source
    assert found.suggested


def test_a_model_on_this_machine_does_too(monkeypatch, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"num_hidden_layers": 16}))
    monkeypatch.setattr(
        depths, "try_to_load_from_cache", lambda source, _name: str(file) if source == "me/mine" else None
    )
    assert depth_of("me/mine") == 16
    assert editor_row("rome").preset("me/mine").settings.layer == 4
    assert depth_of("me/other") is None
    for text in ("{", json.dumps({"num_hidden_layers": "many"})):
        file.write_text(text)
        assert depth_of("me/mine") is None


@pytest.mark.parametrize("name", ["unheard-of", "../etc/passwd", "a/../b", ""])
def test_of_others_nothing_is_known(name):
    assert depth_of(name) is None
    assert editor_row("memit").preset(name).source == "defaults, not tuned for this model"
