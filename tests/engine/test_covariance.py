"""Statistics of keys: what they are, and that the store never gives the wrong ones."""

import hashlib
import json
import os
from dataclasses import asdict, replace

import pytest
import torch

from editing_core.editors.materials import Materials
from editing_core.editors.memit import MemitSettings
from editing_core.editors.rome import RomeSettings
from editing_core.errors import BadRequest, BadSetting, Cancelled, StatisticsMissing
from editing_core.models.hooks import watching
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import build_editor
from editing_core.statistics.corpus import Corpus, TextFile
from editing_core.statistics.covariance import Covariance, CovarianceStore, _symmetric
from editing_core.statistics.parts import write_tensors
from editing_core.statistics.stored import Stored
from tests.conftest import BLOCKS, DISTINCT, each_of, left_alone

tiny_lm = each_of(DISTINCT)


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


def test_cancelling_keeps_only_what_it_goes_on_from(tiny_lm, corpus, tmp_path):
    empty = CovarianceStore(tmp_path)

    def stop(_step):
        raise Cancelled

    with left_alone(tiny_lm), pytest.raises(Cancelled):
        empty.collect(tiny_lm, [0], corpus, stop)
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    assert not empty.has(tiny_lm, [0], corpus)


def test_a_remembered_corpus_belongs_to_its_model(tiny_models, corpus, tmp_path):
    lm, other = tiny_models("gpt2"), tiny_models("llama")
    empty = CovarianceStore(tmp_path)
    assert empty.corpus_of(lm) is None
    empty.collect(lm, [0], corpus)
    empty.remember(lm, corpus)
    assert CovarianceStore(tmp_path).has(lm, [0], empty.corpus_of(lm))
    assert empty.corpus_of(lm) == empty.corpus_of(lm)
    assert empty.corpus_of(other) is None
    with pytest.raises(BadRequest, match="Of the text 'small' only its statistics were kept; give it again"):
        empty.collect(lm, [1], empty.corpus_of(lm))


def test_a_text_that_an_earlier_version_copied_is_found(tiny_models, tmp_path):
    lm, empty = tiny_models("gpt2"), CovarianceStore(tmp_path)
    empty._description(lm).with_suffix(".txt").write_text("one\ntwo\n")
    assert list(empty.corpus_of(lm).read()) == ["one", "two"]


def test_statistics_of_a_file_are_found_when_it_is_gone(tiny_models, tmp_path):
    lm, kept = tiny_models("gpt2"), CovarianceStore(tmp_path / "kept")
    path = tmp_path / "mine.txt"
    path.write_text("one text\nanother text\n")
    kept.collect(lm, [0], TextFile.of(path))
    kept.remember(lm, TextFile.of(path))
    path.unlink()
    again = CovarianceStore(tmp_path / "kept")
    assert again.get(lm, 0, again.corpus_of(lm)).tokens > 0
    with pytest.raises(BadRequest, match=r"mine\.txt is not a readable UTF-8 text file"):
        again.collect(lm, [1], again.corpus_of(lm))
    path.write_text("one text\nanother one\n")
    with pytest.raises(BadRequest, match=r"mine\.txt is not the text it was; give it again"):
        again.collect(lm, [1], again.corpus_of(lm))


def test_the_keys_of_bundled_statistics_stay(pocket):
    key = replace(CovarianceStore().key(pocket, 1, Corpus.bundled("pocket-gpt2")), revision="r")
    assert (key.digest, key.documents, key.cut) == ("55d9df62c00b", 557, 0)
    fields = {name: value for name, value in asdict(key).items() if name != "cut"}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
    assert key.file_name == f"layer-1-{digest}.safetensors"


def test_a_longer_context_is_cut_and_the_key_says_so(tiny_models, corpus, store, monkeypatch):
    lm = tiny_models("llama")
    whole = store.key(lm, 0, corpus)
    monkeypatch.setattr(lm.model.config, "max_position_embeddings", 131072)
    long = store.key(lm, 0, corpus)
    assert (whole.cut, long.cut) == (0, 8192)
    assert whole.file_name != long.file_name


