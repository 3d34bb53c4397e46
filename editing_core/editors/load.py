"""Load: how much an editor sends through the model, from its settings alone; the most it can come to.

In: settings, a number of facts, and the model's blocks. What is measured and not known from sizes stands in the
constants: how long texts and facts are, and how often work is done again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

PROBE_TOKENS, PROBES = 12, 13  # per fact with two paraphrases and ten neighbors, as CounterFact has them
ROWS, ROW_TOKENS, BARE_TOKENS = 6, 20, 10  # of a fact behind five prefixes, with and without them
FACT_TOKENS = 68  # that a target's rows take behind their prefixes
AGAIN = 0.45  # share of them that is run again at every step
EXAMPLE_TOKENS = 20
AT_ONCE = 4096  # tokens whose targets are optimised together, see `memory.bounds`


@dataclass(frozen=True)
class Load:
    """tokens: that go through the whole model. passes: how often one has to wait for the one before."""

    tokens: float = 0.0
    passes: float = 0.0

    def __add__(self, other: "Load") -> "Load":
        return Load(self.tokens + other.tokens, self.passes + other.passes)

    def times(self, count: float) -> "Load":
        """So often."""
        return Load(count * self.tokens, count * self.passes)


ENCODED = Load(60_000, 10)  # counted: the bundled facts, among which like ones are looked for
LoadOf = Callable[[Any, int, int], Load]


def gradients(tokens: float, passes: float = 1) -> Load:
    """Forward and back: a backward pass takes as long as a forward one for twice as much."""
    return Load(3 * tokens, 2 * passes)


def spread_load(settings: Any, facts: int, _depth: int) -> Load:
    """Targets, then the spread over layers, of editors that write facts together."""
    targets = optimised_load(settings.steps, facts, ceil(facts * FACT_TOKENS / AT_ONCE))
    return targets + Load(facts * ROWS * ROW_TOKENS, 2).times(len(settings.layers))


def one_by_one_load(settings: Any, facts: int, _depth: int) -> Load:
    """The same of editors that write one fact after the other in one layer."""
    return optimised_load(settings.steps, facts, facts) + Load(facts * ROWS * ROW_TOKENS, 2 * facts)


def optimised_load(steps: int, facts: int, groups: int) -> Load:
    """A state of every fact is optimised, in groups one after the other."""
    return gradients(AGAIN * FACT_TOKENS * facts, groups).times(steps)
