"""Free generation side by side: what the library's own loop writes, in turns, and nothing left behind."""

from itertools import pairwise

import pytest
import torch

from editing_core.errors import BadRequest, BadSetting
from editing_core.evaluation.scoring import generate
from editing_core.explore.talk import AT_ONCE, Talk, TalkSettings
from editing_core.models.delta import LowRank, WeightDelta
from editing_core.models.edit import edits_on
from tests.conftest import bit_equal, snapshot

PROMPT = "Mary Walker was born in"
GREEDY = TalkSettings(tokens=20, temperature=0.0)


def edit_of(lm):
    name = f"{lm.architecture.down(1)}.weight"
    inner = lm.model.get_parameter(name).numel() // 32
    drawn = torch.Generator().manual_seed(3)
    return WeightDelta({name: LowRank(torch.randn(32, 1, generator=drawn), torch.randn(1, inner, generator=drawn))})


def whole(talk):
    while not talk.ended:
        texts = talk.turn()
    return texts


def test_greedy_texts_are_what_the_library_writes(tiny_lm):
    edit = edit_of(tiny_lm)
    found = whole(Talk(tiny_lm, PROMPT, [WeightDelta(), edit], GREEDY))
    own = generate(tiny_lm, PROMPT, 20)
    with edit.applied(tiny_lm):
        edited = generate(tiny_lm, PROMPT, 20)
    assert found == [own, edited]
    assert own != edited


def test_equal_states_write_equal_texts_and_seeds_differ(pocket):
    both = whole(Talk(pocket, PROMPT, [WeightDelta(), WeightDelta()]))
    assert both[0] == both[1]
    assert whole(Talk(pocket, PROMPT, [WeightDelta()])) == both[:1]
    assert whole(Talk(pocket, PROMPT, [WeightDelta()], TalkSettings(seed=5))) != both[:1]


def test_a_text_goes_on_where_it_was(pocket):
    talk = Talk(pocket, PROMPT, [WeightDelta()], TalkSettings(tokens=3 * AT_ONCE))
    seen = [talk.turn()[0]]
    assert len(talk.voices[0].written) == AT_ONCE
    while not talk.ended:
        seen.append(talk.turn()[0])
    assert all(after.startswith(before) for before, after in pairwise(seen))


def test_the_model_is_whole_between_turns(pocket):
    name = f"{pocket.architecture.down(1)}.weight"
    edit = WeightDelta({name: LowRank(torch.ones(256, 1), torch.ones(1, 1024))})
    before = snapshot(pocket.model)
    talk = Talk(pocket, PROMPT, [WeightDelta(), edit])
    talk.turn()
    assert bit_equal(pocket.model, before)
    assert not edits_on(pocket.model)


def test_a_text_ends_with_the_end_of_text_and_with_the_context(pocket, tiny_models):
    lm = tiny_models("gpt2")
    ids = lm.coder.encode("word " * 100)
    found = Talk(lm, "word " * 100, [WeightDelta()], TalkSettings(tokens=400, temperature=0.0))
    whole(found)
    assert len(found.voices[0].written) <= lm.context - len(ids)
    talk = Talk(pocket, PROMPT, [WeightDelta()], TalkSettings(tokens=400, temperature=2.0, top_k=1000))
    pocket_end, talk.lm = pocket.tokenizer.eos_token_id, pocket
    whole(talk)
    assert pocket_end not in talk.voices[0].written


def test_a_temperature_of_zero_and_one_candidate_are_the_same(pocket):
    first = whole(Talk(pocket, PROMPT, [WeightDelta()], GREEDY))
    assert whole(Talk(pocket, PROMPT, [WeightDelta()], TalkSettings(tokens=20, top_k=1))) == first


@pytest.mark.parametrize("prompt", ["", "a " * 400, "Zoë lives in", "<script>"])
def test_prompts_the_model_cannot_read_are_refused(pocket, prompt):
    with pytest.raises(BadRequest):
        Talk(pocket, prompt, [WeightDelta()])


def test_settings_out_of_range_are_refused():
    with pytest.raises(BadSetting):
        TalkSettings(tokens=0)
