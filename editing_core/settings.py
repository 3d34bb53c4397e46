"""Hyper-parameters as frozen dataclasses that know their own help, range and source.

A form is built from the fields, the command line sets them by name, and a value that exists is valid.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Self

from editing_core.errors import BadSetting
from editing_core.models.catalog import unknown


def setting(
    default: Any,
    help: str,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    group: str = "",
    on: Any = None,
) -> Any:
    """A dataclass field with its one-line help and what it may be.

    group: the heading a form shows it under. on: the field is also a switch, off at False or 0, on at this.
    """
    about = {"help": help, "low": low, "high": high, "choices": choices, "group": group, "on": on}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Settings:
    """Base of all settings: checks every field when it is made."""

    def __post_init__(self) -> None:
        for f in fields(self):
            _check(f.name, getattr(self, f.name), f.default, f.metadata)

    def changed(self, values: Mapping[str, Any]) -> Self:
        """A copy with some fields replaced; text is read as the field's type. BadSetting when wrong."""
        known = {f.name: f for f in fields(self)}
        parsed = {}
        for name, value in values.items():
            if name not in known:
                raise BadSetting(str(unknown(name, "setting", known)))
            parsed[name] = _parse(name, value, known[name].default) if isinstance(value, str) else value
        return replace(self, **parsed)


def _check(name: str, value: Any, default: Any, meta: Mapping[str, Any]) -> None:
    """BadSetting unless the value may stand where the default does."""
    low, high, choices = meta["low"], meta["high"], meta["choices"]
    if choices and value not in choices:
        raise BadSetting(f"{name} is {shown(value)}, allowed are {', '.join(choices)}; choose one of them.")
    if isinstance(default, bool) != isinstance(value, bool):
        wanted = "true or false" if isinstance(default, bool) else "a number"
        raise BadSetting(f"{name} must be {wanted}, got {shown(value)}; correct it.")
    if isinstance(default, tuple):
        _check_layers(name, value, low, high)
    elif low is not None:
        check_number(name, value, low, high, whole=isinstance(default, int))


def _check_layers(name: str, value: Any, low: float, high: float) -> None:
    layers = value if isinstance(value, tuple) else ()
    for layer in layers:  # before they are sorted, which only numbers can be
        check_number(name, layer, low, high, whole=True)
    if not layers or list(layers) != sorted(set(layers)):
        raise BadSetting(
            f"{name} must be one or more layers in ascending order such as 0,1,2, got {shown(value)}; correct it."
        )


def check_number(name: str, value: Any, low: float, high: float, whole: bool) -> None:
    """BadSetting unless the value is a number, or a whole one, from low to high."""
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
        kind, form = ("whole numbers", "") if whole else ("numbers", "g")
        allowed = f"{kind} from {low:{form}} to {high:{form}}"
        raise BadSetting(f"{name} is {shown(value)}, allowed are {allowed}; choose one of them.")


def shown(value: Any) -> str:
    """Whatever came in at most 60 characters, for the sentence that refuses it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists in lists without end
        text = f"an enormous {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _parse(name: str, text: str, default: Any) -> Any:
    text = text.strip()
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(int(part) for part in text.strip("[]()").split(",") if part.strip())
        if isinstance(default, int):
            return int(text)
        if isinstance(default, float):
            return float(text)
    except (KeyError, ValueError):
        wanted = "true or false" if isinstance(default, bool) else f"like {default!r}"
        raise BadSetting(f"{name} is {text[:40]!r}, but must be {wanted}; correct it.") from None
    return text


def default_of(f: Any) -> Any:
    """The default of a dataclass field (all settings have one)."""
    assert f.default is not MISSING
    return f.default
