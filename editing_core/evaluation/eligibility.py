"""Which neighbors may assist an edit, and what is then left to measure.

A neighbor can assist when the model knows it and its own subject's place is known. A record qualifies for
neighbor assistance when enough can. Source: Baghel et al. 2025, https://arxiv.org/abs/2503.11895 (section 5.1).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from editing_core.evaluation.scoring import score_objects
from editing_core.models.language_model import LanguageModel
from editing_core.types import EditRequest, Probe


@dataclass(frozen=True)
class Eligibility:
    """known, placed: per neighbor whether the model answers it rightly, whether its subject's place is known.

    reason: why the record does not qualify; empty when it does.
    """

    case_id: int | str
    known: tuple[bool, ...]
    placed: tuple[bool, ...]
    reason: str

    @property
    def eligible(self) -> bool:
        """Whether the record qualifies."""
        return not self.reason

    @property
    def usable(self) -> tuple[int, ...]:
        """Numbers of the neighbors that can assist."""
        return tuple(i for i, (k, p) in enumerate(zip(self.known, self.placed, strict=True)) if k and p)


def eligibility(lm: LanguageModel, requests: Sequence[EditRequest], minimum: int = 2) -> list[Eligibility]:
    """Ask the model, as it is, for every neighbor's answer; one entry per request.

    minimum: how many neighbors it must know: one assists, at least one is left to measure. Requests that came
    with their edit neighbors qualify as they are. Answers are scored right-padded, whatever the conventions, so
    that a record qualifies or not by what the model knows.
    """
    asked = [(n.prompt, n.answer) for r in requests for n in r.neighbors]
    right = iter([score.hit >= 1.0 for score in score_objects(lm, asked)]) if asked else iter(())
    found = []
    for request in requests:
        known = tuple(next(right) for _ in request.neighbors)
        placed = tuple(n.place is not None for n in request.neighbors)
        found.append(Eligibility(request.case_id, known, placed, _reason(request, known, placed, minimum)))
    return found


def _reason(request: EditRequest, known: tuple[bool, ...], placed: tuple[bool, ...], minimum: int) -> str:
    if request.edit_neighbors:
        placed_one = any(n.place for n in request.edit_neighbors)
        return "" if placed_one else "the subject's place is known for none of its edit neighbors"
    if not request.neighbors:
        return "it has no neighbors"
    if sum(known) < minimum:
        return f"the model knows {sum(known)} of its {len(known)} neighbors, {minimum} are needed"
    if not any(k and p for k, p in zip(known, placed, strict=True)):
        return "the subject's place is known for none of the neighbors the model knows"
    return ""


def with_edit_neighbors(
    requests: Sequence[EditRequest],
    found: Sequence[Eligibility],
    count: int = 1,
    choice: str = "first",
    seed: int = 0,
    only_known: bool = False,
) -> tuple[EditRequest, ...]:
    """Requests with up to `count` of their usable neighbors made edit neighbors; those without keep all.

    Where the model knows more than one neighbor, one of them is left to measure. A neighbor about a subject that
    is edited itself does not assist. Nothing that assists any of the edits is measured in any of them, neither
    its prompt nor its subject. only_known: also drop the neighbors the model does not know, as the paper's subsets do.
    """
    chosen: list[EditRequest] = []
    edited = {r.subject.casefold() for r in requests}
    for request, entry in zip(requests, found, strict=True):
        kept = request
        if only_known:
            kept = replace(kept, neighbors=_where(request.neighbors, entry.known))
        if entry.eligible and not request.edit_neighbors:
            numbers = [i for i in entry.usable if (request.neighbors[i].subject or "").casefold() not in edited]
            if choice == "random":
                random.Random(f"{seed}|{request.case_id}").shuffle(numbers)
            most = min(count, max(1, sum(entry.known) - 1))
            kept = replace(kept, edit_neighbors=tuple(request.neighbors[i] for i in numbers[:most]))
        chosen.append(kept)
    return without_assisting(chosen)


def without_assisting(requests: Sequence[EditRequest]) -> tuple[EditRequest, ...]:
    """Requests without the neighbors, locality and portability probes that assist any of them."""
    assisting = [n for r in requests for n in r.edit_neighbors]
    prompts, subjects = {n.prompt for n in assisting}, {n.subject.casefold() for n in assisting if n.subject}

    def measured(n: Probe) -> bool:
        return n.prompt not in prompts and not (n.subject and n.subject.casefold() in subjects)

    return tuple(
        replace(
            r,
            neighbors=tuple(filter(measured, r.neighbors)),
            locality=tuple(filter(measured, r.locality)),
            portability=tuple(filter(measured, r.portability)),
        )
        for r in requests
    )


def with_controls(requests: Sequence[EditRequest], pool: Sequence[Probe], seed: int = 0) -> tuple[EditRequest, ...]:
    """Requests whose edit neighbors are exchanged for as many random facts: the control of neighbor assistance.

    pool: known facts with their places. None whose subject stands in any text that is edited or measured is taken,
    none twice.
    """
    texts = "\n".join(text for r in requests for text in r.texts).casefold()
    free = [p for p in pool if p.place and p.subject and p.subject.casefold() not in texts]
    random.Random(seed).shuffle(free)
    facts = iter(free)
    return tuple(
        replace(r, edit_neighbors=tuple(f for _, f in zip(r.edit_neighbors, facts, strict=False))) for r in requests
    )


def _where(probes: tuple[Probe, ...], flags: tuple[bool, ...]) -> tuple[Probe, ...]:
    return tuple(p for p, flag in zip(probes, flags, strict=True) if flag)
