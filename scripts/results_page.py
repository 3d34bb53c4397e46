"""docs/results.md from the rows that the measuring scripts keep in docs/*.json and assets/*.json.

python -m scripts.results_page           after a measuring script; they call it themselves
python -m scripts.results_page figures   also draws docs/tradeoff-N.png, which needs a browser
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd

from editing_core import charts
from editing_core.editors.stopping import perplexity_rule
from editing_core.evaluation.metrics import CARDS
from editing_core.evaluation.reference import METRICS, UNEDITED, beside
from editing_core.evaluation.tradeoff import matched, stored_curve
from editing_core.ladder import MORE, SUCCESSES, printed_row
from scripts import editors_page

ROOT = Path(__file__).resolve().parent.parent
RESULTS, TABLE1, TRADEOFF, COMPARISON, FULLSCALE, FINETUNING, PAGE = (
    ROOT / "docs" / "results.json",
    ROOT / "docs" / "table1.json",
    ROOT / "assets" / "tradeoff.json",
    ROOT / "assets" / "comparison.json",
    ROOT / "docs" / "fullscale.json",
    ROOT / "docs" / "finetuning.json",
    ROOT / "docs" / "results.md",
)
SHOWN = (
    "efficacy_accuracy",
    "efficacy_success",
    "generalization_success",
    "specificity_accuracy",
    "specificity_success",
    "score_success",
    "collapse_ppl",
    "delta_ppl",
)
REFERENCE = "off"
ITERATIONS_INTRO = """\
Model `pocket-gpt2`, disjoint trials of the `test` part of `pocket-facts`, each with a seed of its own for
prefixes, presets as bundled, conventions `clean`, protocol batch, no collapse guard, rule |delta p| <= 1
with at most ten iterations. Mean over trials, range in brackets. Rows after a trial stopped hold only the
trials that went on (n). `k` = 0 is the unedited model."""
PRINTED = [m for m in METRICS if m not in ("ppl_optimised", "ppl_spread")]  # the columns of the paper's Table 1
LARGE = {"pocket-gpt2": "gpt2-xl", "pocket-llama": "llama-2-7b", "pocket-gptj": "gpt-j-6b"}
TABLE1_INTRO = """\
The editors of "Resolving UnderEdit & OverEdit" (arXiv:2503.11895), each repeated on its own result until
|delta p| <= 1, on three architectures that know the same facts. {trials} disjoint trials of {count} records of the
`test` part of `pocket-facts`, each with a seed of its own for prefixes, presets as bundled, conventions `clean`,
protocol batch, no collapse guard. ROME writes the records of a trial one after the other, as in the paper, and at
most {rome} times, the others at most {most} times. Means over trials at the first iteration and where each trial
ended; k lists where, and in how many the rule was met unless in all. In italics what the paper prints for the large
model of the architecture: 1,000 records of CounterFact, three trials, first iteration and the one that meets the
rule. Its perplexities are of other texts."""
TRADEOFF_INTRO = """\
MEMIT with the bundled preset on the same records, a fixed number of iterations. Neighbor accuracy (answered
as before the edit) where each method reaches 80, 90 and 95 % efficacy success, interpolated over k;
difference to no assistance with its paired standard error over records. Whatever may assist a record is
measured in none. Controls: random known facts in the neighbors' place; for subject statistics, the same
amount of protection from all tokens. Others: accuracy on up to 200 unrelated known facts at that efficacy."""

FULLSCALE_INTRO = """\
{edits:,} records of `pocket-facts:all` at once, {iterations} iterations of MEMIT without a stopping rule, entered
in the Benchmark tab in headless Chromium on the same two cores as page and worker. From pressing Start until
the last point was drawn: {seconds:,} s. The worker's own clock: {run_seconds:,} s, {edit_seconds:,} s of them
editing, the rest measuring. Most memory: {worker_mb:,} MB in the worker, {page_mb:,} MB in the page's process.
Presets were chosen on a third of these records, so the rows tell what a run of this size does, not how good
the preset is."""

FINETUNING_INTRO = """\
Model `pocket-gpt2`, test part of `pocket-facts`, seed 0, preset as bundled with the recipe on top, one
iteration from the unedited model for each recipe. Every recipe sees its examples equally often, so one with
more examples takes more steps. Success counts an object that beats the other one, accuracy the first answer.
In italics what the paper prints for CounterFact. Fluency and
consistency are of texts after two prompts per record. Seconds are those of the edit, finding what is trained
beside the facts included, with {threads} threads on two cores."""


def write() -> None:
    """Put the page together from what was measured."""
    lines = ["# Measured results", "", *_iterations(_read(RESULTS)), *_table1(_read(TABLE1))]
    lines += _tradeoff(_read(TRADEOFF)) + _finetuning(_read(FINETUNING)) + editors_page.section(COMPARISON)
    lines += _fullscale(_read(FULLSCALE))
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _iterations(results: dict[str, dict]) -> list[str]:
    """Mean over trials with the range, per k, for every case."""
    lines = [*ITERATIONS_INTRO.splitlines(), "", "    python -m scripts.measure_results"]
    for case in results.values():
        runs = case["runs"]
        lines += ["", f"## {case['title']}", ""]
        lines.append(f"{len(runs)} trials; stopped at k = {', '.join(str(r['k']) for r in runs)}.")
        lines += ["", f"| k | n | {' | '.join(SHOWN)} |", f"|{'---|' * (len(SHOWN) + 2)}"]
        for k in range(max(r["k"] for r in runs) + 1):
            rows = [r["rows"][k] for r in runs if r["k"] >= k]
            lines.append(f"| {k} | {len(rows)} | {' | '.join(_cell([row.get(c) for row in rows]) for c in SHOWN)} |")
        ends = [r["rows"][r["chosen"]] for r in runs]
        lines.append(f"| stop | {len(ends)} | {' | '.join(_cell([row.get(c) for row in ends]) for c in SHOWN)} |")
    return lines


def _cell(values: list[float | None]) -> str:
    numbers = [v for v in values if v is not None]
    if not numbers:
        return ""
    mean = sum(numbers) / len(numbers)
    low, high = min(numbers), max(numbers)
    spread = f" ({low:.4g} to {high:.4g})" if high > low else ""
    return f"{mean:.4g}{spread}"


def _table1(stored: dict[str, dict[str, dict]]) -> list[str]:
    """A table for each architecture; nothing before one was measured."""
    if not stored:
        return []
    cells = next(iter(stored.values()))
    count, runs = (next(iter(cells.values()))[name] for name in ("count", "runs"))
    most = {editor: cell["iterations"] for editor, cell in cells.items()}
    told = TABLE1_INTRO.format(trials=len(runs), count=count, rome=most.get("rome"), most=max(most.values()))
    lines = ["", "## The paper's Table 1 in miniature", "", *told.splitlines(), ""]
    lines.append("    python -m scripts.measure_table1")
    for model, editors in stored.items():
        lines += ["", f"### {model}, beside {LARGE[model]}", ""]
        lines += [f"| editor | k | {' | '.join(PRINTED)} |", f"|{'---|' * (len(PRINTED) + 2)}"]
        lines.append(_means("unedited", "0", [run["rows"][0] for run in next(iter(editors.values()))["runs"]]))
        for editor, cell in editors.items():
            lines += _ends(editor.upper(), [run["rows"] for run in cell["runs"]])
            lines += _published(LARGE[model], editor)
    return lines


def _ends(label: str, trials: list[list[dict]]) -> list[str]:
    """The first iteration and, where a trial went on, the last ones."""
    lines = [_means(label, "1", [rows[1] for rows in trials])]
    if any(len(rows) > 2 for rows in trials):
        places = ", ".join(str(rows[-1]["k"]) for rows in trials)
        met = sum(perplexity_rule(rows) is not None for rows in trials)
        missed = "" if met == len(trials) else f" (met in {met} of {len(trials)})"
        lines.append(_means(label, places + missed, [rows[-1] for rows in trials]))
    return lines


def _published(model: str, editor: str) -> list[str]:
    """The paper's first iteration, and the one that meets its rule, in italics."""
    rows = [row for row in beside(model, editor, "counterfact").to_dict("records") if row["editor"] != UNEDITED]
    found = perplexity_rule(rows)
    ends = [row for row in rows if row["k"] in (1, found.k if found else 1)]
    cells = [[f"*{row[m]:.4g}*" if pd.notna(row[m]) else "" for m in PRINTED] for row in ends]
    return [
        f"| *{editor.upper()}, paper* | *{row['k']}* | {' | '.join(own)} |"
        for row, own in zip(ends, cells, strict=True)
    ]


