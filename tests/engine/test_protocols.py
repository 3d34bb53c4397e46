"""Batch, single and sequential: each against the same edits made by hand, and the model as it was afterwards."""

import traceback
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from editing_core import session
from editing_core.bench.protocols import Benchmark, Protocol, Tools, _held, _log_spaced, run_benchmark
from editing_core.conventions import CLEAN, FAITHFUL
from editing_core.editors.assist import Assist
from editing_core.editors.base import Editor, EditOutcome
from editing_core.editors.iterative import Iterative
from editing_core.errors import BadSetting, Cancelled, OutOfMemory
from editing_core.evaluation.cases import STATES
from editing_core.evaluation.metrics import summarize
from editing_core.models.delta import WeightDelta
from editing_core.runs.journal import NoJournal
from editing_core.session import build_editor, run_edit
from editing_core.types import EditRequest
from tests.conftest import bit_equal, cancel_after, left_alone, snapshot
from tests.engine.conftest import EVALUATOR, plan

SINGLE, CHUNKS = Protocol("single"), Protocol("sequential", 1)


@pytest.fixture
def lm(tiny_models):
    """The tiny model; it must be left as it was, without hooks, and with its lock free."""
    with left_alone(tiny_models("gpt2")) as lm:
        yield lm
    assert lm.lock.acquire(blocking=False)
    lm.lock.release()


@pytest.fixture
def bench(lm, facts, statistics):
    """A function that runs a protocol on the facts."""

    def run(protocol=None, plan_=None, requests=facts, journal=None, **more):
        tools = Tools(statistics, EVALUATOR, journal or NoJournal())
        return run_benchmark(lm, requests, plan_ or plan(), protocol, tools=tools, **more)

    return run


@pytest.fixture
def alone(lm, statistics):
    """A function that edits some records together with run_edit."""

    def run(requests, plan_=None):
        return run_edit(lm, requests, plan_ or plan(), statistics, evaluator=EVALUATOR)

    return run


@pytest.fixture
def called(monkeypatch):
    """What the editor is asked, in order: (method, case ids, weights of a layer). The editor itself is the real one."""
    calls = []

    class Told(Editor):
        def __init__(self, editor):
            self.editor, self.objective = editor, editor.objective

        def _note(self, method, lm, requests):
            weight = lm.model.get_parameter(f"{lm.architecture.down(0)}.weight").detach().clone()
            calls.append((method, [r.case_id for r in requests], weight))

        def edit(self, lm, requests, watch):
            self._note("edit", lm, requests)
            return self.editor.edit(lm, requests, watch)

        def settle(self, lm, requests):
            self._note("settle", lm, requests)
            self.editor.settle(lm, requests)

        def forget(self):
            calls.append(("forget", [], None))
            self.editor.forget()

    monkeypatch.setattr(session, "build_editor", lambda *given: Told(build_editor(*given)))
    return calls


def tensors(delta: WeightDelta):
    return {(n, p): t for n, u in delta.updates.items() for p, t in u.tensors().items()}


def equal(a: WeightDelta, b: WeightDelta) -> bool:
    left, right = tensors(a), tensors(b)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def same(a: pd.DataFrame, b: pd.DataFrame):
    """Equal values; rows scored in larger batches differ in the last bits."""
    pd.testing.assert_frame_equal(a.reset_index(drop=True), b.reset_index(drop=True), rtol=1e-4, atol=1e-7)


def without_k(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="k")


# --- what is common to all of them -----------------------------------------------------------------------------------


def test_protocols_in_words():
    assert [Protocol().label, SINGLE.label, Protocol("sequential", 7).label] == [
        "batch",
        "single",
        "sequential, chunks of 7",
    ]
    with pytest.raises(BadSetting, match="name is 'all', allowed are batch, single, sequential"):
        Protocol("all")
    with pytest.raises(BadSetting, match="chunk is 0"):
        Protocol("sequential", 0)


