"""ZeroGPU: tasks in a process that Hugging Face forks from this one and lends a GPU for a bounded time.

In this process there is no GPU, though torch says there is: `spaces` pretends so. Models are therefore loaded into the
processor's memory, where the fork finds them, and brought to the GPU by the worker for as long as a task takes.
Where `spaces` or ZeroGPU is missing, nothing of this is used and tasks are done in this process.
"""

import importlib
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from components.jobs import Job, ModelThread
from editing_core import preflight
from editing_core.errors import EditingError, NoGpu
from editing_core.models.catalog import CATALOG
from editing_core.models.host import ModelHost
from editing_core.statistics.covariance import CovarianceStore
from editing_core.tasks import Packed, Task, pack
from editing_core.types import Step, Watch

log = logging.getLogger(__name__)

# A visitor without an account has 120 seconds a day, and `spaces` asks for 1.5 times what it is told on the cards there
# are now (its configs.json: duration_factor).
LONGEST = 80  # seconds that are asked for at most
MARGIN = 1.5  # how much more is asked for than a task is thought to take
LARGEST = 2e9  # parameters of the largest model on offer: its weights pass through the Space's own memory
WAITING = Step("waiting for a GPU", 0, 0)
BENCHMARKS = (
    "A ZeroGPU Space lends its GPU to single calls only, so full-scale runs here are computed on the processor; ask "
    "for few edits, or run EditScope on a machine of your own."
)
Sent = list[Step] | Packed | EditingError


def on_zerogpu() -> bool:
    """Whether this is a Space with ZeroGPU, by the sign that `spaces` itself goes by."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def spaces() -> Any:
    """The package, where this is a ZeroGPU Space that has it; None elsewhere."""
    if not on_zerogpu():
        return None
    try:
        return importlib.import_module("spaces")
    except ImportError:
        log.warning("SPACES_ZERO_GPU is set, but the package spaces is missing: everything runs on the processor")
        return None


class ZeroGPU:
    """Does tasks in workers. package: `spaces`, or whatever has a GPU(duration=...) like it."""

    def __init__(self, package: Any, host: ModelHost, store: CovarianceStore) -> None:
        self.host, self.store = host, store
        self._process = os.getpid()  # whose locks and thread these are
        self._thread: ModelThread | None = None
        self._worker: Callable[[int, Packed], Iterator[Sent]] = package.GPU(duration=_first)(self._serve)

    def do(self, task: Task, watch: Watch) -> Any:
        """The task's result, from a worker; its errors are raised here. Quick looks at bundled models need no worker.

        Call in the models' thread: no other one computes then, so no model carries an edit and nobody holds its lock
        while the process is forked. NoGpu where none is lent, or the task would take longer than one is.
        """
        row = CATALOG.get(task.model)
        if task.quick and row and row.bundled:
            return task.run(self.host, self.store, watch)
        thought = task.seconds(self.host)
        asked = math.ceil(MARGIN * thought)
        if asked > LONGEST:
            raise NoGpu(
                f"This would take about {thought:.0f} seconds on the GPU, which is lent here for work of at most "
                f"{LONGEST / MARGIN:.0f}; ask for fewer facts, iterations or steps, or choose a smaller model."
            )
        watch(WAITING)
        return self._received(self._worker(asked, pack(task)), asked, watch)

    def _received(self, stream: Iterator[Sent], asked: int, watch: Watch) -> Any:
        began, answer = None, None
        try:
            for sent in stream:
                began = began or time.monotonic()
                if isinstance(sent, list):
                    for step in sent:
                        watch(step)
                else:
                    answer = sent
        except Exception as error:
            refused = refusal(error, asked, None if began is None else time.monotonic() - began)
            if refused is None:
                raise
            raise refused from error
        finally:
            stream.close()  # type: ignore[attr-defined] # tells the worker to leave, where it still works
        if not isinstance(answer, Packed):
            raise answer or NoGpu(_aborted(asked, None))
        return answer.unpacked()

    def _serve(self, _asked: int, packed: Packed) -> Iterator[Sent]:
        """In the worker: steps as they come, at least an empty list every second; then the result or what was refused.

        At each of these `spaces` sees whether the worker is to leave; the task then ends at its next step.
        """
        task, thread = packed.unpacked(), self._own()
        job = Job(lambda watch: task.run(self.host, self.store, watch, preflight.device_here()), thread)
        try:
            yield []  # from here on the time counts
            yield from job.updates()
        finally:
            job.stop()
        if isinstance(job.error, EditingError):
            yield job.error
        elif job.error:
            raise job.error
        else:
            yield pack(job.result)

    def _own(self) -> ModelThread:
        """This process's thread. A fork takes along neither threads nor those who would open its locks."""
        if self._thread is None or self._process != os.getpid():
            self._process, self._thread = os.getpid(), ModelThread()
            self.host = self.host.forked()
        return self._thread


def _first(asked: int, _packed: Packed) -> int:
    """The duration `spaces` asks for, from the worker's arguments."""
    return asked


def refusal(error: Exception, asked: int, spent: float | None) -> NoGpu | None:
    """What `spaces` raised, as one sentence; None for any other error. spent: seconds since the worker began."""
    title, text = str(getattr(error, "title", "")), str(getattr(error, "message", error))
    if not title.startswith("ZeroGPU"):
        return None
    if "aborted" in text:
        return NoGpu(_aborted(asked, spent))
    if "quota" in title or "credits" in title or "duration" in title:
        again = re.search(r"Try again in ([\d:]+(?: days?, [\d:]+)?)", text)
        when = f"try again in {again[1]}" if again else "try again later"
        return NoGpu(
            f"The {asked} seconds of GPU this needs are more than you have left today; {when}, sign in to Hugging Face "
            "for more, or ask for fewer facts or iterations."
        )
    if "queue" in title or "client" in title:
        return NoGpu("No GPU was free for a minute; try again later, or sign in to Hugging Face to wait less.")
    return None


def _aborted(asked: int, spent: float | None) -> str:
    if spent is None:
        return "The GPU's worker ended without a word; please try again."
    if spent >= asked:
        return (
            f"The GPU was lent for {asked} seconds and the work took longer, so it was ended; ask for fewer facts, "
            "iterations or steps."
        )
    return (
        f"The GPU was taken back after {spent:.0f} of {asked} seconds, as happens when memory runs out; try again, or "
        "choose a smaller model."
    )
