"""What an edit changed: how large and of what shape the update is, and whose keys it answers to.

An update of a down-projection adds (Delta W) k to what the layer puts out for a key k. So what it does to another
prompt at once depends on that prompt's key alone: neighbors whose keys point the way of the edited subject's are moved
most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import pandas as pd
import torch
from torch import Tensor

from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.keys import SubjectRows, states_at_subject
from editing_core.models.delta import WIDEST, Dense, LowRank, Update
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel
from editing_core.types import EditRequest, Probe

MOST_VALUES = 50
KEY_COLUMNS = ["case_id", "kind", "number", "prompt", "layer", "cosine", "moved"]


@dataclass(frozen=True, eq=False)
class Change:
    """The update of one parameter.

    layer: of its block, None outside of any. norm: Frobenius, of the update; relative: divided by that of the weight.
    values: the update's largest singular values, largest first; none where finding them would take minutes.
    """

    parameter: str
    layer: int | None
    norm: float
    relative: float
    values: tuple[float, ...]


def changes_of(lm: LanguageModel, delta: Edit) -> list[Change]:
    """One per changed parameter, lowest layer first. The model must be unedited, its numbers are what it is told by."""
    proofs = {proof.parameter: proof for proof in delta.proofs(lm.model)}
    found = []
    for name, update in delta.updates.items():
        large = isinstance(update, Dense) and len(update.shape) > 1 and min(update.shape) > WIDEST
        values = torch.empty(0) if large else singular_values(update)
        norm = float((update.dense().double() if large else values).square().sum().sqrt())
        largest = tuple(values.tolist()[:MOST_VALUES])
        found.append(Change(name, layer_of(lm, name), norm, proofs[name].relative_norm, largest))
    return sorted(found, key=lambda c: (c.layer is None, c.layer or 0, c.parameter))


def layer_of(lm: LanguageModel, parameter: str) -> int | None:
    """The block a parameter belongs to."""
    place = f"{lm.architecture.blocks}."
    number = parameter.removeprefix(place).partition(".")[0]
    return int(number) if parameter.startswith(place) and number.isdigit() else None


def singular_values(update: Update) -> Tensor:
    """All singular values, largest first, float64 on the processor; of factors without making their product."""
    if isinstance(update, LowRank):
        left = torch.linalg.qr(update.left.double().cpu()).R
        right = torch.linalg.qr(update.right.double().cpu().T).R
        core = left @ right.T
    else:
        core = torch.atleast_2d(update.value.double().cpu())
    values: Tensor = torch.linalg.svdvals(core)
    return values


def key_table(lm: LanguageModel, requests: Sequence[EditRequest], delta: Edit) -> pd.DataFrame:
    """What an edit does to every probe's key: KEY_COLUMNS, a row per down-projection changed and prompt with a subject.

    cosine: of the key and that of the fact the probe belongs to, both of the unedited model behind the bare prompt.
    moved: |Delta W k| / |v|, by how much of its length the layer's output v changes at once; NaN where that is zero.
    Prompts whose subject is not known have no key. The model must be unedited.
    """
    asked = [(r, kind, number, place) for r in requests for kind, number, place in _places(r)]
    rows = SubjectRows.of(lm, [place for *_, place in asked], Contexts())
    table = []
    for layer in range(lm.layers):
        name = f"{lm.architecture.down(layer)}.weight"
        if name not in delta.updates:
            continue
        keys = states_at_subject(lm, rows, lm.architecture.down(layer), inputs=True)[:, 0]
        moved = _answers(delta.updates[name], keys).norm(dim=1)
        length = states_at_subject(lm, rows, lm.architecture.down(layer))[:, 0].norm(dim=1)
        own = {id(r): keys[i] for i, (r, kind, *_) in enumerate(asked) if kind == "edit"}
        for i, (r, kind, number, (template, subject)) in enumerate(asked):
            cosine = float(torch.cosine_similarity(keys[i], own[id(r)], dim=0))
            share = float(moved[i] / length[i]) if length[i] else nan
            table.append((r.case_id, kind, number, template.replace("{}", subject), layer, cosine, share))
    return pd.DataFrame(table, columns=KEY_COLUMNS)


def _answers(update: Update, keys: Tensor) -> Tensor:
    """(n, d_out) what an update adds for keys (n, d_in); of factors without making their product."""
    if isinstance(update, LowRank):
        return (keys @ update.right.to(keys).T) @ update.left.to(keys).T
    return keys @ update.value.to(keys).T


def _places(request: EditRequest) -> list[tuple[str, int, tuple[str, str]]]:
    """Kind, number and place of every prompt of a request that has a known subject, the edit's first."""
    found = [("edit", 0, request.place)]
    probes = [Probe(text, request.target_new, request.subject) for text in request.paraphrases]
    for kind, some in (("paraphrase", probes), ("neighbor", request.neighbors)):
        found += [(kind, i, probe.place) for i, probe in enumerate(some) if probe.place]
    return found
