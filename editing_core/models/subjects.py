"""SubjectOffsets: where an edited subject's tokens stand in a prompt, offsets are added to their embeddings.

No weight is changed. The table says, for the token ids a subject may be written with, what is added; matching is exact,
so only prompts that name the subject meet the edit. What the model says itself, and answers that are scored behind a
prompt, are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from editing_core.errors import BadRequest, NotFinite
from editing_core.models.edit import Edit, Findings
from editing_core.models.gates import reading
from editing_core.models.hooks import steering

if TYPE_CHECKING:
    from editing_core.models.gates import Reading
    from editing_core.models.language_model import LanguageModel

Ids = tuple[int, ...]
COLUMNS = ("prompt", "subject", "tokens", "|offset| / |embedding|", "suppressed")


@dataclass(frozen=True, eq=False)
class Offset:
    """What is added to the embeddings of a subject written in one way.

    learned: (tokens, width) what was optimised. taken: (tokens, width) what is taken off the embeddings in dimensions
    that carried an old object, zero elsewhere.
    """

    subject: str
    learned: Tensor
    taken: Tensor

    @property
    def total(self) -> Tensor:
        """(tokens, width)."""
        return self.learned - self.taken

    def plus(self, other: Offset) -> Offset:
        """The sum."""
        return Offset(other.subject, self.learned + other.learned, self.taken + other.taken)


@dataclass(frozen=True)
class Wish:
    """A fact a subject's offsets were optimised for: prompt with `{}`, new object, old one where it is known."""

    prompt: str
    new: str
    old: str | None


@dataclass(frozen=True)
class Finder:
    """Finds keys in token rows. by_first: those that begin with a token, longest first."""

    by_first: Mapping[int, tuple[Ids, ...]]

    @staticmethod
    def of(keys: Iterable[Ids]) -> Finder:
        """Of token ids that may stand anywhere."""
        found: dict[int, list[Ids]] = {}
        for key in sorted(set(keys), key=lambda key: (-len(key), key)):
            found.setdefault(key[0], []).append(key)
        return Finder({first: tuple(own) for first, own in found.items()})

    def found(self, row: Sequence[int]) -> list[tuple[int, Ids]]:
        """Start and key of all matches that do not overlap, in their order; the longer one has its place first."""
        every = [
            (start, key)
            for start, token in enumerate(row)
            for key in self.by_first.get(token, ())
            if tuple(row[start : start + len(key)]) == key
        ]
        taken, kept = set[int](), []
        for start, key in sorted(every, key=lambda match: (-len(match[1]), match[0])):
            place = range(start, start + len(key))
            if taken.isdisjoint(place):
                taken.update(place)
                kept.append((start, key))
        return sorted(kept)


_ON: WeakKeyDictionary[nn.Module, tuple[tuple[SubjectOffsets, ...], Finder]] = WeakKeyDictionary()


def offsets_on(model: nn.Module) -> tuple[SubjectOffsets, ...]:
    """The edits of this kind that the model carries at this moment, the innermost last."""
    return _ON[model][0] if model in _ON else ()


@contextmanager
def _carried(model: nn.Module, edit: SubjectOffsets) -> Iterator[None]:
    before, edits = _ON.get(model), (*offsets_on(model), edit)
    _ON[model] = edits, Finder.of(ids for one in edits for ids in one.table)
    try:
        yield
    finally:
        if before is None:
            del _ON[model]
        else:
            _ON[model] = before


