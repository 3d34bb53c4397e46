"""Codebook: prompts a layer remembers, each with what the layer is to put out there instead. No weight changes.

    q  what the layer reads at the prompt's last token        j  the entry whose key K_j is nearest to q
    output := V_j  where  |q - K_j| <= radius_j               otherwise it stays as it is

A codebook is the log of its insertions and nothing else: which entries there are and how far each reaches is what
replaying the log gives. So an insertion that is taken out gives its neighbors the radius back that it took from them.
Source: Hartvigsen et al. 2023 (GRACE), https://arxiv.org/abs/2211.11031.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from editing_core.errors import BadRequest, NotFinite
from editing_core.models.edit import Edit, Findings
from editing_core.models.entries import Entries, Insertion, insertion_of, replayed, whole_number
from editing_core.models.gates import Reading, reading
from editing_core.models.hooks import steering, stopping_before, watching
from editing_core.models.language_model import LanguageModel, fitted
from editing_core.models.slots import Slot

QUERIES = ("down", "mlp")


def sites(lm: LanguageModel, layer: int, query: str) -> tuple[str, str]:
    """Names of the module whose input is asked, and of that whose output is replaced; BadRequest where there is none.

    query "down": of the MLP's down-projection both. "mlp": of the whole MLP, which reads the normed state.
    """
    if layer >= lm.layers:
        raise BadRequest(
            f"The codebook is at layer {layer}, {lm.name} has layers 0 to {lm.layers - 1}; "
            "use the model this edit was made for."
        )
    down, mlp = lm.architecture.down(layer), lm.architecture.mlp_of(layer)
    if query == "mlp" and mlp is None:
        raise BadRequest(f"In {lm.name} no module is the whole MLP, whose input was to be asked; set query to down.")
    return (mlp if query == "mlp" and mlp else down), down


@fitted
@torch.no_grad()
def queries(lm: LanguageModel, layer: int, query: str, prompts: Sequence[str]) -> Tensor:
    """(prompts, p) float32 on the CPU: what the layer reads at each prompt's last token."""
    asked, _ = sites(lm, layer, query)
    rows = [lm.coder.encode(prompt) for prompt in prompts]
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for numbers, batch in lm.batches(rows):
        with watching(lm.model, inputs=[asked]) as seen, stopping_before(lm.model, asked):
            lm.hidden(batch)
        state = seen[f"{asked}.input"].cpu()
        for row, (number, length) in enumerate(zip(numbers, batch.lengths.tolist(), strict=True)):
            found[number] = state[row, length - 1].float()
    return torch.stack(found)


def replaced(places: Sequence[str], told: Reading) -> Tensor:
    """(rows, tokens), true where a row's value stands: at its prompt's last token, its prompt, or all behind too."""
    at = torch.arange(told.ids.shape[1], device=told.ids.device)
    by_name = {"last": at == told.last[:, None], "prompt": told.prompt, "all": at >= told.first[:, None]}
    return torch.stack([by_name[name][row] for row, name in enumerate(places)])


