"""bench and eligible in-process: every flag reaches the run and its files, and one sentence for every refusal.

Small throughout: two or three records, one iteration of three steps, few statistics, two texts.
"""

import csv
import json
from dataclasses import asdict
from types import SimpleNamespace

import pandas as pd
import pytest

from editing_core import cli, cli_plan, paths, session
from editing_core.bench import work
from editing_core.bench.config import RunConfig
from editing_core.conventions import CLEAN, FAITHFUL
from editing_core.data.datasets import Loaded, load_dataset, sample
from editing_core.data.table import write_requests
from editing_core.errors import BadRequest
from editing_core.evaluation.eligibility import eligibility
from editing_core.models import edits
from editing_core.registry import editor_row
from editing_core.statistics.covariance import Corpus
from editing_core.types import EditRequest
from tests.conftest import bit_equal, snapshot

TUNE = "pocket-facts:tune"
PROBED = {"case_id", "prompt", "target_new", "target_true", "state", "reason", "p_new", "p_true", "rank_new"}
PROBED |= {"k", "lost", "neighbors"}
GOOD = {"subject": "Fanny Davies", "prompt": "{} plays the", "target_new": "guitar", "target_true": "piano"}


@pytest.fixture(autouse=True)
def _loaded(pocket, monkeypatch, corpus):
    """The bundled model is loaded once, and its statistics are those of a small text."""
    load = cli_plan.load_model
    monkeypatch.setattr(
        cli_plan, "load_model", lambda name, *more: pocket if name == pocket.name else load(name, *more)
    )
    monkeypatch.setattr(Corpus, "bundled", staticmethod(lambda name: corpus if name == pocket.name else None))


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "two.json"
    path.write_text(json.dumps(["The river runs through the old city.", {"Text": "Mary went home by train."}]))
    return path


@pytest.fixture
def bench(tmp_path, texts, pocket, capsys):
    """A function from more arguments to what the command left: its folder, summary and output."""

    def run(*more, dataset=TUNE, limit=2, quick=True):
        out = tmp_path / "results"
        arguments = ["bench", "--dataset", str(dataset), "--out", str(out)]
        arguments += ["--limit", str(limit)] if limit else []
        arguments += ["--iterations", "1", "--set", "steps=3", "--texts", str(texts)] if quick else []
        before = snapshot(pocket.model)
        code = cli.run([*arguments, *map(str, more)])
        printed, err = capsys.readouterr()
        assert (code, err) == (0, "")
        assert bit_equal(pocket.model, before)
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        return SimpleNamespace(
            out=out,
            printed=printed,
            summary=summary,
            files={path.name for path in out.iterdir()},
            table=pd.read_csv(out / "iterations.csv"),
            cases=pd.read_csv(out / "cases.csv"),
            probes=pd.read_parquet(out / "probes.parquet"),
        )

    return run


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """A function that runs a command which must end with one sentence before anything is edited."""

    def nothing(*_arguments, **_options):
        raise AssertionError("an edit was begun")

    monkeypatch.setattr(work, "run_benchmark", nothing)

    def run(*arguments):
        assert cli.run(list(map(str, arguments))) == 2
        printed, err = capsys.readouterr()
        assert printed == ""
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        assert not (tmp_path / "results").exists()
        return err

    return run


def on(*more, dataset=TUNE, out="results"):
    return ["bench", "--dataset", str(dataset), "--limit", "2", "--out", out, *more]


def ids(requests):
    return [r.case_id for r in requests]


# --- protocols -------------------------------------------------------------------------------------------------------


