"""The README.md of an export: what was edited, in which model, how to load it, and what checking it found."""

import json
import re

from editing_core.export.origin import Origin, base_name, one_line
from editing_core.export.verify import Check
from editing_core.models.catalog import CATALOG, HUB_ID
from editing_core.models.delta import Dense, Update
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel
from editing_core.types import EditRequest

README = "README.md"
SHOWN = 20  # facts and parameters that are listed
_SPECIAL = re.compile(r"([\\`*_\[\]<>#|])")
_TAGS = {"adapter": ["lora", "peft"], "merged": ["merged"], "edit": []}
_LIBRARY = {"adapter": "peft", "merged": "transformers", "edit": "safetensors"}

_LOAD_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base}{revision}, dtype={dtype})
model = PeftModel.from_pretrained(base, "PATH OR REPOSITORY OF THIS ADAPTER").eval()
tokenizer = AutoTokenizer.from_pretrained({base}{revision})"""
_LOAD_MERGED = """from transformers import AutoModelForCausalLM, AutoTokenizer

place = "PATH OR REPOSITORY OF THIS MODEL"
model = AutoModelForCausalLM.from_pretrained(place, dtype={dtype}).eval()
tokenizer = AutoTokenizer.from_pretrained(place)"""
_LOAD_EDIT = """from editing_core import LanguageModel
from editing_core.export.importing import import_edit

lm = LanguageModel.load({name}, dtype={dtype})
delta = import_edit(lm, "PATH OF THIS EDIT")
with delta.applied(lm):  # the model is bit-equal to before afterwards
    ..."""
_LOAD = {"adapter": _LOAD_ADAPTER, "merged": _LOAD_MERGED, "edit": _LOAD_EDIT}


def card(lm: LanguageModel, delta: Edit, kind: str, check: Check | None = None) -> str:
    """The text, as Markdown with the header the hub reads.

    kind: "adapter", "merged" or "edit". delta: with its origin as provenance. check: None where none was made.
    """
    origin = Origin.of(delta.provenance)
    base = base_name(lm)
    parts = [
        _header(lm, kind),
        f"# An edit of {_escaped(base)}",
        _asked(origin, base, lm.revision),
        f"## Load it\n\n```python\n{_loading(lm, kind)}\n```{_packed(lm)}",
        f"## What changed\n\n{_changes(delta)}",
        f"## Checked\n\n{check.told() if check else 'It was not loaded again to compare it with the edit.'}",
    ]
    return "\n\n".join(parts) + "\n"


def _packed(lm: LanguageModel) -> str:
    """That the base was no plain one, if it was not."""
    if lm.quantised == "none":
        return ""
    return (
        f"\n\nThe edit was made and checked on the model packed in {lm.quantised} (bitsandbytes); pass the same "
        "`quantization_config` for the very same numbers."
    )


def _header(lm: LanguageModel, kind: str) -> str:
    base = base_name(lm)
    tags = "".join(f"- {tag}\n" for tag in ("knowledge-editing", "editscope", *_TAGS[kind]))
    # The hub takes a base model for one of its own, so a folder's name is left out.
    published = HUB_ID.fullmatch(base) and ".." not in base
    named = f"base_model: {base}\n" if published else ""
    return f"---\n{named}library_name: {_LIBRARY[kind]}\ntags:\n{tags}---"


def _asked(origin: Origin, base: str, revision: str) -> str:
    count = len(origin.requests)
    facts = f"{count} fact{'' if count == 1 else 's'}" if count else "facts that are not known here"
    by = f" by {_escaped(origin.editor)}" if origin.editor else ""
    made = f", {_escaped(origin.created)}" if origin.created else ""
    text = f"EditScope wrote {facts} into {_escaped(base)} (revision {_escaped(revision)}){by}{made}."
    lines = [f"- {_fact(request)}" for request in origin.requests[:SHOWN]]
    lines += [f"- and {count - SHOWN} more"] if count > SHOWN else []
    used = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
    rest = " ".join(filter(None, (_escaped(origin.note), f"Made with {_escaped(used)}." if used else "")))
    return "\n\n".join(filter(None, (text, "\n".join(lines), rest)))


def _fact(request: EditRequest) -> str:
    old = f" (before: {_escaped(request.target_true)})" if request.target_true else ""
    return f"{_escaped(request.full_prompt)} **{_escaped(request.target_new)}**{old}"


def _loading(lm: LanguageModel, kind: str) -> str:
    row = CATALOG.get(lm.name)
    published = HUB_ID.fullmatch(base_name(lm)) is not None
    place = f"FOLDER OF {base_name(lm)}{', AS EDITSCOPE BRINGS IT' if row else ''}"
    base = base_name(lm) if published else place
    revision = f", revision={json.dumps(one_line(lm.revision))}" if published else ""
    dtype = json.dumps(str(lm.model.dtype).removeprefix("torch."))
    named = {"base": json.dumps(one_line(base)), "name": json.dumps(one_line(lm.name))}
    return _LOAD[kind].format(revision=revision, dtype=dtype, **named)


def _changes(delta: Edit) -> str:
    rows = [
        f"| `{name}` | {_kind(update)} | {' x '.join(map(str, update.shape))} |"
        for name, update in list(delta.updates.items())[:SHOWN]
    ]
    more = len(delta.updates) - SHOWN
    rows += [f"| and {more} more | | |"] if more > 0 else []
    return "\n".join(("| Parameter | Update | Shape |", "| --- | --- | --- |", *rows))


def _kind(update: Update) -> str:
    return "whole" if isinstance(update, Dense) else f"{update.left.shape[1]} columns"


def _escaped(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
