"""Published files, read whole: set EDITSCOPE_DATA to the folder that holds them."""

import os
from pathlib import Path

import pytest

from editing_core.data.datasets import load_dataset
from editing_core.data.table import read_edits, write_requests

FOLDER = os.environ.get("EDITSCOPE_DATA")
pytestmark = pytest.mark.skipif(not FOLDER, reason="EDITSCOPE_DATA names no folder of published files")

# Neighbors left for measuring, and how many are dropped because the editor uses them.
ELIGIBLE = {739: (1.37, 6), 960: (3.03, 1), 1340: (3.57, 1)}


def load(format_: str, path: str):
    loaded = load_dataset(f"{format_}:{Path(FOLDER) / path}")
    assert loaded.problems == ()
    assert len({request.case_id for request in loaded}) == len(loaded)
    return loaded


@pytest.mark.parametrize("subset", [1, 10, 15])
def test_counterfact(subset):
    loaded = load("counterfact", f"counterfact/subset_{subset}.json")
    assert len(loaded) == 1000
    for request in loaded:
        assert (len(request.paraphrases), len(request.neighbors), len(request.generation_prompts)) == (2, 10, 10)
        assert request.target_new_id.startswith("Q")
        assert request.relation_id.startswith("P")
        assert all(probe.template for probe in request.neighbors)


def test_counterfact_subsets_share_no_record():
    ids = [r.case_id for subset in (1, 10, 15) for r in load("counterfact", f"counterfact/subset_{subset}.json")]
    assert len(set(ids)) == 3000


@pytest.mark.parametrize("count", ELIGIBLE)
def test_eligible_neighbors(count):
    loaded = load("counterfact-neighbor", f"counterfact_neighbor/subset_{count}.json")
    assert len(loaded) == count
    mean, dropped = ELIGIBLE[count]
    measured = sum(len(request.neighbors) for request in loaded)
    assert round((measured + dropped) / count, 2) == mean
    for request in loaded:
        assert len(request.edit_neighbors) == 1
        assert request.edit_neighbors[0].template
        assert not {probe.prompt for probe in request.neighbors} & {probe.prompt for probe in request.edit_neighbors}
        assert all(probe.answer == request.target_true for probe in request.neighbors)


@pytest.mark.parametrize("subset", [0, 10, 15])
def test_zsre(subset):
    loaded = load("zsre", f"zsre/subset_{subset}.json")
    assert len(loaded) == 1000
    for request in loaded:
        assert (len(request.paraphrases), len(request.neighbors)) == (1, 1)
        assert request.neighbors[0].prompt.startswith("nq question: ")
        assert request.subject in request.paraphrases[0]
        assert not request.compare


@pytest.mark.parametrize(("subset", "empty"), [(0, 4), (10, 4), (15, 6)])
def test_zsre_without_an_alternative(subset, empty):
    path = Path(FOLDER) / f"zsre/subset_{subset}.json"
    loaded = load_dataset(f"zsre:{path}", skip_bad=True, direction="alt")
    assert sum("The alt is empty" in str(problem) for problem in loaded.problems) == empty
    others = [str(problem) for problem in loaded.problems if "The alt is empty" not in str(problem)]
    assert all("equals the old one" in problem for problem in others)
    assert len(loaded) + len(loaded.problems) == 1000


def test_what_is_written_is_read_back_equal(tmp_path):
    loaded = load("counterfact", "counterfact/subset_1.json")
    write_requests(loaded, tmp_path / "edits.json")
    assert read_edits(tmp_path / "edits.json") == list(loaded)
