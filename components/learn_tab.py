"""The Learn tab: a lesson of five steps on the bundled model, a page for lecturers, and the vocabulary.

Each step has two sentences, a button and a chart. What the steps found is small and stays with the page; the work is
done in the models' thread, as in the other tabs, and always on the bundled model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from components import edit_form, follow, settings_form
from components.edit_tab import EditTab
from components.follow import Bar
from components.learn_class import class_html
from components.learn_html import step_html, top_html, words_html
from components.progress_view import idle_html, note_html
from components.types import Shown, Values
from components.work import learning
from editing_core import charts_lesson
from editing_core.bench.progress import fraction, words
from editing_core.lesson import STEPS, Found, LessonStep
from editing_core.lesson_findings import Knowledge
from editing_core.types import Step, Watch

LECTURERS = len(STEPS) + 1  # the number of their page
WORDS = LECTURERS + 1  # the vocabulary's
VOCABULARY = Path(__file__).resolve().parent.parent / "docs" / "vocabulary.md"
RUN, IDLE = "lesson-run", "Nothing is running."
PARTS = 1000  # of the work, for the bar
DONE, BLANK = "✔", "\N{EM SPACE}"  # about as wide as each other, so that nothing moves
OPENED = "The case of the lesson is in the form; press Edit to see what it does."


@dataclass(eq=False)
class LearnTab:
    """Widgets and handlers. What is kept of a page: the step it is at, and what was found by step."""

    edit: EditTab

    def build(self) -> None:
        """Place the widgets; call inside the tab."""
        first = STEPS[0]
        self.found = gr.State({})
        with gr.Row(elem_classes="es-lesson-steps"):
            self.back = gr.Button("Back", size="sm", scale=0, min_width=60, interactive=False, elem_id="lesson-back")
            self.at = gr.Radio(_choices({}), value=1, show_label=False, container=False, elem_id="lesson-at")
            self.next = gr.Button("Next", size="sm", scale=0, min_width=60, elem_id="lesson-next")
            self.reset = gr.Button("Reset", size="sm", scale=0, min_width=60, elem_id="lesson-reset")
        with gr.Row(elem_classes="es-main") as self.lesson:
            with gr.Column(scale=2, min_width=330, elem_classes="es-left"):
                self.text = gr.HTML(step_html(first, first.before), elem_id="lesson-text")
                self.bar = Bar.build("lesson", {RUN: first.button}, IDLE)
                self.open = gr.Button("Open this case in the Edit tab", size="sm", visible=False, elem_id="lesson-open")
                self.words = gr.HTML(words_html((*first.before, first.look)), elem_id="lesson-words")
            with gr.Column(scale=3, min_width=330, elem_classes="es-right"):
                start = charts_lesson.chart(1, {})
                self.chart = gr.Plot(start, show_label=False, container=False, elem_id="plot-lesson")
                self.more = gr.HTML("", elem_id="lesson-more")
        self.lecturers = gr.HTML(visible=False, elem_id="lesson-class")
        self.vocabulary = gr.Markdown(VOCABULARY.read_text("utf-8"), visible=False, elem_id="lesson-vocabulary")

    @property
    def run(self) -> gr.Button:
        """The step's button."""
        return self.bar.starts[RUN]

    @property
    def page(self) -> list[Any]:
        """What follows from the step and what was found."""
        shown = [self.at, self.back, self.next, self.lesson, self.lecturers, self.vocabulary]
        return [*shown, self.text, self.words, self.chart, self.more, self.run, self.open]

    @property
    def opened(self) -> list[Any]:
        """What `on_open` changes of the Edit tab."""
        return [*dict.fromkeys([*self.edit.case, self.edit.header.state, self.edit.header.load])]

    def on_show(self, values: Values) -> Shown:
        """Another step was chosen, or something was found."""
        return self.show(int(values[self.at]), values[self.found])

    def on_move(self, by: int, values: Values) -> Shown:
        """Back or Next."""
        return self.show(min(max(1, int(values[self.at]) + by), WORDS), values[self.found])

    def on_reset(self, values: Values) -> Shown:
        """Begin again: a run of this page is stopped, and what was found is forgotten."""
        self.edit.jobs.stop(values[self.bar.job])
        return {**self.bar.idle(idle_html(IDLE)), self.found: {}, **self.show(1, {})}

    def on_run(self, values: Values) -> Iterator[Shown]:
        """The step's button. The chart and the text follow from what was found, at whichever step the page is then."""
        number, found = int(values[self.at]), values[self.found]
        if number >= LECTURERS:  # has no button, but what a browser sends may say anything
            yield self.bar.idle(idle_html(IDLE))
            return
        task = learning(number, tuple(found))
        new = yield from follow.follow(
            self.edit.jobs, self.bar, lambda watch: self.edit.do(task, _telling(watch, STEPS[number - 1]))
        )
        if new is not None:
            seconds = sum(finding.seconds for finding in new.values())
            yield {
                **self.bar.idle(
                    idle_html(f"Step {number} done: {seconds:.1f} s of computing. The model is as it was.")
                ),
                self.found: {**found, **new},
            }

    def on_open(self, values: Values) -> Shown:
        """The step's case into the form of the Edit tab. Nothing is run by itself."""
        number, edit = int(values[self.at]), self.edit
        asked = STEPS[number - 1].case if number < LECTURERS else None
        if asked is None:
            return {edit.progress.message: ""}
        case = asked()
        return {
            **edit_form.show_requests(edit.form, case.requests),
            **settings_form.show_plan(edit.settings, case.plan, case.model),
            **edit.readiness({edit.header.model: case.model, edit.settings.editor: case.plan.editor}),
            edit.header.model: case.model,
            edit.progress.message: note_html(OPENED),
        }

    def show(self, number: int, found: Found) -> Shown:
        """The page at a step, or at one of the two behind the last."""
        shown: Shown = {
            self.at: gr.Radio(_choices(found), value=number),
            self.back: gr.Button(interactive=number > 1),
            self.next: gr.Button(interactive=number < WORDS),
            self.lesson: gr.Row(visible=number < LECTURERS),
            self.lecturers: gr.HTML(class_html(found.values()), visible=number == LECTURERS),
            self.vocabulary: gr.Markdown(visible=number == WORDS),
        }
        return shown if number >= LECTURERS else {**shown, **self._step(STEPS[number - 1], found)}

    def _step(self, step: LessonStep, found: Found) -> Shown:
        sentences, finding = step.text(found), found.get(step.number)
        top = top_html(finding) if isinstance(finding, Knowledge) else ""
        return {
            self.text: step_html(step, sentences),
            self.words: words_html((*sentences, step.look)),
            self.chart: charts_lesson.chart(step.number, found),
            self.more: top,
            self.run: gr.Button(step.button),
            self.open: gr.Button(visible=step.case is not None),
        }


