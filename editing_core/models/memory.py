"""Memory: what a device has free, and how many tokens one forward may take of it.

A forward takes as many tokens as are best for speed, or fewer where their states would need more than a bound or
than a share of what is free. On ordinary machines the bound decides, not the free memory: which rows run together
decides how sums are rounded, so the same work gives the same bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn
from transformers import PretrainedConfig

from editing_core.models.tokens import TOKENS_PER_FORWARD

SHARE = 0.5  # of what is free that one forward may take
LEAST = 64  # tokens of a forward, however little is free
LOOKED = 1 / 8  # share of an optimisation's tokens whose logits are looked at
CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
NO_MEMORY = (torch.OutOfMemoryError, MemoryError, RuntimeError)  # what may say that memory ran out


def ran_out(error: BaseException) -> bool:
    """Whether memory did. The processor's allocator has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


@dataclass(frozen=True)
class Bounds:
    """Of one forward: tokens without a backward pass and with one, and bytes. room: of states that wait.

    losses: tokens whose logits are there at once where only their losses are asked for.
    """

    forward: int
    backward: int
    size: int
    room: int
    losses: int


# On a processor more tokens are not faster (4,000 to 12,000 take the same time on the bundled model). The numbers
# for an accelerator are not measured on one; what is free limits them there.
BOUNDS = {"cpu": Bounds(TOKENS_PER_FORWARD, 4096, 2**30, 2**28, 256)}
ACCELERATOR = Bounds(65_536, 65_536, 2**36, 2**31, 4096)


@dataclass(frozen=True)
class Sizes:
    """What of a configuration decides how large states are. number: bytes of one number."""

    depth: int
    width: int
    inner: int
    vocabulary: int
    number: int
    fused: bool  # the MLP's activation is one step and keeps nothing in between

    @staticmethod
    def of(config: PretrainedConfig, dtype: torch.dtype) -> "Sizes":
        """Those of a configuration."""
        text = config.get_text_config()
        named = (getattr(text, name, None) for name in ("intermediate_size", "n_inner", "ffn_dim"))
        inner = next((size for size in named if size), 4 * text.hidden_size)
        function = getattr(text, "hidden_act", None) or getattr(text, "activation_function", "")
        return Sizes(
            text.num_hidden_layers, text.hidden_size, inner, text.vocab_size, dtype.itemsize, function != "gelu_new"
        )

    @property
    def state(self) -> int:
        """Bytes per token while one block runs and nothing is kept, with what the heap holds beside them; measured."""
        return self.number * (6 * self.width + (6 if self.fused else 5) * self.inner)

    @property
    def kept(self) -> int:
        """Bytes per token and block that are kept for a backward pass to a state, no weight taking part."""
        return self.number * (7 * self.width + (1 if self.fused else 5) * self.inner)

    @property
    def trained(self) -> int:
        """The same with weights taking part, whose inputs are kept too."""
        return self.number * (14 * self.width + (4 if self.fused else 8) * self.inner)

    @property
    def keys(self) -> int:
        """Bytes of one token's key in one layer, in float32."""
        return 4 * self.inner

    @property
    def logits(self) -> int:
        """Bytes of one token's logits in float32 and their logarithms, whatever the model's own numbers."""
        return 8 * self.vocabulary


def free_bytes(device: torch.device) -> int:
    """What more can be had on a device now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return min([int(psutil.virtual_memory().available), *_left_of_limits()])


def _left_of_limits() -> Iterator[int]:
    """What the limits leave that a container or service runs under."""
    try:
        lines = [line.split(":", 2) for line in OWN_CGROUP.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return
    for _, kinds, name in (line for line in lines if len(line) == 3):
        if kinds == "" or "memory" in kinds.split(","):
            limit, used = ("memory.max", "memory.current") if not kinds else (
                "memory.limit_in_bytes", "memory.usage_in_bytes"
            )  # fmt: skip
            root = CGROUP / "memory" if kinds else CGROUP
            # Inside a container its own folder is the root.
            for folder in {root, root / name.strip("/")}:
                left = _left(folder / limit, folder / used, folder / "memory.stat")
                if left is not None:
                    yield left


def _left(limit: Path, used: Path, stat: Path) -> int | None:
    """Pages of files that nobody needs are given up before the limit is felt."""
    try:
        most = limit.read_text(encoding="utf-8").strip()
        told = dict(line.split() for line in stat.read_text(encoding="utf-8").splitlines())
        if most == "max":
            return None
        pages = int(told.get("total_inactive_file", told.get("inactive_file", 0)))
        return max(0, int(most) - int(used.read_text(encoding="utf-8")) + pages)
    except (OSError, ValueError):
        return None


def told(count: float) -> str:
    """Bytes as a person says them."""
    if count < 1e8:
        return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
    return f"{count / 1e9:.2g} GB" if count < 1e11 else f"{count / 1e9:.0f} GB"


def bounds(device: torch.device) -> Bounds:
    """Those of a kind of device."""
    return BOUNDS.get(device.type, ACCELERATOR)


def forward_tokens(sizes: Sizes, device: torch.device) -> int:
    """Most tokens of a forward that keeps nothing for a backward pass; all their logits may be looked at."""
    own = bounds(device)
    return _fitting(own.forward, sizes.state + sizes.logits, own.size, device)


def backward_tokens(sizes: Sizes, device: torch.device, blocks: int, trained: bool = False) -> int:
    """Most tokens of a forward that keeps states of so many blocks. trained: for gradients of weights."""
    own = bounds(device)
    each = sizes.trained if trained else sizes.kept
    return _fitting(own.backward, sizes.state + blocks * each + round(3 * LOOKED * sizes.logits), own.size, device)


def key_tokens(sizes: Sizes, device: torch.device, layers: int) -> int:
    """Most tokens of a forward that keeps the keys of so many layers, for statistics."""
    own = bounds(device)
    return _fitting(own.forward, sizes.state + sizes.keys * layers, own.room, device)


def room_bytes(device: torch.device) -> int:
    """Bytes that states may take while they wait."""
    return min(bounds(device).room, round(free_bytes(device) * SHARE / 4))


def _fitting(most: int, each: int, size: int, device: torch.device) -> int:
    """The most, halved until tokens of `each` bytes fit into a size, so that it moves in few steps."""
    left = min(size, free_bytes(device) * SHARE)
    while most > LEAST and most * each > left:
        most //= 2
    return most


def sizes_of(model: nn.Module) -> Sizes:
    """Those of a loaded model."""
    config: PretrainedConfig = model.config  # type: ignore[assignment]
    dtype: torch.dtype = model.dtype  # type: ignore[assignment]
    return Sizes.of(config, dtype)
