"""Second moments of keys, and the store that keeps them.

C = E[k k^T] over the tokens of some text, on the unedited model: what the closed forms protect. The key
of a statistic holds everything that decides its value. Nothing is collected silently: `get` refuses,
`collect` tells its progress. Source: Meng et al. 2022, https://arxiv.org/abs/2202.05262 (appendix).
"""

import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from editing_core import paths
from editing_core.errors import StatisticsMissing
from editing_core.models.language_model import LanguageModel
from editing_core.statistics import estimate
from editing_core.statistics.corpus import Corpus, TextFile, TextSource
from editing_core.statistics.moments import CUT, add_text
from editing_core.statistics.parts import SECONDS, Part, write_tensors
from editing_core.statistics.stored import Stored
from editing_core.statistics.text_sources import read_description
from editing_core.types import Watch, ignore

__all__ = ["Corpus", "Covariance", "CovarianceKey", "CovarianceStore", "TextSource"]

log = logging.getLogger(__name__)

FEW_TOKENS = 10  # per dimension; with fewer a statistic is called a small sample's


@dataclass(frozen=True)
class CovarianceKey:
    """Everything that decides a statistic's value. cut: tokens of a document that count, 0 for the whole context."""

    model: str
    revision: str
    layer: int
    corpus: str
    digest: str
    documents: int
    dtype: str
    cut: int = 0

    @property
    def file_name(self) -> str:
        """One file per key."""
        fields = {name: value for name, value in asdict(self).items() if name != "cut" or value}
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
        return f"layer-{self.layer}-{digest}.safetensors"


@dataclass(frozen=True, eq=False)
class Covariance:
    """One statistic, from `tokens` tokens, with a floor.

    source: the matrix (d_in, d_in), or the file it is read from: of that only the factor stays in memory.
    """

    source: Tensor | Stored
    tokens: int
    floor: float = 0.0

    @property
    def width(self) -> int:
        """d_in."""
        return len(self.source)

    @property
    def matrix(self) -> Tensor:
        """(d_in, d_in) C + floor * mean(diag C) * I; float64, and read anew each time, where it is a file's."""
        if isinstance(self.source, Tensor) and not self.floor:
            return self.source
        matrix = self.source.clone() if isinstance(self.source, Tensor) else self.source.read()
        matrix.diagonal().add_(self.floor * matrix.diagonal().mean())
        return matrix

    @property
    def remark(self) -> str:
        """In one sentence what is to know of a statistic from little text, or nothing."""
        sample = f"From a small sample: {self.tokens:,} tokens for {self.width:,} dimensions"
        if self.tokens <= self.width:
            return f"{sample}; not more tokens than dimensions leave C singular, so a jitter is added to its diagonal."
        if self.tokens < FEW_TOKENS * self.width:
            return f"{sample}; C is noisy in directions the text hardly uses, collect from more text for results."
        return ""

    def floored(self, floor: float) -> "Covariance":
        """C + floor * mean(diag C) * I.

        Neurons that (almost) never fired in the corpus have a second moment near zero; without a floor a
        key that touches one gets an enormous weight there, at no cost to the objective.
        """
        if floor == 0.0:
            return self
        return Covariance(self.matrix, self.tokens, floor) if self.floor else replace(self, floor=floor)

    def mixed(self, other: "Covariance", own: float, others: float) -> "Covariance":
        """Own * C + others * C' of another statistic of the same keys."""
        matrix = self.matrix
        return Covariance(own * matrix + others * other.matrix.to(matrix.device), self.tokens + other.tokens)

    @cached_property
    def cholesky(self) -> Tensor:
        """Lower factor L with L L^T = C, plus the least jitter that makes C positive definite."""
        kept = self.source.factor(self.floor) if isinstance(self.source, Stored) else None
        if kept is not None:
            return kept
        factor = self._factor()
        if isinstance(self.source, Stored):
            self.source.keep_factor(self.floor, factor)
        return factor

    def _factor(self) -> Tensor:
        """Beside the factor one copy of the matrix is held, and none when it is done."""
        symmetric = _symmetric(self.matrix.clone() if isinstance(self.source, Tensor) else self.matrix)
        diagonal = symmetric.diagonal().clone()
        # Fewer tokens than dimensions leave C singular.
        for jitter in (0.0 if self.tokens > len(symmetric) else 1e-4, 1e-8, 1e-6, 1e-4, 1e-2):
            symmetric.diagonal().copy_(diagonal + jitter * float(diagonal.mean()))
            factor, info = torch.linalg.cholesky_ex(symmetric)
            if not int(info):
                found: Tensor = factor
                return found
            log.warning("covariance not positive definite, adding jitter")
        raise StatisticsMissing(
            "The covariance statistics of this model are degenerate; collect them again from more text."
        )


