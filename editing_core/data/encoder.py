"""Encoder: texts as unit vectors whose cosine says how alike they are.

A sentence encoder (Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084) where one can be loaded, the mean
hidden state of the language model itself otherwise. The environment variable EDITSCOPE_ENCODER names another
sentence encoder, as a hub id or a local folder.
"""

import importlib.util
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor, nn
from torch.nn.functional import normalize

from editing_core.data.facts import bundled_relations, fact_sentences
from editing_core.errors import ModelUnavailable
from editing_core.models.catalog import HUB_ID
from editing_core.models.language_model import LanguageModel, fitted
from editing_core.models.tokens import Coder
from editing_core.types import EditRequest

log = logging.getLogger(__name__)

DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"
PATIENCE = 5.0  # seconds the hub has to answer at all
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # what is fetched: no pickles, no code
COMMON = 4  # bundled facts per relation whose mean is taken off hidden states
QUERIES = 256  # rows compared at once
MOST_KEPT = 50_000  # rows; every wording of every bundled fact
_DIGITS = 5  # of a cosine; what padding changes lies below


@dataclass(frozen=True, eq=False)
class Encoder:
    """name: what people are shown. note: why this one serves and not the one asked for, else empty."""

    name: str
    note: str
    vectors: Callable[[Sequence[str]], Tensor]  # texts -> (n, d), of any length
    kept: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(n, d) float32 on the processor, rows of length 1."""
        if not texts:
            return torch.zeros(0, 0)
        return normalize(self.vectors(texts).float().cpu(), dim=1)

    def encode_once(self, texts: Sequence[str]) -> Tensor:
        """The same, each text's row kept for the next time: for texts that stay, such as bundled ones."""
        if len(self.kept) > MOST_KEPT:
            self.kept.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self.kept]
        self.kept.update(zip(new, self.encode(new), strict=True))
        return torch.stack([self.kept[text] for text in texts]) if texts else torch.zeros(0, 0)


def nearest(queries: Tensor, items: Tensor, count: int) -> tuple[list[list[int]], list[list[float]]]:
    """Per query the row numbers of the `count` nearest items by cosine, best first, ties by number; and the cosines.

    queries: (n, d), items: (m, d), both with unit rows.
    """
    if not len(items):
        return [[] for _ in range(len(queries))], [[] for _ in range(len(queries))]
    found: list[list[int]] = []
    values: list[list[float]] = []
    for some in queries.split(QUERIES):
        # Rounded, because equal texts in batches of other lengths differ in the last digits.
        cosines = (some @ items.T).round(decimals=_DIGITS)
        best, numbers = cosines.sort(dim=1, descending=True, stable=True)
        found += numbers[:, :count].tolist()
        values += best[:, :count].tolist()
    return found, values


def neighbor_distances(encoder: Encoder, request: EditRequest) -> dict[str, float]:
    """Neighbor's prompt -> 1 - cosine of its subject and the edited one; of the prompts where it has no subject."""
    edited = encoder.encode([request.subject, request.full_prompt])
    others = encoder.encode([probe.subject or probe.prompt for probe in request.neighbors])
    return {
        probe.prompt: 1.0 - float(edited[0 if probe.subject else 1] @ others[i])
        for i, probe in enumerate(request.neighbors)
    }


_lock = threading.Lock()
_sentence_encoders: dict[str, Encoder | str] = {}  # by source; the reason where it could not be loaded
_own: weakref.WeakKeyDictionary[nn.Module, tuple[Tensor, dict[str, Tensor]]] = weakref.WeakKeyDictionary()


def encoder_of(lm: LanguageModel, own: bool = False) -> Encoder:
    """The sentence encoder, loaded once per process; the model's own hidden states where there is none.

    own: the model's own in any case. Ask only while the model is unedited, and encode only then: what an edit
    changes, its hidden states would show.
    """
    found = "" if own else _sentence_encoder(os.environ.get("EDITSCOPE_ENCODER") or DEFAULT, lm.device.type)
    if isinstance(found, Encoder):
        return found
    name = f"mean hidden state of {lm.name}"
    note = f"No sentence encoder could be loaded ({found}); the {name} serves instead." if found else ""
    with lm.lock:
        if lm.model not in _own:
            sentences = [text for relation in bundled_relations() for text in fact_sentences(relation)[:COMMON]]
            _own[lm.model] = _means(lm, sentences).mean(0), {}
        common, kept = _own[lm.model]
    return Encoder(name, note, lambda texts: _centered(lm, texts, common), kept)


