"""Free texts: they begin with their prompt, repeat themselves by seed, touch nothing; and how they are read."""

import pytest
import torch

from editing_core.evaluation import generation
from editing_core.evaluation.consistency import References, consistency
from editing_core.evaluation.fluency import fluency
from editing_core.evaluation.generation import TOP_K, generation_metrics, sample_texts
from editing_core.types import EditRequest
from tests.conftest import CONTEXT, bit_equal, snapshot, tiny_model

PROMPTS = ("Mary Walker was born in", "The old bridge over the river was", "Mary Walker comes from", "London is")
REFERENCES = References({("P19", "London"): ("Mary was born in London",), ("P19", "Q84"): ("A river runs there",)})


@pytest.fixture(scope="module")
def lm():
    """A model of its own; it must be left as it was."""
    lm = tiny_model("gpt2")
    before = snapshot(lm.model)
    yield lm
    assert bit_equal(lm.model, before)


@pytest.fixture
def rows(lm, monkeypatch):
    """Token rows of every forward, as (prompt length, rows)."""
    seen, write = [], lm.model.generate

    def told(ids, **options):
        out = write(ids, **options)
        seen.append((ids.shape[1], out))
        return out

    monkeypatch.setitem(lm.model.__dict__, "generate", told)
    return seen


def edit(case_id=0, prompts=PROMPTS[:2], new="London", relation="P19", **more):
    return EditRequest(
        "Mary Walker", "{} was born in", new, case_id=case_id, generation_prompts=prompts, relation_id=relation, **more
    )


def test_texts_begin_with_their_prompts_in_order(lm):
    texts = sample_texts(lm, PROMPTS, length=20)
    assert len(texts) == len(PROMPTS)
    for text, prompt in zip(texts, PROMPTS, strict=True):
        assert text.startswith(prompt)
        assert len(text) > len(prompt)


def test_equal_seeds_give_equal_texts(lm):
    first = sample_texts(lm, PROMPTS, seed=3, length=20)
    assert sample_texts(lm, PROMPTS, seed=3, length=20) == first
    other = sample_texts(lm, PROMPTS, seed=4, length=20)
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_equal_prompts_of_one_call_are_continued_differently(lm):
    assert len(set(sample_texts(lm, [PROMPTS[0]] * 4, length=20))) == 4


def test_the_global_random_state_is_untouched(lm):
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = sample_texts(lm, PROMPTS, length=15)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)  # and it does not decide the texts
    assert sample_texts(lm, PROMPTS, length=15) == first


def test_length_counts_the_prompt_and_nothing_stops_earlier(lm, rows):
    sample_texts(lm, PROMPTS, length=24)
    assert rows
    for size, out in rows:
        assert size < 24
        assert out.shape[1] == 24
        assert not (out[:, size:] == lm.tokenizer.eos_token_id).any()


def test_tokens_that_end_a_text_are_not_written(lm, rows, monkeypatch):
    """Here every other token would end it."""
    ending = list(range(0, len(lm.tokenizer), 2))
    monkeypatch.setattr(lm.model.generation_config, "eos_token_id", ending)
    sample_texts(lm, PROMPTS[:1], length=24)
    ((size, out),) = rows
    assert out.shape[1] == 24
    assert (out[:, size:] % 2 == 1).all()


def test_length_ends_with_the_context(lm, rows):
    sample_texts(lm, PROMPTS[:1], length=CONTEXT + 50)
    ((_, out),) = rows
    assert out.shape[1] == CONTEXT


def test_the_published_length_is_the_default(lm, rows):
    sample_texts(lm, PROMPTS[:1])
    ((_, out),) = rows
    assert out.shape[1] == 100


def test_a_prompt_that_is_long_enough_is_left_as_it_is(lm, rows):
    size = len(lm.coder.encode(PROMPTS[1]))
    assert sample_texts(lm, PROMPTS[1:2], length=size) == [PROMPTS[1]]
    assert sample_texts(lm, PROMPTS[1:2], length=size - 1) == [PROMPTS[1]]
    assert rows == []
    (longer,) = sample_texts(lm, PROMPTS[1:2], length=size + 1)
    assert longer.startswith(PROMPTS[1])
    assert len(rows) == 1


def test_prompts_of_equal_length_run_together_without_padding(lm, rows, monkeypatch):
    sizes = [len(lm.coder.encode(prompt)) for prompt in PROMPTS]
    monkeypatch.setattr(generation, "PROMPTS_PER_FORWARD", 2)
    sample_texts(lm, [*PROMPTS, *PROMPTS[:1] * 2], length=12)
    counts = {size: sizes.count(size) + 2 * (size == sizes[0]) for size in set(sizes)}
    found = {}
    for size, out in rows:
        assert len(out) <= 2
        found[size] = found.get(size, 0) + len(out)
    assert found == counts


def test_when_memory_runs_out_fewer_prompts_run_together_and_say_the_same(lm, rows, monkeypatch):
    """A device that takes three rows at once."""
    many = [*PROMPTS, *PROMPTS[:1] * 9]
    wanted = sample_texts(lm, many, seed=2, length=20)
    assert max(len(out) for _, out in rows) > 8
    rows.clear()
    write = lm.model.generate

    def small(ids, **options):
        if len(ids) > 3:
            raise torch.OutOfMemoryError("no room")
        return write(ids, **options)

    monkeypatch.setitem(lm.model.__dict__, "generate", small)
    monkeypatch.setattr(lm, "divisor", 1)
    assert sample_texts(lm, many, seed=2, length=20) == wanted
    assert lm.divisor == 32
    assert {len(out) for _, out in rows} == {1, 2}


