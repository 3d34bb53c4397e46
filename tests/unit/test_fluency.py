"""Entropy of word pairs and triples, worked out by hand."""

import math

import pytest

from editing_core.errors import BadRequest
from editing_core.evaluation.fluency import entropy, fluency


def test_entropy_by_hand():
    words = ["a", "b", "a", "b"]
    assert entropy(words, 1) == pytest.approx(1)
    assert entropy(words, 2) == pytest.approx(math.log2(3) - 2 / 3)  # ab twice, ba once
    assert entropy(words, 3) == pytest.approx(1)


@pytest.mark.parametrize("words", [[], ["a"], ["a", "b"]])
def test_no_triples_no_entropy(words):
    assert entropy(words, 3) == 0.0


def test_fluency_by_hand():
    first = (2 / 3 * (math.log2(3) - 2 / 3) + 4 / 3 * 1) / 2
    assert fluency(["a b a b"]) == pytest.approx(100 * first)
    second = (2 / 3 * math.log2(3) + 4 / 3 * 1) / 2  # three pairs, two triples, all different
    assert fluency(["a b a b", "a b c d"]) == pytest.approx(100 * (first + second) / 2)


@pytest.mark.parametrize("text", ["", "one", "one two", "the the the the the"])
def test_short_or_looping_texts_have_none(text):
    assert fluency([text]) == 0.0


def test_without_texts_it_is_refused():
    with pytest.raises(BadRequest, match="at least one"):
        fluency([])


def test_words_are_those_of_the_treebank():
    # do + n't, and the final stop and the comma apart: yes , I do n't .
    assert fluency(["Yes, I don't."]) == pytest.approx(fluency(["a b c d e f"]))
    assert fluency(["Yes, I don't."]) != pytest.approx(fluency(["a b c"]))


def test_repetition_lowers_it():
    assert fluency(["the cat sat on the cat sat on the cat sat on"]) < fluency(["a b c d e f g h i j k l"])
