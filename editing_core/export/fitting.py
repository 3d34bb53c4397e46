"""Whether an edit from anywhere fits a model: names, shapes, sizes and numbers, before anything is done with it."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from editing_core.errors import BadRequest
from editing_core.models.delta import LowRank, Update, WeightDelta
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel
from editing_core.models.memory import told
from editing_core.models.slots import Slot

MAX_BYTES = 8 * 2**30  # of an edit that is read; the down-projections of a large model are less
MAX_RANK = 20_000  # columns of factors: as many facts as a run may have, in as many iterations
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_OTHER = "choose an edit that was made for it"


def check_fits(lm: LanguageModel, delta: Edit) -> None:
    """BadRequest unless every update is finite, of a parameter of this model, of its shape, and within bounds.

    Call with the model's lock held.
    """
    if delta.empty:
        raise BadRequest("The edit changes nothing; choose one that took.")
    if delta.size > MAX_BYTES:
        raise BadRequest(
            f"The edit takes {told(delta.size)}, at most {told(MAX_BYTES)} are read; choose a smaller one."
        )
    if not delta.updates:
        with delta.applied(lm):  # refused before anything is touched where it does not fit
            return
    parameters = dict(lm.model.named_parameters(remove_duplicate=False))
    named: dict[int, str] = {}
    for name, update in delta.updates.items():
        if name not in parameters:
            raise BadRequest(f"The edit changes {name[:80]!r}, which {lm.name} does not have; {_OTHER}.")
        # Two updates of one tensor could not be taken off again in the order they were put on.
        twin = named.setdefault(id(parameters[name]), name)
        if twin != name:
            raise BadRequest(f"The edit names {twin} and {name}, which are one weight in {lm.name}; {_OTHER}.")
        _check_update(lm, name, update)


def weights_of(delta: Edit, fits: bool, whither: str) -> WeightDelta:
    """The edit where weights are all it changes; BadRequest where it does not fit into what is to be written."""
    if not fits or not isinstance(delta, WeightDelta):
        raise BadRequest(
            f"The edit is made of {' and '.join(sorted(delta.parts))}, which {whither} cannot hold; take it along as "
            "EditScope's own file."
        )
    return delta


def _check_update(lm: LanguageModel, name: str, update: Update) -> None:
    wrong = next((t.dtype for t in update.tensors().values() if t.dtype not in FLOATS), None)
    if wrong is not None:
        raise BadRequest(f"The update of {name} holds numbers of type {wrong}, floating ones are needed; {_OTHER}.")
    shape = Slot.of(lm.model, name).shape
    if update.shape != shape:
        raise BadRequest(f"The update of {name} has shape {update.shape}, {lm.name} needs {shape}; {_OTHER}.")
    if isinstance(update, LowRank):
        columns = update.left.shape[1]
        if columns > MAX_RANK:
            raise BadRequest(f"The update of {name} has rank {columns:,}, at most {MAX_RANK:,} are read; {_OTHER}.")
    if not _bounded(update):
        raise BadRequest(f"The update of {name} holds numbers that are infinite, undefined or too large; {_OTHER}.")


def _bounded(update: Update) -> bool:
    """Whether every number of the update, of the product where there are factors, surely is one of float32."""
    # Sums before products, in double: the norm of a product is at most the product of the norms.
    norm = 1.0
    for tensor in update.tensors().values():
        norm *= float(tensor.double().square().sum()) ** 0.5
    return norm <= torch.finfo(torch.float32).max  # false for what is not a number, too


def sharing(model: nn.Module, name: str) -> list[str]:
    """Names of all modules whose weight is the parameter of that name: more than one where weights are tied."""
    parameter = model.get_parameter(name)
    return [own for own, module in model.named_modules() if getattr(module, "weight", None) is parameter]


def adaptable(module: nn.Module) -> bool:
    """Whether peft's LoRA has a layer for the module."""
    return isinstance(module, nn.Linear | Conv1D | nn.Embedding)
