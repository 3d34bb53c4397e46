"""The settings form: editor, iterations and stop rule, and every other setting built from its dataclass field."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from html import escape
from types import MappingProxyType
from typing import Any, TypeVar

import gradio as gr

from components import ingredients
from components.ingredients import Ingredients
from editing_core.conventions import CONVENTIONS
from editing_core.editors.assist import Assist
from editing_core.editors.stopping import MAX_ROUNDS, StopSettings
from editing_core.errors import BadSetting
from editing_core.evaluation.consistency import References, bundled_references
from editing_core.models.catalog import DEFAULT, unknown
from editing_core.registry import EDITORS, editor_row
from editing_core.runs.record import EditPlan
from editing_core.settings import Settings, default_of

AnySettings = TypeVar("AnySettings", bound=Settings)
STOPS = [
    ("|Δp| within tolerance", "perplexity"),
    ("|Δp| no longer falls", "monotone"),
    ("p spread changes little", "small-change"),
    ("none", "none"),
]
CHATS = [("none", "none"), ("assistant goes on", "statement"), ("user asks", "question")]
ASSISTS = [("off", "off"), ("NA", "na"), ("NAP", "nap")]


@dataclass(frozen=True)
class SettingsForm:
    """Widgets of the plan. `groups` and `widgets` are per editor; only the chosen editor's group is shown.

    generate: whether generated texts are measured too. assists: the widgets of neighbor assistance by the field they
    set.
    """

    editor: gr.Dropdown
    iterations: gr.Slider
    stop: gr.Radio
    tolerance: gr.Number
    collapse_factor: gr.Number
    seed: gr.Number
    generate: gr.Checkbox
    conventions: gr.Radio
    chat: gr.Radio
    assists: dict[str, Any]
    preset: gr.HTML
    groups: dict[str, gr.Group]
    widgets: dict[str, dict[str, Any]]
    ingredients: Ingredients

    @property
    def inputs(self) -> list[Any]:
        """What a plan and references are read from."""
        own = [widget for group in self.widgets.values() for widget in group.values()]
        shared = [self.editor, self.iterations, self.stop, self.tolerance, self.collapse_factor, self.seed]
        chosen = [self.ingredients.recipe, self.ingredients.switches]
        return [*shared, self.generate, self.conventions, self.chat, *self.assists.values(), *own, *chosen]

    @property
    def followers(self) -> list[Any]:
        """What changes with the editor or the model."""
        own = [widget for group in self.widgets.values() for widget in group.values()]
        return [self.preset, *self.groups.values(), *own, *self.ingredients.followers]


def build() -> SettingsForm:
    """Place the plan's widgets."""
    with gr.Row(elem_classes="es-fields"):
        editor = gr.Dropdown(
            [(r.label, r.name) for r in EDITORS.values()],
            value="memit",
            label="Editor",
            min_width=100,
            elem_id="editor",
        )
        iterations = gr.Slider(1, MAX_ROUNDS, value=5, step=1, label="Iterations", min_width=150, elem_id="iterations")
        assist = gr.Radio(ASSISTS, value="off", label="Neighbor assistance", min_width=150, elem_id="assistance")
    rich = ingredients.the_editor()
    choice = ingredients.build(rich, rich.preset(DEFAULT).settings, DEFAULT)
    with gr.Accordion("Stop rule, assistance, seed and editor settings", open=False, elem_id="settings"):
        stop = gr.Radio(STOPS, value="perplexity", label="Stop rule", elem_id="stop-rule")
        with gr.Row(elem_classes="es-fields"):
            tolerance = gr.Number(1.0, label="Tolerance (epsilon)", min_width=100, elem_id="tolerance")
            collapse_factor = gr.Number(3.0, label="Collapse guard (0: off)", min_width=100, elem_id="collapse-factor")
            seed = gr.Number(0, label="Seed", precision=0, min_width=100, elem_id="seed")
        generate = gr.Checkbox(False, label="Also fluency and consistency of generated texts", elem_id="also-texts")
        with gr.Row(elem_classes="es-fields"):
            conventions = gr.Radio(
                list(CONVENTIONS), value="clean", label="Conventions", min_width=130, elem_id="conventions"
            )
            chat = gr.Radio(CHATS, value="none", label="Chat template (instruct models)", min_width=220, elem_id="chat")
        with gr.Accordion("How neighbors assist", open=False, elem_id="assist-settings"):
            assists = {"neighbors": assist}
            rest = [f for f in fields(Assist) if f.name != "neighbors"]
            assists |= {f.name: widget_for(f, default_of(f)) for f in rest}
        preset = gr.HTML(preset_html("memit", DEFAULT), elem_id="preset")
        groups, widgets = {}, {}
        for row in EDITORS.values():
            with gr.Group(visible=row.name == "memit") as group:
                widgets[row.name] = _fields(row.preset(DEFAULT).settings)
            groups[row.name] = group
    limits = (iterations, stop, tolerance, collapse_factor)
    return SettingsForm(editor, *limits, seed, generate, conventions, chat, assists, preset, groups, widgets, choice)


