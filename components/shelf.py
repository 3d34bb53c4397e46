"""EditShelf: the edits that stacks of this server's pages are made of, found by their unguessable ids.

Pages keep only ids, switches and notes. The shelf is bounded; what has left it counts as switched off.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable

from editing_core.runs.record import Base
from editing_core.stack import Stack, StackedEdit, combined

CAPACITY = 1000
ROOM = 2**30  # bytes of edits


class EditShelf:
    """Edits by id; the one unused for longest leaves first."""

    def __init__(self, capacity: int = CAPACITY, room: int = ROOM) -> None:
        self.capacity, self.room = capacity, room
        self._edits: OrderedDict[str, StackedEdit] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, edit: StackedEdit) -> str:
        """Keep an edit; gives its id."""
        with self._lock:
            self._edits[edit.id] = edit
            self._edits.move_to_end(edit.id)
            while len(self._edits) > 1 and (len(self._edits) > self.capacity or self._size() > self.room):
                self._edits.popitem(last=False)
        return edit.id

    def having(self, ids: Iterable[str]) -> dict[str, StackedEdit]:
        """Those of the ids that are still here, in their order."""
        with self._lock:
            found = {edit_id: self._edits[edit_id] for edit_id in ids if edit_id in self._edits}
            for edit_id in found:
                self._edits.move_to_end(edit_id)
        return found

    def base(self, stack: Stack, model: str) -> Base:
        """What is switched on, still here, and made for that model: the base of the next edit."""
        return self.sum(stack.on, model)

    def sum(self, ids: Iterable[str], model: str) -> Base:
        """Some edits of that model as one."""
        own = {edit_id: edit for edit_id, edit in self.having(ids).items() if edit.model == model}
        return Base(combined(edit.delta for edit in own.values()), tuple(own))

    def _size(self) -> int:
        return sum(edit.delta.size for edit in self._edits.values())
