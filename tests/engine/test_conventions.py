"""Each switch of the conventions does what its help says, and nothing where there is nothing to differ about."""

from dataclasses import fields, replace

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from editing_core.conventions import CLEAN, CONVENTIONS, FAITHFUL, Conventions
from editing_core.data.datasets import load_dataset
from editing_core.editors.assist import Assist
from editing_core.editors.base import Editor, EditOutcome, TargetLog
from editing_core.editors.iterative import Iterative
from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.rows import Objective, log_perplexity
from editing_core.editors.stopping import StopSettings
from editing_core.evaluation.evaluator import Evaluator
from editing_core.evaluation.metrics import summarize
from editing_core.evaluation.scoring import free_choices, score_objects, text_perplexities
from editing_core.evaluation.unedited import Unedited
from editing_core.models.delta import WeightDelta
from editing_core.models.tokens import Coder
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import run_edit
from editing_core.types import EditRequest, Probe
from tests.conftest import FAMILIES, pocket_tokenizer

ROTARY = tuple(family for family in FAMILIES if family not in ("gpt2", "opt"))
UNEVEN = [
    ("Mary", "London"),
    ("The old bridge over the river was built long ago by", "the French army"),
    ("It is", "a"),
    ("Everybody knows that Mary Walker went to the city of", "New York City"),
]


def test_clean_is_the_first_choice_of_every_switch_and_faithful_the_second():
    for f in fields(Conventions):
        first, second = f.metadata["choices"][:2]
        # The paper's code counts tokens given those before, as we do, and knows no chat templates.
        published = first if f.name in ("accuracy", "chat") else second
        assert (getattr(CLEAN, f.name), getattr(FAITHFUL, f.name)) == (first, published)
    assert CONVENTIONS == {"clean": CLEAN, "faithful": FAITHFUL}


def logps(lm, pairs, groups=None):
    return torch.tensor([score.logp for score in score_objects(lm, pairs, groups=groups)])


def lengths(pairs):
    return torch.tensor([len(Coder(pocket_tokenizer()).continuation(*pair).inputs) for pair in pairs])