def test_batch_of_records(bench):
    got = bench("--trial", 3, "--seed", 4, "--stop", "none")
    records = sample(load_dataset(TUNE), 2, 3)
    assert got.files == {"iterations.csv", "cases.csv", "probes.parquet", "delta.safetensors", "summary.json"}
    s = got.summary
    assert (s["dataset"], s["trial"], s["n_edits"], s["seed"], s["preset"]) == (TUNE, 3, 2, 4, "clean")
    assert s["protocol"] == {"name": "batch", "chunk": 1}
    assert s["stop"] == {"iterations": 1, "stop": "none", "tolerance": 1.0, "collapse_factor": 3.0}
    preset = editor_row("memit").preset("pocket-gpt2").settings
    assert s["settings"] == json.loads(json.dumps({**asdict(preset), "steps": 3}))
    assert s["conventions"] == asdict(CLEAN)
    assert (s["model"], s["editor"], s["chosen"], s["malformed"], s["unreadable"]) == ("pocket-gpt2", "memit", 1, 0, 0)
    assert s["texts"] == "two.json"
    assert s["known_before"] == 2
    assert s["stops"] == [{"case_ids": ids(records), "k": 1, "rule": "iterations"}]
    assert s["last"]["k"] == 1
    assert s["last"]["collapse_ppl"] == pytest.approx(got.table["collapse_ppl"][1])
    assert set(s["verdicts"]) == set(got.cases["state"])
    assert len(s["contexts"]) == 6
    assert {"python", "torch", "transformers"} <= set(s["versions"])
    assert [d["parameter"] for d in s["delta"]] == [f"transformer.h.{i}.mlp.c_proj.weight" for i in preset.layers]
    assert set(edits.load(got.out / "delta.safetensors").updates) == {d["parameter"] for d in s["delta"]}
    assert got.cases["case_id"].tolist() == ids(records)
    assert set(got.cases.columns) == PROBED | {"p_optimised", "p_spread", "steps", "norm", "clamped"}
    assert got.cases["steps"].tolist() == [3, 3]
    assert got.cases["neighbors"].tolist() == [len(r.neighbors) for r in records]
    assert (got.table["protocol"] == "batch").all()
    assert (got.table["n_edits"] == 2).all()
    assert "memit, pocket-facts:tune, trial 3, 2 records, batch, clean" in got.printed
    assert "the model gave the old object for 2 of 2 records" in got.printed
    assert f"Tables in {got.out}" in got.printed


def test_single(bench):
    got = bench("--protocol", "single", "--editor", "r-rome", "--stop", "perplexity", "--tolerance", "1e6")
    assert got.files == {"iterations.csv", "cases.csv", "probes.parquet", "summary.json"}
    assert got.summary["protocol"]["name"] == "single"
    assert got.summary["stop"]["tolerance"] == 1e6
    assert [len(stop["case_ids"]) for stop in got.summary["stops"]] == [1, 1]
    assert {stop["rule"] for stop in got.summary["stops"]} == {"perplexity"}
    assert got.summary["delta"] == []
    assert got.summary["rules"] == {}
    assert set(got.cases.columns) >= PROBED | {"p_optimised", "steps"}
    assert "fired for 2 of 2 records, each edited alone" in got.printed


def test_sequential(bench):
    got = bench("--protocol", "sequential", "--chunk", 2, "--editor", "r-rome", "--collapse-factor", 0, limit=3)
    assert got.files == {
        "iterations.csv", "cases.csv", "probes.parquet", "delta.safetensors", "checkpoints.csv", "summary.json",
    }  # fmt: skip
    assert got.summary["protocol"] == {"name": "sequential", "chunk": 2}
    assert got.summary["stop"]["collapse_factor"] == 0
    assert [len(stop["case_ids"]) for stop in got.summary["stops"]] == [2, 1]
    assert got.table["k"].tolist() == [0, 1]
    assert set(got.cases.columns) == PROBED
    checkpoints = pd.read_csv(got.out / "checkpoints.csv")
    assert checkpoints[["n_edits", "when"]].to_numpy().tolist() == [
        [2, "just after"], [2, "so far"], [3, "just after"], [3, "so far"],
    ]  # fmt: skip
    assert checkpoints["efficacy_success"].notna().all()
    assert (got.table["protocol"] == "sequential, chunks of 2").all()
    assert "sequential, chunks of 2" in got.printed


def test_a_folder_holds_the_files_of_its_last_run_only(bench):
    bench("--protocol", "sequential", "--editor", "r-rome")
    got = bench("--protocol", "single", "--editor", "r-rome")
    assert got.files == {"iterations.csv", "cases.csv", "probes.parquet", "summary.json"}


# --- how it is measured ----------------------------------------------------------------------------------------------


def test_faithful_preset(bench):
    got = bench("--preset", "faithful", "--convention", "padding=right", "--editor", "rome")
    assert got.summary["preset"] == "faithful"
    assert got.summary["stop"]["stop"] == "none"
    assert got.summary["conventions"] == {**asdict(FAITHFUL), "padding": "right"}
    assert (got.summary["settings"]["covariance"], got.summary["settings"]["key"]) == (False, "mixed")
    assert (got.table["preset"] == "faithful").all()
    assert got.printed.splitlines()[0].endswith(", faithful")


