"""The benchmark form: data set, editors with recipes, neighbors, iterations, trials -> the content of a grid file."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from components.settings_form import ASSISTS, STOPS
from components.token_strip import hint_html
from editing_core import paths
from editing_core.bench.config import RunConfig
from editing_core.bench.desk import Limits
from editing_core.bench.grid import AXES, MOST_TRIALS, Grid, as_toml, grid_of
from editing_core.bench.protocols import PROTOCOLS
from editing_core.conventions import CONVENTIONS
from editing_core.data.datasets import FORMATS
from editing_core.data.zsre import DIRECTIONS
from editing_core.editors.row import EditorRow
from editing_core.editors.stopping import MAX_ROUNDS
from editing_core.errors import BadRequest, BadSetting
from editing_core.models.catalog import unknown
from editing_core.registry import EDITORS
from editing_core.settings import shown

OWN = "own"  # the choice of a file instead of a data set
MORE = ("common", "editor")
MOST_TEXT = 5000  # characters of settings
MOST_NAMED = 10  # choices told in one sentence
SUFFIXES = [".json", ".jsonl", ".csv"]
TEMPLATES = ("edits.csv", "edits.json")


@dataclass(frozen=True)
class BenchForm:
    """Widgets of the form."""

    dataset: gr.Dropdown
    own: gr.Group
    kind: gr.Dropdown
    file: gr.File
    limit: gr.Number
    trials: gr.Number
    first: gr.Number
    editors: gr.CheckboxGroup
    recipes: gr.Dropdown
    neighbors: gr.CheckboxGroup
    iterations: gr.Slider
    stop: gr.Radio
    protocol: gr.Radio
    chunk: gr.Number
    preset: gr.Radio
    direction: gr.Radio
    eligible: gr.Checkbox
    skip_bad: gr.Checkbox
    generate: gr.Checkbox
    more: gr.Textbox
    text: gr.Textbox

    @property
    def inputs(self) -> list[Any]:
        """What a grid is read from."""
        return [widget for name, widget in vars(self).items() if name not in ("own", "text")]


def build(limits: Limits | None) -> BenchForm:
    """Place the widgets. limits: those of a public page."""
    dataset = gr.Dropdown(data_sets(), value="pocket-facts:test", label="Data set", elem_id="bench-dataset")
    own = _build_own()
    with gr.Row(elem_classes="es-fields"):
        limit = gr.Number(100, label="Edits per run", precision=0, min_width=90, elem_id="bench-limit")
        trials = gr.Number(1, label="Trials", precision=0, min_width=70, elem_id="bench-trials")
        first = gr.Number(0, label="First trial", precision=0, min_width=70, elem_id="bench-first")
    editors = gr.CheckboxGroup(
        [(row.label, row.name) for row in EDITORS.values()], value=["memit"], label="Editors", elem_id="bench-editors"
    )
    recipes = gr.Dropdown(
        [choice for row in EDITORS.values() for choice in _recipes_of(row)],
        value=[],
        multiselect=True,
        label=f"Recipes of {' and '.join(row.label.lower() for row in EDITORS.values() if row.recipes)}",
        info="A run for each; without any, the preset's.",
        visible=False,
        elem_id="bench-recipes",
    )
    neighbors = gr.CheckboxGroup(ASSISTS, value=["off"], label="Neighbor assistance", elem_id="bench-neighbors")
    rounds = limits.iterations if limits else MAX_ROUNDS
    iterations = gr.Slider(1, rounds, value=5, step=1, label="Iterations", elem_id="bench-iterations")
    return BenchForm(
        dataset=dataset,
        **own,
        limit=limit,
        trials=trials,
        first=first,
        editors=editors,
        recipes=recipes,
        neighbors=neighbors,
        iterations=iterations,
        **_build_more(),
    )


def have_recipes(editors: Any) -> bool:
    """Whether any of the ticked editors has recipes."""
    return isinstance(editors, list) and any(row.recipes and row.name in editors for row in EDITORS.values())


def _recipes_of(row: EditorRow) -> list[tuple[str, str]]:
    """(label, name in a grid) of an editor's recipes."""
    return [(recipe.label, f"{row.name}:{recipe.name}") for recipe in row.recipes]


