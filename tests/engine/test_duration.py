"""How much there is to compute in an edit: the most it can come to, held against what the engine really runs."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace

import pytest

from editing_core.duration import edit_load, look_load, seconds
from editing_core.editors.load import Load
from editing_core.editors.stopping import StopSettings
from editing_core.models.delta import WeightDelta
from editing_core.models.language_model import LanguageModel
from editing_core.registry import EDITORS, editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import look, run_edit
from editing_core.types import EditRequest

MODEL = "pocket-gpt2"
FACT = EditRequest("Edward Matthew Ward", "{} was born in", "Boston", "London", paraphrases=("Ward came from",))
ONCE = StopSettings(iterations=1, stop="none", collapse_factor=0.0)


def plan(editor, rounds=1, **changes):
    settings = editor_row(editor).preset(MODEL).settings.changed(changes)
    return EditPlan(editor, settings, replace(ONCE, iterations=rounds))


def counted(lm, work):
    """(tokens, passes) that work really sends through the model, a backward pass counted as in `duration`."""
    found = Counter()

    def count(_module, arguments, output):
        state = arguments[0]
        trains = (output[0] if isinstance(output, tuple) else output).requires_grad
        found["tokens"] += state.shape[:-1].numel() * (3 if trains else 1)
        found["passes"] += 2 if trains else 1

    with ExitStack() as stack:
        for layer in range(lm.layers):
            module = lm.model.get_submodule(lm.architecture.mlp_of(layer))
            stack.callback(module.register_forward_hook(count).remove)
        work()
    return found["tokens"] / lm.layers, found["passes"] / lm.layers


@pytest.fixture(scope="module")
def quick(pocket, store, corpus):
    """The bundled model under another name, so that statistics of little text serve."""
    lm = LanguageModel(pocket.model, pocket.tokenizer, "quick", alphabet="ascii")
    store.remember(lm, corpus)
    store.collect(lm, [0, 1, 2, 3], corpus)
    return lm


FAST = ("memit", "rome", "finetuning", "kn", "grace")
LATER = [pytest.param(name, marks=pytest.mark.slow) for name in EDITORS if name not in FAST]


@pytest.mark.parametrize("editor", [*FAST, *LATER])
def test_an_edit_comes_to_less_and_not_to_far_less(quick, store, editor):
    changes = {
        "finetuning": {"random_facts": 2, "paraphrases": 2, "least_steps": 0},
        "calinet": {"random_facts": 8, "similar_facts": 0, "steps": 20, "enough": 0.0},
        "grace": {"steps": 20, "stop_below": 0.0},
    }
    wanted = plan(editor, **changes.get(editor, {}))
    tokens, passes = counted(quick, lambda: run_edit(quick, [FACT], wanted, store))
    most = edit_load([FACT], wanted, generate=False, depth=quick.layers)
    assert tokens <= most.tokens <= 8 * tokens
    assert passes <= most.passes <= 8 * passes


def test_a_look_comes_to_less_and_not_to_far_less(pocket):
    tokens, passes = counted(pocket, lambda: look(pocket, FACT.full_prompt, WeightDelta()))
    most = look_load(1, 30)
    assert tokens <= most.tokens <= 4 * tokens
    assert passes <= most.passes <= 4 * passes


@pytest.mark.parametrize("editor", ["memit", "rome", "finetuning"])
def test_more_work_takes_longer(editor):
    facts = [replace(FACT, case_id=n) for n in range(40)]
    least = edit_load([FACT], plan(editor), generate=False)
    steps = {"epochs": 40} if editor == "finetuning" else {"steps": 60}
    for more in (
        edit_load(facts, plan(editor), generate=False),
        edit_load([FACT], plan(editor, rounds=3), generate=False),
        edit_load([FACT], plan(editor, **steps), generate=False),
        edit_load([FACT], plan(editor), generate=True),
    ):
        assert more.tokens > least.tokens
        assert more.passes >= least.passes
        assert seconds(more, 10**9, 24) > seconds(least, 10**9, 24)
    assert seconds(least, 2 * 10**9, 24) > seconds(least, 10**9, 24)
    assert seconds(least, 10**6, 48) > seconds(least, 10**6, 24)


def test_every_ingredient_counts():
    own = edit_load([FACT], plan("finetuning", random_facts=0, paraphrases=0, least_steps=0), generate=False)
    for change in ({"paraphrases": 15}, {"random_facts": 40}, {"similar_facts": 15}, {"dpo": 0.5}, {"language": 0.1}):
        more = plan("finetuning", **{"random_facts": 0, "paraphrases": 0, "least_steps": 0, **change})
        assert edit_load([FACT], more, generate=False).tokens > own.tokens, change


def test_loads_add_up():
    assert Load(1, 2) + Load(3, 4) == Load(4, 6)
    assert Load(1, 2).times(3) == Load(3, 6)