def test_the_paper_rule_is_the_default_and_a_faithful_run_may_have_one():
    def plan(*more):
        return cli_plan.read_plan(cli._parser().parse_args(on(*more)))

    assert plan().stop.stop == "perplexity"
    assert plan().stop.iterations == 10
    assert plan("--preset", "faithful").stop.stop == "none"
    assert plan("--preset", "faithful", "--stop", "monotone").stop.stop == "monotone"
    assert plan("--convention", "padding=left", "--convention", "zeros=dropped").conventions == CLEAN.changed(
        {"padding": "left", "zeros": "dropped"}
    )


def test_bundled_texts_are_the_default(bench):
    got = bench("--editor", "r-rome", "--iterations", "1", "--set", "steps=1", limit=1, quick=False)
    own = bench("--editor", "r-rome", "--set", "steps=1", limit=1)
    assert (got.summary["texts"], own.summary["texts"]) == ("bundled", "two.json")
    assert got.table["collapse_ppl"][0] != pytest.approx(own.table["collapse_ppl"][0])
    assert got.table["efficacy_success"].equals(own.table["efficacy_success"])


# --- assistance ------------------------------------------------------------------------------------------------------


def test_neighbor_assistance(bench):
    got = bench("--neighbors", "na", "--assist", "weighting=paper", "--assist", "weight=0.5", "--neighbor-keys", "2")
    assist = got.summary["assist"]
    assert (assist["neighbors"], assist["weighting"], assist["weight"], assist["keys"]) == ("na", "paper", 0.5, 2.0)
    named = "NA (paper, w 0.5) + neighbor keys (1, mu 2)"
    assert (got.table["assist"] == named).all()
    assert f"memit + {named}, " in got.printed
    plain = {r.case_id: len(r.neighbors) for r in sample(load_dataset(TUNE), 2, 0)}
    # Edit neighbors are not measured.
    assert all(row.neighbors < plain[row.case_id] for row in got.cases.itertuples())


def test_statistics_of_subjects(bench):
    more = ["--statistics", "subjects", "--assist", "subject_share=0.5", "--set", "layers=0"]
    got = bench(*more, limit=1)
    assert got.summary["assist"]["statistics"] == "subjects"
    assert got.summary["assist"]["subject_share"] == 0.5
    assert (got.table["assist"] == "subject statistics").all()
    plain = bench("--set", "layers=0", limit=1)
    assert got.table["ppl_optimised"][1] == pytest.approx(plain.table["ppl_optimised"][1])
    assert got.table["ppl_spread"][1] != pytest.approx(plain.table["ppl_spread"][1])
    assert (plain.table["assist"] == "off").all()


@pytest.fixture
def mixed(tmp_path, pocket):
    """Three records, of which the middle one has no neighbors."""
    records = list(sample(load_dataset(TUNE), 2, 0))
    bare = {**GOOD, "case_id": "bare"}
    path = tmp_path / "mixed.json"
    write_requests(records, path)
    rows = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps([rows[0], bare, rows[1]]))
    assert all(entry.eligible for entry in eligibility(pocket, records))
    return path, records


def test_only_eligible_records(bench, mixed):
    path, records = mixed
    more = ["--eligible", "--neighbors", "na", "--editor", "r-rome", "--assist", "count=2"]
    got = bench(*more, dataset=f"table:{path}", limit=None)
    assert got.summary["eligibility"] == {"eligible": 2, "records": 3, "reasons": {"it has no neighbors": 1}}
    assert got.summary["n_edits"] == 2
    assert got.cases["case_id"].tolist() == ids(records)
    assert "2 of 3 records qualify. 1: it has no neighbors" in got.printed
    for request in records:
        assisting = {n.prompt for n in request.neighbors[:2]}
        asked = got.probes[(got.probes["case_id"] == request.case_id) & (got.probes["kind"] == "neighbor")]
        assert not assisting & set(asked["prompt"])


