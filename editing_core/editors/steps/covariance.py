"""Second moments of keys, and the store that keeps them.

C = E[k k^T] over the tokens of some text, on the unedited model: what the closed forms protect. The key
of a statistic holds everything that decides its value. Nothing is collected silently: `get` refuses,
`collect` tells its progress. Source: Meng et al. 2022, https://arxiv.org/abs/2202.05262 (appendix).
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from editing_core import paths
from editing_core.errors import BadRequest, StatisticsMissing
from editing_core.models.hooks import stopping_after, watching
from editing_core.models.language_model import LanguageModel, fitted
from editing_core.types import Step, Watch, ignore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Named documents. The digest is part of every key, so another text is another statistic."""

    name: str
    documents: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """Short hash of the documents."""
        return hashlib.sha256("\0".join(self.documents).encode()).hexdigest()[:12]

    @staticmethod
    def of_file(path: Path) -> "Corpus":
        """One document per line of a UTF-8 text file."""
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise BadRequest(
                f"{path.name} is not a readable UTF-8 text file; give a file with one document per line."
            ) from error
        documents = tuple(line for line in lines if line)
        if not documents:
            raise BadRequest(f"{path.name} holds no text; give a file with one document per line.")
        return Corpus(path.stem, documents)

    @staticmethod
    def bundled(model: str) -> "Corpus | None":
        """The text that comes with a bundled model, or None."""
        path = paths.assets() / "models" / model / "corpus.txt"
        return Corpus.of_file(path) if path.is_file() else None


@dataclass(frozen=True)
class CovarianceKey:
    """Everything that decides a statistic's value."""

    model: str
    revision: str
    layer: int
    corpus: str
    digest: str
    documents: int
    dtype: str

    @property
    def file_name(self) -> str:
        """One file per key."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]
        return f"layer-{self.layer}-{digest}.safetensors"


@dataclass(frozen=True, eq=False)
class Covariance:
    """One statistic: matrix (d_in, d_in) float64, from `tokens` tokens."""

    matrix: Tensor
    tokens: int

    def floored(self, floor: float) -> "Covariance":
        """C + floor * mean(diag C) * I.

        Neurons that (almost) never fired in the corpus have a second moment near zero; without a floor a
        key that touches one gets an enormous weight there, at no cost to the objective.
        """
        if floor == 0.0:
            return self
        eye = torch.eye(len(self.matrix), dtype=self.matrix.dtype, device=self.matrix.device)
        return Covariance(self.matrix + floor * self.matrix.diagonal().mean() * eye, self.tokens)

    def mixed(self, other: "Covariance", own: float, others: float) -> "Covariance":
        """Own * C + others * C' of another statistic of the same keys."""
        return Covariance(own * self.matrix + others * other.matrix.to(self.matrix.device), self.tokens + other.tokens)

    @cached_property
    def cholesky(self) -> Tensor:
        """Lower factor L with L L^T = C, plus the least jitter that makes C positive definite."""
        symmetric = (self.matrix + self.matrix.T) / 2
        mean = float(symmetric.diagonal().mean())
        eye = torch.eye(len(symmetric), dtype=symmetric.dtype, device=symmetric.device)
        # Fewer tokens than dimensions leave C singular.
        for jitter in (0.0 if self.tokens > len(symmetric) else 1e-4, 1e-8, 1e-6, 1e-4, 1e-2):
            factor, info = torch.linalg.cholesky_ex(symmetric + jitter * mean * eye)
            if not int(info):
                found: Tensor = factor
                return found
            log.warning("covariance not positive definite, adding jitter")
        raise StatisticsMissing(
            "The covariance statistics of this model are degenerate; collect them again from more text."
        )


