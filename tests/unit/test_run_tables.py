"""Tables of finished runs: what is pooled, what stands in bold, and errors worked out by hand."""

import io
import math
import re
from dataclasses import FrozenInstanceError

import pandas as pd
import pytest

from editing_core.errors import BadRequest
from editing_core.evaluation.metrics import summarize
from editing_core.evaluation.reference import METRICS
from editing_core.runs.tables import COLUMNS, DIFFERENCES, Finished, csv, differences, html, latex, layout, markdown

HOSTILE = "a|b & c_d #1 100% $x$ {y} ~ ^ \\end{tabular} `z` <b>\n| --- |\u202e"
NAN = math.nan


def run(*values, editor="memit", trial=0, chosen=None, metric="efficacy_accuracy", **about):
    """A run with one metric, values by k from 0."""
    told = {"id": f"{editor}{trial}", "name": f"{editor} {trial}", "model": "gpt2-xl", "assist": "off"}
    told |= {"dataset": "counterfact", "protocol": "batch", "n_edits": 100}
    table = pd.DataFrame({"k": range(len(values)), metric: list(values)})
    chosen = len(values) - 1 if chosen is None else chosen
    return Finished(**{"editor": editor, "trial": trial, "chosen": chosen, "iterations": table, **told, **about})


def wide(editor="memit", trial=0, **columns):
    """A run with several metrics, values by k from 0."""
    table = pd.DataFrame({"k": range(len(next(iter(columns.values())))), **columns})
    return run(0.0, editor=editor, trial=trial, iterations=table, chosen=len(table) - 1)


def edited(table):
    return table[table["editor"] != "unedited"].reset_index(drop=True)


def cells(line):
    """The cells of a Markdown row."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def body(text):
    """Heading -> cell for each row of a Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(cells(lines[0]), cells(line), strict=True)) for line in lines[2:]]


# layout


def test_one_trial_has_the_error_over_records():
    table = layout([wide(efficacy_accuracy=[1.0, 80.0], efficacy_accuracy_se=[0.5, 4.0], collapse_ppl=[50.0, 60.0])])
    assert list(table.columns) == COLUMNS
    assert table["editor"].tolist() == ["unedited", "memit"]
    assert table["k"].tolist() == [0, 1]
    assert table["n"].tolist() == [1, 1]
    assert table["efficacy_accuracy"].tolist() == [1.0, 80.0]
    assert table["efficacy_accuracy_se"].tolist() == [0.5, 4.0]
    assert table["error"].tolist() == ["over records"] * 2
    assert table["collapse_ppl"].tolist() == [50.0, 60.0]
    assert table[["collapse_ppl_se", "score_success"]].isna().all(axis=None)
    assert table["note"].tolist() == ["", ""]


def test_trials_are_pooled_and_the_error_is_over_them():
    runs = [
        wide(trial=t, efficacy_accuracy=[t, 70.0 + 10 * t], efficacy_accuracy_se=[9.0, 9.0], ppl_spread=[8.0, 2.0])
        for t in (0, 1, 2)
    ]
    table = layout(runs)
    assert table["n"].tolist() == [3, 3]
    assert table["efficacy_accuracy"].tolist() == [1.0, 80.0]
    # Deviations 1 and 10 over sqrt(3); the 9s over records play no part.
    assert table["efficacy_accuracy_se"].tolist() == pytest.approx([1 / math.sqrt(3), 10 / math.sqrt(3)])
    assert table["ppl_spread_se"].tolist() == [0.0, 0.0]
    assert table["error"].tolist() == ["over trials"] * 2


def test_what_differs_in_more_than_the_trial_stays_apart():
    runs = [
        run(0.0, 10.0),
        run(0.0, 20.0, trial=1, editor="pmet"),
        run(0.0, 30.0, trial=1, assist="na"),
        run(0.0, 40.0, trial=1, protocol="single"),
        run(0.0, 50.0, trial=1, n_edits=99),
        run(0.0, 60.0, trial=1, dataset="zsre"),
        run(0.0, 70.0, trial=1, model="gpt-j-6b"),
    ]
    table = layout(runs)
    assert edited(table)["efficacy_accuracy"].tolist() == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0]
    assert set(edited(table)["n"]) == {1}
    unedited = table[table["editor"] == "unedited"]
    assert unedited[["model", "dataset", "n_edits", "n"]].to_numpy().tolist() == [
        ["gpt2-xl", "counterfact", 100, 2],
        ["gpt2-xl", "counterfact", 99, 1],
        ["gpt2-xl", "zsre", 100, 1],
        ["gpt-j-6b", "counterfact", 100, 1],
    ]


LADDER = ("FT", "FT + Mask", "FT + Mask + Para", "FT + Mask + Para + Rand", "FT + Mask + Para + Sim")