@pytest.mark.parametrize(("choice", "first"), [("first", True), ("random", False)])
def test_eligible_records_get_their_neighbors_as_the_plan_says(refused, monkeypatch, mixed, choice, first):
    path, records = mixed
    seen = []

    def take(_lm, requests, *_arguments, **_options):
        seen.extend(requests)
        raise BadRequest("That is enough.")

    monkeypatch.setattr(work, "run_benchmark", take)
    more = ["--eligible", "--neighbors", "na", "--assist", f"choice={choice}", "--seed", "3"]
    assert refused("bench", "--dataset", f"table:{path}", "--out", "results", *more) == "That is enough.\n"
    assert ids(seen) == ids(records)
    assert all(len(r.edit_neighbors) == 1 for r in seen)
    assert ([r.edit_neighbors for r in seen] == [r.neighbors[:1] for r in records]) == first


def test_eligible_writes_records_that_load_again(capsys, mixed, tmp_path, bench):
    path, records = mixed
    out = tmp_path / "qualifying.json"
    more = ["--count", "2", "--minimum", "3", "--choice", "random", "--seed", "1", "--out", str(out)]
    assert cli.run(["eligible", "--dataset", f"table:{path}", *more]) == 0
    assert capsys.readouterr() == ("2 of 3 records qualify. 1: it has no neighbors\n", "")
    loaded = load_dataset(f"table:{out}")
    assert ids(loaded) == ids(records)
    for request, plain in zip(loaded, records, strict=True):
        assert len(request.edit_neighbors) == 2
        assert set(request.edit_neighbors) <= set(plain.neighbors)
        assert set(request.neighbors) < set(plain.neighbors)
        assert not {n.subject for n in request.neighbors} & {n.subject for n in request.edit_neighbors}
        assert (request.paraphrases, request.target_new) == (plain.paraphrases, plain.target_new)
    got = bench("--neighbors", "na", "--assist", "count=2", "--editor", "r-rome", dataset=f"table:{out}", limit=None)
    asked = got.probes[(got.probes["k"] == 0) & (got.probes["kind"] == "neighbor")]
    assert sorted(asked["prompt"]) == sorted(n.prompt for r in loaded for n in r.neighbors)
    assert got.summary["notes"] == []


def test_eligible_without_a_file_only_counts(capsys, tmp_path):
    assert cli.run(["eligible", "--dataset", TUNE, "--limit", "3", "--trial", "1"]) == 0
    assert "of 3 records qualify" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


# --- own records -----------------------------------------------------------------------------------------------------


def as_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return f"table:{path}"


ROWS = [
    {**GOOD, "case_id": "7", "neighbors": "Clara Haskil :: {} plays the=piano | Artur Rubinstein plays the=piano"},
    {**GOOD, "case_id": "8", "prompt": "without a place"},
    {**GOOD, "case_id": "9", "subject": "Clara Haskil", "target_new": "violin"},
    {**GOOD, "case_id": "10", "subject": "Zoë", "target_new": "violin"},
]


def test_malformed_and_unreadable_records_can_be_left_out(bench, tmp_path):
    got = bench("--skip-bad", "--editor", "r-rome", dataset=as_csv(tmp_path / "own.csv", ROWS), limit=None)
    assert (got.summary["malformed"], got.summary["unreadable"], got.summary["n_edits"]) == (1, 1, 2)
    assert got.summary["dataset"] == "table:own.csv"
    assert got.cases["case_id"].tolist() == [7, 9]
    assert got.cases["neighbors"].tolist() == [2, 0]
    assert "Left out: 1 records and 0 probes the model cannot read, 1 malformed records." in got.printed


def test_malformed_records_are_listed(capsys, tmp_path):
    """One sentence, and below it every record with its row and field."""
    rows = [*ROWS[:2], {**GOOD, "case_id": "7"}, {**GOOD, "target_new": "", "case_id": "11"}]
    rows += [{**GOOD, "case_id": str(number), "prompt": "without a place"} for number in (12, 13)]
    assert cli.run(on(dataset=as_csv(tmp_path / "own.csv", rows), out=str(tmp_path / "results"))) == 2
    printed, err = capsys.readouterr()
    assert printed == ""
    told, *listed = err.splitlines()
    assert told.startswith("5 of 6 records of table:own.csv cannot be used: Row 2, prompt: ")
    assert "And 2 more." in told
    assert told.endswith("(--skip-bad).")
    assert [line.partition(":")[0] for line in listed] == [
        "Row 2, prompt",
        "Row 3, case_id",
        "Row 4, target_new",
        "Row 5, prompt",
        "Row 6, prompt",
    ]
    assert "The prompt 'without a place' has 0 places {}" in listed[0]
    assert "The case_id 7 is taken by row 1" in listed[1]
    assert "An edit has missing target_new" in listed[2]
    assert not (tmp_path / "results").exists()


