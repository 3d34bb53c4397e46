"""Loading: a hub id or folder becomes a model and its tokenizer, on one device or over several, plain or packed.

Safetensors only, and never code of a repository. The configuration is read first: it tells what cannot be edited and
what does not fit, before weights are downloaded, and which commit the rest is loaded from. Packed (int8, nf4) and
offloaded weights are edited in adapter form, see `slots`.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file

from editing_core.errors import ModelUnavailable, OutOfMemory
from editing_core.models import memory
from editing_core.models.architectures import Architecture
from editing_core.models.memory import told
from editing_core.models.unavailable import unavailable
from editing_core.models.weights import QUANTISATIONS, quantisation_of, weight_bytes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
REVISION = re.compile(r"[A-Za-z0-9](?:[\w-]|[./](?=[\w-]))*")
AUTO = "auto"  # all accelerators there are, and the processor's memory for what they do not hold
SHARE = 0.9  # of a GPU that weights may take; the rest is for states

Device = str | Mapping[str, str | int]


@dataclass(frozen=True)
class Wanted:
    """What to load, and how.

    source: folder or hub id, of which name is what people call it. device: of torch, "auto", or a device map as
    accelerate takes it; what is there decides without. quantised: of QUANTISATIONS. revision: a branch, tag or commit
    of a hub id.
    """

    name: str
    source: str
    dtype: str = "float32"
    device: Device | None = None
    quantised: str = "none"
    revision: str = ""

    def __post_init__(self) -> None:
        if self.quantised not in QUANTISATIONS:
            raise ModelUnavailable(
                f"Weights cannot be packed as {self.quantised[:20]!r}, allowed are {', '.join(QUANTISATIONS)}; "
                "choose one of them."
            )
        if self.revision and Path(self.source).is_dir():
            raise ModelUnavailable(f"{self.name} is a folder and has no revisions; leave the revision out.")
        if self.revision and not REVISION.fullmatch(self.revision):
            raise ModelUnavailable(
                f"{self.revision[:60]!r} is no branch, tag or commit of a repository; name one of the model's."
            )
        _check_library(self.name, self.quantised)


def _check_library(name: str, quantised: str) -> None:
    if quantised != "none" and find_spec("bitsandbytes") is None:
        raise ModelUnavailable(
            f"Loading {name} in {quantised} needs bitsandbytes, which is not installed; install it with "
            "'pip install -r requirements-quantised.txt', or choose a model with plain weights."
        )


@dataclass(frozen=True, eq=False)
class Loaded:
    """revision: the commit, or a hash of a folder's weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    revision: str


def load(wanted: Wanted) -> Loaded:
    """The model; ModelUnavailable when it cannot be had, OutOfMemory when it does not fit."""
    device: Device | None = wanted.device
    try:
        commit = _commit(wanted)
        pinned = {"revision": commit} if commit else {}  # a branch may move while the rest is loaded
        config = AutoConfig.from_pretrained(wanted.source, trust_remote_code=False, **pinned)
        Architecture.of(config)
        device = _placed(wanted, config)
        tokenizer = AutoTokenizer.from_pretrained(wanted.source, trust_remote_code=False, **pinned)
        model = _model(wanted, device, pinned)
    except memory.NO_MEMORY as error:
        if not memory.ran_out(error):
            raise
        raise OutOfMemory(
            f"{wanted.name} in {_form(wanted)} does not fit into the memory of {_said(device)}; choose a smaller "
            "model, or a smaller dtype such as bfloat16."
        ) from error
    except (OSError, ValueError, ImportError) as error:
        raise unavailable(wanted.name, wanted.source, wanted.revision, error) from error
    return Loaded(model, tokenizer, commit or _fingerprint(Path(wanted.source)))


def _commit(wanted: Wanted) -> str:
    """Which commit a hub id means now, read off the place its configuration is kept at; "" of a folder."""
    named = {"revision": wanted.revision} if wanted.revision else {}
    place = Path(cached_file(wanted.source, CONFIG_NAME, **named) or "")
    return place.parent.name if place.parent.parent.name == "snapshots" else ""