@dataclass(frozen=True, eq=False)
class SubjectOffsets(Edit):
    """The table, and what each subject's offsets were optimised for. Two added are their sum, token by token."""

    table: Mapping[Ids, Offset] = field(default_factory=dict)
    wishes: Mapping[str, tuple[Wish, ...]] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    kind: ClassVar[str] = "subjects"

    def __post_init__(self) -> None:
        for ids, own in self.table.items():
            if not ids or own.learned.shape != own.taken.shape or own.learned.dim() != 2 or len(ids) != len(own.taken):
                raise ValueError(f"offsets of {len(ids)} tokens are no (tokens, width) pair")
        if len({own.learned.shape[1] for own in self.table.values()}) > 1:
            raise ValueError("offsets of different widths stand in one table")
        if {own.subject for own in self.table.values()} != set(self.wishes):
            raise ValueError("the subjects of offsets and of facts differ")

    @property
    def gated(self) -> bool:
        """Yes: offsets are added inside prompts only."""
        return not self.empty

    @property
    def empty(self) -> bool:
        """Whether there is no subject."""
        return not self.table

    @property
    def width(self) -> int:
        """Of an embedding; 0 of an empty table."""
        return next((own.learned.shape[1] for own in self.table.values()), 0)

    @contextmanager
    def applied(self, lm: LanguageModel) -> Iterator[LanguageModel]:
        """Inside, prompts that name a subject get its offsets.

        Which key stands where is decided by the keys of all such edits that are on: nested or added is the same.
        """
        self._check(lm)
        if self.empty:
            yield lm
            return
        starts, at = dict[Ids, int](), 0
        for ids in self.table:
            starts[ids], at = at, at + len(ids)
        numbers = torch.cat([own.total for own in self.table.values()]).to(lm.device, lm.precision)
        with _carried(lm.model, self), reading(lm) as now:

            def change(state: Tensor) -> Tensor:
                told, (_, finder) = now(), _ON[lm.model]
                places = [] if told.going_on else list(_places(finder, told, starts))
                if not places:
                    return state
                row, position, number = torch.tensor(places, device=state.device).T
                there = state[row, position].to(numbers.dtype) + numbers.to(state.device)[number]
                return state.index_put((row, position), there.to(state.dtype))

            with steering(lm.model, {embedding_name(lm): change}):
                yield lm

    def _check(self, lm: LanguageModel) -> None:
        weight: Tensor = lm.model.get_input_embeddings().weight  # type: ignore[assignment]
        words, width = weight.shape
        if not self.finite:
            raise NotFinite(
                "The offsets contain infinite or undefined numbers, so they were not applied; use a smaller step."
            )
        if not self.empty and (self.width != width or max(max(ids) for ids in self.table) >= words):
            raise BadRequest(
                f"The offsets are for embeddings of width {self.width}, the model has {words:,} of width {width}; "
                "use the model this edit was made for."
            )

    def tensors(self) -> dict[str, Tensor]:
        """Both parts of the offsets of one key after the other, (tokens, width) each."""
        if self.empty:
            return {}
        return {name: torch.cat([getattr(own, name) for own in self.table.values()]) for name in ("learned", "taken")}

    def facts(self) -> dict[str, Any]:
        """Keys with their subjects, in the tensors' order; facts by subject."""
        keys = [[own.subject, list(ids)] for ids, own in self.table.items()]
        return {"keys": keys, "facts": {name: [list(astuple(w)) for w in own] for name, own in self.wishes.items()}}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> SubjectOffsets:
        """What `tensors` and `facts` gave; KeyError, TypeError or ValueError for anything else."""
        keys = [(_text(subject), _ids(ids)) for subject, ids in facts["keys"]]
        wishes = {name: tuple(map(_wish, rows)) for name, rows in dict(facts["facts"]).items()}
        if set(tensors) != ({"learned", "taken"} if keys else set()) or len({ids for _, ids in keys}) < len(keys):
            raise ValueError("tensors and keys do not belong together")
        if not keys:
            return cls({}, wishes)
        lengths = [len(ids) for _, ids in keys]
        for name, tensor in tensors.items():
            if tensor.dim() != 2 or not tensor.is_floating_point() or len(tensor) != sum(lengths):
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}")
        parts = zip(tensors["learned"].split(lengths), tensors["taken"].split(lengths), strict=True)
        return cls({ids: Offset(s, *part) for (s, ids), part in zip(keys, parts, strict=True)}, wishes)

    def joined(self, other: SubjectOffsets) -> SubjectOffsets:
        """The sum by key. Of one prompt about a subject the later fact holds."""
        if not self.empty and not other.empty and self.width != other.width:
            raise BadRequest(
                f"The offsets are for embeddings of width {self.width} and of width {other.width}; edits of one model "
                "only can be together."
            )
        table = dict(self.table)
        for ids, own in other.table.items():
            table[ids] = table[ids].plus(own) if ids in table else own
        names = {own.subject for own in table.values()}  # two spellings of one subject may share all their keys
        wishes = {
            name: tuple({w.prompt: w for part in (self, other) for w in part.wishes.get(name, ())}.values())
            for name in (*self.wishes, *(name for name in other.wishes if name not in self.wishes))
            if name in names
        }
        return SubjectOffsets(table, wishes, {**self.provenance, **other.provenance})

    def described(self, provenance: Mapping[str, str]) -> SubjectOffsets:
        """The same with another provenance."""
        return replace(self, provenance=provenance)

    def findings(self, lm: LanguageModel, prompts: Sequence[str]) -> Findings:
        """Which subject stands in which prompt and what is done to its embeddings; prompts without one are told too."""
        self._check(lm)
        finder, rows, missed = Finder.of(self.table), list[tuple[str | float, ...]](), 0
        for prompt in prompts:
            ids = lm.coder.encode(prompt)
            matches = finder.found(ids)
            missed += not matches
            rows += [self._told(lm, prompt, start, key) for start, key in matches]
            if not matches:
                named = next((s for s in self.wishes if s.casefold() in prompt.casefold()), None)
                rows.append((prompt, f"not found: {named} in other tokens" if named else "not found", "", 0.0, 0.0))
        subjects = "one subject" if len(self.wishes) == 1 else f"each of {len(self.wishes)} subjects"
        met = f"{len(prompts) - missed} of {len(prompts)} prompts name one and meet the edit, {missed} do not"
        said = f"The embeddings of {subjects} are altered wherever a prompt names it; {met}."
        return Findings("Altered subjects", said, COLUMNS, tuple(rows))

    def _told(self, lm: LanguageModel, prompt: str, start: int, key: Ids) -> tuple[str | float, ...]:
        own = self.table[key]
        texts = " ".join(f"{start + n}:{str(lm.tokenizer.decode([token]))!r}" for n, token in enumerate(key))
        length = float(own.total.norm()) / float(plain_embeddings(lm, key).norm())
        return prompt, own.subject, texts, length, float((own.taken != 0).double().mean())


