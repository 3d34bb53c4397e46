"""The plain per-fact loop: the algorithms as the papers tell them, slow and obvious, to hold the engine against.

One fact at a time: its rows padded on the right into one batch, every forward through the whole model with the
head at all positions, autograd and `torch.optim.Adam`, dense (d_in, d_in) systems; nothing is kept from one step
or fact to the next. Token rows, contexts, settings and statistics are the engine's own. The caller holds the
model's lock. Sources: MEMIT (arXiv:2210.07229), PMET (2308.08742), iterative editing (2503.11895).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from benchmarks.naive_measures import Table, evaluate, held_out, logits_of, losses_of, perplexities
from editing_core.editors.memit import MemitSettings
from editing_core.editors.settings import TargetSettings
from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.rows import Objective, kl_row
from editing_core.evaluation.evaluator import bundled_texts
from editing_core.models.hooks import Change, steering, watching
from editing_core.models.language_model import LanguageModel
from editing_core.statistics.covariance import Covariance
from editing_core.types import EditRequest

Tensors = Mapping[str, Tensor]  # by site or by parameter


@dataclass(frozen=True, eq=False)
class NaiveEdit:
    """A whole edit, as `edit` gives it.

    Per iteration: deltas, the edit so far, parameter name -> (d_out, d_in) float64; targets, (n_facts, d); steps
    of each fact. Before the first and after every iteration: tables as of `evaluate`, held_out, and
    perplexities, (n_facts,) logarithms.
    """

    deltas: tuple[dict[str, Tensor], ...]
    targets: tuple[Tensor, ...]
    steps: tuple[list[int], ...]
    tables: tuple[Table, ...]
    held_out: tuple[float, ...]
    perplexities: tuple[Tensor, ...]


def optimise(
    lm: LanguageModel,
    request: EditRequest,
    objective: Objective,
    sites: Sequence[str],
    settings: TargetSettings,
    adaptive: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """One fact's target values and shifts, each site -> (d,), and how many forwards that took.

    sites: modules to whose output a shift is added, at the subject's last token of every row. adaptive: PMET's
    factor of the NLL and its rule for stopping.
    """
    rows = [*objective.rows(lm, request, 0), kl_row(lm, request, 0)]
    width = lm.model.config.get_text_config().hidden_size
    shifts = {site: torch.zeros(width, dtype=lm.precision, device=lm.device).requires_grad_() for site in sites}
    anchors: dict[str, Tensor] = {}
    optimizer, unshifted, factor, step = None, None, 1.0, 0
    changes = {site: _shifting(site, [row.subject for row in rows], shifts, anchors) for site in sites}
    with torch.enable_grad(), steering(lm.model, changes):
        for step in range(1, settings.steps + 1):
            logits = logits_of(lm, [row.ids for row in rows])
            nll, right = torch.zeros((), dtype=logits.dtype, device=lm.device), True
            for row, of_row in zip(rows[:-1], logits, strict=False):
                losses, hits = losses_of(of_row, row.positions, row.labels)
                nll = nll + row.weight * losses.mean()
                right = right and (row.weight == 0 or bool(hits.all()))
            chances = logits[-1, rows[-1].subject].log_softmax(-1)
            unshifted = chances.detach() if unshifted is None else unshifted
            kl = settings.kl_factor * (chances.exp() * (chances - unshifted)).sum()
            decay = sum(settings.decay * shifts[site].norm() / anchors[site].norm() ** 2 for site in sites)
            loss = factor * nll + kl + decay
            finished = bool(loss < settings.stop_below) or not bool(loss.isfinite())
            if finished or (adaptive and right and bool(kl <= 0.01)) or step == settings.steps:
                break
            factor = 0.1 if adaptive and right else 1.0
            optimizer = optimizer or _adam(shifts, anchors, settings)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for site, shift in shifts.items():
                shift.data *= (settings.clamp * anchors[site].norm() / shift.detach().norm()).clamp(max=1.0)
    found = {site: shift.detach() for site, shift in shifts.items()}
    return {site: anchors[site] + found[site] for site in sites}, found, step


def _shifting(site: str, subjects: Sequence[int], shifts: Tensors, anchors: dict[str, Tensor]) -> Change:
    """Adds a site's shift at each row's subject; keeps the state there that the first row had at first."""

    def change(state: Tensor) -> Tensor:
        anchors.setdefault(site, state[0, subjects[0]].detach().to(shifts[site].dtype))
        state = state.clone()
        state[range(len(subjects)), subjects] += shifts[site].to(state.dtype)
        return state

    return change


def _adam(shifts: Tensors, anchors: Tensors, settings: TargetSettings) -> torch.optim.Optimizer:
    """Adam, whose rate may be measured in units of each anchor's root mean square."""
    sizes = {site: float(anchors[site].norm()) / len(shift) ** 0.5 for site, shift in shifts.items()}
    units = sizes if settings.relative_rate else dict.fromkeys(shifts, 1.0)
    return torch.optim.Adam([{"params": [shift], "lr": settings.rate * units[site]} for site, shift in shifts.items()])


def targets(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    objective: Objective,
    sites: Sequence[str],
    settings: TargetSettings,
    adaptive: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[int]]:
    """All facts' target values and shifts, each site -> (n_facts, d), and the steps of each; as `optimise`."""
    found = [optimise(lm, request, objective, sites, settings, adaptive) for request in requests]
    values = {site: torch.stack([of_one[site] for of_one, _, _ in found]) for site in sites}
    shifts = {site: torch.stack([of_one[site] for _, of_one, _ in found]) for site in sites}
    return values, shifts, [steps for _, _, steps in found]