@dataclass(eq=False)
class CovarianceStore:
    """Statistics on disk below `root`, and those in use in memory."""

    root: Path = field(default_factory=paths.statistics)
    _memory: dict[CovarianceKey, Covariance] = field(default_factory=dict, repr=False)
    _floored: dict[tuple[CovarianceKey, float], Covariance] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def key(self, lm: LanguageModel, layer: int, corpus: Corpus) -> CovarianceKey:
        """The key under which a layer's statistic is kept."""
        dtype = str(next(lm.model.parameters()).dtype).removeprefix("torch.")
        return CovarianceKey(lm.name, lm.revision, layer, corpus.name, corpus.digest, len(corpus.documents), dtype)

    def has(self, lm: LanguageModel, layers: Sequence[int], corpus: Corpus) -> bool:
        """Whether all layers are there."""
        return all(self._find(self.key(lm, layer, corpus)) is not None for layer in layers)

    def get(self, lm: LanguageModel, layer: int, corpus: Corpus, floor: float = 0.0) -> Covariance:
        """One statistic, floored; StatisticsMissing when it was never collected."""
        key = self.key(lm, layer, corpus)
        found = self._find(key)
        if found is None:
            raise StatisticsMissing(
                f"No covariance statistics of {lm.name}, layer {layer}, from {corpus.name!r}; collect them with "
                f"'editscope stats --model {lm.name} --collect'."
            )
        with self._lock:
            return self._floored.setdefault((key, floor), found.floored(floor))

    def corpus_of(self, lm: LanguageModel) -> Corpus | None:
        """The corpus this model's statistics were last collected from by hand, or None."""
        path = self.root / f"corpus-{hashlib.sha256(f'{lm.name}|{lm.revision}'.encode()).hexdigest()[:16]}.txt"
        return Corpus.of_file(path) if path.is_file() else None

    def remember(self, lm: LanguageModel, corpus: Corpus) -> None:
        """Make `corpus` the one `corpus_of` gives for this model."""
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / f"corpus-{hashlib.sha256(f'{lm.name}|{lm.revision}'.encode()).hexdigest()[:16]}.txt"
        path.write_text("\n".join(corpus.documents) + "\n", encoding="utf-8")

    def estimate(self, lm: LanguageModel, layers: Sequence[int], corpus: Corpus) -> tuple[float, int]:
        """Rough (seconds, bytes) a collection would take, from one small timed batch."""
        sample = Corpus(corpus.name, corpus.documents[:8])
        started = time.perf_counter()
        moments = _moments(lm, layers[-1:], sample, ignore)
        seconds = (time.perf_counter() - started) * len(corpus.documents) / max(1, len(sample.documents)) * len(layers)
        return seconds, sum(4 * len(m) ** 2 for m, _ in moments.values()) * len(layers)

    def collect(self, lm: LanguageModel, layers: Sequence[int], corpus: Corpus, watch: Watch = ignore) -> None:
        """Measure and keep the statistics of several layers in one pass over the corpus."""
        missing = [layer for layer in layers if self._find(self.key(lm, layer, corpus)) is None]
        if not missing:
            return
        with lm.lock:
            moments = _moments(lm, missing, corpus, watch)
        self.root.mkdir(parents=True, exist_ok=True)
        for layer, (total, count) in moments.items():
            self._keep(self.key(lm, layer, corpus), (total / count).float(), count)

    def _find(self, key: CovarianceKey) -> Covariance | None:
        with self._lock:
            if key not in self._memory:
                path = self.root / key.file_name
                if not path.is_file():
                    return None
                with safe_open(path, framework="pt") as file:
                    count = int((file.metadata() or {})["tokens"])
                    self._memory[key] = Covariance(file.get_tensor("second_moment").double(), count)
            return self._memory[key]

    def _keep(self, key: CovarianceKey, matrix: Tensor, count: int) -> None:
        target = self.root / key.file_name
        part = target.with_suffix(f".{os.getpid()}.part")
        metadata = {"key": json.dumps(asdict(key)), "tokens": str(count)}
        save_file({"second_moment": matrix.cpu()}, part, metadata=metadata)
        os.replace(part, target)


@fitted
@torch.no_grad()
def _moments(
    lm: LanguageModel, layers: Sequence[int], corpus: Corpus, watch: Watch, tokens_per_batch: int = 4096
) -> dict[int, tuple[Tensor, int]]:
    """Per layer the sum of k k^T in float64 (batches in float32) and the number of tokens."""
    coded = lm.tokenizer(list(corpus.documents))["input_ids"]
    rows = sorted((ids[: lm.context] for ids in coded if ids), key=len)
    names = {layer: lm.architecture.down(layer) for layer in layers}
    totals: dict[int, Tensor] = {}
    count = at = 0
    while at < len(rows):
        size = max(1, lm.at_most(tokens_per_batch) // len(rows[min(at + 64, len(rows) - 1)]))
        batch = lm.batch(rows[at : at + size])
        with watching(lm.model, inputs=list(names.values())) as seen, stopping_after(lm.model, names[max(layers)]):
            lm.hidden(batch)
        for layer, name in names.items():
            keys = seen[f"{name}.input"][batch.mask.bool()].float()  # (tokens, d_in)
            moment = (keys.T @ keys).double().cpu()
            totals[layer] = totals[layer] + moment if layer in totals else moment
        count += int(batch.mask.sum())
        at += size
        watch(Step("statistics", min(at, len(rows)), len(rows), note=f"key statistics of {lm.name}, {count:,} tokens"))
    return {layer: (total, count) for layer, total in totals.items()}
