"""Published numbers to lay beside a run: the full tables of UnderEdit & OverEdit (arXiv:2503.11895).

They come from `assets/reference/`, whose README says what its columns mean and which rows are suspect.
"""

from functools import cache

import pandas as pd

from editing_core import paths

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
COLUMNS = ["table", "model", "editor", "assist", "dataset", "k", *METRICS, "n_edits", "note"]


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
    rows[METRICS] = rows[METRICS].astype(float)
    return rows[COLUMNS]


def tables() -> pd.DataFrame:
    """Tables 6 to 9, one row per table, model, editor, assist and k, with EditScope's names.

    Shares in percent, perplexities as printed, NaN where nothing is printed. k is 0 for editor "unedited".
    collapse_ppl was measured on other texts than EditScope's. A note that starts with "Suspect" marks numbers
    that should not be a target. Table 9 repeats rows of Table 8.
    """
    return _tables().copy()


def beside(model: str, editor: str, dataset: str, assist: str = "off", n_edits: int | None = None) -> pd.DataFrame:
    """The paper's rows for a run, by k and from one table, with the unedited model as k = 0; empty if it has none.

    model: a catalog name, editor: "memit", "pmet" or "rome", dataset: "counterfact" or "zsre", assist: "off",
    "na" or "nap". n_edits: facts edited at once. Runs without assistance exist for 1,000 facts and for the
    739, 960 or 1,340 ones that assistance was tried on; unless n_edits is given, 1,000 is taken.
    """
    rows = _tables()
    rows = rows[(rows["model"] == model) & (rows["dataset"] == dataset)]
    if n_edits is not None:
        rows = rows[rows["n_edits"] == n_edits]
    edited = rows[(rows["editor"] == editor) & (rows["assist"] == assist)]
    rows = rows[rows["table"] == edited["table"].min()]  # of several tables, the first; none without rows
    chosen = (rows["editor"] == UNEDITED) | ((rows["editor"] == editor) & (rows["assist"] == assist))
    return rows[chosen].sort_values("k").reset_index(drop=True)


def compare(
    iterations: pd.DataFrame, model: str, editor: str, dataset: str, assist: str = "off", n_edits: int | None = None
) -> pd.DataFrame:
    """A run's iteration rows with the paper's of the same k: k, each <metric> and <metric>_paper, and the note.

    iterations: as in a run's record. Arguments as in `beside`. The paper's columns are NaN, and its note
    empty, where it has no such row; a metric that one side lacks altogether is NaN there.
    """
    paper = beside(model, editor, dataset, assist, n_edits)[["k", *METRICS, "note"]]
    own = iterations.reindex(columns=["k", *METRICS]).apply(pd.to_numeric)
    both = own.merge(paper, on="k", how="left", suffixes=("", "_paper"))
    pairs = [column for metric in METRICS for column in (metric, f"{metric}_paper")]
    return both[["k", *pairs, "note"]].fillna({"note": ""})
