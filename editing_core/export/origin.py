"""Origin: where an edit comes from, kept as plain texts with its weights, and whether a model is the one it is for.

What a file tells of itself is not trusted: texts are cut to a printable line, and facts are checked like any input.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from editing_core.data.table import edit_of, plain
from editing_core.errors import BadRequest, EditingError
from editing_core.models.catalog import CATALOG, HUB_ID
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel
from editing_core.runs.record import RunResult, versions
from editing_core.types import EditRequest

LONGEST = 200  # letters of any one text but the facts
MOST_TEXT = 4 * 2**20  # letters of all texts together
MOST_FACTS = 2000
_COMMIT, _FINGERPRINT = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Origin:
    """Model, revision, editor, facts, versions and date of an edit; empty where it is not known.

    note: what else is to be told, such as what a compression lost.
    """

    model: str = ""
    revision: str = ""
    editor: str = ""
    requests: tuple[EditRequest, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    note: str = ""

    def texts(self) -> dict[str, str]:
        """As `WeightDelta.provenance` keeps it."""
        facts = [plain(request) for request in self.requests]
        told = {
            "model": self.model,
            "revision": self.revision,
            "editor": self.editor,
            "facts": json.dumps(facts, ensure_ascii=False) if facts else "",
            "versions": json.dumps(dict(self.versions)) if self.versions else "",
            "created": self.created,
            "note": self.note,
        }
        return {name: text for name, text in told.items() if text}

    @staticmethod
    def of(texts: Mapping[str, Any]) -> "Origin":
        """What `texts` gave; of anything else what can be read of it. BadRequest where it is too much."""
        given = {name: text for name, text in texts.items() if isinstance(text, str)}
        if sum(map(len, given.values())) > MOST_TEXT:
            raise BadRequest(
                f"The edit's texts have more than {MOST_TEXT:,} letters, which no edit of EditScope needs; choose "
                "another file."
            )
        lines = {name: one_line(given.get(name, "")) for name in ("model", "revision", "editor", "created", "note")}
        return Origin(**lines, requests=_facts(given.get("facts", "")), versions=_versions(given.get("versions", "")))


def one_line(text: str) -> str:
    """A text of unknown origin as one printable line."""
    return "".join(c if c.isprintable() else " " for c in text[:LONGEST]).strip()


def _facts(text: str) -> tuple[EditRequest, ...]:
    try:
        rows = json.loads(text or "[]")
        rows = rows[:MOST_FACTS] if isinstance(rows, list) else []
        return tuple(edit_of(row, number, "file") for number, row in enumerate(rows))
    except (EditingError, ValueError, TypeError, RecursionError):
        return ()


def _versions(text: str) -> dict[str, str]:
    try:
        told = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    pairs = list(told.items())[:20] if isinstance(told, dict) else []
    return {one_line(str(name)): one_line(str(version)) for name, version in pairs}


def origin_of(run: RunResult) -> Origin:
    """Of the edit of a run."""
    editor = " with ".join(filter(None, (run.plan.editor, run.plan.assist.name)))
    chat = run.plan.conventions.chat
    note = "" if chat == "none" else f"Prompts stood in the model's chat template, as a {chat}."
    return Origin(run.model, run.revision, editor, run.requests, run.versions, run.created, note)


def described(run: RunResult) -> Edit:
    """The edit that is a run's result, with its origin as provenance."""
    return run.delta_at(run.chosen).described(origin_of(run).texts())


def made_here(lm: LanguageModel, delta: Edit) -> Edit:
    """The edit with an origin: its own, completed by what is known of the model it is for."""
    own = Origin.of(delta.provenance)
    told = replace(
        own,
        model=own.model or lm.name,
        revision=own.revision or lm.revision,
        versions=own.versions or versions(),
        created=own.created or datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return delta.described({**delta.provenance, **told.texts()})


def base_name(lm: LanguageModel) -> str:
    """How others name the model: its hub id where it has one, never a path, which is nobody's business."""
    row = CATALOG.get(lm.name)
    return row.source if row and not row.bundled else lm.name


def same_model(one: str, other: str) -> bool:
    """Whether two names mean one model: catalog name, hub id, or a folder that ends like one of them."""
    first, second = _known(one), _known(other)
    if first == second:
        return True
    # A folder says nothing of its owner, so it may be any owner's model of that name.
    folder = "/" not in first or "/" not in second
    return folder and not {first, second} & CATALOG.keys() and _tail(first) == _tail(second)


def _known(name: str) -> str:
    """The catalog's name for a model where it has one, else the hub id or the folder's name, in small letters."""
    text = name.strip().replace("\\", "/").rstrip("/").lower()
    owned = HUB_ID.fullmatch(text) is not None
    short = text if owned else _tail(text)
    for row in CATALOG.values():
        sources = set() if row.bundled else {row.source.lower()}
        if not owned:
            sources |= {_tail(source) for source in sources}
        if short == row.name or short in sources:
            return row.name
    return short


def _tail(text: str) -> str:
    return text.rpartition("/")[2]


def check_base(lm: LanguageModel, origin: Origin) -> tuple[str, ...]:
    """Remarks on what the edit does not tell of its model; BadRequest where it tells of another one."""
    if origin.model and not same_model(origin.model, lm.name):
        raise BadRequest(
            f"The edit is for the model {origin.model!r}, here is {lm.name!r}; load the model it was made for."
        )
    both = (origin.revision.lower(), lm.revision.lower())
    alike = any(all(form.fullmatch(text) for text in both) for form in (_COMMIT, _FINGERPRINT))
    if alike and both[0] != both[1]:
        raise BadRequest(
            f"The edit is for revision {origin.revision} of the model, here is {lm.revision}; load that revision."
        )
    remarks = []
    if not origin.model:
        remarks.append("It does not say which model it is for; its shapes fit this one.")
    if not alike and both[0] != both[1]:
        remarks.append("Whether it was made for this revision of the model cannot be told.")
    return tuple(remarks)