def test_case_ids_of_both_kinds(bench, tmp_path):
    """Numbers and text in one file, as a JSON table may have them."""
    rows = [{**GOOD, "case_id": 7}, {**GOOD, "case_id": "nine", "subject": "Clara Haskil"}]
    path = tmp_path / "own.json"
    path.write_text(json.dumps(rows))
    got = bench("--editor", "r-rome", dataset=f"table:{path}", limit=None)
    assert got.summary["stops"][0]["case_ids"] == [7, "nine"]
    assert len(got.cases) == 2


# --- generated texts -------------------------------------------------------------------------------------------------


@pytest.fixture
def speaking(tmp_path):
    """A data set with generation prompts and a file of references for its new object."""
    rows = [
        {**GOOD, "relation_id": "P1303", "target_new_id": "Q6607", "generation_prompts": ["Fanny Davies likes the"]},
        {**GOOD, "case_id": 1, "subject": "Clara Haskil"},
    ]
    path = tmp_path / "own.json"
    path.write_text(json.dumps(rows))
    references = tmp_path / "references.json"
    entry = {"relation_id": "P1303", "target_id": "Q6607", "samples": [{"text": "He plays the guitar in a band."}]}
    references.write_text(json.dumps([entry]))
    return f"table:{path}", references


def test_generation_columns(bench, speaking):
    dataset, references = speaking
    more = ["--generate", "--references", references, "--editor", "r-rome"]
    got = bench(*more, "--iterations", "2", "--stop", "none", dataset=dataset, limit=None)
    assert got.table["k"].tolist() == [0, 1, 2]
    for column in ("fluency", "consistency"):
        assert got.table[column].notna().tolist() == [True, False, True]
        assert got.summary["last"][column] == pytest.approx(got.table[column][2])
    assert (got.table["fluency"].dropna() > 100).all()
    assert got.table["consistency"].dropna().between(0, 100).all()
    assert "fluency" in got.printed


def test_generation_without_prompts_stays_blank(bench, tmp_path):
    dataset = as_csv(tmp_path / "own.csv", [GOOD])
    got = bench("--generate", "--editor", "r-rome", "--set", "steps=1", dataset=dataset, limit=None)
    assert got.table[["fluency", "consistency"]].isna().all(axis=None)
    assert "fluency" not in got.summary["last"]


# --- recipes and the facts they train on -----------------------------------------------------------------------------


@pytest.fixture
def tuning(bench, texts):
    """A function like `bench` for fine-tuning that is over soon."""

    def run(*more, **about):
        few = ("--set", "epochs=1", "--set", "rate=0.001", "--iterations", "1", "--texts", texts)
        return bench("--editor", "finetuning", *few, *more, quick=False, **about)

    return run


@pytest.fixture
def large(tmp_path):
    """The bundled records as if they were another data set's: 1,200, of which 1,000 and more are not in a small run."""
    path = tmp_path / "large.json"
    path.write_bytes((paths.assets() / "benchmark" / "pocket-facts.json").read_bytes())
    return f"counterfact:{path}"


def test_a_recipe_reaches_the_run_and_its_tables(tuning):
    got = tuning("--recipe", "ft-m", "--set", "rank=4")
    settings = got.summary["settings"]
    assert (settings["mask"], settings["paraphrases"], settings["random_facts"]) == (True, 0, 0)
    assert (settings["epochs"], settings["rank"]) == (1, 4)
    assert got.summary["recipe"] == "FT + Mask"
    assert set(got.table["recipe"]) == {"FT + Mask"}
    assert "finetuning: FT + Mask, pocket-facts:tune, trial 0, 2 records, batch, clean" in got.printed
    assert not [note for note in got.summary["notes"] if "to train on" in note]


def test_without_a_recipe_tables_say_so(bench):
    got = bench("--editor", "r-rome", "--set", "steps=1", limit=1)
    assert got.table["recipe"].isna().all()
    assert "recipe" not in got.summary


