"""Collections that are not finished, kept in a file so that they go on where they stopped.

A part names the statistics it is on the way to; another collection never uses it. It is replaced in one
step, so whatever interrupts the writing leaves the part before it.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editing_core.errors import BadRequest, NotFinite
from editing_core.files import whole
from editing_core.statistics.moments import Sums

log = logging.getLogger(__name__)

SECONDS = 60.0  # between two writings, and 20 times as long as one takes: at most a twentieth of the time
COUNTS = ("tokens", "documents", "forwards", "most")


@dataclass(eq=False)
class Part:
    """The file of one collection. wanted: the statistics it is on the way to."""

    path: Path
    wanted: Sequence[str]
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        self._next = time.perf_counter() + self.seconds

    def read(self) -> Sums:
        """What was summed so far; nothing where there is no part, or one that is damaged or of something else."""
        try:
            with safe_open(self.path, framework="pt") as file:
                about = file.metadata() or {}
                if json.loads(about["wanted"]) != list(self.wanted):
                    return Sums()
                totals = {int(name): file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            tokens, documents, forwards, most = (int(about[name]) for name in COUNTS)
            sums = Sums(totals, tokens, documents, forwards, most)
            sums.check()
        except FileNotFoundError:
            return Sums()
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, NotFinite):
            log.warning("%s is damaged; the collection starts anew.", self.path.name)
            return Sums()
        return sums

    def stands_at(self) -> tuple[int, int]:
        """(documents in whole blocks, tokens) so far, without reading the sums."""
        try:
            with safe_open(self.path, framework="pt") as file:
                about = file.metadata() or {}
                return int(about["documents"]), int(about["tokens"])
        except (OSError, SafetensorError, ValueError, KeyError):
            return 0, 0

    def keep(self, sums: Sums, stopping: bool) -> None:
        """Write `sums` when it is time to, or when there is no later."""
        if stopping or time.perf_counter() >= self._next:
            self.write(sums)

    def write(self, sums: Sums) -> None:
        """Write `sums` now. A full disk does not end the collection."""
        started = time.perf_counter()
        about = {"wanted": json.dumps(list(self.wanted)), **{name: str(getattr(sums, name)) for name in COUNTS}}
        try:
            write_tensors(self.path, {str(layer): total for layer, total in sums.totals.items()}, about)
        except (BadRequest, SafetensorError) as error:
            log.warning("The collection could not be kept in %s (%s).", self.path, error)
        now = time.perf_counter()
        self._next = now + max(self.seconds, 20 * (now - started))

    def remove(self) -> None:
        """When all is done."""
        self.path.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """A safetensors file that is there whole or not at all; BadRequest when it cannot be written."""
    with whole(path) as part:
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, part, metadata=about)
