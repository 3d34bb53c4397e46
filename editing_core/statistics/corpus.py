"""Texts that key statistics are collected from: in memory, or a file with one document per line.

A text is read one document after another and never held whole. Its name, digest and number of documents
are part of every statistic's key, so another text is another statistic; they are enough to find statistics
again when the text itself is gone.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

from editing_core import paths
from editing_core.errors import BadRequest

SAMPLE = 512  # documents an estimate looks at


class TextSource(ABC):
    """Named documents.

    documents_in_key: how many are collected, 0 for all of a data set whose size only the hub knows. count: how
    many there are, None where nobody knows.
    """

    name: str
    digest: str

    @property
    @abstractmethod
    def documents_in_key(self) -> int:
        """The number of documents as the key of a statistic holds it."""

    @property
    def count(self) -> int | None:
        """How many documents there are to read, where known."""
        return self.documents_in_key

    @abstractmethod
    def read(self) -> Iterator[str]:
        """The documents in order, from the first; BadRequest when they cannot be had any more."""

    @abstractmethod
    def first(self, count: int) -> "TextSource":
        """Its first documents only."""

    def sample(self, count: int = SAMPLE) -> list[str]:
        """So many documents for an estimate, from all over the text where that is cheap."""
        return list(islice(self.read(), count))

    def described(self) -> dict[str, Any]:
        """What `restored` makes it from."""
        return {"kind": "memory", "name": self.name, "digest": self.digest, "documents": self.documents_in_key}


@dataclass(frozen=True)
class Corpus(TextSource):
    """Documents in memory."""

    name: str
    documents: tuple[str, ...]

    @cached_property
    def digest(self) -> str:  # type: ignore[override]
        """Short hash of the documents."""
        return digest_of(self.documents)

    @property
    def documents_in_key(self) -> int:
        """All of them."""
        return len(self.documents)

    def read(self) -> Iterator[str]:
        """The documents."""
        return iter(self.documents)

    def first(self, count: int) -> "Corpus":
        """Its first documents."""
        return Corpus(self.name, self.documents[:count])

    def sample(self, count: int = SAMPLE) -> list[str]:
        """Documents drawn evenly."""
        return Random(0).sample(self.documents, min(count, len(self.documents)))

    @staticmethod
    def of_file(path: Path) -> "Corpus":
        """One document per line of a UTF-8 text file, read whole."""
        return Corpus(path.stem, tuple(TextFile.of(path).read()))

    @staticmethod
    def bundled(model: str) -> "Corpus | None":
        """The text that comes with a bundled model, or None."""
        path = paths.assets() / "models" / model / "corpus.txt"
        return Corpus.of_file(path) if path.is_file() else None


@dataclass(frozen=True)
class TextFile(TextSource):
    """A UTF-8 text file with one document per line, of which the first `documents` are read.

    most: how many were asked for. places: where some documents begin that were drawn evenly when its digest was
    taken; none where that was not now.
    """

    name: str
    path: Path
    digest: str
    documents: int
    most: int | None = None
    places: tuple[int, ...] = field(default=(), compare=False, repr=False)

    @staticmethod
    def of(path: Path, most: int | None = None) -> "TextFile":
        """The file, or its first documents; one pass takes their digest."""
        draw, places, read = Random(0), [0] * SAMPLE, 0

        def counted() -> Iterator[str]:
            nonlocal read
            for place, document in islice(_lines(path), most):
                slot = read if read < SAMPLE else int(draw.random() * (read + 1))
                if slot < SAMPLE:
                    places[slot] = place
                read += 1
                yield document

        digest = digest_of(counted())
        if not read:
            raise BadRequest(f"{path.name} holds no text; give a file with one document per line.")
        return TextFile(path.stem, path.resolve(), digest, read, most, tuple(places[:read]))

    @property
    def documents_in_key(self) -> int:
        """All that are read."""
        return self.documents

    def read(self) -> Iterator[str]:
        """The documents, unless the file was changed since its digest was taken."""
        self._now()
        return (document for _, document in islice(_lines(self.path), self.most))

    def first(self, count: int) -> "TextFile":
        """Its first documents."""
        return TextFile.of(self.path, count)

    def sample(self, count: int = SAMPLE) -> list[str]:
        """Documents drawn evenly."""
        with _readable(self.path), self.path.open("rb") as file:
            return [_line_at(file, place) for place in self._now().places[:count]]

    def described(self) -> dict[str, Any]:
        """Where it lies and what it was."""
        fields = {name: value for name, value in asdict(self).items() if name != "places"}
        return {"kind": "file", **fields, "path": str(self.path)}

    def _now(self) -> "TextFile":
        """The file as it is; BadRequest when that is another text."""
        now = self if self.places else TextFile.of(self.path, self.most)
        if now.digest != self.digest:
            raise BadRequest(f"{self.path.name} is not the text it was; give it again with --collect.")
        return now


@dataclass(frozen=True)
class Remembered(TextSource):
    """A text of which only its statistics are left."""

    name: str
    digest: str
    documents: int

    @property
    def documents_in_key(self) -> int:
        """As many as it had."""
        return self.documents

    def read(self) -> Iterator[str]:
        """Not possible any more."""
        raise BadRequest(f"Of the text {self.name!r} only its statistics were kept; give it again with --collect.")

    def first(self, count: int) -> TextSource:  # noqa: ARG002
        """Not possible any more."""
        self.read()
        return self


def digest_of(documents: Iterable[str]) -> str:
    """As of the documents joined by zero characters."""
    digest, between = hashlib.sha256(), b""
    for document in documents:
        digest.update(between + document.encode())
        between = b"\0"
    return digest.hexdigest()[:12]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, each with where it begins."""
    place = 0
    with _readable(path), path.open("rb") as file:
        for line in file:
            text = _decoded(line, place)
            if text:
                yield place, text
            place += len(line)


def _line_at(file: BinaryIO, place: int) -> str:
    file.seek(place)
    return _decoded(file.readline(), place)


def _decoded(line: bytes, place: int) -> str:
    return line.decode("utf-8" if place else "utf-8-sig").strip()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(
            f"{path.name} is not a readable UTF-8 text file; give a file with one document per line."
        ) from error