def _symmetric(matrix: Tensor, tile: int = 1024) -> Tensor:
    """(C + C^T) / 2 in place, tile by tile."""
    for i in range(0, len(matrix), tile):
        for j in range(0, i + 1, tile):
            here, there = matrix[i : i + tile, j : j + tile], matrix[j : j + tile, i : i + tile]
            mean = (here + there.T) / 2
            here.copy_(mean)
            there.copy_(mean.T)
    return matrix


@dataclass(eq=False)
class CovarianceStore:
    """Statistics on disk below `root`, and the factors in use in memory. seconds: between two writings of a part."""

    root: Path = field(default_factory=paths.statistics)
    seconds: float = SECONDS
    _used: dict[tuple[CovarianceKey, float], Covariance] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def key(self, lm: LanguageModel, layer: int, corpus: TextSource) -> CovarianceKey:
        """The key under which a layer's statistic is kept."""
        cut = CUT if lm.context > CUT else 0
        number = corpus.documents_in_key
        return CovarianceKey(lm.name, lm.revision, layer, corpus.name, corpus.digest, number, lm.numbers, cut)

    def has(self, lm: LanguageModel, layers: Sequence[int], corpus: TextSource) -> bool:
        """Whether all layers are there."""
        return not self._missing(lm, layers, corpus)

    def get(self, lm: LanguageModel, layer: int, corpus: TextSource, floor: float = 0.0) -> Covariance:
        """One statistic, floored; StatisticsMissing when it was never collected."""
        key = self.key(lm, layer, corpus)
        with self._lock:
            if (key, floor) not in self._used:
                path = self.root / key.file_name
                if not path.is_file():
                    raise StatisticsMissing(
                        f"No covariance statistics of {lm.name}, layer {layer}, from {corpus.name!r}; collect them "
                        f"with 'editscope stats --model {lm.name} --collect'."
                    )
                stored = Stored.of(path)
                self._used[key, floor] = Covariance(stored, stored.tokens, floor)
            return self._used[key, floor]

    def corpus_of(self, lm: LanguageModel) -> TextSource | None:
        """The text this model's statistics were last collected from by hand, or None."""
        found = read_description(self._description(lm))
        if found is None and (copied := self._description(lm).with_suffix(".txt")).is_file():
            return TextFile.of(copied)  # of versions that kept the text itself
        return found

    def text_of(self, lm: LanguageModel) -> TextSource | None:
        """The text a model's runs protect: the one that comes with it, or the one last collected from, or None."""
        return Corpus.bundled(lm.name) or self.corpus_of(lm)

    def remember(self, lm: LanguageModel, corpus: TextSource) -> None:
        """Make `corpus` the one `corpus_of` gives for this model. Only its description is kept."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._description(lm).write_text(json.dumps(corpus.described(), indent=1), encoding="utf-8")

    def estimate(self, lm: LanguageModel, layers: Sequence[int], corpus: TextSource) -> estimate.Estimate:
        """What a collection of the layers that are missing would take."""
        return estimate.estimate(lm, self._missing(lm, layers, corpus) or layers, corpus)

    def collect(self, lm: LanguageModel, layers: Sequence[int], corpus: TextSource, watch: Watch = ignore) -> None:
        """Measure and keep the statistics of several layers in one pass; goes on where one was interrupted."""
        missing = self._missing(lm, layers, corpus)
        if not missing:
            return
        keys = {layer: self.key(lm, layer, corpus) for layer in missing}
        part = self._part(list(keys.values()))
        sums = part.read()
        with lm.lock:
            add_text(lm, missing, corpus, sums, part.keep, watch)
        for layer in missing:
            about = {"key": json.dumps(asdict(keys[layer])), "tokens": str(sums.tokens)}
            write_tensors(self.root / keys[layer].file_name, {"second_moment": sums.take_mean(layer)}, about)
        part.remove()

    def begun(self, lm: LanguageModel, layers: Sequence[int], corpus: TextSource) -> tuple[int, int]:
        """(documents, tokens) of an interrupted collection that `collect` would go on with."""
        return self._part([self.key(lm, layer, corpus) for layer in self._missing(lm, layers, corpus)]).stands_at()

    def _missing(self, lm: LanguageModel, layers: Sequence[int], corpus: TextSource) -> list[int]:
        return [layer for layer in layers if not (self.root / self.key(lm, layer, corpus).file_name).is_file()]

    def _part(self, keys: Sequence[CovarianceKey]) -> Part:
        wanted = [key.file_name for key in keys]
        digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:16]
        return Part(self.root / f"collecting-{digest}.part", wanted, self.seconds)

    def _description(self, lm: LanguageModel) -> Path:
        return self.root / f"corpus-{hashlib.sha256(f'{lm.name}|{lm.revision}'.encode()).hexdigest()[:16]}.json"
