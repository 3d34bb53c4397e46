"""Causal tracing: which states of a forward pass carry a fact.

The subject's embeddings are blurred until the model no longer knows the answer; then one state at a time is put back
to what it was, and how much of the answer's probability comes back is that state's indirect effect. Source: Meng et
al. 2022 (ROME), https://arxiv.org/abs/2202.05262, section 2 and appendix B.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from editing_core.errors import BadRequest
from editing_core.models.blocks import behind
from editing_core.models.hooks import Change, steering, watching
from editing_core.models.language_model import LanguageModel, fitted
from editing_core.models.tokens import Batch
from editing_core.settings import Settings, setting
from editing_core.types import EditRequest, Step, Watch, ignore

KINDS = ("hidden", "mlp", "attention")
SUBJECT_ROLES = ("first subject token", "middle subject tokens", "last subject token")
ROLES = (*SUBJECT_ROLES, "first token after", "further tokens", "last token")
LAST_SUBJECT = ROLES[2]
MOST_SUBJECTS = 1000
MOST_TOKENS = 100  # of a traced prompt: every one of them is restored in every layer
PUBLISHED_WINDOW = 10 / 48  # layers restored together for MLP and attention, of those of GPT-2 XL


@dataclass(frozen=True)
class TraceSettings(Settings):
    """How a fact is blurred and restored; the defaults are those of the ROME paper."""

    level: float = setting(3.0, "Noise on the subject's embeddings, in their standard deviations", low=0.0, high=20.0)
    samples: int = setting(10, "Blurred runs that are averaged", low=1, high=100)
    window: int = setting(
        0, "Layers whose MLP or attention is restored together; 0: ten of GPT-2 XL's 48, in proportion", low=0, high=100
    )
    seed: int = setting(1, "Of the noise", low=0, high=2**31 - 1)

    def window_in(self, layers: int) -> int:
        """The window in a model of so many layers."""
        return self.window or max(1, round(PUBLISHED_WINDOW * layers))


@dataclass(frozen=True, eq=False)
class Trace:
    """What restoring brought, for one fact.

    tokens: of the prompt as the model reads it. subject: which of them are the subject's. answer: the token asked for.
    clean, blurred: its probability in the clean run and, on average, in the blurred ones. restored: by kind, (layers,
    tokens) its average probability with that one state put back. noise: standard deviation that was added.
    """

    prompt: str
    tokens: tuple[str, ...]
    subject: range
    answer: str
    clean: float
    blurred: float
    restored: Mapping[str, Tensor]
    window: int
    noise: float

    def effect(self, kind: str) -> Tensor:
        """(layers, tokens): the indirect effect, by how much the probability rose."""
        return self.restored[kind] - self.blurred

    @property
    def total(self) -> float:
        """The total effect: what blurring took away."""
        return self.clean - self.blurred

    def roles(self) -> dict[str, list[int]]:
        """The tokens by the part they play, as the paper averages them; those before the subject play none."""
        first, last, end = self.subject[0], self.subject[-1], len(self.tokens) - 1
        rest = range(last + 1, end)
        parts = (
            [first] if first < last else [],
            [*range(first + 1, last)],
            [last],
            [*rest[:1]],
            [*rest[1:]],
            [end] if end > last else [],
        )
        return dict(zip(ROLES, parts, strict=True))


@torch.no_grad()
def embedding_deviation(lm: LanguageModel, subjects: Sequence[str]) -> float:
    """Standard deviation of all numbers in the embeddings of the subjects' tokens; of the first MOST_SUBJECTS."""
    if not subjects:
        raise BadRequest("No subjects were given to take the noise from; give some.")
    texts = [f" {text}" for text in subjects[:MOST_SUBJECTS]]
    ids = [token for row in lm.tokenizer(texts, add_special_tokens=False)["input_ids"] for token in row]
    return float(lm.model.get_input_embeddings()(torch.tensor([ids], device=lm.device)).float().std())


