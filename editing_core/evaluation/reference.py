"""Published numbers to lay beside a run, from the tables of two papers.

UnderEdit & OverEdit (arXiv:2503.11895) for editors repeated over k, Model Editing by Standard Fine-Tuning
(arXiv:2402.11078) for recipes of fine-tuning. They come from `assets/reference/`, whose README says what its columns
mean and which rows are suspect.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import pandas as pd

from editing_core import paths

UNDEREDIT, FINETUNING = "arXiv:2503.11895", "arXiv:2402.11078"
TABLES = {6: "counterfact", 7: "zsre", 8: "counterfact", 9: "counterfact"}
MODELS = {"GPT-2 XL": "gpt2-xl", "GPT-J": "gpt-j-6b", "Llama-2": "llama-2-7b"}
ASSISTS = {"NA": "na", "NAP": "nap"}  # neighbor assistance without and with a prefix; "off" for none
UNEDITED = "unedited"
METRICS = [
    f"{part}_{kind}"
    for part in ("efficacy", "generalization", "specificity", "score")
    for kind in ("accuracy", "success")
]
METRICS += ["collapse_ppl", "ppl_optimised", "ppl_spread", "delta_ppl"]
PUBLISHED = [*METRICS, "specificity_gold", "fluency", "consistency"]
COLUMNS = ["source", "table", "model", "editor", "recipe", "assist", "dataset", "protocol", "k", *PUBLISHED]
COLUMNS += ["n_edits", "note"]

RECIPE_TABLES = (2, 3, 5, 6, 8, 4, 9)  # 4 and 9 add fluency and consistency to rows of 2 and 3
BEFORE = {4: 2, 6: 2}  # the table with the unedited model, for those that lack it or its shares
PROTOCOLS = {"mass": "batch", "single": "single"}
DATASETS = {"COUNTERFACT": "counterfact", "ZsRE": "zsre", "WikiRecent": "knowedit"}
PARTS = ("efficacy", "generalization", "locality", "score")
# What the paper's columns are here. On ZsRE locality asks for right answers, as in MEMIT, and enters the score, which
# is therefore another one than ours; what it asks on WikiRecent is not told.
OURS = {
    "counterfact": ("efficacy_success", "generalization_success", "specificity_success", "score_success"),
    "zsre": ("efficacy_accuracy", "generalization_accuracy", "specificity_gold", None),
    "knowedit": ("efficacy_accuracy", "generalization_accuracy", None, None),
}
# Recipes that their tables call otherwise, by table and printed name; the other names are the recipes' labels.
LABELS = {
    (2, "FT (21st layer)"): "FT (single layer)",
    (2, "FT-W (21st layer w/ weight decay)"): "FT-W",
    (3, "FT"): "FT (ROME's baseline)",
    (4, "FT + Mask + Para + Rand + Wikipedia Loss"): "FT + Mask + Para + Rand + Wikipedia loss",
    (5, "FT + Mask + Para + Rand (w/o LoRA)"): "FT + Mask + Para + Rand, without LoRA",
    (6, "FT + Mask"): "FT + Mask, layers 3-5",
    (6, "FT + Mask + Para"): "FT + Mask + Para, layers 3-5",
    (6, "FT + Mask + Para + Rand"): "FT + Mask + Para + Rand, layers 3-5",
    (8, "FT + Mask + Para + Rand"): "FT + Mask + Para + Rand of 10",
    (9, "FT"): "FT (ROME's baseline)",
}


@cache
def finetuning(number: int) -> pd.DataFrame:
    """A table of "Model Editing by Standard Fine-Tuning" (arXiv:2402.11078), 1 to 9, as printed; one row per editor."""
    return pd.read_csv(paths.assets() / "reference" / f"finetuning_table{number}.csv")


@cache
def _tables() -> pd.DataFrame:
    parts = []
    for number, dataset in TABLES.items():
        part = pd.read_csv(paths.assets() / "reference" / f"underedit_table{number}.csv")
        parts.append(part.assign(table=number, dataset=dataset))
    rows = pd.concat(parts, ignore_index=True).rename(columns={"me_ppl_50": "collapse_ppl", "iteration": "k"})
    label = rows["editor"].str.extract(r"^(?:(NAP?)_)?(\w+)$")
    rows["assist"] = label[0].map(ASSISTS).fillna("off")
    rows["editor"] = label[1].str.lower()
    rows["model"] = rows["model"].map(MODELS)
    rows["note"] = rows["note"].fillna("")
    rows = rows.assign(source=UNDEREDIT, recipe="", protocol="batch").reindex(columns=COLUMNS)
    return rows.astype(dict.fromkeys(PUBLISHED, float))


@cache
def _recipes() -> pd.DataFrame:
    """One row per protocol, model, data set and recipe of fine-tuning, and for the unedited models; columns as above.

    Numbers of one row that stand in several tables are put together; `table` is the first one.
    """
    printed = [(number, row) for number in RECIPE_TABLES for row in finetuning(number).to_dict("records")]
    made = [_recipe_row(number, row) for number, row in printed if row["editor"].startswith(("FT", "Unedited"))]
    rows = pd.DataFrame(made).reindex(columns=COLUMNS).astype(dict.fromkeys(PUBLISHED, float))
    rows = rows.dropna(subset=PUBLISHED, how="all")
    same = ["protocol", "model", "dataset", "editor", "recipe"]
    return rows.groupby(same, sort=False, as_index=False).first()[COLUMNS].fillna({"note": ""})


def _recipe_row(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """A printed row with EditScope's names; what has none stands in the note."""
    dataset, unedited = DATASETS[row["dataset"]], row["editor"] == "Unedited"
    shares = [(part, ours, row[part]) for part, ours in zip(PARTS, OURS[dataset], strict=True) if part in row]
    other = ", ".join(f"{part} {value:.1f}" for part, ours, value in shares if not ours and pd.notna(value))
    notes = [row["note"]] if isinstance(row["note"], str) else []
    notes += [f"Also printed, without a counterpart here: {other}"] if other else []
    return {
        "source": FINETUNING,
        "table": number,
        "model": MODELS[row["model"]],
        "editor": UNEDITED if unedited else "finetuning",
        "recipe": "" if unedited else LABELS.get((number, row["editor"]), row["editor"]),
        "assist": "off",
        "dataset": dataset,
        "protocol": PROTOCOLS[row["mode"]],
        "k": 0 if unedited else 1,
        **{ours: value for _, ours, value in shares if ours},
        **{name: row[name] for name in ("fluency", "consistency") if name in row},
        "n_edits": row["n_edits"],
        "note": ". ".join(notes) or None,
    }