def test_recipes_of_one_editor_are_rows_as_in_their_papers_table():
    runs = [
        run(15.0, 80.0 + i, editor="finetuning", metric="efficacy_success", recipe=label, variant=label, trial=trial)
        for i, label in enumerate(LADDER)
        for trial in (0, 1)
    ]
    table = layout(runs, "chosen")
    assert table["recipe"].tolist() == ["", *LADDER]
    assert table["editor"].tolist() == ["unedited"] + 5 * ["finetuning"]
    assert table["n"].tolist() == 6 * [2]
    assert not table["name"].any()
    rows = body(markdown(table))
    assert [row["Editor"] for row in rows] == ["unedited", *(f"finetuning: {label}" for label in LADDER)]
    assert "Variant" not in rows[0]
    assert all(label in html(table) and label in latex(table) for label in LADDER)
    assert pd.read_csv(io.StringIO(csv(table)))["recipe"].tolist()[1:] == [*LADDER]


def test_a_recipe_and_its_editors_own_settings_are_told_apart():
    runs = [
        run(0.0, 1.0, editor="finetuning", assist="NA"),
        run(0.0, 2.0, editor="finetuning", assist="NA", recipe="FT", variant="FT"),
        run(0.0, 3.0, editor="finetuning", assist="NA", recipe="FT", variant="FT, epochs 2"),
    ]
    rows = body(markdown(layout(runs)))[1:]
    assert [(row["Editor"], row["Variant"]) for row in rows] == [
        ("finetuning + NA", ""),
        ("finetuning: FT + NA", "FT"),
        ("finetuning: FT + NA", "FT, epochs 2"),
    ]


def test_a_trial_counts_once_in_the_unedited_row():
    runs = [run(0.0, 1.0), run(0.0, 1.0, editor="pmet"), run(6.0, 1.0, editor="pmet", trial=1)]
    first = layout(runs).iloc[0]
    assert (first["editor"], first["assist"], first["k"], first["n"]) == ("unedited", "off", 0, 2)
    assert first["efficacy_accuracy"] == 3.0  # 2 if memit's trial 0 counted as well
    assert first["note"] == ""


def test_the_unedited_row_takes_what_any_run_of_a_trial_measured():
    runs = [run(5.0, 6.0, trial=0), run(40.0, 50.0, editor="pmet", metric="collapse_ppl")]
    first = layout(runs).iloc[0]
    assert (first["efficacy_accuracy"], first["collapse_ppl"], first["n"]) == (5.0, 40.0, 1)
    assert first["note"] == ""
    other = layout([run(5.0, 6.0), run(5.1, 6.0, editor="pmet")]).iloc[0]
    assert other["efficacy_accuracy"] == 5.0
    assert other["note"].startswith("Runs of one trial differ")


def test_other_settings_are_other_variants():
    """Also where no trial is there twice, and the trials of each are pooled."""
    runs = [run(0.0, 10.0), run(0.0, 20.0, trial=1, variant="steps 8"), run(0.0, 40.0, trial=2, variant="steps 8")]
    table = edited(layout(runs))
    assert table[["name", "n", "efficacy_accuracy"]].to_numpy().tolist() == [
        ["defaults", 1, 10.0],
        ["steps 8", 2, 30.0],
    ]
    assert [row["Variant"] for row in body(markdown(layout(runs)))] == ["", "defaults", "steps 8"]
    assert edited(layout(runs[1:]))["name"].tolist() == [""]
    apart = [run(0.0, 1.0, variant="steps 8", editor="pmet"), runs[0]]
    assert edited(layout(apart))["name"].tolist() == ["", ""], "an editor's only variant needs no name"


def test_a_trial_twice_in_a_variant_is_told_by_name():
    runs = [run(0.0, v, name=name, variant=variant) for v, name, variant in ((1, "a", ""), (2, "b", ""), (3, "c", "x"))]
    runs.append(run(0.0, 4.0, name="d", variant="a"))
    assert edited(layout(runs))["name"].tolist() == ["a", "b", "x", "a'"]


def test_one_trial_twice_is_never_pooled():
    runs = [run(0.0, 10.0, name="a"), run(0.0, 20.0, name="b"), run(0.0, 30.0, trial=1, name="a")]
    table = edited(layout(runs))
    assert table["name"].tolist() == ["a", "b"]
    assert table["efficacy_accuracy"].tolist() == [20.0, 20.0]
    assert table["n"].tolist() == [2, 1]
    alone = edited(layout([run(0.0, 10.0, name="a"), run(0.0, 30.0, name="a"), run(0.0, 5.0, name="a (2)")]))
    assert alone["name"].tolist() == ["a", "a (2)", "a (2)'"]
    assert alone["efficacy_accuracy"].tolist() == [10.0, 30.0, 5.0]
    assert set(alone["n"]) == {1}