def _means(label: str, k: str, rows: list[dict]) -> str:
    known = [[row[m] for row in rows if row.get(m) is not None] for m in PRINTED]
    cells = [f"{sum(values) / len(values):.4g}" if values else "" for values in known]
    return f"| {label} | {k} | {' | '.join(cells)} |"


def _tradeoff(stored: dict[str, dict[str, list[dict]]]) -> list[str]:
    """Every method at matched efficacy, and its figure."""
    lines = ["", "## Specificity at matched efficacy", "", *TRADEOFF_INTRO.splitlines(), ""]
    lines += [f"    python -m scripts.measure_tradeoff {count}" for count in (100, 300)]
    for count, methods in sorted(stored.items(), key=lambda item: int(item[0])):
        if REFERENCE not in methods:
            continue
        order = [REFERENCE, *(name for name in methods if name != REFERENCE)]
        curves = {name: stored_curve(methods[name]) for name in order}
        trials = max(len(t) for t in methods.values())
        lines += ["", f"### N = {count}, {trials} trial{'s' if trials > 1 else ''}", ""]
        if (ROOT / "docs" / f"tradeoff-{count}.png").is_file():
            lines += [f"![Specificity against efficacy, N = {count}](tradeoff-{count}.png)", ""]
        lines += ["| method | efficacy | at k | neighbors | difference | paraphrases | others |", f"|{'---|' * 7}"]
        for row in matched(curves, REFERENCE).to_dict("records"):
            lines.append(_line(row, methods[row["method"]]))
    return lines


