"""The result: verdict, slider over iterations, and everything that follows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from components import result_html as html
from components.run_store import StoredRun
from editing_core import charts
from editing_core.evaluation.cases import STATES, filter_cases, sort_cases
from editing_core.runs.record import RunResult
from editing_core.session import Look

Looks = tuple[Look, Look] | None
NEIGHBOR, DISTANCE = "by neighbor", "by distance"


@dataclass(frozen=True)
class ResultView:
    """Widgets of the result side."""

    verdict: gr.HTML
    proof: gr.HTML
    k: gr.Slider
    case: gr.Dropdown
    log: gr.Checkbox
    probabilities: gr.Plot
    perplexity: gr.Plot
    next_token: gr.Plot
    drift: gr.Plot
    drift_by: gr.Radio
    metrics: gr.Plot
    loss: gr.Plot
    findings: gr.HTML
    generations: gr.HTML
    table: gr.HTML
    state: gr.Dropdown
    text: gr.Textbox
    order: gr.Dropdown
    cases: gr.HTML
    whole: gr.DownloadButton
    iterations: gr.DownloadButton

    @property
    def outputs(self) -> list[Any]:
        """Every widget."""
        return list(vars(self).values())

    @property
    def inputs(self) -> list[Any]:
        """What chooses the view: iteration, fact, scale, kind of drift, and which cases in which order."""
        return [self.k, self.case, self.log, self.drift_by, self.state, self.text, self.order]


def build() -> ResultView:
    """Place the result's widgets, in their empty state."""
    verdict = gr.HTML(html.EMPTY, elem_id="verdict")
    proof = gr.HTML("", elem_id="proof")
    with gr.Row(elem_classes="es-follow"):
        k = gr.Slider(
            0,
            1,
            value=0,
            step=1,
            label="Iteration k (0: unedited)",
            interactive=False,
            elem_id="k",
            scale=3,
            min_width=200,
        )
        case = gr.Dropdown(
            [("1.", 0)],
            value=0,
            label="Fact shown",
            interactive=False,
            visible=False,
            elem_id="case",
            scale=2,
            min_width=160,
        )
        log = gr.Checkbox(False, label="Log scale", elem_id="log", container=False, scale=1, min_width=90)
    plots = _build_plots()
    findings = gr.HTML("", elem_id="findings")
    generations = gr.HTML(html.generations_html(None, None, 0), elem_id="generations")
    table = gr.HTML("", elem_id="table")
    cases = _build_cases()
    with gr.Row():
        whole = gr.DownloadButton("Run as JSON", interactive=False, size="sm", elem_id="json")
        iterations = gr.DownloadButton("Iteration table as CSV", interactive=False, size="sm", elem_id="csv")
    worded = {"verdict": verdict, "proof": proof, "findings": findings, "generations": generations, "table": table}
    parts: dict[str, Any] = {**worded, "k": k, "case": case, "log": log, "whole": whole, "iterations": iterations}
    return ResultView(**parts, **plots, **cases)


def _build_cases() -> dict[str, Any]:
    """The case list with what narrows and orders it."""
    with gr.Accordion("Cases: every fact of the run at this iteration", open=False, elem_id="cases-box"):
        with gr.Row(elem_classes="es-fields"):
            state = gr.Dropdown(
                [("all", ""), *((s, s) for s in STATES)], value="", label="State", min_width=110, elem_id="case-state"
            )
            text = gr.Textbox("", label="Prompt or object contains", max_lines=1, min_width=140, elem_id="case-text")
            columns = [(title, column) for column, title in html.CASE_COLUMNS.items()]
            order = gr.Dropdown(
                [("as in the run", ""), *columns], value="", label="Ordered by", min_width=110, elem_id="case-order"
            )
        cases = gr.HTML("", elem_id="cases")
    return {"state": state, "text": text, "order": order, "cases": cases}


