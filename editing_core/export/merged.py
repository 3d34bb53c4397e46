"""The edited model as a model of its own: what transformers loads without knowing of any edit."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from editing_core.errors import BadRequest
from editing_core.export.card import README, card
from editing_core.export.fitting import check_fits, weights_of
from editing_core.export.folders import check_place, whole_folder
from editing_core.export.origin import made_here
from editing_core.files import write_text
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel
from editing_core.models.memory import told

BESIDE = 64 * 2**20  # bytes of tokenizer, configuration and what the file system needs for itself


def write_merged(lm: LanguageModel, delta: Edit, folder: Path) -> None:
    """Write weights with the edit in them (safetensors), tokenizer and README.md, whole or not at all.

    The weights are of the model's own precision. The model is bit-equal afterwards. BadRequest where the edit does not
    fit, another one is on, or the folder holds something or has no room.
    """
    folder = folder.resolve()
    check_place(folder)
    _check_room(lm, folder)
    delta = weights_of(made_here(lm, delta), delta.can_merge, "a whole model")
    with lm.lock:
        if lm.edited:
            raise BadRequest(f"{lm.name} carries another edit, which would go along; take it off first.")
        check_fits(lm, delta)
        if not delta.added_to(lm.model):
            raise BadRequest(
                f"{lm.name} is packed or offloaded where the edit changes it, so that nothing can be added there; "
                "export an adapter, or load the model plain and whole."
            )
        with whole_folder(folder) as part:
            with delta.applied(lm), _same_config(lm):
                lm.model.save_pretrained(part)
            lm.tokenizer.save_pretrained(part)
            write_text(part / README, card(lm, delta, "merged"))


@contextmanager
def _same_config(lm: LanguageModel) -> Iterator[None]:
    """Saving writes into the configuration what it was saved as."""
    config = lm.model.config
    before = {name: getattr(config, name, None) for name in ("dtype", "architectures")}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def _check_room(lm: LanguageModel, folder: Path) -> None:
    needed = sum(p.numel() * p.element_size() for p in lm.model.parameters()) + BESIDE
    there = next(p for p in folder.parents if p.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise BadRequest(
            f"The merged model takes {told(needed)}, {there.name or there} has {told(free)} free; name a folder with "
            "room, or export an adapter, which is small."
        )
