"""How much faster the engine is than the plain per-fact loop, with the same results (`tests/engine/test_naive.py`).

    make bench                                    both CPU shapes, every part, N = 1, 10, 100, 1,000
    python -m benchmarks.speed --shapes pocket --counts 1 10
    python -m benchmarks.speed --device cuda      GPT-2-XL- and GPT-J-shaped models in bfloat16, the engine alone

Both sides run in processes of their own, which live for the whole measurement and take turns, so that a machine whose
speed drifts drifts for both. The plain loop takes each fact like every other: where all of them would take longer
than --budget seconds, it gets as many as fit, and the rest is counted like these; such figures are marked "~". A case
in which the engine itself would take longer is "not measured".
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.cases import SHAPES
from benchmarks.sides import PARTS

COUNTS = (1, 10, 100, 1000)
SHORT = 5.0  # seconds; a shorter work is done several times, and the median counts
TIMES = 3
TITLES = {
    "targets": "target optimisation",
    "spread": "spread",
    "evaluation": "evaluation",
    "edit": "whole edit, measured before and after",
}


@dataclass
class Process:
    """One side, running."""

    running: "subprocess.Popen[str]"

    def ask(self, part: str, count: int, **more: Any) -> dict[str, float]:
        """One answer; RuntimeError when the process died."""
        assert self.running.stdin is not None
        self.running.stdin.write(json.dumps({"part": part, "count": count, **more}) + "\n")
        self.running.stdin.flush()
        return self.heard()

    def heard(self) -> dict[str, float]:
        """The next line it says."""
        assert self.running.stdout is not None
        line = self.running.stdout.readline()
        if not line:
            raise RuntimeError(f"A side ended with status {self.running.wait()}; its error stands above.")
        found: dict[str, float] = json.loads(line)
        return found


@contextmanager
def started(side: str, shape: str, device: str, dtype: str) -> Iterator[Process]:
    """A side that is ready for questions."""
    command = [sys.executable, "-m", "benchmarks.sides", side, shape, "--device", device, "--dtype", dtype]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        process = Process(running)
        try:
            process.heard()
            yield process
        finally:
            running.kill()


@dataclass(frozen=True)
class Row:
    """One part at one N: seconds of both sides, facts the plain loop really took (0: none), peak megabytes."""

    part: str
    count: int
    engine: float | None
    plain: float | None
    taken: int
    megabytes: tuple[float, float]

    @property
    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        if self.engine is None:
            return TITLES[self.part], f"{self.count:,}", "not measured", "not measured", "", ""
        about = "" if self.taken == self.count else "~"
        plain = "not measured" if self.plain is None else f"{about}{_seconds(self.plain)}"
        ratio = "" if self.plain is None else f"{about}{self.plain / self.engine:.1f}"
        most = " / ".join(f"{m:,.0f}" for m in self.megabytes if m)
        return TITLES[self.part], f"{self.count:,}", _seconds(self.engine), plain, ratio, most


def measured(engine: Process, plain: Process, part: str, count: int, rows: Sequence[Row], budget: float) -> Row:
    """One row. rows: those of smaller N, from which times are foreseen."""
    before = rows[-1] if rows else None
    factor = count / before.count if before else 1.0
    if before and (before.engine is None or before.engine * factor > 2 * budget):
        return Row(part, count, None, None, 0, (0.0, 0.0))
    taken = count
    if before and before.plain is not None and before.plain * factor > budget:
        taken = max(1, min(count, int(count * budget / (before.plain * factor))))
    own: list[dict[str, float]] = []
    other: list[dict[str, float]] = []
    for turn in range(TIMES):
        if not turn or sum(r["seconds"] for r in own) < SHORT:
            own.append(engine.ask(part, count))
        if not turn or sum(r["seconds"] for r in other) < SHORT:
            other.append(plain.ask(part, taken))
    plain_seconds = median(r["seconds"] for r in other)
    if taken < count:  # every fact takes as long as another, beside what is done once
        few, fewer = rows[0].count, rows[0].plain
        assert fewer is not None
        each = (plain_seconds - fewer) / (taken - few) if taken > few else plain_seconds / taken
        plain_seconds += each * (count - taken)
    megabytes = own[-1]["megabytes"], other[-1]["megabytes"]
    return Row(part, count, median(r["seconds"] for r in own), plain_seconds, taken, megabytes)


def table(shape: str, parts: Sequence[str], counts: Sequence[int], budget: float) -> Iterator[str]:
    """Lines of the CPU table, as they are measured."""
    yield f"\n**{SHAPES[shape].title}**, two processes, {torch.get_num_threads()} threads each\n"
    yield "| part | N | engine, s | plain loop, s | ratio | peak MB, engine / plain |\n|---|---|---|---|---|---|"
    with started("engine", shape, "cpu", "float32") as engine, started("plain", shape, "cpu", "float32") as plain:
        for process in (engine, plain):
            process.ask("edit", 1)  # what is done once per process
        for part in parts:
            rows: list[Row] = []
            for count in sorted(counts):
                rows.append(measured(engine, plain, part, count, rows, budget))
                yield f"| {' | '.join(rows[-1].cells)} |"
        yield from bounds(engine, plain, parts)


def bounds(engine: Process, plain: Process, parts: Sequence[str], count: int = 10) -> Iterator[str]:
    """What either side computes, and how near that comes to what the machine can do."""
    rate = engine.ask("product", 2048)["rate"]
    yield f"\nA product of two 2,048 x 2,048 matrices reaches {rate / 1e9:.0f} GFLOP/s here. With N = {count}:\n"
    yield "| part | GFLOP, engine | GFLOP, plain loop | ratio | GFLOP/s, engine | GFLOP/s, plain loop |"
    yield "|---|---|---|---|---|---|"
    for part in parts:
        work = [side.ask(part, count, operations=True)["operations"] for side in (engine, plain)]
        seconds = [min(side.ask(part, count)["seconds"] for _ in range(2)) for side in (engine, plain)]
        reached = [w / s / 1e9 for w, s in zip(work, seconds, strict=True)]
        sizes = f"{work[0] / 1e9:,.1f} | {work[1] / 1e9:,.1f} | {work[1] / work[0]:.1f}"
        yield f"| {TITLES[part]} | {sizes} | {reached[0]:.0f} | {reached[1]:.0f} |"


def device_table(shape: str, device: str, dtype: str, parts: Sequence[str], count: int) -> Iterator[str]:
    """Lines of the table of a device: the engine alone, with what it reaches."""
    yield f"\n**{SHAPES[shape].title}**, {dtype}, N = {count:,}\n"
    yield "| part | seconds | TFLOP/s | of a large product, % | peak GB |\n|---|---|---|---|---|"
    with started("engine", shape, device, dtype) as engine:
        rate = engine.ask("product", 8192 if device == "cuda" else 512)["rate"]
        for part in parts:
            found = engine.ask(part, count)
            few = min(count, 100)
            reached = engine.ask(part, few, operations=True)["operations"] * count / few / found["seconds"]
            cells = f"{_seconds(found['seconds'])} | {reached / 1e12:.3g} | {100 * reached / rate:.0f}"
            yield f"| {TITLES[part]} | {cells} | {found['megabytes'] / 1e3:.2f} |"


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    """Print the tables, and write them where --out says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds for one measurement of the plain loop")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", help="on a device other than the processor")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here; leave --device away to measure the processor.")
    on_device = options.device == "cuda"
    told = []
    for shape in options.shapes or (("xl", "gptj") if on_device else ("pocket", "small")):
        lines = (
            device_table(shape, options.device, options.dtype, options.parts, max(options.counts))
            if on_device
            else table(shape, options.parts, options.counts, options.budget)
        )
        for line in lines:
            print(line, flush=True)
            told.append(line)
    if options.out:
        options.out.write_text("\n".join(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
