"""What every editor needs: a small text to measure keys on, and a store for the statistics."""

import pytest

from editing_core import paths
from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.covariance import Corpus, CovarianceStore


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
