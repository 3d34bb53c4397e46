"""Preflight: the memory an edit will take, from the configuration alone, before anything is loaded.

In: a model's name, an editor with its settings, a number of facts, dtype and device. Out: Need, the peak in named
parts, and a sentence where it does not fit. Sizes of weights are exact; what passes while the edit runs is modelled
in footprint.py, and held against real peaks by `python -m benchmarks.memory`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from editing_core.errors import EditingError
from editing_core.footprint import Footprint
from editing_core.models.architectures import ARCHITECTURES
from editing_core.models.catalog import CATALOG, source_of
from editing_core.models.loading import AUTO, DTYPES, default_device, free_on
from editing_core.models.memory import Sizes, told
from editing_core.models.weights import NF4, quantisation_of, weight_bytes
from editing_core.registry import editor_row
from editing_core.settings import Settings

# Measured on Linux with the processor's build of torch: the interpreter with torch, transformers and the engine
# imported takes 0.46 GB, kernels and tables of a first run the rest. On an accelerator only its context counts.
BASE, CONTEXT = 525_000_000, 500_000_000
NOTICED = 2 * 10**9  # bytes; so much is told before it is taken


@dataclass(frozen=True)
class Need:
    """Bytes at the peak. forwards, loading and making pass, and only the largest of the three counts.

    base: the program itself. loading: what passes while weights are read. statistics: factors or bases that stay,
    making: what passes while one is made or used. forwards: micro-batches. edits: updates as factors, the system
    they are solved in, and the weights they replace. rough: nothing but the weights is known.
    """

    model: str
    base: int
    weights: int
    loading: int = 0
    statistics: int = 0
    making: int = 0
    forwards: int = 0
    edits: int = 0
    rough: bool = False

    @property
    def total(self) -> int:
        """The peak."""
        return self.base + self.beside

    @property
    def beside(self) -> int:
        """The peak beside the program itself."""
        return self.weights + max(self.loading, self.statistics + self.edits + self._passing)

    @property
    def _passing(self) -> int:
        return max(self.making, self.forwards)

    def fits(self, free: int) -> bool:
        """Whether a running program finds the rest in so many free bytes."""
        return self.beside <= free

    def __str__(self) -> str:
        if self.rough:
            return f"needs about {told(self.weights)} for its weights"
        passing = "statistics being made" if self.making > self.forwards else "forwards"
        parts = {"model": self.weights, "statistics": self.statistics, passing: self._passing, "edits": self.edits}
        if self.loading > self.statistics + self.edits + self._passing:
            parts = {"model": self.weights, "reading it": self.loading}
        parts |= {"program": self.base}
        said = ", ".join(f"{told(size)} {name}" for name, size in parts.items() if size >= self.total / 50)
        return f"needs about {told(self.total)}: {said}"


@dataclass(frozen=True)
class Place:
    """How and where a model is loaded. device: of torch, "auto" for all, "" where loading decides."""

    dtype: str = "float32"
    device: str = "cpu"
    quantised: str = "none"

    @property
    def number(self) -> torch.dtype:
        """The dtype itself."""
        return DTYPES[self.dtype]

    @property
    def main(self) -> torch.device:
        """Where it computes."""
        return torch.device(default_device(0) if self.device in (AUTO, "") else self.device)

    @property
    def on_cpu(self) -> bool:
        """Whether it shares its memory with the program."""
        return self.main.type == "cpu"


def need(
    model: str,
    editor: str,
    settings: Settings | None = None,
    facts: int = 1,
    place: Place = Place(),
    iterations: int = 5,
    folder: Path | None = None,
) -> Need:
    """What an edit takes. settings: the model's preset without. folder: of a model that is no catalog row or hub id.

    Statistics are taken to be at hand. Without a configuration on this machine only the weights are told.
    """
    row = editor_row(editor)
    config = _known(str(folder) if folder else source_of(model))
    base = BASE if place.on_cpu else CONTEXT
    if config is None:
        found, each = CATALOG.get(model), {"int8": 1.0, "nf4": NF4}.get(place.quantised, place.number.itemsize)
        return Need(model, base, found.bytes_needed(each) if found else 0, rough=True)
    settings = settings or row.preset(model).settings
    plan = Footprint.of(Sizes.of(config, place.number), row, settings, facts, place.main, iterations)
    quantised = place.quantised if place.quantised != "none" else quantisation_of(config)
    stored = getattr(config, "dtype", None) or torch.float32
    # Weights that are stored as they are wanted are not copied: their file is the memory. Others are read through a
    # copy, and packed ones one after the other.
    copied = place.on_cpu and stored != place.number and quantised == "none"
    return Need(
        model,
        base,
        weight_bytes(config, place.number, quantised),
        weight_bytes(config, stored) if copied else 0,
        plan.statistics if place.on_cpu else 0,  # elsewhere one layer's is there while it is used
        plan.making,
        plan.forwards,
        plan.edits,
    )


def _known(source: str) -> PretrainedConfig | None:
    """The configuration, where it is on this machine and of a known family."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    return config if config.model_type in ARCHITECTURES else None


def warning(
    model: str,
    editor: str,
    settings: Settings,
    facts: int,
    place: Place = Place(device=""),
    iterations: int = 5,
    folder: Path | None = None,
) -> str:
    """In one sentence that what is about to be loaded will not fit, and what would; nothing where it fits."""

    def takes(place: Place = place, settings: Settings = settings) -> Need:
        return need(model, editor, settings, facts, place, iterations, folder)

    try:
        found = takes()
    except EditingError:
        return ""  # loading it says what is wrong
    free = free_here(place.device or default_device(found.weights))
    if found.fits(free):
        return ""
    hints = []
    if (place.dtype, place.quantised) == ("float32", "none") and takes(replace(place, dtype="bfloat16")).fits(free):
        hints.append("--dtype bfloat16")
    layers = getattr(settings, "layers", ())
    if len(layers) > 1 and takes(settings=settings.changed({"layers": layers[-1:]})).fits(free):
        hints.append("fewer layers")
    smaller = [name for name in CATALOG if need(name, editor, facts=facts, place=place).fits(free)]
    hints += [max(smaller, key=lambda name: CATALOG[name].parameters)] if smaller else []
    hint = f"; {' or '.join(hints)} would fit" if hints else ""
    return f"{model} {found}, and {told(free)} are free, so it will probably not fit{hint}."


def notice(
    model: str,
    editor: str,
    settings: Settings,
    facts: int,
    place: Place = Place(device=""),
    iterations: int = 5,
    folder: Path | None = None,
) -> str:
    """In one sentence what a large edit takes and what is free, nothing for a small one."""
    try:
        found = need(model, editor, settings, facts, place, iterations, folder)
    except EditingError:
        return ""
    free = free_here(place.device or default_device(found.weights))
    return f"{model} {found}; {told(free)} are free." if found.total > NOTICED else ""


def device_here() -> str:
    """Where models are loaded when nothing is said."""
    return default_device(0)


def free_here(device: str | None = None) -> int:
    """Bytes that are free on a device now."""
    return free_on(device or device_here()) or 0
