"""The ladder: one fine-tuning after the other on the same facts, each with one ingredient more than the last.

What Table 2 of "Model Editing by Standard Fine-Tuning" (https://arxiv.org/abs/2402.11078) shows for ten
thousand facts: what masking, paraphrases and unedited facts buy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import isnan

import pandas as pd

from editing_core.editors.finetuning import INGREDIENTS, FineTuningSettings
from editing_core.editors.recipes import LADDER, RECIPES, Recipe
from editing_core.editors.stopping import StopSettings
from editing_core.evaluation.consistency import References
from editing_core.evaluation.evaluator import Evaluator
from editing_core.evaluation.reference import beside
from editing_core.models.language_model import LanguageModel
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan, RunResult
from editing_core.session import run_edit
from editing_core.types import EditRequest, Watch, ignore, noting

EDITOR = "finetuning"
UNEDITED = "unedited"
SUCCESSES = ["efficacy_success", "generalization_success", "specificity_success", "score_success"]
ACCURACIES = ["efficacy_accuracy", "generalization_accuracy", "specificity_accuracy", "score_accuracy"]
MORE = ["collapse_ppl", "fluency", "consistency"]
LABELS = [recipe.label for recipe in RECIPES]
ALONE = "FT + Mask + Para + Sim"  # tried on single edits
PRINTED = (  # model, protocol, and how both are told
    ("gpt-j-6b", "batch", "the paper: GPT-J, {:,} facts at once"),
    ("gpt2-xl", "single", "the paper: GPT-2 XL, {:,} facts, each alone"),
)


@dataclass(frozen=True, eq=False)
class Rung:
    """A recipe and what came of it."""

    recipe: Recipe
    run: RunResult


def rung_plan(plan: EditPlan, model: str, recipe: str) -> EditPlan:
    """The plan with the recipe's ingredients and all else the recipe sets; the rest is the plan's own, or the preset's.

    UnknownName for an unknown recipe.
    """
    row = editor_row(EDITOR)
    preset = row.preset(model, recipe=recipe).settings
    settings = preset
    if isinstance(plan.settings, FineTuningSettings):
        own = next(known.of(model) for known in row.recipes if known.name == recipe)
        names = [f.name for f in fields(preset) if f.metadata["group"] == INGREDIENTS or f.name in own]
        settings = replace(plan.settings, **{name: getattr(preset, name) for name in names})
    # No guard: a recipe that breaks the model is to be seen as what it is.
    stop = StopSettings(iterations=1, stop="none", collapse_factor=0.0)
    return replace(plan, editor=EDITOR, settings=settings, stop=stop)


def run_ladder(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    plan: EditPlan,
    recipes: Sequence[str] = LADDER,
    watch: Watch = ignore,
    evaluator: Evaluator | None = None,
    references: References | None = None,
) -> list[Rung]:
    """Train by every recipe, each from the unedited model. `watch` is told which one is underway.

    plan: seed, conventions, and the settings that recipes leave open.
    """
    plans = [rung_plan(plan, lm.name, name) for name in recipes]
    known = {recipe.name: recipe for recipe in editor_row(EDITOR).recipes}
    rungs = []
    for number, (name, own) in enumerate(zip(recipes, plans, strict=True), start=1):
        told = noting(watch, f"recipe {number} of {len(recipes)}, {known[name].label}")
        rungs.append(Rung(known[name], run_edit(lm, requests, own, None, told, evaluator, references)))
    return rungs


def ladder_table(rungs: Sequence[Rung]) -> pd.DataFrame:
    """One row for the unedited model and one per rung: recipe, shares in percent, perplexity, texts, seconds."""
    if not rungs:
        return pd.DataFrame(columns=["recipe", *SUCCESSES, *ACCURACIES, *MORE, "seconds"])
    rows = [{"recipe": UNEDITED, **_numbers(rungs[0].run, 0), "seconds": float("nan")}]
    rows += [{"recipe": r.recipe.label, **_numbers(r.run, r.run.chosen), "seconds": r.run.edit_seconds} for r in rungs]
    return pd.DataFrame(rows)


def _numbers(run: RunResult, k: int) -> dict[str, float]:
    row = run.iterations.iloc[k]
    return {name: _number(row.get(name)) for name in (*SUCCESSES, *ACCURACIES, *MORE)}


def _number(value: float | None) -> float:
    """NaN for what was not measured, such as paraphrases of a fact without any."""
    return float("nan") if value is None else float(value)


def printed_row(recipe: str, alone: bool = False) -> tuple[str, dict[str, float]]:
    """What the paper prints for a recipe on CounterFact under our names, and for what; nothing where it has no row.

    Mass editing of GPT-J where it was tried, otherwise single edits of GPT-2 XL; alone: only the latter.
    """
    wanted = (ALONE if alone else LABELS[0]) if recipe == UNEDITED else recipe
    for model, protocol, told in PRINTED[1:] if alone else PRINTED:
        rows = beside(model, EDITOR, "counterfact", recipe=wanted, protocol=protocol)
        rows = rows[rows["k"] == (0 if recipe == UNEDITED else 1)]
        if len(rows):
            numbers = {name: float(rows[name].iloc[0]) for name in (*SUCCESSES, "fluency", "consistency")}
            told_numbers = {name: value for name, value in numbers.items() if not isnan(value)}
            return told.format(int(rows["n_edits"].iloc[0])), told_numbers
    return "", {}
