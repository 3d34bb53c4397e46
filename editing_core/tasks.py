"""Tasks: work on a model as a value, so that another process can do it.

In: a function of a module, the model's name, arguments, and how much there is to compute. What a process has itself,
models and statistics, comes in where the task is done.
"""

from collections.abc import Callable
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from editing_core.duration import seconds
from editing_core.editors.load import Load
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


@dataclass(frozen=True, eq=False)
class _Array:
    """A tensor's numbers in the processor's memory."""

    numbers: np.ndarray


@dataclass(frozen=True, eq=False)
class Packed:
    """A value for a process that was forked from this one or that forked it, its tensors as arrays.

    Queues of `multiprocessing` hand tensors over as shared memory: one open file for each, as long as it is kept.
    """

    value: Any

    def unpacked(self) -> Any:
        """The value as it was, tensors on the processor."""
        return _mapped(self.value, _Array, lambda array: from_numpy(array.numbers))


def pack(value: Any) -> Packed:
    """The value with its tensors, however deep in containers and objects with fields, as arrays."""
    return Packed(_mapped(value, Tensor, lambda tensor: _Array(tensor.detach().cpu().numpy())))


def _mapped(value: Any, kind: type, change: Callable[[Any], Any], done: dict[int, Any] | None = None) -> Any:
    """A copy in which everything of a kind is changed; what cannot hold any is the same object.

    done: copies by the original's id, so that what was one object in two places is one again.
    """
    done = {} if done is None else done
    if id(value) not in done:
        done[id(value)] = _copied(value, kind, change, done)
    return done[id(value)]


def _copied(value: Any, kind: type, change: Callable[[Any], Any], done: dict[int, Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return type(value)((key, _mapped(part, kind, change, done)) for key, part in value.items())
    if type(value) in (list, tuple):
        return type(value)([_mapped(part, kind, change, done) for part in value])
    if not is_dataclass(value) or isinstance(value, type):
        return value
    moved = copy(value)
    for name, part in vars(value).items():
        object.__setattr__(moved, name, _mapped(part, kind, change, done))  # frozen ones too
    return moved
