"""What every editor needs: a small text to measure keys on, and a store for the statistics."""

import pytest

from editing_core import paths
from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.stopping import StopSettings
from editing_core.evaluation.evaluator import Evaluator
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.statistics.covariance import Corpus, CovarianceStore
from editing_core.types import EditRequest, Probe

LAYERS = (0, 1)
SMALL = {"steps": 3, "rate": 0.3, "relative_rate": True, "clamp": 2.0, "layers": LAYERS}
OWN = {
    "memit": {**SMALL, "covariance_weight": 1.0, "covariance_floor": 1e-3},
    "alphaedit": {**SMALL, "threshold": 0.5, "relative": True, "ridge": 0.1},
    "rome": {**{k: v for k, v in SMALL.items() if k != "layers"}, "layer": 1, "covariance_floor": 1e-3},
}
# What training needs instead: an adapter of rank 2 on the down-projections of two layers.
TRAINED = {"where": "down", "rank": 2, "alpha": 4.0, "rate": 1e-2, "epochs": 4, "paraphrases": 2, "random_facts": 0}
EVALUATOR = Evaluator(("The weather was fine, and therefore we went home.", "The river runs through the old city."))


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """Enough sentences for more tokens than any tiny model has key dimensions."""
    lines = (paths.assets() / "models" / "pocket-gpt2" / "corpus.txt").read_text(encoding="utf-8").splitlines()
    return Corpus("small", tuple(line[:200] for line in lines if line)[:40])


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> CovarianceStore:
    return CovarianceStore(tmp_path_factory.mktemp("statistics"))


@pytest.fixture
def contexts() -> Contexts:
    return Contexts.grouped(("The weather was fine. {}", "Therefore we went home. {}"))


def plan(editor="memit", seed=0, **stop):
    settings = editor_row(editor).settings_class().changed(OWN[editor])
    return EditPlan(editor, settings, StopSettings(**{"iterations": 2, "stop": "none", **stop}), seed)


@pytest.fixture(scope="module")
def facts():
    """Four edits: different lengths, with and without paraphrases and neighbors, numbers and text as case_id."""
    return (
        EditRequest(
            "Mary Walker",
            "{} was born in",
            "London",
            "Paris",
            ("The birthplace of Mary Walker is", "Mary Walker comes from"),
            (Probe("Peter Smith was born in", "Paris"), Probe("The river runs through", "Paris")),
            case_id=11,
        ),
        EditRequest(
            "The old bridge over the river",
            "Everybody knows that {} was built by",
            "the French",
            "German",
            ("The builder of the old bridge over the river was",),
            (Probe("The new tower was built by", "German"),),
            case_id="two",
        ),
        EditRequest("Anna Brown", "{} plays the", "guitar", "piano", case_id=3),
        EditRequest(
            "John Stone", "The mother tongue of {} is", "French", "English", ("John Stone speaks",), case_id=40
        ),
    )


@pytest.fixture(scope="module")
def statistics(tmp_path_factory, tiny_models, corpus):
    """A store that has statistics of the tiny model."""
    store, lm = CovarianceStore(tmp_path_factory.mktemp("protocols")), tiny_models("gpt2")
    store.remember(lm, corpus)
    store.collect(lm, list(LAYERS), corpus)
    return store
