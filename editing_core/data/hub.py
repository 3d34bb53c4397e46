"""Published records from the Hugging Face hub, at a pinned revision.

In: a Hub. Out: its records, as a file would give them. No code from a repository is ever run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editing_core.data.files import bounded, read_records
from editing_core.errors import BadRequest


@dataclass(frozen=True)
class Hub:
    """Where published records lie: a JSON file of the repository, or a split of its tables where `file` is empty."""

    repository: str
    revision: str
    file: str = ""
    split: str = ""


def fetch(hub: Hub, name: str) -> list[Any]:
    """The records, from the library's cache where they are; BadRequest when they cannot be had."""
    try:
        import datasets  # here, because it is slow to import and the engine works without it
    except ImportError as error:
        raise BadRequest(
            f"The data set {name} is fetched with the library datasets, which is not installed; install it, or "
            f"give a path: {name}:PATH."
        ) from error
    try:
        if hub.file:
            return read_records(_download(datasets, hub))
        return bounded(list(datasets.load_dataset(hub.repository, revision=hub.revision, split=hub.split)), name)
    except BadRequest:
        raise
    except Exception as error:
        # Offline, gone, moved: each library below raises its own kind.
        raise BadRequest(
            f"The data set {name} could not be fetched from {hub.repository} ({type(error).__name__}); check the "
            f"connection, or give a path: {name}:PATH."
        ) from error


def _download(datasets: Any, hub: Hub) -> Path:
    """The raw file: as a table it would not load, because its answers are nested to different depths."""
    manager = datasets.DownloadManager()
    return Path(manager.download(f"hf://datasets/{hub.repository}@{hub.revision}/{hub.file}"))
