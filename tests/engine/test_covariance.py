"""Statistics of keys: what they are, and that the store never gives the wrong ones."""

import pytest
import torch

from editing_core.editors.materials import Materials
from editing_core.editors.memit import MemitSettings
from editing_core.editors.rome import RomeSettings
from editing_core.editors.steps.covariance import Corpus, CovarianceStore
from editing_core.errors import BadRequest, BadSetting, Cancelled, StatisticsMissing
from editing_core.models.hooks import watching
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import build_editor
from tests.conftest import BLOCKS


@torch.no_grad()
def by_hand(lm, layer, corpus):
    """E[k k^T] text by text, in float64."""
    down = lm.architecture.down(layer)
    keys = []
    for document in corpus.documents:
        with watching(lm.model, inputs=[down]) as seen:
            lm.model(torch.tensor([lm.tokenizer(document)["input_ids"][: lm.context]]))
        keys.append(seen[f"{down}.input"][0].double())
    stacked = torch.cat(keys)
    return stacked.T @ stacked / len(stacked), len(stacked)


def test_collected_equals_a_count_by_hand(tiny_lm, corpus, store):
    store.collect(tiny_lm, [0, 2], corpus)
    for layer in (0, 2):
        matrix, tokens = by_hand(tiny_lm, layer, corpus)
        found = store.get(tiny_lm, layer, corpus)
        assert found.tokens == tokens
        assert float((found.matrix - matrix).norm() / matrix.norm()) < 1e-5  # summed in float32 batches
        assert found.matrix.dtype == torch.float64


def test_missing_is_refused(tiny_lm, corpus, tmp_path):
    empty = CovarianceStore(tmp_path)
    assert not empty.has(tiny_lm, [0], corpus)
    message = f"No covariance statistics of {tiny_lm.name}, layer 0, from 'small'; collect them"
    with pytest.raises(StatisticsMissing, match=message):
        empty.get(tiny_lm, 0, corpus)


@pytest.mark.parametrize("editor", ["memit", "pmet", "rome", "emmet", "alphaedit"])
def test_editors_refuse_to_start_without(tiny_lm, editor, corpus, tmp_path):
    row = editor_row(editor)
    settings = row.settings_class(**({"layer": 1} if editor == "rome" else {"layers": (0, 1)}))
    with pytest.raises(StatisticsMissing, match="collect them"):
        row.build(settings, Materials(tiny_lm, CovarianceStore(tmp_path), corpus))
    with pytest.raises(StatisticsMissing, match="No covariance statistics are bundled"):
        row.build(settings, Materials(tiny_lm, CovarianceStore(tmp_path), None))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("memit", MemitSettings(layers=(1, BLOCKS))),
        ("rome", RomeSettings(layer=BLOCKS)),
        ("rome", RomeSettings(layer=BLOCKS, covariance=False)),
    ],
)
def test_editors_refuse_layers_the_model_does_not_have(tiny_lm, store, name, settings):
    with pytest.raises(BadSetting, match=f"Layer {BLOCKS} was asked for, {tiny_lm.name} has layers 0 to {BLOCKS - 1}"):
        build_editor(tiny_lm, (), EditPlan(name, settings), store)


def test_reloaded_equals_fresh(tiny_lm, corpus, tmp_path):
    fresh = CovarianceStore(tmp_path)
    fresh.collect(tiny_lm, [1], corpus)
    again = CovarianceStore(tmp_path)
    assert again.has(tiny_lm, [1], corpus)
    assert torch.equal(again.get(tiny_lm, 1, corpus).matrix, fresh.get(tiny_lm, 1, corpus).matrix)
    assert again.get(tiny_lm, 1, corpus).tokens == fresh.get(tiny_lm, 1, corpus).tokens


def test_what_is_there_is_not_collected_again(tiny_lm, corpus, store):
    store.collect(tiny_lm, [1], corpus)
    steps = []
    store.collect(tiny_lm, [1], corpus, steps.append)
    assert steps == []


def test_the_key_changes_with_everything_that_decides_the_value(tiny_lm, tiny_models, corpus, store):
    other_text = Corpus(corpus.name, (*corpus.documents[:-1], "something else"))
    other_model = tiny_models("gpt2" if tiny_lm.architecture.family != "gpt2" else "qwen3")
    keys = [
        store.key(tiny_lm, 0, corpus),
        store.key(tiny_lm, 1, corpus),
        store.key(tiny_lm, 0, other_text),
        store.key(tiny_lm, 0, Corpus("renamed", corpus.documents)),
        store.key(other_model, 0, corpus),
    ]
    assert len({key.file_name for key in keys}) == len(keys)
    assert store.key(tiny_lm, 0, Corpus(corpus.name, corpus.documents)) == keys[0]


def test_joining_documents_differently_is_another_corpus():
    assert Corpus("c", ("ab", "c")).digest != Corpus("c", ("a", "bc")).digest


def test_floor_is_applied_and_remembered(tiny_lm, corpus, store):
    store.collect(tiny_lm, [1], corpus)
    plain, floored = store.get(tiny_lm, 1, corpus), store.get(tiny_lm, 1, corpus, 0.01)
    difference = floored.matrix - plain.matrix
    torch.testing.assert_close(
        difference, 0.01 * plain.matrix.diagonal().mean() * torch.eye(len(difference), dtype=torch.float64)
    )
    assert store.get(tiny_lm, 1, corpus, 0.01) is floored


def test_cancelling_keeps_nothing(tiny_lm, corpus, tmp_path):
    empty = CovarianceStore(tmp_path)

    def stop(_step):
        raise Cancelled

    with pytest.raises(Cancelled):
        empty.collect(tiny_lm, [0], corpus, stop)
    assert list(tmp_path.iterdir()) == []
    assert not empty.has(tiny_lm, [0], corpus)


def test_corpus_of_a_file(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one line\n\n  another line \n", encoding="utf-8")
    assert Corpus.of_file(path) == Corpus("texts", ("one line", "another line"))
    path.write_text("\n \n")
    with pytest.raises(BadRequest, match=r"texts\.txt holds no text"):
        Corpus.of_file(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadRequest, match=r"texts\.txt is not a readable UTF-8 text file"):
        Corpus.of_file(path)
    with pytest.raises(BadRequest, match=r"nowhere\.txt is not a readable"):
        Corpus.of_file(tmp_path / "nowhere.txt")


def test_a_remembered_corpus_belongs_to_its_model(tiny_models, tmp_path):
    lm, other = tiny_models("gpt2"), tiny_models("llama")
    empty = CovarianceStore(tmp_path)
    assert empty.corpus_of(lm) is None
    empty.remember(lm, Corpus("mine", ("one", "two")))
    assert empty.corpus_of(lm).documents == ("one", "two")
    assert empty.corpus_of(lm) == empty.corpus_of(lm)
    assert empty.corpus_of(other) is None


def test_bundled_corpus():
    assert Corpus.bundled("pocket-gpt2").documents
    assert Corpus.bundled("gpt2") is None