def test_a_trial_that_ended_counts_with_the_iteration_it_chose():
    runs = [run(0.0, 50.0, 90.0, 20.0, chosen=2), run(0.0, 10.0, 20.0, 30.0, 40.0, 50.0, trial=1)]
    table = edited(layout(runs))
    assert table["k"].tolist() == [1, 2, 3, 4, 5]
    assert table["n"].tolist() == [2] * 5
    # k = 3 is the first trial's own row, although it chose another; from 4 on it is what it chose.
    assert table["efficacy_accuracy"].tolist() == [30.0, 55.0, 25.0, 65.0, 70.0]
    assert table["note"].tolist()[:3] == [""] * 3
    assert table["note"][3] == "1 of 2 trials have no iteration so late and count with the one they chose"


def test_chosen_rows_alone():
    runs = [run(0.0, 50.0, 90.0, 20.0, chosen=2), run(0.0, 10.0, 20.0, 30.0, 40.0, trial=1)]
    table = layout(runs, "chosen")
    assert table["k"].tolist() == [0, 4]
    assert table["efficacy_accuracy"].tolist() == [0.0, 65.0]
    assert table["note"].tolist() == ["", "The trials chose k = 2 and 4"]
    same = layout([run(0.0, 50.0, 90.0, chosen=1), run(0.0, 10.0, trial=1)], "chosen")
    assert same["note"].tolist() == ["", ""]
    assert same["efficacy_accuracy"][1] == 30.0


def test_a_blank_is_left_out_of_a_mean_and_told():
    runs = [run(NAN, NAN, 10.0), run(NAN, NAN, 30.0, trial=1), run(NAN, 5.0, None, trial=2)]
    table = layout(runs)
    assert table["efficacy_accuracy"].tolist()[1:] == [5.0, 20.0]
    assert math.isnan(table["efficacy_accuracy"][0])
    assert table["efficacy_accuracy_se"].isna().tolist() == [True, True, False]
    assert table["efficacy_accuracy_se"][2] == pytest.approx(10.0)  # of two values, 10 and 30
    assert table["n"].tolist() == [3] * 3
    assert table["note"].tolist() == ["", *["Not every trial has a value of Efficacy accuracy"] * 2]
    assert table["error"].tolist() == ["", "", "over trials"]


@pytest.mark.filterwarnings("error")
def test_an_infinite_perplexity_stays_infinite():
    runs = [run(50.0, math.inf, metric="collapse_ppl"), run(50.0, 60.0, trial=1, metric="collapse_ppl")]
    table = edited(layout(runs))
    assert table["collapse_ppl"].tolist() == [math.inf]
    assert table["collapse_ppl_se"].isna().all()
    assert body(markdown(layout(runs)))[1]["Collapse perplexity ↓"] == "inf"
    assert r"$\infty$" in latex(layout(runs))


# Markdown


def test_markdown_cells():
    columns = {
        "efficacy_accuracy": [0.0, 97.26],
        "efficacy_accuracy_se": [0.0, 0.44],
        "score_success": [NAN, 100.0],
        "collapse_ppl": [54.0, 999.6],
        "ppl_optimised": [NAN, 1.0449],
        "ppl_spread": [121.4, 1.2e7],
        "delta_ppl": [-0.0, -0.00001234],
    }
    before, after = body(markdown(layout([wide(**columns)])))
    assert list(before.values())[:4] == ["gpt2-xl", "counterfact", "unedited", "0"]
    assert (after["Editor"], after["k"]) == ("memit", "1")
    assert (before["Efficacy accuracy ↑"], after["Efficacy accuracy ↑"]) == ("0.0 ± 0.0", "97.3 ± 0.4")
    assert (before["Score (success) ↑"], after["Score (success) ↑"]) == ("-", "100.0")
    assert (before["Collapse perplexity ↓"], after["Collapse perplexity ↓"]) == ("54.0", "1e3")
    assert (before["p optimised ↓"], after["p optimised ↓"]) == ("-", "1.04")
    assert (before["p spread ↓"], after["p spread ↓"]) == ("121", "1.2e7")
    assert (before["delta p → 0"], after["delta p → 0"]) == ("0.00", "-1.23e-5")
    assert after["Generalization success ↑"] == "-"


def test_errors_of_perplexities_have_two_digits():
    runs = [run(50.0, v, trial=t, metric="collapse_ppl") for t, v in enumerate((100.0, 1400.0))]
    cell = body(markdown(layout(runs)))[1]["Collapse perplexity ↓"]
    assert cell == "750 ± 650"  # not 6.5e2
    runs = [run(50.0, v, trial=t, metric="collapse_ppl") for t, v in enumerate((62.0, 63.0))]
    assert body(markdown(layout(runs)))[1]["Collapse perplexity ↓"] == "62.5 ± 0.50"
    runs = [run(50.0, v, trial=t, metric="collapse_ppl") for t, v in enumerate((1e5, 3e5))]
    assert body(markdown(layout(runs)))[1]["Collapse perplexity ↓"] == "2e5 ± 1e5"


