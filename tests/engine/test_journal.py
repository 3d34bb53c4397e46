"""Journal: what was finished is not done again, and an interrupted run ends as an undisturbed one."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from editing_core.bench import protocols
from editing_core.bench.protocols import Protocol, Tools, run_benchmark
from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadRequest
from editing_core.evaluation.evaluator import Evaluator
from editing_core.models.delta import Dense, LowRank, WeightDelta
from editing_core.runs.journal import NOTHING_KEPT, FolderJournal, Unit, Within, read_unit, write_unit
from tests.conftest import bit_equal, seldom, snapshot
from tests.engine.conftest import EVALUATOR, plan

PROTOCOLS = {"batch": Protocol(), "single": Protocol("single"), "sequential": Protocol("sequential", 2)}
CASES = seldom(
    [(editor, protocol) for editor in ("memit", "rome", "alphaedit") for protocol in PROTOCOLS],
    [("memit", "batch"), ("rome", "sequential")],
)


class Broken(Exception):
    """Stands for a lost machine."""


class Breaking(FolderJournal):
    """A folder journal on a machine that is lost right after so many units."""

    def __init__(self, folder, left):
        super().__init__(folder)
        self.left = left

    def keep(self, name, unit):
        super().keep(name, unit)
        self.left -= 1
        if self.left == 0:
            raise Broken


class Looking(Breaking):
    """A journal that is looked at: what is shown in it, and when."""

    def __init__(self, folder, left=-1):
        super().__init__(folder, left)
        self.shown, self.calls = [], []

    def keep(self, name, unit):
        self.calls.append("keep")
        super().keep(name, unit)

    def show(self, so_far):
        self.calls.append("show")
        self.shown.append(so_far())

    @property
    def sizes(self):
        """Per showing how many rows the iterations have, and of how many records they are."""
        return [(len(tables.iterations), tables.probes["case_id"].nunique()) for tables in self.shown]


@pytest.fixture
def lm(tiny_models):
    return tiny_models("gpt2")


def asked(editor, **more):
    """Three iterations, whatever they give."""
    found = plan(editor, 3, iterations=3, collapse_factor=0.0)
    return replace(found, settings=found.settings.changed(more))


def run(lm, facts, statistics, plan_, protocol, journal):
    """The facts of all engine tests under a protocol."""
    return run_benchmark(lm, facts, plan_, PROTOCOLS[protocol], tools=Tools(statistics, EVALUATOR, journal))


def same(one, other):
    """Equal tables, stops, edits and remarks; seconds differ."""
    for name in ("iterations", "probes", "cases", "checkpoints"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            pd.testing.assert_frame_equal(a, b, check_dtype=False)
    assert one.stops == other.stops
    assert (one.chosen, one.stopped, one.notes, one.contexts) == (
        other.chosen,
        other.stopped,
        other.notes,
        other.contexts,
    )
    assert (one.delta is None) == (other.delta is None)
    if one.delta is not None:
        mine, theirs = one.delta.tensors(), other.delta.tensors()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_run_lost_after_a_unit_ends_as_an_undisturbed_one(lm, facts, statistics, tmp_path, case):
    editor, protocol = case
    before, plan_ = snapshot(lm.model), asked(editor)
    whole = run(lm, facts, statistics, plan_, protocol, FolderJournal(tmp_path / "whole"))
    units = len(list((tmp_path / "whole").iterdir()))
    assert units >= 2
    for lost in sorted({1, units // 2, units - 1, units}):
        folder = tmp_path / f"lost-{lost}"
        breaking = Breaking(folder, lost)
        with pytest.raises(Broken):
            run(lm, facts, statistics, plan_, protocol, breaking)
        assert len(list(folder.iterdir())) == lost
        same(run(lm, facts, statistics, plan_, protocol, FolderJournal(folder)), whole)
    assert bit_equal(lm.model, before)


def test_alphaedits_keys_of_every_iteration_are_remembered_again(lm, facts, statistics, tmp_path):
    plan_ = asked("alphaedit", cache="iteration")
    whole = run(lm, facts, statistics, plan_, "batch", FolderJournal(tmp_path / "whole"))
    breaking = Breaking(tmp_path / "lost", 2)
    with pytest.raises(Broken):
        run(lm, facts, statistics, plan_, "batch", breaking)
    found = run(lm, facts, statistics, plan_, "batch", FolderJournal(tmp_path / "lost"))
    mine, theirs = found.delta.tensors(), whole.delta.tensors()
    for name in mine:  # keys under weights that were summed in another order
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_what_was_finished_is_not_computed_again(lm, facts, statistics, tmp_path, monkeypatch):
    journal, plan_ = FolderJournal(tmp_path), asked("memit")
    first = run(lm, facts, statistics, plan_, "batch", journal)
    monkeypatch.setattr(Evaluator, "score", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr("editing_core.editors.memit.optimise_targets", lambda *_: pytest.fail("edited again"))
    again = run(lm, facts, statistics, plan_, "batch", journal)
    same(again, first)
    assert again.run.seconds >= first.run.seconds * 0.5, "the time before the interruption counts"


def test_a_rule_that_fired_before_the_interruption_fires_again(lm, facts, statistics, tmp_path):
    plan_ = replace(asked("memit"), stop=StopSettings(iterations=5, tolerance=1e6, collapse_factor=0.0))
    whole = run(lm, facts, statistics, plan_, "batch", FolderJournal(tmp_path))
    assert whole.chosen == 1
    same(run(lm, facts, statistics, plan_, "batch", FolderJournal(tmp_path)), whole)


def test_a_unit_comes_back_as_it_was(tmp_path):
    delta = WeightDelta(
        {"a": LowRank(torch.randn(3, 1).double(), torch.randn(1, 4).double()), "b": Dense(torch.eye(2))}
    )
    table = pd.DataFrame({"case_id": [1, "x"], "p": [0.1, float("nan")], "tokens": [[1, 2], []], "text": ['"ü\n', "|"]})
    facts = {"k": 1, "gap": 1 / 3, "none": None, "text": "<b>", "inf": float("inf")}
    unit = Unit(facts, {"probes": table}, {"log": torch.arange(3.0)}, delta)
    write_unit(unit, tmp_path / "u")
    found = read_unit(tmp_path / "u")
    assert found.facts == facts
    pd.testing.assert_frame_equal(found.tables["probes"], table)
    assert torch.equal(found.tensors["log"], unit.tensors["log"])
    assert all(torch.equal(found.delta.tensors()[name], t) for name, t in delta.tensors().items())


@pytest.mark.parametrize("protocol", ["single", "sequential"])
def test_what_is_shown_is_what_the_records_so_far_give(lm, facts, statistics, tmp_path, protocol):
    plan_, journal = asked("memit"), Looking(tmp_path)
    run(lm, facts, statistics, plan_, protocol, journal)
    assert journal.sizes == {"single": [(4, n) for n in (1, 2, 3, 4)], "sequential": [(2, 2), (2, 4)]}[protocol]
    for tables, (_, count) in zip(journal.shown, journal.sizes, strict=True):
        alike(tables, run(lm, facts[:count], statistics, plan_, protocol, NOTHING_KEPT))
        assert tables.rounds is None


def test_what_is_shown_of_a_batch_is_what_as_many_iterations_give(lm, facts, statistics, tmp_path):
    journal = Looking(tmp_path)
    run(lm, facts, statistics, asked("memit"), "batch", journal)
    assert journal.sizes == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert journal.shown[0].rounds.histories == ()
    for k, tables in enumerate(journal.shown[1:], start=1):
        short = replace(asked("memit"), stop=StopSettings(iterations=k, stop="none", collapse_factor=0.0))
        result = run(lm, facts, statistics, short, "batch", NOTHING_KEPT)
        alike(tables, result)
        mine, theirs = tables.rounds, result.run.rounds
        assert (mine.histories, mine.proofs, mine.notes) == (theirs.histories, theirs.proofs, theirs.notes)
        assert mine.seconds > mine.edit_seconds > 0


def alike(tables, result):
    """Equal tables; rows scored in larger batches differ in the last bits."""
    for name in ("iterations", "probes", "cases", "checkpoints"):
        one, other = getattr(tables, name), getattr(result, name)
        assert (one is None) == (other is None)
        if one is not None:
            pd.testing.assert_frame_equal(one, other, check_dtype=False, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("protocol", "before", "after"),
    [
        ("batch", [(1, 4), (2, 4)], [(3, 4), (4, 4)]),
        ("single", [(4, 1)], [(4, 3), (4, 4)]),
        ("sequential", [(2, 2)], [(2, 4)]),
    ],
)
def test_what_is_shown_never_shrinks(lm, facts, statistics, tmp_path, protocol, before, after):
    """A run lost after half of its units shows more when it goes on, and in the end what it gives."""
    lost = Looking(tmp_path, {"batch": 2, "single": 8, "sequential": 1}[protocol])
    with pytest.raises(Broken):
        run(lm, facts, statistics, asked("memit"), protocol, lost)
    assert lost.sizes == before
    again = Looking(tmp_path)
    result = run(lm, facts, statistics, asked("memit"), protocol, again)
    assert again.sizes == after
    alike(again.shown[-1], result)
    if protocol == "batch":
        assert again.shown[-1].rounds.histories == result.run.histories
        assert again.shown[-1].rounds.proofs == result.run.proofs


@pytest.mark.parametrize("protocol", ["batch", "sequential"])
def test_what_a_unit_adds_is_shown_before_it_is_kept(lm, facts, statistics, tmp_path, protocol):
    journal = Looking(tmp_path)
    run(lm, facts, statistics, asked("memit"), protocol, journal)
    assert journal.calls == ["show", "keep"] * (len(journal.calls) // 2)


def test_tables_of_many_single_records_are_shown_some_times_only(lm, facts, statistics, tmp_path, monkeypatch):
    """Every second record of four, the last among them."""
    monkeypatch.setattr(protocols, "SHOWN", 2)
    journal = Looking(tmp_path)
    run(lm, facts, statistics, asked("memit"), "single", journal)
    assert journal.sizes == [(4, 2), (4, 4)]


def test_nobody_looks_where_nothing_is_shown(tmp_path):
    for journal in (NOTHING_KEPT, FolderJournal(tmp_path), Within(Looking(tmp_path), "record-1")):
        journal.show(lambda: pytest.fail("made tables for nobody"))


def test_an_empty_unit_and_a_part_of_a_journal(tmp_path):
    journal = FolderJournal(tmp_path / "units")
    part = Within(journal, "record-1")
    assert part.find("iteration-0") is None
    part.keep("iteration-0", Unit())
    assert journal.find("record-1.iteration-0") is not None
    assert journal.find("iteration-0") is None


@pytest.mark.parametrize("damage", [b"", b"no safetensors", None])
def test_a_damaged_unit_is_refused(tmp_path, damage):
    write_unit(Unit({"k": 1}), tmp_path / "u.safetensors")
    whole = (tmp_path / "u.safetensors").read_bytes()
    (tmp_path / "u.safetensors").write_bytes(whole[:-4] if damage is None else damage)
    with pytest.raises(BadRequest, match="no readable unit"):
        FolderJournal(tmp_path).find("u")
