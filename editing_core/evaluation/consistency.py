"""Consistency of generated texts: how much they read like texts about things that truly have the new object.

Source: ROME (arXiv:2202.05262), there RS: the TF-IDF cosine between the texts generated about an edited
subject and reference texts of the same relation and object.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from editing_core import paths
from editing_core.errors import BadRequest

Key = tuple[str, str]  # relation_id, and the object: its text (bundled) or its id (published files)


@dataclass(frozen=True, eq=False)
class References:
    """Reference texts by relation and object; vocabulary and IDF are those of all texts together.

    BadRequest when the texts hold no word at all.
    """

    texts: Mapping[Key, tuple[str, ...]]
    _vectorizer: Any = field(init=False, repr=False)
    _vectors: dict[Key, Any] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer  # here, because the import takes a second

        vectorizer = TfidfVectorizer()
        try:
            vectorizer.fit(chain.from_iterable(self.texts.values()))
        except ValueError as error:
            raise BadRequest("The reference texts hold no words; give at least one text with words.") from error
        object.__setattr__(self, "_vectorizer", vectorizer)

    def vector(self, texts: Sequence[str]) -> Any:
        """The texts joined into one, as a sparse (1, words) row of unit length; all zero without a known word."""
        return self._vectorizer.transform([" ".join(texts)])

    def reference(self, key: Key) -> Any:
        """The row of a key's reference texts, made once. KeyError for a key without texts."""
        if key not in self._vectors:
            self._vectors[key] = self.vector(self.texts[key])
        return self._vectors[key]


def consistency(texts: Sequence[str], references: References, key: Key) -> float | None:
    """100 x the cosine, from 0 to 100, of the texts joined and the key's references joined.

    None without texts, or where there is no reference for the key. 0.0 where no word of the texts is known.
    """
    if not texts or not references.texts.get(key):
        return None
    return 100 * float((references.vector(texts) @ references.reference(key).T).sum())


@cache
def bundled_references() -> References:
    """References of the bundled relations, by (relation_id, object text).

    One sentence for every subject that has the object and every form of the relation, as "Boston is located
    in Massachusetts". Far plainer than encyclopedia texts: values cannot be compared with published ones.
    """
    folder = paths.assets() / "facts"
    relations = json.loads((folder / "templates.json").read_text(encoding="utf-8"))
    texts: dict[Key, list[str]] = {}
    for line in (folder / "facts.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        relation, subject, object_ = line.split("\t")[:3]
        sentences = [f"{form.replace('{}', subject)} {object_}" for form in relations[relation]["forms"]]
        texts.setdefault((relation, object_), []).extend(sentences)
    return References({key: tuple(sentences) for key, sentences in texts.items()})


def read_references(path: Path) -> References:
    """References from a file of attribute snippets, by (relation_id, target_id).

    The file is a JSON list of `{"relation_id": text, "target_id": text, "samples": [{"text": text, ...}, ...]}`;
    further fields are ignored, entries of the same key are joined, samples may be empty. Anything else is a
    BadRequest that names the entry.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadRequest(f"The reference file {path} cannot be read ({error}); give a JSON file.") from error
    if not isinstance(entries, list):
        raise BadRequest(f"The reference file {path} holds a {type(entries).__name__}, not a list; correct it.")
    texts: dict[Key, tuple[str, ...]] = {}
    for number, entry in enumerate(entries):
        key, samples = _entry(entry, f"Entry {number} of {path}")
        texts[key] = texts.get(key, ()) + samples
    return References({key: samples for key, samples in texts.items() if samples})


def _entry(entry: object, where: str) -> tuple[Key, tuple[str, ...]]:
    """Key and texts of one entry, checked."""
    if not isinstance(entry, dict):
        raise BadRequest(f"{where} is a {type(entry).__name__}, not an object with relation_id, target_id and samples.")
    relation, target, samples = (entry.get(name) for name in ("relation_id", "target_id", "samples"))
    if not (isinstance(relation, str) and relation and isinstance(target, str) and target):
        raise BadRequest(f"{where} needs relation_id and target_id as text; add them.")
    if not isinstance(samples, list):
        raise BadRequest(f"{where} needs samples as a list of objects with a text; add it.")
    texts = [sample.get("text") if isinstance(sample, dict) else None for sample in samples]
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest(f"{where} has a sample without a text; every sample needs one.")
    return (relation, target), tuple(str(text) for text in texts)
