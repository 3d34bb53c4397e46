"""The published tables: read completely, under our names, and laid beside a run."""

import math
import re
from itertools import product

import pandas as pd
import pytest

from editing_core import paths
from editing_core.editors.recipes import RECIPES
from editing_core.evaluation.metrics import CARDS
from editing_core.evaluation.reference import COLUMNS, FINETUNING, METRICS, UNDEREDIT, beside, compare, tables

FOLDER = paths.assets() / "reference"


def test_every_group_is_complete():
    rows = tables()
    assert list(rows.columns) == COLUMNS
    assert rows.groupby("table").size().to_dict() == {6: 53, 7: 53, 8: 73, 9: 46}
    sizes = rows.groupby(["table", "model", "editor", "assist"]).size()
    assert len(sizes) == 12 + 12 + 13 + 7
    for (_, model, editor, assist), count in sizes.items():
        ten = editor == "pmet" and (model == "gpt2-xl" or assist != "off")
        assert count == (1 if editor == "unedited" else 10 if ten else 5)
    steps = rows[rows["editor"] != "unedited"].groupby(["table", "model", "editor", "assist"])["k"]
    assert all(list(k) == list(range(1, len(k) + 1)) for _, k in steps)


def test_names_are_ours():
    rows = tables()
    assert set(rows["model"]) == {"gpt2-xl", "gpt-j-6b", "llama-2-7b"}
    assert set(rows["editor"]) == {"memit", "pmet", "rome", "unedited"}
    assert set(rows["assist"]) == {"off", "na", "nap"}
    assert set(rows["dataset"]) == {"counterfact", "zsre"}
    assert set(METRICS) <= set(CARDS)


def test_numbers_are_numbers():
    rows = tables()
    assert all(rows[metric].dtype == float for metric in METRICS)
    assert beside("gpt2-xl", "rome", "counterfact")["collapse_ppl"][1] == 7070.0  # printed 7.07E+03
    shares = rows[METRICS[:8]]
    assert ((shares >= 0) & (shares <= 100) | shares.isna()).all(axis=None)
    # Rows printed as fractions would stand out against those of the other editor.
    first = rows[(rows["table"] == 8) & (rows["model"] == "gpt2-xl") & (rows["editor"] == "pmet") & (rows["k"] == 10)]
    assert (first["efficacy_accuracy"] > 90).all()


def test_tables_are_a_copy():
    rows = tables()
    rows["k"] = -1
    assert (tables()["k"] >= 0).all()


@pytest.mark.parametrize(
    ("run", "k", "metric", "value"),
    [
        (("gpt2-xl", "memit", "counterfact"), 4, "score_success", 90.00),
        (("gpt2-xl", "memit", "counterfact"), 1, "delta_ppl", 11359.60),
        (("gpt2-xl", "pmet", "counterfact"), 10, "score_accuracy", 47.00),
        (("gpt-j-6b", "memit", "counterfact"), 2, "generalization_accuracy", 80.67),
        (("llama-2-7b", "memit", "counterfact"), 2, "ppl_optimised", 16.77),
        (("llama-2-7b", "pmet", "zsre"), 2, "score_accuracy", 78.00),
        (("gpt2-xl", "memit", "zsre"), 3, "specificity_accuracy", 23.33),
        (("gpt2-xl", "memit", "counterfact", "na"), 4, "specificity_accuracy", 86.00),
        (("gpt2-xl", "memit", "counterfact", "nap"), 4, "specificity_accuracy", 84.00),
        (("gpt2-xl", "memit", "counterfact", "off", 739), 4, "specificity_accuracy", 52.00),
        (("gpt-j-6b", "pmet", "counterfact", "na"), 6, "score_accuracy", 81.00),
        (("llama-2-7b", "pmet", "counterfact", "na"), 10, "collapse_ppl", 1414.01),
    ],
)
def test_spot_values(run, k, metric, value):
    assert beside(*run).set_index("k")[metric][k] == value


def test_a_run_gets_rows_of_one_table_with_the_unedited_model_first():
    rows = beside("gpt2-xl", "pmet", "counterfact", "na")
    assert rows["k"].tolist() == list(range(11))
    assert rows["editor"].tolist() == ["unedited"] + 10 * ["pmet"]
    assert rows["table"].unique().tolist() == [8]
    assert beside("gpt2-xl", "memit", "counterfact")["n_edits"].unique().tolist() == [1000]
    assert beside("gpt2-xl", "unedited", "zsre")["k"].tolist() == [0]