def tables() -> pd.DataFrame:
    """Tables 6 to 9, one row per table, model, editor, assist and k, with EditScope's names.

    Shares in percent, perplexities as printed, NaN where nothing is printed. k is 0 for editor "unedited".
    collapse_ppl was measured on other texts than EditScope's. A note that starts with "Suspect" marks numbers
    that should not be a target. Table 9 repeats rows of Table 8.
    """
    return _tables().copy()


def beside(
    model: str,
    editor: str,
    dataset: str,
    assist: str = "off",
    n_edits: int | None = None,
    recipe: str = "",
    protocol: str = "batch",
) -> pd.DataFrame:
    """A paper's rows for a run, by k and from one table, with the unedited model as k = 0; empty if there are none.

    model: a catalog name, editor: "memit", "pmet", "rome" or "finetuning", dataset: "counterfact", "zsre" or
    "knowedit", assist: "off", "na" or "nap". n_edits: facts edited at once. Runs without assistance exist for 1,000
    facts and for the 739, 960 or 1,340 ones that assistance was tried on; unless n_edits is given, 1,000 is taken.
    recipe: the label of fine-tuning's, each of which has one row. protocol: "batch" or, for fine-tuning, "single".
    """
    rows = _recipes() if editor == "finetuning" else _tables()
    rows = rows[(rows["model"] == model) & (rows["dataset"] == dataset) & (rows["protocol"] == protocol)]
    if n_edits is not None:
        rows = rows[rows["n_edits"] == n_edits]
    edited = (rows["editor"] == editor) & (rows["assist"] == assist) & (rows["recipe"] == recipe)
    table = rows["table"][edited].min()  # of several tables, the first; NaN without rows
    before = BEFORE.get(table, table) if editor == "finetuning" else table
    unedited = (rows["editor"] == UNEDITED) & (rows["table"] == before)
    return rows[unedited | (edited & (rows["table"] == table))].sort_values("k").reset_index(drop=True)


def compare(iterations: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """A run's iteration rows with a paper's of the same k: k, each <metric> and <metric>_paper, paper and note.

    iterations: as in a run's record. paper: rows of `beside`. The paper's columns are NaN, and its name and note
    empty, where it has no such row; a metric that one side lacks altogether is NaN there.
    """
    place = paper["source"] + ", Table " + paper["table"].astype(str)
    own = iterations.reindex(columns=["k", *PUBLISHED]).apply(pd.to_numeric)
    theirs = paper.assign(paper=place)[["k", *PUBLISHED, "paper", "note"]]
    both = own.merge(theirs, on="k", how="left", suffixes=("", "_paper"))
    pairs = [column for metric in PUBLISHED for column in (metric, f"{metric}_paper")]
    return both[["k", *pairs, "paper", "note"]].fillna({"paper": "", "note": ""})
