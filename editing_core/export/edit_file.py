"""An edit as one file of our own: all its numbers as they are, and where it comes from.

A safetensors file. Its tensors are "PARAMETER|left" (d_out, r) and "PARAMETER|right" (r, d_in), whose product is added
to the weight y = W x, or "PARAMETER|value" (d_out, d_in) or (d,), which is added as it is. A module of type Conv1D, as
GPT-2 has them, stores its weight transposed, and so takes the transpose. The sum is made in float64 and rounded once.
The metadata are {"format": "editscope-delta-1", "provenance": JSON}, the latter an object of texts, see `Origin`.
Edits that are no weights have the format "editscope-edit-1", tensors "KIND/NAME" and "kinds": JSON, facts by kind.
"""

from pathlib import Path

from safetensors import SafetensorError

from editing_core.errors import BadRequest
from editing_core.export.fitting import MAX_BYTES
from editing_core.files import whole
from editing_core.models.edit import Edit
from editing_core.models.edits import load
from editing_core.models.memory import told


def write_edit(path: Path, delta: Edit) -> None:
    """Write the edit with its provenance, whole or not at all; BadRequest when it is empty or cannot be written.

    `origin.described` and `origin.made_here` give an edit the provenance it should have.
    """
    if delta.empty:
        raise BadRequest("The edit changes nothing, so there is nothing to write; choose an edit that took.")
    if path.suffix != ".safetensors":
        raise BadRequest(f"An edit is written to a file that ends in .safetensors, got {path.name!r}; name it so.")
    try:
        with whole(path) as part:
            delta.save(part)
    except SafetensorError as error:  # its own kind where the disk is full
        raise BadRequest(f"{path.name} could not be written; choose another place.") from error


def read_edit(path: Path) -> Edit:
    """What `write_edit` wrote, with its provenance as texts; BadRequest for anything else.

    Whether it fits a model is not asked here, see `fitting` and `importing`.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BadRequest(f"{path.name} could not be read ({error.strerror}); choose another file.") from error
    if size > MAX_BYTES:
        raise BadRequest(f"{path.name} takes {told(size)}, at most {told(MAX_BYTES)} are read; choose a smaller edit.")
    if path.name == "adapter_model.safetensors":
        raise BadRequest(f"{path.name} is one half of an adapter; give its folder, with adapter_config.json.")
    try:
        delta = load(path)
    except BadRequest:
        raise
    except Exception as error:
        # `load` refuses most; what else the libraries below it raise on damaged input has no common base.
        raise BadRequest(f"{path.name} is damaged; choose an edit saved by EditScope.") from error
    if not all(isinstance(text, str) for text in delta.provenance.values()):
        raise BadRequest(f"{path.name} tells its origin in other things than texts; choose an edit saved by EditScope.")
    return delta
