"""Keys and values at the subject's last token.

A key is the input of an MLP down-projection there, averaged over the context templates; a value is the
output of some module there on the bare prompt. Prompts are cut behind the subject: by causality nothing
to its right matters. For keys of several layers, the lower ones changed in between, see `staged.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing_core.editors.steps.contexts import Contexts
from editing_core.models.hooks import at_on, stopping_after, watching
from editing_core.models.language_model import LanguageModel, fitted


@dataclass(frozen=True, eq=False)
class SubjectRows:
    """Token rows that end with the subject's last token, records slowest: (n_records * n_templates).

    openings: token ids that rows of a template begin with, see `Contexts.openings`.
    """

    ids: tuple[tuple[int, ...], ...]
    templates: int
    openings: tuple[tuple[int, ...], ...] = ()

    @staticmethod
    def of(lm: LanguageModel, places: Sequence[tuple[str, str]], contexts: Contexts) -> "SubjectRows":
        """One row per place (template, subject) and context template."""
        rows = []
        for prompt, subject in places:
            for number in range(len(contexts)):
                template = contexts.prefix(number) + prompt
                last = lm.coder.subject_last(template, subject)
                ids = lm.coder.encode(template.replace("{}", subject))
                rows.append(ids[: last + 1])
        return SubjectRows(tuple(rows), len(contexts), contexts.openings(lm, len(places)))


@fitted
@torch.no_grad()
def states_at_subject(lm: LanguageModel, rows: SubjectRows, site: str, inputs: bool = False) -> Tensor:
    """(n_records, n_templates, width) float64: output (or input) of module `site` at the subject's end."""
    parts, order = [], []
    name = f"{site}.input" if inputs else site
    kept = {"inputs": [site]} if inputs else {"outputs": [site]}
    for numbers, batch in lm.batches(rows.ids):
        with watching(lm.model, **kept) as seen, stopping_after(lm.model, site):
            lm.hidden(batch)
        index = torch.arange(len(batch.ids), device=lm.device)
        parts.append(seen[name][at_on(seen[name], index, batch.lengths - 1)].double().to(lm.device))
        order += numbers
    states = torch.cat(parts)[torch.tensor(order).argsort()]
    return states.reshape(-1, rows.templates, states.shape[-1])


def average(states: Tensor, contexts: Contexts) -> Tensor:
    """(n_records, width): the templates' weighted mean."""
    weights = torch.tensor(contexts.weights, dtype=states.dtype, device=states.device)
    return torch.einsum("etd,t->ed", states, weights)


def keys_of(lm: LanguageModel, rows: SubjectRows, contexts: Contexts, layer: int) -> Tensor:
    """(d_in, n_records) float64: averaged keys of a layer under the current weights."""
    return average(states_at_subject(lm, rows, lm.architecture.down(layer), inputs=True), contexts).T
