"""Jobs: work on models in one thread of its own, its progress as a stream, and how it is stopped.

A page handler that is cancelled or whose tab was closed ends in `Job.stop`, so the model is whole again
before anybody else gets it.
"""

import queue
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from editing_core.errors import BadRequest, Cancelled
from editing_core.types import Step, Watch

INTERVAL = 1.0  # seconds within which a handler yields, so that a cancel reaches it soon
KEPT_STEPS = 256  # progress a slow reader may be behind before the oldest is dropped
Work = Callable[[Watch], Any]


class ModelThread:
    """The one thread of a server in which models compute, one piece of work after the other.

    Every further thread that computes brings threads of its own along, and as soon as there are more of those
    than processors OpenMP lets all of them sleep at every barrier, which makes an edit a third slower.
    """

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="models", daemon=True).start()

    def submit(self, work: Callable[[], Any]) -> "Future[Any]":
        """Put work into the queue; the future gives its result or error."""
        future: Future[Any] = Future()
        # In the caller's context: there Gradio keeps whose request it is, and ZeroGPU whose time it takes.
        context = copy_context()
        self._waiting.put((future, lambda: context.run(work)))
        return future

    def call(self, work: Callable[[], Any]) -> Any:
        """Do the work there and wait for it; its error is raised here."""
        return self.submit(work).result()

    def _serve(self) -> None:
        while True:
            future, work = self._waiting.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
                    future.set_exception(error)


class Job:
    """Runs `work(watch)` in the models' thread. `result` or `error` is set when `done`.

    Work that is a generator is done piece by piece, with the work of others in between; `result` is what it gave last.
    limit: seconds after which the work is refused, none for as long as it takes.
    """

    def __init__(self, work: Work, thread: ModelThread, limit: float | None = None) -> None:
        self.limit = limit
        self.id = secrets.token_urlsafe(12)
        self.result: Any = None
        self.error: BaseException | None = None
        self.started = time.perf_counter()
        self._work = work
        self._steps: queue.Queue[Step] = queue.Queue(KEPT_STEPS)
        self._stop = threading.Event()
        self._end: Future[None] = Future()
        self._thread = thread
        self._pieces: Generator[Any, None, None] | None = None
        self._piece = thread.submit(self._run)

    @property
    def done(self) -> bool:
        """Whether the worker has ended, well or not."""
        return self._end.done()

    @property
    def stopped(self) -> bool:
        """Whether somebody asked the worker to leave."""
        return self._stop.is_set()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def stop(self) -> None:
        """Ask the worker to leave and wait until it has; the model is then as it was."""
        self._stop.set()
        if self._piece.cancel():
            self._over()
        self.wait()

    def wait(self, seconds: float | None = None) -> None:
        """Until the worker has ended, at most so many seconds."""
        wait([self._end], seconds)

    def updates(self, every: float = INTERVAL) -> Iterator[list[Step]]:
        """Steps since the last look, at least every so many seconds, until the work has ended or was stopped."""
        while not self.done:
            self.wait(every)
            steps = self._drain()
            # Progress told after a stop would overwrite the word that it was stopped, which is said when it is true.
            if self.stopped:
                self.wait()
                return
            yield steps
        rest = self._drain()
        if rest and not self.stopped:
            yield rest

    def _drain(self) -> list[Step]:
        steps: list[Step] = []
        while True:
            try:
                steps.append(self._steps.get_nowait())
            except queue.Empty:
                return steps

    def _watch(self, step: Step) -> None:
        if self._stop.is_set():
            raise Cancelled
        if self.limit and self.seconds > self.limit:
            raise BadRequest(
                f"The work was stopped after {self.limit:g} seconds, the most this page gives to one; ask for less, or "
                "run EditScope on a machine of your own."
            )
        while True:
            try:
                return self._steps.put_nowait(step)
            except queue.Full:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        try:
            self._steps.get_nowait()
        except queue.Empty:
            return

    def _run(self) -> None:
        more = False
        try:
            more = self._advance()
        except BaseException as error:  # noqa: BLE001 - handed to the handler, which raises or shows it
            self.error = error
        if more:
            self._piece = self._thread.submit(self._run)
            more = not (self.stopped and self._piece.cancel())
        if not more:
            self._over()

    def _advance(self) -> bool:
        """Do the work, or its next piece; whether there is more of it."""
        if self._pieces is None:
            found = self._work(self._watch)
            if not isinstance(found, Generator):
                self.result = found
                return False
            self._pieces = found
        try:
            self.result = next(self._pieces)
        except StopIteration:
            return False
        return True

    def _over(self) -> None:
        with suppress(InvalidStateError):  # a stop may come at the very end
            self._end.set_result(None)


class Jobs:
    """The jobs now running, so that Stop finds the one of its own page by an unguessable id. limit: as in `Job`."""

    def __init__(self, limit: float | None = None) -> None:
        self.thread, self.limit = ModelThread(), limit
        self._running: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(self, work: Work) -> Job:
        """Start and list a job."""
        job = Job(work, self.thread, self.limit)
        with self._lock:
            self._running[job.id] = job
        return job

    def finish(self, job: Job) -> None:
        """Stop the job if it still runs, and take it off the list."""
        job.stop()
        with self._lock:
            self._running.pop(job.id, None)

    def stop(self, job_id: str) -> bool:
        """Stop a job by id and wait for it; False when there is none."""
        with self._lock:
            job = self._running.get(job_id)
        if job:
            self.finish(job)
        return job is not None

    def __len__(self) -> int:
        with self._lock:
            return len(self._running)