def _fields(settings: Settings) -> dict[str, Any]:
    """A widget for each setting, under the headings they have."""
    widgets, heading = {}, ""
    for f in fields(settings):
        if f.metadata["group"] != heading:
            heading = f.metadata["group"]
            gr.HTML(f"<div class='es-heading'>{escape(heading)}</div>")
        widgets[f.name] = widget_for(f, getattr(settings, f.name))
    return widgets


def widget_for(field: "Field[Any]", value: Any) -> Any:
    """The widget of one setting: a new field in a settings class appears here by itself."""
    default, meta = default_of(field), field.metadata
    label, info = field.name.replace("_", " "), meta["help"]
    if meta["low"] is not None:
        info += f" ({meta['low']:g} to {meta['high']:g})"
    if isinstance(default, bool):
        return gr.Checkbox(value, label=label, info=info)
    if meta["choices"]:
        return gr.Dropdown(list(meta["choices"]), value=value, label=label, info=info)
    if isinstance(default, int | float):
        return gr.Number(value, label=label, info=info)
    return gr.Textbox(_shown(value), label=label, info=info, max_lines=1)


def preset_html(editor: str, model: str, conventions: str = "clean") -> str:
    """Which preset is filled in and where it comes from; suggested ones are marked."""
    row = editor_row(editor)
    preset = row.preset(model, conventions)
    mark = " <b class='es-mark'>suggested</b>" if preset.suggested else ""
    remark = f"<br>{escape(row.remark)}" if row.remark else ""
    cannot = "".join(f"<br>Not for {what}: {escape(reason)}" for what, reason in row.cannot.items())
    return (
        f"<div class='es-hint'>{escape(row.label)}: {escape(row.summary)}<br>"
        f"Preset for {escape(model)}: {escape(preset.source)}{mark}{remark}{cannot}</div>"
    )


