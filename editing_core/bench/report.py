"""A report on runs: one HTML page with tables, curves and configurations that opens without a network."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from editing_core import charts
from editing_core.evaluation.metrics import CARDS
from editing_core.runs.export import html_page
from editing_core.runs.tables import Finished, html, layout

SHOWN = [f"{part}_success" for part in ("efficacy", "generalization", "specificity", "score")]
SHOWN += ["specificity_accuracy", "ppl_spread", "delta_ppl", "collapse_ppl"]
# Not the id: whoever has it may see the run.
TOLD = ("status", "created", "started", "finished", "device", "memory", "commit", "versions", "config")


def report(runs: Sequence[Finished], heads: Sequence[Mapping[str, Any]]) -> str:
    """The page. heads: run.json of each run; who reads the page need not know its folders."""
    names = ", ".join(run.name for run in runs)
    figures = {CARDS[metric].label: charts.curves(runs, metric) for metric in SHOWN}
    tables = f"<h2>Results</h2><div class=scroll>{html(layout(runs))}</div>"
    asked = "".join(_asked(run, head) for run, head in zip(runs, heads, strict=True))
    lead = f"{names}. Larger points are the iterations that count as results; tables tell means and errors."
    return html_page("EditScope: benchmark report", lead, figures, f"{tables}<h2>What was asked</h2>{asked}")


def _asked(run: Finished, head: Mapping[str, Any]) -> str:
    told = {name: head[name] for name in TOLD if name in head}
    told["config"] = {key: _without_folder(value) for key, value in told["config"].items()}
    text = escape(json.dumps(told, indent=1, ensure_ascii=False))
    return f"<details><summary>{escape(run.name)}</summary><pre>{text}</pre></details>"


def _without_folder(value: Any) -> Any:
    """A text without what stands before the last slash but a data set's format."""
    if not isinstance(value, str) or "/" not in value:
        return value
    before, colon, path = value.rpartition(":")
    return f"{before}{colon}{path.rpartition('/')[2]}"