def _line(row: dict, trials: list[dict]) -> str:
    if row["k"] is None or pd.isna(row["k"]):
        return f"| {row['method']} | {row['efficacy']:g} | not reached | | | | |"
    low = int(row["k"])
    share = row["k"] - low
    others = [(1 - share) * t["others"][low] + share * t["others"][min(low + 1, len(t["others"]) - 1)] for t in trials]
    gap = "" if row["method"] == "off" else f"{row['difference']:+.1f} ± {row['se']:.1f}"
    return (
        f"| {row['method']} | {row['efficacy']:g} | {row['k']:.2f} | {row['specificity']:.1f} | {gap} "
        f"| {row['generalization']:.1f} | {sum(others) / len(others):.1f} |"
    )


def _finetuning(found: dict[str, dict]) -> list[str]:
    """The ladder and what stands beside it, for records edited at once and alone."""
    if not found:
        return []
    threads = next(iter(found.values()))["threads"]
    lines = [
        "",
        "## Fine-tuning: what each ingredient buys",
        "",
        *FINETUNING_INTRO.format(threads=threads).splitlines(),
    ]
    lines += ["", "    python -m scripts.measure_finetuning", "    python -m scripts.measure_finetuning --alone 12"]
    heads = {"together": "### {} records at once", "alone": "### {} records, each alone, means"}
    for key, head in heads.items():
        if key in found:
            lines += ["", head.format(found[key]["edits"]), "", *_ladder(found[key]["rows"], key == "alone")]
    return lines


def _ladder(rows: list[dict], alone: bool) -> list[str]:
    columns = [c for c in (*SUCCESSES, "score_accuracy", *MORE) if any(row[c] is not None for row in rows)]
    labels = [CARDS[c].label for c in columns]
    lines = [f"| recipe | {' | '.join(labels)} | seconds |", f"|{'---|' * (len(columns) + 2)}"]
    for row in rows:
        cells = ["" if row[c] is None else f"{row[c]:.4g}" for c in (*columns, "seconds")]
        lines.append(f"| {row['recipe']} | {' | '.join(cells)} |")
        told, printed = printed_row(row["recipe"], alone)
        if printed:
            cells = [f"*{printed[c]:.1f}*" if c in printed else "" for c in (*columns, "seconds")]
            lines.append(f"| *{told}* | {' | '.join(cells)} |")
    return lines


def _fullscale(found: dict) -> list[str]:
    """The run through the page; nothing before it was measured."""
    if not found:
        return []
    told = FULLSCALE_INTRO.format(**found)
    lines = ["", "## A full-scale run through the page", "", *told.splitlines(), ""]
    lines += ["    python -m scripts.measure_fullscale", ""]
    lines += [f"| k | {' | '.join(SHOWN)} |", f"|{'---|' * (len(SHOWN) + 1)}"]
    return lines + [f"| {row['k']} | {' | '.join(_cell([row[c]]) for c in SHOWN)} |" for row in found["rows"]]


def draw() -> None:
    """docs/tradeoff-N.png, as the page draws it, by a headless browser."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as play, tempfile.TemporaryDirectory() as folder:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        sheet = browser.new_page(viewport={"width": 900, "height": 460})
        for count, methods in _read(TRADEOFF).items():
            figure = charts.tradeoff({name: stored_curve(trials) for name, trials in methods.items()}, f"N = {count}")
            figure.update_layout(paper_bgcolor="white")
            place = Path(folder) / "figure.html"
            figure.write_html(place, include_plotlyjs=True)
            sheet.goto(place.as_uri())
            sheet.locator(".js-plotly-plot").wait_for()
            sheet.screenshot(path=ROOT / "docs" / f"tradeoff-{count}.png")
        browser.close()


if __name__ == "__main__":
    if sys.argv[1:] == ["figures"]:
        draw()
    write()
