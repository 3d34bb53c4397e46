"""Sums of k k^T over a text: streamed in blocks, in forwards of similar length, and resumable.

In: a model, layers and a TextSource. Out: Sums. Nothing is approximated: every token counts once, padding
never. Each forward's product is taken in float32 and added in float64. Blocks, forwards and the order of
the additions depend on the text alone, so a collection that was interrupted ends with the same bits.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from editing_core.errors import BadRequest, NotFinite
from editing_core.models.hooks import stopping_after, watching
from editing_core.models.language_model import LanguageModel, fitted
from editing_core.models.tokens import TOKENS_PER_FORWARD, runs
from editing_core.statistics.corpus import TextSource
from editing_core.types import Step, Watch, ignore

CUT = TOKENS_PER_FORWARD  # tokens: of models with a longer context each document is cut here
TILE = 512  # rows of a sum that are added at once
BLOCK_DOCUMENTS, BLOCK_CHARACTERS = 2048, 4_000_000  # what is read, tokenised and sorted by length together


@dataclass(eq=False)
class Sums:
    """Per layer the sum of k k^T, and how far the text was read for it.

    The sum is symmetric: above the tiles on the diagonal it is left zero, which saves up to half of the work.
    """

    totals: dict[int, Tensor] = field(default_factory=dict)  # (d_in, d_in) float64
    tokens: int = 0
    documents: int = 0  # in whole blocks
    forwards: int = 0  # of the block that follows them
    most: int = 0  # tokens per forward that block was divided by
    whole: bool = True  # no forward is half added

    @torch.no_grad()
    def add(self, lm: LanguageModel, layers: Sequence[int], rows: Sequence[Sequence[int]]) -> None:
        """Add the keys of token rows, all layers in one forward."""
        keys = _keys(lm, layers, rows)
        self.whole = False
        for layer in layers:
            rows_of = keys.pop(layer).float()  # (tokens, d_in)
            width = rows_of.shape[1]
            if layer not in self.totals:
                self.totals[layer] = torch.zeros(width, width, dtype=torch.float64, device=place(lm, layers, width))
            total = self.totals[layer]
            for at in range(0, width, TILE):
                rest = at + TILE
                product = rows_of[:, at:rest].T @ rows_of[:, :rest]
                total[at:rest, :rest].add_(product.to(total.device))  # float32 into float64
        self.tokens += sum(map(len, rows))
        self.forwards += 1
        self.whole = True

    def take_mean(self, layer: int) -> Tensor:
        """(d_in, d_in) float32 mean of k k^T; the layer's sum is gone then."""
        total = self.totals.pop(layer).div_(self.tokens)
        for at in range(0, len(total), TILE):
            rest = at + TILE
            total[:at, at:rest] = total[at:rest, :at].T
        return total.float()

    def settle(self, lm: LanguageModel) -> None:
        """Move sums that come from a file to where they are kept."""
        for layer, total in list(self.totals.items()):
            self.totals[layer] = total.to(place(lm, list(self.totals), len(total)))

    def check(self) -> None:
        """NotFinite when a key was not: then its square on the diagonal is not either."""
        for layer, total in self.totals.items():
            if not bool(total.diagonal().isfinite().all()):
                raise NotFinite(
                    f"Keys of layer {layer} are not finite in this dtype; load the model in float32 or bfloat16."
                )


def cut_of(lm: LanguageModel) -> int:
    """Most tokens of a document that are read."""
    return min(lm.context, CUT)


def place(lm: LanguageModel, layers: Sequence[int], width: int) -> torch.device:
    """Where sums are kept: beside the model, or with the processor where they would crowd it out."""
    if lm.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(lm.device)
        return lm.device if 8 * width**2 * len(layers) < free / 2 else torch.device("cpu")
    return torch.device("cpu")  # mps, too: it knows no float64


def tokenised(lm: LanguageModel, texts: Sequence[str]) -> list[list[int]]:
    """Token rows of the texts that have tokens, cut at what the model reads."""
    most = cut_of(lm)
    return [ids[:most] for ids in lm.tokenizer(list(texts))["input_ids"] if ids] if texts else []


def blocks(texts: Iterator[str], skip: int = 0) -> Iterator[list[str]]:
    """Documents in the blocks that belong together, without the first `skip`, which ended a block."""
    block: list[str] = []
    characters = 0
    for number, text in enumerate(texts):
        if number < skip:
            continue
        block.append(text)
        characters += len(text)
        if len(block) == BLOCK_DOCUMENTS or characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def add_text(
    lm: LanguageModel,
    layers: Sequence[int],
    source: TextSource,
    sums: Sums,
    keep: Callable[[Sums, bool], None],
    watch: Watch = ignore,
) -> None:
    """Add what `sums` does not hold of the text yet. keep: gets them after each forward, and with True at a stop."""
    told = _Progress(lm, source, sums, watch)
    sums.settle(lm)
    try:
        for block in blocks(source.read(), sums.documents):
            rows = tokenised(lm, block)
            if not sums.forwards:
                sums.most = lm.tokens_per_collection(len(layers))
            todo = runs([len(row) for row in rows], sums.most)
            length = sum(map(len, rows))
            done = sum(len(rows[n]) for numbers in todo[: sums.forwards] for n in numbers)
            for numbers in todo[sums.forwards :]:
                sums.add(lm, layers, [rows[n] for n in numbers])
                done += sum(len(rows[n]) for n in numbers)
                told(sums, len(block) * done / length)
                keep(sums, False)
            sums.check()
            sums.documents, sums.forwards = sums.documents + len(block), 0
    except NotFinite:
        raise
    except BaseException:
        if sums.whole and sums.tokens:
            keep(sums, True)
        raise
    if not sums.tokens:
        raise BadRequest(f"{source.name} holds no text; give one with at least one document.")


@fitted
def _keys(lm: LanguageModel, layers: Sequence[int], rows: Sequence[Sequence[int]]) -> dict[int, Tensor]:
    """Per layer the keys (tokens, d_in) of all tokens that are not padding."""
    names = {layer: lm.architecture.down(layer) for layer in layers}
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for _, batch in lm.batches(rows):
        with watching(lm.model, inputs=list(names.values())) as seen, stopping_after(lm.model, names[max(layers)]):
            lm.hidden(batch)
        for layer, name in names.items():
            keys = seen.pop(f"{name}.input")
            found[layer].append(keys[batch.mask.bool().to(keys.device)])
    return {layer: torch.cat(parts) if len(parts) > 1 else parts[0] for layer, parts in found.items()}


@dataclass(eq=False)
class _Progress:
    """Tells documents, tokens per second and the time left."""

    lm: LanguageModel
    source: TextSource
    sums: Sums
    watch: Watch

    def __post_init__(self) -> None:
        self.count = self.source.count
        self.started, self.tokens, self.begun = time.perf_counter(), self.sums.tokens, self.sums.documents

    def __call__(self, sums: Sums, in_block: float) -> None:
        """`in_block`: documents of the present block that are done, by their tokens."""
        done = sums.documents + in_block
        seconds = max(time.perf_counter() - self.started, 1e-9)
        rate = (sums.tokens - self.tokens) / seconds
        note = f"key statistics of {self.lm.name}, {sums.tokens:,} tokens, {rate:,.0f} tokens/s"
        if self.count and done > self.begun:
            left = seconds * max(0.0, self.count - done) / (done - self.begun)
            note += f", about {duration(left)} left"
        self.watch(Step("statistics", round(done), max(self.count or 0, round(done)), note=note))


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
