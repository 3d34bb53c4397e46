"""Stored runs read back: equal to a fresh result, however they ended, and refused in one sentence when damaged."""

import json
import shutil
from contextlib import suppress
from dataclasses import fields, replace

import pandas as pd
import pytest
import torch

from editing_core import charts
from editing_core.bench import runner
from editing_core.bench.config import RunConfig
from editing_core.bench.files import read_records, write_records
from editing_core.bench.runner import LiveJournal, work_on
from editing_core.bench.stored import import_run, read_cases, read_finished, read_result
from editing_core.bench.work import records
from editing_core.data.datasets import load_dataset
from editing_core.data.table import write_requests
from editing_core.errors import BadRequest, EditingError
from editing_core.runs.bundle import pack
from editing_core.runs.folder import CANCEL, CANCELLED, DONE, FAILED, INTERRUPTED, RUNNING, UNITS, RunFolder
from editing_core.runs.record import Rounds
from editing_core.runs.tables import layout, markdown
from editing_core.session import run_edit
from editing_core.types import EditRequest, Probe
from tests.unit.test_datasets import GOOD

SMALL = RunConfig(limit=3, iterations=2, stop="none", settings={"steps": 4}, collapse_factor=0.0)
VARIANTS = {
    "plain": SMALL,
    "neighbor-assisted": replace(SMALL, assist={"neighbors": "na"}),
    "as published": replace(SMALL, preset="faithful", seed=3),
}
FRESH = ("seconds", "edit_seconds", "id", "created")  # differ from run to run
SOME = EditRequest(
    "Zoë {x}",
    "{} is in",
    "NA",
    "None",
    ("One.\nZoë {x} is in", "null"),
    (Probe("Peter is in", "Rome"), Probe("Old Ann is in", "Paris", "Ann", ("Paname",), "nq")),
    "007",
    "P1",
    "Q1",
    (Probe("{} {x} is in", "Paris", ""),),
    (Probe("Who is there?", "nan", family="New Question"),),
    (Probe("Ann knew", "Eve", family="Forgetfulness"),),
    ("Zoë's <b> \u2028 home",),
    "nowhere.csv",
    False,
)


def done(root, config, lm):
    """The folder of a run in which everything was done."""
    folder = RunFolder.create(root, config.to_json())
    assert work_on(folder, lambda *_: lm) == DONE
    return folder


def fresh(lm, config, **stop):
    """The same edit, asked for by itself."""
    plan = replace(config.plan, stop=replace(config.plan.stop, **stop))
    return run_edit(lm, records(config)[1], plan)


def figures(run):
    """Every chart of every case at its last k, and of one case unedited, as JSON."""
    places = [(request.case_id, run.last) for request in run.requests] + [(run.requests[0].case_id, 0)]
    return [figure.to_json() for case, k in places for figure in charts.all_figures(run, case, k).values()]


def same(one, other, *apart):
    """Equal in all that is not different from run to run, the charts and verdicts included."""
    for field in fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, pd.DataFrame):
            pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
        elif field.name not in ("deltas", *FRESH, *apart):
            assert mine == theirs, field.name
    assert figures(one) == figures(other)
    for request in one.requests:
        for k in range(one.last + 1):
            assert one.verdict(request.case_id, k).states == other.verdict(request.case_id, k).states


def equal_edits(one, other):
    mine, theirs = one.tensors(), other.tensors()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, pocket):
    return done(tmp_path_factory.mktemp("plain"), SMALL, pocket)


@pytest.fixture
def copied(plain, tmp_path):
    """A folder of its own to damage."""
    return RunFolder(shutil.copytree(plain.path, tmp_path / "runs" / plain.id))


@pytest.fixture
def cancelled(tmp_path, pocket, monkeypatch):
    """A run that was cancelled as soon as its first iteration was kept."""

    class Stopped(LiveJournal):
        def keep(self, name, unit):
            super().keep(name, unit)
            if name == "iteration-1":
                (self.folder.parent / CANCEL).touch()
                raise runner.Cancelled

    folder = RunFolder.create(tmp_path / "cancelled", SMALL.to_json())
    with monkeypatch.context() as patch:
        patch.setattr(runner, "LiveJournal", Stopped)
        assert work_on(folder, lambda *_: pocket) == CANCELLED
    return folder


OFTEN = ("plain",)