NOTE = "Unedited facts to train on come from 1,198 records of counterfact:large.json that are not in this run"
RANDOM = ("--recipe", "ft-mpr", "--set", "paraphrases=0", "--set", "random_facts=2")


def test_facts_to_train_on_come_from_the_other_records(tuning, large, monkeypatch):
    seen, build = [], session.build_editor

    def building(lm, requests, plan, store, watch, pool):
        editor = build(lm, requests, plan, store, watch, pool)
        seen.append((requests, pool, editor.data))
        return editor

    monkeypatch.setattr(session, "build_editor", building)
    first = tuning(*RANDOM, dataset=large)
    assert first.summary["notes"][0] == f"{NOTE}, none from the bundled facts."
    assert NOTE in first.printed
    tuning(*RANDOM, dataset=large)
    (requests, pool, data), (_, _, again) = seen
    every = load_dataset(large)
    in_run = {request.case_id for request in requests}
    others = [r for r in every if r.case_id not in in_run]
    assert [(fact.prompt, fact.answer) for fact in pool] == [(r.full_prompt, r.target_true) for r in others]
    shown = [example for examples in data.beside.values() for example in examples]
    assert len(shown) == 4
    assert {(example.prompt, example.answer) for example in shown} <= {(fact.prompt, fact.answer) for fact in pool}
    assert data == again  # what goes on after an interruption trains on the same


@pytest.mark.parametrize(
    ("recipe", "limit", "name"),
    [
        ("ft-mpr", 300, "counterfact"),  # 900 others are too few
        ("ft-mp", 2, "counterfact"),  # trains on no facts beside the edits
        ("ft-mps", 2, "pocket-facts:all"),  # made of the bundled facts
    ],
)
def test_otherwise_the_bundled_facts_serve_alone(refused, monkeypatch, large, recipe, limit, name):
    def stop(_lm, _requests, _plan, _protocol, _watch, tools):
        assert (list(tools.pool), tools.notes) == ([], ())
        raise BadRequest("That is enough.")

    monkeypatch.setattr(work, "run_benchmark", stop)
    dataset = large if name == "counterfact" else name
    told = ["--dataset", dataset, "--limit", limit, "--editor", "finetuning", "--recipe", recipe, "--out", "results"]
    assert refused("bench", *told) == "That is enough.\n"


def test_of_zsre_the_right_answers_are_known(pocket, monkeypatch):
    monkeypatch.setattr(work, "ENOUGH", 2)
    common = {"target_new": "piano", "source": "zsre"}
    asked = [
        EditRequest(name, "What does {} play?", case_id=i, compare=False, **common) for i, name in enumerate("ABCé")
    ]
    for name, known in (("zsre:mine.json", [("What does B play?", "piano"), ("What does C play?", "piano")]),
                        ("table:mine.json", [])):  # fmt: skip
        found = work.facts_of(Loaded(name, tuple(asked)), asked[:1], pocket)
        assert [(fact.prompt, fact.answer) for fact in found] == known


@pytest.mark.parametrize(("random", "similar", "trains"), [(0, 0, False), (1, 0, True), (0, 1, True)])
def test_only_some_fine_tuning_trains_on_facts(random, similar, trains):
    more = {"random_facts": random, "similar_facts": similar}
    for plan, expected in ((RunConfig(editor="finetuning", settings=more).plan, trains), (RunConfig().plan, False)):
        assert editor_row(plan.editor).needs_facts(plan.settings) is expected


# --- the paper's rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "editor", "dataset", "assist", "there"),
    [
        ("gpt2-xl", "memit", "counterfact", "off", True),
        ("gpt2-xl", "memit", "zsre", "off", True),
        ("pocket-gpt2", "memit", "counterfact", "off", False),
        ("gpt2-xl", "alphaedit", "counterfact", "off", False),
        ("gpt2-xl", "memit", "pocket-facts", "off", False),
        ("gpt2-xl", "memit", "table", "off", False),
    ],
)
def test_beside_the_paper(model, editor, dataset, assist, there):
    result = SimpleNamespace(
        iterations=pd.DataFrame({"k": [0, 1, 2], "efficacy_success": [0.0, 50.0, 99.0]}),
        plan=SimpleNamespace(editor=editor, assist=SimpleNamespace(neighbors=assist)),
        protocol=SimpleNamespace(name="batch"),
    )
    table = work._beside(SimpleNamespace(name=model), result, dataset)
    assert (table is not None) == there
    if there:
        assert table["k"].tolist() == [0, 1, 2]
        assert table["efficacy_success"].tolist() == [0.0, 50.0, 99.0]
        assert table["efficacy_success_paper"].notna().any()