def data_sets() -> list[tuple[str, str]]:
    """(label, value) of what needs no file, and of a file of one's own."""
    shown = []
    for name, row in FORMATS.items():
        shown += [(f"{row.label}, {part}", f"{name}:{part}") for part in row.parts]
        shown += [(f"{row.label} (from the hub)", name)] if row.hub else []
    return [*shown, ("Own file", OWN)]


def _build_own() -> dict[str, Any]:
    kinds = [(row.label, name) for name, row in FORMATS.items() if not row.parts]
    with gr.Group(visible=False) as own:
        kind = gr.Dropdown(kinds, value="table", label="Format of the file", elem_id="bench-kind")
        file = gr.File(label="Records", file_types=SUFFIXES, height=90, elem_id="bench-file")
        with gr.Row(elem_classes="es-fields"):
            for name in TEMPLATES:
                place = str(paths.assets() / "templates" / name)
                gr.DownloadButton(f"Template {Path(name).suffix[1:].upper()}", place, size="sm", min_width=90)
    return {"own": own, "kind": kind, "file": file}


def _build_more() -> dict[str, Any]:
    """What is seldom changed."""
    with gr.Accordion("Stop rule, protocol, conventions, settings", open=False, elem_id="bench-more"):
        stop = gr.Radio(STOPS, value="perplexity", label="Stop rule", elem_id="bench-stop")
        protocol = gr.Radio(list(PROTOCOLS), value="batch", label="Protocol", elem_id="bench-protocol")
        with gr.Row(elem_classes="es-fields"):
            chunk = gr.Number(
                1, label="Records per chunk (sequential)", precision=0, minimum=1, min_width=100, elem_id="bench-chunk"
            )
            preset = gr.Radio(
                list(CONVENTIONS), value="clean", label="Conventions", min_width=120, elem_id="bench-conventions"
            )
        direction = gr.Radio(
            list(DIRECTIONS), value=DIRECTIONS[0], label="ZsRE edits towards", elem_id="bench-direction"
        )
        eligible = gr.Checkbox(
            False, label="Only records with eligible neighbors, and only those", elem_id="bench-eligible"
        )
        skip_bad = gr.Checkbox(False, label="Go on without malformed records", elem_id="bench-skip-bad")
        generate = gr.Checkbox(False, label="Also fluency and consistency of generated texts", elem_id="bench-texts")
        more = gr.Textbox(
            "",
            label="Settings, as in a grid file",
            placeholder="[editor.memit]\nsettings = { steps = 20 }",
            lines=3,
            max_lines=8,
            max_length=MOST_TEXT,
            elem_id="bench-settings",
        )
    with gr.Accordion("The same from the command line", open=False, elem_id="bench-file-box"):
        gr.HTML(hint_html("Save this as grid.toml, then run: editscope bench --config grid.toml"))
        text = gr.Textbox("", show_label=False, lines=8, buttons=["copy"], interactive=False, elem_id="bench-grid")
    widgets = {"stop": stop, "protocol": protocol, "chunk": chunk, "preset": preset, "direction": direction}
    return {**widgets, "eligible": eligible, "skip_bad": skip_bad, "generate": generate, "more": more, "text": text}


