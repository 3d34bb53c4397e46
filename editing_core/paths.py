"""Every folder the engine reads or writes.

Bundled files come with the package; what is computed goes below `home()`, which the
environment variable EDITSCOPE_HOME may move.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def assets() -> Path:
    """Bundled models, facts and examples: inside an installed package, beside it in a checkout."""
    inside = PACKAGE / "assets"
    return inside if inside.is_dir() else PACKAGE.parent / "assets"


def home() -> Path:
    """Where computed statistics and runs are kept."""
    return Path(os.environ.get("EDITSCOPE_HOME") or Path.home() / ".cache" / "editscope")


def statistics() -> Path:
    """Covariance statistics, one file per key."""
    return home() / "statistics"


def unedited() -> Path:
    """Measurements of unedited models, one file per key."""
    return home() / "unedited"


def runs() -> Path:
    """Benchmark runs, one folder each."""
    return home() / "runs"


def uploads() -> Path:
    """Files with records that were given to the page and belong to runs."""
    return home() / "uploads"
