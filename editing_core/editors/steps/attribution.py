"""Attribution: how much each number of a state does for the probability of a token, by integrated gradients.

    score_i = a_i * mean over alpha of  d p(token | text, state at alpha a) / d state_i

The state, at some tokens together, goes from zero to what it is (a) while all else is computed as ever. As the grid
gets finer, the scores of one path add up to what the probability gains on it. Where a norm stands right behind the
state (behind an MLP in some families, behind embeddings in those without learned positions) nearly all is gained next
to zero, where the grid has no point; scores then only say which numbers matter where the path ends. Source:
Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365; of neurons as here: Dai et al. 2022,
https://arxiv.org/abs/2104.08696.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from editing_core.models.hooks import answering, at_on, steering, watching
from editing_core.models.language_model import LanguageModel
from editing_core.models.slots import matrix_shape
from editing_core.models.subjects import embedding_name
from editing_core.models.tokens import Batch
from editing_core.models.trainable import linear_modules

Ids = tuple[int, ...]
# Of so many points: as in the paper, and with both ends as in its published code.
GRIDS: Mapping[str, Callable[[int], Tensor]] = {
    "right": lambda points: torch.arange(1, points + 1) / points,
    "ends": lambda points: torch.linspace(0, 1, points),
}


@dataclass(frozen=True)
class Site:
    """A state inside the model: what comes out of a module, or with `inputs` what goes in.

    width: only the first so many numbers of it. above: blocks that a gradient passes on its way there.
    """

    module: str
    above: int
    inputs: bool = False
    width: int | None = None

    @staticmethod
    def inner(lm: LanguageModel, layer: int) -> "Site":
        """The inner activation of a block's MLP: what goes into its last matrix."""
        return Site(lm.architecture.down(layer), lm.layers - layer, inputs=True)

    @staticmethod
    def embedding(lm: LanguageModel) -> "Site":
        """The input embeddings."""
        return Site(embedding_name(lm), lm.layers)

    @property
    def key(self) -> str:
        """What `watching` calls it."""
        return f"{self.module}.input" if self.inputs else self.module


@dataclass(frozen=True)
class Path:
    """ids: what is read. token: whose probability behind them counts. at: positions that go from zero together."""

    ids: Ids
    token: int
    at: tuple[int, ...]


