"""The ladder of fine-tuning on the bundled model: what each ingredient buys, and what it costs in time.

    python -m scripts.measure_finetuning                     200 records of the test part at once
    python -m scripts.measure_finetuning --alone 40          so many records, each edited alone
    python -m scripts.measure_finetuning --recipes ft-mpr    only these; the others stay as they are

Rows are kept in docs/finetuning.json. For records edited at once the rungs of the ladder, and the one with a
loss on other texts, also generate texts, after two prompts per record. Seconds are told with the number of
torch's threads.
"""

import argparse
import json
import logging
from dataclasses import replace
from math import isnan
from typing import Any

import pandas as pd
import torch

from editing_core.data.datasets import load_dataset, sample
from editing_core.editors.recipes import LADDER
from editing_core.editors.stopping import StopSettings
from editing_core.evaluation.consistency import bundled_references
from editing_core.ladder import UNEDITED, ladder_table, run_ladder
from editing_core.models.language_model import LanguageModel
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from scripts.results_page import FINETUNING, write

log = logging.getLogger("finetuning")
TEXTS, PROMPTS = (*LADDER, "ft-mpr-text"), 2
MORE = ("ft-mpr-text", "ft-mpr-dpo", "ft-mpr-full", "ft-layer", "ft-mpr-3-5", "ft-down", "ft-l", "ft-w")


def together(lm: LanguageModel, count: int, recipes: list[str]) -> list[dict[str, Any]]:
    """One row per recipe, the unedited model first: so many records at once, texts included."""
    drawn = sample(load_dataset("pocket-facts"), count, 0)
    requests = [replace(r, generation_prompts=r.generation_prompts[:PROMPTS]) for r in drawn]
    found: dict[str, dict[str, Any]] = {}
    for name in recipes:
        references = bundled_references() if name in TEXTS else None
        rungs = run_ladder(lm, requests, _plan(lm), [name], references=references)
        for row in ladder_table(rungs).to_dict("records"):
            found.setdefault(str(row["recipe"]), row | {"notes": list(rungs[0].run.notes)})
        log.info("%s: %.0f s", name, rungs[0].run.edit_seconds)
    return list(found.values())


def alone(lm: LanguageModel, count: int, recipes: list[str]) -> list[dict[str, Any]]:
    """One row per recipe: means over so many records, each edited by itself."""
    requests = sample(load_dataset("pocket-facts"), count, 0)
    tables = [ladder_table(run_ladder(lm, [request], _plan(lm), recipes)) for request in requests]
    whole = pd.concat(tables, ignore_index=True)
    means = whole.groupby("recipe", sort=False).mean(numeric_only=True).reset_index()
    return [{str(name): value for name, value in row.items()} for row in means.to_dict("records")]


def _plan(lm: LanguageModel) -> EditPlan:
    settings = editor_row("finetuning").preset(lm.name).settings
    return EditPlan("finetuning", settings, StopSettings(iterations=1, stop="none", collapse_factor=0.0), 0)


def _kept(rows: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by recipe, the new ones in place of the old."""
    merged = {row["recipe"]: row for row in rows}
    for row in map(_plain, new):
        told = {name: value for name, value in row.items() if value is not None}
        # The unedited model is measured each time, but not each time with texts.
        merged[row["recipe"]] = merged.get(row["recipe"], row) | told if row["recipe"] == UNEDITED else row
    labels = ["unedited", *(recipe.label for recipe in editor_row("finetuning").recipes)]
    return sorted(merged.values(), key=lambda row: labels.index(row["recipe"]))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and isnan(value) else value for name, value in row.items()}


def main() -> None:
    """Measure, keep, and write the page."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--alone", type=int, default=0)
    parser.add_argument("--recipes", nargs="+", default=[*LADDER, *MORE])
    given = parser.parse_args()
    lm = LanguageModel.load("pocket-gpt2", device="cpu")
    stored = json.loads(FINETUNING.read_text(encoding="utf-8")) if FINETUNING.is_file() else {}
    key, count = ("alone", given.alone) if given.alone else ("together", given.edits)
    rows = alone(lm, count, given.recipes) if given.alone else together(lm, count, given.recipes)
    old = stored.get(key, {})
    kept = _kept(old["rows"] if old.get("edits") == count else [], rows)
    stored[key] = {"edits": count, "threads": torch.get_num_threads(), "rows": kept}
    FINETUNING.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    write()


if __name__ == "__main__":
    main()