def spread(  # noqa: PLR0913, PLR0917 - everything that decides the closed form, each by its name
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    objective: Objective,
    layers: Sequence[int],
    covariances: Mapping[int, Covariance],
    weight: float,
    targets: Tensor,
    site: str,
    share: Callable[[int], float],
) -> dict[str, Tensor]:
    """Parameter name -> (d_out, d_in) float64 update that lets the output of `site` approach `targets` (n_facts, d).

    Layers are written lowest first, each with those below already changed. weight: lambda. share: what the
    residual is divided by when so many layers remain, this one included. Where a norm stands behind the MLP, the
    residual is multiplied by the pseudo-inverse of its Jacobian. site: of what is in the residual stream.
    """
    updates: dict[str, Tensor] = {}
    contexts, layers = objective.contexts, sorted(layers)
    shares = torch.tensor(contexts.weights, dtype=torch.float64, device=lm.device)
    with _restored(lm, layers):
        for number, layer in enumerate(layers):
            down = lm.architecture.down(layer)
            keys = [shares @ _at_subject(lm, request, contexts, f"{down}.input") for request in requests]
            present = [_at_subject(lm, request, Contexts(), site)[0] for request in requests]
            change = (targets.double() - torch.stack(present)) / share(len(layers) - number)
            if norm := lm.architecture.mlp_norm_of(layer):
                values = [_at_subject(lm, request, Contexts(), down)[0] for request in requests]
                change = torch.stack([_inverse(lm, norm, v) @ c for v, c in zip(values, change, strict=True)])
            k, r = torch.stack(keys).T, change.T  # (d_in, n), (d_out, n)
            solution = torch.linalg.solve(weight * covariances[layer].matrix.to(k) + k @ k.T, k)
            updates |= (piece := {f"{down}.weight": r @ solution.T})
            _add(lm, piece)
    return updates


@torch.no_grad()
def _inverse(lm: LanguageModel, name: str, value: Tensor) -> Tensor:
    """(d, d) float64 pseudo-inverse of an RMS norm's Jacobian at `value` (d,), taken to be blind along the value."""
    norm, state = lm.model.get_submodule(name), value.to(lm.model.dtype)
    gain, output = norm(torch.full_like(state, 1024.0)).double(), norm(state).double()
    size = (gain * value).norm() / output.norm()
    along = value / value.norm()
    jacobian = gain[:, None] / size * (torch.eye(len(value)).to(value) - torch.outer(along, along))
    inverse: Tensor = torch.linalg.pinv(jacobian, rtol=1e-6)
    return inverse


def edit(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    settings: MemitSettings,
    covariances: Mapping[int, Covariance],
    objective: Objective,
    iterations: int = 1,
    texts: Sequence[str] | None = None,
) -> NaiveEdit:
    """MEMIT from beginning to end, measured before and after every iteration. The model comes out bit-equal.

    texts: of the held-out perplexity, the bundled ones when none are given.
    """
    texts = bundled_texts() if texts is None else texts
    site, layers = lm.architecture.block(settings.layers[-1]), settings.layers
    total: dict[str, Tensor] = {}
    rounds, measured = [], []
    for number in range(iterations + 1):
        with _restored(lm, layers):
            _add(lm, total)
            measured.append((evaluate(lm, requests), held_out(lm, texts), perplexities(lm, requests, objective)))
            if number == iterations:
                break
            values, _, counts = targets(lm, requests, objective, [site], settings)
            weight, wanted = settings.covariance_weight, values[site]
            update = spread(lm, requests, objective, layers, covariances, weight, wanted, site, share=float)
        total = {name: total.get(name, 0) + piece for name, piece in update.items()}
        rounds.append((total, wanted, counts))
    return NaiveEdit(*zip(*rounds, strict=True), *zip(*measured, strict=True))


@torch.no_grad()
def _at_subject(lm: LanguageModel, request: EditRequest, contexts: Contexts, name: str) -> Tensor:
    """(n_templates, width) float64: output of a module, or under its name with ".input" its input, at the subject."""
    templates = [contexts.prefix(i) + request.prompt for i in range(len(contexts))]
    subjects = [lm.coder.subject_last(template, request.subject) for template in templates]
    module = name.removesuffix(".input")
    with watching(lm.model, outputs=[module], inputs=[module]) as seen:
        logits_of(lm, [lm.tokenizer(template.replace("{}", request.subject))["input_ids"] for template in templates])
    return seen[name][range(len(subjects)), subjects].double()


@torch.no_grad()
def _add(lm: LanguageModel, updates: Tensors) -> None:
    """Change weights in place, summed in float64 and rounded once. updates: (d_out, d_in) each."""
    for name, update in updates.items():
        parameter = lm.model.get_parameter(name)
        turned = isinstance(lm.model.get_submodule(name.removesuffix(".weight")), Conv1D)  # holds (d_in, d_out)
        parameter.copy_((parameter.double() + (update.T if turned else update)).to(parameter.dtype))


@contextmanager
def _restored(lm: LanguageModel, layers: Sequence[int]) -> Iterator[None]:
    """Leaving the block, also by an error, copies the layers' down-projections back as they were."""
    parameters = [lm.model.get_parameter(f"{lm.architecture.down(layer)}.weight") for layer in layers]
    originals = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, original in zip(parameters, originals, strict=True):
                parameter.copy_(original)