def test_the_best_is_bold_by_the_direction_of_its_card():
    runs = [
        wide("memit", efficacy_success=[99.9, 80.0], collapse_ppl=[10.0, 60.0], delta_ppl=[NAN, -0.5]),
        wide("pmet", efficacy_success=[99.9, 90.0], collapse_ppl=[10.0, 50.0], delta_ppl=[NAN, -20.0]),
        wide("rome", efficacy_success=[99.9, 70.0], collapse_ppl=[10.0, 70.0], delta_ppl=[NAN, 3.0]),
    ]
    rows = body(markdown(layout(runs)))
    assert [row["Efficacy success ↑"] for row in rows] == ["99.9", "80.0", "**90.0**", "70.0"]
    assert [row["Collapse perplexity ↓"] for row in rows] == ["10.0", "60.0", "**50.0**", "70.0"]
    assert [row["delta p → 0"] for row in rows] == ["-", "**-0.500**", "-20.0", "3.00"]  # the size decides


def test_bold_is_per_model_and_data_set_and_shared_by_what_prints_alike():
    runs = [
        run(0.0, 80.01, editor="memit"),
        run(0.0, 80.04, editor="pmet"),
        run(0.0, 79.9, editor="rome"),
        run(0.0, 10.0, 20.0, editor="memit", dataset="zsre"),
        run(0.0, 99.0, editor="memit", model="gpt-j-6b"),
    ]
    rows = [row["Efficacy accuracy ↑"] for row in body(markdown(layout(runs)))]
    assert rows == ["0.0", "**80.0**", "**80.0**", "79.9", "0.0", "10.0", "**20.0**", "0.0", "99.0"]


def test_what_is_the_same_in_all_rows_stands_in_the_caption():
    text = markdown(layout([run(0.0, 10.0, trial=t) for t in range(3)]))
    assert text.splitlines()[0] == (
        "Protocol: batch. Edits: N = 100. Trials: mean of 3; ± is the standard error over trials. "
        "Bold: the best of the edited rows of a model and data set."
    )
    assert list(body(text)[0])[:5] == ["Model", "Data set", "Editor", "k", "Efficacy accuracy ↑"]
    mixed = [
        run(0.0, 10.0),
        run(0.0, 10.0, trial=1),
        wide("pmet", efficacy_accuracy=[0.0, 3.0], efficacy_accuracy_se=[0.0, 1.0]),
        run(0.0, 10.0, protocol="single", assist="na", n_edits=7),
    ]
    text = markdown(layout(mixed))
    assert "Protocol: batch and single. Edits: N = 100 and 7. Trials: mean of 1 or 2; " in text
    assert "± is the standard error over trials or, of one trial, over records." in text
    rows = body(text)
    assert list(rows[0])[:7] == ["Model", "Data set", "N", "Editor", "Protocol", "k", "Trials"]
    assert [row["Editor"] for row in rows] == ["unedited", "memit", "pmet", "unedited", "memit + na"]
    assert [row["N"] for row in rows] == ["100", "100", "100", "7", "7"]
    assert [row["Trials"] for row in rows] == ["2", "2", "1", "1", "1"]
    assert [row["Protocol"] for row in rows] == ["", "batch", "batch", "", "single"]


def test_without_errors_the_caption_does_not_explain_them():
    first = markdown(layout([run(0.0, 1.0)])).splitlines()[0]
    assert "Trials: 1. " in first
    assert "±" not in first


def test_notes_are_marked_and_explained():
    runs = [run(0.0, 50.0, chosen=1), run(0.0, 10.0, 20.0, 30.0, trial=1), run(0.0, 1.0, editor="pmet")]
    text = markdown(layout(runs))
    assert [row["k"] for row in body(text)] == ["0", r"1\*", "2 (a)", r"3\* (a)", r"1\*"]
    assert "* a trial's result." in text.splitlines()[0].replace("\\", "")
    assert "(a) 1 of 2 trials have no iteration so late and count with the one they chose." in text.splitlines()[0]


def test_no_row_is_marked_where_all_are_results():
    runs = [run(0.0, 10.0, 20.0, chosen=1)]
    assert layout(runs)["results"].tolist() == [0, 1, 0]
    assert "<tr class='result'>" in html(layout(runs))
    only = layout(runs, "chosen")
    assert only["results"].tolist() == [0, 1]
    assert "result'" not in html(only)
    assert "*" not in "".join(row["k"] for row in body(markdown(only)))


def test_variants_have_a_column():
    rows = body(markdown(layout([run(0.0, 10.0, name="a"), run(0.0, 20.0, name="b")])))
    assert [row["Variant"] for row in rows] == ["", "a", "b"]


