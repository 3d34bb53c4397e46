"""The command line in-process: what it prints, what it writes, and one sentence for every refusal."""

import json
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch

from editing_core import cli, cli_plan
from editing_core.data.examples import load_examples
from editing_core.models import edits
from editing_core.models.catalog import CATALOG
from editing_core.models.language_model import LanguageModel
from editing_core.registry import EDITORS
from editing_core.statistics.covariance import Corpus
from tests.conftest import pocket_tokenizer, tiny_model

EDIT = ["edit", "--subject", "Fanny Davies", "--prompt", "{} plays the instrument called", "--new", "guitar"]
COLUMNS = [
    "k", "efficacy_accuracy", "efficacy_success", "generalization_accuracy", "generalization_success",
    "specificity_accuracy", "specificity_success", "score_accuracy", "score_success", "collapse_ppl",
    "ppl_optimised", "ppl_spread", "delta_ppl", "ppl_optimised_median", "ppl_spread_median",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _loaded(pocket, monkeypatch):
    """The bundled model is loaded once, not once per command."""
    load = cli_plan.load_model
    monkeypatch.setattr(
        cli_plan, "load_model", lambda name, *more: pocket if name == pocket.name else load(name, *more)
    )


def edit(**changes):
    """The arguments of a good edit with some options replaced; None leaves one out."""
    pairs = dict(zip(EDIT[1::2], EDIT[2::2], strict=True))
    pairs.update({f"--{name}": value for name, value in changes.items()})
    return ["edit", *(part for name, value in pairs.items() if value is not None for part in (name, value))]


def test_examples(capsys):
    assert cli.run(["examples"]) == 0
    out = capsys.readouterr().out
    for number, row in enumerate(load_examples(), start=1):
        assert f"{number}  {row.name}" in out
        assert row.title in out


def test_models(capsys):
    assert cli.run(["models"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in CATALOG)


def test_editors(capsys):
    assert cli.run(["editors"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}: " in out for name in EDITORS)
    assert "covariance_weight" in out
    assert "preset pocket-gpt2" in out


@pytest.mark.parametrize("command", ["editors", "presets"])
def test_recipes_are_listed_with_label_and_source(capsys, command):
    assert cli.run([command]) == 0
    out = capsys.readouterr().out
    for recipe in EDITORS["finetuning"].recipes:
        assert re.search(rf"recipe {recipe.name}\b", out), recipe.name
        assert recipe.label in out
        assert recipe.source in out


def test_presets_tell_what_a_recipe_sets(capsys):
    assert cli.run(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.partition(":")[0]: line.partition(": ")[2] for line in lines if "with --recipe" in line}
    assert told["finetuning with --recipe ft-mp"] == "mask=True, random_facts=0"
    assert told["finetuning with --recipe ft-mpr"] == "the preset as it is"
    assert "; gpt2-xl: layers=13,14,15; " in told["finetuning with --recipe ft-mpr-3-5"]


TUNED = [*EDIT, "--editor", "finetuning", "--iterations", "1", "--set", "epochs=1"]


def test_an_edit_by_a_recipe(capsys):
    assert cli.run([*TUNED, "--recipe", "ft-m", "--set", "rank=4", "--json", "-"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert (settings["mask"], settings["paraphrases"], settings["random_facts"]) == (True, 0, 0)
    assert (settings["epochs"], settings["rank"]) == (1, 4)


def test_a_recipe_comes_before_an_examples_settings():
    """Somebody who names a recipe wants that one, also on an example that has settings of its own."""
    case = replace(load_examples()[0], editor="finetuning", settings={"mask": False, "epochs": 199})
    own = EDITORS["finetuning"].preset("pocket-gpt2", recipe="ft-m").settings
    for recipe, expected in (("", (False, 199)), ("ft-m", (True, own.epochs))):
        options = cli._parser().parse_args(["edit", "--example", "1", "--recipe", recipe])
        settings = cli_plan.read_plan(options, case).settings
        assert (settings.mask, settings.epochs) == expected


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ["--editor", "finetuning", "--recipe", "ft-mpp"],
            "Unknown recipe of Fine-tuning 'ft-mpp'. Did you mean 'ft-mp'?",
        ),
        (["--recipe", "ft"], "Unknown recipe of MEMIT 'ft'."),
    ],
)
def test_an_unknown_recipe_is_refused(capsys, more, sentence):
    assert cli.run([*EDIT, *more]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(sentence)


def test_stats(capsys):
    assert cli.run(["stats", "--collect"]) == 0
    out = capsys.readouterr().out
    assert "pocket-gpt2 layer 0: " in out
    assert "tokens of corpus" in out
    assert cli.run(["stats"]) == 0
    assert "not collected" not in capsys.readouterr().out


@pytest.fixture
def folder(tmp_path):
    """A local model without bundled text; three layers."""
    tiny_model("llama").model.save_pretrained(tmp_path / "mine")
    pocket_tokenizer().save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def test_stats_of_a_local_model(capsys, tmp_path, folder, monkeypatch):
    monkeypatch.setitem(EDITORS, "rome", replace(EDITORS["rome"], layers=lambda _settings: [1]))
    command = ["stats", "--model", str(folder), "--editor", "rome"]
    assert cli.run(command) == 0
    assert "mine: no statistics; collect them with --collect TEXTFILE" in capsys.readouterr().out
    text = tmp_path / "text.txt"
    text.write_text("\n".join(Corpus.bundled("pocket-gpt2").documents[:8]))
    assert cli.run([*command, "--collect", str(text)]) == 0
    assert "mine layer 1: " in capsys.readouterr().out
    edit_it = edit(model=str(folder), editor="rome", set="layer=1", iterations="1", json="-")
    assert cli.run([*edit_it, "--set", "steps=2"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "mine"


def test_stats_of_layers_the_model_does_not_have(capsys, tmp_path, folder):
    text = tmp_path / "text.txt"
    text.write_text("some text\n")
    assert cli.run(["stats", "--model", str(folder), "--editor", "rome", "--collect", str(text)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "mine has layers 0 to 2" in err


def test_help_of_every_command(capsys):
    for command in ("edit", "bench", "models", "editors", "examples", "stats"):
        with pytest.raises(SystemExit) as left:
            cli.run([command, "--help"])
        assert left.value.code == 0
        assert command in capsys.readouterr().out


def test_edit_prints_json(capsys):
    assert cli.run([*EDIT, "--iterations", "2", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert {"verdict", "reason", "model", "editor", "iterations", "probes", "delta", "seconds"} <= set(record)
    assert record["requests"][0]["target_true"] == "piano"
    assert record["stop"]["iterations"] == 2
    assert err == ""


def test_edit_prints_a_table_and_writes_files(capsys, tmp_path):
    more = ["--paraphrase", "Fanny Davies plays the", "--neighbor", "Clara Haskil plays the=piano", "--iterations", "1"]
    files = ["--json", str(tmp_path / "run.json"), "--html", str(tmp_path / "run.html")]
    assert cli.run([*EDIT, "--old", "piano", *more, *files]) == 0
    out = capsys.readouterr().out
    assert "Fanny Davies plays the instrument called piano -> guitar" in out
    assert "Clara Haskil plays the" in out
    assert "relative norm" in out
    kinds = [row["kind"] for row in json.loads((tmp_path / "run.json").read_text())["probes"]]
    assert kinds == ["edit", "paraphrase", "neighbor"] * 2
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "<script src" not in page
    assert "guitar" in page


def test_settings_reach_the_plan(capsys):
    arguments = ["--iterations", "1", "--set", "steps=3", "--set", "layers=1,2", "--seed", "5", "--stop", "none"]
    assert cli.run([*EDIT, *arguments, "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["settings"]["steps"] == 3
    assert record["settings"]["layers"] == [1, 2]
    assert (record["seed"], record["stop"]["stop"]) == (5, "none")
    assert all(row["steps"] <= 3 for row in record["cases"])
    assert {row["parameter"] for row in record["delta"]} == {f"transformer.h.{i}.mlp.c_proj.weight" for i in (1, 2)}


@pytest.mark.parametrize("key", ["1", "name"])
def test_edit_of_an_example(capsys, key):
    case = load_examples()[0]
    assert cli.run(["edit", "--example", case.name if key == "name" else key, "--iterations", "1", "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["requests"][0]["subject"] == case.requests[0].subject
    assert record["editor"] == case.editor


def test_edits_of_a_file(capsys, tmp_path):
    path = tmp_path / "edits.json"
    path.write_text(
        json.dumps(
            [
                {
                    "subject": "Fanny Davies",
                    "prompt": "{} plays the",
                    "target_new": "guitar",
                    "neighbors": ["A plays the=piano"],
                },
                {"subject": "Clara Haskil", "prompt": "{} plays the", "target_new": "violin", "case_id": "x"},
            ]
        )
    )
    assert cli.run(["edit", "--file", str(path), "--iterations", "1", "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [r["case_id"] for r in record["requests"]] == [0, "x"]


def test_bench_writes_tables(capsys, tmp_path):
    out = tmp_path / "results"
    arguments = [
        "--dataset",
        "pocket-facts:tune",
        "--limit",
        "3",
        "--iterations",
        "2",
        "--stop",
        "none",
        "--out",
        str(out),
    ]
    assert cli.run(["bench", *arguments]) == 0
    names = {"iterations.csv", "probes.parquet", "cases.csv", "delta.safetensors", "summary.json"}
    assert {p.name for p in out.iterdir()} == names
    table = pd.read_csv(out / "iterations.csv")
    assert list(table.columns)[: len(COLUMNS)] == COLUMNS
    assert {"protocol", "editor", "assist", "model", "n_edits", "efficacy_success_se"} <= set(table.columns)
    assert table["k"].tolist() == [0, 1, 2]
    assert table["ppl_optimised"].notna().tolist() == [False, True, True]
    cases = pd.read_csv(out / "cases.csv")
    assert sorted(cases["k"]) == [1, 1, 1, 2, 2, 2]
    assert cases["reason"].str.len().min() > 10
    probes = pd.read_parquet(out / "probes.parquet")
    assert probes["case_id"].nunique() == 3
    assert set(probes["k"]) == {0, 1, 2}
    assert {"prompt", "p_new", "p_true", "rank_new", "answer", "kind"} <= set(probes.columns)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["dataset"], summary["n_edits"], summary["editor"]) == ("pocket-facts:tune", 3, "memit")
    assert sum(summary["verdicts"].values()) == 3
    assert summary["last"]["k"] == 2
    assert edits.load(out / "delta.safetensors").finite
    assert "eff_acc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["edit"], "--subject, --prompt, --new missing; give --example, --file, --case, or"),
        (edit(subject=None), "--subject missing"),
        (edit(prompt="She plays the"), "has 0 places {} for the subject"),
        (edit(prompt="{} and {} play the"), "has 2 places {}"),
        (edit(subject=""), "The subject is empty"),
        (edit(new=""), "The new object is empty"),
        (edit(new="   "), "The new object is empty"),
        (edit(old="guitar"), "The new object 'guitar' equals the old one"),
        (edit(new="piano"), "The new object 'piano' equals the old one"),  # what the model says anyway
        (edit(model="pocket-gpt22"), "Unknown model 'pocket-gpt22'. Did you mean 'pocket-gpt2'?"),
        (edit(editor="memitt"), "Unknown editor 'memitt'. Did you mean 'memit'?"),
        (["edit", "--example", "no-such"], "Unknown example 'no-such'"),
        (["edit", "--example", "0"], "Unknown example '0'"),
        (["edit", "--example", "99"], "Unknown example '99'"),
        (edit(iterations="0"), "iterations is 0, allowed are whole numbers from 1 to 10"),
        (edit(iterations="11"), "iterations is 11"),
        (edit(iterations="two"), "invalid int value: 'two'"),
        (edit(tolerance="-1"), "tolerance is -1"),
        (edit(tolerance="nan"), "tolerance is nan"),
        (edit(stop="never"), "invalid choice: 'never'"),
        (edit(dtype="int8"), "invalid choice: 'int8'"),
        (edit(subject="x" * 5000), "has 5,000 characters, at most 1,000 are allowed"),
        (edit(subject="Мария"), "trained on plain English letters only"),
        (edit(new="гитара"), "trained on plain English letters only"),
        (edit(subject="<b>Fanny</b>"), "contains the markup '<b>'"),
        (edit(new="a\nb"), "contains a line break"),
        (edit(set="steps=abc"), "steps is 'abc', but must be like"),
        (edit(set="nosuch=1"), "Unknown setting 'nosuch'"),
        (edit(set="steps"), "--set takes KEY=VALUE, got 'steps'"),
        (edit(set="layers=4,9"), "Layer 9 was asked for, pocket-gpt2 has layers 0 to 5"),
        (edit(neighbor="no answer here"), "has no answer; write it as"),
        (edit(neighbor="Clara Haskil plays the="), "The answer of a probe is empty"),
        (edit(seed="x"), "invalid int value: 'x'"),
        (["edit", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["bench", "--dataset", "nowhere", "--limit", "3", "--out", "x"], "Unknown data set 'nowhere'"),
        (["bench", "--dataset", "pocket-facts", "--limit", "0", "--out", "x"], "limit is 0, allowed are"),
        (["bench", "--dataset", "pocket-facts", "--limit", "5000", "--out", "x"], "5000 edits were asked for"),
        (["bench", "--dataset", "pocket-facts"], "the following arguments are required: --out"),
        (["stats", "--editor", "none"], "Unknown editor 'none'"),
        (["stats", "--collect", "nowhere.txt"], "nowhere.txt is not a readable UTF-8 text file"),
    ],
)
def test_refusals(capsys, arguments, message):
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert message.casefold() in err.casefold()
    assert out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "edits.json is not a readable JSON file"),
        (b"\xff\xfe\xfd", "edits.json is not a readable JSON file"),
        (b"{not json", "edits.json is not a readable JSON file"),
        (b"[]", "edits.json holds no list of edits"),
        (b'{"subject": "A"}', "edits.json holds no list of edits"),
        (b"[7]", "Row 1: An edit must be a JSON object, got int"),
        (b'[{"subject": "A", "prompt": "{} is"}]', "Row 1: An edit has missing target_new"),
        (b'[{"subject": "A", "prompt": "{} is", "target_new": "B", "colour": 1}]', "Row 1: An edit has unknown colour"),
        (b'[{"subject": "A", "prompt": "{} is", "target_new": 5}]', "Row 1: The new object must be text, got int"),
        (b'[{"subject": "A", "prompt": "{} is", "target_new": "B", "neighbors": ["x"]}]', "Row 1: The neighbor 'x'"),
        (b'[{"requested_rewrite": {"subject": "A"}}]', "Row 1: Record 0 of edits.json does not follow"),
        (b'[{"subject": "A", "prompt": "{} is", "target_new": "B", "paraphrases": 5}]', "Row 1:"),
        (b'[{"subject": "A", "prompt": "{} is", "target_new": "B", "neighbors": 5}]', "Row 1:"),
        (b'[{"subject": "A", "prompt": "{} is", "target_new": "B", "paraphrases": "text"}]', "Row 1:"),
        (b'[{"subject": "A", "prompt": "{} is", "target_new": "B", "case_id": [1]}]', "Row 1:"),
    ],
)
def test_unusable_files(capsys, tmp_path, content, message):
    path = tmp_path / "edits.json"
    if content is not None:
        path.write_bytes(content)
    assert cli.run(["edit", "--file", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_a_file_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    assert cli.run([*EDIT, "--iterations", "1", "--json", str(tmp_path / "taken" / "run.json")]) == 2
    assert "run.json could not be written" in capsys.readouterr().err


def test_interrupt(capsys, monkeypatch):
    def press(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_edit", press)
    assert cli.run(EDIT) == 130
    assert capsys.readouterr().err == "Interrupted; nothing was changed.\n"


def test_a_model_name_that_is_neither_known_nor_a_folder(capsys):
    for name in ("../secrets", "/no/such/folder", "a/../b", ""):
        assert cli.run(edit(model=name)) == 2
        assert "Unknown model" in capsys.readouterr().err


def test_the_edit_as_an_adapter(capsys, pocket, tmp_path):
    """Any editor's low-rank edit, read back by peft alone."""
    from peft import PeftModel

    folder = tmp_path / "adapter"
    assert cli.run([*edit(iterations="1"), "--adapter", str(folder)]) == 0
    assert "edited" in capsys.readouterr().out
    batch = pocket.batch([pocket.tokenizer("Fanny Davies plays the instrument called")["input_ids"]])
    plain = LanguageModel.load("pocket-gpt2").model
    with torch.no_grad():
        logits = PeftModel.from_pretrained(plain, str(folder)).eval()(input_ids=batch.ids).logits[0, -1]
    assert pocket.tokenizer.decode(int(logits.argmax())).strip() == "guitar"


def test_whole_weights_are_no_adapter(capsys, tmp_path):
    options = ["--recipe", "ft-down", "--iterations", "1", "--editor", "finetuning"]
    assert cli.run([*edit(), *options, "--adapter", str(tmp_path / "none")]) == 2
    told = capsys.readouterr()
    assert "no product of two thin matrices" in told.err
    assert "guitar" in told.out  # what was found is told all the same
