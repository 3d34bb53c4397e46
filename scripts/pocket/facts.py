"""Choose the facts a pocket model learns, and split them into edited and neighboring subjects.

In: a table of (relation, subject, object) triples. Out: a list of Fact, deterministic for a seed.
The source table is T-REx / LAMA by way of ParaRel (Elazar et al. 2021, https://arxiv.org/abs/2102.01017).
"""

import csv
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

RELATIONS = ["P103", "P1412", "P27", "P30", "P413", "P495", "P176", "P17", "P136", "P937", "P106", "P20"]
RELATIONS += ["P19", "P449", "P159", "P364", "P37", "P178", "P1303", "P101", "P39", "P140", "P108", "P740"]

# Relations whose objects answer nearly the same question: a subject may appear in one of each set
# only, else "X is from" would have two right answers and the model could learn neither.
OVERLAPPING = (
    {"P17", "P30", "P495", "P27"},
    {"P19", "P20", "P740", "P937", "P159"},
    {"P176", "P178"},
    {"P103", "P1412", "P364", "P37"},
    {"P108", "P449"},
    {"P106", "P39", "P413", "P101", "P136"},
)

NEIGHBORS_PER_OBJECT = 11  # ten evaluation neighbors, and one to spare


@dataclass(frozen=True)
class Fact:
    """One triple. `edited` tells whether its subject may be edited; otherwise it may be a neighbor."""

    relation: str
    subject: str
    object: str
    edited: bool

    @property
    def key(self) -> tuple[str, str]:
        """What identifies the fact: one object per relation and subject."""
        return self.relation, self.subject


def read_triples(path: Path) -> list[tuple[str, str, str]]:
    """Rows of a tab-separated file with the columns relation_id, subject, object."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["relation_id"], row["subject"], row["object"]) for row in rows]


def select_facts(triples: Iterable[tuple[str, str, str]], per_relation: int, seed: int) -> list[Fact]:
    """About `per_relation` unambiguous facts per relation, from objects with many subjects.

    Of each object's subjects, `NEIGHBORS_PER_OBJECT` are set aside as neighbors and never edited, so
    that no edit of a batch can legitimately change a neighbor of another.
    """
    rng = random.Random(seed)
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for relation, subject, answer in _unambiguous(list(triples)):
        groups[relation][answer].append(subject)
    facts: list[Fact] = []
    for relation in RELATIONS:
        facts += _of_relation(relation, groups[relation], per_relation, rng)
    return facts


def write_facts(facts: Sequence[Fact], path: Path) -> None:
    """The chosen facts as a tab-separated table, `edited` as 0 or 1."""
    lines = ["relation_id\tsubject\tobject\tedited"]
    lines += [f"{f.relation}\t{f.subject}\t{f.object}\t{int(f.edited)}" for f in facts]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_facts(path: Path) -> list[Fact]:
    """The inverse of `write_facts`."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    rows = (line.split("\t") for line in lines)
    return [Fact(relation, subject, answer, edited == "1") for relation, subject, answer, edited in rows]


def _unambiguous(triples: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    answers: dict[tuple[str, str], set[str]] = defaultdict(set)
    relations: dict[str, set[str]] = defaultdict(set)
    for relation, subject, answer in triples:
        if relation in RELATIONS:
            answers[relation, subject].add(answer)
            relations[subject].add(relation)

    def usable(relation: str, subject: str, answer: str) -> bool:
        overlaps = any(relation in group and len(relations[subject] & group) > 1 for group in OVERLAPPING)
        # An object inside the subject ("BMW M5" -> "BMW") is copied, not stored: nothing to edit.
        copied = any(word.lower() in subject.lower() for word in answer.split())
        plain = subject.isascii() and len(subject) <= 40 and not set(subject) & set('{}"\t')
        single = len(answers[relation, subject]) == 1
        return single and plain and not overlaps and not copied and " " not in answer

    return sorted({t for t in triples if t[0] in RELATIONS and usable(*t)})


def _of_relation(relation: str, groups: dict[str, list[str]], per_relation: int, rng: random.Random) -> list[Fact]:
    wanted = {answer: subjects for answer, subjects in groups.items() if len(subjects) >= 4}
    sizes = Counter({answer: len(subjects) for answer, subjects in wanted.items()})
    shares = _shares(sizes, per_relation)
    facts = []
    for answer, count in sorted(shares.items()):
        subjects = rng.sample(sorted(wanted[answer]), count)
        kept = min(NEIGHBORS_PER_OBJECT, count)
        facts += [Fact(relation, s, answer, i >= kept) for i, s in enumerate(subjects)]
    return facts


def _shares(sizes: Counter[str], total: int) -> dict[str, int]:
    """How many subjects each object gets: as even as the table allows, at most `total` together."""
    shares = dict.fromkeys(sizes, 0)
    # Objects that can fill a neighbor pool come first: the others add variety but no records.
    order = [answer for answer, _ in sizes.most_common(10)]
    while sum(shares.values()) < total:
        open_ = [a for a in order if shares[a] < sizes[a]]
        if not open_:
            break
        for answer in open_[: total - sum(shares.values())]:
            shares[answer] += 1
    return {answer: count for answer, count in shares.items() if count}
