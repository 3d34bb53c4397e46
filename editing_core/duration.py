"""Duration: how much there is to compute in an edit, and about how many seconds that takes on a lent GPU.

In: requests and a plan, as values. Out: a Load, the most it can come to: every step is taken, through all blocks.
How often the engine runs through the model was counted on the bundled model; what a GPU does per second is assumed.
"""

from collections.abc import Sequence
from math import ceil

from editing_core.editors.load import ROW_TOKENS, Load
from editing_core.evaluation.evaluator import bundled_texts
from editing_core.evaluation.generation import LENGTH, PROMPTS_PER_FORWARD
from editing_core.footprint import TEXT_LETTERS
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.types import EditRequest

MEASURING, PREPARING = 10, 20  # counted, in passes: measuring once, and preparing a run
PADDED = 1.3  # counted: tokens that run for one that is asked about, in rows of similar lengths
OBJECTS = 2  # a probe is asked for the new and for the old object
GENERATED = 5  # most prompts per fact that texts are written for
# A block of the bundled models takes 0.7 to 1.0 ms on one processor core for two tokens, nearly all of it spent on
# calling operations, which a GPU spares nobody.
BLOCK = 1e-3
# Assumed and not measured, each well below what the cards of ZeroGPU promise: float32 operations, bytes read from a
# GPU's memory, and bytes copied to it per second; seconds until a worker has its GPU.
RATE, BANDWIDTH, COPYING, START = 2e13, 1e12, 2e9, 5.0
FLOAT = 4  # bytes of a weight
DEPTH = 48  # blocks where they are not known


def seconds(load: Load, size: int, depth: int) -> float:
    """On a GPU, for a model of `size` float32 weights in `depth` blocks that has to be brought there first."""
    weights = FLOAT * size
    one = max(depth * BLOCK, weights / BANDWIDTH)
    return START + weights / COPYING + load.passes * one + 2 * size * load.tokens / RATE


def look_load(prompts: int, tokens: int) -> Load:
    """Asking prompts one after the other, and writing so many tokens after each."""
    return Load(prompts * (ROW_TOKENS + tokens), prompts * (1 + tokens))


def edit_load(requests: Sequence[EditRequest], plan: EditPlan, generate: bool, depth: int = DEPTH) -> Load:
    """A run of all its iterations. generate: whether texts are written before and after. depth: blocks."""
    facts, rounds = len(requests), plan.stop.iterations
    asked = OBJECTS * sum(len(text) for request in requests for text in request.texts)
    measured = Load(PADDED * (asked + sum(map(len, bundled_texts()))) / TEXT_LETTERS, MEASURING)
    one_round = editor_row(plan.editor).load(plan.settings, facts, depth)
    texts = GENERATED * facts
    written = Load(texts * LENGTH, LENGTH * ceil(texts / PROMPTS_PER_FORWARD)).times(2 * generate)
    return Load(0, PREPARING) + measured.times(1 + rounds) + one_round.times(rounds) + written
