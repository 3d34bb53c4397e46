"""Tasks: work on a model as a value, so that another process can do it.

In: a function of a module, the model's name, arguments, and how much there is to compute. What a process has itself,
models and statistics, comes in where the task is done. Packed, a task and what came of it are bytes.
"""

import io
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, from_numpy

from editing_core.duration import Load, seconds
from editing_core.models.host import ModelHost
from editing_core.models.placing import placed
from editing_core.statistics.covariance import CovarianceStore
from editing_core.types import Watch, ignore


@dataclass(frozen=True, eq=False)
class Task:
    """do: called as do(lm, store, watch, *arguments); what it gives can be packed. quick: a look, not an edit."""

    do: Callable[..., Any]
    model: str
    arguments: tuple[Any, ...]
    load: Load
    quick: bool = False

    def run(self, host: ModelHost, store: CovarianceStore, watch: Watch = ignore, device: str = "") -> Any:
        """Do it in this process and give the result. device: where the model is meanwhile; without, where it is.

        The model is bit-equal before and after.
        """
        lm = host.get(self.model)
        with lm.lock, placed(lm.model, device) if device else nullcontext():
            return self.do(lm, store, watch, *self.arguments)

    def seconds(self, host: ModelHost) -> float:
        """About how long it takes on a GPU that has to get the model's weights first; loads the model when needed."""
        model = host.get(self.model).model
        size = sum(p.numel() for p in model.parameters())
        return seconds(self.load, size, model.config.get_text_config().num_hidden_layers)


class _Packer(pickle.Pickler):
    """Tensors travel as arrays in the processor's memory.

    Queues of `multiprocessing` would hand them over as shared memory: one open file for each, as long as it is kept.
    """

    def reducer_override(self, value: Any) -> Any:
        """How a tensor is rebuilt; everything else as usual."""
        if isinstance(value, Tensor):
            return from_numpy, (value.detach().cpu().numpy(),)
        return NotImplemented


def pack(value: Any) -> bytes:
    """For a process that was forked from this one or that forked it, and for nobody else."""
    written = io.BytesIO()
    _Packer(written, pickle.HIGHEST_PROTOCOL).dump(value)
    return written.getvalue()


def unpack(packed: bytes) -> Any:
    """What `pack` was given. Only for bytes from a process of one's own: a pickle can run code."""
    return pickle.loads(packed)
