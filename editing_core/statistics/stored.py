"""One statistic on disk: its matrix is read when it is asked for, and its factor where reading is faster."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from editing_core.errors import BadRequest, StatisticsMissing
from editing_core.statistics.parts import write_tensors

log = logging.getLogger(__name__)

# On one thread a factor of width 6,400 takes 4.5 s to make and 0.4 s to read (1.5 s from a cold disk), of width 3,072
# 0.52 s and 0.05 s, of width 1,024 0.03 s and 0.01 s: small ones are not worth their place on disk.
FACTOR_FROM = 3072


@dataclass(frozen=True)
class Stored:
    """path: a file with the mean of k k^T, (width, width) float32, from `tokens` tokens."""

    path: Path
    width: int
    tokens: int

    @staticmethod
    def of(path: Path) -> "Stored":
        """The file's; StatisticsMissing when it is damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                width = file.get_slice("second_moment").get_shape()[0]
                return Stored(path, int(width), int((file.metadata() or {})["tokens"]))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise StatisticsMissing(
                f"The covariance statistics in {path} are damaged; delete the file and collect them again."
            ) from error

    def __len__(self) -> int:
        return self.width

    def read(self) -> Tensor:
        """(width, width) float64, the reader's own."""
        with safe_open(self.path, framework="pt") as file:
            matrix: Tensor = file.get_tensor("second_moment").to(torch.float64, copy=True)
        return matrix

    def factor(self, floor: float) -> Tensor | None:
        """The lower factor for this floor, where one was kept for the statistic as it is now."""
        if self.width < FACTOR_FROM:
            return None
        try:
            with safe_open(self._factor_path(floor), framework="pt") as file:
                if (file.metadata() or {}).get("of") != self._state:
                    return None
                upper: Tensor = file.get_tensor("upper").clone()
        except (OSError, SafetensorError):
            return None
        return upper.T if upper.shape == (self.width, self.width) else None

    def keep_factor(self, floor: float, factor: Tensor) -> None:
        """Keep a lower factor where that saves time. Its transpose, because that is how it lies in memory."""
        if self.width < FACTOR_FROM:
            return
        try:
            write_tensors(self._factor_path(floor), {"upper": factor.T.contiguous()}, {"of": self._state})
        except (BadRequest, SafetensorError) as error:
            log.warning("The factor of %s could not be kept (%s).", self.path.name, error)

    def _factor_path(self, floor: float) -> Path:
        return self.path.with_name(f"{self.path.stem}-floor-{floor!r}.factor")

    @cached_property
    def _state(self) -> str:
        """Which file it was made from: another one of the same name has another factor."""
        about = self.path.stat()
        return f"{about.st_size} {about.st_mtime_ns}"
