"""Two devices that are none: every tensor is with the processor, but says where it would be, and may not meet others.

`TwoDevices` sees each call of torch. A tensor is where its arguments are, unless a device is named; two of different
devices in one call are refused as CUDA refuses them. Only what CUDA allows passes: numbers without dimensions, indices
that are with the processor, and copies into a tensor that is there.
"""

from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakTensorKeyDictionary

CPU, FIRST, SECOND = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)
INDEXING = {"torch.Tensor.__getitem__", "torch.Tensor.__setitem__", "torch.Tensor.index_put"}
COPIES = {"torch.Tensor.copy_", "torch.Tensor.data.__set__", "_has_compatible_shallow_copy_type"}


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for part in value for t in tensors_in(part)] if isinstance(value, list | tuple) else []


class TwoDevices(TorchFunctionMode):
    """Tensors made before are with the processor unless `put` said otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.places: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.used: set[torch.device] = set()

    def place(self, tensor: Tensor) -> torch.device:
        return self.places.get(tensor, CPU)

    def put(self, module: torch.nn.Module, device: torch.device) -> None:
        for tensor in (*module.parameters(), *module.buffers()):
            self.places[tensor] = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = resolve_name(func) or getattr(func, "__name__", "")
        if name == "torch.Tensor.device.__get__":
            return self.place(args[0])
        named, args, kwargs = self._without_device(name, args, kwargs)
        if name.startswith("_foreach"):  # torch itself calls it with tensors of one device at a time
            return self._each(func(*args, **kwargs), args[0])
        own = self._checked(name, args, kwargs)
        found = func(*args, **kwargs)
        if name in ("torch.Tensor.cpu", "torch.Tensor.tolist", "torch.Tensor.numpy"):
            named = CPU
        where = named or own
        if where != own and args and found is args[0]:
            found = found.clone()  # it would not be the same where devices differ
        for tensor in tensors_in(found):
            self.places[tensor] = where
        if name == "torch.Tensor.data.__set__":
            self.places[args[0]] = self.place(args[1])
        self.used.add(where)
        return found

    def _each(self, found: Any, given: list[Tensor]) -> Any:
        for tensor, like in zip(tensors_in(found), given, strict=False):
            self.places[tensor] = self.place(like)
        return found

    def _without_device(self, name: str, args: Any, kwargs: Any) -> tuple[torch.device | None, Any, Any]:
        """The device that a call names, and the call without it."""
        given, rest = kwargs.pop("device", None), list(args)
        if name == "torch.Tensor.to":
            rest = [args[0]]
            for arg in args[1:]:
                if isinstance(arg, Tensor):
                    given, arg = self.place(arg), arg.dtype
                if isinstance(arg, str | torch.device):
                    given = arg
                elif isinstance(arg, torch.dtype):
                    rest.append(arg)
            if len(rest) == 1 and "dtype" not in kwargs:
                rest.append(args[0].dtype)
        return (torch.device(given) if given is not None else None), rest, kwargs

    def _checked(self, name: str, args: Any, kwargs: Any) -> torch.device:
        """Where the arguments are together; RuntimeError where they are not."""
        every = tensors_in(args) + tensors_in(kwargs)
        if name in COPIES or not every:
            return self.place(every[0]) if every else CPU
        if name in INDEXING:
            base = self.place(every[0])
            every = [t for t in every if not (self.place(t) == CPU and t.dtype in (torch.long, torch.bool))] or every[
                :1
            ]
            places = {base} | {self.place(t) for t in every if t.dim()}
        else:
            places = {self.place(t) for t in every if t.dim()} or {self.place(t) for t in every}
            base = next(iter(places))
        if len(places) > 1:
            raise RuntimeError(f"{name}: tensors on {', '.join(sorted(map(str, places)))}")
        return base


def split(lm, mode: TwoDevices, at: int) -> None:
    """The model over both, as accelerate does it: blocks from `at` on and all behind them are with the second.

    An output layer that shares its weights with the embeddings is with these.
    """
    model, head = lm.model, lm.head
    mode.put(model, FIRST)
    blocks = model.get_submodule(lm.architecture.blocks)
    tied = head.weight is model.get_input_embeddings().weight
    behind = [*list(blocks.children())[at:], model.get_submodule(lm.architecture.final_norm), *([] if tied else [head])]
    for module in behind:
        mode.put(module, SECOND)
    for module in (*blocks.children(), model.get_submodule(lm.architecture.final_norm), head):
        where = next(mode.place(p) for p in module.parameters())
        hook = AlignDevicesHook(execution_device=where, skip_keys="past_key_values")
        hook.init_hook = lambda module: module  # nothing is to be moved
        add_hook_to_module(module, hook)