def test_hostile_text_stays_one_markdown_cell():
    about = {"model": HOSTILE, "dataset": HOSTILE, "protocol": HOSTILE, "assist": HOSTILE, "editor": HOSTILE}
    runs = [run(0.0, 10.0, **about, name=HOSTILE), run(0.0, 20.0, **about, name="\\|")]
    text = markdown(layout(runs))
    assert len(text.splitlines()) == 7  # caption, blank, head, rule, unedited, two
    shown = r"a\|b &amp; c\_d #1 100% \$x\$ {y} \~ ^ \\end{tabular} \`z\` &lt;b&gt; \| --- \|"
    row = body(text)[1]
    assert (row["Model"], row["Data set"], row["Variant"]) == (shown, shown, shown)
    assert row["Editor"] == f"{shown} + {shown}"
    assert body(text)[2]["Variant"] == r"\\\|"
    assert f"Protocol: {shown}." in text.splitlines()[0]


# LaTeX


def lines_of(text):
    return [line for line in text.splitlines() if line.endswith(r"\\")]


def test_latex_cells():
    columns = {"efficacy_accuracy": [0.0, 97.26], "efficacy_accuracy_se": [NAN, 0.44], "ppl_spread": [1.2e7, -3.0]}
    runs = [wide(**columns), wide("pmet", efficacy_accuracy=[0.0, 5.0], ppl_spread=[1.2e7, 4.56e8])]
    rows = [line.removesuffix(r" \\").split(" & ") for line in lines_of(latex(layout(runs)))[2:]]
    assert rows[0][:5] == ["gpt2-xl", "counterfact", "unedited", "0", "$0.0$"]
    assert rows[1][2:5] == ["memit", "1", r"$\mathbf{97.3}$ {\small $\pm 0.4$}"]
    assert [row[-2] for row in rows] == [r"$1.2\times10^{7}$", r"$\mathbf{-3.00}$", r"$4.56\times10^{8}$"]
    assert rows[1][5:-2] == ["-"] * 9


