"""Slot: the weight or bias of a module that an update is for, whatever way the model keeps it.

A plain slot holds numbers that an update is added to. Packed weights, as quantisation makes them, hold none, and
offloaded ones are on no device between forwards. There the update is carried beside, in adapter form: the module's
forward gives W x + update x until it is taken off. What such a slot stands for, the module itself tells from unit
vectors, so no way of packing has to be known.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from transformers.pytorch_utils import Conv1D

from editing_core.errors import BadRequest
from editing_core.models.architectures import is_transposed
from editing_core.models.hooks import answering

NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # eight-bit floats need scales beside them
TILE = 2**20  # entries that are read or summed in float64 at once


class Part(Protocol):
    """An update as far as it is needed here: a `LowRank` or a `Dense`."""

    def dense(self) -> Tensor:
        """(d_out, d_in) or (d,)."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Factors "left" (d_out, r) and "right" (r, d_in), or a "value"."""
        ...


@dataclass(frozen=True, eq=False)
class Slot:
    """`part` of `modules`, more than one where they share it. parameter: what the first keeps under that name."""

    name: str
    part: str
    modules: tuple[nn.Module, ...]
    parameter: Tensor | None

    @staticmethod
    def of(model: nn.Module, name: str) -> "Slot":
        """That of a parameter's name; BadRequest where the model has none, or nothing can be changed there."""
        path, _, part = name.rpartition(".")
        try:
            module = model.get_submodule(path)
        except AttributeError as error:
            raise _missing(name) from error
        parameter = module._parameters.get(part)
        if parameter is None and not (part == "weight" and matrix_shape(module)):
            raise _missing(name)
        own = Slot(name, part, (module,), parameter)
        if own.plain:
            return own
        if not _carries(module) or part not in ("weight", "bias"):
            raise BadRequest(
                f"The edit changes {name[:80]}, which is packed or offloaded here and of no linear layer, so it can "
                "neither be added nor carried beside; load the model plain and whole."
            )
        sharing = [m for m in model.modules() if m is not module and m._parameters.get(part) is parameter]
        return Slot(name, part, (module, *(sharing if parameter is not None else ())), parameter)

    @property
    def plain(self) -> bool:
        """Whether it holds numbers that an update can be added to."""
        p = self.parameter
        return p is not None and p.dtype in NUMBERS and p.device.type != "meta" and type(p.data) is Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(d_out, d_in) of a weight matrix however it is kept, (d,) of a vector."""
        if self.plain:
            assert self.parameter is not None
            return tuple(self.parameter.shape[::-1] if self.turned else self.parameter.shape)
        matrix = matrix_shape(self.modules[0])
        assert matrix is not None
        return matrix if self.part == "weight" else matrix[:1]

    @property
    def turned(self) -> bool:
        """Whether `rows` gives columns of the matrix: some modules store it so, and unit vectors give it so."""
        module = self.modules[0]
        if self.plain:
            return self.parameter is not None and self.parameter.dim() == 2 and is_transposed(module)
        return self.part == "weight" and not isinstance(module, nn.Embedding)

    @torch.no_grad()
    def rows(self) -> Iterator[tuple[slice, Tensor]]:
        """All that it holds or stands for, TILE entries at a time: which rows, and (n, width) or (n,) of them."""
        shape = self.shape[::-1] if self.turned else self.shape
        each = shape[1] if len(shape) == 2 else 1
        count = max(1, TILE // max(1, each))
        for start in range(0, shape[0], count):
            rows = slice(start, min(start + count, shape[0]))
            yield rows, self.parameter[rows].detach() if self.plain and self.parameter is not None else self._read(rows)

    def _read(self, rows: slice) -> Tensor:
        """What a module makes of unit vectors, or for a bias of zero."""
        module, numbers = self.modules[0], torch.arange(rows.start, rows.stop)
        like = next((t for t in (*module.parameters(False), *module.buffers(False))), numbers)
        # Modules that are offloaded are sent their inputs, from wherever.
        device = like.device if like.device.type != "meta" else torch.device("cpu")
        dtype = like.dtype if like.dtype in NUMBERS else torch.float32
        if isinstance(module, nn.Embedding):
            found: Tensor = module(numbers.to(device))
            return found
        shape = matrix_shape(module)
        assert shape is not None
        nothing: Tensor = module(torch.zeros(1, shape[1], dtype=dtype, device=device))[0]
        if self.part == "bias":
            return nothing[rows]
        units = nn.functional.one_hot(numbers, shape[1]).to(device, dtype)
        columns: Tensor = module(units) - nothing
        return columns

    def carrying(self, module: nn.Module, update: Part) -> AbstractContextManager[None]:
        """Inside, the module's output has the update in it, and no weight is touched."""
        run, beside = module.forward, _Beside(update, self.part, isinstance(module, nn.Embedding))

        def answer(given: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return beside(given, run(given, *args, **kwargs))

        return answering({module: answer})


class _Beside:
    """Adds what an update makes of a module's input to its output, in float32 or better, where the output is."""

    def __init__(self, update: Part, part: str, looks_up: bool) -> None:
        self.update, self.vector, self.looks_up = update, part == "bias", looks_up
        self.moved: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}

    def __call__(self, given: Tensor, output: Tensor) -> Tensor:
        precise = torch.float64 if output.dtype == torch.float64 else torch.float32
        factors = self._factors(output.device, precise)
        if self.vector:
            extra = factors[0]
        else:
            given, first = given.to(output.device), factors[0]
            extra = embedding(given, first) if self.looks_up else linear(given.to(precise), first)
            for factor in factors[1:]:
                extra = linear(extra, factor)
        return (output.to(precise) + extra).to(output.dtype)

    def _factors(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """What the input passes one after the other; the whole matrix where many columns would take more room."""
        if (device, dtype) not in self.moved:
            parts = self.update.tensors()
            left, right = parts.get("left"), parts.get("right")
            if left is None or right is None or left.numel() + right.numel() > left.shape[0] * right.shape[1]:
                found = [self.update.dense()]
            else:
                found = [left, right.T] if self.looks_up else [right, left]
            self.moved[device, dtype] = [t.detach().to(device, dtype) for t in found]
        return self.moved[device, dtype]


def matrix_shape(module: nn.Module) -> tuple[int, int] | None:
    """(d_out, d_in) of a linear module or an embedding, packed or not; None of any other."""
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    sizes = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return sizes if isinstance(sizes[0], int) and isinstance(sizes[1], int) else None  # type: ignore[return-value]


def _carries(module: nn.Module) -> bool:
    """Whether what stands beside the module adds up with it; embeddings of some families scale what they give."""
    if isinstance(module, nn.Embedding):
        return type(module).forward is nn.Embedding.forward
    return matrix_shape(module) is not None


def _missing(name: str) -> BadRequest:
    return BadRequest(f"The edit changes {name[:80]}, which this model does not have; use the model it was made for.")
