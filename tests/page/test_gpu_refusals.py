"""What ZeroGPU refuses, in one sentence; and that it learns whose time is taken."""

from contextvars import ContextVar

import gradio as gr
import pytest

from components.jobs import Jobs
from components.zerogpu import refusal

QUOTA = "You have exceeded your free ZeroGPU quota (40s requested vs. 12s left). Try again in 5:12:00. "


@pytest.mark.parametrize(
    ("title", "text", "spent", "said"),
    [
        ("ZeroGPU quota exceeded", QUOTA, None, "try again in 5:12:00, sign in"),
        ("ZeroGPU quota exceeded", "Space app has reached its GPU limit. ", None, "more than you have left"),
        ("ZeroGPU pending credits exceeded", "You have too many ZeroGPU credits", None, "more than you have left"),
        ("ZeroGPU illegal duration", "The requested GPU duration (120s) is larger", None, "more than you have left"),
        ("ZeroGPU queue timeout", "No GPU was available after 60s. <a>Create</a>", None, "No GPU was free"),
        ("ZeroGPU client error", "No GPU was available", None, "No GPU was free"),
        ("ZeroGPU worker error", "GPU task aborted", 41.0, "lent for 40 seconds and the work took longer"),
        ("ZeroGPU worker error", "GPU task aborted", 12.3, "taken back after 12 of 40 seconds"),
        ("ZeroGPU worker error", "GPU task aborted", None, "ended without a word"),
    ],
)
def test_what_spaces_raises_becomes_one_sentence(title, text, spent, said):
    found = str(refusal(gr.Error(text, title=title), 40, spent))
    assert said in found
    assert found.endswith(".")
    assert ". " not in found
    assert "<" not in found


def test_other_errors_stay_what_they_are():
    assert refusal(gr.Error("RuntimeError", title="ZeroGPU worker error"), 40, 1.0) is None
    assert refusal(ValueError("quota"), 40, 1.0) is None


def test_work_runs_in_the_context_of_who_asked_for_it():
    whose = ContextVar("whose", default="nobody's")
    jobs = Jobs()
    whose.set("a visitor's")
    job = jobs.start(lambda _watch: whose.get())
    job.wait()
    assert job.result == "a visitor's"
    assert jobs.thread.call(whose.get) == "a visitor's"
