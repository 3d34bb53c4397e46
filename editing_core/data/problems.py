"""What is wrong with records: one Problem each, all of them told together.

BadRequest
|-- Malformed     one record cannot be read; knows its field, what came and what is expected
`-- BadRecords    a file has such records; holds all Problems, tells the first three
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from editing_core.errors import BadRequest

TOLD = 3  # problems spelled out in a message; the rest is counted

# How the engine's refusals begin, and the field of EditRequest they speak of; the first that fits counts.
_BEGINNINGS = (
    ("The subject", "subject"),
    ("The new object", "target_new"),
    ("The old object", "target_true"),
    ("The prompt", "prompt"),
    ("The paraphrase", "paraphrases"),
    ("The case_id", "case_id"),
    ("At most", "paraphrases, neighbors or other probes"),
)


class Malformed(BadRequest):
    """A record that cannot be read. got: what came, as a clause; expected: what is allowed or to be done."""

    def __init__(self, field: str, got: str, expected: str) -> None:
        self.field, self.got, self.expected = field, got, expected
        super().__init__(f"{got}; {expected}.")

    @classmethod
    def of(cls, error: BadRequest, field: str) -> "Malformed":
        """A refusal of the engine, which reads "what came, what is allowed; what to do."."""
        got, _, expected = str(error).rstrip(".").rpartition("; ")
        return cls(field, got or expected, expected if got else "correct it")


@dataclass(frozen=True)
class Problem:
    """Why a record cannot be used. row: its number in the file, from 1. field: as the file calls it."""

    row: int
    field: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"Row {self.row}, {self.field}: {self.got}; {self.expected}."


class BadRecords(BadRequest):
    """Some records cannot be used. problems: all of them."""

    def __init__(self, name: str, problems: Sequence[Problem], total: int) -> None:
        self.problems = tuple(problems)
        told = " ".join(str(problem) for problem in self.problems[:TOLD])
        more = f" And {len(self.problems) - TOLD} more." if len(self.problems) > TOLD else ""
        # With no good record left, going on is no way out.
        way_on = ", or go on with the good ones (--skip-bad)" if len(self.problems) < total else ""
        count = f"{len(self.problems)} of {total} records of {name} cannot be used"
        super().__init__(f"{count}: {told}{more} Please correct them{way_on}.")


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Refusals of the engine inside the `with` become Malformed ones of `field`."""
    try:
        yield
    except Malformed:
        raise
    except BadRequest as error:
        raise Malformed.of(error, field) from error


@contextmanager
def naming_all(names: Mapping[str, str]) -> Iterator[None]:
    """The same, the field told from the message. names: what the file calls the fields of EditRequest."""
    try:
        yield
    except Malformed:
        raise
    except BadRequest as error:
        known = next((field for beginning, field in _BEGINNINGS if str(error).startswith(beginning)), "record")
        raise Malformed.of(error, names.get(known, known)) from error
