"""Share: a case as a value that fits into a link, and as Python or a command that does the same again.

A link holds what was asked (model, facts, editor, settings, seed) and nothing else: no result, no weights, no name, no
token. What comes back is checked like any input; how much a link may unpack to is bounded before it is unpacked.
"""

import base64
import binascii
import json
import shlex
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from editing_core.conventions import CLEAN, CONVENTIONS, Conventions
from editing_core.data.table import edit_of, plain
from editing_core.editors.assist import Assist
from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadRequest, BadSetting
from editing_core.models.catalog import CATALOG, is_hub_id, unknown
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.settings import Settings, shown
from editing_core.types import EditRequest

VERSION = 1
PARAMETER = "case"  # of the page's address
MOST_LETTERS = 12_000  # of a link: twenty facts with all their probes; servers refuse much longer ones
MOST_BYTES = 100_000  # that it may unpack to
MOST_FACTS = 100
HIGHEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Case:
    """What was asked: which model, which facts, how."""

    model: str
    requests: tuple[EditRequest, ...]
    plan: EditPlan

    def to_plain(self) -> dict[str, Any]:
        """JSON-able; all settings of the editor are spelled out, so that later presets change nothing."""
        plan = self.plan
        return {
            "version": VERSION,
            "model": self.model,
            "editor": plan.editor,
            "settings": asdict(plan.settings),
            "stop": asdict(plan.stop),
            "seed": plan.seed,
            "assist": _changes(plan.assist, Assist()),
            "conventions": _changes(plan.conventions, CLEAN),
            "facts": [plain(request) for request in self.requests],
        }

    @staticmethod
    def of_plain(told: Any) -> "Case":
        """What `to_plain` gave, after JSON; BadRequest, BadSetting or UnknownName for anything else."""
        if not isinstance(told, Mapping) or told.get("version") != VERSION:
            raise BadRequest("This is no case shared by this version of EditScope; copy the link again.")
        row = editor_row(_text(told, "editor"))
        seed = told.get("seed", 0)
        if type(seed) is not int or not 0 <= seed <= HIGHEST_SEED:
            raise BadSetting(f"seed is {shown(seed)}, allowed are whole numbers from 0 to {HIGHEST_SEED}; choose one.")
        plan = EditPlan(
            row.name,
            _settings(row.settings_class(), told, "settings"),
            _settings(StopSettings(), told, "stop"),
            seed,
            _settings(Assist(), told, "assist"),
            _settings(Conventions(), told, "conventions"),
        )
        facts = told.get("facts")
        if not isinstance(facts, list) or not 1 <= len(facts) <= MOST_FACTS:
            raise BadRequest(f"A shared case has 1 to {MOST_FACTS} facts, this one has not; copy the link again.")
        requests = tuple(edit_of(fact, number, "link") for number, fact in enumerate(facts))
        return Case(_model(_text(told, "model")), requests, plan)

    def to_text(self) -> str:
        """The case in the letters a link may have; BadRequest when it is too much for one."""
        packed = zlib.compress(json.dumps(self.to_plain(), ensure_ascii=False, separators=(",", ":")).encode(), 9)
        text = base64.urlsafe_b64encode(packed).decode().rstrip("=")
        if len(self.requests) > MOST_FACTS or len(text) > MOST_LETTERS:
            raise BadRequest(
                f"{len(self.requests)} facts with their probes do not fit into a link of {MOST_LETTERS:,} letters; "
                "save the session as a file, or share fewer."
            )
        return text

    @staticmethod
    def of_text(text: str) -> "Case":
        """The case of a link, or of the part of it behind "case="."""
        text = str(text).strip().rpartition(f"{PARAMETER}=")[2].partition("&")[0]
        if len(text) > MOST_LETTERS:
            raise BadRequest(
                f"The link has more than {MOST_LETTERS:,} letters, which no shared case has; copy it again."
            )
        try:
            packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            opened = zlib.decompressobj()
            whole = opened.decompress(packed, MOST_BYTES)
            if not opened.eof:
                raise ValueError("more than fits")
            return Case.of_plain(json.loads(whole))
        except (ValueError, zlib.error, binascii.Error, RecursionError) as error:
            raise BadRequest("The link is damaged or cut off; copy it again.") from error

    def to_python(self) -> str:
        """A script that does the same edit with `editing_core`."""
        plan, row = self.plan, editor_row(self.plan.editor)
        own = _changes(plan.settings, row.preset(self.model).settings)
        extra = "".join(
            f",\n    {name}={value!r}"
            for name, value, usual in (
                ("seed", plan.seed, 0),
                ("assist", plan.assist, Assist()),
                ("conventions", plan.conventions, CLEAN),
            )
            if value != usual
        )
        needed = {name for name in ("Assist", "Conventions") if f"{name}(" in extra}
        settings = f"editor_row({plan.editor!r}).preset({self.model!r}).settings" + (
            f".changed({own!r})" if own else ""
        )
        facts = "".join(f"    {_call(request)},\n" for request in self.requests)
        probes = ", Probe" if "Probe(" in facts else ""
        imports = [f"from editing_core import EditPlan, EditRequest, LanguageModel{probes}, StopSettings, run_edit"]
        imports += ["from editing_core.conventions import Conventions"] if "Conventions" in needed else []
        imports += ["from editing_core.editors.assist import Assist"] if "Assist" in needed else []
        imports += ["from editing_core.registry import editor_row"]
        return "\n".join(
            (
                *imports,
                "",
                f"requests = [\n{facts}]",
                f"plan = EditPlan(\n    {plan.editor!r},\n    {settings},\n    {plan.stop!r}{extra},\n)",
                f"run = run_edit(LanguageModel.load({self.model!r}), requests, plan)",
                "print(run.verdict())",
                "print(run.iterations)",
                "",
            )
        )

    def to_command(self) -> str:
        """A shell command that does the same edit and prints it."""
        return shlex.join(["python", "-m", "editing_core", "edit", *(self._flags() or ["--case", self.to_text()])])

    def _flags(self) -> list[str]:
        """The options that say the same, where they can."""
        fact, plan = self.requests[0], self.plan
        neighbors = [probe for probe in fact.neighbors if probe.subject or probe.aliases or probe.family]
        named = {"subject", "prompt", "target_new", "target_true", "paraphrases", "neighbors", "case_id", "source"}
        if len(self.requests) > 1 or neighbors or set(plain(fact)) - named or fact.case_id != 0:
            return []
        flags = ["--model", self.model, "--editor", plan.editor]
        flags += ["--subject", fact.subject, "--prompt", fact.prompt, "--new", fact.target_new]
        flags += ["--old", fact.target_true] if fact.target_true else []
        flags += [part for text in fact.paraphrases for part in ("--paraphrase", text)]
        flags += [part for probe in fact.neighbors for part in ("--neighbor", f"{probe.prompt}={probe.answer}")]
        flags += ["--iterations", str(plan.stop.iterations), "--stop", plan.stop.stop]
        flags += ["--tolerance", repr(plan.stop.tolerance), "--collapse-factor", repr(plan.stop.collapse_factor)]
        flags += ["--seed", str(plan.seed)]
        preset = next((name for name, c in CONVENTIONS.items() if c == plan.conventions), "clean")
        usual = editor_row(plan.editor).preset(self.model, preset).settings
        flags += ["--preset", preset] if preset != "clean" else []
        flags += _sets("--set", _changes(plan.settings, usual))
        assist = _changes(plan.assist, Assist())
        short = {"neighbors": "--neighbors", "keys": "--neighbor-keys", "statistics": "--statistics"}
        flags += [part for key, flag in short.items() if key in assist for part in (flag, str(assist.pop(key)))]
        flags += _sets("--assist", assist)
        return flags + _sets("--convention", _changes(plan.conventions, CONVENTIONS[preset]))