@pytest.mark.parametrize(
    "run",
    [
        ("gpt2", "memit", "counterfact"),
        ("gpt2-xl", "finetune", "counterfact"),
        ("gpt2-xl", "memit", "wikirecent"),
        ("gpt2-xl", "memit", "zsre", "na"),
        ("llama-2-7b", "memit", "counterfact", "na"),
        ("gpt2-xl", "memit", "counterfact", "off", 10),
    ],
)
def test_what_the_paper_lacks_is_empty(run):
    rows = beside(*run)
    assert rows.empty
    assert list(rows.columns) == COLUMNS


def test_suspect_rows_are_marked():
    rows = tables()
    suspect = rows[rows["note"].str.startswith("Suspect")]
    unedited = suspect[suspect["editor"] == "unedited"]
    assert set(zip(unedited["table"], unedited["model"], strict=True)) == {
        (6, "gpt2-xl"),
        (6, "gpt-j-6b"),
        (6, "llama-2-7b"),
        (7, "llama-2-7b"),
        (8, "llama-2-7b"),
    }
    late = suspect[suspect["assist"] == "nap"]
    assert (late["editor"] == "pmet").all()
    assert late["k"].tolist() == list(range(1, 11))
    assert len(suspect) == 5 + 10 + 1
    assert rows["note"].notna().all()


def test_compare_lays_the_paper_beside_the_run():
    run = pd.DataFrame(
        {"k": [0, 1, 2], "score_success": [10.0, 80.0, 85.0], "delta_ppl": [None, 5.0, 1.0], "other": [1, 2, 3]}
    )
    both = compare(run, beside("gpt2-xl", "memit", "counterfact"))
    assert both["k"].tolist() == [0, 1, 2]
    assert both["paper"].tolist() == [f"{UNDEREDIT}, Table 6"] * 3
    assert both["score_success"].tolist() == [10.0, 80.0, 85.0]
    assert both["score_success_paper"].tolist() == [31.33, 83.00, 89.67]
    assert both["delta_ppl_paper"].tolist()[1:] == [11359.60, 77.12]
    assert both["efficacy_accuracy"].isna().all()
    assert both["note"][0].startswith("Suspect")
    assert both["note"][1] == ""
    assert "other" not in both


def test_compare_with_a_run_longer_than_the_paper_or_not_in_it():
    run = pd.DataFrame({"k": range(8), "collapse_ppl": 50.0})
    both = compare(run, beside("gpt2-xl", "memit", "counterfact"))
    assert len(both) == 8
    assert both["collapse_ppl_paper"][5] == 63.28
    assert math.isnan(both["collapse_ppl_paper"][6])
    alone = compare(run, beside("pocket-gpt2", "memit", "counterfact"))
    assert alone["collapse_ppl"].tolist() == [50.0] * 8
    assert alone["collapse_ppl_paper"].isna().all()
    assert alone["note"].tolist() == alone["paper"].tolist() == [""] * 8
    assert list(alone.columns) == list(both.columns)


RAND = "FT + Mask + Para + Rand"


def recipe(label, model="gpt-j-6b", dataset="counterfact", protocol="batch"):
    return beside(model, "finetuning", dataset, recipe=label, protocol=protocol)


@pytest.mark.parametrize(
    ("asked", "table", "metric", "values"),
    [
        ((RAND,), 2, "efficacy_success", [15.2, 98.8]),
        ((RAND,), 2, "specificity_success", [83.5, 72.0]),
        ((RAND,), 2, "fluency", [622.4, 352.0]),  # Table 4
        (("FT (single layer)",), 2, "score_success", [22.4, 60.5]),
        (("FT-W",), 2, "generalization_success", [17.7, 77.0]),
        (("FT + Mask", "gpt-j-6b", "zsre"), 2, "efficacy_accuracy", [26.4, 97.6]),
        (("FT + Mask", "gpt-j-6b", "zsre"), 2, "specificity_gold", [27.0, 32.9]),
        ((f"{RAND} + Wikipedia loss",), 4, "fluency", [622.4, 609.2]),
        ((RAND, "gpt2-xl"), 5, "generalization_success", [24.1, 86.5]),
        ((f"{RAND}, without LoRA", "gpt2-xl"), 5, "score_success", [29.9, 86.9]),
        (("FT + Mask + Para, layers 3-5",), 6, "efficacy_success", [15.2, 100.0]),
        ((f"{RAND} of 10", "gpt-j-6b", "knowedit"), 8, "generalization_accuracy", [34.5, 84.6]),
        (("FT + Mask + Para + Sim", "gpt2-xl", "counterfact", "single"), 3, "score_success", [30.5, 83.1]),
        (("FT (ROME's baseline)", "gpt2-xl", "counterfact", "single"), 3, "consistency", [31.9, 40.5]),  # Table 9
        (("FT-L", "gpt2-xl", "zsre", "single"), 3, "efficacy_accuracy", [22.2, 92.3]),
    ],
)
def test_a_recipe_has_its_row_after_the_unedited_model(asked, table, metric, values):
    rows = recipe(*asked)
    assert rows["k"].tolist() == [0, 1]
    assert rows["editor"].tolist() == ["unedited", "finetuning"]
    assert rows["recipe"].tolist() == ["", asked[0]]
    assert rows[metric].tolist() == values
    assert rows["table"].iloc[1] == table
    assert set(rows["source"]) == {FINETUNING}


