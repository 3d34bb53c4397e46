"""Entries: remembered keys with radii, and what one more does to them; vectors only, no model.

Two whose balls would touch share the way between them where they have different new objects. Where they have the same
one both stay as they are; as published, the older one reaches further instead and the newer one is none. Source:
Hartvigsen et al. 2023 (GRACE), https://arxiv.org/abs/2211.11031, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

PLACES = ("last", "prompt", "all")
GAP = 1e-5  # between two balls that touched; the published value
COVER = 1.01  # a prompt exactly on the border of its ball would fall out by rounding
MOST = 2**63  # of whole numbers in a file
FACTS = {"radius", "labels", "case", "prompt", "places", "shares", "published"}


@dataclass(frozen=True, eq=False)
class Insertion:
    """One operation of the log. key: (p,) and value: (q,) float32 on the CPU; radius: of a new entry.

    labels: tokens of the new object. case, prompt: whose it is. places: where the value stands. shares: a near entry
    of the same object serves instead. published: radii as the published code moves them.
    """

    key: Tensor
    value: Tensor
    radius: float
    labels: tuple[int, ...]
    case: int | str
    prompt: str
    places: str = "last"
    shares: bool = False
    published: bool = False

    def facts(self) -> dict[str, Any]:
        """What is no tensor, as JSON has it."""
        return {name: [*self.labels] if name == "labels" else getattr(self, name) for name in sorted(FACTS)}


@dataclass(frozen=True, eq=False)
class Entries:
    """What a log comes to: the insertions that are entries, and how far each reaches; below zero it never answers."""

    made: tuple[Insertion, ...] = ()
    radii: tuple[float, ...] = ()

    @cached_property
    def keys(self) -> Tensor:
        """(entries, p)."""
        return torch.stack([entry.key for entry in self.made])

    @cached_property
    def values(self) -> Tensor:
        """(entries, q)."""
        return torch.stack([entry.value for entry in self.made])

    def nearest(self, queries: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Number of the entry nearest to each query (n, p) and its distance, each (n,) on the CPU; never of none.

        keys: a copy on the queries' device.
        """
        found = distances(queries, self.keys if keys is None else keys).cpu().min(1)
        return found.indices, found.values

    def route(self, queries: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As `nearest`, and (n,) whether the entry answers."""
        numbers, far = self.nearest(queries, keys)
        return numbers, far, far.double() <= torch.tensor(self.radii, dtype=torch.float64)[numbers]

    def reaching(self, number: int, radius: float) -> Entries:
        """The same with another radius of one entry."""
        return Entries(self.made, (*self.radii[:number], radius, *self.radii[number + 1 :]))

    def less(self, number: int) -> Entries:
        """Without one entry."""
        return Entries(
            self.made[:number] + self.made[number + 1 :],
            self.radii[:number] + self.radii[number + 1 :],
        )

    def plus(self, new: Insertion, radius: float) -> Entries:
        """With one entry more."""
        return Entries((*self.made, new), (*self.radii, radius))


def distances(queries: Tensor, keys: Tensor) -> Tensor:
    """(n, entries) in float32, each from its own differences: through products, equal vectors would be apart."""
    return torch.cdist(queries.float(), keys.float(), compute_mode="donot_use_mm_for_euclid_dist")


def inserted(entries: Entries, new: Insertion) -> Entries:
    """The entries after one insertion.

    Its ball is looked at beside that of the nearest entry; unless it shares, of the nearest with another object, so
    that every fact keeps an entry at its own key. Balls that do not touch stay as they are.
    """
    while (found := _beside(entries, new)) is not None:
        number, far = found
        old, radius = entries.made[number], entries.radii[number]
        if far > new.radius + radius:
            break
        if old.labels == new.labels:
            return expanded(entries, number, far if new.published else COVER * far)
        if new.published or (old.prompt != new.prompt and far > 2 * GAP):
            return split(entries, number, far, new)
        entries = entries.less(number)  # the newer object of one prompt takes the older one's place
    return entries.plus(new, new.radius)


def _beside(entries: Entries, new: Insertion) -> tuple[int, float] | None:
    """Number and distance of the entry an insertion is looked at beside; None where there is none."""
    if not entries.made:
        return None
    far = distances(new.key[None], entries.keys)[0]
    if not new.shares:
        far = far.masked_fill(torch.tensor([old.labels == new.labels for old in entries.made]), torch.inf)
    number = int(far.argmin())
    return None if far[number] == torch.inf else (number, float(far[number]))


def expanded(entries: Entries, number: int, far: float) -> Entries:
    """An entry that reaches so far at least."""
    return entries.reaching(number, max(entries.radii[number], far))


def split(entries: Entries, number: int, far: float, new: Insertion) -> Entries:
    """A new entry so far from an old one of another object: each has half the way, and no more than it had.

    As published, a ball that an earlier split made smaller may grow again.
    """
    old, own = far / 2 - GAP, far / 2
    if not new.published:
        old, own = min(old, entries.radii[number]), min(own, new.radius)
    return entries.reaching(number, old).plus(new, own)


def replayed(log: Sequence[Insertion], entries: Entries | None = None) -> Entries:
    """The entries after all these insertions, in order."""
    entries = entries or Entries()
    for new in log:
        entries = inserted(entries, new)
    return entries


def whole_number(number: Any, below: int = MOST) -> int:
    """The number; ValueError unless it is whole, from 0 and below that."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < below:
        raise ValueError("a codebook's layer and labels are whole numbers from 0")
    return number


def insertion_of(key: Tensor, value: Tensor, facts: Mapping[str, Any]) -> Insertion:
    """What `Insertion.facts` gave, with its tensors; TypeError or ValueError for anything else."""
    if (
        set(facts) != FACTS
        or facts["places"] not in PLACES
        or any(not isinstance(facts[name], bool) for name in ("shares", "published"))
    ):
        raise ValueError("these are no facts of an insertion")
    radius, case, labels = facts["radius"], facts["case"], facts["labels"]
    if isinstance(radius, bool) or not isinstance(radius, int | float) or not 0 <= radius < MOST:
        raise ValueError("a radius is a number from 0")
    if isinstance(case, bool) or not (isinstance(case, str) or (isinstance(case, int) and abs(case) < MOST)):
        raise TypeError("a case is a number or a text")
    if not isinstance(facts["prompt"], str) or not isinstance(labels, list) or not labels:
        raise TypeError("an insertion has a prompt and labels")
    read = {"radius": float(radius), "labels": tuple(whole_number(label) for label in labels)}
    return Insertion(key, value, **{**facts, **read})