@dataclass(frozen=True, eq=False)
class Codebook(Edit):
    """An edit that answers at prompts it remembers. query: what is compared, see `sites`.

    known: what replaying the log gives, where that has been done already.
    """

    layer: int = 0
    query: str = "down"
    log: tuple[Insertion, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    known: Entries | None = field(default=None, repr=False)
    kind: ClassVar[str] = "codebook"

    @cached_property
    def entries(self) -> Entries:
        """What the log comes to."""
        return self.known or replayed(self.log)

    @property
    def gated(self) -> bool:
        """Always: the query is at a prompt's end."""
        return True

    @property
    def empty(self) -> bool:
        """Whether nothing was inserted."""
        return not self.log

    def without(self, case: int | str) -> Codebook:
        """As if nothing of this case had ever been inserted."""
        return replace(self, log=tuple(new for new in self.log if new.case != case), known=None)

    def described(self, provenance: Mapping[str, str]) -> Codebook:
        """The same with another provenance."""
        return replace(self, provenance=provenance)

    def check_beside(self, layer: int, query: str) -> None:
        """BadRequest unless entries of such a layer can be added."""
        if not self.empty and (self.layer, self.query) != (layer, query):
            raise BadRequest(
                f"One codebook is at layer {self.layer} (query {self.query}), the other at layer {layer} (query "
                f"{query}), and a model has one codebook at most; switch one edit off, or make it where the other is."
            )

    def joined(self, other: Codebook) -> Codebook:
        """The other's insertions after this one's; BadRequest where they are of another layer."""
        if self.empty or other.empty:
            return other if self.empty else self
        self.check_beside(other.layer, other.query)
        mine, its = ((book.log[0].key.shape, book.log[0].value.shape) for book in (self, other))
        if mine != its:
            raise BadRequest(
                "These codebooks are of models of different widths and cannot be on together; switch one edit off."
            )
        entries = replayed(other.log, self.entries)
        return replace(
            self, log=self.log + other.log, provenance={**self.provenance, **other.provenance}, known=entries
        )

    def tensors(self) -> dict[str, Tensor]:
        """Keys (insertions, p) and values (insertions, q); none of an empty one."""
        parts = {"keys": [new.key for new in self.log], "values": [new.value for new in self.log]}
        return {name: torch.stack(rows) for name, rows in parts.items()} if self.log else {}

    def facts(self) -> dict[str, Any]:
        """Where it is, and the log but for its tensors."""
        return {"layer": self.layer, "query": self.query, "log": [new.facts() for new in self.log]}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self:
        """What `tensors` and `facts` gave; KeyError, TypeError or ValueError for anything else."""
        if set(facts) != {"layer", "query", "log"} or facts["query"] not in QUERIES:
            raise ValueError("these are no facts of a codebook")
        whole_number(facts["layer"], 10**6)
        log = facts["log"]
        if not isinstance(log, list) or set(tensors) != ({"keys", "values"} if log else set()):
            raise ValueError("a codebook has one key and one value for each insertion")
        for tensor in tensors.values():
            if tensor.dim() != 2 or len(tensor) != len(log) or tensor.dtype != torch.float32 or not tensor.numel():
                raise ValueError("keys and values are rows of float32, one for each insertion")
        rows = zip(tensors["keys"], tensors["values"], log, strict=True) if log else ()
        return cls(facts["layer"], facts["query"], tuple(insertion_of(*row) for row in rows))

    @contextmanager
    def applied(self, lm: LanguageModel) -> Iterator[LanguageModel]:
        """Inside, the layer answers from the codebook, and from those already on as if they were one with it."""
        if self.empty:
            yield lm
            return
        self._check(lm)
        whole, (asked, site) = carried(lm.model).joined(self), sites(lm, self.layer, self.query)
        with ExitStack() as stack:
            now = stack.enter_context(reading(lm))
            seen = stack.enter_context(watching(lm.model, inputs=[asked]))
            answer = whole._answer(lm.model, now, lambda: seen[f"{asked}.input"])
            stack.enter_context(steering(lm.model, {site: answer}))
            stack.enter_context(_on(lm.model, whole))
            yield lm

    def findings(self, lm: LanguageModel, prompts: Sequence[str]) -> Findings:
        """The nearest entry of every prompt, and whether it answers."""
        columns = ("prompt", "answers", "distance", "radius", "nearest entry", "case")
        count = len(self.entries.made)
        if not count or not prompts:
            return Findings("Codebook", f"{count} prompts are remembered and {len(prompts)} were asked.", columns)
        numbers, far, hits = self.entries.route(queries(lm, self.layer, self.query, prompts))
        rows = []
        for prompt, number, d, hit in zip(prompts, numbers.tolist(), far.tolist(), hits.tolist(), strict=True):
            entry = self.entries.made[number]
            rows.append((prompt, "yes" if hit else "no", d, self.entries.radii[number], entry.prompt, entry.case))
        said = (
            f"Layer {self.layer} remembers {count} prompt{'s' if count > 1 else ''}; {int(hits.sum())} of the "
            f"{len(prompts)} asked here end within the radius of the nearest one and get its value, others meet the "
            "layer as it was."
        )
        return Findings("Codebook", said, columns, tuple(rows))

    def _answer(
        self, model: nn.Module, now: Callable[[], Reading], read: Callable[[], Tensor]
    ) -> Callable[[Tensor], Tensor]:
        """What the layer puts out, from what it would: changed at prompts that hit, never while one is continued."""
        entries = self.entries
        keys = cache(entries.keys.to)  # once on each device

        def change(output: Tensor) -> Tensor:
            told = now()
            if told.going_on or carried(model) is not self:
                return output
            state = read()
            rows = torch.arange(len(state), device=state.device)
            numbers, _, hits = entries.route(state[rows, told.last.to(state.device)], keys(state.device))
            if not bool(hits.any()):
                return output
            where = replaced([entries.made[number].places for number in numbers.tolist()], told)
            where &= hits.to(where.device)[:, None]
            return torch.where(where[..., None].to(output.device), entries.values[numbers][:, None].to(output), output)

        return change

    def _check(self, lm: LanguageModel) -> None:
        """BadRequest or NotFinite unless it can be put on."""
        if not self.finite:
            raise NotFinite("The codebook contains infinite or undefined numbers, so it was not put on; edit again.")
        asked, site = sites(lm, self.layer, self.query)
        out, inner = Slot.of(lm.model, f"{site}.weight").shape
        wanted = (inner if asked == site else int(lm.model.config.get_text_config().hidden_size), out)
        own = (len(self.log[0].key), len(self.log[0].value))
        if own != wanted:
            raise BadRequest(
                f"The codebook has keys and values of {own[0]} and {own[1]} numbers, layer {self.layer} of {lm.name} "
                f"has {wanted[0]} and {wanted[1]}; use the model this edit was made for."
            )


_CARRIED: WeakKeyDictionary[nn.Module, list[Codebook]] = WeakKeyDictionary()


def carried(model: nn.Module) -> Codebook:
    """All that the model's codebooks hold at this moment, as one; an empty one where none is on."""
    books = _CARRIED.get(model)
    return books[-1] if books else Codebook()


def muted(model: nn.Module) -> Any:
    """Inside, no codebook that is on answers."""
    return _on(model, Codebook())


@contextmanager
def _on(model: nn.Module, book: Codebook) -> Iterator[None]:
    books = _CARRIED.setdefault(model, [])
    books.append(book)
    try:
        yield
    finally:
        books.pop()
