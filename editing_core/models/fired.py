"""Tables of which neurons fire at which prompts, for neurons that were added and for those that were rewritten."""

from collections.abc import Sequence

from torch import Tensor

FIRED = ("prompt", "adds most", "activation", "it adds", "all add at most")


def fired_rows(
    prompts: Sequence[str], names: Sequence[str], fired: Tensor, lengths: Tensor
) -> tuple[tuple[str | float, ...], ...]:
    """A row per prompt. fired: (prompts, neurons) activations; lengths: (neurons,) of what an activation of 1 adds."""
    added = fired.abs() * lengths
    best = added.argmax(1).tolist()
    return tuple(
        (prompt, names[n], float(fired[i, n]), float(added[i, n]), float(added[i].sum()))
        for i, (prompt, n) in enumerate(zip(prompts, best, strict=True))
    )


def stand(count: int, what: str, one: str, many: str) -> str:
    """1 neuron stands, 2 neurons stand."""
    return f"1 {what} {one}" if count == 1 else f"{count} {what}s {many}"
