"""The two sides that are timed against each other: the engine, and the plain per-fact loop of `naive.py`.

Run as a process of its own (`python -m benchmarks.sides SIDE SHAPE`) it answers one line of JSON with another:
{"part": "targets", "count": 10} -> {"seconds": 0.9, "megabytes": 620}.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import naive
from benchmarks.cases import Case, case
from benchmarks.naive_measures import evaluate
from editing_core.editors.iterative import Iterative
from editing_core.editors.steps.spread import Spread
from editing_core.editors.steps.targets import optimise_targets
from editing_core.editors.stopping import StopSettings
from editing_core.evaluation.evaluator import Evaluator, bundled_texts
from editing_core.types import EditRequest

PARTS = ("targets", "spread", "evaluation", "edit")
Work = Callable[[], object]


def engine(of: Case, part: str, requests: Sequence[EditRequest]) -> Work:
    """What the engine does for these facts."""
    lm, s, evaluator = of.lm, of.settings, Evaluator()
    if part == "targets":
        return lambda: optimise_targets(lm, requests, of.objective, [of.site], s)
    if part == "spread":
        way = Spread(of.site, of.objective, s.layers, of.editor.solve, share=float)  # type: ignore[attr-defined]
        return lambda: way.write(lm, requests, _wanted(of, len(requests)))
    if part == "evaluation":
        return lambda: evaluator.score(lm, requests)

    def measured() -> None:
        evaluator.score(lm, requests)
        evaluator.collapse(lm)

    def edit() -> None:
        measured()
        done = Iterative(of.editor, StopSettings(iterations=1, stop="none")).edit(lm, requests)
        with done.delta.applied(lm):
            measured()

    return edit


def plain(of: Case, part: str, requests: Sequence[EditRequest]) -> Work:
    """The same, fact by fact."""
    lm, s = of.lm, of.settings
    if part == "targets":
        return lambda: naive.targets(lm, requests, of.objective, [of.site], s)
    if part == "spread":
        wanted, site = _wanted(of, len(requests)), of.site
        weight = s.covariance_weight
        return lambda: naive.spread(
            lm, requests, of.objective, s.layers, of.covariances, weight, wanted, site, share=float
        )
    if part == "evaluation":
        return lambda: evaluate(lm, requests)
    return lambda: naive.edit(lm, requests, s, of.covariances, of.objective, texts=bundled_texts())


def _wanted(of: Case, count: int) -> Tensor:
    """(count, d) targets: how long spreading takes does not depend on what they are."""
    width = of.lm.model.config.get_text_config().hidden_size
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0)).to(of.lm.device)


SIDES = {"engine": engine, "plain": plain}


def timed(work: Work) -> dict[str, float]:
    """Seconds, and the most memory so far in megabytes: of the device, or of this process."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    most = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "megabytes": most / 1e6}


def operations(work: Work) -> float:
    """Floating-point operations of the matrix products and attentions in it, counted by torch."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def product_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Operations per second of a large square product: what the machine can do at best."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = min(timed(partial(torch.mm, a, b))["seconds"] for _ in range(5))
    return 2 * size**3 / best


def answer(of: Case, side: str, asked: dict[str, Any]) -> dict[str, float]:
    """What one question asks for: {"part", "count"}, with "count operations" to count instead of to time."""
    if asked["part"] == "product":
        return {"rate": product_rate(of.lm.device.type, of.lm.model.dtype, asked["count"])}
    if asked["count"] > len(of.requests):
        raise ValueError(f"{asked['count']} facts were asked for, there are {len(of.requests)}")
    work = SIDES[side](of, asked["part"], of.requests[: asked["count"]])
    if asked.get("operations"):
        return {"operations": operations(work)}
    return timed(work)


def main() -> None:
    """Answer until there are no more questions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("shape")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    of = case(options.shape, options.device, options.dtype)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(of, options.side, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
