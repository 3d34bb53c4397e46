"""How far a run is, how fast, and how long it takes: exact on made-up steps."""

import math

import pytest

from editing_core.bench.config import RunConfig
from editing_core.bench.progress import LEAST, RunProgress, Tracker, clock, fraction, progress_of, remaining, words
from editing_core.runs.folder import CANCELLED, DONE, INTERRUPTED, QUEUED, RUNNING, RunFolder
from editing_core.types import Step

CONFIG = RunConfig(iterations=5).to_json()
HEAD = {"status": RUNNING, "started": "2026-01-01T00:00:00+00:00", "config": CONFIG}
FACTS = "facts 1-50 of 50"
START = 1767225600.0  # the same moment, in seconds


def told(round_=1, done=10, seconds=4.0, stage="optimise", total=20, note=""):
    shown = {"stage": stage, "done": done, "total": total, "round": round_, "note": note, "terms": {}}
    return {**shown, "seconds": seconds, "memory": 3 * 2**29, "time": START + seconds}


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (Step("statistics", 900, 1000), 0.0),
        (Step("measure", 0, 1), 0.0),
        (Step("optimise", 10, 20, 1), 0.4 / 5),
        (Step("spread", 1, 2, 1), 0.85 / 5),
        (Step("iteration", 1, 1, 1), 1 / 5),
        (Step("optimise", 20, 20, 5), 4.8 / 5),
        (Step("iteration", 5, 5, 5), 1.0),
        (Step("optimise", 10, 20, 2, note="fact 3 of 4"), (1 + 0.8 * 2.5 / 4) / 5),
        (Step("optimise", 10, 20, 2, note="facts 33-64 of 100"), (1 + 0.8 * 0.48) / 5),
        (Step("spread", 1, 2, 2, note="layer 7"), 1.85 / 5),
        (Step("measure", 0, 1, note="record 3 of 4"), 2 / 4),
        (Step("iteration", 5, 5, 5, note="record 4 of 4"), 1.0),
        (Step("optimise", 10, 20, 2, note="chunk 2 of 4, fact 1 of 2"), (1 + (1 + 0.4 / 2) / 5) / 4),
        (Step("optimise", 20, 20, 1, note="record 1 of 4, facts 1-1 of 1"), 0.8 / 5 / 4),
        (Step("unheard of", 1, 1, 2), 1 / 5),
        (Step("optimise", 0, 0, 1), 0.0),
    ],
)
def test_the_share_that_is_done(step, share):
    assert fraction(step, 5) == pytest.approx(share, abs=1e-12)


def test_the_share_only_grows_over_a_run():
    rounds = [
        Step(stage, done, 4, k)
        for k in (1, 2, 3)
        for stage in ("optimise", "spread", "iteration")
        for done in range(1, 5)
    ]
    shares = [fraction(step, 3) for step in rounds]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_rest_is_guessed_from_what_is_done():
    assert remaining(0.25, 10.0) == 30.0
    assert remaining(1.0, 10.0) == 0.0
    assert remaining(LEAST / 2, 10.0) is None


def test_a_first_look_counts_from_the_start_of_the_worker():
    found = progress_of(HEAD, told(round_=2, done=10, seconds=14.0, note="facts 1-30 of 30"))
    share = (1 + 0.4) / 5
    assert found.fraction == pytest.approx(share)
    assert found.left == pytest.approx(14.0 / share - 14.0)
    assert (found.rate, found.elapsed) == (pytest.approx(30 * share / 14.0), 14.0)
    assert found.pieces == (
        "Iteration 2/5: Optimising the target state 10/20",
        "facts 1-30 of 30",
        "0.6 edits/s",
        "0:14 elapsed",
        "at most about 0:36 left",
        "1.5 GB",
    )