@fitted
@torch.no_grad()
def trace(
    lm: LanguageModel,
    place: tuple[str, str],
    noise: float,
    settings: TraceSettings | None = None,
    answer: str | None = None,
    watch: Watch = ignore,
) -> Trace:
    """Trace one fact under the present weights.

    place: (template, subject). noise: standard deviation of what is added to the subject's embeddings. answer: whose
    first token is asked for, the model's own first choice without one. watch: told of every layer and kind.
    BadRequest for a fact that cannot be read.
    """
    settings = settings or TraceSettings()
    asked = EditRequest(place[1], place[0], answer or "any")
    for text in (asked.full_prompt, asked.target_new):
        lm.check_text(text)
    run = _Runs(lm, asked.place, noise, settings)
    run.begin()
    token = lm.coder.continuation(run.prompt, answer).object_ids[0] if answer else int(run.clean.argmax())
    blurred = float(run.probabilities(token, [-1]).mean())
    window, layers = settings.window_in(lm.layers), lm.layers
    restored: dict[str, Tensor] = {}
    for number, kind in enumerate(KINDS):
        rows = []
        for layer in range(layers):
            watch(Step("trace", number * layers + layer + 1, len(KINDS) * layers, note=f"{kind}, layer {layer}"))
            rows.append(run.row(token, kind, _layers(lm, kind, layer, window), blurred))
        restored[kind] = torch.stack(rows)
    return Trace(
        run.prompt,
        tuple(text for _, text in lm.coder.places(run.prompt)),
        run.subject,
        str(lm.tokenizer.decode([token])),
        float(run.clean.softmax(-1)[token]),
        blurred,
        restored,
        window,
        noise,
    )


def _layers(lm: LanguageModel, kind: str, layer: int, window: int) -> range:
    """The layers put back together: one block, or a window of MLPs or attentions around it."""
    if kind == "hidden":
        return range(layer, layer + 1)
    first = layer - window // 2
    return range(max(0, first), min(lm.layers, first + window))


def _site(lm: LanguageModel, kind: str, layer: int) -> str:
    """The module whose output is put back."""
    names = lm.architecture
    return {"hidden": names.block, "mlp": names.down, "attention": names.attention_out_of}[kind](layer)