@pytest.mark.parametrize("name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS])
def test_a_stored_run_reads_as_a_fresh_one(pocket, tmp_path, name):
    folder = done(tmp_path, VARIANTS[name], pocket)
    stored, asked = read_result(folder), fresh(pocket, VARIANTS[name])
    same(stored, asked)
    assert (stored.id, stored.created) == (folder.id, folder.head()["created"])
    assert stored.seconds >= stored.edit_seconds > 0
    assert stored.deltas[0] is None
    equal_edits(stored.delta_at(2), asked.delta_at(2))
    assert any(request.edit_neighbors for request in stored.requests) == (name == "neighbor-assisted")
    told, expected = stored.to_json(), asked.to_json()
    assert told.keys() == expected.keys()
    assert {k: v for k, v in told.items() if k not in FRESH} == {k: v for k, v in expected.items() if k not in FRESH}


def test_case_ids_and_texts_of_every_kind_come_back(pocket, tmp_path):
    """Ids that are equal as texts, and texts that a table could take for nothing."""
    some = records(replace(SMALL, limit=4))[1]
    named = [replace(r, case_id=i, source="x") for r, i in zip(some, (1, "1", "007", "NA"), strict=True)]
    named[1] = replace(named[1], target_new="None", paraphrases=(), neighbors=())
    named[2] = replace(named[2], target_new="NA", target_true=None, compare=False)
    write_requests(named, tmp_path / "own.json")
    config = replace(SMALL, dataset=f"table:{tmp_path / 'own.json'}", limit=4)
    folder = done(tmp_path / "runs", config, pocket)
    stored = read_result(folder)
    same(stored, fresh(pocket, config))
    assert [r.case_id for r in stored.requests] == [1, "1", "007", "NA"]
    cases, chosen = read_cases(folder)
    assert (cases["case_id"].tolist(), chosen) == (["1", "1", "007", "NA"] * 2, 2)


def test_only_the_chosen_edit_is_there_and_read_when_it_is_needed(copied):
    stored = read_result(copied)
    assert stored.last == 2
    assert stored.delta_at(0).tensors() == {}
    with pytest.raises(BadRequest, match="of iteration 1 were not kept, only those of 0 and 2 are here"):
        stored.delta_at(1)
    (copied.path / "delta.safetensors").unlink()
    with pytest.raises(BadRequest, match="not a readable safetensors file"):
        stored.delta_at(2).tensors()
    with pytest.raises(BadRequest, match="of iteration 2 were not kept, only those of 0 are here"):
        read_result(copied).delta_at(2)


def test_one_case_is_a_run_of_its_own(plain):
    stored = read_result(plain)
    case = stored.requests[1].case_id
    own = stored.only(str(case))
    assert own.requests == (stored.requests[1],)
    assert own.id != stored.id
    for k in range(3):
        assert own.verdict(k=k) == stored.verdict(case, k)
        pd.testing.assert_frame_equal(own.probes_at(k), stored.probes_at(k, case))
    assert own.cases["k"].tolist() == [1, 2]
    with pytest.raises(BadRequest, match="no case 'x'"):
        stored.only("x")


def test_a_run_does_not_go_on_with_other_presets(cancelled, pocket):
    plan = cancelled.head()["plan"]
    cancelled.queue()
    cancelled.update(plan={**plan, "settings": {**plan["settings"], "steps": 99}})
    assert work_on(cancelled, lambda *_: pocket) == FAILED
    assert "presets have changed" in cancelled.head()["error"]
    cancelled.queue()
    cancelled.update(plan=plan)
    assert work_on(cancelled, lambda *_: pocket) == DONE


def test_a_cancelled_run_opens_with_what_it_finished(cancelled, pocket):
    stored = read_result(cancelled)
    same(stored, fresh(pocket, SMALL, iterations=1), "plan", "decision")
    assert stored.plan == SMALL.plan
    assert (stored.chosen, stored.decision.rule, stored.converged) == (1, CANCELLED, False)
    assert stored.stopped == "The run was cancelled; iteration 1 of at most 2 is the last that was finished."
    with pytest.raises(BadRequest, match="of iteration 1 were not kept"):
        stored.delta_at(1)


def test_a_rule_that_fired_decides_before_there_is_a_result(cancelled):
    config = replace(SMALL, stop="perplexity", tolerance=1e6)
    cancelled.update(config=config.to_json(), plan=None)
    assert read_result(cancelled).decision.rule == "perplexity"


def test_a_run_opens_while_it_goes_on_and_after_it_was_killed(cancelled):
    cancelled.update(status=RUNNING)
    assert read_result(cancelled).stopped.startswith("The run was interrupted; iteration 1 of at most 2")
    with cancelled.held():
        assert read_result(cancelled).stopped.startswith("The run goes on; iteration 1 of at most 2")


def test_a_resumed_run_ends_as_an_undisturbed_one(cancelled, plain, pocket):
    before = (cancelled.path / "records.json").read_bytes()
    cancelled.queue()
    assert work_on(cancelled, lambda *_: pocket) == DONE
    assert not (cancelled.path / UNITS).exists()
    assert (cancelled.path / "records.json").read_bytes() == before
    same(read_result(cancelled), read_result(plain))


def test_records_are_there_before_anything_is_measured(tmp_path, pocket, monkeypatch):
    def keep(self, name, _unit):
        place = self.folder.parent
        assert name == "iteration-0"
        assert [r.subject for r in read_records(place)] == [r.subject for r in records(SMALL)[1]]
        raise runner.Cancelled

    monkeypatch.setattr(LiveJournal, "keep", keep)
    folder = RunFolder.create(tmp_path, SMALL.to_json())
    work_on(folder, lambda *_: pocket)
    assert folder.status == INTERRUPTED, "nobody cancelled it, so its machine must have gone down"
    assert folder.head()["revision"] == pocket.revision
    with pytest.raises(BadRequest, match="has finished no iteration yet"):
        read_result(folder)


def test_an_imported_run_opens_like_its_origin(plain, cancelled, tmp_path):
    for folder in (plain, cancelled):
        pack(folder.path, tmp_path / "run.zip")
        imported = import_run(tmp_path / "run.zip", tmp_path / "imported")
        stored, origin = read_result(imported), read_result(folder)
        same(stored, origin)
        assert stored.id == imported.id != origin.id
    equal_edits(read_result(plain).delta_at(2), import_edit(plain, tmp_path))


def import_edit(folder, tmp_path):
    pack(folder.path, tmp_path / "run.zip")
    return read_result(import_run(tmp_path / "run.zip", tmp_path / "imported")).delta_at(2)


def test_tables_may_be_one_iteration_ahead(copied):
    """A run is killed, or read, between the writing of two tables."""
    rows = (copied.path / "iterations.csv").read_text().splitlines()
    (copied.path / "iterations.csv").write_text("\n".join(rows[:3]) + "\n")
    copied.update(result=None)
    stored = read_result(copied)
    assert (stored.last, len(stored.histories), len(stored.proofs), stored.chosen) == (1, 1, 1, 1)
    assert stored.probes["k"].max() == stored.cases["k"].max() == 1
    assert read_finished(copied).probes["k"].max() == 1


def test_probes_wait_until_they_are_asked_for(copied, cancelled):
    whole = read_finished(copied).probes
    run = read_finished(copied)
    (copied.path / "probes.parquet").unlink()
    assert (read_finished(copied).n_edits, run.n_edits) == (3, 3)
    with pytest.raises(BadRequest, match=rf"^The probes\.parquet of run {copied.id} is missing, damaged"):
        run.probes  # noqa: B018
    earlier = read_finished(cancelled)
    assert (earlier.n_edits, earlier.last) == (3, 1)
    pd.testing.assert_frame_equal(earlier.probes, whole[whole["k"] < 2])
    (cancelled.path / "probes.parquet").unlink()
    with pytest.raises(BadRequest, match=r"^The probes\.parquet of run"):
        read_finished(cancelled)


def test_records_are_counted_before_there_is_a_result(copied):
    """By their edits: ids that are equal as texts are two records."""
    table = pd.read_parquet(copied.path / "probes.parquet")
    first, second, *_ = table["case_id"].unique()
    table["case_id"] = table["case_id"].replace(second, first)
    table.to_parquet(copied.path / "probes.parquet")
    copied.update(result=None)
    assert read_finished(copied).n_edits == 3


def test_runs_are_told_apart_by_what_they_were_asked(copied):
    run = read_finished(copied)
    assert run.variant == "iterations 2, stop none, collapse_factor 0, steps 4"
    assert run.name == f"pocket-gpt2, memit, pocket-facts, trial 0, N 3, iterations 2, stop none, … {SMALL.key[:4]}"


@pytest.mark.parametrize("protocol", ["single", "sequential"])
def test_a_run_of_several_edits_shows_its_cases_only(pocket, tmp_path, protocol):
    config = replace(SMALL, protocol=protocol, limit=2)
    folder = done(tmp_path, config, pocket)
    assert not (folder.path / "rounds.json").exists()
    assert len(read_records(folder.path)) == 2
    with pytest.raises(BadRequest, match=f"is of the protocol {protocol}"):
        read_result(folder)
    cases, chosen = read_cases(folder)
    assert len(cases) == 2 * chosen
    assert read_finished(folder).protocol == config.sharing.label


@pytest.mark.parametrize("name", GOOD)
def test_records_of_every_format_come_back_equal(tmp_path, name):
    (tmp_path / "raw.json").write_text(json.dumps([GOOD[name]]))
    requests = load_dataset(f"{name}:{tmp_path / 'raw.json'}").requests
    write_records(requests, tmp_path)
    assert read_records(tmp_path) == requests


def test_records_come_back_equal_in_every_field(tmp_path):
    some = (*load_dataset("pocket-facts").requests[:50], SOME, replace(SOME, case_id=7), replace(SOME, case_id="7"))
    assert all(getattr(SOME, f.name) != f.default for f in fields(SOME))
    write_records(some, tmp_path)
    assert read_records(tmp_path) == some
    assert [p.name for p in tmp_path.iterdir()] == ["records.json"]


def text(name, content):
    return lambda path: (path / name).write_text(content)


def gone(name):
    return lambda path: (path / name).unlink()


def table(name, change):
    """A CSV file with every cell as text, changed."""

    def damage(path):
        change(pd.read_csv(path / name, dtype=str, keep_default_na=False)).to_csv(path / name, index=False)

    return damage


def probes(change):
    def damage(path):
        change(pd.read_parquet(path / "probes.parquet")).to_parquet(path / "probes.parquet")

    return damage


def run_json(**changes):
    def damage(path):
        RunFolder(path).update(**changes)

    return damage


def result(**changes):
    def damage(path):
        folder = RunFolder(path)
        folder.update(result={**folder.head()["result"], **changes})

    return damage


def rounds(change):
    def damage(path):
        told = json.loads((path / "rounds.json").read_text())
        change(told)
        (path / "rounds.json").write_text(json.dumps(told))

    return damage


DAMAGE = {
    "no records": (gone("records.json"), r"has no records\.json"),
    "records that are text": (text("records.json", "x"), r"The records\.json of run"),
    "records that are nested": (text("records.json", "[" * 100_000), r"The records\.json of run"),
    "no record": (text("records.json", "[]"), r"The records\.json of run"),
    "a record without a prompt": (text("records.json", '[{"subject": "a"}]'), r"The records\.json of run"),
    "records of another run": (lambda path: write_records([SOME], path), r"The probes\.parquet of run"),
    "no iterations": (gone("iterations.csv"), "has finished no iteration yet"),
    "iterations that are binary": (lambda p: (p / "iterations.csv").write_bytes(b"\xff\0"), r"The iterations\.csv of"),
    "iterations without rows": (text("iterations.csv", "k\n"), r"The iterations\.csv of"),
    "iterations without a k": (table("iterations.csv", lambda t: t.drop(index=1)), r"The iterations\.csv of"),
    "iterations without columns": (text("iterations.csv", "k\n0\n1\n2\n"), r"The iterations\.csv of"),
    "text for a number": (table("iterations.csv", lambda t: t.assign(delta_ppl="x")), r"The iterations\.csv of"),
    "a gap without its parts": (table("iterations.csv", lambda t: t.assign(ppl_spread="")), r"The iterations\.csv of"),
    "no probes": (gone("probes.parquet"), r"The probes\.parquet of run"),
    "probes that are text": (text("probes.parquet", "k,p\n"), r"The probes\.parquet of run"),
    "probes without a column": (probes(lambda t: t.drop(columns="p_new")), r"The probes\.parquet of run"),
    "probes without prompts": (probes(lambda t: t.assign(prompt=None)), r"The probes\.parquet of run"),
    "probes with text for a number": (probes(lambda t: t.assign(hit_new="1")), r"The probes\.parquet of run"),
    "probes with text for tokens": (probes(lambda t: t.assign(labels="ab")), r"The probes\.parquet of run"),
    "a probe missing": (probes(lambda t: t.drop(index=5)), r"The probes\.parquet of run"),
    "an iteration of probes missing": (probes(lambda t: t[t["k"] < 2]), r"The probes\.parquet of run"),
    "probes in another order": (probes(lambda t: t[::-1]), r"The probes\.parquet of run"),
    "probes of another kind": (probes(lambda t: t.assign(kind="edit")), r"The probes\.parquet of run"),
    "no cases": (gone("cases.csv"), r"The cases\.csv of run"),
    "a case missing": (table("cases.csv", lambda t: t.drop(index=4)), r"The cases\.csv of run"),
    "cases of another run": (table("cases.csv", lambda t: t.assign(case_id="9")), r"The cases\.csv of run"),
    "cases with text for a number": (table("cases.csv", lambda t: t.assign(p_new="x")), r"The cases\.csv of run"),
    "cases of no batch": (table("cases.csv", lambda t: t.drop(columns="norm")), r"The cases\.csv of run"),
    "no rounds": (gone("rounds.json"), r"The rounds\.json of run"),
    "rounds that are a list": (text("rounds.json", "[]"), r"The rounds\.json of run"),
    "rounds that are nested": (text("rounds.json", "[" * 100_000), r"The rounds\.json of run"),
    "a round missing": (rounds(lambda t: [t[n].pop() for n in ("histories", "proofs")]), r"The rounds\.json of run"),
    "no result": (run_json(result=[1]), r"The run\.json of run"),
    "another iteration chosen": (result(chosen=3), r"The run\.json of run"),
    "no iteration chosen": (result(chosen=[]), r"The run\.json of run"),
    "no rule": (result(stops=[]), r"The run\.json of run"),
    "versions that are a list": (result(versions=[]), r"The run\.json of run"),
    "no seconds": (result(seconds="x"), r"The run\.json of run"),
    "no configuration": (run_json(config=None), r"run\.json"),
    "a configuration that is a list": (run_json(config=[1]), "."),
    "an editor nobody knows": (run_json(config={"editor": "memmit"}), "Did you mean 'memit'"),
    "settings of another kind": (run_json(config={"settings": {"layers": [[1]]}}), "."),
}


@pytest.mark.parametrize(("damage", "match"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_run_is_refused_in_one_sentence(copied, damage, match):
    damage(copied.path)
    with pytest.raises(EditingError, match=match) as caught:
        read_result(copied)
    told = str(caught.value)
    assert told.endswith(".")
    assert "\n" not in told
    for read in (lambda folder: read_finished(folder).probes, read_cases):  # need less, and refuse that in the same way
        with suppress(EditingError):
            read(copied)


@pytest.mark.parametrize(
    "told",
    [
        None,
        {},
        {"histories": [], "proofs": [], "notes": [], "seconds": 0},
        {"histories": {}, "proofs": [], "notes": [], "seconds": 0, "edit_seconds": 0},
        {"histories": [[]], "proofs": [], "notes": [], "seconds": 0, "edit_seconds": 0},
        {"histories": ["ab"], "proofs": [[]], "notes": [], "seconds": 0, "edit_seconds": 0},
        {"histories": [[{"target": "x"}]], "proofs": [[]], "notes": [], "seconds": 0, "edit_seconds": 0},
        {"histories": [[[1]]], "proofs": [[]], "notes": [], "seconds": 0, "edit_seconds": 0},
        {"histories": [[]], "proofs": [[{"parameter": "w"}]], "notes": [], "seconds": 0, "edit_seconds": 0},
        {"histories": [], "proofs": [], "notes": "ab", "seconds": 0, "edit_seconds": 0},
        {"histories": [], "proofs": [], "notes": [], "seconds": [], "edit_seconds": 0},
    ],
)
def test_what_is_no_rounds_is_a_value_error(told):
    with pytest.raises(ValueError, match=r"rounds|iterations|convert"):
        Rounds.of(told)


def test_rounds_come_back_through_json(plain):
    told = read_result(plain).rounds
    assert len(told.histories[0]) == SMALL.settings["steps"]
    assert Rounds.of(json.loads(json.dumps(told.to_json()))) == told


def test_a_run_of_a_recipe_is_read_back_under_its_name(tmp_path, pocket):
    few = {"epochs": 1, "paraphrases": 2}
    config = RunConfig(editor="finetuning", recipe="ft-mp", limit=2, iterations=1, stop="none", settings=few)
    folder = done(tmp_path, config, pocket)
    assert folder.head()["result"]["recipe"] == "FT + Mask + Para"
    run = read_finished(folder)
    assert (run.editor, run.recipe) == ("finetuning", "FT + Mask + Para")
    assert "| finetuning: FT + Mask + Para |" in markdown(layout([run]))
    assert read_result(folder).plan == config.plan