def test_latex_is_rectangular_with_rules_between_blocks():
    runs = [
        run(0.0, 10.0, 20.0),
        run(0.0, 10.0, editor="pmet"),
        run(0.0, 10.0, dataset="zsre"),
        run(0.0, 10.0, model="gpt-j-6b"),
    ]
    text = latex(layout(runs))
    head, second, *rows = [line.removesuffix(r" \\").split(" & ") for line in lines_of(text)]
    assert {len(row) for row in (second, *rows)} == {4 + len(METRICS)}
    assert [re.sub(r"\\multicolumn\{(\d+)\}\{c\}\{(\w+)\}", r"\1 \2", cell) for cell in head] == [
        *[""] * 4,
        "2 Efficacy",
        "2 Generalization",
        "2 Specificity",
        "2 Score",
        "4 Perplexity",
    ]
    assert (
        r"\cmidrule(lr){5-6} \cmidrule(lr){7-8} \cmidrule(lr){9-10} \cmidrule(lr){11-12} \cmidrule(lr){13-16}" in text
    )
    assert second[:6] == ["Model", "Data set", "Editor", "k", r"Accuracy $\uparrow$", r"Success $\uparrow$"]
    assert second[-4] == r"Collapse $\downarrow$"
    assert second[-1] == r"delta p $\to 0$"
    assert [row[:4] for row in rows] == [
        ["gpt2-xl", "counterfact", "unedited", "0"],
        ["", "", "memit", "1"],
        ["", "", "", "2{*}"],
        ["", "", "pmet", "1{*}"],
        ["gpt2-xl", "zsre", "unedited", "0"],
        ["", "", "memit", "1{*}"],
        ["gpt-j-6b", "counterfact", "unedited", "0"],
        ["", "", "memit", "1{*}"],
    ]
    marks = [line if line == r"\midrule" else "row" for line in text.split(r"\toprule")[1].splitlines()[4:]]
    assert marks[:10] == [r"\midrule", *["row"] * 4, r"\midrule", *["row"] * 2, r"\midrule", "row"]
    for name in ("table*", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1


def test_only_what_follows_an_equal_beginning_is_left_blank():
    runs = [run(0.0, 10.0), run(0.0, 10.0, editor="pmet"), run(0.0, 10.0, 20.0, protocol="single", editor="pmet")]
    rows = [line.split(" & ")[:5] for line in lines_of(latex(layout(runs)))[2:]]
    assert rows == [
        ["gpt2-xl", "counterfact", "unedited", "", "0"],
        ["", "", "memit", "batch", "1{*}"],
        ["", "", "pmet", "batch", "1{*}"],
        ["", "", "", "single", "1"],
        ["", "", "", "", "2{*}"],
    ]


def test_latex_escapes_every_text():
    about = {"model": HOSTILE, "dataset": HOSTILE, "protocol": HOSTILE, "assist": HOSTILE, "editor": HOSTILE}
    text = latex(layout([run(0.0, 10.0, **about, name=HOSTILE), run(0.0, 20.0, **about, name="[4pt]*")]))
    shown = (
        r"a\textbar{}b \& c\_d \#1 100\% \$x\$ \{y\} \textasciitilde{} \textasciicircum{} "
        r"\textbackslash{}end\{tabular\} `z` \textless{}b\textgreater{} \textbar{} --- \textbar{}"
    )
    row = lines_of(text)[3].removesuffix(r" \\")
    assert re.split(r" (?<!\\)& ", row)[2:4] == [f"{shown} + {shown}", shown]
    assert len(re.findall(r"(?<!\\)&", row)) == 4 + len(METRICS)
    assert lines_of(text)[2].startswith(f"{shown} & {shown} & unedited & ")
    assert f"Protocol: {shown}." in text
    assert text.count(r"\end{tabular}") == 1
    assert len(re.findall(r"(?<!\\)\{", text)) == len(re.findall(r"(?<!\\)\}", text))
    assert "{[}4pt{]}{*}" in text  # an option of the row's end otherwise


def test_latex_caption():
    text = latex(layout([run(0.0, 10.0, trial=t) for t in range(2)]))
    caption = next(line for line in text.splitlines() if line.startswith(r"\caption{"))
    assert "Protocol: batch. Edits: N = 100. Trials: mean of 2; $\\pm$ is the standard error over trials." in caption


# CSV


def test_csv_holds_every_number_in_full():
    table = layout(
        [wide(efficacy_accuracy=[1 / 3, 97.26], ppl_spread=[1.23456789e7, NAN]), run(0.0, 5.0, model=HOSTILE)]
    )
    back = pd.read_csv(io.StringIO(csv(table)))
    assert list(back.columns) == COLUMNS
    assert back["efficacy_accuracy"].tolist() == table["efficacy_accuracy"].tolist()
    assert back["ppl_spread"][0] == 1.23456789e7
    assert back["ppl_spread"][1:].isna().all()
    assert back["model"][3] == HOSTILE


# differences


def probes(records, k=1, prompt="{}"):
    """Edit rows, two paraphrases and two neighbors per record: 1 where it succeeds, in this order."""
    rows = []
    for case, (edit, *rest) in records.items():
        for kind, number, won in zip(
            ("edit", "paraphrase", "paraphrase", "neighbor", "neighbor"), (0, 0, 1, 0, 1), (edit, *rest), strict=True
        ):
            likelier = won != (kind == "neighbor")
            rows.append(
                {
                    "k": k,
                    "case_id": case,
                    "kind": kind,
                    "number": number,
                    "prompt": prompt.format(case),
                    "target_new": "x",
                    "logp_new": -1.0 if likelier else -2.0,
                    "logp_true": -2.0 if likelier else -1.0,
                    "hit_new": float(won),
                    "hit_true": 0.0,
                    "choices": [7] if won or k == 0 else [8],
                }
            )
    return pd.DataFrame(rows)


def measured(name, records, before=None, **about):
    """A run with probes, its numbers as they follow from them."""
    first = probes(before or dict.fromkeys(records, (0, 0, 0, 1, 1)), 0)
    now = probes(records)
    rows = [{"k": k, **summarize(t.drop(columns="k"), first, k)} for k, t in enumerate((first, now))]
    table = pd.DataFrame(rows)
    told = {"iterations": table, "probes": pd.concat([first, now], ignore_index=True), "chosen": 1}
    return run(0.0, **{"id": name, "name": name.upper(), **told, **about})


A = {1: (1, 1, 1, 1, 1), 2: (1, 1, 0, 0, 0), 3: (0, 0, 0, 1, 0)}
B = {1: (1, 0, 0, 1, 1), 2: (0, 0, 0, 1, 1), 3: (0, 0, 0, 1, 1)}


def at(table, metric):
    (row,) = table[table["metric"] == metric].to_dict("records")
    return row


def test_differences_over_the_same_records_are_paired():
    table = differences([measured("a", A), measured("b", B)], "b")
    assert list(table.columns) == DIFFERENCES
    assert set(table["id"]) == {"a"}
    row = at(table, "efficacy_success")
    assert (row["id"], row["name"], row["k"], row["error"]) == ("a", "A", 1, "paired over 3 records")
    assert (row["value"], row["reference"]) == pytest.approx((200 / 3, 100 / 3))
    assert row["difference"] == pytest.approx(100 / 3)
    # Differences 0, 100, 0: squares (1 + 4 + 1)/9 of 100^2 over 2, then over sqrt(3). Unpaired it would be 47.1.
    assert row["se"] == pytest.approx(100 * math.sqrt(6 / 9 / 2 / 3))
    assert at(table, "efficacy_accuracy")["se"] == pytest.approx(row["se"])
    # Record means 100, 50, 0 against 0: differences 100, 50, 0, deviation 50; 33.3 if every probe counted.
    row = at(table, "generalization_success")
    assert (row["difference"], row["se"]) == pytest.approx((50.0, 50 / math.sqrt(3)))
    # 100, 0, 50 against 100: differences 0, -100, -50.
    for metric in ("specificity_success", "specificity_accuracy"):
        row = at(table, metric)
        assert (row["difference"], row["se"]) == pytest.approx((-50.0, 50 / math.sqrt(3)))
        assert row["error"] == "paired over 3 records"


def test_probes_are_read_by_differences_alone_and_once():
    first, read = measured("a", A), []

    def probes_of_a():
        read.append(1)
        return first.probes

    later, base = measured("a", A, probes=probes_of_a), measured("b", B)
    assert markdown(layout([later, base])) == markdown(layout([first, base]))
    assert read == []
    pd.testing.assert_frame_equal(differences([later, base], "b"), differences([first, base], "b"))
    assert later.probes is first.probes
    assert read == [1]
    assert run(0.0, 1.0).probes is None
    with pytest.raises(FrozenInstanceError):
        later.probes = None


def test_probes_that_cannot_be_read_are_asked_for_again():
    answers = iter([BadRequest("gone"), measured("a", A).probes])

    def probes_of_a():
        if isinstance(answer := next(answers), BadRequest):
            raise answer
        return answer

    runs = [measured("a", A, probes=probes_of_a), measured("b", B)]
    with pytest.raises(BadRequest, match="gone"):
        differences(runs, "b")
    assert at(differences(runs, "b"), "efficacy_success")["error"] == "paired over 3 records"


def test_scores_have_a_difference_but_no_error():
    row = at(differences([measured("a", A), measured("b", B)], "b"), "score_success")
    assert row["value"] == pytest.approx(3 / (1.5 / 100 + 2 / 100 + 2 / 100))
    assert row["reference"] == 0.0
    assert math.isnan(row["se"])
    assert row["error"] == ""


def test_pairs_are_found_by_record_not_by_place():
    backward = {case: A[case] for case in (3, 2, 1)}
    table = differences([measured("a", backward), measured("b", B)], "b")
    assert at(table, "efficacy_success")["se"] == pytest.approx(100 / 3)


def test_ids_as_text_and_as_numbers_are_the_same_records():
    own = measured("a", A)
    stored = measured("b", B)
    stored.probes["case_id"] = stored.probes["case_id"].map(str)
    assert at(differences([own, stored], "b"), "efficacy_success")["error"] == "paired over 3 records"


def test_other_records_are_independent():
    independent = math.hypot(100 / 3, 100 / 3)  # of 1, 1, 0 and of 1, 0, 0: both deviate by 100/sqrt(3)
    others = [
        {case + 10: row for case, row in B.items()},
        {1: (1, 0, 0, 1, 1), 2: (0, 0, 0, 1, 1), 4: (0, 0, 0, 1, 1)},
    ]
    for other in others:
        row = at(differences([measured("a", A), measured("b", other)], "b"), "efficacy_success")
        assert row["error"] == "independent"
        assert row["se"] == pytest.approx(independent)
    namesake = measured("b", B)  # of another data set, with the same ids
    namesake.probes["prompt"] = "other"
    assert at(differences([measured("a", A), namesake], "b"), "efficacy_success")["error"] == "independent"
    bare = measured("b", B, probes=None)
    assert at(differences([measured("a", A), bare], "b"), "efficacy_success")["se"] == pytest.approx(independent)


def test_a_record_that_one_run_did_not_probe_leaves_no_pairs():
    rows = [pd.concat([probes(dict.fromkeys(A, (0, 0, 0, 1, 1)), 0), probes(B)], ignore_index=True)]
    rows.append(rows[0][(rows[0]["kind"] != "paraphrase") | (rows[0]["case_id"] != 3)])
    tables = []
    for table in rows:
        first, now = (table[table["k"] == k].reset_index(drop=True) for k in (0, 1))
        tables.append(pd.DataFrame([{"k": k, **summarize(t, first, k)} for k, t in enumerate((first, now))]))
    both = [run(0.0, id=name, iterations=t, probes=p, chosen=1) for name, t, p in zip("ab", tables, rows, strict=True)]
    table = differences(both, "b")
    assert at(table, "efficacy_success")["error"] == "paired over 3 records"
    assert at(table, "generalization_success")["error"] == "independent"


def test_probes_that_do_not_yield_the_number_are_not_paired():
    own = measured("a", A)
    own.iterations.loc[1, "efficacy_success"] = 50.0
    table = differences([own, measured("b", B)], "b")
    assert at(table, "efficacy_success")["error"] == "independent"
    assert at(table, "efficacy_success")["difference"] == pytest.approx(50 - 100 / 3)
    assert at(table, "generalization_success")["error"] == "paired over 3 records"
    own.probes["case_id"] = own.probes["case_id"].where(own.probes["k"] == 1, 5)  # rows of other records before
    assert set(differences([own, measured("b", B)], "b")["error"]) == {"independent", ""}


def test_pairs_follow_the_definition_of_the_number():
    runs = []
    for name, shares in (("a", (0.5, 1.0)), ("b", (0.5, 0.5))):
        rows = probes({1: (1, 1, 1, 1, 1), 2: (1, 1, 1, 1, 1)})
        rows["hit_new"] = [
            share if kind == "edit" else 1.0
            for share, kind in zip([shares[0]] * 5 + [shares[1]] * 5, rows["kind"], strict=True)
        ]
        strict = 100 * sum(share >= 1 for share in shares) / 2
        table = pd.DataFrame({"k": [0, 1], "efficacy_accuracy": [0.0, strict], "efficacy_accuracy_se": [0.0, 50.0]})
        both = pd.concat([rows.assign(k=0), rows], ignore_index=True)
        runs.append(run(0.0, id=name, iterations=table, probes=both, chosen=1))
    row = at(differences(runs, "b"), "efficacy_accuracy")
    # All tokens: 0 and 100 against 0 and 0. By the share of tokens the difference would be 25 and its error 25.
    assert (row["difference"], row["se"], row["error"]) == (50.0, 50.0, "paired over 2 records")


def test_a_blank_has_no_difference_and_one_record_no_error():
    own, base = measured("a", {1: A[1]}), measured("b", {1: B[1]})
    row = at(differences([own, base], "b"), "efficacy_success")
    assert (row["difference"], row["error"]) == (0.0, "")
    assert math.isnan(row["se"])
    base.iterations.loc[1, "efficacy_success"] = NAN
    row = at(differences([own, base], "b"), "efficacy_success")
    assert row["value"] == 100.0
    assert math.isnan(row["difference"])
    assert row["error"] == ""
    assert "portability" not in set(differences([own, base], "b")["metric"])


def test_differences_of_many_at_their_chosen_iterations():
    runs = [
        run(0.0, 10.0, 30.0, id="a", chosen=1),
        run(0.0, 50.0, 90.0, id="b", chosen=2),
        run(0.0, 70.0, id="c", trial=1, model="gpt-j-6b"),
    ]
    table = differences(runs, "b")
    assert table[["id", "k", "value", "reference", "difference"]].to_numpy().tolist() == [
        ["a", 1, 10.0, 90.0, -80.0],
        ["c", 1, 70.0, 90.0, -20.0],
    ]
    alone = differences(runs[:1], "a")
    assert alone.empty
    assert list(alone.columns) == DIFFERENCES


# refusals


def test_refusals():
    with pytest.raises(BadRequest, match=r"^No run came, .* at least one; choose one or more"):
        layout([])
    with pytest.raises(BadRequest, match="No run came"):
        differences([], "a")
    runs = [run(0.0, 1.0, id="a"), run(0.0, 1.0, id="b"), run(0.0, 1.0, id="b")]
    with pytest.raises(BadRequest, match=r"'x' is the id of 0 of 3 runs, .*; choose among: a, b\.$"):
        differences(runs, "x")
    with pytest.raises(BadRequest, match="'b' is the id of 2 of 3 runs"):
        differences(runs, "b")
    with pytest.raises(BadRequest, match=r"'last' are none .* all, chosen\."):
        layout(runs, "last")


@pytest.mark.parametrize("ks", [[], [1, 2], [0, 2], [0, 0, 1], [1, 0]])
def test_a_run_counts_its_rows_from_zero(ks):
    with pytest.raises(BadRequest, match="one for each k from 0"):
        run(0.0, iterations=pd.DataFrame({"k": ks}), chosen=0)


def test_a_run_has_the_row_it_chose():
    with pytest.raises(BadRequest, match="at least its chosen one, 2"):
        run(0.0, 1.0, chosen=2)
    with pytest.raises(BadRequest, match="k = nothing"):
        run(0.0, iterations=pd.DataFrame({"efficacy_accuracy": [1.0]}), chosen=0)


def test_html_has_every_cell_escaped_and_the_best_in_bold():
    """As in Markdown: the same rows, digits and bold numbers in another markup."""
    table = layout([run(10, 90.0, editor="<memit>"), run(10, 80.0, editor="pmet")])
    found = html(table)
    assert found.count("<tr") == 1 + len(table)
    assert "&lt;memit&gt;" in found
    assert "<memit>" not in found
    assert found.count("<b>") == markdown(table).count("**") // 2
    assert found.count("<td>") == len(table) * found.count("<th ")