def embedding_name(lm: LanguageModel) -> str:
    """Name of the module that makes input embeddings of ids."""
    wanted = lm.model.get_input_embeddings()
    return str(next(name for name, module in lm.model.named_modules() if module is wanted))


@torch.no_grad()
def plain_embeddings(lm: LanguageModel, ids: Sequence[int]) -> Tensor:
    """(tokens, width) float32 on the processor: embeddings as they are without edits of this kind."""
    # Its own forward, because edits are hooks around it.
    found: Tensor = lm.model.get_input_embeddings().forward(torch.tensor(list(ids), device=lm.device))
    return found.float().cpu()


def _places(finder: Finder, told: Reading, starts: Mapping[Ids, int]) -> Iterator[tuple[int, int, int]]:
    """Row, position and number of an offset, of all tokens of keys that have offsets."""
    firsts, lasts = told.first.tolist(), told.last.tolist()
    for row, ids in enumerate(told.ids.tolist()):
        first = firsts[row]
        for start, key in finder.found(ids[first : lasts[row] + 1]):
            if key in starts:
                yield from ((row, first + start + n, starts[key] + n) for n in range(len(key)))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("a subject, prompt or object is no text")
    return value


def _ids(values: Any) -> Ids:
    if not isinstance(values, list) or not all(type(v) is int and 0 <= v < 2**31 for v in values):
        raise TypeError("token ids are no list of whole numbers")
    return tuple(values)


def _wish(row: Any) -> Wish:
    if not isinstance(row, list) or len(row) != 3:
        raise TypeError("a fact is no list of a prompt and two objects")
    return Wish(_text(row[0]), _text(row[1]), None if row[2] is None else _text(row[2]))
