"""The edit stack: edits in the order they were made, each with a switch; what is on together is one edit.

All values: a change gives a new Stack, and a Timeline remembers the ones before, so undo and redo are exact. What is
switched off is simply not added; nothing is ever subtracted, so a stack with nothing on is the unedited model, bit for
bit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from editing_core.errors import BadRequest
from editing_core.models.delta import WeightDelta
from editing_core.models.edit import Edit
from editing_core.types import EditRequest, check_text

MOST = 50  # edits in a stack
MOST_STEPS = 100  # that can be undone
NOTE = 200  # characters


@dataclass(frozen=True, eq=False)
class StackedEdit:
    """An edit and what is to be known of it.

    made_on: ids of the edits that were on when it was made, in order. origin: editor or file it comes from.
    """

    id: str
    delta: Edit
    requests: tuple[EditRequest, ...]
    model: str
    revision: str
    made_on: tuple[str, ...] = ()
    origin: str = ""

    @property
    def title(self) -> str:
        """The first fact in words, and how many more."""
        if not self.requests:
            return self.origin
        first, more = self.requests[0], len(self.requests) - 1
        return f"{first.full_prompt} {first.target_new}" + (f" (and {more} more)" if more else "")


@dataclass(frozen=True)
class Entry:
    """A place in the stack: which edit, whether it is on, and a person's note."""

    id: str
    on: bool = True
    note: str = ""


@dataclass(frozen=True)
class Stack:
    """Entries, first made first. Order tells the story; sums do not depend on it but for rounding."""

    entries: tuple[Entry, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """All edits in it."""
        return tuple(entry.id for entry in self.entries)

    @property
    def on(self) -> tuple[str, ...]:
        """Those that are switched on, in order."""
        return tuple(entry.id for entry in self.entries if entry.on)

    def add(self, edit_id: str) -> "Stack":
        """With another edit on top, switched on."""
        if edit_id in self.ids:
            raise BadRequest("This edit is in the stack already; switch it on there.")
        if len(self.entries) >= MOST:
            raise BadRequest(f"The stack holds {len(self.entries)} edits, at most {MOST} fit; remove one first.")
        return Stack((*self.entries, Entry(edit_id)))

    def switch(self, edit_id: str, on: bool) -> "Stack":
        """With one edit on or off."""
        return self._with(edit_id, lambda entry: replace(entry, on=on))

    def note(self, edit_id: str, text: str) -> "Stack":
        """With another note at one edit; an empty one takes it away."""
        if text.strip():
            text = check_text(text, "note")
            if len(text) > NOTE:
                raise BadRequest(f"The note has {len(text)} characters, at most {NOTE} are allowed; shorten it.")
        return self._with(edit_id, lambda entry: replace(entry, note=text.strip()))

    def move(self, edit_id: str, by: int) -> "Stack":
        """With one edit so many places later, or earlier; at the ends it stays."""
        at = self._place(edit_id)
        rest = [entry for entry in self.entries if entry.id != edit_id]
        rest.insert(max(0, min(len(rest), at + by)), self.entries[at])
        return Stack(tuple(rest))

    def remove(self, edit_id: str) -> "Stack":
        """Without one edit."""
        self._place(edit_id)
        return Stack(tuple(entry for entry in self.entries if entry.id != edit_id))

    def only(self, ids: Sequence[str]) -> "Stack":
        """With these edits on and all others off."""
        return Stack(tuple(replace(entry, on=entry.id in ids) for entry in self.entries))

    def delta(self, edits: Mapping[str, StackedEdit]) -> Edit:
        """What is switched on, as one edit."""
        return combined(edits[edit_id].delta for edit_id in self.on)

    def _place(self, edit_id: str) -> int:
        if edit_id not in self.ids:
            raise BadRequest("This edit is not in the stack any more; choose one that is listed.")
        return self.ids.index(edit_id)

    def _with(self, edit_id: str, change: Callable[[Entry], Entry]) -> "Stack":
        self._place(edit_id)
        return Stack(tuple(change(entry) if entry.id == edit_id else entry for entry in self.entries))


def combined(deltas: Iterable[Edit]) -> Edit:
    """The sum of edits; empty of none."""
    total: Edit = WeightDelta()
    for delta in deltas:
        total += delta
    return total


@dataclass(frozen=True)
class Timeline:
    """A stack and what it was before, for undo, and was taken back from, for redo."""

    now: Stack = field(default_factory=Stack)
    past: tuple[Stack, ...] = ()
    future: tuple[Stack, ...] = ()

    def to(self, stack: Stack) -> "Timeline":
        """A change; one that changes nothing is none."""
        if stack == self.now:
            return self
        return Timeline(stack, (*self.past, self.now)[-MOST_STEPS:])

    def undo(self) -> "Timeline":
        """One change back, where there is one."""
        if not self.past:
            return self
        return Timeline(self.past[-1], self.past[:-1], (self.now, *self.future))

    def redo(self) -> "Timeline":
        """One undone change again, where there is one."""
        if not self.future:
            return self
        return Timeline(self.future[0], (*self.past, self.now), self.future[1:])


@dataclass(frozen=True)
class Conflict:
    """Two edits that are on and write the same subject and relation. same: with the same new object."""

    first: str
    second: str
    subject: str
    objects: tuple[str, str]

    @property
    def same(self) -> bool:
        """Whether both want the same."""
        return self.objects[0].casefold() == self.objects[1].casefold()


def conflicts(stack: Stack, edits: Mapping[str, StackedEdit]) -> list[Conflict]:
    """Edits that are on and change the same thing, the earlier one first.

    The relation is the data set's where both facts name one, otherwise the prompt with its place for the subject.
    """
    found: list[Conflict] = []
    seen: dict[tuple[str, str], dict[str, EditRequest]] = {}
    for edit_id in stack.on:
        for request in edits[edit_id].requests:
            names, met = _relations(request), dict[str, EditRequest]()
            for name in names:
                met |= {other: first for other, first in seen.get(name, {}).items() if other != edit_id}
                seen.setdefault(name, {}).setdefault(edit_id, request)
            found += [
                Conflict(other, edit_id, request.subject, (first.target_new, request.target_new))
                for other, first in met.items()
            ]
    return found


def _relations(request: EditRequest) -> list[tuple[str, str]]:
    """(subject, relation) in all the ways the relation is named."""
    subject = request.subject.casefold()
    names = [" ".join(request.prompt.casefold().split())]
    if request.relation_id:
        names.append(request.relation_id)
    return [(subject, name) for name in names]
