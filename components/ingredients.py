"""Recipes and ingredients of an editor that has some: a named set of choices, and a switch for each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from editing_core.editors.row import EditorRow
from editing_core.registry import EDITORS
from editing_core.settings import Settings

OWN = "own choice"


@dataclass(frozen=True)
class Ingredients:
    """Widgets, shown for the editor with recipes. editor: its name; ladder: trains by one recipe after the other."""

    editor: str
    box: gr.Group
    recipe: gr.Dropdown
    switches: gr.CheckboxGroup
    ladder: gr.Button

    @property
    def followers(self) -> list[Any]:
        """What changes with editor, model and settings."""
        return [self.box, self.recipe, self.switches]


def build(row: EditorRow, settings: Settings, model: str) -> Ingredients:
    """Place the widgets, hidden: another editor comes first."""
    with gr.Group(visible=False) as box:
        recipes = [(recipe.label, recipe.name) for recipe in row.recipes]
        recipe = gr.Dropdown(
            [*recipes, (OWN, OWN)],
            value=_recipe(row, settings, model),
            label="Recipe",
            elem_id="recipe",
        )
        switches = gr.CheckboxGroup(
            [(_explained(f), f.name) for f in _switches(settings)],
            value=switched_on(settings),
            label="Ingredients",
            elem_id="ingredients",
            elem_classes="es-ingredients",
        )
        ladder = gr.Button("Compare ingredients on these facts", size="sm", elem_id="ladder")
    return Ingredients(row.name, box, recipe, switches, ladder)


def the_editor() -> EditorRow:
    """The editor that has recipes."""
    return next(row for row in EDITORS.values() if row.recipes)


def show(view: Ingredients, editor: str, settings: Settings, model: str, conventions: str) -> dict[Any, Any]:
    """What stands for the settings of the view's editor; hidden while another one is chosen."""
    row = EDITORS[view.editor]
    return {
        view.box: gr.Group(visible=editor == view.editor),
        view.recipe: _recipe(row, settings, model, conventions),
        view.switches: switched_on(settings),
    }


def switched_on(settings: Settings) -> list[str]:
    """Names of the switches that are on."""
    return [f.name for f in _switches(settings) if getattr(settings, f.name)]


def switch(settings: Settings, preset: Settings, names: Sequence[str]) -> Settings:
    """Settings with these switches on and the others off; one turned on takes the preset's amount, if it has one."""
    changes: dict[str, Any] = {}
    for f in _switches(settings):
        is_on = bool(getattr(settings, f.name))
        if f.name in names and not is_on:
            changes[f.name] = getattr(preset, f.name) or f.metadata["on"]
        if f.name not in names and is_on:
            changes[f.name] = type(f.metadata["on"])(0)
    return settings.changed(changes)


def _switches(settings: Settings) -> list[Any]:
    return [f for f in fields(settings) if f.metadata["on"] is not None]


def _explained(field: Any) -> str:
    return str(field.metadata["help"])


def _recipe(row: EditorRow, settings: Settings, model: str, conventions: str = "clean") -> str:
    found = row.recipe_of(settings, model, conventions)
    return found.name if found else OWN


def is_recipe(values: Mapping[Any, Any], view: Ingredients) -> bool:
    """Whether a named recipe is chosen."""
    return values[view.recipe] in {recipe.name for recipe in EDITORS[view.editor].recipes}
