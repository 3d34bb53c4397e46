"""Data sets by name, and how trials are drawn from them.

In: "FORMAT" (bundled, or fetched from the hub), "FORMAT:PATH" or "pocket-facts:PART". Out: Loaded requests.
A new format is one file with a `parse`, and one row of FORMATS.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from editing_core import paths
from editing_core.data import counterfact, eligible, knowedit, portability, table, zsre
from editing_core.data.files import locate, read_records
from editing_core.data.hub import Hub, fetch
from editing_core.data.problems import BadRecords, Malformed, Problem
from editing_core.errors import BadRequest
from editing_core.models.catalog import unknown
from editing_core.types import EditRequest

KNOWEDIT = ("zjunlp/KnowEdit", "6d218881e60c7c8be836bd2befd598eb3b318be4")


@dataclass(frozen=True)
class Format:
    """A data set on offer.

    source: where it is described, empty for our own. parse: (record, row counted from 1, source) -> EditRequest, or
    Malformed. options: further arguments of parse with the values they take, the default first. parts: of a bundled
    file, each with what its records are marked as, the default first.
    """

    name: str
    label: str
    description: str
    source: str
    parse: Callable[..., EditRequest]
    hub: Hub | None = None
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


FORMATS = {
    row.name: row
    for row in (
        Format(
            "pocket-facts",
            "Pocket facts",
            "1,200 bundled edits of facts that pocket-gpt2 knows, in CounterFact's form. Presets were chosen on tune: "
            "results come from test, and figures of all, which is both, are for speed and not for quality.",
            "https://arxiv.org/abs/2102.01017",
            counterfact.parse,
            parts={"test": ("test",), "tune": ("tune",), "all": ("tune", "test")},
        ),
        Format(
            "counterfact",
            "CounterFact",
            "Made-up facts with paraphrases and ten neighbors; also multi-CounterFact and subsets.",
            "https://arxiv.org/abs/2202.05262",
            counterfact.parse,
            hub=Hub("azhx/counterfact", "c01c413f856ee38f5c080c9fc5e87aff478e2ff9", split="train+test"),
        ),
        Format(
            "counterfact-neighbor",
            "CounterFact with edit neighbors",
            "CounterFact records with one neighbor the editor may use, and others for measuring.",
            "https://arxiv.org/abs/2503.11895",
            eligible.parse,
        ),
        Format(
            "zsre",
            "ZsRE",
            "Questions with their answers, one rephrasing and one unrelated question each.",
            "https://arxiv.org/abs/2110.11309",
            zsre.parse,
            options={"direction": zsre.DIRECTIONS},
        ),
        Format(
            "knowedit",
            "KnowEdit WikiRecent",
            "Recent Wikidata facts with what follows from them and what must stay.",
            "https://arxiv.org/abs/2401.01286",
            knowedit.parse,
            hub=Hub(*KNOWEDIT, file="benchmark/wiki_recent/recent_test.json"),
        ),
        Format(
            "wiki-counterfact",
            "KnowEdit WikiCounterfact",
            "Made-up Wikidata facts with what follows from them and what must stay.",
            "https://arxiv.org/abs/2401.01286",
            knowedit.parse,
            hub=Hub(*KNOWEDIT, file="benchmark/wiki_counterfact/test_cf.json"),
        ),
        Format(
            "portability",
            "ZsRE and CounterFact with portability",
            "Records with a question that follows from the edit by one step of reasoning.",
            "https://arxiv.org/abs/2305.13172",
            portability.parse,
        ),
        Format(
            "table",
            "Own table",
            "Your own edits as CSV, JSONL or JSON; templates come with EditScope.",
            "",
            table.parse,
        ),
    )
}


@dataclass(frozen=True)
class Loaded(Sequence[EditRequest]):
    """The good requests of a data set in the order of the file, and the problems of the records left out."""

    name: str
    requests: tuple[EditRequest, ...]
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[EditRequest]:
        return iter(self.requests)

    @overload
    def __getitem__(self, index: int) -> EditRequest: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[EditRequest, ...]: ...
    def __getitem__(self, index: int | slice) -> EditRequest | tuple[EditRequest, ...]:
        return self.requests[index]


def load_dataset(name: str, skip_bad: bool = False, **options: str) -> Loaded:
    """All requests of "FORMAT", "FORMAT:PATH" or "pocket-facts:PART".

    skip_bad: go on with the good records and list the problems of the others. Otherwise BadRecords tells all
    problems at once; it is raised in any case when no record is good. options: those of the format.
    """
    base, _, rest = name.partition(":")
    if base not in FORMATS:
        raise unknown(base, "data set", FORMATS)
    format_ = FORMATS[base]
    _check_options(format_, options)
    full_name, records = _records(format_, rest)
    requests, problems = _parsed(format_, records, full_name, options)
    if problems and not (skip_bad and requests):
        raise BadRecords(full_name, problems, len(records))
    return Loaded(full_name, tuple(requests), tuple(problems))


def _check_options(format_: Format, options: Mapping[str, str]) -> None:
    for option, value in options.items():
        if option not in format_.options:
            known = ", ".join(format_.options) or "none"
            raise BadRequest(
                f"The data set {format_.name} has no option {option[:40]!r}, it has {known}; leave it out."
            )
        if value not in format_.options[option]:
            raise unknown(value, f"{option} of {format_.name}", format_.options[option])


def _records(format_: Format, rest: str) -> tuple[str, list[Any]]:
    """(full name, records): of a bundled part, of a file, or from the hub."""
    if format_.parts:
        part = rest or next(iter(format_.parts))
        if part not in format_.parts:
            raise unknown(part, f"part of {format_.name}", format_.parts)
        records = read_records(paths.assets() / "benchmark" / f"{format_.name}.json")
        return f"{format_.name}:{part}", [r for r in records if r["part"] in format_.parts[part]]
    if rest:
        path = locate(rest)
        if not path.is_file():
            raise BadRequest(
                f"There is no file {rest[:200]!r}; give a path from here, or from the folder EDITSCOPE_DATA names."
            )
        return f"{format_.name}:{path.name}", read_records(path)
    if format_.hub is None:
        raise BadRequest(f"The data set {format_.name} is not bundled; give a path: {format_.name}:PATH.")
    return format_.name, fetch(format_.hub, format_.name)


def _parsed(
    format_: Format, records: Sequence[Any], source: str, options: Mapping[str, str]
) -> tuple[list[EditRequest], list[Problem]]:
    """The requests in order, and a problem for every record that gives none or repeats a case_id."""
    requests: list[EditRequest] = []
    problems: list[Problem] = []
    rows: dict[int | str, int] = {}
    for row, record in enumerate(records, 1):
        try:
            if isinstance(record, Malformed):
                raise record
            request = format_.parse(record, row, source, **options)
            if request.case_id in rows:
                got = f"The case_id {request.case_id!r} is taken by row {rows[request.case_id]}"
                raise Malformed("case_id", got, "give every record one of its own")
        except Malformed as error:
            problems.append(Problem(row, error.field, error.expected, error.got))
        else:
            rows[request.case_id] = row
            requests.append(request)
    return requests, problems


def sample(requests: Sequence[EditRequest], limit: int, trial: int) -> list[EditRequest]:
    """Trial number `trial` of `limit` requests: the trials of one size share no record, and are always the same.

    The requests are shuffled once with a fixed seed, and trial T takes the T-th block. All of them together keep
    the order of the file.
    """
    total = len(requests)
    if not 1 <= limit <= total:
        raise BadRequest(f"{limit} edits were asked for, this data set part has {total}; ask for 1 to {total}.")
    last = total // limit - 1
    if not 0 <= trial <= last:
        raise BadRequest(
            f"Trial {trial} was asked for, this data set has {total} records: with {limit} each there are trials "
            f"0 to {last}; ask for one of them, or for fewer edits."
        )
    if limit == total:
        return list(requests)
    order = list(requests)
    random.Random(0).shuffle(order)
    return order[trial * limit : (trial + 1) * limit]