def _build_plots() -> dict[str, Any]:
    """Two charts in a row; the first two are what the first screen must show."""
    figures = _empty_figures()
    plots: dict[str, Any] = {}
    for pair in (("probabilities", "perplexity"), ("next_token", "drift"), ("metrics", "loss")):
        with gr.Row(elem_classes="es-plots"):
            for name in pair:
                with gr.Column(min_width=300, scale=3 if name == "probabilities" else 2):
                    plots[name] = gr.Plot(figures[name], show_label=False, container=False, elem_id=f"plot-{name}")
                    if name == "drift":
                        plots["drift_by"] = gr.Radio(
                            [NEIGHBOR, DISTANCE],
                            value=NEIGHBOR,
                            show_label=False,
                            label="Neighbor drift",
                            container=False,
                            elem_id="drift-by",
                        )
    return plots


def show_empty(view: ResultView) -> dict[Any, Any]:
    """The view without a run."""
    figures = _empty_figures()
    return {
        view.verdict: html.EMPTY,
        view.proof: "",
        view.k: gr.Slider(value=0, maximum=1, interactive=False),
        view.case: gr.Dropdown(choices=[("1.", 0)], value=0, interactive=False, visible=False),
        **{getattr(view, name): figure for name, figure in figures.items()},
        view.findings: "",
        view.generations: html.generations_html(None, None, 0),
        view.table: "",
        view.cases: "",
        view.whole: gr.DownloadButton(value=None, interactive=False),
        view.iterations: gr.DownloadButton(value=None, interactive=False),
    }


def show_run(
    view: ResultView, stored: StoredRun, files: tuple[str, str], log: bool, by: str = NEIGHBOR
) -> dict[Any, Any]:
    """A run newly on show: first fact, last iteration, downloads."""
    run = stored.run
    cases = [(f"{i + 1}. {r.subject} → {r.target_new}", i) for i, r in enumerate(run.requests)]
    whole, iterations = files
    return {
        view.k: gr.Slider(minimum=0, maximum=run.last, value=run.chosen, interactive=True),
        view.case: gr.Dropdown(choices=cases, value=0, interactive=True, visible=len(cases) > 1),
        view.whole: gr.DownloadButton(value=whole, interactive=True),
        view.iterations: gr.DownloadButton(value=iterations, interactive=True),
        view.state: "",
        view.text: "",
        view.order: "",
        **({} if is_looked_at(stored, 0, run.chosen, by) else show_no_looks(view, "One moment.")),
        **show_at(view, stored, 0, run.chosen, log, by),
    }


@dataclass(frozen=True)
class CaseChoice:
    """Which cases are listed, and in which order."""

    state: str = ""
    text: str = ""
    order: str = ""

    def html(self, run: RunResult, k: int) -> str:
        """The case list at iteration k."""
        if k == 0:
            return "<div class='es-hint'>Nothing is edited at k = 0; move the slider.</div>"
        found = filter_cases(run.cases, k, [self.state] if self.state else [], self.text)
        if self.order in html.CASE_COLUMNS:
            found = sort_cases(found, self.order)
        return html.cases_html(found)


def read_cases(values: Mapping[Any, Any], view: ResultView) -> CaseChoice:
    """What the case list's widgets ask for."""
    return CaseChoice(*(str(values[w] or "") for w in (view.state, view.text, view.order)))


