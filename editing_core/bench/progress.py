"""Progress: how far a run is, how fast it goes and when it may end, from what its worker last published.

Everything is a pure function of that; only a `Tracker` remembers, because a rate needs two looks.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from types import MappingProxyType
from typing import Any

from editing_core.runs.folder import DONE, QUEUED, RUNNING, RunFolder
from editing_core.types import Step

WORDS = {
    "statistics": "Measuring key statistics",
    "measure": "Measuring the unedited model",
    "optimise": "Optimising the target state",
    "attribute": "Finding what carries the old object",
    "suppress": "Suppressing the old object",
    "insert": "Looking for near entries",
    "demonstrations": "Reading behind demonstrations",
    "spread": "Spreading the change over layers",
    "train": "Training",
    "iteration": "Measuring the edited model",
    "generate": "Writing texts for fluency and consistency",
}
# Start and size within a round.
SHARES = {"optimise": (0.0, 0.8), "train": (0.0, 0.95), "spread": (0.8, 0.1), "iteration": (1.0, 0.0)}
SHARES |= {"attribute": (0.0, 0.9), "suppress": (0.8, 0.15), "demonstrations": (0.0, 0.9)}
COUNTED = re.compile(r"\b(recipe|record|chunk|fact)s? (\d+)(?:-(\d+))? of (\d+)")  # as protocols and editors note them
NOTHING: Mapping[str, Any] = MappingProxyType({})
LEAST = 0.02  # of the work: less done is too little to guess the rest from


@dataclass(frozen=True)
class RunProgress:
    """How far a run is.

    doing: iteration, stage and how far that is; note: which record, facts or layer. fraction: of the whole work, 0 to
    1, if all iterations are used. elapsed: seconds its worker lives; left: seconds until the end at most. rate: edits
    per second, with all their iterations. memory: bytes the worker had at most. None: not known, or not yet.
    """

    doing: str
    note: str = ""
    fraction: float = 0.0
    elapsed: float | None = None
    left: float | None = None
    rate: float | None = None
    memory: int | None = None

    @property
    def pieces(self) -> tuple[str, ...]:
        """What is known, as short texts in the order of reading."""
        told = (
            self.doing,
            self.note,
            "" if self.rate is None else f"{self.rate:.3g} edits/s",
            "" if self.elapsed is None else f"{clock(self.elapsed)} elapsed",
            "" if self.left is None else f"at most about {clock(self.left)} left",
            "" if self.memory is None else f"{self.memory / 2**30:.1f} GB",
        )
        return tuple(piece for piece in told if piece)


def words(step: Step, iterations: int) -> str:
    """What a step of a run of at most so many iterations is about, for people."""
    of = f" {step.done}/{step.total}" if step.total > 1 and step.stage != "iteration" else ""
    where = f"Iteration {step.round}/{iterations}: " if step.round else ""
    return f"{where}{WORDS.get(step.stage, step.stage)}{of}"


def fraction(step: Step, iterations: int) -> float:
    """Share of the whole work done at a step, if all iterations are used: 0 to 1; of the editing, not of the texts."""
    counted = _counted(step)
    start, size = SHARES.get(step.stage, (0.0, 0.0))
    inside = start + size * _share(counted.get("fact"), step.done / max(1, step.total))
    rounds = (step.round - 1 + inside) / iterations if step.round else 0.0
    if step.stage == "generate":
        rounds = 1.0  # texts are written when all edits are done
    return _share(counted.get("recipe") or counted.get("record") or counted.get("chunk"), rounds)


def remaining(done: float, seconds: float) -> float | None:
    """Seconds the rest takes if it goes on as fast; None while too little is done. done: share after `seconds`."""
    return seconds / done - seconds if done >= LEAST else None


def progress_of(
    head: Mapping[str, Any], told: Mapping[str, Any], since: Mapping[str, Any] = NOTHING, now: float | None = None
) -> RunProgress:
    """Progress of a run from its head (run.json, with its standing as status) and what its worker told.

    since: what the same worker told earlier, from where rates count; without it they count from its start, which makes
    a run that goes on behind finished iterations look faster than it is. now: in seconds since 1970.
    """
    config, step = head["config"], _step(told)
    share = fraction(step, config["iterations"])
    if head["status"] != RUNNING:
        waits, done = head["status"] == QUEUED, head["status"] == DONE
        return RunProgress("Waiting" if waits else str(head["status"]).capitalize(), fraction=1.0 if done else share)
    if not _is_fresh(head, told):
        return RunProgress("Loading")
    age, seconds = max(0.0, now - told["time"]) if now else 0.0, told["seconds"] - since.get("seconds", 0.0)
    earlier, edits = fraction(_step(since), config["iterations"]), _edits(step, config["chunk"])
    left = remaining((share - earlier) / (1 - earlier), seconds) if earlier < 1 else 0.0
    return RunProgress(
        words(step, config["iterations"]),
        step.note,
        share,
        told["seconds"] + age,
        None if left is None else max(0.0, left - age),
        edits * (share - earlier) / seconds if edits and share > earlier and seconds > 0 else None,
        told["memory"],
    )


class Tracker:
    """Progress for someone who keeps looking: rates count from the first look at each worker."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, Mapping[str, Any]]] = {}

    def look(self, folder: RunFolder) -> RunProgress:
        """A run's progress now."""
        head, told = folder.head(), folder.progress()
        begun = head.get("started", "")
        if told.get("round") and _is_fresh(head, told) and self._first.get(folder.id, ("",))[0] != begun:
            self._first[folder.id] = begun, told
        _, since = self._first.get(folder.id, ("", NOTHING))
        return progress_of({**head, "status": folder.standing(head["status"])}, told, since, time.time())


def clock(seconds: float) -> str:
    """Minutes and seconds, and hours where there are any; "?" for what is no time."""
    if not isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _is_fresh(head: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether the present worker told it, and not one before."""
    begun = head.get("started")
    return bool(told and begun and told["time"] >= datetime.fromisoformat(begun).timestamp())


def _step(told: Mapping[str, Any]) -> Step:
    """The published step; one before everything where none was."""
    return Step(
        told.get("stage", ""),
        told.get("done", 0),
        told.get("total", 0),
        told.get("round", 0),
        note=told.get("note", ""),
    )


def _counted(step: Step) -> dict[str, tuple[int, int, int]]:
    """What a step's note counts, by kind: how many are finished, how many it is about, and of how many."""
    return {
        kind: (int(first) - 1, int(last or first) - int(first) + 1, int(count))
        for kind, first, last, count in COUNTED.findall(step.note)
    }


def _share(counted: tuple[int, int, int] | None, inside: float) -> float:
    """The share of all that is done when a share of those it is about is."""
    if counted is None:
        return inside
    finished, these, count = counted
    return (finished + these * inside) / count


def _edits(step: Step, chunk: int) -> int | None:
    """How many edits the whole run has; None where the step does not tell."""
    counted = _counted(step)
    if "chunk" in counted:
        return counted["chunk"][2] * chunk
    whole = counted.get("record") or counted.get("fact")
    return whole and whole[2]
