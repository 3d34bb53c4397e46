"""The check of an export: another process loads it without EditScope, and must say what the edited model says here."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf, isnan
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from editing_core.errors import BadRequest
from editing_core.export import reload
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel
from editing_core.types import EditRequest, Step, Watch, ignore

ROWS, TOKENS = 8, 32  # of the prompts that are read; logits of a large vocabulary take hundreds of megabytes already
LIMIT = 900.0  # seconds; loading a large model takes minutes
LOOK = 0.2  # seconds between two looks at the process
EXACT = 1e-5  # of the largest logit: the same sums in float32, made in another order
# In half precision an adapter adds its product to each layer's output, while the edit is rounded into the weights: at
# every layer the two differ by a rounding of the states, which is of the size of the type's epsilon. Measured were 0.6
# (bundled model) and 1.4 epsilons (a tiny one with a huge edit). Merged models and edit files have the very weights.
HALF = 4.0  # epsilons, of the largest logit
TEXT = "The weather was fine, and therefore we went home."


@dataclass(frozen=True)
class Check:
    """What the comparison found.

    largest: greatest absolute difference of two logits. scale: greatest absolute logit with the edit on. bound: what
    `largest` may be. change: greatest difference the edit itself makes to these logits. rows, tokens: how much was
    read. problem: why the export could not be loaded; `largest` is infinite then.
    """

    largest: float
    scale: float
    rows: int
    tokens: int
    seconds: float
    bound: float
    change: float
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether the export does what the edit does."""
        return not self.problem and self.largest <= self.bound

    def told(self) -> str:
        """The whole in a sentence or two."""
        if self.problem:
            return f"The check failed: {self.problem}"
        prompts = f"{self.rows} prompt{'' if self.rows == 1 else 's'}"
        read = f"{prompts} with {self.tokens} tokens in a fresh process without EditScope"
        apart = f"logits differ by at most {self.largest:.2g}"
        found = f"{apart}, allowed is {self.bound:.2g} (the largest logit is {self.scale:.3g})"
        if not self.ok:
            return f"The check failed: on {read}, {found}; do not use this export, write it again."
        blind = " The edit changes these logits by no more, so this tells little." if self.change <= self.bound else ""
        return f"On {read}, {found}; the edit itself changes them by up to {self.change:.3g}.{blind}"


def bound(dtype: torch.dtype, scale: float, kind: str = "adapter") -> float:
    """How far two logits may be apart in a model of this type whose largest is `scale`."""
    exact = kind != "adapter" or dtype in (torch.float32, torch.float64)
    return (EXACT if exact else HALF * torch.finfo(dtype).eps) * max(1.0, scale)


def check_source(lm: LanguageModel) -> None:
    """BadRequest unless another process can load the unedited model too."""
    if not lm.source:
        raise BadRequest(
            f"{lm.name} was not loaded from a folder or the hub, so its export cannot be checked; leave the check out."
        )


