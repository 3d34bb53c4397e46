"""A text column of a data set on the Hugging Face hub, streamed: it may be far larger than memory and disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

from editing_core.errors import BadRequest
from editing_core.statistics.corpus import TextSource, digest_of


@dataclass(frozen=True)
class HubText(TextSource):
    """A column of a data set on the Hugging Face hub, streamed at one commit. No code of a repository is run."""

    repository: str
    config: str
    split: str
    column: str
    commit: str
    most: int | None = None

    @staticmethod
    def of(
        repository: str, config: str = "", split: str = "train", column: str = "text", revision: str = "main"
    ) -> "HubText":
        """The data set as the hub has it now; BadRequest when it cannot be had, or has no such column."""
        import huggingface_hub

        with _reachable(repository):
            commit = huggingface_hub.HfApi().dataset_info(repository, revision=revision, timeout=20).sha
        source = HubText(repository, config, split, column, str(commit))
        next(source.read(), None)
        return source

    @property
    def name(self) -> str:  # type: ignore[override]
        """As a person would say it."""
        return f"{self.repository} {self.config}".strip()

    @cached_property
    def digest(self) -> str:  # type: ignore[override]
        """Short hash of what is read: the commit stands for the text."""
        return digest_of([self.repository, self.config, self.split, self.column, self.commit])

    @property
    def documents_in_key(self) -> int:
        """The first so many, 0 for all."""
        return self.most or 0

    @property
    def count(self) -> int | None:
        """What was asked for, or what the data set says of itself."""
        if self.most:
            return self.most
        splits = getattr(getattr(self._rows(), "info", None), "splits", None) or {}
        return getattr(splits.get(self.split), "num_examples", None) or None

    def read(self) -> Iterator[str]:
        """The texts that are not empty."""
        return islice(self._texts(), self.most)

    def first(self, count: int) -> "HubText":
        """Its first documents."""
        return replace(self, most=count)

    def described(self) -> dict[str, Any]:
        """Everything `read` needs."""
        return {"kind": "hub", **asdict(self)}

    def _texts(self) -> Iterator[str]:
        rows = iter(self._rows())
        while True:
            with _reachable(self.repository):
                row = next(rows, None)
            if row is None:
                return
            text = row.get(self.column)
            if not isinstance(text, str):
                found = ", ".join(name for name, value in row.items() if isinstance(value, str)) or "none"
                raise BadRequest(
                    f"{self.repository} has no text in a column {self.column!r}; name one with --column: {found}."
                )
            if text.strip():
                yield text.strip()

    def _rows(self) -> Any:
        try:
            import datasets  # here, because it is slow to import and the engine works without it
        except ImportError as error:
            raise BadRequest(
                f"{self.repository} is read with the library datasets, which is not installed; install it, or give a "
                "text file with one document per line."
            ) from error
        with _reachable(self.repository):
            return datasets.load_dataset(
                self.repository, self.config or None, split=self.split, revision=self.commit, streaming=True
            )


@contextmanager
def _reachable(repository: str) -> Iterator[None]:
    try:
        yield
    except BadRequest:
        raise
    except Exception as error:
        # Offline, gone, moved, gated: each library below raises its own kind.
        raise BadRequest(
            f"The data set {repository} could not be read from the hub ({type(error).__name__}); check its name and "
            "the connection, or give a text file with one document per line."
        ) from error