def show_preset(
    form: SettingsForm,
    editor: str,
    model: str,
    conventions: str = "clean",
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> dict[Any, Any]:
    """The chosen editor's group, filled with its preset for the model; `changes` are those of an example."""
    shown: dict[Any, Any] = {form.preset: preset_html(editor, model, conventions)}
    for name, group in form.groups.items():
        shown[group] = gr.Group(visible=name == editor)
        settings = editor_row(name).preset(model, conventions).settings.changed(changes if name == editor else {})
        shown |= _show_fields(form, name, settings)
        if name == form.ingredients.editor:
            shown |= ingredients.show(form.ingredients, editor, settings, model, conventions)
    return shown


def _show_fields(form: SettingsForm, editor: str, settings: Settings) -> dict[Any, Any]:
    return {widget: _shown(getattr(settings, field)) for field, widget in form.widgets[editor].items()}


def show_recipe(form: SettingsForm, values: Mapping[Any, Any], model: str) -> dict[Any, Any]:
    """Another recipe: its settings, in place of all there were."""
    view, conventions = form.ingredients, str(values[form.conventions])
    if not ingredients.is_recipe(values, view):
        return show_ingredients(form, values, model)  # an own choice is what there is
    settings = editor_row(view.editor).preset(model, conventions, str(values[view.recipe])).settings
    shown = ingredients.show(view, view.editor, settings, model, conventions)
    return {**_show_fields(form, view.editor, settings), **shown}


def show_switches(form: SettingsForm, values: Mapping[Any, Any], model: str) -> dict[Any, Any]:
    """An ingredient was switched: its amount, and the recipe that makes, if it is one."""
    view, conventions = form.ingredients, str(values[form.conventions])
    preset = editor_row(view.editor).preset(model, conventions).settings
    settings = ingredients.switch(_read_settings(values, form, view.editor), preset, values[view.switches])
    shown = ingredients.show(view, view.editor, settings, model, conventions)
    return {**_show_fields(form, view.editor, settings), **shown}


def show_ingredients(form: SettingsForm, values: Mapping[Any, Any], model: str) -> dict[Any, Any]:
    """A setting was changed by hand: the switches and the recipe it makes."""
    view = form.ingredients
    settings = _read_settings(values, form, view.editor)
    return ingredients.show(view, str(values[form.editor]), settings, model, str(values[form.conventions]))


def show_plan(form: SettingsForm, plan: EditPlan, model: str) -> dict[Any, Any]:
    """The form as it would ask for a plan; conventions that are no set of their own show as the clean ones."""
    plain = replace(plan.conventions, chat="none")
    conventions = next((name for name, found in CONVENTIONS.items() if found == plain), "clean")
    settings = {f.name: getattr(plan.settings, f.name) for f in fields(plan.settings)}
    return {
        **show_preset(form, plan.editor, model, conventions, settings),
        form.editor: plan.editor,
        form.iterations: plan.stop.iterations,
        form.stop: plan.stop.stop,
        form.tolerance: plan.stop.tolerance,
        form.collapse_factor: plan.stop.collapse_factor,
        form.seed: plan.seed,
        form.conventions: conventions,
        form.chat: plan.conventions.chat,
        **show_assist(form, {f.name: getattr(plan.assist, f.name) for f in fields(plan.assist)}),
    }


def show_assist(form: SettingsForm, changes: Mapping[str, Any]) -> dict[Any, Any]:
    """The widgets of neighbor assistance as an example wants them."""
    assist = Assist().changed(changes)
    return {widget: getattr(assist, name) for name, widget in form.assists.items()}


def read_plan(values: Mapping[Any, Any], form: SettingsForm) -> EditPlan:
    """The plan the form asks for; BadSetting with a sentence when a value cannot be used."""
    row = editor_row(values[form.editor])
    settings = _read_settings(values, form, row.name)
    stop = StopSettings(
        iterations=_typed("iterations", values[form.iterations], 1),
        stop=str(values[form.stop]),
        tolerance=_typed("tolerance", values[form.tolerance], 1.0),
        collapse_factor=_typed("collapse_factor", values[form.collapse_factor], 1.0),
    )
    seed = _typed("seed", values[form.seed], 0)
    if not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise BadSetting(f"The seed is {seed!r}, allowed are whole numbers from 0 to {2**31 - 1}; choose one of them.")
    name = values[form.conventions]
    if name not in CONVENTIONS:
        raise unknown(str(name), "set of conventions", CONVENTIONS)
    conventions = CONVENTIONS[name].changed({"chat": values[form.chat]})
    return EditPlan(row.name, settings, stop, seed, read_assist(values, form), conventions)


def _read_settings(values: Mapping[Any, Any], form: SettingsForm, editor: str) -> Settings:
    return read_fields(values, form.widgets[editor], editor_row(editor).settings_class())


def read_fields(values: Mapping[Any, Any], widgets: Mapping[str, Any], defaults: AnySettings) -> AnySettings:
    """Settings as their widgets hold them, by the fields' names."""
    own = {name: values[widget] for name, widget in widgets.items()}
    return defaults.changed({name: _typed(name, value, getattr(defaults, name)) for name, value in own.items()})


def read_references(values: Mapping[Any, Any], form: SettingsForm) -> References | None:
    """What generated texts are to be compared with; None where none are to be generated."""
    return bundled_references() if values[form.generate] else None


def read_assist(values: Mapping[Any, Any], form: SettingsForm) -> Assist:
    """How neighbors are to assist."""
    defaults = {f.name: default_of(f) for f in fields(Assist)}
    return Assist().changed({name: _typed(name, values[w], defaults[name]) for name, w in form.assists.items()})


def _typed(name: str, value: Any, default: Any) -> Any:
    """A widget's value as the setting's type: whole numbers may arrive as floats, empty boxes as None."""
    if value is None or value == "":
        raise BadSetting(f"{name.replace('_', ' ')} is empty; enter a value such as {_shown(default)}.")
    if isinstance(default, bool):
        return value
    if isinstance(default, int) and isinstance(value, float) and value.is_integer():
        return int(value)
    return float(value) if isinstance(default, float) and isinstance(value, int) else value


def _shown(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value