def test_a_damaged_statistic_is_refused(tiny_models, corpus, tmp_path):
    lm, damaged = tiny_models("gpt2"), CovarianceStore(tmp_path)
    (tmp_path / damaged.key(lm, 0, corpus).file_name).write_bytes(b"no tensors")
    with pytest.raises(StatisticsMissing, match="are damaged; delete the file and collect them again"):
        damaged.get(lm, 0, corpus)


def spd(width, tokens=10**6):
    keys = torch.randn(width, 2 * width, generator=torch.Generator().manual_seed(1))
    return Covariance((keys @ keys.T).double() / width, tokens)


def stored(folder, covariance):
    path = folder / "layer-0-a.safetensors"
    write_tensors(path, {"second_moment": covariance.matrix.float()}, {"tokens": str(covariance.tokens)})
    return Stored.of(path)


def test_a_stored_statistic_equals_one_in_memory(tmp_path):
    plain = spd(40)
    file = stored(tmp_path, plain)
    there = Covariance(file, file.tokens, 0.01)
    here = Covariance(plain.matrix.float().double(), plain.tokens).floored(0.01)
    assert (there.width, there.tokens) == (40, 10**6)
    assert torch.equal(there.matrix, here.matrix)
    assert torch.equal(there.cholesky, here.cholesky)
    assert torch.equal(plain.floored(0.1).floored(0.1).matrix, Covariance(plain.floored(0.1).matrix, 1, 0.1).matrix)


def test_factoring_symmetrises_in_tiles():
    matrix = torch.randn(11, 11, dtype=torch.float64)
    assert torch.equal(_symmetric(matrix.clone(), tile=4), (matrix + matrix.T) / 2)


def test_a_factor_is_kept_where_reading_is_faster(tmp_path, monkeypatch):
    file = stored(tmp_path, spd(40))
    plain = Covariance(file, file.tokens, 0.01).cholesky
    assert not list(tmp_path.glob("*.factor"))
    monkeypatch.setattr("editing_core.statistics.stored.FACTOR_FROM", 40)
    assert torch.equal(Covariance(file, file.tokens, 0.01).cholesky, plain)
    assert len(list(tmp_path.glob("*.factor"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(Covariance, "_factor", lambda _self: pytest.fail("was computed"))
        again = Covariance(Stored.of(file.path), file.tokens, 0.01).cholesky
    assert torch.equal(again, plain)
    assert again.stride() == plain.stride()
    assert not torch.equal(Covariance(file, file.tokens, 0.02).cholesky, plain)  # another floor is another factor
    other = stored(tmp_path, Covariance(2 * spd(40).matrix, 10**6))
    os.utime(other.path, ns=(1, 1))
    assert not torch.equal(Covariance(Stored.of(file.path), file.tokens, 0.01).cholesky, plain)
    next(tmp_path.glob("*0.02.factor")).write_bytes(b"damaged")
    assert Covariance(other, 10**6, 0.02).cholesky is not None


def test_no_copy_of_the_matrix_stays_in_memory(tmp_path):
    file = stored(tmp_path, spd(40))
    covariance = Covariance(file, file.tokens, 0.01)
    _ = covariance.cholesky
    held = [value for value in vars(covariance).values() if isinstance(value, torch.Tensor)]
    assert len(held) == 1  # the factor


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (20, "20 tokens for 20 dimensions; not more tokens"),
        (199, "199 tokens for 20 dimensions; C is noisy"),
        (200, ""),
    ],
)
def test_a_small_sample_says_so(tokens, said):
    remark = Covariance(torch.eye(20), tokens).remark
    assert said in remark
    assert remark.startswith("From a small sample: ") == bool(said)


def test_bundled_corpus():
    assert Corpus.bundled("pocket-gpt2").documents
    assert Corpus.bundled("gpt2") is None