def read_grid(values: Mapping[Any, Any], form: BenchForm, model: str, dataset: str) -> tuple[Grid, str]:
    """The grid the form asks for, and the same as a file. dataset: its name in a grid.

    BadSetting or BadRequest with a sentence for what cannot be run.
    """
    asked: dict[str, Any] = {
        "models": [model],
        "editors": _editors(values[form.editors], values[form.recipes]),
        "datasets": [dataset],
        "neighbors": _chosen(values[form.neighbors], "kind of neighbor assistance", [name for _, name in ASSISTS]),
        "trials": _trials(_whole(values[form.trials], "trials"), _whole(values[form.first], "first trial")),
    }
    names = ("stop", "protocol", "preset", "direction", "eligible", "skip_bad", "generate")
    common = {name: values[getattr(form, name)] for name in names}
    common |= {name: _whole(values[getattr(form, name)], name) for name in ("limit", "iterations", "chunk")}
    defaults = RunConfig()
    asked["common"] = {name: value for name, value in common.items() if value != getattr(defaults, name)}
    for name, table in _more(values[form.more]).items():
        asked[name] = {**asked.get(name, {}), **table}
    grid = grid_of(asked)
    if any(cell.texts or cell.references for cell in grid.cells):
        raise BadSetting("texts and references name files, which only the command line reads; leave them out.")
    return grid, as_toml({name: value for name, value in asked.items() if value != AXES.get(name)})


def _editors(editors: Any, recipes: Any) -> list[str]:
    """The ticked editors, each with those of its recipes that are chosen; recipes of editors that are not do not count.

    A recipe's place is where it is on offer: its paper's order.
    """
    asked = _chosen(editors, "editor", list(EDITORS))
    known = [name for row in EDITORS.values() for _, name in _recipes_of(row)]
    wanted = _chosen(recipes, "recipe", known) if recipes not in (None, []) else []
    found = []
    for editor in asked:
        own = [name for _, name in _recipes_of(EDITORS[editor]) if name in wanted]
        found += own or [editor]
    return found


def _trials(count: int, first: int) -> int | list[int]:
    """So many trials as a grid has them."""
    return list(range(first, first + min(count, MOST_TRIALS + 1))) if first else count


def _chosen(given: Any, what: str, known: Sequence[str]) -> list[str]:
    """What is ticked."""
    if not isinstance(given, list) or not given:
        raise BadSetting(f"No {what} is chosen, a benchmark needs at least one; choose one.")
    if len(given) > len(known) or not all(name in known for name in given):
        allowed = ", ".join(known) if len(known) <= MOST_NAMED else f"the {len(known)} of the list"
        raise BadSetting(f"As {what} {shown(given)} came, allowed are {allowed}; choose each at most once.")
    return given


def _whole(given: Any, name: str) -> int:
    # No more than a float can tell exactly; what is no number, or infinite, is not within that either.
    if isinstance(given, bool) or not isinstance(given, int | float) or not abs(given) < 2**53 or given != int(given):
        told = "nothing" if given is None else shown(given)
        raise BadSetting(f"{name} is {told}, but must be a whole number such as 1; correct it.")
    return int(given)


def _more(text: Any) -> Mapping[str, Mapping[str, Any]]:
    """Further tables of a grid file."""
    text = "" if text is None else text
    if not isinstance(text, str) or len(text) > MOST_TEXT:
        told = f"{len(text):,} characters" if isinstance(text, str) else shown(text)
        raise BadSetting(f"The settings are {told}, allowed is text of at most {MOST_TEXT:,} characters; shorten it.")
    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # the latter, and some of the former, from within the parser
        raise BadSetting(f"The settings are not readable TOML ({str(error)[:80]}); see the example there.") from error
    for name, table in found.items():
        if name not in MORE or not isinstance(table, dict):
            raise BadSetting(str(unknown(name, "table", MORE)))
    return found


def read_dataset(values: Mapping[Any, Any], form: BenchForm) -> tuple[str, Path | None]:
    """(data set or format, uploaded file or None) as chosen; only what the page offers is taken."""
    name = values[form.dataset]
    if name not in [value for _, value in data_sets()]:
        raise unknown(str(name), "data set", (value for _, value in data_sets()))
    if name != OWN:
        return str(name), None
    kind, file = values[form.kind], values[form.file]
    if not isinstance(kind, str) or kind not in FORMATS:
        raise unknown(str(kind), "format", FORMATS)
    if not file:
        raise BadRequest("No file was given; choose one with your records, or a bundled data set.")
    return str(kind), Path(file)
