"""The models offered by name, and how a name becomes a place to load from.

Bundled models need nothing from outside. The rest are hub ids; sizes are those of the published
checkpoints, and whether a repository asks for a licence is checked by the hub at load time.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from editing_core import paths
from editing_core.errors import UnknownName

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class CatalogRow:
    """A model on offer.

    alphabet: "ascii" when the model never saw other letters, else None. depth: its number of blocks, None where only
    its configuration says. like: the model it was made from, whose presets serve it.
    """

    name: str
    source: str
    parameters: float
    note: str
    alphabet: str | None = None
    depth: int | None = None
    like: str = ""

    @property
    def bundled(self) -> bool:
        """Whether the weights come with EditScope."""
        return self.source == "bundled"

    def bytes_needed(self, bytes_per_number: float = 4) -> int:
        """Rough memory of the weights alone."""
        return int(self.parameters * bytes_per_number)


CATALOG = {
    row.name: row
    for row in (
        CatalogRow("pocket-gpt2", "bundled", 6.1e6, "bundled; knows 4,369 facts, works offline", "ascii"),
        CatalogRow("pocket-llama", "bundled", 6.06e6, "bundled; the same facts in Llama's architecture", "ascii"),
        CatalogRow("pocket-gptj", "bundled", 6.83e6, "bundled; the same facts in GPT-J's architecture", "ascii"),
        CatalogRow(
            "pocket-gpt2-reader",
            "bundled",
            6.1e6,
            "bundled; uses facts it reads in its prompt, for IKE",
            "ascii",
            like="pocket-gpt2",
        ),
        CatalogRow("gpt2", "openai-community/gpt2", 124e6, "GPT-2 small; weak on facts", depth=12),
        CatalogRow("gpt2-xl", "openai-community/gpt2-xl", 1.56e9, "the papers' small model", depth=48),
        CatalogRow("gpt-j-6b", "EleutherAI/gpt-j-6b", 6.05e9, "the papers' middle model", depth=28),
        CatalogRow("llama-2-7b", "meta-llama/Llama-2-7b-hf", 6.74e9, "asks for a licence on the hub", depth=32),
        CatalogRow("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", 494e6, "modern and small", depth=24),
        CatalogRow(
            "qwen2.5-0.5b-instruct",
            "Qwen/Qwen2.5-0.5B-Instruct",
            494e6,
            "instruct: choose a chat template",
            depth=24,
        ),
        CatalogRow("qwen3-0.6b-base", "Qwen/Qwen3-0.6B-Base", 596e6, "modern and small", depth=28),
    )
}

DEFAULT = "pocket-gpt2"


def unknown(name: str, kind: str, known: Iterable[str]) -> UnknownName:
    """The error for a name that is not known, with the nearest one that is."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UnknownName(f"Unknown {kind} {str(name)[:60]!r}.{hint} Known: {', '.join(names)}.")


def is_hub_id(name: str) -> bool:
    """Whether it is written as the hub's names are: owner/model, and no way out of a folder."""
    return HUB_ID.fullmatch(name) is not None and ".." not in name


def source_of(name: str) -> str:
    """Folder or hub id for a catalog name or hub id; UnknownName for anything else.

    Paths are not accepted here: what a person types never reaches the file system.
    """
    if row := CATALOG.get(name):
        return str(paths.assets() / "models" / name) if row.bundled else row.source
    if is_hub_id(name):
        return name
    raise unknown(name, "model", CATALOG)


def alphabet_of(name: str) -> str | None:
    """Which letters the model knows: "ascii", or None for no limit."""
    row = CATALOG.get(name)
    return row.alphabet if row else None
