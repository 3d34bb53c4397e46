"""Measure the tables of docs/results.md on the bundled model and benchmark.

    python -m scripts.measure_results            every row, about half an hour on two cores
    python -m scripts.measure_results memit-10   only the named rows; the others stay as they are

Each row runs over several trials (disjoint records, and another seed of the prefixes). Raw rows are kept
in docs/results.json, so that a single row can be measured anew.
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from editing_core.data.datasets import load_dataset, sample
from editing_core.editors.stopping import StopSettings
from editing_core.models.language_model import LanguageModel
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import run_edit

DOCS = Path(__file__).resolve().parent.parent / "docs"
SHOWN = (
    "efficacy_accuracy",
    "efficacy_success",
    "generalization_success",
    "specificity_accuracy",
    "specificity_success",
)
SHOWN += ("score_success", "collapse_ppl", "delta_ppl")
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


def table(results: dict[str, list[dict]]) -> str:
    """The markdown of docs/results.md: mean over seeds with the range, per k."""
    lines = [
        "# Measured results",
        "",
        "Model `pocket-gpt2`, disjoint trials of the `test` part of `pocket-facts`, each with a seed of its own for",
        "prefixes, presets as bundled, conventions `clean`, protocol batch, no collapse guard, rule",
        "|delta p| <= 1 with at most ten iterations. Mean over trials, range in brackets. Rows after a trial stopped",
        "hold only the trials that went on (n). `k` = 0 is the unedited model.",
        "",
        "    python -m scripts.measure_results",
    ]
    for name, runs in results.items():
        case = CASES[name]
        lines += ["", f"## {case.title}", ""]
        lines.append(f"{len(runs)} trials; stopped at k = {', '.join(str(r['k']) for r in runs)}.")
        lines += ["", f"| k | n | {' | '.join(SHOWN)} |", f"|{'---|' * (len(SHOWN) + 2)}"]
        for k in range(max(r["k"] for r in runs) + 1):
            rows = [r["rows"][k] for r in runs if r["k"] >= k]
            lines.append(f"| {k} | {len(rows)} | {' | '.join(_cell([row.get(c) for row in rows]) for c in SHOWN)} |")
        ends = [r["rows"][-1] for r in runs]
        lines.append(f"| stop | {len(ends)} | {' | '.join(_cell([row.get(c) for row in ends]) for c in SHOWN)} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float | None]) -> str:
    numbers = [v for v in values if v is not None]
    if not numbers:
        return ""
    mean = sum(numbers) / len(numbers)
    low, high = min(numbers), max(numbers)
    spread = f" ({low:.4g} to {high:.4g})" if high > low else ""
    return f"{mean:.4g}{spread}"


def main() -> None:
    """Measure the named cases, or all."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    stored = DOCS / "results.json"
    results = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    lm = LanguageModel.load("pocket-gpt2")
    for name in sys.argv[1:] or CASES:
        results[name] = measure(lm, CASES[name])
        ordered = {key: results[key] for key in CASES if key in results}
        stored.write_text(json.dumps(ordered, indent=0) + "\n", encoding="utf-8")
        (DOCS / "results.md").write_text(table(ordered), encoding="utf-8")


if __name__ == "__main__":
    main()