def _model(wanted: Wanted, device: Device, pinned: Mapping[str, str]) -> PreTrainedModel:
    plain = device == "cpu" and wanted.quantised == "none"
    given: dict[str, Any] = dict(pinned)
    if not plain:  # straight to where it belongs
        given["device_map"] = device if device == AUTO or isinstance(device, Mapping) else {"": device}
    if wanted.quantised != "none":
        given["quantization_config"] = _bitsandbytes(wanted)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        wanted.source, dtype=DTYPES[wanted.dtype], use_safetensors=True, trust_remote_code=False, **given
    )
    for module in model.modules():
        # On some processors bitsandbytes otherwise repacks weights in their first forward, into a form in which it
        # has no gradients and that not every shape can take.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model


def _bitsandbytes(wanted: Wanted) -> BitsAndBytesConfig:
    """How the library is asked. In int8 it tells at every product that it rounds what goes in, which is the idea."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if wanted.quantised == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[wanted.dtype],
    )


def _placed(wanted: Wanted, config: PretrainedConfig) -> Device:
    """Where it goes. OutOfMemory when the weights alone are more than is free there, with what would fit."""
    own = quantisation_of(config)
    _check_library(wanted.name, own)
    if own != "none" and wanted.quantised != "none":
        raise ModelUnavailable(
            f"{wanted.name} is packed already ({own}), so it cannot be packed as {wanted.quantised}; load it as it is."
        )
    forms = {
        (dtype, quantised): weight_bytes(config, DTYPES[dtype], quantised if own == "none" else own)
        for dtype, quantised in ((wanted.dtype, wanted.quantised), ("bfloat16", "none"), ("bfloat16", "nf4"))
    }
    needed = forms[wanted.dtype, wanted.quantised]
    device = default_device(needed) if wanted.device is None else wanted.device
    check_there(device)
    free = free_on(device, wanted.quantised != "none")
    if free is not None and needed > free:
        smaller = [(dtype, quantised) for (dtype, quantised), size in forms.items() if size <= free]
        hints = [" in ".join((dtype, *([quantised] if quantised != "none" else []))) for dtype, quantised in smaller]
        raise OutOfMemory(
            f"The weights of {wanted.name} take {told(needed)} in {_form(wanted)}, and {told(free)} are free on "
            f"{_said(device)}; choose {f'it in {hints[0]}, or ' if hints else ''}a smaller model."
        )
    return device


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes; of one whose weights are on no device between forwards, where they are sent."""
    sent = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return next(module.parameters()).device if sent is None else torch.device(sent)


def default_device(size: int) -> str:
    """Where weights of so many bytes go when nothing is said: the first GPU, all where one is too small, or the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    small = size > SHARE * memory.free_bytes(torch.device("cuda", 0))
    return AUTO if small and torch.cuda.device_count() > 1 else "cuda"


def free_on(device: Device, packed: bool = False) -> int | None:
    """Bytes that are free there, None where weights may lie on disk. packed: they are not offloaded."""
    places = _places(device)
    if device == AUTO and packed and len(places) > 1:
        places.remove("cpu")
    if "disk" in places:
        return None
    return sum(memory.free_bytes(torch.device(place)) for place in places)


def _places(device: Device) -> list[str]:
    """Names of all devices, "disk" among them."""
    if device == AUTO:
        return [*(f"cuda:{n}" for n in range(torch.cuda.device_count())), "cpu"]
    if isinstance(device, Mapping):
        return [f"cuda:{place}" if isinstance(place, int) else place for place in dict.fromkeys(device.values())]
    return [str(device)]


def check_there(device: Device) -> None:
    """ModelUnavailable where a device is no device, or a card that is not there."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for place in _places(device):
        found = re.fullmatch(r"cuda(?::(\d+))?|cpu|mps|xpu(?::\d+)?|disk", place)
        if not found or (place.startswith("cuda") and int(found[1] or 0) >= cards):
            raise ModelUnavailable(
                f"There is no device {place[:20]!r} here; choose cpu{', cuda:0' if cards else ''}"
                f"{f' to cuda:{cards - 1}' if cards > 1 else ''} or auto."
            )


def _form(wanted: Wanted) -> str:
    return wanted.dtype if wanted.quantised == "none" else wanted.quantised


def _said(device: Device | None) -> str:
    if isinstance(device, Mapping):
        return " and ".join(sorted({str(place) for place in device.values()}))
    return "all devices" if device == AUTO else str(device)


def _fingerprint(folder: Path) -> str:
    """A short hash of the weights in a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
