"""Search an editor's preset for a bundled model on the `tune` part of pocket-facts, never on `test`.

    python -m scripts.search_presets memit                        pmet and rome likewise; about half an hour each
    python -m scripts.search_presets memit --model pocket-llama   a sibling: a short search, some ten minutes
    python -m scripts.search_presets pmet --model pocket-llama --confirm decay=0.01 clamp=1.5
                                                                  no search: these changes of the start, confirmed

Coordinate descent: one setting after the other is tried at every value of its ladder, the best is kept and
the pass goes on from there. A sibling of pocket-gpt2 starts from its preset, with layers of its own, and
varies only what its shape decides. A trial's grade is the mean of both scores (success, accuracy) where the rule
stops. The winner is compared with the start once more, on other seeds and more records. All trials are kept
in docs/presets.csv; one that is there already is not run again, so that an interrupted search goes on.
"""

import argparse
import csv
import json
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from editing_core.data.datasets import load_dataset
from editing_core.editors.stopping import StopSettings
from editing_core.errors import EditingError
from editing_core.models.language_model import LanguageModel
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import run_edit
from editing_core.settings import Settings
from scripts.pocket.families import FAMILIES

TABLE = Path(__file__).resolve().parent.parent / "docs" / "presets.csv"
COLUMNS = ("model", "editor", "settings", "records", "seed", "groups", "k", "converged", "efficacy_success")
COLUMNS += ("generalization_success", "specificity_success", "score_success", "score_accuracy", "collapse_ppl")
COLUMNS += ("seconds",)
MEANS = ("efficacy_success", "generalization_success", "specificity_success", "collapse_ppl")
FIRST = "pocket-gpt2"  # its preset is where the others start
SEARCH_SEEDS, CONFIRM_SEEDS = (0,), (1, 2)
LEAST_GAIN = 0.5  # smaller differences are within the noise of one draw of records
log = logging.getLogger("search")


@dataclass(frozen=True)
class Search:
    """What is varied, in this order, and on what.

    records are split into `groups` edited apart: ROME writes one fact at a time, and its preset is for that.
    confirm: records on which start and winner are compared once more, split likewise.
    """

    ladders: dict[str, tuple[object, ...]]
    records: int
    groups: int
    iterations: int
    confirm: int = 100


_SPREADING = {
    "layers": ((0, 1, 2), (0, 1), (1, 2), (0, 1, 2, 3)),
    "covariance_weight": (1000.0, 300.0, 3000.0),
    "decay": (3.0, 1.0, 6.0),
    "rate": (0.06, 0.03, 0.12),
    "clamp": (1.0, 0.75, 2.0),
    "kl_factor": (0.0625, 0.25),
    "steps": (30, 20),
    "covariance_floor": (1e-3, 0.0, 1e-2),
}
_MODULE = {"rate": (0.5, 0.25, 1.0), "decay": (0.05, 0.01, 0.2)}
SEARCHES = {
    "memit": Search(_SPREADING, 60, 1, 10),
    "pmet": Search({**_SPREADING, **_MODULE, "clamp": (3.0, 1.5, 6.0)}, 60, 1, 10),
    "rome": Search(
        {
            "layer": (1, 0, 2),
            **_MODULE,
            "clamp": (4.0, 2.0, 6.0),
            "kl_factor": (0.0625, 0.25),
            "steps": (30, 20),
            "covariance_floor": (1e-3, 1e-2, 1e-1),
        },
        20,
        20,
        3,
        40,
    ),
}

PLACES = ("layers", "layer")
AGAIN = (*PLACES, "covariance_weight", "rate", "decay", "clamp")  # what a sibling varies


def plan_of(model: str, editor: str) -> Search:
    """The search for a model; a sibling's layers are runs of blocks below the one that reads, by families.py."""
    full = SEARCHES[editor]
    if model == FIRST:
        return full
    read = next(family.read_block for family in FAMILIES.values() if family.name == model)
    ends = (read, read - 1)
    places: dict[str, tuple[object, ...]] = {
        "layers": tuple(tuple(range(first, end)) for end in ends for first in range(end)),
        "layer": tuple(reversed(range(read))),
    }
    ladders = {name: places.get(name, full.ladders[name]) for name in AGAIN if name in full.ladders}
    return replace(full, ladders=ladders)


def start_of(model: str, editor: str) -> Settings:
    """The settings a search starts from: pocket-gpt2's preset, for a sibling at the first layers of its ladder."""
    settings = editor_row(editor).preset(FIRST).settings
    own = {} if model == FIRST else {n: v[0] for n, v in plan_of(model, editor).ladders.items() if n in PLACES}
    return settings.changed(own)