def check_rows(lm: LanguageModel, requests: Sequence[EditRequest] = ()) -> list[list[int]]:
    """Token rows to compare on: the first facts with their new objects, neighbors of theirs, and a plain sentence."""
    facts = [f"{request.full_prompt} {request.target_new}" for request in requests]
    neighbors = [probe.prompt for request in requests for probe in request.neighbors[:1]]
    texts = [*facts[: ROWS // 2], *neighbors[: ROWS // 2 - 1], TEXT]
    rows = [lm.tokenizer(text)["input_ids"][: min(TOKENS, lm.context)] for text in texts]
    return [[int(token) for token in row] for row in rows if len(row)]


def verify(
    lm: LanguageModel,
    delta: Edit,
    export: Path,
    kind: str,
    requests: Sequence[EditRequest] = (),
    watch: Watch = ignore,
    limit: float = LIMIT,
) -> Check:
    """Compare what is in `export` with the edit applied here; takes as much memory as the model again.

    kind: as in `reload`. requests: the facts, for the prompts. limit: seconds the other process may take. What `watch`
    raises ends it and passes through. BadRequest where the model did not come from a folder or the hub.
    """
    check_source(lm)
    start = time.monotonic()
    rows = check_rows(lm, requests)
    plain, edited = _here(lm, delta, rows)
    scale, change = (max(float(t.abs().max()) for t in ts) for ts in (edited, _apart(edited, plain)))
    with tempfile.TemporaryDirectory(prefix="editscope-check-") as folder:
        job = _job(lm, export, kind, rows, Path(folder) / "logits.safetensors")
        found, problem = _elsewhere(job, Path(folder), watch, limit)
    largest = _largest(edited, found)
    return Check(
        largest=largest,
        scale=scale,
        rows=len(rows),
        tokens=sum(map(len, rows)),
        seconds=time.monotonic() - start,
        bound=bound(lm.model.dtype, scale, kind),
        change=change,
        problem=problem,
    )


def _here(lm: LanguageModel, delta: Edit, rows: list[list[int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Logits (tokens, vocabulary) of every row, without the edit and with it."""
    with lm.lock:
        if lm.edited:
            raise BadRequest(f"{lm.name} carries another edit, nothing can be compared with it; take it off first.")
        plain = reload.logits(lm.model, rows, str(lm.device))
        with delta.applied(lm):
            edited = reload.logits(lm.model, rows, str(lm.device))
    return list(plain.values()), list(edited.values())


def _apart(some: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    return [one - other for one, other in zip(some, others, strict=True)]


def _largest(edited: Sequence[Tensor], found: Mapping[str, Tensor]) -> float:
    """The greatest difference; infinite where logits are missing, of another shape, or no numbers."""
    theirs = [found.get(str(number)) for number in range(len(edited))]
    pairs = [(t, e) for t, e in zip(theirs, edited, strict=True) if t is not None and t.shape == e.shape]
    if len(pairs) < len(edited):
        return inf
    distances = [float((t - e).abs().max()) for t, e in pairs]
    return inf if any(map(isnan, distances)) else max(distances)  # `max` alone may pass over what is no number


def _job(lm: LanguageModel, export: Path, kind: str, rows: list[list[int]], out: Path) -> dict[str, Any]:
    """What `reload` is asked to do."""
    local = Path(lm.source).is_dir()
    return {
        "kind": kind,
        "export": str(export.resolve()),
        "base": lm.source,
        "revision": "" if local else lm.revision,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "quantisation": _quantisation(lm),
        "device": str(lm.device),
        "attention": lm.model.config._attn_implementation,
        "threads": torch.get_num_threads(),
        "rows": rows,
        "out": str(out),
    }


def _quantisation(lm: LanguageModel) -> dict[str, Any]:
    """What bitsandbytes was asked for, empty where weights are plain."""
    asked = getattr(lm.model.config, "quantization_config", None)
    return asked.to_dict() if asked else {}


def _elsewhere(job: Mapping[str, Any], folder: Path, watch: Watch, limit: float) -> tuple[dict[str, Tensor], str]:
    """What `reload` finds in a process of its own, and in a sentence why it found nothing."""
    (folder / "job.json").write_text(json.dumps(dict(job)), encoding="utf-8")
    # Isolated from this checkout and from the working folder, and never on the network: nothing but the files counts.
    command = [sys.executable, "-I", str(Path(reload.__file__)), str(folder / "job.json")]
    secret = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}
    alone = {name: value for name, value in os.environ.items() if name not in secret}
    alone |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    log = folder / "log.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=folder, env=alone)
    code = _ended(process, watch, limit)
    if code is None:
        return {}, f"loading the export took longer than {limit:.0f} seconds, so it was stopped; try it by hand."
    if code < 0:
        return {}, f"the system ended the process that loaded the export (signal {-code}), often for want of memory."
    if code:
        return {}, f"the export could not be loaded ({_last_line(log)})."
    with suppress(Exception):  # what is no file of logits counts as none
        return load_file(job["out"]), ""
    return {}, "the process that loaded the export wrote no logits."


def _ended(process: subprocess.Popen[bytes], watch: Watch, limit: float) -> int | None:
    """The exit code, or None where the time was over; the process is gone in any case."""
    start = time.monotonic()
    try:
        while (passed := time.monotonic() - start) < limit:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(LOOK)
            watch(Step("check", int(passed), int(limit), note="another process loads the export"))
        return None
    finally:
        process.kill()
        process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip()[:200].rstrip(".") if lines else "no reason was told"
