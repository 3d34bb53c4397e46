"""TF-IDF cosine of texts with their references, by hand where the words allow it."""

import json
import math

import pytest

from editing_core.errors import BadRequest
from editing_core.evaluation.consistency import References, bundled_references, consistency, read_references

SMALL = References({("P1", "x"): ("red apple",), ("P1", "y"): ("green apple", "green pear")})


def test_by_hand():
    # IDF of scikit-learn: ln((1 + texts) / (1 + texts with the word)) + 1, with 3 texts.
    once, twice = math.log(4 / 2) + 1, math.log(4 / 3) + 1
    reference = {"red": once, "apple": twice}
    length = math.hypot(*reference.values())
    assert consistency(["red"], SMALL, ("P1", "x")) == pytest.approx(100 * once / length)
    assert consistency(["apple"], SMALL, ("P1", "x")) == pytest.approx(100 * twice / length)


def test_equal_texts_and_texts_without_a_common_word():
    assert consistency(["apple", "RED"], SMALL, ("P1", "x")) == pytest.approx(100)  # joined; order does not count
    assert consistency(["green pear"], SMALL, ("P1", "x")) == 0.0
    assert consistency(["never heard"], SMALL, ("P1", "x")) == 0.0


def test_references_of_one_object_are_joined():
    both = consistency(["green apple green pear"], SMALL, ("P1", "y"))
    assert both == pytest.approx(100)
    assert consistency(["green apple"], SMALL, ("P1", "y")) < 99


def test_missing_without_texts_or_references():
    assert consistency([], SMALL, ("P1", "x")) is None
    assert consistency(["red"], SMALL, ("P1", "z")) is None
    assert consistency(["red"], SMALL, ("P2", "x")) is None


def test_references_without_words_are_refused():
    with pytest.raises(BadRequest, match="no words"):
        References({})
    with pytest.raises(BadRequest, match="no words"):
        References({("P1", "x"): ("", "!")})


def test_bundled_references_tell_objects_apart():
    references = bundled_references()
    spoken = ("P1412", "French")
    assert all(text.endswith("French") for text in references.texts[spoken])
    text = ["She speaks French and wrote her letters in French"]
    right = consistency(text, references, spoken)
    assert right > consistency(text, references, ("P1412", "Russian"))
    assert right > consistency(text, references, ("P27", "Canada"))
    assert bundled_references() is references


def test_bundled_references_hold_every_subject_in_every_form():
    texts = bundled_references().texts[("P937", "Boston")]
    about = [text for text in texts if "James Michael Curley" in text]
    others = [text for text in texts if "Althea Garrison" in text]
    assert len(about) == len(others) > 10
    assert not [text for text in texts if "{}" in text]
    assert not [text for text in bundled_references().texts[("P1412", "French")] if "James Michael Curley" in text]


def entry(relation="P1", target="Q1", *texts):
    return {"relation_id": relation, "target_id": target, "samples": [{"text": t, "name": "n"} for t in texts]}


def written(path, content):
    file = path / "snippets.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_reads_snippets(tmp_path):
    rows = [entry("P1", "Q1", "red apple"), entry("P1", "Q2", "pear"), entry("P1", "Q1", "plum"), entry("P2", "Q1")]
    references = read_references(written(tmp_path, rows))
    assert references.texts == {("P1", "Q1"): ("red apple", "plum"), ("P1", "Q2"): ("pear",)}
    assert consistency(["pear"], references, ("P1", "Q2")) == pytest.approx(100)
    assert consistency(["pear"], references, ("P2", "Q1")) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"P1": {"Q1": []}}, "holds a dict, not a list"),
        ([entry("P1", "Q1", "red"), ["P1"]], "Entry 1 .* is a list"),
        ([{"target_id": "Q1", "samples": []}], "needs relation_id and target_id"),
        ([{"relation_id": "P1", "target_id": 1, "samples": []}], "needs relation_id and target_id"),
        ([{"relation_id": "P1", "target_id": "Q1"}], "needs samples"),
        ([{"relation_id": "P1", "target_id": "Q1", "samples": ["red"]}], "a sample without a text"),
        ([{"relation_id": "P1", "target_id": "Q1", "samples": [{"text": None}]}], "a sample without a text"),
        ([entry("P1", "Q1")], "no words"),
        ([], "no words"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    with pytest.raises(BadRequest, match=message):
        read_references(written(tmp_path, content))


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(BadRequest, match="cannot be read"):
        read_references(tmp_path / "missing.json")
    (tmp_path / "bad.json").write_text("[{", encoding="utf-8")
    with pytest.raises(BadRequest, match="cannot be read"):
        read_references(tmp_path / "bad.json")
