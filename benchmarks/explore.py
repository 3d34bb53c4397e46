"""How long looking inside takes: seconds of a causal trace, a look through the logit lens, and of written tokens.

python -m benchmarks.explore                       the bundled model
python -m benchmarks.explore --model pocket-llama  another one
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from editing_core.explore.facts import facts_known_to, noise_of
from editing_core.explore.lens import through_lens
from editing_core.explore.talk import Talk, TalkSettings
from editing_core.explore.trace import TraceSettings, trace
from editing_core.models.catalog import DEFAULT
from editing_core.models.delta import WeightDelta
from editing_core.models.language_model import LanguageModel
from editing_core.types import Probe

FACTS = 10


def seconds(work: Callable[..., object], *given: Any) -> float:
    """Wall clock of one call."""
    begun = time.perf_counter()
    work(*given)
    return time.perf_counter() - begun


def told(times: Sequence[float]) -> str:
    """Median and largest."""
    ordered = sorted(times)
    return f"{ordered[len(ordered) // 2]:.2f} s (at most {ordered[-1]:.2f})"


def traced(lm: LanguageModel, fact: Probe) -> float:
    """A trace as the page's button asks for it: its noise from the subjects' embeddings, too."""
    settings = TraceSettings()
    assert fact.place
    begun = time.perf_counter()
    trace(lm, fact.place, noise_of(lm, settings), settings, fact.answer)
    return time.perf_counter() - begun


def write(lm: LanguageModel, prompt: str, settings: TalkSettings) -> None:
    """A text under two states, turn by turn."""
    talk = Talk(lm, prompt, [WeightDelta(), WeightDelta()], settings)
    while not talk.ended:
        talk.turn()


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default=DEFAULT)
    lm = LanguageModel.load(parser.parse_args().model)
    facts = facts_known_to(lm, FACTS)
    print(f"{lm.name}, {torch.get_num_threads()} threads, {len(facts)} facts")
    print(f"the first trace after loading: {traced(lm, facts[0]):.2f} s")
    print(f"trace of one fact: {told([traced(lm, fact) for fact in facts])}")
    looks = [seconds(through_lens, lm, fact.prompt, [fact.answer]) for fact in facts]
    print(f"logit lens of one prompt: {told(looks)}")
    settings = TalkSettings()
    writing = seconds(write, lm, facts[0].prompt, settings)
    print(f"{settings.tokens} tokens under two states: {writing:.2f} s")


if __name__ == "__main__":
    main()
