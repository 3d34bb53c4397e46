"""Edit: whatever can be put on a shared frozen model, taken off again, and saved.

Some methods change weights (`delta.WeightDelta`); others leave them alone and put something beside them: neurons, a
codebook with a distance rule, altered embeddings of a subject, demonstrations in the prompt. Whoever measures, stacks,
stores or shows an edit needs no more than this: `applied`, `+`, `tensors` and `facts`, `findings`. The kinds there are,
and files that hold any of them, are in `edits`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self
from weakref import WeakKeyDictionary

from safetensors.torch import save_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from editing_core.models.delta import Update
    from editing_core.models.language_model import LanguageModel

WEIGHTS = "weights"  # the kind of edits that change weights
WEIGHTS_FORMAT, FORMAT = "editscope-delta-1", "editscope-edit-1"  # of files: of weights alone, and of any kinds
_ON: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def edits_on(model: nn.Module) -> int:
    """How many edits the model carries at this moment."""
    return _ON.get(model, 0)


@contextmanager
def counted(model: nn.Module) -> Iterator[None]:
    """Inside, the model carries one edit more."""
    _ON[model] = edits_on(model) + 1
    try:
        yield
    finally:
        _ON[model] -= 1


@dataclass(frozen=True)
class Proof:
    """Proof of change of one parameter: norms, rank where it is known, and how many entries really differ."""

    parameter: str
    relative_norm: float
    rank: int | None
    changed: int
    total: int


@dataclass(frozen=True)
class Findings:
    """What an edit did at some prompts, as a table: a title, a sentence, columns, and rows of texts and numbers."""

    title: str
    said: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str | float | int, ...], ...] = ()


class Edit(ABC):
    """An edit as a value. Two edits added are both together: the second one was made with the first one on.

    kind: its name in files. provenance: free texts about where it comes from. updates: of weights, by parameter; none
    where weights are left alone.
    """

    kind: ClassVar[str]
    provenance: Mapping[str, str]
    updates: Mapping[str, Update] = MappingProxyType({})

    @property
    def gated(self) -> bool:
        """Whether it looks at where a prompt ends: then rows are read whole and with that told, see `gates`."""
        return False

    @property
    def can_merge(self) -> bool:
        """Whether a model can be saved with it inside."""
        return False

    @property
    def can_export_as_adapter(self) -> bool:
        """Whether a low-rank adapter can hold it."""
        return False

    @abstractmethod
    def applied(self, lm: LanguageModel) -> AbstractContextManager[LanguageModel]:
        """Inside the block the model carries the edit; afterwards it is bit-equal to before, also after an error.

        Gives the model to ask: mostly the same one, or a view of it that reads more around prompts. Nests: the
        inner edit comes off first. NotFinite or BadRequest, before anything is touched, where it cannot be put on.
        """

    @property
    @abstractmethod
    def empty(self) -> bool:
        """Whether it changes nothing."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor in it by name; with `facts` all there is to save."""

    def facts(self) -> dict[str, Any]:
        """What is no tensor, as JSON has it."""
        return {}

    @classmethod
    @abstractmethod
    def of(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self:
        """What `tensors` and `facts` gave; KeyError, TypeError or ValueError for anything else."""

    @abstractmethod
    def joined(self, other: Self) -> Self:
        """Both together, of one kind."""

    @abstractmethod
    def described(self, provenance: Mapping[str, str]) -> Self:
        """The same edit with another provenance."""

    @abstractmethod
    def findings(self, lm: LanguageModel, prompts: Sequence[str]) -> Findings:
        """What it is made of, and what it does at these prompts; call without it on."""

    def proofs(self, model: nn.Module) -> list[Proof]:  # noqa: ARG002
        """Per changed parameter of the unedited model what changed."""
        return []

    @property
    def parts(self) -> Mapping[str, Edit]:
        """The edit by kind."""
        return {self.kind: self}

    @property
    def finite(self) -> bool:
        """Whether every number in it is finite."""
        return all(bool(t.isfinite().all()) for t in self.tensors().values() if t.is_floating_point())

    @property
    def size(self) -> int:
        """Bytes of all its numbers."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All there is to save: tensors by name, and facts by kind; `edits.unpacked` reads both.

        Of weights alone there are no facts, and tensors have the names they had before there were other kinds.
        """
        if self.kind == WEIGHTS:
            return self.tensors(), {}
        tensors = {f"{kind}/{name}": t for kind, part in self.parts.items() for name, t in part.tensors().items()}
        return tensors, {kind: part.facts() for kind, part in self.parts.items()}

    def save(self, path: Path) -> None:
        """Write it as one safetensors file, which `edits.load` reads."""
        tensors, kinds = self.packed()
        metadata = {"format": FORMAT if kinds else WEIGHTS_FORMAT, "provenance": json.dumps(dict(self.provenance))}
        if kinds:
            metadata["kinds"] = json.dumps(kinds)
        save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, path, metadata=metadata)

    def __add__(self, other: Edit) -> Edit:
        if self.empty or other.empty:
            kept, rest = (other, self) if self.empty else (self, other)
            return kept.described({**self.provenance, **other.provenance}) if rest.provenance else kept
        if self.parts.keys() == other.parts.keys() == {self.kind}:
            return self.joined(other)
        merged = dict(self.parts)
        for kind, part in other.parts.items():
            merged[kind] = merged[kind].joined(part) if kind in merged else part
        return Together(merged, {**self.provenance, **other.provenance})