@pytest.mark.parametrize(
    ("model", "dataset", "recipe", "protocol", "value"),
    [
        ("gpt-j-6b", "counterfact", "FT + Mask + Para", "batch", 100.0),
        ("gpt2-xl", "counterfact", "FT + Mask + Para + Sim", "single", 98.6),
        ("gpt-j-6b", "counterfact", "FT + Mask + Para", "sequential", None),
        ("gpt-j-6b", "counterfact", "", "batch", None),
        ("pocket-gpt2", "counterfact", "FT", "batch", None),
    ],
)
def test_beside_the_papers_row_of_a_recipe(model, dataset, recipe, protocol, value):
    result = SimpleNamespace(
        iterations=pd.DataFrame({"k": [0, 1], "efficacy_success": [0.0, 50.0]}),
        plan=SimpleNamespace(editor="finetuning", assist=SimpleNamespace(neighbors="off")),
        protocol=SimpleNamespace(name=protocol),
    )
    table = work._beside(SimpleNamespace(name=model), result, dataset, recipe)
    if value is None:
        assert table is None
    else:
        assert table["efficacy_success"].tolist() == [0.0, 50.0]
        assert table["efficacy_success_paper"].iloc[1] == value
        assert table["paper"].str.startswith("arXiv:2402.11078, Table ").all()


def test_the_rows_beside_ours_are_written_and_told(bench, monkeypatch):
    monkeypatch.setattr(work, "_beside", lambda *_given: pd.DataFrame({"k": [0, 1], "efficacy_success": [1, 2]}))
    got = bench("--editor", "r-rome", "--set", "steps=1", limit=1)
    assert pd.read_csv(got.out / "beside_paper.csv")["k"].tolist() == [0, 1]
    assert "A paper's rows for this model, editor and data set are in beside_paper.csv." in got.printed


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (on("--trial", "10000"), "Trial 10000 was asked for, this data set has"),
        (on("--trial", "-1"), "trial is -1, allowed are whole numbers from 0"),
        (on("--trial", "x"), "invalid int value: 'x'"),
        (on("--protocol", "all"), "invalid choice: 'all'"),
        (on("--protocol", "sequential", "--chunk", "0"), "chunk is 0, allowed are whole numbers from 1 to"),
        (on("--preset", "honest"), "invalid choice: 'honest'"),
        (on("--convention", "padding"), "--convention takes KEY=VALUE, got 'padding'"),
        (on("--convention", "padding=middle"), "padding is 'middle', allowed are right, left"),
        (on("--convention", "colour=red"), "Unknown setting 'colour'"),
        (on("--assist", "weighting"), "--assist takes KEY=VALUE, got 'weighting'"),
        (on("--assist", "weighting=ours"), "weighting is 'ours', allowed are code, paper"),
        (on("--assist", "colour=red"), "Unknown setting 'colour'"),
        (on("--neighbors", "all"), "invalid choice: 'all'"),
        (on("--neighbor-keys", "-1"), "keys is -1.0, allowed are numbers from 0 to"),
        (on("--statistics", "words"), "invalid choice: 'words'"),
        (on("--collapse-factor", "-1"), "collapse_factor is -1.0"),
        (on("--tolerance", "-1"), "tolerance is -1.0"),
        (on("--iterations", "11"), "iterations is 11, allowed are whole numbers from 1 to 10"),
        (on("--editor", "memitt"), "Unknown editor 'memitt'. Did you mean 'memit'?"),
        (on("--set", "layers=0", "--editor", "rome"), "Unknown setting 'layers'"),
        (on("--recipe", "ft-mpp", "--editor", "finetuning"), "Unknown recipe of Fine-tuning 'ft-mpp'. Did you mean"),
        (on("--recipe", "ft-mp"), "Unknown recipe of MEMIT 'ft-mp'"),
        (on("--texts", "nowhere.json"), "nowhere.json is not a readable JSON file"),
        (on(dataset="table:nowhere.csv"), "There is no file 'nowhere.csv'"),
        (on(dataset="table"), "The data set table is not bundled; give a path: table:PATH"),
        (on(dataset="pocket-facts:dev"), "Unknown part of pocket-facts 'dev'"),
        (on(dataset="pocket-fact"), "Did you mean 'pocket-facts'?"),
        (on("--direction", "back"), "invalid choice: 'back'"),
        (["eligible"], "The following arguments are required: --dataset"),
        (["eligible", "--dataset", TUNE, "--choice", "last"], "invalid choice: 'last'"),
        (["eligible", "--dataset", "table:nowhere.csv"], "There is no file 'nowhere.csv'"),
        (["eligible", "--dataset", TUNE, "--limit", "2", "--minimum", "99"], "minimum is 99, allowed are"),
    ],
)  # fmt: skip
def test_refusals(refused, arguments, message):
    assert message in refused(*arguments)


