"""The benchmark itself: both sides answer, and what did not run is not told as measured."""

import pytest
import torch

from benchmarks import speed
from benchmarks.cases import case
from benchmarks.sides import PARTS, SIDES, answer, operations


@pytest.fixture(scope="module")
def tiny():
    return case("tiny")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("part", PARTS)
def test_either_side_does_every_part(tiny, side, part):
    before = {name: p.clone() for name, p in tiny.lm.model.named_parameters()}
    assert answer(tiny, side, {"part": part, "count": 2})["seconds"] > 0
    assert all(torch.equal(p, before[name]) for name, p in tiny.lm.model.named_parameters())


def test_counted_operations_are_those_of_the_products(tiny):
    a, b = torch.randn(8, 16), torch.randn(16, 4)
    assert operations(lambda: a @ b) == 2 * 8 * 16 * 4
    counted = {
        side: answer(tiny, side, {"part": "targets", "count": 5, "operations": True})["operations"] for side in SIDES
    }
    assert counted["plain"] > 5 * counted["engine"]


class Fake:
    """A side whose time is a + b * N."""

    def __init__(self, once, each):
        self.once, self.each, self.asked = once, each, []

    def ask(self, _part, count, **_):
        self.asked.append(count)
        return {"seconds": self.once + self.each * count, "megabytes": 1.0}


def test_a_loop_that_takes_too_long_takes_fewer_facts_and_says_so():
    engine, plain = Fake(1.0, 0.01), Fake(3.0, 1.0)
    rows = []
    for count in (1, 10, 100):
        rows.append(speed.measured(engine, plain, "edit", count, rows, budget=60.0))
    assert [row.taken for row in rows] == [1, 10, 46]  # foreseen: 130 s for 100
    assert rows[2].plain == pytest.approx(103.0)
    assert rows[1].cells[3:5] == ("13", "11.8")
    assert rows[2].cells[3:5] == ("~103", "~51.5")


def test_what_the_engine_cannot_do_in_time_is_not_measured():
    engine, plain = Fake(0.0, 5.0), Fake(0.0, 5.0)
    rows = [speed.measured(engine, plain, "edit", 10, [], budget=60.0)]
    asked = len(engine.asked)
    row = speed.measured(engine, plain, "edit", 100, rows, budget=60.0)
    assert len(engine.asked) == asked
    assert row.cells[2:] == ("not measured", "not measured", "", "")