def _centered(lm: LanguageModel, texts: Sequence[str], common: Tensor) -> Tensor:
    """Without what all sentences share, which would bring any two of them close to each other."""
    with lm.lock:
        return _means(lm, texts) - common


@fitted
@torch.no_grad()
def _means(lm: LanguageModel, texts: Sequence[str]) -> Tensor:
    """(n, d) means of the final hidden states over each text's own tokens, which padding and special ones are not."""
    plain = Coder(lm.tokenizer)
    # A text of white space has no tokens, and a batch needs some.
    rows = [plain.encode(text)[: lm.context] or (0,) for text in texts]
    special = torch.tensor(lm.tokenizer.all_special_ids, dtype=torch.long, device=lm.device)
    means: list[Tensor] = [torch.empty(0)] * len(rows)
    for numbers, batch in lm.batches(rows):
        counted = (batch.mask.bool() & ~torch.isin(batch.ids, special)).unsqueeze(-1)
        sums = (lm.hidden(batch).float() * counted).sum(1)
        for number, mean in zip(numbers, sums / counted.sum(1).clamp(min=1), strict=True):
            means[number] = mean.cpu()
    return torch.stack(means)


def _sentence_encoder(source: str, device: str) -> Encoder | str:
    """The encoder from a hub id or folder, or why there is none; either is remembered."""
    with _lock:
        if source not in _sentence_encoders:
            try:
                _sentence_encoders[source] = _load(source, device)
            except ModelUnavailable as error:
                _sentence_encoders[source] = str(error)
            except Exception as error:
                # Hub, tokenizers and modules each raise kinds of their own.
                log.warning("the sentence encoder %s could not be loaded", source, exc_info=error)
                _sentence_encoders[source] = f"{Path(source).name}: {type(error).__name__}"
        return _sentence_encoders[source]


def _load(source: str, device: str) -> Encoder:
    """ModelUnavailable with the reason where it is plain."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ModelUnavailable("the package sentence-transformers is not installed")
    folder = _folder(source)
    for pickled in folder.rglob("pytorch_model*.bin"):
        if not any(pickled.parent.glob("*.safetensors")):
            raise ModelUnavailable(f"{Path(source).name} has weights that are not safetensors")
    # Here and after all else, because it is slow to import.
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(folder),
        device=device,
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={"use_safetensors": True},
    )
    busy = threading.Lock()  # fast tokenizers cannot be used by two threads at once

    def vectors(texts: Sequence[str]) -> Tensor:
        with busy:
            found: Tensor = model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return found

    return Encoder(Path(source).name, "", vectors)


def _folder(source: str) -> Path:
    """The folder itself, the hub library's copy, or a fresh one where the hub answers in time."""
    name = Path(source).name
    if Path(source).is_dir():
        return Path(source)
    if not HUB_ID.fullmatch(source):
        raise ModelUnavailable(f"there is no {name} on this machine")
    try:
        return Path(snapshot_download(source, local_files_only=True, allow_patterns=list(FILES)))
    except LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE:
            raise ModelUnavailable(f"{name} is not on this machine, which is offline") from None
    try:
        _ask_hub(source)
    except Exception as error:
        raise ModelUnavailable(f"{name} is not on this machine, and the hub did not answer") from error
    return Path(snapshot_download(source, allow_patterns=list(FILES), etag_timeout=PATIENCE))


def _ask_hub(source: str) -> None:
    """Raise unless the hub knows the model within PATIENCE: looking up its address obeys no time limit of its own."""
    asking = ThreadPoolExecutor(1)
    try:
        asking.submit(lambda: HfApi().model_info(source, timeout=PATIENCE)).result(PATIENCE)
    finally:
        asking.shutdown(wait=False)
