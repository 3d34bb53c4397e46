"""Measure what neighbor assistance and protected keys do to neighbors at matched efficacy.

    python -m scripts.measure_tradeoff 100           every method, trials that are stored are not measured again
    python -m scripts.measure_tradeoff 300 off NA    some methods only

All methods edit the same records of pocket-facts with MEMIT's preset, a fixed number of iterations. Three known
neighbors of every record are set apart, whatever the method: nothing that may assist any record, by prompt
or by subject, is measured. Controls put random known facts in the neighbors' place, or as much protection
from all tokens in the place of the subjects'. Writes assets/tradeoff.json (the page shows it) and
docs/results.md.
"""

import json
import logging
import sys
from dataclasses import dataclass, replace

from editing_core.data.datasets import load_dataset, sample
from editing_core.data.subjects import known_facts
from editing_core.editors.assist import Assist
from editing_core.editors.stopping import StopSettings
from editing_core.evaluation.eligibility import eligibility, with_controls, with_edit_neighbors
from editing_core.evaluation.evaluator import Evaluator
from editing_core.evaluation.tradeoff import Curve
from editing_core.models.language_model import LanguageModel
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import run_edit
from editing_core.types import EditRequest
from scripts import results_page

ITERATIONS = 3  # enough for 95 % efficacy
APART = 3  # known neighbors set apart per record
TRIALS = {100: 2, 300: 1}
OTHERS, STRIDE = 200, 7  # other known facts about nobody edited or measured: how many, taking every seventh
log = logging.getLogger("tradeoff")


@dataclass(frozen=True)
class Method:
    """One line of the comparison. count: how many of the neighbors set apart assist. control: random facts do."""

    assist: Assist
    count: int = 1
    control: bool = False


METHODS = {
    "off": Method(Assist()),
    "NA": Method(Assist(neighbors="na")),
    "NA, paper's weight 1": Method(Assist(neighbors="na", weighting="paper")),
    "NA, paper's weight 1/3": Method(Assist(neighbors="na", weighting="paper", weight=1 / 3)),
    "NAP": Method(Assist(neighbors="nap")),
    "NA, control": Method(Assist(neighbors="na"), control=True),
    "NAP, control": Method(Assist(neighbors="nap"), control=True),
    "neighbor keys": Method(Assist(keys=1.0, count=APART), APART),
    "neighbor keys, control": Method(Assist(keys=1.0, count=APART), APART, control=True),
    "NA + neighbor keys": Method(Assist(neighbors="na", keys=1.0, count=APART), APART),
    "subject statistics": Method(Assist(statistics="subjects")),
    "subject statistics, control": Method(Assist(statistics="scaled")),
}


def chosen(lm: LanguageModel, count: int, trial: int) -> list[EditRequest]:
    """The records of a trial, each with the neighbors set apart as its edit neighbors."""
    requests = sample(load_dataset("pocket-facts"), count, trial)
    return list(with_edit_neighbors(requests, eligibility(lm, requests), APART))


def assisting(requests: list[EditRequest], method: Method) -> list[EditRequest]:
    """The records as a method sees them: what is measured is the same for all."""
    cut = [replace(r, edit_neighbors=r.edit_neighbors[: method.count]) for r in requests]
    if not method.assist.uses_neighbors:
        return [replace(r, edit_neighbors=()) for r in requests]
    return list(with_controls(cut, known_facts(seed=1))) if method.control else cut


def other_facts(requests: list[EditRequest]) -> EditRequest:
    """Known facts that have nothing to do with any record, as the neighbors of one made-up request."""
    texts = "\n".join(text for r in requests for text in r.texts)
    free = [f for f in known_facts(seed=2)[::STRIDE] if f.subject and f.subject not in texts][:OTHERS]
    return replace(requests[0], case_id="others", neighbors=tuple(free), edit_neighbors=(), paraphrases=())


def measure(lm: LanguageModel, requests: list[EditRequest], method: Method, seed: int) -> dict[str, object]:
    """A method's curve on some records, as plain numbers, and what became of other facts."""
    row = editor_row("memit")
    stop = StopSettings(iterations=ITERATIONS, stop="none", collapse_factor=0.0)
    plan = EditPlan("memit", row.preset(lm.name).settings, stop, seed, method.assist)
    run = run_edit(lm, assisting(requests, method), plan)
    curve, others, evaluator = Curve.of(run.probes), other_facts(requests), Evaluator()
    before, kept = evaluator.score(lm, [others]), []
    for k in range(run.last + 1):
        with run.delta_at(k).applied(lm) as edited:
            now = evaluator.score(edited, [others])
        here = (before["kind"] == "neighbor") & (before["hit_true"] >= 1)
        kept.append(100 * float((now["hit_true"][here] >= 1).mean()))
    return {
        "efficacy": curve.efficacy.tolist(),
        "generalization": curve.generalization.tolist(),
        "others": kept,
        "records": {str(case): list(values) for case, values in curve.records.T.to_dict("list").items()},
        "delta_ppl": run.iterations["delta_ppl"].tolist()[1:],
        "seconds": run.seconds,
    }


def _rounded(value: object) -> object:
    """The same with four decimals: the file is bundled."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def stored_file() -> dict[str, dict[str, list[object]]]:
    """What was measured so far: trials by number of records and method."""
    file = results_page.TRADEOFF
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def stored_trials(count: int, name: str) -> list[object]:
    """The trials of a method that were measured already."""
    return stored_file().get(str(count), {}).get(name, [])


def main() -> None:
    """Measure the named methods, or all, for one number of records."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    count, names = int(sys.argv[1]), sys.argv[2:] or list(METHODS)
    lm = LanguageModel.load("pocket-gpt2")
    for name in names:
        for trial in range(len(stored_trials(count, name)), TRIALS.get(count, 1)):
            found = measure(lm, chosen(lm, count, trial), METHODS[name], trial)
            log.info("N = %d, %s, trial %d: %.0f s", count, name, trial, found["seconds"])
            stored = stored_file()
            stored.setdefault(str(count), {}).setdefault(name, []).append(_rounded(found))
            results_page.TRADEOFF.write_text(json.dumps(stored) + "\n", encoding="utf-8")
            results_page.write()


if __name__ == "__main__":
    main()
