"""From text to positions, and that batching changes nothing."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from editing_core.errors import OutOfMemory
from editing_core.evaluation.scoring import generate, next_tokens, score_objects, text_perplexities
from editing_core.models import memory
from editing_core.models.language_model import LanguageModel
from editing_core.models.tokens import FORWARD_COST, Coder, pad, runs
from tests.conftest import pocket_tokenizer

PROMPTS = ["Mary Walker was born in", "The capital of France is ", "St. John's, N.F., is in", '"Hello," she said. The']
SUBJECTS = [
    "Mary",
    "Mary Walker",
    "Oliver Lyttelton, 1st Viscount Chandos",
    "St. John's",
    "AT&T Inc.",
    '"Weird Al" Yankovic',
    "the old (stone) bridge",
    "C-3PO",
    "Who?",
]
TEMPLATES = [
    "{} was born in",
    "The mother tongue of {} is",
    "{}'s first language is",
    "Birthplace of {}:",
    "As for {}, it",
]
WORDS = st.lists(
    st.sampled_from(["Mary", "Walker", "river", "Paris", "42", "the", "of,", "born.", "(old)", "it's", "x"]),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("answer", ["London", "the United States", "1999", "New York City, N.Y."])
def test_continuation_reconstructs_the_ids(prompt, answer):
    tokenizer = pocket_tokenizer()
    text = Coder(tokenizer).continuation(prompt, answer)
    whole = tokenizer(f"{prompt.rstrip(' ')} {answer}")["input_ids"]
    assert list(text.ids) == whole
    assert list(text.ids[: text.start]) == tokenizer(prompt.rstrip(" "))["input_ids"]
    assert tokenizer.decode(list(text.object_ids)) == f" {answer}"
    assert text.inputs == text.ids[:-1]
    assert [text.ids[at + 1] for at in text.positions] == list(text.object_ids)


@settings(max_examples=60, deadline=None)
@given(prompt=WORDS, answer=WORDS)
def test_continuation_always_has_an_object(prompt, answer):
    text = Coder(pocket_tokenizer()).continuation(" ".join(prompt), " ".join(answer))
    assert len(text.object_ids) == len(text.positions) >= 1
    assert text.start >= 1
    assert [text.ids[at + 1] for at in text.positions] == list(text.object_ids)


def counted(template: str, subject: str) -> int:
    """The subject's last token by counting the tokens of the text up to the subject's end."""
    end = template.index("{}") + len(subject)
    return len(pocket_tokenizer()(template.replace("{}", subject)[:end])["input_ids"]) - 1


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_subject_last_agrees_with_counting(template, subject):
    assert Coder(pocket_tokenizer()).subject_last(template, subject) == counted(template, subject)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_subject_last_covers_the_last_character(subject):
    tokenizer, template = pocket_tokenizer(), "They told us that {}, of all things, is"
    text = template.replace("{}", subject)
    end = template.index("{}") + len(subject)
    start, stop = tokenizer(text, return_offsets_mapping=True)["offset_mapping"][
        Coder(tokenizer).subject_last(template, subject)
    ]
    assert start < end <= stop


def test_subject_last_takes_the_place_not_the_first_occurrence():
    tokenizer = pocket_tokenizer()
    template = "Mary was a friend of {} and"
    assert Coder(tokenizer).subject_last(template, "Mary") == counted(template, "Mary") > 0
    assert Coder(tokenizer).last_token("Mary", 4) == len(Coder(tokenizer).encode("Mary")) - 1


def test_pad():
    batch = pad([[5, 6, 7], [8]], "cpu")
    assert batch.ids.tolist()[0] == [5, 6, 7]
    assert batch.ids[1, 0] == 8
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.lengths.tolist() == [3, 1]


PAIRS = [
    ("Mary", "London"),
    ("The old bridge over the river was built long ago by", "the French army"),
    ("Mary", "Paris"),
    ("It is", "a"),
    ("The old bridge over the river was built long ago by", "Germans"),
    ("Everybody knows that in the year of the great fire Mary Walker went to the city of", "New York City"),
]


def test_scores_do_not_depend_on_the_batch(tiny_lm):
    together = score_objects(tiny_lm, PAIRS)
    for pair, score in zip(PAIRS, together, strict=True):
        (alone,) = score_objects(tiny_lm, [pair])
        assert score.logp == pytest.approx(alone.logp, abs=1e-5)
        assert (score.rank, score.choices, score.hit) == (alone.rank, alone.choices, alone.hit)


@torch.no_grad()
def test_score_is_the_mean_log_probability(tiny_lm):
    prompt, answer = PAIRS[1]
    text = tiny_lm.coder.continuation(prompt, answer)
    logp = tiny_lm.model(torch.tensor([text.ids])).logits[0].double().log_softmax(-1)
    expected = [float(logp[at, text.ids[at + 1]]) for at in text.positions]
    (score,) = score_objects(tiny_lm, [(prompt, answer)])
    assert len(expected) > 1
    assert score.logp == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    assert score.choices == tuple(int(logp[at].argmax()) for at in text.positions)
    first = logp[text.positions[0]]
    assert score.rank == 1 + int((first > first[text.object_ids[0]]).sum())


@torch.no_grad()
def test_text_perplexity_reads_the_first_token_only(tiny_lm):
    texts = ["The old bridge over the river.", "Mary Walker was born in London, and lived there."]
    expected = []
    for text in texts:
        ids = torch.tensor([tiny_lm.tokenizer(text)["input_ids"]])
        expected.append(float(tiny_lm.model(ids, labels=ids).loss.double().exp()))
    assert text_perplexities(tiny_lm, texts) == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_losses_are_the_same_whether_logits_are_made_at_once_or_a_few_at_a_time(tiny_lm, monkeypatch):
    batch = tiny_lm.batch([tiny_lm.tokenizer("The old bridge over the river.")["input_ids"]])
    hidden, labels = tiny_lm.hidden(batch)[0, :-1], batch.ids[0, 1:]
    expected = -tiny_lm.logits(hidden).log_softmax(-1)[range(len(labels)), labels]
    torch.testing.assert_close(tiny_lm.losses(hidden, labels), expected, rtol=1e-6, atol=1e-6)
    rows = []
    whole = tiny_lm.logits
    monkeypatch.setattr(tiny_lm, "logits", lambda states: rows.append(len(states)) or whole(states))
    monkeypatch.setitem(memory.BOUNDS, "cpu", replace(memory.BOUNDS["cpu"], losses=1))
    torch.testing.assert_close(tiny_lm.losses(hidden, labels), expected, rtol=1e-6, atol=1e-6)
    assert rows == [1] * len(labels)


def test_next_tokens_agree_with_generation(tiny_lm):
    prompt = "Mary Walker was born in"
    best = next_tokens(tiny_lm, prompt)
    chances = [t.probability for t in best]
    assert len(best) == 10
    assert chances == sorted(chances, reverse=True)
    assert 0 < sum(chances) <= 1 + 1e-6
    assert generate(tiny_lm, prompt, tokens=1) == best[0].token or generate(tiny_lm, prompt, tokens=1) == ""


def test_generation_stops_at_the_end_of_the_context(tiny_lm):
    long = "river " * (tiny_lm.context + 10)
    words = long.split()
    while len(tiny_lm.coder.encode(" ".join(words))) > tiny_lm.context:
        words.pop()
    assert generate(tiny_lm, " ".join(words)) == ""


@pytest.mark.parametrize("lengths", [[], [5], [3, 90, 4, 3, 88, 5], [7] * 300, list(range(1, 200))])
def test_runs_hold_every_row_once_and_little_padding(lengths):
    found = runs(lengths, most=1000)
    assert sorted(n for run in found for n in run) == list(range(len(lengths)))
    for run in found:
        own = [lengths[n] for n in run]
        assert len(own) * max(own) <= max(1000, max(own))
        assert len(own) * max(own) - sum(own) <= FORWARD_COST


def test_batches_of_similar_length_give_each_row_its_own_numbers(tiny_lm):
    torch.manual_seed(1)
    rows = [torch.randint(1, 200, (length,)).tolist() for length in (3, 70, 5, 60, 4, 80, 2)]
    seen = {}
    for numbers, batch in tiny_lm.batches(rows):
        for number, row, length in zip(numbers, batch.ids, batch.lengths, strict=True):
            seen[number] = row[:length].tolist()
    assert [seen[n] for n in range(len(rows))] == rows


def test_forwards_are_halved_until_they_fit(tiny_lm, monkeypatch):
    """A device that takes 700 tokens at once: the work is done again, smaller, and gives the same."""
    rows = [[5, 6, 7, 8, 9]] * 300
    whole = [batch.ids for _, batch in tiny_lm.batches(rows)]
    forward, sizes = tiny_lm.hidden, []

    def small(batch, cache=None):
        sizes.append(batch.ids.numel())
        if batch.ids.numel() > 700:
            raise torch.OutOfMemoryError("no room")
        return forward(batch, cache)

    monkeypatch.setattr(tiny_lm, "hidden", small)

    def work():
        return torch.cat([tiny_lm.hidden(batch) for _, batch in tiny_lm.batches(rows)])

    try:
        found = tiny_lm.fitting(work)
        assert found.shape[0] == len(rows)
        assert tiny_lm.divisor == 16
        assert max(sizes) == whole[0].numel() == 1500
        torch.testing.assert_close(found, forward(tiny_lm.batch(rows)), atol=1e-5, rtol=1e-5)
    finally:
        tiny_lm.divisor = 1


def test_rows_padded_on_the_left_keep_their_padding_when_forwards_are_halved(tiny_lm, monkeypatch):
    """There positions count the padding: another width would give other numbers."""
    rows = [[5] * length for length in (2, 9, 4, 7, 3)] * 20
    ((numbers, whole),) = tiny_lm.batches(rows, left=True)
    assert numbers == list(range(len(rows)))
    monkeypatch.setattr(tiny_lm, "divisor", 64)
    parts = list(tiny_lm.batches(rows, left=True))
    assert len(parts) > 1
    assert [n for some, _ in parts for n in some] == numbers
    for name in ("ids", "mask", "lengths"):
        assert torch.equal(torch.cat([getattr(batch, name) for _, batch in parts]), getattr(whole, name))


def test_a_model_that_does_not_fit_is_said_at_loading(monkeypatch):
    def no_room(*_arguments, **_options):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", no_room)
    with pytest.raises(OutOfMemory, match="pocket-gpt2 in float32 does not fit into the memory of cpu; choose"):
        LanguageModel.load("pocket-gpt2", device="cpu")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("can't allocate memory")])
def test_when_nothing_is_left_to_halve_it_is_said(tiny_lm, error):
    def work():
        raise error

    try:
        with pytest.raises(OutOfMemory, match="even with 128 tokens at a time"):
            tiny_lm.fitting(work)
    finally:
        tiny_lm.divisor = 1
    with pytest.raises(RuntimeError, match="another thing"):
        tiny_lm.fitting(lambda: (_ for _ in ()).throw(RuntimeError("another thing")))
    assert tiny_lm.divisor == 1