def trial(
    lm: LanguageModel, editor: str, settings: Settings, search: Search, records: int, seed: int
) -> dict[str, object]:
    """One row of the table: where the rule stopped, averaged over the groups."""
    requests = random.Random(seed).sample(list(load_dataset("pocket-facts:tune")), records)
    plan = EditPlan(editor, settings, StopSettings(iterations=search.iterations), seed)
    started, ends, stops = time.perf_counter(), [], []
    groups = min(search.groups * (records // search.records), records)
    for group in range(groups):
        run = run_edit(lm, requests[group::groups], plan)
        ends.append(run.iterations.iloc[-1])
        stops.append((run.last, run.converged))
    means = {c: sum(float(e[c]) for e in ends) / len(ends) for c in MEANS}
    means |= _scores(ends)
    return {
        **trial_key(lm.name, editor, settings, records, seed),
        "groups": groups,
        "k": sum(k for k, _ in stops) / len(stops),
        "converged": sum(ok for _, ok in stops) / len(stops),
        **{name: round(value, 3) for name, value in means.items()},
        "seconds": round(time.perf_counter() - started, 1),
    }


def _scores(ends: list) -> dict[str, float]:
    """Harmonic means of the parts' means: a single record's parts are too often zero."""
    out = {}
    for kind in ("success", "accuracy"):
        parts = [
            sum(float(e[f"{part}_{kind}"]) for e in ends) / len(ends)
            for part in ("efficacy", "generalization", "specificity")
        ]
        out[f"score_{kind}"] = 0.0 if min(parts) <= 0 else 3 / sum(1 / p for p in parts)
    return out


def trial_key(model: str, editor: str, settings: Settings, records: int, seed: int) -> dict[str, object]:
    """What tells a trial from all others."""
    text = json.dumps(asdict(settings), sort_keys=True)
    return {"model": model, "editor": editor, "settings": text, "records": records, "seed": seed}


class Table:
    """docs/presets.csv: rows by model, editor, settings and seed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, object]] = []
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                self.rows = list(csv.DictReader(file))

    def find(self, key: dict[str, object]) -> dict[str, object] | None:
        """The row of a trial that was run."""
        return next((r for r in self.rows if all(str(r[name]) == str(value) for name, value in key.items())), None)

    def add(self, row: dict[str, object]) -> None:
        """Append and save."""
        self.rows.append(row)
        fresh = not self.path.is_file()
        with self.path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerow(row)


def grade(
    lm: LanguageModel, table: Table, editor: str, settings: Settings, records: int, seeds: tuple[int, ...]
) -> float:
    """Mean of both scores over seeds; -1 where a run fails."""
    grades = []
    for seed in seeds:
        row = table.find(trial_key(lm.name, editor, settings, records, seed))
        if row is None:
            try:
                row = trial(lm, editor, settings, plan_of(lm.name, editor), records, seed)
            except EditingError as error:
                log.info("%s", error)
                return -1.0
            table.add(row)
        grades.append((float(str(row["score_success"])) + float(str(row["score_accuracy"]))) / 2)
    return sum(grades) / len(grades)


def search(lm: LanguageModel, table: Table, editor: str, start: Settings) -> Iterator[tuple[str, object, float]]:
    """One pass over the ladders and the confirmation; yields what was tried and its grade."""
    plan = plan_of(lm.name, editor)
    best, best_grade = start, grade(lm, table, editor, start, plan.records, SEARCH_SEEDS)
    yield "start", start, best_grade
    for name, ladder in plan.ladders.items():
        here = best
        for value in ladder:
            if value == getattr(here, name):
                continue
            candidate = here.changed({name: value})
            found = grade(lm, table, editor, candidate, plan.records, SEARCH_SEEDS)
            yield name, value, found
            if found > best_grade + LEAST_GAIN:
                best, best_grade = candidate, found
    for name, settings in (("start again", start), ("winner again", best)):
        yield name, settings, grade(lm, table, editor, settings, plan.confirm, CONFIRM_SEEDS)


def main() -> None:
    """Search the named editors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("editors", nargs="+", choices=sorted(SEARCHES))
    parser.add_argument("--confirm", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--model", default=FIRST, choices=[f.name for f in FAMILIES.values() if f.shipped])
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    lm = LanguageModel.load(args.model)
    changes = dict(pair.partition("=")[::2] for pair in args.confirm)
    for editor in args.editors:
        if changes:
            plan, settings = plan_of(lm.name, editor), start_of(lm.name, editor).changed(changes)
            found = grade(lm, Table(TABLE), editor, settings, plan.confirm, CONFIRM_SEEDS)
            log.info("%s %s confirmed %s: %.2f", lm.name, editor, settings, found)
            continue
        for name, value, found in search(lm, Table(TABLE), editor, start_of(lm.name, editor)):
            log.info("%s %s %s = %s: %.2f", lm.name, editor, name, value, found)


if __name__ == "__main__":
    main()
