"""Which editors there are. Each has its row, with settings and presets, at the end of its own file.

Adding an editor: one file in editors/, and its name here.
"""

from importlib import import_module

from editing_core.editors.row import EditorRow
from editing_core.models.catalog import unknown

FILES = (
    "memit",
    "pmet",
    "rome",
    "r_rome",
    "emmet",
    "alphaedit",
    "finetuning",
    "ike",
    "kn",
    "t_patcher",
    "calinet",
    "grace",
    "swea",
)
_ROWS: list[EditorRow] = [import_module(f"editing_core.editors.{file}").ROW for file in FILES]
EDITORS = {row.name: row for row in _ROWS}


def editor_row(name: str) -> EditorRow:
    """The row of an editor; UnknownName with the nearest known one otherwise."""
    if name not in EDITORS:
        raise unknown(name, "editor", EDITORS)
    return EDITORS[name]
