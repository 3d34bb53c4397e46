"""Measure every editor on the same records, each record alone: the table of editors of every kind.

    python -m scripts.measure_editors             every editor on 100 test records; stored ones are skipped
    python -m scripts.measure_editors memit kn    some editors only
    python -m scripts.measure_editors --records 3 --out build/trial.json

Every editor has a process of its own, whose most memory is told with the result. Protocol single, one iteration of the
preset, seed 0. "unedited" is measured first, with the same follow-up questions about the true objects as control.
Several of these may work at a time on different editors. Writes assets/comparison.json, which the page shows, and
docs/results.md; with --out only that file.
"""

import argparse
import fcntl
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import torch

from editing_core.bench.protocols import Benchmark, Protocol, Tools, run_benchmark
from editing_core.data.datasets import load_dataset, sample
from editing_core.data.follow_ups import with_controls, with_follow_ups
from editing_core.editors.stopping import StopSettings
from editing_core.evaluation.comparison import MODIFY, PRESERVE, UNEDITED, Row, kinds_of
from editing_core.evaluation.evaluator import Evaluator, bundled_texts
from editing_core.evaluation.metrics import generality, reliability
from editing_core.files import write_text
from editing_core.models.catalog import CATALOG, DEFAULT
from editing_core.models.language_model import LanguageModel
from editing_core.registry import EDITORS, editor_row
from editing_core.runs.journal import NoJournal, Unit
from editing_core.runs.record import EditPlan
from editing_core.story import Stage
from editing_core.types import EditRequest, Step
from scripts import results_page

DATASET, SEED = "pocket-facts:test", 0
READER = "pocket-gpt2-reader"  # a model that can use its context, where there is one
ONCE = StopSettings(iterations=1, stop="none", collapse_factor=0.0)
LOCK = results_page.ROOT / "build" / "measure_editors.lock"
log = logging.getLogger("editors")


@dataclass(frozen=True)
class Sizes(NoJournal):
    """Notes the bytes that every edit keeps: its numbers, and what it says besides."""

    kept: list[int] = field(default_factory=list)

    def keep(self, _name: str, unit: Unit) -> None:
        """Note the size of a record's edit; the unedited model's unit has an empty one."""
        if not unit.delta.empty:
            _, facts = unit.delta.packed()
            self.kept.append(unit.delta.size + (len(json.dumps(facts)) if facts else 0))


def pairs(editors: Sequence[str]) -> list[tuple[str, str]]:
    """(editor, model) to measure: all on the bundled model, and the one that works in context on the reader too."""
    names = [UNEDITED, *(editors or EDITORS)]
    found = [(name, DEFAULT) for name in names]
    return found + ([(name, READER) for name in (UNEDITED, "ike") if name in names] if READER in CATALOG else [])


def measured(editor: str, model: str, records: int) -> Row:
    """What an editor does to the records, or what the model answers without one."""
    lm = LanguageModel.load(model)
    requests = sample(load_dataset(DATASET), records, 0)
    row = _unedited(lm, requests) if editor == UNEDITED else _edited(lm, editor, requests)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Row.of({**asdict(row), "peak": peak, "machine": machine()})


def _unedited(lm: LanguageModel, requests: Sequence[EditRequest]) -> Row:
    probes, controls = (Evaluator().score(lm, asked(requests)) for asked in (with_follow_ups, with_controls))
    return Row(
        UNEDITED,
        "Unedited",
        lm.name,
        "",
        len(requests),
        reliability=reliability(probes),
        generality=generality(probes),
        locality=None,  # compared with itself the model is always right
        kinds=kinds_of(probes),
        controls=kinds_of(controls),
    )


def _edited(lm: LanguageModel, editor: str, requests: Sequence[EditRequest]) -> Row:
    row, sizes, begun = editor_row(editor), Sizes(), []

    def started(_stage: Stage) -> None:
        begun.append(time.perf_counter())

    plan = EditPlan(editor, row.preset(lm.name).settings, ONCE, SEED)
    # The held-out texts are no column here, and reading them all after every edit would take most of the time.
    tools = Tools(evaluator=Evaluator(texts=bundled_texts()[:1]), journal=sizes, begun=started)
    start = time.perf_counter()
    done = run_benchmark(lm, with_follow_ups(requests), plan, Protocol("single"), _tell, tools)
    last = done.iterations.iloc[-1]
    return Row(
        editor,
        row.label,
        lm.name,
        PRESERVE if row.beside else MODIFY,
        len(requests),
        reliability=float(last["reliability"]),
        generality=float(last["generality"]),
        locality=float(last["locality"]),
        kinds=kinds_of(_after(done)),
        seconds=done.edit_seconds / len(requests),
        preparing=begun[0] - start,
        kept=sum(sizes.kept) / len(requests),
    )


def _after(done: Benchmark) -> pd.DataFrame:
    return done.probes[done.probes["k"] == done.chosen].reset_index(drop=True)


def _tell(step: Step) -> None:
    if step.stage == "iteration":
        log.info("%s", step.note)


def machine() -> str:
    """Where it was measured, in words."""
    cores, threads = os.cpu_count(), torch.get_num_threads()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {cores} cores, {threads} thread{'s' if threads > 1 else ''}, {gpu}"


@contextmanager
def alone() -> Iterator[None]:
    """Inside, no other of these processes writes results."""
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def stored(path: Path) -> dict[str, dict[str, dict[str, object]]]:
    """What was measured so far: by number of records, then by "editor on model"."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def store(path: Path, records: int, name: str, found: dict[str, object]) -> None:
    """Add a row, in the order of the registry, whoever measured it first."""
    order = [f"{editor} on {model}" for editor, model in pairs(())]
    with alone():
        every = stored(path)
        rows = {**every.get(str(records), {}), name: found}
        every[str(records)] = {
            key: rows[key] for key in sorted(rows, key=lambda key: order.index(key) if key in order else len(order))
        }
        write_text(path, json.dumps(every, indent=1) + "\n")
        if path == results_page.COMPARISON:
            results_page.write()


def _apart(editor: str, model: str, records: int) -> dict[str, object]:
    """A row from a process of its own; CalledProcessError where it fails, which says why on standard error."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "row.json"
        command = [sys.executable, "-m", "scripts.measure_editors", "--records", str(records), "--on", model]
        subprocess.run([*command, "--out", str(place), "--one", editor], check=True)
        found: dict[str, object] = json.loads(place.read_text(encoding="utf-8"))
        return found


def _rounded(value: object) -> object:
    """The same with four decimals: the file is bundled."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure every editor on the same records.")
    parser.add_argument("editors", nargs="*", metavar="EDITOR", help=f"among: {', '.join(EDITORS)}; none for all")
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--out", type=Path, default=results_page.COMPARISON)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # how the script calls itself
    parser.add_argument("--on", default=DEFAULT, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure the named editors, or all, that are not stored yet."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    told = _arguments()
    if told.one:
        row = asdict(measured(told.one, told.on, told.records))
        write_text(told.out, json.dumps(_rounded(row)))
        return
    for name in told.editors:
        editor_row(name)
    failed = []
    for editor, model in pairs(told.editors):
        name = f"{editor} on {model}"
        if name in stored(told.out).get(str(told.records), {}):
            continue
        started = time.perf_counter()
        try:
            store(told.out, told.records, name, _apart(editor, model, told.records))
            log.info("%s: %.0f s", name, time.perf_counter() - started)
        except subprocess.CalledProcessError:
            failed.append(name)
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}; why stands above.")


if __name__ == "__main__":
    main()