@dataclass(frozen=True, eq=False)
class Together(Edit):
    """Edits of several kinds that are on together, by kind."""

    each: Mapping[str, Edit]
    provenance: Mapping[str, str] = field(default_factory=dict)
    kind: ClassVar[str] = "together"

    @property
    def gated(self) -> bool:
        """As soon as one of them is."""
        return any(part.gated for part in self.each.values())

    @contextmanager
    def applied(self, lm: LanguageModel) -> Iterator[LanguageModel]:
        """All of them, in the order of their kinds' names."""
        with ExitStack() as stack:
            for _, part in sorted(self.each.items()):
                lm = stack.enter_context(part.applied(lm))
            yield lm

    @property
    def empty(self) -> bool:
        """Whether all of them are."""
        return all(part.empty for part in self.each.values())

    def tensors(self) -> dict[str, Tensor]:
        """Those of every kind, as "kind/name"."""
        return {f"{kind}/{name}": t for kind, part in self.each.items() for name, t in part.tensors().items()}

    @classmethod
    def of(cls, _tensors: Mapping[str, Tensor], _facts: Mapping[str, Any]) -> Self:
        """Read by `edits.unpacked`, which knows the kinds."""
        raise ValueError("edits of several kinds are read kind by kind")

    def joined(self, other: Edit) -> Edit:  # type: ignore[override]
        """As `+`."""
        return self + other

    def described(self, provenance: Mapping[str, str]) -> Together:
        """The same with another provenance."""
        return replace(self, provenance=provenance)

    def findings(self, lm: LanguageModel, prompts: Sequence[str]) -> Findings:
        """Of the last kind by name that is no change of weights."""
        parts = [part for kind, part in sorted(self.each.items()) if not part.updates] or [*self.each.values()]
        return parts[-1].findings(lm, prompts)

    @property
    def updates(self) -> Mapping[str, Update]:  # type: ignore[override]
        """Those of its weights."""
        return {name: update for part in self.each.values() for name, update in part.updates.items()}

    def proofs(self, model: nn.Module) -> list[Proof]:
        """Those of its weights."""
        return [proof for part in self.each.values() for proof in part.proofs(model)]

    @property
    def parts(self) -> Mapping[str, Edit]:
        """By kind."""
        return self.each
