"""What every editor needs: a small text to measure keys on, and a store for the statistics."""

from dataclasses import fields

import pytest
import torch

from editing_core import paths
from editing_core.editors.materials import Alike, Materials
from editing_core.editors.row import BATCH
from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.stopping import StopSettings
from editing_core.evaluation.evaluator import Evaluator
from editing_core.models.delta import WeightDelta
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.statistics.covariance import Corpus, CovarianceStore
from editing_core.types import EditRequest, Probe

LAYERS = (0, 1)
# What random models need for a few facts; each editor takes what it has a setting for.
SMALL = {"steps": 3, "rate": 0.3, "relative_rate": True, "clamp": 2.0, "layers": LAYERS, "layer": 1}
SMALL |= {"covariance_weight": 1.0, "covariance_floor": 1e-3, "threshold": 0.5, "relative": True, "ridge": 0.1}
# What training needs instead: an adapter of rank 2 on the down-projections of two layers.
TRAINED = {"where": "down", "rank": 2, "alpha": 4.0, "rate": 1e-2, "epochs": 4, "paraphrases": 2, "random_facts": 0}
OWN = {
    "finetuning": TRAINED,
    "ike": {"demonstrations": 2, "room": 20},
    "kn": {"points": 5, "threshold": 0.2},
    "t-patcher": {"memory": 20, "steps": 12, "first_look": 6, "look_every": 6, "rate": 3e-2},
    "calinet": {"neurons": 8, "contexts": 1, "random_facts": 2, "similar_facts": 0, "steps": 12, "rate": 3e-2},
    "grace": {"radius": 1e-3, "rate": 1.0, "steps": 12},
    "swea": {"steps": 6, "rate": 0.5, "clamp": 4.0, "kl_factor": 0.0, "decay": 0.0, "points": 5, "threshold": 0.35},
}


def same_edit(here, there):
    """Both runs have the same last edit, to the precision of sums in another order."""
    one, other = (run.delta_at(run.last) for run in (here, there))
    assert not other.empty
    found, wanted = as_numbers(one), as_numbers(other)
    assert found.keys() == wanted.keys()
    assert found or one.facts() == other.facts()
    for name, tensor in wanted.items():
        own = found[name].to(tensor)
        torch.testing.assert_close(own, tensor, atol=2e-3 * float(tensor.abs().max()) + 1e-30, rtol=0)


def as_numbers(edit):
    """Updates of weights as matrices, whose factors may be others; else what an edit keeps."""
    if isinstance(edit, WeightDelta):
        return {name: update.dense() for name, update in edit.updates.items()}
    return {name: tensor.double() for name, tensor in edit.tensors().items()}


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


def small(editor, **more):
    """Settings of an editor for random models, and `more` where it has such."""
    row = editor_row(editor)
    known = {f.name for f in fields(row.settings_class)}
    wanted = {**SMALL, **OWN.get(editor, {}), **more}
    return row.settings_class().changed({name: value for name, value in wanted.items() if name in known})


HOME = (("Anna", "Rome"), ("Ben", "Rome"), ("Carl", "Oslo"), ("Dora", "Oslo"), ("Emil", "Kyiv"), ("Fay", "Kyiv"))
KNOWN = [Probe(f"{name} lives in", city, name, family="home") for name, city in HOME]  # facts that should stay


def by_words(asked, known, count, _own):
    """Alike: the share of words two texts have in common."""

    def cosine(a, b):
        one, other = set(a.split()), set(b.split())
        return len(one & other) / len(one | other)

    order = [sorted(range(len(known)), key=lambda n: -cosine(text, known[n]))[:count] for text in asked]
    cosines = [[cosine(text, known[n]) for n in row] for text, row in zip(asked, order, strict=True)]
    return Alike(order, cosines, "Alike are facts that share words.")


def materials(lm, store, corpus, requests=(), seed=0, **more):
    """All that any editor is built from."""
    return Materials(lm, store, corpus, seed, requests=requests, facts=lambda: KNOWN, alike=by_words, **more)


def asked_of(editor, requests):
    """As many requests as an editor takes at once."""
    return requests[:1] if BATCH in editor_row(editor).cannot else requests


def plan(editor="memit", seed=0, **stop):
    settings = small(editor)
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
