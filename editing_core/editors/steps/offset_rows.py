"""The rows an offset optimisation reads: which tokens are a subject's, what should follow, and what should stay.

A subject is written in tokens in several ways: with and without a space in front, and as its prompts have it. Every way
stands in one row at least; where no prompt has it, in the first prompt with the tokens exchanged.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from editing_core.editors.steps.rows import Objective
from editing_core.models.language_model import LanguageModel
from editing_core.models.subjects import Finder, Ids, offsets_on, plain_embeddings
from editing_core.models.tokens import Coder
from editing_core.types import EditRequest

KINDS = ("nll", "kl", "preserve")
KL_PROMPT = "{} is"
CARRIERS = ("{}", "The {}", '"{}')  # a subject at the beginning, behind a word, and behind a quotation mark


@dataclass(frozen=True)
class OffsetRow:
    """What is read, and where. kind: of KINDS. end: how many tokens are the prompt.

    places: (position, form, token of the form) of the subject's tokens. positions: whose logits are looked at, with
    their labels; without labels they are kept. weight: of the row in the mean of its kind.
    """

    kind: str
    ids: Ids
    end: int
    places: tuple[tuple[int, Ids, int], ...]
    positions: tuple[int, ...]
    labels: tuple[int, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Case:
    """A subject. forms: its ways to be written, the longest first, each with its (tokens, width) embeddings.

    carried: the offsets of some forms that are on already.
    """

    subject: str
    forms: Mapping[Ids, Tensor]
    carried: Mapping[Ids, Tensor]
    rows: tuple[OffsetRow, ...]

    @property
    def size(self) -> int:
        """Tokens of the longest form."""
        return max(map(len, self.forms))

    @property
    def embeddings(self) -> Tensor:
        """Of the longest form."""
        return next(iter(self.forms.values()))

    def slot(self, form: Ids, token: int) -> int:
        """Which of the shared offsets a token of a form has."""
        return self.size - len(form) + token

    def begin(self) -> Tensor:
        """(size, width) what is on already."""
        found = torch.zeros_like(self.embeddings)
        for form in sorted(self.carried, key=len):  # the longest last
            found[self.size - len(form) :] = self.carried[form]
        return found


def forms_of(lm: LanguageModel, requests: Sequence[EditRequest], objective: Objective) -> list[Ids]:
    """The ways one subject's requests may write it in tokens, and those that are on already, the longest first."""
    contexts, subject = objective.contexts, requests[0].subject
    own = [contexts.prefix(number) + request.prompt for request in requests for number in range(len(contexts))]
    plain = Coder(lm.tokenizer)
    found = [_written(plain, carrier, subject) for carrier in CARRIERS]
    found += [_written(lm.coder, template, subject) for template in own]
    found += [ids for edit in offsets_on(lm.model) for ids, offset in edit.table.items() if offset.subject == subject]
    return sorted(dict.fromkeys(found), key=len, reverse=True)


def _written(coder: Coder, template: str, subject: str) -> Ids:
    ids, span = coder.encode(template.replace("{}", subject)), coder.subject_tokens(template, subject)
    return ids[span.start : span.stop]


def case_of(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    forms: Sequence[Ids],
    finder: Finder,
    objective: Objective,
    kept: Sequence[str] = (),
) -> Case | None:
    """One subject's case; None where its tokens are nowhere to be found, as inside a longer subject's.

    kept: prompts about the subject whose next token should stay. finder: knows all keys that will be on together.
    """
    rows = [
        OffsetRow("nll", row.ids, row.positions[0] + 1, (), row.positions, row.labels)
        for request in requests
        for row in objective.rows(lm, request, 0)
    ]
    prompts = [("kl", KL_PROMPT.replace("{}", requests[0].subject)), *(("preserve", prompt) for prompt in kept)]
    for kind, prompt in prompts:
        ids = lm.coder.encode(prompt)
        rows.append(OffsetRow(kind, ids, len(ids), (), (len(ids) - 1,)))
    placed = [row for row in (_placed(row, finder, forms) for row in rows) if row.places]
    if not any(row.kind == "nll" for row in placed):
        return None
    there = {form for row in placed if row.kind == "nll" for _, form, _ in row.places}
    placed += [_exchanged(placed[0], form) for form in forms if form not in there]
    counts = {kind: sum(row.kind == kind for row in placed) for kind in KINDS}
    return Case(
        requests[0].subject,
        {form: plain_embeddings(lm, form) for form in forms},
        carried(lm, forms, "learned"),
        tuple(replace(row, weight=1 / counts[row.kind]) for row in placed),
    )


def carried(lm: LanguageModel, forms: Iterable[Ids], part: str) -> dict[Ids, Tensor]:
    """Of forms that have offsets already their "learned" or "taken" part, (tokens, width) float32 on the processor."""
    found: dict[Ids, Tensor] = {}
    for form in forms:
        parts = [getattr(edit.table[form], part) for edit in offsets_on(lm.model) if form in edit.table]
        if parts:
            found[form] = torch.stack([each.float().cpu() for each in parts]).sum(0)
    return found


def matches(ids: Ids, finder: Finder, forms: Iterable[Ids]) -> Iterator[tuple[int, Ids]]:
    """Start and form of every match that is one of these forms."""
    own = set(forms)
    return ((start, key) for start, key in finder.found(ids) if key in own)


def _placed(row: OffsetRow, finder: Finder, forms: Sequence[Ids]) -> OffsetRow:
    found = matches(row.ids[: row.end], finder, forms)
    return replace(row, places=tuple((start + n, form, n) for start, form in found for n in range(len(form))))


def _exchanged(row: OffsetRow, form: Ids) -> OffsetRow:
    """The row with its first match written in another form, and no other place."""
    start, old, _ = row.places[0]
    ids, moved = exchanged(row.ids, start, old, form), len(form) - len(old)
    places = tuple((start + n, form, n) for n in range(len(form)))
    later = tuple(
        (at + moved, other, n) for at, other, n in row.places[len(old) :]
    )  # the subject may stand there more than once
    return replace(
        row, ids=ids, end=row.end + moved, places=places + later, positions=tuple(p + moved for p in row.positions)
    )


def exchanged(ids: Ids, start: int, old: Ids, new: Ids) -> Ids:
    """Token ids with `new` in place of `old` at `start`."""
    return (*ids[:start], *new, *ids[start + len(old) :])
