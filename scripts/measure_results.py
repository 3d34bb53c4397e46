"""Measure the iteration tables of docs/results.md on the bundled model and benchmark.

    python -m scripts.measure_results            every row, about half an hour on two cores
    python -m scripts.measure_results memit-10   only the named rows; the others stay as they are

Each row runs over several trials (disjoint records, and another seed of the prefixes). Raw rows are kept
in docs/results.json, so that a single row can be measured anew.
"""

import json
import logging
import sys
from dataclasses import dataclass, field

from editing_core.data.datasets import load_dataset, sample
from editing_core.editors.stopping import StopSettings
from editing_core.models.language_model import LanguageModel
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import run_edit
from scripts import results_page

log = logging.getLogger("results")


@dataclass(frozen=True)
class Case:
    """One block of rows: an editor on so many records, over so many seeds."""

    title: str
    editor: str
    count: int
    iterations: int
    seeds: int
    settings: dict[str, object] = field(default_factory=dict)


CASES = {
    "memit-10": Case("MEMIT, N = 10", "memit", 10, 10, 5),
    "memit-100": Case("MEMIT, N = 100", "memit", 100, 10, 5),
    "memit-300": Case("MEMIT, N = 300", "memit", 300, 10, 2),
    "pmet-100": Case("PMET, N = 100", "pmet", 100, 10, 5),
    "rome-nocov-100": Case("ROME without covariance, N = 100", "rome", 100, 1, 5, {"covariance": False}),
    "rome-100": Case("ROME with covariance and one consistent key, N = 100", "rome", 100, 1, 5),
}


def measure(lm: LanguageModel, case: Case) -> list[dict]:
    """One entry per seed: its iteration rows and how it stopped."""
    out = []
    row = editor_row(case.editor)
    for seed in range(case.seeds):
        requests = sample(load_dataset("pocket-facts"), case.count, seed)
        settings = row.preset(lm.name).settings.changed(case.settings)
        stop = StopSettings(iterations=case.iterations, collapse_factor=0.0)
        run = run_edit(lm, requests, EditPlan(case.editor, settings, stop, seed))
        record = run.to_json()
        out.append(
            {
                "seed": seed,
                "stopped": run.stopped,
                "k": run.last,
                "chosen": run.chosen,
                "rows": record["iterations"],
                "seconds": run.seconds,
            }
        )
        log.info("%s seed %d: %s %.0f s", case.title, seed, run.stopped, run.seconds)
    return out


def main() -> None:
    """Measure the named cases, or all."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    stored = results_page.RESULTS
    results = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    lm = LanguageModel.load("pocket-gpt2")
    for name in sys.argv[1:] or CASES:
        results[name] = {"title": CASES[name].title, "runs": measure(lm, CASES[name])}
        ordered = {key: results[key] for key in CASES if key in results}
        results_page.RESULTS.write_text(json.dumps(ordered, indent=0) + "\n", encoding="utf-8")
        results_page.write()


if __name__ == "__main__":
    main()
