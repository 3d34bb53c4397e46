"""SubjectOffsets: added where a prompt names the subject, and nowhere else."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from editing_core.errors import BadRequest, NotFinite
from editing_core.evaluation.scoring import generate, score_objects
from editing_core.models import edits
from editing_core.models.delta import WeightDelta
from editing_core.models.gates import gated
from editing_core.models.hooks import watching
from editing_core.models.subjects import Finder, Offset, SubjectOffsets, Wish, embedding_name, offsets_on
from editing_core.models.subjects import plain_embeddings as plain_of
from tests.conftest import DISTINCT, THREE, bit_equal, each_of, seldom, snapshot

tiny_lm = each_of(seldom(DISTINCT, THREE))
PROMPT = "The birthplace of Mary Walker is"
NAME = "Mary Walker"


def ids_of(lm, text):
    return tuple(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def offsets(lm, *texts, subject=NAME, seed=0, size=1.0):
    """Random offsets for these ways to write a subject."""
    generator, width = torch.Generator().manual_seed(seed), lm.model.get_input_embeddings().weight.shape[1]
    table = {}
    for ids in (ids_of(lm, text) for text in texts):
        learned = size * torch.randn(len(ids), width, generator=generator)
        taken = torch.rand(len(ids), width, generator=generator)
        table[ids] = Offset(subject, learned, taken * (taken > 0.7))
    return SubjectOffsets(table, {subject: (Wish("{} was born in", "London", "Paris"),)}, {"editor": "swea"})


def embedded(lm, ids, end=None):
    """(tokens, width) embeddings as the model reads a row whose prompt ends there."""
    name = embedding_name(lm)
    with torch.no_grad(), watching(lm.model, [name]) as seen:
        for _, batch in lm.batches([ids], ends=[end or len(ids)]):
            lm.hidden(batch)
    return seen[name][0]


@torch.no_grad()
def logits(lm, text):
    return lm.logits(lm.hidden(lm.batch([lm.coder.encode(text)]))[0])


def test_an_empty_table_is_no_edit(tiny_lm):
    plain, nothing = logits(tiny_lm, PROMPT), SubjectOffsets()
    assert nothing.empty
    assert not nothing.gated
    with nothing.applied(tiny_lm) as lm:
        assert not lm.gated
        assert not lm.edited
        assert torch.equal(logits(lm, PROMPT), plain)
    assert SubjectOffsets.of(nothing.tensors(), nothing.facts()).empty


def test_it_is_on_inside_and_leaves_no_trace(tiny_lm):
    before, plain = snapshot(tiny_lm.model), logits(tiny_lm, PROMPT)
    other = logits(tiny_lm, "The weather was fine")
    edit = offsets(tiny_lm, f" {NAME}")
    with edit.applied(tiny_lm) as lm:
        assert lm.gated
        assert lm.edited
        assert offsets_on(lm.model) == (edit,)
        assert not torch.equal(logits(lm, PROMPT), plain)
        assert torch.equal(logits(lm, "The weather was fine"), other)  # who is not named meets the model itself
    assert torch.equal(logits(tiny_lm, PROMPT), plain)
    assert bit_equal(tiny_lm.model, before)
    assert offsets_on(tiny_lm.model) == ()
    with pytest.raises(ZeroDivisionError), edit.applied(tiny_lm):
        1 / 0  # noqa: B018
    assert not gated(tiny_lm.model)


def test_offsets_stand_at_the_subjects_tokens_alone(tiny_lm):
    edit = offsets(tiny_lm, f" {NAME}")
    (key,) = edit.table
    ids = ids_of(tiny_lm, f"{PROMPT}, and {NAME} lives in")
    places = [n for n in range(len(ids)) if ids[n : n + len(key)] == key]
    assert len(places) == 2  # every match, not the first only
    plain = embedded(tiny_lm, ids)
    with edit.applied(tiny_lm) as lm:
        found = embedded(lm, ids)
    wanted = plain.clone()
    for start in places:
        wanted[start : start + len(key)] += edit.table[key].total
    assert torch.equal(found, wanted)


def test_answers_behind_a_prompt_are_left_alone(tiny_lm):
    """What is scored may name the subject too, and must not be altered."""
    edit = offsets(tiny_lm, f" {NAME}")
    ids = ids_of(tiny_lm, f"The king was {NAME}")
    plain, start = embedded(tiny_lm, ids), len(ids_of(tiny_lm, "The king was"))
    with edit.applied(tiny_lm) as lm:
        assert torch.equal(embedded(lm, ids, end=start), plain)
        assert torch.equal(embedded(lm, ids, end=len(ids) - 1), plain)  # half a name is none
        assert not torch.equal(embedded(lm, ids), plain)
        score = score_objects(lm, [("The king was", NAME)])
    assert score == score_objects(tiny_lm, [("The king was", NAME)])


def test_what_the_model_goes_on_saying_is_left_alone(tiny_lm):
    """Behind a text already read, in which the keys and values are kept."""
    edit = offsets(tiny_lm, f" {NAME}")
    (key,) = edit.table
    name, past = embedding_name(tiny_lm), DynamicCache()
    with edit.applied(tiny_lm) as lm, torch.no_grad(), watching(lm.model, [name]) as seen:
        said = lm.batch([ids_of(lm, "The king was")])
        lm.hidden(said, past)
        more = lm.batch([key])
        lm.hidden(replace(more, mask=torch.cat([said.mask, more.mask], 1)), past)
    assert torch.equal(seen[name][0].float(), plain_of(tiny_lm, key))
    with edit.applied(tiny_lm) as lm:  # the control
        assert not torch.equal(embedded(lm, key), plain_of(tiny_lm, key))


def test_generation_reads_the_prompt_once(pocket):
    edit = offsets(pocket, f" {NAME}", size=0.3)
    plain = generate(pocket, PROMPT, 12)
    with edit.applied(pocket) as lm:
        assert generate(lm, PROMPT, 12) != plain
        assert generate(lm, "The weather was", 12) == generate(pocket, "The weather was", 12)
    assert generate(pocket, PROMPT, 12) == plain


def test_padding_does_not_matter(tiny_lm):
    edit = offsets(tiny_lm, f" {NAME}", NAME)
    rows = [ids_of(tiny_lm, text) for text in (NAME, f"{PROMPT} {PROMPT} the", f"{NAME} was born in")]
    name = embedding_name(tiny_lm)
    for left in (False, True):
        with edit.applied(tiny_lm) as lm, torch.no_grad(), watching(lm.model, [name]) as seen:
            for numbers, batch in lm.batches(rows, left=left, ends=[len(row) for row in rows]):
                lm.hidden(batch)
                for row, number in enumerate(numbers):
                    whole = seen[name][row]
                    ids, shift = rows[number], len(whole) - len(rows[number]) if left else 0
                    here = whole[shift : shift + len(ids)].float() - plain_of(lm, ids)
                    hit = [n for n in range(len(ids)) if here[n].abs().max() > 1e-3]
                    assert hit == [n + i for n, key in Finder.of(edit.table).found(ids) for i in range(len(key))]
                    assert hit


def test_the_longest_match_has_its_place_first():
    finder = Finder.of([(1, 2), (2,), (2, 3, 4), (7, 7)])
    assert finder.found((1, 2, 3, 4)) == [(1, (2, 3, 4))]  # though another begins before it
    assert finder.found((1, 2, 3, 2)) == [(0, (1, 2)), (3, (2,))]
    assert finder.found((7, 7, 7, 7, 7)) == [(0, (7, 7)), (2, (7, 7))]
    assert finder.found((5, 6)) == []
    assert Finder.of([]).found((1,)) == []


def test_nested_and_added_are_the_same(tiny_lm):
    """Also where one subject's name stands inside another's."""
    long, short = offsets(tiny_lm, " New York", subject="New York"), offsets(tiny_lm, " York", subject="York", seed=1)
    ids = ids_of(tiny_lm, "The old city of New York and that of York")
    with short.applied(tiny_lm) as lm:
        alone = embedded(lm, ids)
    with long.applied(tiny_lm) as lm, short.applied(lm) as both:
        nested = embedded(both, ids)
    together = long + short
    assert isinstance(together, SubjectOffsets)
    assert set(together.wishes) == {"New York", "York"}
    with together.applied(tiny_lm) as lm:
        torch.testing.assert_close(embedded(lm, ids), nested, atol=1e-6, rtol=0)
    at = ids.index(ids_of(tiny_lm, " York")[0])
    assert not torch.equal(alone[at], nested[at])


def test_one_subject_twice_is_the_sum(tiny_lm):
    one, two = offsets(tiny_lm, f" {NAME}"), offsets(tiny_lm, f" {NAME}", NAME, seed=3)
    both = one + two
    (key,) = one.table
    assert torch.equal(both.table[key].total, (one.table[key].plus(two.table[key])).total)
    assert set(both.table) == set(two.table)
    assert both.wishes == one.wishes  # the same fact, once
    mixed = both + WeightDelta()
    assert mixed.kind == "subjects"


def test_it_comes_back_from_a_file(tiny_lm, tmp_path):
    edit = offsets(tiny_lm, f" {NAME}", NAME)
    edit.save(tmp_path / "edit.safetensors")
    loaded = edits.load(tmp_path / "edit.safetensors")
    assert isinstance(loaded, SubjectOffsets)
    assert (loaded.wishes, loaded.provenance) == (edit.wishes, edit.provenance)
    assert list(loaded.table) == list(edit.table)
    with edit.applied(tiny_lm) as lm:
        wanted = logits(lm, PROMPT)
    with loaded.applied(tiny_lm) as lm:
        assert torch.equal(logits(lm, PROMPT), wanted)


def good():
    edit = SubjectOffsets({(1, 2): Offset("A", torch.ones(2, 4), torch.zeros(2, 4))}, {"A": (Wish("{}", "b", None),)})
    return edit.tensors(), json.loads(json.dumps(edit.facts()))


BAD_FACTS = {
    "no keys": {"facts": {}},
    "a number for keys": {"keys": 5, "facts": {}},
    "a text for ids": {"keys": [["A", "12"]], "facts": {"A": [["{}", "b", None]]}},
    "a huge id": {"keys": [["A", [1, 10**30]]], "facts": {"A": [["{}", "b", None]]}},
    "a negative id": {"keys": [["A", [1, -2]]], "facts": {"A": [["{}", "b", None]]}},
    "a truth for an id": {"keys": [["A", [1, True]]], "facts": {"A": [["{}", "b", None]]}},
    "too few ids": {"keys": [["A", [1]]], "facts": {"A": [["{}", "b", None]]}},
    "an empty key": {"keys": [["A", [1, 2]], ["A", []]], "facts": {"A": [["{}", "b", None]]}},
    "a key twice": {"keys": [["A", [1]], ["A", [1]]], "facts": {"A": [["{}", "b", None]]}},
    "no subject": {"keys": [[None, [1, 2]]], "facts": {}},
    "facts of another": {"keys": [["A", [1, 2]]], "facts": {"B": [["{}", "b", None]]}},
    "a text for a fact": {"keys": [["A", [1, 2]]], "facts": {"A": ["abc"]}},
    "a number in a fact": {"keys": [["A", [1, 2]]], "facts": {"A": [["{}", 5, None]]}},
    "facts as a list": {"keys": [["A", [1, 2]]], "facts": [1]},
}
BAD_TENSORS = {
    "one missing": lambda t: {"learned": t["learned"]},
    "one more": lambda t: {**t, "x": torch.ones(1)},
    "other shapes": lambda t: {**t, "taken": torch.zeros(2, 5)},
    "no matrix": lambda t: {**t, "taken": torch.zeros(2)},
    "whole numbers": lambda t: {**t, "taken": torch.zeros(2, 4, dtype=torch.long)},
    "too many rows": lambda t: {name: torch.ones(3, 4) for name in t},
    "none": lambda _t: {},
}


@pytest.mark.parametrize("name", BAD_FACTS)
def test_facts_that_are_none_are_refused(name):
    tensors, facts = good()
    assert not SubjectOffsets.of(tensors, facts).empty
    with pytest.raises((KeyError, TypeError, ValueError)):
        SubjectOffsets.of(tensors, BAD_FACTS[name])


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_are_none_are_refused(name):
    tensors, facts = good()
    with pytest.raises((KeyError, TypeError, ValueError)):
        SubjectOffsets.of(BAD_TENSORS[name](tensors), facts)


def test_another_models_offsets_are_refused(tiny_models):
    lm, (tensors, facts) = tiny_models("gpt2"), good()
    narrow = SubjectOffsets.of(tensors, facts)
    with pytest.raises(BadRequest, match="width 4"), narrow.applied(lm):
        pass
    many = SubjectOffsets({(10**6,): Offset("A", torch.ones(1, 32), torch.zeros(1, 32))}, {"A": ()})
    with pytest.raises(BadRequest, match="the model this edit was made for"), many.applied(lm):
        pass
    broken = SubjectOffsets({(1,): Offset("A", torch.full((1, 32), torch.nan), torch.zeros(1, 32))}, {"A": ()})
    with pytest.raises(NotFinite), broken.applied(lm):
        pass
    with pytest.raises(BadRequest, match="one model"):
        narrow + broken
    assert not lm.edited
    assert not gated(lm.model)


def test_findings_name_the_subject_and_the_misses(pocket):
    edit = offsets(pocket, f" {NAME}")
    (key,) = edit.table
    prompts = (PROMPT, f"{NAME} was born in", "The weather was fine")
    found = edit.findings(pocket, prompts)
    assert "1 of 3 prompts" in found.said
    (prompt, subject, tokens, length, share), *rest = found.rows
    assert (prompt, subject) == (PROMPT, NAME)
    start = Finder.of(edit.table).found(pocket.coder.encode(PROMPT))[0][0]
    assert tokens.startswith(f"{start}:")
    assert length == pytest.approx(float(edit.table[key].total.norm() / plain_of(pocket, key).norm()))
    assert share == pytest.approx(float((edit.table[key].taken > 0).float().mean()))
    assert 0 < share < 1
    assert [row[1] for row in rest] == [f"not found: {NAME} in other tokens", "not found"]
    assert all(len(row) == len(found.columns) for row in found.rows)


def test_a_shared_beginning_is_not_computed_once_for_all(pocket):
    """Rows are read whole while it is on: what is scored together is as if scored alone."""
    edit = offsets(pocket, f" {NAME}", size=0.3)
    pairs = [(f"The birthplace of {NAME} is {text}", "London") for text in ("in", "not", "said to be near")]
    with edit.applied(pocket) as lm:
        together = score_objects(lm, pairs)
        alone = [score_objects(lm, [pair])[0] for pair in pairs]
    assert [s.logp for s in together] == pytest.approx([s.logp for s in alone], abs=1e-4)
    assert [s.logp for s in together] != pytest.approx([s.logp for s in score_objects(pocket, pairs)], abs=1e-2)
