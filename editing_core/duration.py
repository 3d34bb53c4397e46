"""Duration: how much there is to compute in an edit, and about how many seconds that takes on a lent GPU.

In: requests and a plan, as values. Out: a Load, the most it can come to: every step is taken, through all blocks.
How often the engine runs through the model was counted on the bundled model; what a GPU does per second is assumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from editing_core.evaluation.evaluator import bundled_texts
from editing_core.evaluation.generation import LENGTH, PROMPTS_PER_FORWARD
from editing_core.footprint import AGAIN, EXAMPLE_TOKENS, FACT_TOKENS, ROW_TOKENS, ROWS, TEXT_LETTERS
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.types import EditRequest

# Counted, in passes: measuring once, preparing a run, and forwards per step of a training.
MEASURING, PREPARING, FORWARDS = 10, 20, 2
PADDED = 1.3  # counted: tokens that run for one that is asked about, in rows of similar lengths
AT_ONCE = 4096  # tokens whose targets are optimised together, see `memory.bounds`
OBJECTS = 2  # a probe is asked for the new and for the old object
GENERATED = 5  # most prompts per fact that texts are written for
ENCODED = 60_000  # tokens of the bundled facts, among which similar ones are looked for
# A block of the bundled models takes 0.7 to 1.0 ms on one processor core for two tokens, nearly all of it spent on
# calling operations, which a GPU spares nobody.
BLOCK = 1e-3
# Assumed and not measured, each well below what the cards of ZeroGPU promise: float32 operations, bytes read from a
# GPU's memory, and bytes copied to it per second; seconds until a worker has its GPU.
RATE, BANDWIDTH, COPYING, START = 2e13, 1e12, 2e9, 5.0
FLOAT = 4  # bytes of a weight


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


def seconds(load: Load, size: int, depth: int) -> float:
    """On a GPU, for a model of `size` float32 weights in `depth` blocks that has to be brought there first."""
    weights = FLOAT * size
    one = max(depth * BLOCK, weights / BANDWIDTH)
    return START + weights / COPYING + load.passes * one + 2 * size * load.tokens / RATE


def look_load(prompts: int, tokens: int) -> Load:
    """Asking prompts one after the other, and writing so many tokens after each."""
    return Load(prompts * (ROW_TOKENS + tokens), prompts * (1 + tokens))


def edit_load(requests: Sequence[EditRequest], plan: EditPlan, generate: bool) -> Load:
    """A run of all its iterations. generate: whether texts are written before and after."""
    facts, rounds = len(requests), plan.stop.iterations
    asked = OBJECTS * sum(len(text) for request in requests for text in request.texts)
    measured = Load(PADDED * (asked + sum(map(len, bundled_texts()))) / TEXT_LETTERS, MEASURING)
    one_round = _training(facts, plan.settings) if plan.editor == "finetuning" else _closed(facts, plan)
    texts = GENERATED * facts
    written = Load(texts * LENGTH, LENGTH * ceil(texts / PROMPTS_PER_FORWARD)).times(2 * generate)
    return Load(0, PREPARING) + measured.times(1 + rounds) + one_round.times(rounds) + written


def _closed(facts: int, plan: EditPlan) -> Load:
    """Targets, then the spread over the layers. A backward pass takes as long as a forward one for twice as much."""
    settings: Any = plan.settings
    alone = plan.editor in ("rome", "r-rome")
    groups = facts if alone else ceil(facts * FACT_TOKENS / AT_ONCE)
    targets = Load(3 * AGAIN * FACT_TOKENS * facts, 2 * groups).times(settings.steps)
    layers = len(editor_row(plan.editor).layers(settings))
    return targets + Load(facts * ROWS * ROW_TOKENS, 2 * (facts if alone else 1)).times(layers)


def _training(facts: int, settings: Any) -> Load:
    """Steps of a fine-tuning and the words made up for it."""
    s = settings
    examples = facts * (1 + s.paraphrases + s.random_facts + s.similar_facts)
    batches = ceil(examples / s.batch)
    epochs = max(s.epochs, ceil(s.least_steps / batches))
    sides = (1 + (s.dpo > 0)) * (1 + (s.language > 0))  # the rejected answers, and the other texts
    steps = Load(3 * examples * EXAMPLE_TOKENS, 2 * FORWARDS * batches).times(epochs * sides)
    prefixes = Load(facts * s.paraphrases * s.prefix_tokens, s.prefix_tokens * ceil(facts * s.paraphrases / 32))
    return steps + prefixes + Load(ENCODED * (s.similar_facts > 0), MEASURING * (s.similar_facts > 0))
