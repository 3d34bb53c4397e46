"""What Hugging Face's `spaces` does with a generator on ZeroGPU, without a GPU.

Like it: one forked process per worker, arguments and results pickled by `multiprocessing`, the task in a thread of the
worker, `stop` looked at after each value, errors told by the name of their class, None for a worker that is gone.
"""

import inspect
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial, wraps

import gradio as gr

FORK = multiprocessing.get_context("fork")


class Worker:
    """A process; `idle` ones are used again."""

    def __init__(self, task):
        self.arguments, self.results, self.stop = FORK.SimpleQueue(), FORK.SimpleQueue(), FORK.Event()
        self.process = FORK.Process(target=self.serve, args=(task,), daemon=True)
        self.process.start()
        threading.Thread(target=self.watch, daemon=True).start()

    def received(self):
        """What the worker sent; its errors are raised as `spaces` raises them."""
        sent = self.results.get() or ("error", "GPU task aborted")
        if sent[0] == "error":
            raise gr.Error(sent[1], title="ZeroGPU worker error", print_exception=False)
        return sent

    def watch(self):
        self.process.join()
        with suppress(ValueError):
            self.results._wlock.release()  # it may have died while it wrote
        self.results.put(None)

    def serve(self, task):
        while True:
            arguments = self.arguments.get()
            self.stop.clear()
            with ThreadPoolExecutor(1) as thread:
                thread.submit(self.iterate, task, arguments)
            self.results.put(("end", None))

    def iterate(self, task, arguments):
        stream = task(*arguments)
        try:
            for value in stream:
                if self.stop.is_set():
                    return stream.close()
                self.results.put(("value", value))
        except Exception as error:  # noqa: BLE001
            self.results.put(("error", type(error).__name__))


class State:
    """What tests set and see. refusal: raised in place of a worker. at_fork: called just before one is made."""

    def __init__(self):
        self.asked, self.workers, self.idle = [], [], None
        self.refusal, self.at_fork, self.reuse = None, (lambda: None), False


state = State()


def GPU(*, duration):
    return partial(_lent, duration=duration)


def _lent(task, duration):
    assert inspect.isgeneratorfunction(task)

    @wraps(task)
    def handler(*arguments):
        state.asked.append(duration(*arguments))
        if state.refusal:
            raise state.refusal
        worker, state.idle = (state.idle if state.reuse else None) or _forked(task), None
        worker.arguments.put(arguments)
        try:
            while (sent := worker.received())[0] != "end":
                yield sent[1]
        except GeneratorExit:
            worker.stop.set()
            while worker.received()[0] != "end":
                pass
            raise
        finally:
            state.idle = worker

    return handler


def _forked(task):
    state.at_fork()
    state.workers.append(Worker(task))
    return state.workers[-1]