def show_at(
    view: ResultView,
    stored: StoredRun,
    place: int,
    k: int,
    log: bool,
    by: str = NEIGHBOR,
    cases: CaseChoice | None = None,
) -> dict[Any, Any]:
    """Everything that follows the slider and the fact selector (`place` in the run's requests)."""
    run = stored.run
    case_id = run.requests[place].case_id
    history = run.histories[k - 1] if k else ()
    return {
        view.verdict: html.verdict_html(run.verdict(case_id, k)) if k else html.unedited_html(),
        view.proof: html.proof_html(run, k) + html.assist_html(run, place),
        view.probabilities: charts.probabilities(run, case_id, k, log),
        view.perplexity: charts.perplexity(run, k),
        view.drift: _drift(stored, case_id, k, by),
        view.metrics: charts.metrics(run, k),
        view.loss: charts.loss(history, f"Loss terms in iteration {k}", charts.HEIGHT),
        view.table: html.table_html(run, k) + html.rules_html(run) + html.run_paper_html(run),
        view.cases: (cases or CaseChoice()).html(run, k),
        **show_looks(view, stored, place, k, by),
    }


def _drift(stored: StoredRun, case_id: int | str, k: int, by: str) -> Any:
    """The neighbors' chart as the radio has it; distances are measured by a closer look."""
    if by != DISTANCE:
        return charts.neighbor_drift(stored.run, case_id, k)
    if case_id not in stored.distances:
        return charts.empty("Neighbor drift", "One moment.")
    return charts.drift_by_distance(stored.run, case_id, k, stored.distances[case_id], stored.encoder)


def show_looks(view: ResultView, stored: StoredRun, place: int, k: int, by: str = NEIGHBOR) -> dict[Any, Any]:
    """Next tokens, generations and distances where they were looked at already; nothing otherwise."""
    shown: dict[Any, Any] = {}
    request = stored.run.requests[place]
    if looks := looks_of(stored, request.case_id, k):
        shown[view.next_token] = charts.next_token(*looks, request.target_new, request.target_true or "")
        shown[view.findings] = html.findings_html(looks[1].findings)
        shown[view.generations] = html.generations_html(*looks, k)
    if by == DISTANCE and request.case_id in stored.distances:
        shown[view.drift] = _drift(stored, request.case_id, k, by)
    return shown


def show_no_looks(view: ResultView, reason: str, by: str = NEIGHBOR) -> dict[Any, Any]:
    """Why there are no next tokens and generations, and no distances where those are asked for."""
    return {
        view.next_token: charts.empty("Next token, top 10", reason),
        view.findings: "",
        view.generations: f"<div class='es-hint'>{escape(reason)}</div>",
        **({view.drift: charts.empty("Neighbor drift", reason)} if by == DISTANCE else {}),
    }


def looks_of(stored: StoredRun, case_id: int | str, k: int) -> Looks:
    """The looks before and after iteration k, when both were taken."""
    before, after = stored.looks.get((case_id, 0)), stored.looks.get((case_id, k))
    return (before, after) if before and after else None


def is_looked_at(stored: StoredRun, place: int, k: int, by: str) -> bool:
    """Whether all that a closer look brings is there."""
    case_id = stored.run.requests[place].case_id
    return looks_of(stored, case_id, k) is not None and (by != DISTANCE or case_id in stored.distances)


def read_place(values: Mapping[Any, Any], view: ResultView, stored: StoredRun) -> tuple[int, int]:
    """(place of the fact, iteration k), brought into what the run has."""
    place, k = values[view.case], values[view.k]
    place = int(place) if isinstance(place, int | float) else 0
    k = int(k) if isinstance(k, int | float) else stored.run.chosen
    return min(max(place, 0), len(stored.run.requests) - 1), min(max(k, 0), stored.run.last)


def _empty_figures() -> dict[str, Any]:
    names = {
        "probabilities": ("Probability of new and old object", "Press Edit to see how likely both objects are."),
        "perplexity": ("Perplexity per iteration", "Press Edit to see optimised and spread agree."),
        "next_token": ("Next token, top 10", "Press Edit to see what the model would say next."),
        "drift": ("Neighbor drift", "Press Edit to see what else changes."),
        "metrics": ("Accuracy per iteration", "Press Edit to see the metrics over k."),
        "loss": ("Loss terms", "Press Edit to see how the target was found."),
    }
    return {name: charts.empty(*texts) for name, texts in names.items()}
