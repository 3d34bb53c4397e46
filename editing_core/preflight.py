"""Preflight: the memory an edit will take, from the configuration alone, before anything is loaded.

In: a model's name, an editor with its settings, a number of facts, dtype and device. Out: Need, the peak in named
parts, and a sentence where it does not fit. Sizes of weights are exact; what passes while the edit runs is modelled
in footprint.py, and held against real peaks by `python -m benchmarks.memory`.
"""

from collections.abc import Iterator
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


@dataclass(frozen=True)
class Undertaking:
    """An edit before its model is loaded.

    settings: the model's preset without. iterations: at most. folder: of a model that is no catalog row or hub id.
    """

    model: str
    editor: str
    settings: Settings | None = None
    facts: int = 1
    place: Place = Place()
    iterations: int = 5
    folder: Path | None = None

    def need(self) -> Need:
        """What it takes, statistics taken to be at hand.

        Without a configuration on this machine only the weights are told.
        """
        row, place, model = editor_row(self.editor), self.place, self.model
        config = _known(str(self.folder) if self.folder else source_of(model))
        base = BASE if place.on_cpu else CONTEXT
        if config is None:
            found, each = CATALOG.get(model), {"int8": 1.0, "nf4": NF4}.get(place.quantised, place.number.itemsize)
            return Need(model, base, found.bytes_needed(each) if found else 0, rough=True)
        settings = self.settings or row.preset(model).settings
        sizes = Sizes.of(config, place.number)
        plan = Footprint.of(sizes, row, settings, self.facts, place.main, self.iterations)
        quantised = place.quantised if place.quantised != "none" else quantisation_of(config)
        stored = getattr(config, "dtype", None) or torch.float32
        # Weights that are stored as they are wanted are not copied: their file is the memory. Others are read through
        # a copy, and packed ones one after the other.
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

    def warning(self) -> str:
        """In one sentence that it will not fit, and what would; nothing where it fits."""
        found, free = self._found()
        if found is None or found.fits(free):
            return ""
        fitting = [name for name in CATALOG if replace(self, model=name, settings=None, folder=None).need().fits(free)]
        hints = [hint for hint, other in self._smaller() if other.need().fits(free)]
        hints += [max(fitting, key=lambda name: CATALOG[name].parameters)] if fitting else []
        hint = f"; {' or '.join(hints)} would fit" if hints else ""
        return f"{self.model} {found}, and {told(free)} are free, so it will probably not fit{hint}."

    def notice(self) -> str:
        """In one sentence what a large edit takes and what is free, nothing for a small one."""
        found, free = self._found()
        return f"{self.model} {found}; {told(free)} are free." if found and found.total > NOTICED else ""

    def _found(self) -> tuple[Need | None, int]:
        """What it takes and the free bytes there; None where only loading can say what is wrong."""
        try:
            found = self.need()
        except EditingError:
            return None, 0
        return found, free_here(self.place.device or default_device(found.weights))

    def _smaller(self) -> Iterator[tuple[str, "Undertaking"]]:
        """The same in less memory, each with what is to be asked for."""
        if (self.place.dtype, self.place.quantised) == ("float32", "none"):
            yield "--dtype bfloat16", replace(self, place=replace(self.place, dtype="bfloat16"))
        layers = getattr(self.settings, "layers", ())
        if self.settings and len(layers) > 1:
            yield "fewer layers", replace(self, settings=self.settings.changed({"layers": layers[-1:]}))


def _known(source: str) -> PretrainedConfig | None:
    """The configuration, where it is on this machine and of a known family."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    return config if config.model_type in ARCHITECTURES else None


def device_here() -> str:
    """Where models are loaded when nothing is said."""
    return default_device(0)


def free_here(device: str | None = None) -> int:
    """Bytes that are free on a device now."""
    return free_on(device or device_here()) or 0
