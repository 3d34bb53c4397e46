"""What every handler of the page takes and gives."""

from collections.abc import Mapping
from typing import Any

Values = Mapping[Any, Any]  # widget -> what it holds
Shown = dict[Any, Any]  # widget -> what it shows from now on; those left out stay
