"""Following work: the buttons that start it, Stop, and the line that tells how far it is or why it ended."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from components.edit_tab import STOPPED, ended
from components.jobs import INTERVAL, Jobs, Work
from components.progress_view import Progress, idle_html, progress_html
from components.types import Shown
from editing_core.types import Step

PIECE = 0.2  # seconds between two looks at work whose pieces are shown


@dataclass(frozen=True)
class Bar:
    """Widgets: start buttons by name, Stop, the line, and the id of the job that runs."""

    starts: dict[str, gr.Button]
    stop: gr.Button
    line: gr.HTML
    job: gr.State

    @staticmethod
    def build(name: str, starts: Mapping[str, str], hint: str, others: Mapping[str, gr.Button] | None = None) -> "Bar":
        """Place them. starts: words on the start buttons by name. hint: of the line. others: buttons placed already."""
        with gr.Row(elem_classes="es-buttons"):
            buttons = {
                key: gr.Button(text, variant="secondary" if i else "primary", elem_id=key, min_width=90)
                for i, (key, text) in enumerate(starts.items())
            }
            stop = gr.Button("Stop", variant="stop", interactive=False, elem_id=f"{name}-stop", min_width=70)
        line = gr.HTML(idle_html(hint), elem_id=f"{name}-line")
        return Bar({**buttons, **(others or {})}, stop, line, gr.State(""))

    @property
    def outputs(self) -> list[Any]:
        """All of them."""
        return [*self.starts.values(), self.stop, self.line, self.job]

    def busy(self, job_id: str) -> Shown:
        """While a job runs."""
        starts = {button: gr.Button(interactive=False) for button in self.starts.values()}
        return {**starts, self.stop: gr.Button(interactive=True), self.job: job_id}

    def idle(self, html: str) -> Shown:
        """While nothing runs; what the line says."""
        starts = {button: gr.Button(interactive=True) for button in self.starts.values()}
        return {**starts, self.stop: gr.Button(interactive=False), self.job: "", self.line: html}


def follow(jobs: Jobs, bar: Bar, work: Work, show: Callable[[Any], Shown] | None = None) -> Generator[Shown, None, Any]:
    """Do work in the models' thread and tell how far it is; its result, or None where the line says why there is none.

    Whoever gets a result sets the bar idle. show: what work in pieces has given so far, where that is shown.
    """
    job, seen = jobs.start(work), None
    try:
        progress = Progress(1, "One moment")
        yield bar.busy(job.id)
        for steps in job.updates(PIECE if show else INTERVAL):
            if steps:
                _take(progress, steps[-1])
            told: Shown = {bar.line: progress_html(progress, job.seconds)}
            if show and job.result is not seen:
                seen = job.result
                told |= show(seen)
            yield told
        if why := ended(job):
            message, text = why
            yield bar.idle(message or idle_html(text))
            return None
        return job.result
    finally:
        jobs.finish(job)


def _take(progress: Progress, step: Step) -> None:
    progress.text = f"{step.stage.capitalize()}, {step.note}" if step.note else step.stage.capitalize()
    progress.fraction = step.done / step.total if step.total else 0.0


QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "undocumented"}


def offer_stop(bar: Bar) -> None:
    """Stop can be pressed as soon as a start button was, so that a place in the queue can be given up as well.

    Wire it before the start: of what one click sets off, a browser begins the next when the one before has ended.
    """
    gr.on([b.click for b in bar.starts.values()], lambda: gr.Button(interactive=True), None, bar.stop, **QUIET)


def wire_stop(bar: Bar, jobs: Jobs, running: list[Any]) -> None:
    """What Stop does to the job, or to the events that wait for their turn."""

    def stop(job_id: str) -> Shown:
        jobs.stop(job_id)
        return bar.idle(idle_html(STOPPED))

    bar.stop.click(stop, bar.job, bar.outputs, cancels=running, **QUIET)