def test_what_the_paper_counts_otherwise_stands_in_the_note():
    zsre = recipe(RAND, dataset="zsre").iloc[1]
    assert zsre["note"] == "Also printed, without a counterpart here: score 62.0"
    assert math.isnan(zsre["score_accuracy"])
    assert recipe("FT", dataset="knowedit").iloc[1]["note"].endswith("here: locality 44.5, score 55.8")
    assert recipe(RAND)["note"].tolist() == ["", ""]


@pytest.mark.parametrize(
    "asked",
    [
        ("",),
        ("ROME",),
        (RAND, "pocket-gpt2"),
        (RAND, "gpt-j-6b", "pocket-facts"),
        (RAND, "gpt-j-6b", "counterfact", "single"),
        (RAND, "gpt-j-6b", "counterfact", "sequential"),
        (f"{RAND} + DPO", "gpt-j-6b", "zsre"),  # the paper prints a dash
        (f"{RAND}, LoRA on layers 3-5",),  # ours
    ],
)
def test_recipes_without_a_row(asked):
    rows = recipe(*asked)
    assert rows.empty
    assert list(rows.columns) == COLUMNS


def test_only_batches_of_other_editors_have_rows():
    assert not beside("gpt2-xl", "memit", "counterfact", protocol="batch").empty
    assert beside("gpt2-xl", "memit", "counterfact", protocol="single").empty
    assert beside("gpt-j-6b", "memit", "counterfact", recipe="FT").empty


def test_every_printed_recipe_is_found_by_the_label_it_has_here():
    labels = {r.label for r in RECIPES} - {f"{RAND}, LoRA on layers 3-5"}
    found = {
        label
        for label in labels
        for model, dataset, protocol in product(
            ("gpt-j-6b", "gpt2-xl"), ("counterfact", "zsre", "knowedit"), ("batch", "single")
        )
        if not recipe(label, model, dataset, protocol).empty
    }
    assert found == labels


def test_short_tables_repeat_rows_of_the_full_ones():
    """Table 1 holds rows of Table 6, Table 2 rows of Table 8: a slip in copying either would show."""
    for short, full in ((1, 6), (2, 8)):
        rows = pd.read_csv(FOLDER / f"underedit_table{short}.csv")
        whole = pd.read_csv(FOLDER / f"underedit_table{full}.csv")
        shared = [c for c in rows.columns if c not in ("note", "delta_ppl")]
        found = rows[shared].merge(whole[shared].drop_duplicates(), on=shared, how="left", indicator=True)
        assert (found["_merge"] == "both").all(), short


def test_scores_are_about_the_harmonic_mean_of_their_parts():
    """Shares are means of rounded runs, so scores differ a little; a shifted column would differ by much."""
    rows = tables()
    rows = rows[(rows["editor"] != "rome") & (rows["editor"] != "unedited")]
    for kind in ("accuracy", "success"):
        parts = rows[[f"{part}_{kind}" for part in ("efficacy", "generalization", "specificity")]]
        difference = (3 / (1 / parts).sum(axis=1, skipna=False) - rows[f"score_{kind}"]).abs()
        assert difference.max() < 3


def test_the_readme_lists_every_file():
    named = set(re.findall(r"`(\w+\.csv)`", (FOLDER / "README.md").read_text(encoding="utf-8")))
    assert named == {path.name for path in FOLDER.glob("*.csv")}


def test_every_file_is_rectangular():
    for path in FOLDER.glob("*.csv"):
        rows = pd.read_csv(path)
        assert len(rows) >= 2, path.name
        assert not [c for c in rows.columns if c.startswith("Unnamed")], path.name
