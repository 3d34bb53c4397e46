"""Edits that come from elsewhere: our own file, a LoRA adapter's folder, or the zip of one.

Nothing in them is trusted: kinds, sizes, names, shapes and numbers are checked against the model before an edit is
given back, nothing is unpickled or executed, and no path that a file names is followed.
"""

from dataclasses import replace
from pathlib import Path

from editing_core.errors import BadRequest
from editing_core.export.archive import unpacked
from editing_core.export.edit_file import read_edit
from editing_core.export.fitting import check_fits
from editing_core.export.origin import Origin, check_base
from editing_core.export.peft_files import read_adapter
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
KINDS = "an edit saved by EditScope (.safetensors), the folder of a LoRA adapter, or a .zip of one"


def import_edit(lm: LanguageModel, path: Path | str) -> Edit:
    """The edit in a file or folder, once it is sure that it fits the model; BadRequest with the reason where not.

    Its provenance is what the file tells of its origin, as `Origin.of` reads it; its note ends with what is not known.
    """
    path = Path(path)
    with lm.lock:
        delta = _read(lm, path)
        origin = Origin.of(delta.provenance)
        remarks = check_base(lm, origin)
        check_fits(lm, delta)
    note = " ".join(filter(None, (origin.note, *remarks)))
    return delta.described(replace(origin, note=note).texts())


def _read(lm: LanguageModel, path: Path) -> Edit:
    kind = path.suffix.lower()
    if kind in PICKLES:
        raise BadRequest(
            f"{path.name[:80]} may be a pickle, which can run code and is never read; give {KINDS}, or save it as "
            "safetensors first."
        )
    if path.is_dir():
        return read_adapter(lm, path)
    if not path.is_file():
        raise BadRequest(f"There is no file or folder {path.name[:80]!r}; give {KINDS}.")
    if kind == ".zip":
        with unpacked(path) as folder:
            return read_adapter(lm, folder)
    if kind != ".safetensors":
        raise BadRequest(f"{path.name[:80]} is of no kind that is read here; give {KINDS}.")
    return read_edit(path)