@torch.no_grad()
def test_left_padding_is_what_the_library_does_without_position_ids(tiny_lm):
    texts = [tiny_lm.coder.continuation(*pair) for pair in UNEVEN]
    width = max(len(t.inputs) for t in texts)
    ids = torch.tensor([[0] * (width - len(t.inputs)) + list(t.inputs) for t in texts])
    mask = torch.tensor([[0] * (width - len(t.inputs)) + [1] * len(t.inputs) for t in texts])
    logits = tiny_lm.model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
    expected = []
    for row, text in zip(logits, texts, strict=True):
        last = row[-len(text.object_ids) :]
        expected.append(float(last.gather(1, torch.tensor(text.object_ids)[:, None]).mean()))
    got = logps(tiny_lm, UNEVEN, ["same"] * len(UNEVEN))
    torch.testing.assert_close(got, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_left_padding_shifts_learned_positions_of_shorter_rows(tiny_models):
    lm = tiny_models("gpt2")
    right, left = logps(lm, UNEVEN), logps(lm, UNEVEN, ["same"] * len(UNEVEN))
    padded = lengths(UNEVEN) < lengths(UNEVEN).max()
    assert padded.any()
    assert ((left - right).abs()[padded] > 0.01).all()
    torch.testing.assert_close(left[~padded], right[~padded], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ROTARY)
def test_left_padding_changes_nothing_for_rotary_positions(family, tiny_models):
    lm = tiny_models(family)
    # Angles of other positions are rounded differently.
    torch.testing.assert_close(logps(lm, UNEVEN, ["same"] * len(UNEVEN)), logps(lm, UNEVEN), atol=1e-4, rtol=1e-4)


def test_left_padding_is_right_padding_where_rows_have_one_length(tiny_lm):
    even = [(f"Mary Walker was born in {place}", "Paris") for place in ("London and", "Berlin and", "Paris and")]
    even = [pair for pair in even if lengths([pair]) == lengths(even[:1])]
    assert len(even) > 1
    left = logps(tiny_lm, [*even, *UNEVEN], ["even"] * len(even) + ["other"] * len(UNEVEN))
    torch.testing.assert_close(left[: len(even)], logps(tiny_lm, even), atol=1e-5, rtol=1e-5)
    alone = logps(tiny_lm, UNEVEN, list(range(len(UNEVEN))))
    torch.testing.assert_close(alone, logps(tiny_lm, UNEVEN), atol=1e-5, rtol=1e-5)


def test_scoring_pads_one_kind_of_one_record_and_one_object_together(tiny_models, requests_):
    lm = tiny_models("gpt2")
    left = Evaluator((), Conventions(padding="left"))
    table, right = left.score(lm, requests_), Evaluator(()).score(lm, requests_)
    for (_, kind), mine in table.groupby(["case_id", "kind"], sort=False):
        for which, answers in (("new", mine["target_new"]), ("true", mine["target_true"])):
            pairs = list(zip(mine["prompt"], answers, strict=True))
            wanted = logps(lm, pairs, ["one"] * len(pairs))
            torch.testing.assert_close(torch.tensor(mine[f"logp_{which}"].tolist()), wanted, atol=1e-5, rtol=1e-5)
        same = mine["logp_new"].to_numpy() == pytest.approx(right.loc[mine.index, "logp_new"].to_numpy(), abs=1e-4)
        assert same == (len(mine) == 1), f"{kind}: padded, but nothing is shifted, or the other way round"
    # One kind has rows of two lengths, so a record's numbers would tell if another one stood in its batch.
    first = left.score(lm, requests_[:1])
    pd.testing.assert_frame_equal(table[: len(first)], first, atol=1e-5, rtol=1e-5, check_dtype=False)


WORDS = ["London", "the United States", "New York City", "1999", "a"]


@pytest.mark.parametrize("prompt", ["Mary Walker was born in", "The capital of France is", "Find it: the"])
@pytest.mark.parametrize("answer", WORDS)
def test_objects_alone_and_joined_agree_where_spaces_belong_to_tokens(prompt, answer):
    joined, alone = (Coder(pocket_tokenizer()).continuation(prompt, answer, objects) for objects in ("joined", "alone"))
    assert alone.inputs == joined.inputs
    assert alone.object_ids == joined.object_ids
    assert alone.positions == joined.positions


def test_scores_of_objects_alone_and_joined_agree_there_too(tiny_models):
    lm = tiny_models("gpt2")
    assert score_objects(lm, UNEVEN, "alone") == score_objects(lm, UNEVEN, "joined")


PIECES = ["▁Mary", "▁was", "▁born", "▁in", "▁London", "▁New", "▁York"]


def sentencepiece(stray=True, bos=True):
    """Words with a meta-space, and a dummy prefix in front of any text, as the older SentencePiece models have it."""
    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), *((piece, -3.0) for piece in PIECES)]
    tokenizer = Tokenizer(models.Unigram([*vocabulary, *([("▁", -5.0)] if stray else [])], unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


def told(tokenizer, text):
    """What is read, and per label the position it stands at."""
    names = tokenizer.convert_ids_to_tokens
    return names(list(text.inputs)), dict(zip(text.positions, names(list(text.object_ids)), strict=True))


@pytest.mark.parametrize("bos", [True, False])
def test_an_object_alone_brings_a_stray_space_one_position_too_early(bos):
    tokenizer, n = sentencepiece(bos=bos), int(bos)
    prompt = ["<s>"][:n] + PIECES[:4]
    for answer, pieces in (("London", ["▁London"]), ("New York", ["▁New", "▁York"])):
        joined, alone = (Coder(tokenizer).continuation("Mary was born in", answer, o) for o in ("joined", "alone"))
        first = 3 + n  # the prompt's last token, which is to predict the object
        assert told(tokenizer, joined) == (prompt + pieces[:-1], {first + i: p for i, p in enumerate(pieces)})
        assert told(tokenizer, alone) == (
            prompt + pieces[:-1],
            {first - 1 + i: p for i, p in enumerate(["▁", *pieces])},
        )


def test_an_unknown_first_token_of_an_object_alone_is_dropped():
    tokenizer = sentencepiece(stray=False)
    joined, alone = (Coder(tokenizer).continuation("Mary was born in", "London", o) for o in ("joined", "alone"))
    assert told(tokenizer, alone) == told(tokenizer, joined)


def test_no_label_of_an_object_alone_stands_before_the_text():
    text = Coder(sentencepiece(bos=False)).continuation("Mary", "London", "alone")
    assert min(text.positions) >= 0


def test_the_objective_takes_its_objects_as_told(tiny_models, monkeypatch):
    """On tokenizers where it makes a difference, rows of the optimisation differ as the scores do."""
    lm = tiny_models("llama")
    monkeypatch.setattr(lm, "tokenizer", sentencepiece())
    request = EditRequest("Mary", "{} was born in", "London")
    (joined,), (alone,) = (Objective(objects=o).rows(lm, request, 0) for o in ("joined", "alone"))
    assert (joined.positions, alone.positions) == ((4,), (3, 4))
    assert (joined.subject, alone.subject) == (1, 1)
    scores = [score_objects(lm, [(request.full_prompt, "London")], o)[0].logp for o in ("joined", "alone")]
    for objects, logp in zip(("joined", "alone"), scores, strict=True):
        perplexity, _ = log_perplexity(lm, [request], Objective(objects=objects))
        assert float(perplexity) == pytest.approx(-logp, abs=1e-5)
    assert scores[0] != pytest.approx(scores[1], abs=0.01)


def test_perplexity_terms(tiny_lm):
    """exp(sum / (T - 1)) against exp(sum / T) of the same sum over T - 1 predictions."""
    texts = ["The old bridge over the river.", "Mary Walker was born in London, and lived there."]
    clean, all_terms = (text_perplexities(tiny_lm, texts, terms) for terms in ("T-1", "T"))
    for text, a, b in zip(texts, clean, all_terms, strict=True):
        count = len(tiny_lm.tokenizer(text)["input_ids"])
        assert b == pytest.approx(a ** ((count - 1) / count), rel=1e-9)
        assert b < 0.9 * a
    for conventions, values in ((CLEAN, clean), (Conventions(perplexity_terms="T"), all_terms)):
        assert Evaluator(texts, conventions).collapse(tiny_lm) == pytest.approx(sum(values) / 2, rel=1e-12)


OWN = Evaluator((), Conventions(reference="pre_edit"))


@pytest.fixture(scope="module")
def known():
    """A bundled record, whose neighbors the model knows."""
    return load_dataset("pocket-facts")[3]


def test_answers_to_keep_are_those_of_the_data_or_of_the_model_before_the_edit(pocket, known):
    answers = [n.answer for n in known.neighbors]
    other = replace(
        known,
        neighbors=tuple(replace(n, answer="elephant") for n in known.neighbors),
        edit_neighbors=(replace(known.neighbors[0], answer="elephant"),),
        locality=(replace(known.neighbors[1], answer="elephant"),),
        case_id="other",
    )
    assert Evaluator(()).prepared(pocket, [known, other]) == (known, other)
    first, second = OWN.prepared(pocket, [known, other])
    assert first == known
    said = [n.answer for n in second.neighbors]
    pieces = len(pocket.coder.continuation("It is the", "elephant").object_ids)
    for answer, own in zip(answers, said, strict=True):
        assert own.split()[0] == answer if pieces > 1 else own == answer
    assert replace(second, neighbors=other.neighbors) == other, "more than the neighbors' answers was changed"
    table = OWN.score(pocket, [other])
    assert said == table["answer"][table["kind"] == "neighbor"].tolist()


def test_an_empty_answer_of_the_model_leaves_that_of_the_data(pocket, known, monkeypatch):
    table = pd.DataFrame([{"case_id": known.case_id, "kind": "neighbor", "number": i, "answer": ""} for i in range(10)])
    table.loc[1, "answer"] = "harp"
    monkeypatch.setattr(Evaluator, "score", lambda *_: table)
    (found,) = OWN.prepared(pocket, [known])
    assert [n.answer for n in found.neighbors] == [
        "harp" if i == 1 else n.answer for i, n in enumerate(known.neighbors)
    ]


@pytest.mark.parametrize("said", ["Paris\nFrance", "<|endoftext|>"])
def test_an_answer_that_is_no_text_leaves_that_of_the_data(pocket, known, monkeypatch, said):
    table = pd.DataFrame(
        [{"case_id": known.case_id, "kind": "neighbor", "number": i, "answer": said} for i in range(10)]
    )
    monkeypatch.setattr(Evaluator, "score", lambda *_: table)
    assert replace(OWN, unedited=Unedited()).prepared(pocket, [known]) == (known,)


LOG_EDIT, LOG_ALL, FACTOR = (torch.tensor(v, dtype=torch.float64) for v in ([2.0, 4.0], [1.0, 3.0], [1.0, 0.1]))


class Logged(Editor):
    """Changes nothing, and tells made-up numbers."""

    objective = Objective(Contexts.grouped(("The weather was fine. {}",)), Assist(neighbors="na"))

    def edit(self, _lm, _requests, _watch):
        zero = torch.zeros(2)
        log = TargetLog(zero, LOG_EDIT, LOG_ALL, FACTOR, zero.long(), zero, zero.bool(), zero.bool())
        return EditOutcome(WeightDelta(), log)


@pytest.fixture
def aided(requests_):
    peter = Probe("Peter Smith was born in", "the United States", "Peter Smith")
    return replace(requests_[0], edit_neighbors=(peter,)), requests_[1]


@pytest.mark.parametrize(
    ("changes", "optimised", "every"),
    [
        ({}, LOG_EDIT, False),
        ({"edit_perplexity": "all"}, LOG_ALL, True),
        ({"factor": "inside"}, LOG_EDIT * FACTOR, False),
        ({"edit_perplexity": "all", "factor": "inside"}, LOG_ALL * FACTOR, True),
    ],
)
def test_edit_target_perplexity(changes, optimised, every, tiny_models, aided):
    lm = tiny_models("gpt2")
    iterative = Iterative(Logged(), StopSettings(iterations=1, stop="none"), Conventions(**changes))
    (done,) = iterative.edit(lm, aided).rounds
    rows, all_rows = log_perplexity(lm, aided, Logged.objective)
    assert torch.equal(done.log_p_optimised, optimised)
    assert torch.equal(done.log_p_spread, all_rows if every else rows)
    assert rows[0] != pytest.approx(float(all_rows[0]), abs=0.01)
    assert float(rows[1]) == pytest.approx(float(all_rows[1]), abs=1e-6)  # without edit neighbors they are the same
    told = done.row()
    assert told["ppl_optimised"] == pytest.approx(float(optimised.exp().mean()), rel=1e-12)
    assert told["delta_ppl"] == pytest.approx(told["ppl_spread"] - told["ppl_optimised"], rel=1e-12)
    assert told["ppl_spread_median"] == pytest.approx(float(done.log_p_spread.min().exp()), rel=1e-12)


def test_the_unedited_row_follows_the_convention(pocket, known):
    settings = editor_row("r-rome").preset("pocket-gpt2").settings.changed({"steps": 2})
    for which in ("edit", "all"):
        stop, assist = StopSettings(iterations=1, stop="none"), Assist(neighbors="na")
        plan = EditPlan("r-rome", settings, stop, 0, assist, Conventions(edit_perplexity=which))
        run = run_edit(pocket, [known], plan, evaluator=Evaluator(("A text.",)))
        objective = Objective(Contexts.flat(tuple(t for t in run.contexts if t != "{}")), assist)
        edit, every = log_perplexity(pocket, run.requests, objective)
        wanted = float((every if which == "all" else edit).exp())
        assert run.iterations["ppl_spread"][0] == pytest.approx(wanted, rel=1e-4), which


def test_an_alias_counts_as_right(pocket, known):
    """The answer stays the one whose probability is told."""
    neighbor = known.neighbors[0]
    asked = replace(known, neighbors=(replace(neighbor, answer="Xanadu"), neighbor))
    plain = Evaluator().score(pocket, [asked]).query("kind == 'neighbor'")
    told = replace(asked, neighbors=(replace(asked.neighbors[0], aliases=("Nowhere", neighbor.answer)), neighbor))
    with_alias = Evaluator().score(pocket, [told]).query("kind == 'neighbor'")
    assert plain["hit_true"].tolist() == [0.0, 1.0]
    assert with_alias["hit_true"].tolist() == [1.0, 1.0]
    assert with_alias["logp_true"].tolist() == plain["logp_true"].tolist()


def test_what_is_said_freely_is_the_greedy_continuation(tiny_lm):
    """Against one forward per token over the whole text; up to the first wrong choice nothing is generated."""
    pairs = [("The home town of Mary is", "New York City, in the state of New York"), ("It lies in", "Rome")]
    pairs += [("By law", tiny_lm.tokenizer.decode(_greedy(tiny_lm, "By law", 5)).strip())]
    scores = score_objects(tiny_lm, pairs)
    found = free_choices(tiny_lm, pairs, scores)
    for (prompt, _), score, said in zip(pairs, scores, found, strict=True):
        assert list(said) == _greedy(tiny_lm, prompt, len(score.labels))
        right = [a == b for a, b in zip(score.labels, score.choices, strict=True)]
        first = right.index(False) if False in right else len(right)
        assert said[: first + 1] == score.choices[: first + 1]


def _greedy(lm, prompt, count):
    ids = list(lm.coder.encode(prompt))
    for _ in range(count):
        batch = lm.batch([ids])
        ids.append(int(lm.logits_at(batch, torch.tensor([0]), batch.lengths - 1).argmax()))
    return ids[-count:]


def test_greedy_match_is_a_convention_of_whole_runs(pocket, known):
    evaluator = Evaluator((), Conventions(accuracy="greedy_match"))
    table = evaluator.score(pocket, [known])
    assert "generated" not in Evaluator(()).score(pocket, [known])
    assert [len(said) for said in table["generated"]] == [len(labels) for labels in table["labels"]]
    whole = [said == labels for said, labels in zip(table["generated"], table["labels"], strict=True)]
    forced = [choices == labels for choices, labels in zip(table["choices"], table["labels"], strict=True)]
    assert whole == forced, "whole objects are right freely when they are right token by token"
    row = summarize(table, table, 0, evaluator.conventions)
    assert row["efficacy_accuracy"] is not None


def test_unrelated_questions_are_asked_token_by_token(pocket, known):
    question = Probe("nq question: who wrote it?", "New York City", family="nq")
    request = replace(known, neighbors=(question, known.neighbors[0]))
    by_token = Evaluator((), Conventions(unrelated="per_token"))
    (found,) = by_token.prepared(pocket, [request])
    ids = pocket.tokenizer("New York City", add_special_tokens=False)["input_ids"]
    *parts, last = found.neighbors
    assert last == known.neighbors[0]
    assert [p.answer for p in parts] == [pocket.tokenizer.decode([i]).strip() for i in ids]
    assert [p.prompt for p in parts] == [question.prompt + pocket.tokenizer.decode(ids[:n]) for n in range(len(ids))]
    assert Evaluator(()).prepared(pocket, [request]) == (request,)
