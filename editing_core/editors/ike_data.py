"""What IKE shows: known facts as demonstrations, which of them for which edits, and as what kind."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from editing_core.models.demonstrations import Demonstration
from editing_core.types import EditRequest, Probe

# Of eight one copy, three updates, four retentions; begun so that a few have all three kinds.
KINDS_IN_TURN = ("retain", "update", "copy", "retain", "update", "retain", "update", "retain")
Case = int | str


@dataclass(frozen=True)
class Known:
    """A known fact, and the made-up object it has as a new fact. template: the prompt, with `{}` for the subject."""

    fact: Probe
    template: str
    made_up: str

    @property
    def sentence(self) -> str:
        """The new fact told."""
        return f"{self.fact.prompt} {self.made_up}"


@dataclass(frozen=True)
class Pool:
    """Known facts that may be shown. templates: wordings by relation. by_object: facts by relation and true object."""

    known: tuple[Known, ...]
    templates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by_object: Mapping[tuple[str, str], tuple[Probe, ...]] = field(default_factory=dict)

    @staticmethod
    def of(facts: Sequence[Probe], requests: Sequence[EditRequest], seed: int) -> "Pool":
        """Of facts that say nothing of what is measured, those about no subject that is edited or measured.

        A fact's made-up object is that of another one of its relation.
        """
        taken = {name.casefold() for request in requests for name in _subjects(request)}
        free = [fact for fact in facts if fact.place and fact.family and str(fact.subject).casefold() not in taken]
        templates: dict[str, dict[str, None]] = {}
        by_object: dict[tuple[str, str], list[Probe]] = {}
        for fact in free:
            templates.setdefault(fact.family, {})[str(fact.template)] = None
            by_object.setdefault((fact.family, fact.answer), []).append(fact)
        objects: dict[str, list[str]] = {}
        for family, name in by_object:
            objects.setdefault(family, []).append(name)
        known = []
        for fact in free:
            others = [name for name in objects[fact.family] if name != fact.answer]
            if others:
                made_up = random.Random(f"{seed}|{fact.family}|{fact.subject}").choice(others)
                known.append(Known(fact, str(fact.template), made_up))
        wordings = {family: tuple(found) for family, found in templates.items()}
        return Pool(tuple(known), wordings, {key: tuple(found) for key, found in by_object.items()})

    def shown(self, known: Known, kind: str, seed: int) -> Demonstration | None:
        """The fact as a demonstration of this kind, its rank open; None where it has nothing to show there."""
        fact, subject = known.fact, str(known.fact.subject)
        rng = random.Random(f"{seed}|{fact.family}|{subject}|{kind}")
        if kind == "copy":
            return Demonstration(kind, subject, known.sentence, fact.prompt, known.made_up, 1)
        if kind == "update":
            others = [form for form in self.templates[fact.family] if form != known.template]
            prompt = rng.choice(others).replace("{}", subject) if others else ""
            return Demonstration(kind, subject, known.sentence, prompt, known.made_up, 1) if others else None
        # A neighbor as data sets have them: another subject whose answer is what this one's was.
        beside = [other for other in self.by_object[fact.family, fact.answer] if other.subject != fact.subject]
        if not beside:
            return None
        other = rng.choice(beside)
        return Demonstration(kind, subject, known.sentence, other.prompt, other.answer, 1)


def _subjects(request: EditRequest) -> Iterator[str]:
    """Whom demonstrations may not be about."""
    yield request.subject
    for probe in (*request.neighbors, *request.locality, *request.portability):
        if probe.subject:
            yield probe.subject


@dataclass(frozen=True)
class Found:
    """A fact, or in the framework's form a demonstration, found for a request. rank: 1 is most like it."""

    number: int
    rank: int
    similarity: float | None


@dataclass(frozen=True)
class Retrieval:
    """What was found for every request. all: in the framework's form each fact's demonstrations, else none."""

    pool: Pool
    found: Mapping[Case, tuple[Found, ...]]
    all: tuple[Demonstration, ...] | None = None

    def demonstrations(self, cases: Sequence[Case], count: int, seed: int) -> tuple[Demonstration, ...]:
        """So many for these requests together, the most similar to any of them first."""
        best: dict[int, Found] = {}
        for entry in sorted((e for case in cases for e in self.found.get(case, ())), key=lambda e: (e.rank, e.number)):
            best.setdefault(entry.number, entry)
        if self.all is not None:
            return _ranked([(self.all[entry.number], entry) for entry in best.values()][:count])
        return _ranked(self._by_ratio(list(best.values()), cases, count, seed))

    def _by_ratio(
        self, best: Sequence[Found], cases: Sequence[Case], count: int, seed: int
    ) -> list[tuple[Demonstration, Found]]:
        """Kinds in shuffled order, each taken by the most similar fact that can show it."""
        open_ = kinds(count, f"{seed}|{'|'.join(map(str, cases))}")
        picked = []
        for entry in best:
            for kind in dict.fromkeys(open_):
                if demonstration := self.pool.shown(self.pool.known[entry.number], kind, seed):
                    picked.append((demonstration, entry))
                    open_.remove(kind)
                    break
        return picked


def kinds(count: int, seed: str) -> list[str]:
    """The kinds of so many demonstrations in shuffled order: of every eight, 1 copy, 3 updates, 4 retentions."""
    found = [KINDS_IN_TURN[i % len(KINDS_IN_TURN)] for i in range(count)]
    random.Random(seed).shuffle(found)
    return found


def _ranked(picked: Sequence[tuple[Demonstration, Found]]) -> tuple[Demonstration, ...]:
    return tuple(
        replace(demonstration, rank=rank, similarity=entry.similarity)
        for rank, (demonstration, entry) in enumerate(picked, 1)
    )
