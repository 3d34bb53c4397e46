"""The norm behind an MLP, in families that have one: what a change behind it takes in front of it.

    y = g * m / rms(m)        J = diag(g) / rms(m) (I - m m^T / |m|^2)

Gemma 2 and 3 and OLMo 2 and 3 normalise the down-projection's output m before it is added to the residual stream, so
a change wanted in the stream has to be pulled back through the norm: J^+ r is the least change of m that comes
nearest to r, to first order. The norm forgets how long m is: nothing along m changes y, and the part of r that J
cannot make is lost. Also, y stays on an ellipsoid, so a large r is only approached; what is left is measured anew at
the next layer and in the next iteration. Sources: the norms are RMSNorm's (Zhang and Sennrich 2019,
https://arxiv.org/abs/1910.07467), behind the MLP as in https://arxiv.org/abs/2408.00118 and
https://arxiv.org/abs/2501.00656; pulling changes back through them is ours.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from editing_core.models.loading import device_of

if TYPE_CHECKING:
    from editing_core.models.language_model import LanguageModel

LENGTH = 1024.0  # so long that the norm's epsilon does not show, and a power of two, so that nothing is rounded
LEAST_GAIN = 1e-3  # as a share of the largest; what is scaled by less is left alone, or its change would be enormous


def gain_of(norm: nn.Module, like: Tensor) -> Tensor:
    """(d,) float64: g of an RMS norm for states like `like` (n, d), also where the module stores g - 1."""
    found: Tensor = norm(torch.full_like(like[:1], LENGTH))
    return found[0].double()


def pulled_back(change: Tensor, state: Tensor, output: Tensor, gain: Tensor) -> Tensor:
    """(n, d): J^+ change, the least change of `state` whose output's change comes nearest to `change`.

    change, state, output: (n, d) in one precision, output = g * state / rms(state); gain: (d,). It is orthogonal to
    the state. Dimensions with hardly any gain stay as they are.
    """
    scale = (gain * state).norm(dim=-1, keepdim=True) / output.norm(dim=-1, keepdim=True)  # rms, epsilon included
    reached = gain.abs() > LEAST_GAIN * gain.abs().max()
    inverse = torch.where(reached, 1 / gain, torch.zeros_like(gain))
    exact = scale * inverse * change  # gives all of the change, but also stretches the state
    along = inverse**2 * state  # the direction whose removal costs the output least
    found: Tensor = exact - along * ((state * exact).sum(-1, keepdim=True) / (state * along).sum(-1, keepdim=True))
    return found


@torch.no_grad()
def in_stream(lm: "LanguageModel", layer: int, values: Tensor) -> Tensor:
    """(n, d): what outputs `values` (n, d) of a layer's down-projection add to the residual stream."""
    name = lm.architecture.mlp_norm_of(layer)
    if name is None:
        return values
    norm = lm.model.get_submodule(name)
    found: Tensor = norm(values.to(device_of(norm), lm.model.dtype))
    return found.to(values)


@torch.no_grad()
def at_down(lm: "LanguageModel", layer: int, change: Tensor, keys: Tensor) -> Tensor:
    """(n, d) float64: the change of a down-projection's output for `change` (n, d) of what its MLP adds to the stream.

    The same, unless the family has a norm in between. keys: (n, d_in), what the down-projection reads now.
    """
    name = lm.architecture.mlp_norm_of(layer)
    if name is None:
        return change
    down, norm = lm.model.get_submodule(lm.architecture.down(layer)), lm.model.get_submodule(name)
    state: Tensor = down(keys.to(device_of(down), lm.model.dtype))
    here = change.to(state.device)
    return pulled_back(here, state.double(), norm(state).double(), gain_of(norm, state)).to(change.device)