class _Runs:
    """Forward passes of one prompt, clean or with its subject blurred in `samples` ways.

    Every forward has as many rows as the others, the clean one too: sums are taken in an order that depends on how
    many rows there are, so that only then a run with nothing blurred is the clean one to the last bit. Below the
    first state that is put back all runs of a sample are the same; they begin there, with states kept from one run.

    clean: (vocabulary,) logits behind the prompt in the clean run. kept: by module, (tokens, width) the clean run's
    outputs. below: by layer, (samples, tokens, width) the blocks' outputs in blurred runs. rows: of a forward.
    """

    def __init__(self, lm: LanguageModel, place: tuple[str, str], noise: float, settings: TraceSettings) -> None:
        template, subject = place
        self.lm, self.prompt = lm, template.replace("{}", subject)
        self.ids = lm.coder.encode(self.prompt)
        if len(self.ids) > MOST_TOKENS:
            raise BadRequest(f"The prompt takes {len(self.ids)} tokens, at most {MOST_TOKENS} are traced; shorten it.")
        self.subject = lm.coder.subject_tokens(template, subject)
        self.embedding = next(n for n, m in lm.model.named_modules() if m is lm.model.get_input_embeddings())
        drawn = torch.Generator().manual_seed(settings.seed)
        embeddings: Any = lm.model.get_input_embeddings()
        size = (settings.samples, len(self.subject), embeddings.weight.shape[-1])
        self.noise = noise * torch.randn(size, generator=drawn)
        self.clean, self.kept, self.below = torch.empty(0), dict[str, Tensor](), dict[int, Tensor]()
        most = settings.samples * (len(self.ids) - self.subject[0])
        self.rows = max(1, min(most, lm.tokens_per_forward // len(self.ids)))

    def begin(self) -> None:
        """The clean run, and the blurred ones with nothing put back."""
        blocks = [self.lm.architecture.block(layer) for layer in range(self.lm.layers)]
        names = [_site(self.lm, kind, layer) for kind in KINDS for layer in range(self.lm.layers)]
        with watching(self.lm.model, outputs=names) as seen:
            hidden = self.lm.hidden(self._batch())
        self.clean = self.lm.logits(hidden[:, -1])[0]
        self.kept = {name: seen[name][0] for name in names}
        parts: list[list[Tensor]] = [[] for _ in blocks]
        for _, sample in self._forwards([(-1, sample) for sample in range(len(self.noise))]):
            blurring = steering(self.lm.model, {self.embedding: self._blurring(sample)})
            with watching(self.lm.model, outputs=blocks) as seen, blurring:
                self.lm.hidden(self._batch())
            for part, name in zip(parts, blocks, strict=True):
                part.append(seen[name][: len(self.noise)])
        self.below = {layer: torch.cat(part)[: len(self.noise)] for layer, part in enumerate(parts)}

    def row(self, token: int, kind: str, layers: range, blurred: float) -> Tensor:
        """(tokens,) average probability with these layers' states put back at one token each time.

        Before the subject nothing is blurred, so nothing changes there.
        """
        first = self.subject[0]
        found = self.probabilities(token, list(range(first, len(self.ids))), kind, layers)
        return torch.cat([torch.full((first,), blurred, dtype=found.dtype), found.mean(1)])

    def probabilities(
        self, token: int, places: Sequence[int], kind: str = KINDS[0], layers: range = range(0)
    ) -> Tensor:
        """(places, samples) float64: the token's probability in blurred runs, the layers put back at each place."""
        samples = len(self.noise)
        found = []
        for place, sample in self._forwards([(place, sample) for place in places for sample in range(samples)]):
            with ExitStack() as stack:
                for change in self._changes(place, sample, kind, layers):
                    stack.enter_context(change)
                hidden = self.lm.hidden(self._batch())
            found.append(self.lm.logits(hidden[:, -1]).softmax(-1)[:, token].double().cpu())
        return torch.cat(found)[: len(places) * samples].reshape(len(places), samples)

    def _forwards(self, pairs: Sequence[tuple[int, int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows,) place and sample of every forward; the last one begins anew where pairs run out."""
        for start in range(0, len(pairs), self.rows):
            some = [pairs[(start + i) % len(pairs)] for i in range(self.rows)]
            place, sample = (torch.tensor(part) for part in zip(*some, strict=True))
            yield place, sample

    def _changes(
        self, place: Tensor, sample: Tensor, kind: str, layers: range
    ) -> Iterator[AbstractContextManager[None]]:
        """What a forward is changed by: where it begins, and what is put back."""
        putting = {layer: _putting_back(self.kept[_site(self.lm, kind, layer)], place) for layer in layers}
        under = layers.start if layers and kind == "hidden" else layers.start - 1  # the highest block not run
        if under < 0:
            yield steering(self.lm.model, {self.embedding: self._blurring(sample)})
        else:
            state = self.below[under][sample.to(self.below[under].device)]
            yield behind(self.lm, under, putting.pop(under)(state) if under in putting else state)
        yield steering(self.lm.model, {_site(self.lm, kind, layer): put for layer, put in putting.items()})

    def _batch(self) -> Batch:
        return self.lm.batch([self.ids] * self.rows)

    def _blurring(self, sample: Tensor) -> Change:
        def blur(state: Tensor) -> Tensor:
            changed = state.clone()
            changed[:, self.subject[0] : self.subject[-1] + 1] += self.noise[sample].to(state)
            return changed

        return blur


def _putting_back(clean: Tensor, place: Tensor) -> Change:
    def put(state: Tensor) -> Tensor:
        changed, at = state.clone(), place.to(state.device)
        changed[torch.arange(len(at), device=state.device), at] = clean[at.to(clean.device)].to(state)
        return changed

    return put
