"""Patterns of peft's configurations: which modules an adapter is for, and what it says of each.

They are regular expressions from anyone, so only those are tried that surely end: no repetition of a group.
"""

import re
from collections.abc import Mapping
from typing import Any

from editing_core.errors import BadRequest

LONGEST = 500  # letters of a pattern
MOST = 10_000  # patterns
REPEATS = 3  # places of a pattern where something is repeated; each one costs a power of a name's length
_NAME = re.compile(r"[\w.-]+")
_LETTERS = re.compile(r"(?:[\w.\\^$|()*+-]|\(\?:)+")


def first_match(patterns: Mapping[str, Any], module: str) -> Any:
    """What the first pattern that fits the end of a module's name stands for, as peft looks it up; None without."""
    if len(patterns) > MOST:
        raise BadRequest(f"The adapter has {len(patterns):,} patterns, at most {MOST:,} are read; choose another one.")
    for pattern, value in patterns.items():
        # Most are plain names, for which no expression needs to be made: there may be thousands.
        plain = _NAME.fullmatch(pattern) is not None
        named = module == pattern or module.endswith(f".{pattern}")
        if named or (not plain and _fits(rf"(.*\.)?({pattern})$", pattern, module)):
            return value
    return None


def is_target(targets: Any, module: str) -> bool:
    """Whether target_modules (a list of names or of their ends, or one pattern for whole names) names a module."""
    if isinstance(targets, str):
        return _fits(rf"(?:{targets})\Z", targets, module)
    names = targets if isinstance(targets, list) else []
    return any(isinstance(name, str) and (module == name or module.endswith(f".{name}")) for name in names)


def _fits(expression: str, pattern: str, module: str) -> bool:
    if not _is_safe(pattern):
        raise BadRequest(f"The adapter's pattern {pattern[:60]!r} is too intricate to be read; choose another adapter.")
    try:
        return re.match(expression, module) is not None
    except re.error as error:
        raise BadRequest(f"The adapter's pattern {pattern[:60]!r} is none; choose another adapter.") from error


def _is_safe(pattern: str) -> bool:
    repeats = len(re.findall(r"[*+]", pattern))
    return (
        len(pattern) <= LONGEST
        and repeats <= REPEATS
        and _LETTERS.fullmatch(pattern) is not None
        and not re.search(r"\)[*+]", pattern)
    )
