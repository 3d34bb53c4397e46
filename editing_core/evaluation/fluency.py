"""Fluency of generated texts: the entropy of their word pairs and triples. A model that loops scores low.

Source: ROME (arXiv:2202.05262), there GE. Its code splits a text into sentences before it splits words, with
a model that would have to be downloaded; here a full stop inside a text stays with its word.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from math import log2

from editing_core.errors import BadRequest

WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # weight of the entropy of n-grams, by n; the sum is then halved


@cache
def _words() -> Callable[[str], list[str]]:
    from nltk.tokenize import NLTKWordTokenizer  # here, because the import takes a second

    tokenize: Callable[[str], list[str]] = NLTKWordTokenizer().tokenize
    return tokenize


def entropy(words: Sequence[str], n: int) -> float:
    """Shannon entropy, in bits, of the n-grams of one text; 0.0 where it has none."""
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    total = counts.total()
    return sum(count / total * log2(total / count) for count in counts.values())


def fluency(texts: Sequence[str]) -> float:
    """100 x the mean over texts of (2/3 H2 + 4/3 H3) / 2, Hn in bits; BadRequest without texts.

    texts: generated texts, each with the prompt it began with. The value grows with a text's length, so only
    texts generated to the same length can be compared.
    """
    if not texts:
        raise BadRequest("No text was given, fluency needs at least one; generate some first.")
    split = [_words()(text) for text in texts]
    values = [sum(weight * entropy(words, n) for n, weight in WEIGHTS.items()) / 2 for words in split]
    return 100 * sum(values) / len(values)
