"""What an edit that looks at prompts is told: whole rows, where their prompts end, and when a text only goes on."""

import pytest

from editing_core.errors import BadSetting
from editing_core.evaluation.scoring import free_choices, generate, next_tokens, score_objects
from editing_core.explore.talk import Talk, TalkSettings
from editing_core.models.delta import WeightDelta
from editing_core.models.edit import edits_on
from editing_core.models.gates import gated, reading
from editing_core.runs.record import Base
from editing_core.session import run_edit
from editing_core.types import EditRequest
from tests.conftest import DISTINCT, each_of
from tests.engine.conftest import plan

lm = each_of(DISTINCT)
PAIRS = [("Mary Walker was born in", "London"), ("Mary Walker was born in", "New York City"), ("Paris is in", "France")]


@pytest.fixture
def seen(lm):
    """All that is read while a gated edit is on: rows of a prompt as ids, and whether they go on."""
    found = []
    with reading(lm) as now:
        embedding = lm.model.get_input_embeddings()

        def note(_module, _args, _output):
            told = now()
            rows = [tuple(ids[prompt].tolist()) for ids, prompt in zip(told.ids, told.prompt, strict=True)]
            found.append((rows, told.going_on))

        handle = embedding.register_forward_hook(note)
        yield found
        handle.remove()


def prompts(lm, texts):
    return sorted(lm.coder.encode(text) for text in texts)


@pytest.mark.parametrize("groups", [None, [1, 1, 1]], ids=["right", "left"])
def test_a_scored_row_is_told_with_its_prompt_alone(lm, seen, groups):
    score_objects(lm, PAIRS, groups=groups)
    rows = sorted(row for rows, _ in seen for row in rows)
    assert rows == prompts(lm, [prompt for prompt, _ in PAIRS])
    assert not any(going_on for _, going_on in seen)


def test_without_a_gate_the_scores_are_the_same(lm):
    before = score_objects(lm, PAIRS)
    with reading(lm):
        assert lm.gated
        inside = score_objects(lm, PAIRS)
    assert not lm.gated
    assert [s.logp for s in inside] == pytest.approx([s.logp for s in before], abs=1e-5)
    assert [s.choices for s in inside] == [s.choices for s in before]


def test_what_is_written_goes_on_behind_its_prompt(lm, seen):
    generate(lm, PAIRS[0][0], 4)
    assert [going_on for _, going_on in seen] == [False, True, True, True]
    assert seen[0][0] == prompts(lm, [PAIRS[0][0]])


def test_talk_reads_the_prompt_once(lm, seen):
    talk = Talk(lm, PAIRS[0][0], [WeightDelta()], TalkSettings(tokens=4))
    while not talk.ended:
        talk.turn()
    assert [going_on for _, going_on in seen] == [False, *[True] * (len(seen) - 1)]
    assert seen[0][0] == prompts(lm, [PAIRS[0][0]])


def test_free_choices_and_next_tokens_have_prompts_too(lm, seen):
    scores = score_objects(lm, PAIRS[:2])
    del seen[:]
    free_choices(lm, PAIRS[:2], scores)
    next_tokens(lm, PAIRS[2][0])
    assert {row for rows, _ in seen for row in rows} <= set(prompts(lm, [prompt for prompt, _ in PAIRS]))
    assert seen[-1][0] == prompts(lm, [PAIRS[2][0]])


def test_a_gate_leaves_nothing_behind_also_after_an_error(lm):
    with reading(lm):
        assert edits_on(lm.model) == 1
    with pytest.raises(ZeroDivisionError), reading(lm):
        _ = 1 / 0
    assert edits_on(lm.model) == 0
    assert not gated(lm.model)
    assert not any(module._forward_pre_hooks for module in lm.model.modules())


def test_padding_is_no_part_of_a_prompt(lm, seen):
    rows = [lm.coder.encode(text) for text in ("Paris", "The river runs through")]
    for left in (False, True):
        del seen[:]
        for _, batch in lm.batches(rows, left=left):
            lm.hidden(batch)
        assert sorted(row for found, _ in seen for row in found) == sorted(rows)


def test_an_editor_of_parts_of_rows_is_refused_on_top_of_a_gate(lm):
    class Gate(WeightDelta):
        gated = True

    request = EditRequest("Mary Walker", "{} was born in", "Paris")
    with pytest.raises(BadSetting, match="reads parts of rows"):
        run_edit(lm, [request], plan("memit"), base=Base(Gate(), ("id",)))