def _changes(settings: Settings, usual: Settings) -> dict[str, Any]:
    """The fields that differ."""
    values = {f.name: getattr(settings, f.name) for f in fields(settings)}
    return {name: value for name, value in values.items() if value != getattr(usual, name)}


def _sets(flag: str, changes: Mapping[str, Any]) -> list[str]:
    """KEY=VALUE after a flag, for each of them."""
    written = {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in changes.items()}
    return [part for key, value in written.items() for part in (flag, f"{key}={value}")]


def _settings(usual: Settings, told: Mapping[str, Any], name: str) -> Any:
    values = told.get(name, {})
    if not isinstance(values, Mapping):
        raise BadSetting(f"{name} of a shared case must be an object, got {shown(values)}; copy the link again.")
    return usual.changed({str(k): tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _text(told: Mapping[str, Any], name: str) -> str:
    value = told.get(name)
    if not isinstance(value, str):
        raise BadRequest(f"The {name} of a shared case must be text, got {shown(value)}; copy the link again.")
    return value


def _model(name: str) -> str:
    """A name of the catalog or a hub id: what a link says never reaches the file system."""
    if name in CATALOG or is_hub_id(name):
        return name
    raise unknown(name, "model", CATALOG)


def _call(value: Any) -> str:
    """The call that makes a request or probe, without fields that hold their default."""
    given = []
    for field in fields(value):
        held = getattr(value, field.name)
        if held != field.default:
            parts = (
                [_call(part) if hasattr(part, "answer") else repr(part) for part in held]
                if isinstance(held, tuple)
                else []
            )
            given.append(f"{field.name}=({', '.join(parts)},)" if parts else f"{field.name}={held!r}")
    return f"{type(value).__name__}({', '.join(given)})"