def test_a_run_that_goes_on_counts_from_an_earlier_look():
    first, then = told(round_=4, done=5, seconds=3.0, note=FACTS), told(round_=4, done=15, seconds=8.0, note=FACTS)
    found = progress_of(HEAD, then, since=first)
    before, now = (3 + 0.2) / 5, (3 + 0.6) / 5
    assert found.rate == pytest.approx(50 * (now - before) / 5.0)
    assert found.left == pytest.approx(5.0 * (1 - now) / (now - before))
    assert progress_of(HEAD, then).left < found.left, "what was recalled seems to have taken no time"
    assert progress_of(HEAD, first, since=first).rate is None
    assert progress_of(HEAD, first, since=first).left is None


def test_time_goes_on_between_two_steps():
    then = told(round_=2, done=10, seconds=14.0)
    still, later = progress_of(HEAD, then), progress_of(HEAD, then, now=START + 20.0)
    assert later.elapsed == 20.0
    assert later.left == pytest.approx(still.left - 6.0)
    assert progress_of(HEAD, then, now=START + 1e6).left == 0.0
    assert progress_of(HEAD, then, now=START).elapsed == 14.0, "the clock of another host"


@pytest.mark.parametrize(
    ("note", "chunk", "rate"),
    [
        ("record 5 of 8, facts 1-1 of 1", 1, 4.08),
        ("chunk 5 of 8, facts 1-10 of 10", 10, 40.8),
        ("fact 5 of 8", 1, 8 * 0.8 * 4.5 / 8 / 5),
        ("layer 3", 1, None),
    ],
)
def test_edits_are_counted_in_every_protocol(note, chunk, rate):
    head = {**HEAD, "config": {**CONFIG, "chunk": chunk}}
    found = progress_of(head, told(round_=1, done=10, seconds=1.0, note=note))
    assert found.rate == (rate and pytest.approx(rate))
    assert note in found.pieces


@pytest.mark.parametrize(
    ("status", "text", "share"),
    [
        (QUEUED, "Waiting", 0.08),
        (INTERRUPTED, "Interrupted", 0.08),
        (CANCELLED, "Cancelled", 0.08),
        (DONE, "Done", 1.0),
    ],
)
def test_a_run_nobody_works_on_has_no_rates(status, text, share):
    found = progress_of({**HEAD, "status": status}, told())
    assert found == RunProgress(text, fraction=pytest.approx(share))


def test_what_an_earlier_worker_told_does_not_count():
    assert progress_of(HEAD, {}) == RunProgress("Loading")
    assert progress_of(HEAD, {**told(), "time": START - 1.0}) == RunProgress("Loading")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (math.nan, "?"), (math.inf, "?")],
)
def test_clock(seconds, shown):
    assert clock(seconds) == shown


def test_words_are_those_of_the_page():
    assert words(Step("iteration", 2, 2, 2), 5) == "Iteration 2/5: Measuring the edited model"
    assert words(Step("statistics", 1, 3), 5) == "Measuring key statistics 1/3"
    assert words(Step("other", 1, 1), 5) == "other"


def test_a_tracker_counts_from_its_first_look_at_each_worker(tmp_path, monkeypatch):
    folder, tracker = RunFolder.create(tmp_path, CONFIG), Tracker()
    assert tracker.look(folder).doing == "Waiting"

    def rate(done, seconds):
        monkeypatch.setattr("time.time", lambda: START + seconds)
        folder.tell(told(round_=4, done=done, seconds=seconds, note=FACTS))
        return tracker.look(folder).rate

    with folder.held():
        folder.update(status=RUNNING, started=HEAD["started"])
        assert tracker.look(folder).doing == "Loading"
        assert rate(5, 3.0) is None
        assert rate(15, 8.0) == pytest.approx(0.8)
        assert rate(20, 13.0) == pytest.approx(0.6)
        folder.update(started="2026-01-01T00:01:00+00:00")
        assert tracker.look(folder).doing == "Loading", "an earlier worker told that"
        assert rate(10, 60.0) is None
        assert rate(20, 62.0) == pytest.approx(2.0)
