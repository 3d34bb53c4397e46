"""Progress: the current step, elapsed and remaining seconds, the live loss, and messages to the person."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr

from editing_core import charts
from editing_core.bench.progress import fraction, remaining, words
from editing_core.types import Step


@dataclass(frozen=True)
class ProgressView:
    """Widgets: a message line, the progress line and the live chart."""

    message: gr.HTML
    line: gr.HTML
    losses: gr.Plot

    @property
    def outputs(self) -> list[Any]:
        """All of them."""
        return [self.message, self.line, self.losses]


def build_message() -> gr.HTML:
    """Place the message line, near the form's buttons."""
    return gr.HTML(elem_id="message")


def build(message: gr.HTML) -> ProgressView:
    """Place the progress line and the live chart."""
    line = gr.HTML(idle_html("Nothing is running."), elem_id="progress")
    losses = gr.Plot(charts.loss([]), show_label=False, container=False, elem_id="losses")
    return ProgressView(message, line, losses)


@dataclass
class Progress:
    """What has been told so far of a run of at most `iterations` rounds."""

    iterations: int
    text: str = "Starting"
    fraction: float = 0.0
    round: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def add(self, steps: Sequence[Step]) -> bool:
        """Take steps in; True when the live chart changed."""
        changed = False
        for step in steps:
            self.text = words(step, self.iterations)
            if step.round != self.round:
                self.round, self.history, changed = step.round, [], True
            if step.stage in ("optimise", "train") and step.terms:
                self.history.append(step.terms)
                changed = True
            self.fraction = max(self.fraction, fraction(step, self.iterations))
        return changed


def show(view: ProgressView, progress: Progress, seconds: float, redraw: bool) -> dict[Any, Any]:
    """The progress line and, when it changed, the live chart."""
    shown: dict[Any, Any] = {view.line: progress_html(progress, seconds)}
    if redraw:
        title = f"Loss terms in iteration {progress.round}"
        shown[view.losses] = charts.loss(progress.history, title)
    return shown


def progress_html(progress: Progress, seconds: float) -> str:
    """Step, bar, elapsed and remaining; remaining is a guess that assumes all iterations are used."""
    rest = remaining(progress.fraction, seconds)
    left = "" if rest is None else f", at most about {rest:.0f} s left"
    width = 100 * progress.fraction
    return (
        f"<div class='es-progress' role='status'>{escape(progress.text)} · {seconds:.1f} s{left}"
        f"<div class='es-bar'><div style='width:{width:.0f}%'></div></div></div>"
    )


def idle_html(text: str) -> str:
    """The progress line while nothing runs."""
    return f"<div class='es-progress' role='status'>{escape(text)}<div class='es-bar'></div></div>"


def error_html(text: str) -> str:
    """A refusal, as one visible sentence."""
    return f"<div class='es-message es-error' role='alert'>✖ {escape(text)}</div>"


def note_html(text: str) -> str:
    """A plain message."""
    return f"<div class='es-message es-info' role='status'>{escape(text)}</div>"