def test_none_of_the_records_qualifies(refused, tmp_path):
    dataset = as_csv(tmp_path / "own.csv", [GOOD])
    for command in (["bench", "--eligible", "--out", tmp_path / "results"], ["eligible"]):
        err = refused(*command, "--dataset", dataset)
        assert err == "None of the 1 records qualifies for neighbor assistance: it has no neighbors.\n"


def test_neighbor_keys_need_an_editor_that_spreads(capsys, tmp_path, texts):
    for editor in ("rome", "r-rome"):
        more = ["--editor", editor, "--neighbor-keys", "1", "--texts", str(texts)]
        assert cli.run(on(*more, out=str(tmp_path / "results"))) == 2
        printed, err = capsys.readouterr()
        assert printed == ""
        assert err.count("\n") == 1
        assert "was asked for protected neighbor keys: they are protected while a change is spread, which it" in err
    assert not (tmp_path / "results").exists()


def test_none_of_the_records_is_readable(refused, tmp_path):
    dataset = as_csv(tmp_path / "own.csv", [ROWS[3]])
    err = refused("bench", "--dataset", dataset, "--out", tmp_path / "results")
    assert "pocket-gpt2 was trained on plain English letters only, but 'Zo" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--protocol", "single"],
            "generate needs one edit of all records, which protocol single has not; leave one",
        ),
        (["--references", "nowhere.json"], "The reference file nowhere.json cannot be read"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_the_edit(refused, more, message):
    assert message in refused(*on("--generate", *more))


def test_texts_of_one_token_are_refused(capsys, texts, tmp_path):
    """Nothing is predicted in them, so they have no perplexity."""
    texts.write_text(json.dumps(["The river runs through the old city.", "a"]))
    more = ["--editor", "r-rome", "--texts", str(texts)]
    assert cli.run(on(*more, out=str(tmp_path / "results"))) == 2
    assert capsys.readouterr().err == "The text 'a' is a single token and has no perplexity; leave it out.\n"
    assert not (tmp_path / "results").exists()


def test_probes_the_model_cannot_read_are_left_out(bench, tmp_path):
    """The record stays: its fact can be read."""
    row = {
        **GOOD,
        "paraphrases": ["Zoë says that Fanny Davies plays the", "Fanny Davies plays the"],
        "neighbors": ["Zoë plays the=piano", "Clara Haskil plays the=píano", "Clara Haskil plays the=piano"],
        "generation_prompts": ["Fanny Davies likes", "Zoë likes"],
    }
    path = tmp_path / "own.json"
    path.write_text(json.dumps([row]))
    got = bench("--editor", "r-rome", "--set", "steps=1", dataset=f"table:{path}", limit=None)
    assert (got.summary["unreadable"], got.summary["unreadable_probes"]) == (0, 4)
    assert "0 records and 4 probes the model cannot read" in got.printed
    first = got.probes[got.probes["k"] == 0]
    assert first["kind"].tolist() == ["edit", "paraphrase", "neighbor"]
    assert first["prompt"].tolist()[1:] == ["Fanny Davies plays the", "Clara Haskil plays the"]


def test_a_folder_that_cannot_be_written(capsys, tmp_path, texts):
    (tmp_path / "taken").write_text("a file, not a folder")
    more = ["--editor", "r-rome", "--iterations", "1", "--set", "steps=1", "--texts", str(texts)]
    assert cli.run(on(*more, out=str(tmp_path / "taken"))) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "could not be written" in err
