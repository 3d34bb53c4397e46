"""Self-test of a loaded model: what the architecture table and the editors take for granted holds for it.

Every check refuses with one sentence. It takes a few forwards of three tokens.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editing_core.errors import ModelUnavailable
from editing_core.models.hooks import steering, watching
from editing_core.models.norms import gain_of
from editing_core.models.slots import NUMBERS, matrix_shape
from editing_core.models.tokens import Coder

if TYPE_CHECKING:
    from editing_core.models.language_model import LanguageModel

TEMPLATE, SUBJECT = "Long ago {} lived here.", "Anna Brown"


@torch.no_grad()
def check(lm: "LanguageModel") -> None:
    """ModelUnavailable unless the model can be edited and measured as its row says."""
    check_parts(lm)
    check_stream(lm)
    check_head(lm)
    check_subjects(lm)


def check_parts(lm: "LanguageModel") -> None:
    """Every module the row names is there, and down-projections are linear layers."""
    names, modules = lm.architecture, dict(lm.model.named_modules())
    for layer in range(lm.layers):
        wanted = (names.attention_out_of, names.mlp_of, names.down, names.mlp_norm_of)
        missing = [name for name in (of(layer) for of in wanted) if name and name not in modules]
        if missing:
            raise ModelUnavailable(
                f"{lm.name} has no module {missing[0]}, which models of its family have; "
                "it cannot be edited with this version, choose another model."
            )
        down = modules[names.down(layer)]
        matrix = matrix_shape(down)
        # A layer of torch itself reads plain weights only; packed ones have layers of their own.
        own = type(down) in (nn.Linear, Conv1D) and isinstance(down.weight, Tensor)
        if matrix is None or (own and down.weight.dtype not in NUMBERS):
            raise ModelUnavailable(
                f"{lm.name} keeps {names.down(layer)} as {type(down).__name__} and not as a plain or packed weight "
                "matrix, which an edit needs; choose another checkpoint."
            )


def check_stream(lm: "LanguageModel") -> None:
    """A shift of a down-projection's output shifts its block's output by the same, or as the norm in between says."""
    layer = lm.layers // 2
    block, down, added = (name(layer) for name in (lm.architecture.block, lm.architecture.down, lm.architecture.added))
    batch = lm.batch([[1, 2, 3]])
    with watching(lm.model, outputs=[block, down, added]) as seen:
        lm.hidden(batch)
        plain, value, before = seen[block].double(), seen[down], seen[added].double()
        shift = torch.ones_like(value) * value.abs().mean().clamp(min=1e-2)
        with steering(lm.model, {down: lambda out: out + shift}):
            lm.hidden(batch)
        moved = seen[block].double() - plain
        wanted = shift.double() if added == down else seen[added].double() - before
    precise = value.dtype in (torch.float32, torch.float64)
    allowed = (1e-3 if precise else 0.05) * wanted.abs().max()
    # What is added to a long state is rounded as that is.
    allowed = allowed + max(1e-5, 4 * torch.finfo(value.dtype).eps) * plain.abs()
    fine = bool(((moved - wanted).abs() <= allowed).all()) and bool(wanted.any())
    if not fine or not (added == down or _is_rms_norm(lm.model.get_submodule(added), value, precise)):
        raise ModelUnavailable(
            f"{lm.name} does not add its MLP output to the residual stream as its family should; "
            "it cannot be edited with this version, choose another model."
        )


def _is_rms_norm(norm: nn.Module, state: Tensor, precise: bool) -> bool:
    """Whether its output points where that of an RMS norm does, see `norms`. state: (1, tokens, d)."""
    found, wanted = norm(state)[0].double(), gain_of(norm, state[0]) * state[0].double()
    found, wanted = (nn.functional.normalize(states, dim=-1) for states in (found, wanted))
    return bool((found - wanted).norm(dim=-1).max() <= (1e-3 if precise else 0.05))


def check_head(lm: "LanguageModel") -> None:
    """`LanguageModel.logits` of final states gives the model's own logits."""
    batch = lm.batch([[1, 2, 3]])
    own = lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    if not torch.allclose(lm.logits(lm.hidden(batch)).float(), own.float().to(lm.device), atol=1e-2):
        raise ModelUnavailable(
            f"{lm.name} makes its logits in a way EditScope does not know, such as by scaling them; "
            "it cannot be edited with this version, choose another model."
        )


def check_subjects(lm: "LanguageModel") -> None:
    """A subject in the middle of a prompt ends at the token that the locator finds."""
    tokenizer = lm.tokenizer
    if not tokenizer.is_fast:
        raise ModelUnavailable(
            f"{lm.name} has a tokenizer that does not tell where in a text its tokens stand, so no subject can be "
            "found; choose a model with a tokenizer.json."
        )
    last = Coder(tokenizer).subject_last(TEMPLATE, SUBJECT)
    ids = list(tokenizer(TEMPLATE.replace("{}", SUBJECT))["input_ids"])
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        return  # a small vocabulary, whose texts do not come back whole
    through, before = (str(tokenizer.decode(ids[:end])).casefold() for end in (last + 1, last))
    if SUBJECT.casefold() not in through or SUBJECT.casefold() in before:
        raise ModelUnavailable(
            f"{lm.name} has a tokenizer whose tokens do not stand where it says: {SUBJECT!r} was looked for and "
            f"{through[-40:]!r} found; choose a model with another tokenizer."
        )