@pytest.mark.parametrize("protocol", [Protocol(), SINGLE, CHUNKS], ids=lambda p: p.name)
def test_tables_cover_every_record(bench, facts, protocol):
    result = bench(protocol)
    ids = [r.case_id for r in facts]
    assert result.protocol == protocol
    assert [r.case_id for r in result.requests] == ids
    assert [case for stop in result.stops for case in stop["case_ids"]] == ids
    assert result.iterations["k"].tolist() == list(range(result.chosen + 1))
    for k in result.iterations["k"]:
        now = result.probes[result.probes["k"] == k]
        assert now["case_id"].drop_duplicates().tolist() == ids
        assert now["kind"].value_counts().to_dict() == {"edit": 4, "paraphrase": 4, "neighbor": 3}
        here = result.cases[result.cases["k"] == k]["case_id"].tolist()
        assert here == (ids if k else [])
    assert sum(result.states.values()) == len(ids)
    assert {part for label in result.states for part in label.split(" and ")} <= set(STATES)
    assert result.seconds >= result.edit_seconds > 0
    assert len(result.contexts) > 1


@pytest.mark.parametrize("protocol", [Protocol(), SINGLE, CHUNKS], ids=lambda p: p.name)
def test_cancelling_at_any_time_restores_the_model(bench, lm, facts, protocol):
    before, steps = snapshot(lm.model), []
    bench(protocol, plan(iterations=1), facts[:2], watch=steps.append)
    for last in sorted({0, 1, len(steps) // 4, len(steps) // 2, 3 * len(steps) // 4, len(steps) - 1}):
        with pytest.raises(Cancelled):
            bench(protocol, plan(iterations=1), facts[:2], watch=cancel_after(last))
        assert bit_equal(lm.model, before), f"after step {last} of {len(steps)}"


@pytest.fixture
def full(lm, monkeypatch):
    """A function that fills the memory: forward number `lost` fails, or all of more than `most` tokens do.

    It gives a list of places, one for every forward from then on: the functions of the engine it is called through.
    """
    forward = lm.hidden

    def fill(lost=None, most=10**9):
        places = []

        def hidden(batch, cache=None):
            places.append(tuple(f.name for f in traceback.extract_stack() if "editing_core" in f.filename))
            if len(places) - 1 == lost or batch.ids.numel() > most:
                raise torch.OutOfMemoryError("no room")
            return forward(batch, cache)

        monkeypatch.setattr(lm, "hidden", hidden)
        monkeypatch.setattr(lm, "divisor", 1)
        return places

    return fill


def same_results(a: Benchmark, b: Benchmark):
    """Equal tables, stops and edits, up to the order of sums."""
    for name in ("iterations", "probes", "cases", "checkpoints"):
        if getattr(a, name) is not None:
            same(getattr(a, name), getattr(b, name))
    assert (a.stops, a.chosen, a.stopped, a.notes) == (b.stops, b.chosen, b.stopped, b.notes)
    if a.delta is not None:
        left, right = tensors(a.delta), tensors(b.delta)
        assert left.keys() == right.keys()
        for key, tensor in left.items():
            torch.testing.assert_close(right[key], tensor, rtol=1e-4, atol=1e-6)


def asked(editor, **settings):
    """One iteration of an editor with other settings."""
    found = plan(editor, iterations=1)
    return replace(found, settings=found.settings.changed(settings))


@pytest.mark.parametrize(
    ("protocol", "editor", "own"),
    [
        (Protocol(), "memit", {}),
        pytest.param(SINGLE, "alphaedit", {"cache": "iteration"}, marks=pytest.mark.slow),
        pytest.param(CHUNKS, "alphaedit", {}, marks=pytest.mark.slow),
    ],
    ids=["batch", "single", "sequential"],
)
def test_memory_may_run_out_anywhere(bench, facts, full, lm, protocol, editor, own):
    """The forward that fails is in turn the first of every place that runs the model."""
    own = replace(asked(editor, **own), assist=Assist("na"), conventions=replace(FAITHFUL, accuracy="greedy_match"))
    places = full()
    whole = bench(protocol, own, facts[:2])
    first = {place: number for number, place in reversed(list(enumerate(places)))}
    assert {"draw_prefixed", "eligibility", "prepared", "log_perplexity", "free_choices", "collapse"} <= {
        name for place in first for name in place
    }
    for place, number in first.items():
        full(lost=number)
        same_results(whole, bench(protocol, own, facts[:2]))
        assert lm.divisor == 2, place


@pytest.mark.parametrize("conventions", [CLEAN, FAITHFUL], ids=["clean", "faithful"])
@pytest.mark.parametrize("protocol", [Protocol(), Protocol("sequential", 2)], ids=lambda p: p.name)
def test_a_small_device_gives_the_same_numbers(bench, full, lm, protocol, conventions):
    own = replace(plan(), conventions=conventions)
    whole = bench(protocol, own)
    full(most=210)
    small = bench(protocol, own)
    assert lm.divisor > 2
    same_results(whole, small)


def test_a_device_too_small_for_anything_is_told(bench, full):
    full(most=1)
    with pytest.raises(OutOfMemory, match="even with 128 tokens at a time; choose a smaller model"):
        bench(CHUNKS)


def test_states_and_known_are_counted_over_the_tables():
    def made(probes, cases, chosen):
        rest = dict.fromkeys(("plan", "protocol", "iterations", "stopped", "seconds", "edit_seconds", "contexts"))
        return Benchmark(requests=(), probes=probes, cases=cases, stops=(), chosen=chosen, **rest)

    columns = ["k", "case_id", "kind", "hit_true"]
    rows = [(0, 1, "edit", 1.0), (0, 2, "edit", 0.5), (0, 3, "edit", 1.0), (0, 4, "edit", float("nan"))]
    rows += [(0, 2, "paraphrase", 1.0), (0, 2, "neighbor", 1.0), (1, 2, "edit", 1.0), (1, 4, "edit", 1.0)]
    cases = [(1, 1, "UnderEdit"), (1, 2, "UnderEdit"), (2, 1, "edited"), (2, 2, "UnderEdit and OverEdit")]
    cases = pd.DataFrame([*cases, (2, 3, "edited")], columns=["k", "case_id", "state"])
    probes = pd.DataFrame(rows, columns=columns)
    assert made(probes, cases, 2).known == 2
    assert made(probes, cases, 2).states == {"edited": 2, "UnderEdit and OverEdit": 1}
    assert made(probes, cases, 1).states == {"UnderEdit": 2}


# --- batch -----------------------------------------------------------------------------------------------------------


def test_batch_is_run_edit(bench, alone, facts):
    result, run = bench(), alone(facts)
    for name in ("iterations", "probes", "cases"):
        pd.testing.assert_frame_equal(getattr(result, name), getattr(run, name))
    assert equal(result.delta, run.delta_at(2))
    assert result.stops == ({"case_ids": [11, "two", 3, 40], "k": 2, "rule": "iterations"},)
    assert (result.chosen, result.stopped, result.contexts) == (run.chosen, run.stopped, run.contexts)
    assert result.run.last == 2
    assert result.checkpoints is None


def test_a_batch_keeps_the_row_its_rule_chose(bench):
    """The monotone rule goes one row back; delta, states and stops are those of the row it kept."""
    found = [bench(plan_=plan(iterations=6, stop="monotone", seed=seed), requests=bench_two()) for seed in range(4)]
    back = [r for r in found if r.stops[0]["rule"] == "monotone"]
    assert back
    for result in back:
        assert result.chosen == result.stops[0]["k"] == result.run.last - 1
        assert equal(result.delta, result.run.delta_at(result.chosen))
        states = result.cases[result.cases["k"] == result.chosen]["state"].value_counts().to_dict()
        assert result.states == states


def bench_two():
    return (EditRequest("Mary", "{} was in", "London", "Paris"), EditRequest("Peter", "{} is", "a", "b", case_id=1))


def test_states_of_a_batch_that_a_guard_took_back(bench, facts):
    result = bench(plan_=plan(collapse_factor=1e-3))
    assert result.chosen == 0
    assert sum(result.states.values()) == len(facts)


# --- single ----------------------------------------------------------------------------------------------------------


def by_hand(runs, k):
    """The probe rows of every run at k, or where it ended."""
    rows = [run.probes_at(k if k < run.last else run.chosen).assign(k=k) for run in runs]
    return pd.concat(rows, ignore_index=True)


def check_single(result, runs):
    """A single benchmark against the same records each edited alone."""
    last = max(run.last for run in runs)
    assert (result.chosen, result.delta, result.run, result.checkpoints) == (last, None, None, None)
    assert result.iterations["k"].tolist() == list(range(last + 1))
    first = by_hand(runs, 0)
    for k in range(last + 1):
        now = by_hand(runs, k)
        same(result.probes[result.probes["k"] == k], now)
        row = result.iterations.iloc[k]
        for name, value in summarize(now, first, k).items():
            assert row[name] == pytest.approx(value, nan_ok=True) if value is not None else pd.isna(row[name]), name
        held = [run.iterations.iloc[k if k < run.last else run.chosen] for run in runs]
        for name in ("collapse_ppl", "ppl_spread", *(("ppl_optimised", "delta_ppl") if k else ())):
            assert row[name] == pytest.approx(pd.Series([h[name] for h in held], dtype=float).mean()), (k, name)
    for run, stop in zip(runs, result.stops, strict=True):
        assert stop == {"case_ids": [run.requests[0].case_id], "k": run.chosen, "rule": run.decision.rule}


def test_single_is_each_record_alone(bench, alone, facts):
    result, runs = bench(SINGLE), [alone([r]) for r in facts]
    check_single(result, runs)
    same(
        without_k(result.cases[result.cases["k"] == 2]),
        without_k(pd.concat([r.cases[r.cases["k"] == 2] for r in runs])),
    )
    assert "fired for 0 of 4 records" in result.stopped


def test_a_record_alone_differs_from_the_same_record_in_a_batch(bench):
    single, batch = bench(SINGLE).probes, bench().probes
    assert not torch.allclose(torch.tensor(single["logp_new"]), torch.tensor(batch["logp_new"]), atol=1e-3)


def test_records_that_stopped_earlier_are_carried_on(bench, alone, facts):
    free = [alone([r], plan(iterations=3)) for r in facts]
    gaps = sorted(abs(run.iterations["delta_ppl"][1]) for run in free)
    rule = plan(iterations=3, stop="perplexity", tolerance=(gaps[1] + gaps[2]) / 2)
    result, runs = bench(SINGLE, rule), [alone([r], rule) for r in facts]
    assert sorted(run.last for run in runs)[0] == 1
    assert max(run.last for run in runs) > 1
    check_single(result, runs)
    stopped = [run.requests[0].case_id for run in runs if run.last == 1]
    assert len(stopped) == 2
    at = {k: result.probes[(result.probes["k"] == k) & result.probes["case_id"].isin(stopped)] for k in (1, 2)}
    same(without_k(at[1]), without_k(at[2]))
    cases = result.cases[result.cases["case_id"].isin(stopped)]
    assert sorted(cases["k"]) == sorted(2 * list(range(1, result.chosen + 1)))
    assert cases.groupby("case_id")["p_new"].nunique().eq(1).all()
    fired = sum(run.converged for run in runs)
    assert f"fired for {fired} of 4 records" in result.stopped


def test_records_that_a_guard_took_back_are_carried_as_they_were(bench, alone, facts):
    """Guards of some records fire in iteration 1: those are unedited from then on, the others go on."""
    free = [alone([r]) for r in facts]
    growth = sorted(run.iterations["collapse_ppl"][1] / run.iterations["collapse_ppl"][0] for run in free)
    guarded = plan(collapse_factor=(growth[1] + growth[2]) / 2)
    result, runs = bench(SINGLE, guarded), [alone([r], guarded) for r in facts]
    assert {run.chosen for run in runs} >= {0}
    assert any(run.last == 2 for run in runs)
    check_single(result, runs)
    back = {run.requests[0].case_id for run in runs if run.chosen == 0}
    first, last = (result.probes[result.probes["k"] == k] for k in (0, result.chosen))
    for case in back:
        same(without_k(first[first["case_id"] == case]), without_k(last[last["case_id"] == case]))
    assert set(result.cases[result.cases["k"] == result.chosen]["case_id"]) == {r.case_id for r in facts}


def test_a_record_goes_on_until_it_ends_and_is_then_what_it_chose():
    """Four iterations, of which a guard took the run back to the first."""
    run = SimpleNamespace(last=4, chosen=1)
    assert [_held(run, k) for k in range(7)] == [0, 1, 2, 3, 1, 1, 1]


def test_single_edits_start_from_the_unedited_model(bench, lm, facts, called):
    bench(SINGLE, plan(iterations=1))
    weight = lm.model.get_parameter(f"{lm.architecture.down(0)}.weight")
    assert [(method, ids) for method, ids, _ in called] == [
        call for r in facts for call in (("forget", []), ("edit", [r.case_id]))
    ]
    assert all(torch.equal(seen, weight) for method, _, seen in called if method == "edit")


@pytest.mark.parametrize("cache", ["batch", "iteration"])
def test_alphaedit_forgets_between_records(bench, alone, facts, cache):
    """Keys of one record do not hold the next one back, nor do those of an earlier benchmark."""
    own = plan("alphaedit")
    own = replace(own, settings=own.settings.changed({"cache": cache}))
    check_single(bench(SINGLE, own, facts[:3]), [alone([r], own) for r in facts[:3]])


# --- sequential ------------------------------------------------------------------------------------------------------


def repeated(lm, facts, statistics, plan_, size):
    """The chunks' deltas with the same editor, each on top of those before, and settled in between."""
    editor = build_editor(lm, facts, plan_, statistics)
    total, deltas = WeightDelta(), []
    for start in range(0, len(facts), size):
        chunk = facts[start : start + size]
        with total.applied(lm):
            deltas.append(Iterative(editor, plan_.stop).edit(lm, chunk).delta)
        total = total + deltas[-1]
        with total.applied(lm):
            editor.settle(lm, chunk)
    return deltas


@pytest.mark.parametrize(("editor", "size"), [("memit", 1), ("memit", 3), ("alphaedit", 2), ("rome", 2)])
def test_sequential_is_the_sum_of_its_chunks(bench, lm, facts, statistics, editor, size):
    own = plan(editor)
    result = bench(Protocol("sequential", size), own)
    deltas = repeated(lm, facts, statistics, own, size)
    total = WeightDelta()
    for delta in deltas:
        total = total + delta
    assert len(deltas) == len(result.stops) == -(-len(facts) // size)
    assert equal(result.delta, total)
    with total.applied(lm):
        after, broken = EVALUATOR.score(lm, facts), EVALUATOR.collapse(lm)
    same(without_k(result.probes[result.probes["k"] == 1]), after)
    assert result.iterations["collapse_ppl"][1] == pytest.approx(broken)
    assert all(stop["k"] == 2 for stop in result.stops)


def test_sequential_starts_from_the_running_weights(bench, lm, facts, statistics):
    """Chunks edited on the unedited model instead would give another sum."""
    result = bench(CHUNKS)
    editor = build_editor(lm, facts, plan(), statistics)
    apart = WeightDelta()
    for fact in facts:
        apart = apart + Iterative(editor, plan().stop).edit(lm, [fact]).delta
    (name, *_) = apart.updates
    a, b = (d.updates[name].dense() for d in (apart, result.delta))
    assert float((a - b).norm() / b.norm()) > 1e-3


def test_editors_are_settled_with_each_chunk_on(bench, lm, called):
    result = bench(Protocol("sequential", 2), plan(iterations=1))
    assert [(method, ids) for method, ids, _ in called] == [
        ("edit", [11, "two"]),
        ("settle", [11, "two"]),
        ("edit", [3, 40]),
        ("settle", [3, 40]),
    ]
    (_, _, first), (_, _, settled), (_, _, second), (_, _, last) = called
    name = f"{lm.architecture.down(0)}.weight"
    weight = lm.model.get_parameter(name)
    assert torch.equal(first, weight)
    assert not torch.equal(settled, weight)
    assert torch.equal(settled, second)
    with result.delta.applied(lm):
        assert torch.equal(last, weight)
    assert not torch.equal(last, second)


def test_alphaedit_remembers_the_chunks_before(bench, lm, facts, statistics):
    """With the keys of the first chunk protected, the second one changes less along them."""
    own = plan("alphaedit", iterations=1)
    editor = build_editor(lm, facts, own, statistics)
    first = editor.edit(lm, facts[:1]).delta
    with first.applied(lm):
        forgetful = editor.edit(lm, facts[1:2]).delta
        editor.settle(lm, facts[:1])
        mindful = editor.edit(lm, facts[1:2]).delta
    result = bench(CHUNKS, own, facts[:2])
    assert equal(result.delta, first + mindful)
    assert not equal(result.delta, first + forgetful)


def test_one_chunk_of_all_is_a_batch(bench, facts):
    batch, chunk = bench(), bench(Protocol("sequential", len(facts) + 5))
    assert equal(chunk.delta, batch.delta)
    assert chunk.iterations["k"].tolist() == [0, 1]
    shared = [c for c in chunk.iterations.columns if c != "k"]
    same(chunk.iterations[shared], batch.iterations.iloc[[0, 2]][shared])
    for k, row in ((0, 0), (1, 2)):
        same(
            without_k(chunk.probes[chunk.probes["k"] == k]),
            without_k(batch.probes[batch.probes["k"] == row]),
        )
    end = batch.cases[batch.cases["k"] == 2]
    same(without_k(chunk.cases), without_k(end)[without_k(chunk.cases).columns])
    assert chunk.states == batch.states
    assert chunk.known == batch.known
    assert chunk.stops == batch.stops
    assert chunk.contexts == batch.contexts


def test_checkpoints(bench, lm, facts, statistics):
    """Five chunks: each measured just after its edit, and all so far after chunks 1, 2, 3 and 5."""
    five = (*facts, EditRequest("Tom Green", "{} lives in", "Rome", "Oslo", case_id=5))
    result = bench(CHUNKS, plan(iterations=1), five)
    table = result.checkpoints
    assert list(table.columns)[:2] == ["n_edits", "when"]
    assert table[["n_edits", "when"]].to_numpy().tolist() == [
        [1, "just after"], [1, "so far"], [2, "just after"], [2, "so far"], [3, "just after"], [3, "so far"],
        [4, "just after"], [5, "just after"], [5, "so far"],
    ]  # fmt: skip
    assert table["collapse_ppl"].notna().tolist() == (table["when"] == "so far").tolist()
    before, total = EVALUATOR.score(lm, five), WeightDelta()
    for number, delta in enumerate(repeated(lm, five, statistics, plan(iterations=1), 1), start=1):
        total = total + delta
        for when, some in (("just after", five[number - 1 : number]), ("so far", five[:number])):
            rows = table[(table["n_edits"] == number) & (table["when"] == when)]
            if rows.empty:
                continue
            then = before[before["case_id"].isin([r.case_id for r in some])].reset_index(drop=True)
            with total.applied(lm):
                wanted = summarize(EVALUATOR.score(lm, some), then, 1)
                broken = EVALUATOR.collapse(lm)
            for name, value in wanted.items():
                got = rows[name].iloc[0]
                assert pd.isna(got) if value is None else got == pytest.approx(value), (number, when, name)
            if when == "so far":
                assert rows["collapse_ppl"].iloc[0] == pytest.approx(broken)
    end, row = table.iloc[-1], result.iterations.iloc[1]
    assert all(end[c] == pytest.approx(row[c], nan_ok=True) for c in result.iterations.columns if c != "k")


@pytest.mark.parametrize(
    ("count", "spots"),
    [(1, {1}), (2, {1, 2}), (4, {1, 2, 3, 4}), (10, {1, 2, 3, 6, 10}), (100, {1, 2, 3, 6, 10, 18, 32, 56, 100})],
)
def test_checkpoints_lie_evenly_on_a_log_scale(count, spots):
    assert _log_spaced(count) == spots


def test_guards_inside_a_sequence(bench, lm, facts, statistics):
    """A chunk that would break the model is taken back; the others stay, and each is compared with its own start."""
    own, texts = plan(iterations=1), EVALUATOR.collapse
    total, levels = WeightDelta(), [texts(lm)]
    for delta in repeated(lm, facts, statistics, own, 1):
        total = total + delta
        with total.applied(lm):
            levels.append(texts(lm))
    growth = [now / then for then, now in pairwise(levels)]
    guarded = replace(own, stop=replace(own.stop, collapse_factor=(max(growth) + sorted(growth)[-2]) / 2))
    worst = growth.index(max(growth))
    result = bench(CHUNKS, guarded)
    assert [stop["rule"] for stop in result.stops[: worst + 1]] == ["iterations"] * worst + ["collapse"]
    assert result.stops[worst]["k"] == 0
    kept = sum(stop["k"] > 0 for stop in result.stops)
    name = f"{lm.architecture.down(0)}.weight"
    assert result.delta.updates[name].left.shape[1] == kept

    all_ = bench(CHUNKS, replace(own, stop=replace(own.stop, collapse_factor=1e-3)))
    assert [(stop["k"], stop["rule"]) for stop in all_.stops] == [(0, "collapse")] * len(facts)
    assert not all_.delta.updates
    same(without_k(all_.probes[all_.probes["k"] == 1]), without_k(all_.probes[all_.probes["k"] == 0]))
    off = bench(CHUNKS, replace(own, stop=replace(own.stop, collapse_factor=0.0)))
    assert {stop["rule"] for stop in off.stops} == {"iterations"}


class Breaking(Editor):
    """The real editor, but what it writes for one record is no number."""

    def __init__(self, editor, case_id):
        self.editor, self.objective, self.case_id, self.settled = editor, editor.objective, case_id, []

    def edit(self, lm, requests, watch):
        outcome = self.editor.edit(lm, requests, watch)
        bad = any(r.case_id == self.case_id for r in requests)
        outcome = replace(outcome, delta=outcome.delta.scaled(float("nan"))) if bad else outcome
        return EditOutcome(outcome.delta, outcome.targets, (f"A remark on {requests[0].subject}.",))

    def settle(self, lm, requests):
        self.settled += [r.case_id for r in requests]
        self.editor.settle(lm, requests)


@pytest.fixture
def breaking(monkeypatch):
    """Record "two" cannot be written."""
    made = []

    def build(*given):
        made.append(Breaking(build_editor(*given), "two"))
        return made[-1]

    monkeypatch.setattr(session, "build_editor", build)
    return made


def test_a_chunk_that_is_not_finite_is_left_out(bench, breaking):
    assert breaking == []
    result = bench(CHUNKS)
    assert [(stop["k"], stop["rule"]) for stop in result.stops] == [
        (2, "iterations"), (0, "not finite"), (2, "iterations"), (2, "iterations"),
    ]  # fmt: skip
    assert result.delta.finite
    assert result.delta.updates


def test_a_chunk_that_was_taken_back_is_not_settled(bench, breaking):
    bench(CHUNKS)
    assert breaking[0].settled == [11, 3, 40]


def test_a_record_that_is_not_finite_does_not_lose_the_others(bench, breaking, facts):
    assert breaking == []
    result = bench(SINGLE)
    assert [stop["k"] for stop in result.stops] == [2, 0, 2, 2]
    assert sum(result.states.values()) == len(facts)


@pytest.mark.parametrize(
    "protocol",
    [
        Protocol(),
        SINGLE,
        CHUNKS,
    ],
    ids=lambda p: p.name,
)
def test_remarks_of_the_editor_are_told(bench, facts, breaking, protocol):
    assert breaking == []
    good = (facts[0], facts[2])
    result = bench(protocol, requests=good)
    assert "A remark on Mary Walker." in result.notes
    assert len(set(result.notes)) == len(result.notes)
