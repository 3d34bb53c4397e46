"""What a collection of key statistics will take, measured on a few documents before it starts."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch

from editing_core.errors import BadRequest
from editing_core.models.language_model import LanguageModel
from editing_core.models.memory import told
from editing_core.models.tokens import runs
from editing_core.statistics.corpus import TextSource
from editing_core.statistics.moments import TILE, Sums, duration, place, tokenised

SECONDS = 4.0  # that are measured, unless one forward takes longer
FEW = 512  # tokens of the forwards that come first, and of all where more would take too long


@dataclass(frozen=True)
class Estimate:
    """documents, tokens and seconds are None where nobody knows how long the text is. Bytes are exact.

    disk: of the statistics. meanwhile: of what is kept to go on from. memory: of the sums, beside the model's own.
    """

    documents: int | None
    tokens: float | None
    seconds: float | None
    rate: float
    width: int
    disk: int
    meanwhile: int
    memory: int
    device: str

    def __str__(self) -> str:
        sizes = (
            f"{told(self.disk)} on disk (up to {told(self.meanwhile)} more until it is done) and "
            f"{told(self.memory)} of memory ({self.device}) beside the model"
        )
        if self.seconds is None or self.documents is None or self.tokens is None:
            return f"about {self.rate:,.0f} tokens/s of a text of unknown length, {sizes}"
        text = f"{self.documents:,} documents with about {self.tokens:,.0f} tokens at {self.rate:,.0f} tokens/s"
        return f"about {duration(self.seconds)} for {text}, {sizes}"


def estimate(lm: LanguageModel, layers: Sequence[int], source: TextSource) -> Estimate:
    """Time from forwards of the collection's own kind after a warm-up; tokens from documents all over the text."""
    texts = source.sample()
    started = time.perf_counter()
    rows = tokenised(lm, texts)
    coding = (time.perf_counter() - started) / max(1, len(texts))
    if not rows:
        raise BadRequest(f"{source.name} holds no text; give one with at least one document.")
    mean = sum(map(len, rows)) / len(texts)
    with lm.lock:
        sums, pace = _pace(lm, layers, rows)
    width = max(len(total) for total in sums.totals.values())
    numbers = sum(len(total) ** 2 for total in sums.totals.values())
    count = source.count
    return Estimate(
        documents=count,
        tokens=None if count is None else count * mean,
        seconds=None if count is None else count * (mean * pace + coding),
        rate=1 / (pace + coding / mean),
        width=width,
        disk=4 * numbers,
        meanwhile=2 * 8 * numbers,  # a part, and the one that replaces it
        memory=8 * numbers + 4 * min(TILE, width) * width,
        device=str(place(lm, layers, width)),
    )


def _pace(lm: LanguageModel, layers: Sequence[int], rows: list[list[int]]) -> tuple[Sums, float]:
    """Sums of the real size, and seconds per token."""
    draw = Random(0)
    draw.shuffle(rows)
    few, held = [], 0
    for row in rows:
        few.append(row[: FEW - held])
        held += len(few[-1])
        if held == FEW:
            break
    sums = Sums()
    _timed(lm, layers, sums, few)  # pays for memory, kernels and clocks
    pace = _timed(lm, layers, sums, few) / held
    most = lm.tokens_per_collection(len(layers))
    if pace * most > SECONDS / 2:
        most = FEW
        rows = [row[:FEW] for row in rows]
    todo = runs([len(row) for row in rows], most)
    draw.shuffle(todo)
    seconds = tokens = 0.0
    for numbers in todo:
        seconds += _timed(lm, layers, sums, [rows[n] for n in numbers])
        tokens += sum(len(rows[n]) for n in numbers)
        if seconds > SECONDS:
            break
    return sums, seconds / tokens


def _timed(lm: LanguageModel, layers: Sequence[int], sums: Sums, rows: list[list[int]]) -> float:
    started = time.perf_counter()
    sums.add(lm, layers, rows)
    if lm.device.type == "cuda":
        torch.cuda.synchronize(lm.device)
    return time.perf_counter() - started