def _choices(found: Found) -> list[tuple[str, int]]:
    """The steps, those that were run with a mark, the page for lecturers, and the vocabulary."""
    steps = [(f"{step.number} {step.short} {DONE if step.number in found else BLANK}", step.number) for step in STEPS]
    return [*steps, ("For lecturers", LECTURERS), ("Words", WORDS)]


def _telling(watch: Watch, step: LessonStep) -> Watch:
    """A watch that tells the bar the step and how much of all iterations is done."""
    rounds = step.case().plan.stop.iterations if step.case else 1

    def tell(now: Step) -> None:
        watch(Step(f"step {step.number}: {words(now, rounds)}", round(PARTS * fraction(now, rounds)), PARTS))

    return tell


def wire(learn: LearnTab, tabs: gr.Tabs, present: list[Any], queue: dict[str, Any]) -> None:
    """What is pressed to what happens. present: what the form's present answers change. queue: of models' handlers."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "undocumented"}
    bar, edit = learn.bar, learn.edit
    place: set[Any] = {learn.at, learn.found}
    learn.at.input(learn.on_show, place, learn.page, trigger_mode="always_last", **quiet)
    learn.back.click(lambda values: learn.on_move(-1, values), place, learn.page, **quiet)
    learn.next.click(lambda values: learn.on_move(1, values), place, learn.page, **quiet)
    follow.offer_stop(bar)
    run = learn.run.click(
        learn.on_run,
        place,
        [*bar.outputs, learn.found],
        api_name="learn",
        trigger_mode="once",
        show_progress="hidden",
        **queue,
    )
    follow.wire_stop(bar, edit.jobs, [run])
    learn.found.change(learn.on_show, place, learn.page, **quiet)
    fresh = [*dict.fromkeys([*bar.outputs, learn.found, *learn.page])]
    learn.reset.click(learn.on_reset, {bar.job}, fresh, cancels=[run], queue=False, **quiet)

    def open_case(values: Values) -> Shown:
        return {**learn.on_open(values), tabs: gr.Tabs(selected="edit")}

    opened = learn.open.click(open_case, place, [*learn.opened, tabs], **quiet)
    opened.then(edit.on_present, edit.inputs(), present, trigger_mode="always_last", **quiet, **queue)