def test_tokens_are_drawn_by_their_probabilities():
    """Over many chances each of the likeliest comes as often as its share among them, and no other ever."""
    logits = torch.tensor([0.0, 3.0, -1.0, 2.0, 1.5, 1.0, -4.0])
    chances = (torch.arange(1000) + 0.5)[:, None] / 1000
    drawn = generation._Draw(chances)(torch.empty(1000, 0), logits.expand(1000, -1)).argmax(-1)
    likeliest = logits.topk(TOP_K)
    shares = torch.zeros(7).scatter(0, likeliest.indices, likeliest.values.softmax(-1))
    torch.testing.assert_close(drawn.bincount(minlength=7) / 1000, shares, atol=1.1e-3, rtol=0)


@torch.no_grad()
def test_every_token_is_among_the_likeliest(lm, rows):
    """Of about 70 tokens some are not the first choice, and none is below the fifth."""
    sample_texts(lm, PROMPTS, length=24)
    ranks = []
    for size, out in rows:
        logits = lm.model(out).logits[:, size - 1 : -1]
        logits[..., lm.tokenizer.eos_token_id] = float("-inf")
        own = logits.gather(2, out[:, size:, None])
        ranks += ((logits > own + 1e-4).sum(-1) + 1).flatten().tolist()
    assert max(ranks) == TOP_K == 5
    assert min(ranks) == 1


def test_no_prompts_no_texts(lm):
    assert sample_texts(lm, []) == []


# --- what they are read for ------------------------------------------------------------------------------------------


@pytest.fixture
def said(monkeypatch):
    """Texts without a model: each prompt and a word of its own; told: the prompts and seeds asked for."""
    asked = []

    def write(_lm, prompts, seed=0, **_watch):
        asked.append((list(prompts), seed))
        return [f"{prompt} number {i} of a city" for i, prompt in enumerate(prompts)]

    monkeypatch.setattr(generation, "sample_texts", write)
    return asked


def test_metrics_are_means_over_records_of_their_own_texts(said):
    edits = [edit(0, PROMPTS[:2]), edit(1, ()), edit(2, PROMPTS[2:3])]
    found = generation_metrics(None, edits, REFERENCES, seed=5)
    assert said[0][0] == list(PROMPTS[:3])
    own = [[f"{PROMPTS[0]} number 0 of a city", f"{PROMPTS[1]} number 1 of a city"]]
    own += [[f"{PROMPTS[2]} number 2 of a city"]]
    assert found["fluency"] == pytest.approx(sum(fluency(texts) for texts in own) / 2)
    wanted = [consistency(texts, REFERENCES, ("P19", "London")) for texts in own]
    assert min(wanted) > 0
    assert found["consistency"] == pytest.approx(sum(wanted) / 2)


def test_published_references_go_by_the_id_of_the_object(said):
    with_id = generation_metrics(None, [edit(target_new_id="Q84")], REFERENCES)
    texts = [f"{prompt} number {i} of a city" for i, prompt in enumerate(PROMPTS[:2])]
    assert with_id["consistency"] == pytest.approx(consistency(texts, REFERENCES, ("P19", "Q84")))
    assert with_id["consistency"] != generation_metrics(None, [edit()], REFERENCES)["consistency"]
    unknown_id = generation_metrics(None, [edit(target_new_id="Q1")], REFERENCES)
    assert unknown_id == generation_metrics(None, [edit()], REFERENCES)
    assert len(said) == 4


def test_records_without_references_are_left_out_of_consistency_only(said):
    known, strange = edit(0, PROMPTS[:1]), edit(1, PROMPTS[:1], new="Bonn")
    both = generation_metrics(None, [known, strange], REFERENCES)
    assert both["consistency"] == generation_metrics(None, [known], REFERENCES)["consistency"]
    assert generation_metrics(None, [strange], REFERENCES)["consistency"] is None
    assert generation_metrics(None, [edit(relation=None)], REFERENCES)["consistency"] is None
    assert generation_metrics(None, [strange], REFERENCES)["fluency"] > 0
    assert len(said) == 5


def test_without_generation_prompts_there_is_nothing_to_say(lm):
    assert generation_metrics(lm, [edit(prompts=()), edit(1, ())], REFERENCES) == {"fluency": None, "consistency": None}
    assert generation_metrics(lm, [], REFERENCES) == {"fluency": None, "consistency": None}


def test_seeds_of_the_texts_come_from_the_seed(said):
    for seed in (0, 0, 1):
        generation_metrics(None, [edit()], REFERENCES, seed)
    first, again, other = (seed for _, seed in said)
    assert first == again != other


def test_metrics_of_a_model_repeat_themselves(lm):
    first = generation_metrics(lm, [edit()], REFERENCES, seed=1)
    assert first == generation_metrics(lm, [edit()], REFERENCES, seed=1)
    assert first["fluency"] > 0
    assert 0 <= first["consistency"] <= 100
    assert first != generation_metrics(lm, [edit()], REFERENCES, seed=2)
