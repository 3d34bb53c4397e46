"""How long it takes to list many stored runs, and to look once for runs that wait among them.

python -m scripts.measure_listing --runs 5000
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from editing_core.bench.config import RunConfig
from editing_core.bench.executors import Dispatcher, LocalProcesses
from editing_core.bench.index import Index
from editing_core.runs.folder import DONE, RunFolder

REPEATS = 5
# What a finished run says of itself takes some five kilobytes.
RESULT = {"n_edits": 100, "chosen": 3, "seconds": 60.0, "last": {"efficacy_success": 99.0, "score_success": 90.0}}
FILLING = {"stops": [{"rule": "perplexity", "k": 3, "reason": "x" * 100}] * 20, "contexts": ["x" * 80] * 20}


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> None:
    """Write runs into a temporary folder and time what reads them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5000)
    count = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for trial in range(count):
            folder = RunFolder.create(root, RunConfig(limit=10, trial=trial).to_json())
            folder.update(status=DONE, result={**RESULT, **FILLING})
        first = seconds(lambda: Index(root).entries(most=count))
        again = median(seconds(lambda: Index(root).entries(most=count)) for _ in range(REPEATS))
        dispatcher = Dispatcher(root, LocalProcesses())
        look = median(seconds(dispatcher.step) for _ in range(REPEATS))
    print(f"{count:,} runs: index made anew {first:.2f} s, listed {again:.3f} s, looked through for work {look:.3f} s")


if __name__ == "__main__":
    main()
