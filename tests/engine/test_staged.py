"""Staged: rows that wait for a changed layer give the keys that rows which start anew give, in every family."""

from contextlib import ExitStack

import pytest
import torch

from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.keys import SubjectRows, states_at_subject
from editing_core.editors.steps.staged import Staged
from editing_core.models.delta import Dense, WeightDelta
from tests.conftest import FAMILIES, ROUGH, tiny_model

PLACES = [
    ("{} works in", "Mary Walker"),
    ("The city of {} is", "Paris"),
    ("{} works in", "Mary Walker"),
    ("{}", "Rome"),
]
CONTEXTS = Contexts.flat(("Then we met. {}", "A city that I know. {}"))


def close(lm):
    """Some attention works in float32 whatever the model's precision."""
    return {"atol": 1e-6, "rtol": 1e-5} if lm.architecture.family in ROUGH else {"atol": 1e-10, "rtol": 1e-9}


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request):
    return tiny_model(request.param, torch.float64)


def changed(lm, layer):
    """A visible change of a layer's down-projection."""
    name = f"{lm.architecture.down(layer)}.weight"
    shape = lm.model.get_parameter(name).shape
    update = torch.randn(shape, generator=torch.Generator().manual_seed(layer), dtype=torch.float64) / 5
    return WeightDelta({name: Dense(update.T if lm.architecture.family == "gpt2" else update)})


def check(lm, rows, layers, room=2**30):
    staged = Staged(lm, rows, room)
    before = {layer: states_at_subject(lm, rows, lm.architecture.down(layer), inputs=True) for layer in layers}
    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            wanted = states_at_subject(lm, rows, lm.architecture.down(layer), inputs=True)
            torch.testing.assert_close(staged.keys(layer), wanted, **close(lm))
            if number:
                assert (wanted - before[layer]).abs().max() > 1e-3, "the change below does not show"
            stack.enter_context(changed(lm, layer).applied(lm))
    assert not [name for name, module in lm.model.named_modules() if "forward" in vars(module)]
    return staged


@pytest.mark.parametrize("layers", [(0, 1, 2), (0, 2), (1,), (2,)])
def test_keys_layer_by_layer(lm, layers):
    staged = check(lm, SubjectRows.of(lm, PLACES, CONTEXTS), layers)
    assert all(part.rest is not None and part.rest.layer == layers[-1] for part in staged.parts)


def test_without_room_rows_start_anew(lm):
    staged = check(lm, SubjectRows.of(lm, PLACES, CONTEXTS), (0, 1, 2), room=0)
    assert all(part.rest is None for part in staged.parts)


def test_equal_rows_are_run_once_and_shared_prefixes_too(lm):
    rows = SubjectRows.of(lm, PLACES, CONTEXTS)
    staged = check(lm, rows, (0, 1))
    assert len(rows.ids) == 12
    assert sum(len(part.own) for part in staged.parts) == 9
    run = sum(len(ids) for part in staged.parts for ids in part.own)
    assert run < sum(len(ids) for ids in set(rows.ids)) - 2 * 3  # two prefixes, three facts


@pytest.mark.parametrize("room", [0, 2**30])
def test_outputs_above_the_keys(lm, room):
    rows = SubjectRows.of(lm, PLACES, Contexts())
    names = lm.architecture
    sites = (names.block(1), names.block(2), names.down(2), names.down(1), names.added(1), names.attention_out_of(2))
    for site in dict.fromkeys(sites):
        staged = Staged(lm, rows, room)
        torch.testing.assert_close(staged.outputs(site), states_at_subject(lm, rows, site), **close(lm))
        with ExitStack() as stack:
            for layer in (0, 1):
                staged.keys(layer)
                torch.testing.assert_close(staged.outputs(site), states_at_subject(lm, rows, site), **close(lm))
                stack.enter_context(changed(lm, layer).applied(lm))
                torch.testing.assert_close(staged.outputs(site), states_at_subject(lm, rows, site), **close(lm))
