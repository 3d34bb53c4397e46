"""One export from edit to proof: write it, load it elsewhere and compare, and tell the result in its README.md."""

from pathlib import Path

from editing_core.errors import BadRequest
from editing_core.export.adapter import OWN, write_adapter
from editing_core.export.card import README, card
from editing_core.export.compress import compressed
from editing_core.export.edit_file import write_edit
from editing_core.export.folders import check_place
from editing_core.export.merged import write_merged
from editing_core.export.origin import Origin, made_here
from editing_core.export.verify import Check, check_source, verify
from editing_core.files import check_folder, write_text
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel
from editing_core.types import Watch, ignore

KINDS = ("adapter", "merged", "edit")


def check_target(kind: str, path: Path) -> None:
    """BadRequest where an export of this kind could not be written there; asked before long work begins."""
    if kind not in KINDS:
        raise BadRequest(f"There is no export {kind[:40]!r}, allowed are {', '.join(KINDS)}; choose one of them.")
    if kind != "edit":
        check_place(path, OWN if kind == "adapter" else frozenset())
    elif path.is_dir() or path.suffix != ".safetensors":
        raise BadRequest(f"An edit is written to a file that ends in .safetensors, got {path.name!r}; name it so.")
    else:
        check_folder(path.absolute().parent)


def export(
    lm: LanguageModel, delta: Edit, kind: str, path: Path, watch: Watch = ignore, check: bool = True
) -> Check | None:
    """Write the edit as an adapter, a merged model or an edit file, and check it; None without a check.

    delta: with its origin as provenance, where it is known. A check that fails is given back like any other, and the
    README.md says so; a cancelled check leaves the export without one. An edit that is no change of weights has no
    other reader to be checked by.
    """
    check_target(kind, path)
    if check:
        check_source(lm)
    delta = made_here(lm, delta)
    if kind == "adapter":
        write_adapter(lm, delta, path)
    elif kind == "merged":
        write_merged(lm, delta, path)
    else:
        write_edit(path, delta)
    if not check or not delta.can_merge:  # other programs can read nothing but weights
        return None
    found = verify(lm, delta, path, kind, Origin.of(delta.provenance).requests, watch)
    if kind != "edit":
        write_text(path / README, card(lm, delta, kind, found))
    return found


def shrunk(delta: Edit, rank: int | None, energy: float | None, watch: Watch = ignore) -> Edit:
    """The edit compressed where a rank or an energy is given, with what that gave up in its note; else as it is."""
    if rank is None and energy is None:
        return delta
    return compressed(delta, rank, energy or 0.0, watch).delta