def integrated_gradients(
    lm: LanguageModel, paths: Sequence[Path], site: Site, points: int, grid: str = "right"
) -> list[Tensor]:
    """Per path (positions, width) scores in `precision`. points: copies of the state between zero and itself."""
    states = states_at(lm, paths, site)
    totals = [torch.zeros_like(state) for state in states]
    pairs = [(number, alpha) for number in range(len(paths)) for alpha in GRIDS[grid](points).tolist()]
    size = max(1, lm.tokens_per_backward(site.above) // max((len(path.ids) for path in paths), default=1))
    for start in range(0, len(pairs), size):
        some = pairs[start : start + size]
        scaled = [alpha * states[number] for number, alpha in some]
        _, gradients = probabilities(lm, [paths[number] for number, _ in some], site, scaled)
        for (number, _), gradient in zip(some, gradients, strict=True):
            totals[number] += gradient
    return [state * total / points for state, total in zip(states, totals, strict=True)]


@torch.no_grad()
def states_at(lm: LanguageModel, paths: Sequence[Path], site: Site) -> list[Tensor]:
    """Per path the (positions, width) state that is there, in `precision`."""
    found: dict[int, Tensor] = {}
    for numbers, batch in lm.batches([path.ids for path in paths]):
        with watching(lm.model, *(((), [site.module]) if site.inputs else ([site.module], ()))) as seen:
            lm.hidden(batch)
        for row, number in enumerate(numbers):
            state = seen[site.key][row, list(paths[number].at), : site.width]
            found[number] = state.to(lm.device, lm.precision)
    return [found[number] for number in range(len(paths))]


def probabilities(
    lm: LanguageModel, paths: Sequence[Path], site: Site, states: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """p(token) per path with its state replaced, (paths,), and its gradient there, each (positions, width).

    In one forward. The logarithm is differentiated and the probability multiplied back, because the gradient of a
    small probability vanishes on its way through a model of half precision.
    """
    batch = replace(lm.batch([path.ids for path in paths]), ends=_on(lm, [len(path.ids) for path in paths]))
    rows = _on(lm, [row for row, path in enumerate(paths) for _ in path.at])
    at = _on(lm, [position for path in paths for position in path.at])
    values = torch.cat(list(states)).requires_grad_()
    with torch.enable_grad(), _replaced(lm, site, batch, (rows, at), values):
        last = lm.hidden(batch)[torch.arange(len(paths), device=lm.device), batch.lengths - 1]
        logs = lm.logits(last).log_softmax(-1)
        found = logs.gather(1, _on(lm, [path.token for path in paths])[:, None])[:, 0]
        (gradient,) = torch.autograd.grad(found.sum(), values)
    p = found.detach().exp()
    return p, list((gradient * p[rows, None]).split([len(path.at) for path in paths]))


@contextmanager
def _replaced(
    lm: LanguageModel, site: Site, batch: Batch, places: tuple[Tensor, Tensor], values: Tensor
) -> Iterator[None]:
    """Inside, forwards of the batch have these values (n, width) at places (rows, positions), each (n,), of a site."""

    def change(state: Tensor) -> Tensor:
        index = at_on(state, *places)
        own = values.to(state.device, state.dtype)
        if site.width is not None:
            own = torch.cat([own, state[index][:, site.width :]], dim=1)
        return state.index_put(index, own)

    if not site.inputs:
        with steering(lm.model, {site.module: change}):
            yield
        return
    module = lm.model.get_submodule(site.module)
    run = module.forward

    def answer(state: Tensor) -> Tensor:
        # OPT makes rows and tokens one in front of its MLP.
        found: Tensor = run(change(state.reshape(*batch.ids.shape, -1)).reshape(state.shape))
        return found

    with answering({module: answer}):
        yield


def questions(
    lm: LanguageModel, prompt: str, answer: str | None, objects: str = "joined", follow: str = "answer"
) -> list[tuple[Ids, int]]:
    """What is read before each token of an answer, and that token; the model's own first choice where there is none.

    follow: what stands behind the prompt from the second token on, the "answer" or the model's own "choice".
    """
    if answer is None:
        ids = lm.coder.encode(prompt)
        return [(ids, first_choice(lm, ids))]
    text = lm.coder.continuation(prompt, answer, objects)
    read = [text.inputs[: position + 1] for position in text.positions]
    if follow == "choice":
        for number in range(1, len(read)):
            read[number] = (*read[number - 1], first_choice(lm, read[number - 1]))
    return list(zip(read, text.object_ids, strict=True))


@torch.no_grad()
def first_choice(lm: LanguageModel, ids: Ids) -> int:
    """The token the model holds likeliest behind these."""
    batch = lm.batch([ids])
    return int(lm.logits_at(batch, _on(lm, [0]), _on(lm, [len(ids) - 1])).argmax())


def inner_scores(
    lm: LanguageModel, asked: Sequence[tuple[Ids, int]], site: Site, points: int, grid: str = "right"
) -> Tensor:
    """(width,) scores of a site at the last token read, averaged over the tokens of an answer; float32, processor."""
    paths = [Path(ids, token, (len(ids) - 1,)) for ids, token in asked]
    scores = integrated_gradients(lm, paths, site, points, grid)
    return torch.cat(scores).mean(0).float().cpu()


def before_activation(lm: LanguageModel, layer: int) -> Site:
    """What comes out of the first of a block's MLP matrices; of the gate's where there is one."""
    down = lm.architecture.down(layer)
    name = next(module for module in linear_modules(lm, ("mlp",), [layer]) if module != down)
    shape = matrix_shape(lm.model.get_submodule(down))
    # Phi-3 keeps gate and values in one matrix, the gate first.
    return Site(name, lm.layers - layer, width=shape[1] if shape else None)


def _on(lm: LanguageModel, numbers: Sequence[int]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.long, device=lm.device)
