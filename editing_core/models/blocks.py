"""Parts of a forward pass: going on behind a block, and entering a block behind its attention."""

from collections.abc import Mapping
from contextlib import AbstractContextManager

from torch import Tensor, nn

from editing_core.models.hooks import Forward, answering, state_of
from editing_core.models.language_model import LanguageModel


def behind(lm: LanguageModel, layer: int, state: Tensor) -> AbstractContextManager[None]:
    """Inside, forwards begin behind a block: it and all below it do not run, and its output is `state`."""
    modules = [lm.model.get_submodule(lm.architecture.block(i)) for i in range(layer + 1)]
    given = (state,) if lm.blocks_give_tuples else state
    return answering(dict.fromkeys(modules, lambda *_, **__: given))


def entered(
    lm: LanguageModel, layer: int, state: Tensor, attended: Tensor, answers: Mapping[nn.Module, Forward]
) -> Tensor:
    """A block's output for its input `state`, both (rows, tokens, d), when its attention gives `attended`.

    answers: of other modules inside it, see `hooks.answering`.
    """
    attention = lm.model.get_submodule(lm.architecture.attention_of(layer))
    with answering({attention: lambda *_, **__: (attended, None), **answers}):
        return state_of(lm.model.get_submodule(lm.architecture.block(layer))(state))
