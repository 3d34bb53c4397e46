"""Doors to the activations: `watching` reads them, `steering` changes them, `answering` spares computing them.

All names are resolved before the first hook is attached, and every hook is gone when the block is left,
also after an error: a bad name leaves nothing behind. Blocks return a tensor in some families and a
tuple in others, and OPT's make rows and tokens one in front of their MLP; the first two doors show the hidden
state only, always as (batch, tokens, width).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Change = Callable[[Tensor], Tensor]
Forward = Callable[..., Any]


class _Stop(BaseException):
    """Ends a forward pass early; never leaves this file."""


def state_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden state in a module's output."""
    return output[0] if isinstance(output, tuple) else output


def with_state(output: Tensor | tuple[Tensor, ...], state: Tensor) -> Tensor | tuple[Tensor, ...]:
    """The output with its hidden state replaced."""
    return (state, *output[1:]) if isinstance(output, tuple) else state


@contextmanager
def _shapes(model: nn.Module, names: Sequence[str]) -> Iterator[Callable[[str, Tensor], Tensor]]:
    """A function that gives the state of a named module as (batch, tokens, width), as its parent's input is."""
    parents = {name: name.rpartition(".")[0] for name in names}
    modules = {parent: model.get_submodule(parent) for parent in parents.values()}
    leading: dict[str, tuple[int, ...]] = {}

    def keep(parent: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                leading[parent] = tuple(args[0].shape[:-1])

        return hook

    def shaped(name: str, state: Tensor) -> Tensor:
        known = leading.get(parents[name])
        return state.unflatten(0, known) if known and state.dim() == 2 else state

    with ExitStack() as stack:
        for parent, module in modules.items():
            stack.callback(module.register_forward_pre_hook(keep(parent)).remove)
        yield shaped


@contextmanager
def watching(model: nn.Module, outputs: Sequence[str] = (), inputs: Sequence[str] = ()) -> Iterator[dict[str, Tensor]]:
    """Keep the outputs and inputs of the named modules during forward passes inside the block.

    Gives a dict from module name to (batch, tokens, width), filled by each forward; an input of module
    "x" is found under "x.input".
    """
    out_modules = {name: model.get_submodule(name) for name in outputs}
    in_modules = {name: model.get_submodule(name) for name in inputs}
    seen: dict[str, Tensor] = {}

    def keep_output(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            seen[name] = shaped(name, state_of(output))

        return hook

    def keep_input(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[f"{name}.input"] = shaped(name, args[0])

        return hook

    with ExitStack() as stack:
        shaped = stack.enter_context(_shapes(model, [*out_modules, *in_modules]))
        for name, module in out_modules.items():
            stack.callback(module.register_forward_hook(keep_output(name)).remove)
        for name, module in in_modules.items():
            stack.callback(module.register_forward_pre_hook(keep_input(name)).remove)
        yield seen


@contextmanager
def steering(model: nn.Module, changes: dict[str, Change]) -> Iterator[None]:
    """Replace the output of each named module by `change(output)` inside the block.

    A change gets and returns (batch, tokens, width) and must not write into its argument.
    """
    modules = {name: model.get_submodule(name) for name in changes}

    def replace(name: str, change: Change) -> Callable[..., Tensor | tuple[Tensor, ...]]:
        def hook(
            _module: nn.Module, _args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]
        ) -> Tensor | tuple[Tensor, ...]:
            state = state_of(output)
            found = change(shaped(name, state))
            return with_state(output, found.flatten(0, 1) if found.dim() > state.dim() else found)

        return hook

    with ExitStack() as stack:
        shaped = stack.enter_context(_shapes(model, list(modules)))
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(replace(name, changes[name])).remove)
        yield


def stopping_after(model: nn.Module, name: str) -> AbstractContextManager[None]:
    """End the one forward pass inside the block as soon as module `name` has run."""
    return _stopping(model.get_submodule(name).register_forward_hook)


def stopping_before(model: nn.Module, name: str) -> AbstractContextManager[None]:
    """End the one forward pass inside the block as soon as the input of module `name` is there."""
    return _stopping(model.get_submodule(name).register_forward_pre_hook)


@contextmanager
def _stopping(register: Callable[[Callable[..., None]], RemovableHandle]) -> Iterator[None]:
    handle = register(_stop)
    try:
        with suppress(_Stop):
            yield
    finally:
        handle.remove()


def _stop(*_ignored: object) -> None:
    raise _Stop


@contextmanager
def answering(answers: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Inside the block these modules give their answer and compute nothing; hooks on them act as ever."""
    before = {module: vars(module).get("forward") for module in answers}
    try:
        for module, answer in answers.items():
            module.forward = answer
        yield
    finally:
        for module, forward in before.items():
            del module.forward
            if forward is not None:  # some libraries wrap a module the same way
                module.forward = forward


def only_at(module: nn.Module, rows: Tensor, positions: Tensor) -> Forward:
    """An answer of a module that works token by token: computed at some tokens, each named once, zero elsewhere."""
    run = module.forward

    def answer(state: Tensor) -> Tensor:
        found: Tensor = run(state[at_on(state, rows, positions)][None])[0]
        return found.new_zeros(*state.shape[:2], found.shape[-1]).index_put(at_on(found, rows, positions), found)

    return answer


def kept_but_at(module: nn.Module, kept: Tensor, rows: Tensor, positions: Tensor) -> Forward:
    """The same, with `kept` (rows, tokens, width) elsewhere."""
    run = module.forward
    return lambda state: kept.index_put(
        at_on(kept, rows, positions), run(state[at_on(state, rows, positions)][None])[0].to(kept.device)
    )


def at_on(state: Tensor, *index: Tensor) -> tuple[Tensor, ...]:
    """An index where the state is, which may be on another device than what else there is of a spread model."""
    return tuple(part.to(state.device) for part in index)
