"""Runs of every schema there ever was stay readable; `samples/run-schema-N` is a real run of two records each."""

from pathlib import Path

import pytest

from editing_core.bench.config import RunConfig
from editing_core.bench.index import Index, entry_of
from editing_core.bench.report import report
from editing_core.bench.stored import read_cases, read_finished, read_result
from editing_core.errors import BadRequest
from editing_core.runs.bundle import pack, unpack
from editing_core.runs.folder import RunFolder
from editing_core.runs.record import SCHEMA
from editing_core.runs.tables import layout, markdown

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
FIRST = 2  # runs were first stored as folders with this one
WITH_RECORDS = RunFolder(SAMPLES / "run-schema-2-records")  # later runs of this schema keep their records as well
ALL = [WITH_RECORDS, *(RunFolder(SAMPLES / f"run-schema-{number}") for number in range(FIRST, SCHEMA + 1))]


@pytest.mark.parametrize("folder", ALL, ids=lambda folder: folder.id)
def test_a_sample_is_listed_shown_compared_and_carried(folder, tmp_path):
    entry = entry_of(folder.id, folder.head())
    assert (entry.status, entry.n_edits, entry.model) == ("done", 2, "pocket-gpt2")
    run = read_finished(folder)
    assert run.last == 2
    assert run.probes is not None
    assert "pocket-facts" in markdown(layout([run]))
    assert "Plotly.newPlot" in report([run], [folder.head()])
    pack(folder.path, tmp_path / "run.zip")
    unpack(tmp_path / "run.zip", tmp_path / "runs", "imported-run")
    assert [found.id for found in Index(tmp_path / "runs").entries()] == ["imported-run"]
    cases, chosen = read_cases(folder)
    assert (len(cases), chosen) == (4, 2)


@pytest.mark.parametrize("folder", ALL, ids=lambda folder: folder.id)
def test_a_sample_is_found_again_by_whoever_asks_for_the_same(folder):
    """A key is made of what was stored: fields that came later must not change it."""
    stored = folder.head()["config"]
    config = RunConfig.of(stored)
    assert config.to_json() == stored
    assert config.key == "f884a21b55410af1"
    assert (config.recipe, read_finished(folder).recipe) == ("", "")
    assert config.name == "pocket-gpt2, memit, pocket-facts, trial 0, N 2, iterations 2, stop none, steps 6"


def test_a_sample_with_records_opens():
    run = read_result(WITH_RECORDS)
    assert [request.case_id for request in run.requests] == [454, 1008]
    assert (run.last, run.chosen, len(run.histories[1]), len(run.proofs[1])) == (2, 2, 6, 4)
    assert all(run.verdict(request.case_id).label for request in run.requests)


def test_an_older_sample_says_what_it_lacks():
    with pytest.raises(BadRequest, match=r"has no records\.json, without which its cases cannot be opened"):
        read_result(ALL[1])
