"""Texts for statistics: what they are known by, and that they are read lazily and without surprises."""

import json

import datasets
import huggingface_hub
import pytest

from editing_core.errors import BadRequest
from editing_core.statistics.corpus import SAMPLE, Corpus, Remembered, TextFile
from editing_core.statistics.hub_text import HubText
from editing_core.statistics.text_sources import read_description, restored, source_of


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("one line\n\n  another line \nthe third\n", encoding="utf-8")
    return file


def test_a_file_is_what_it_would_be_in_memory(path):
    file, memory = TextFile.of(path), Corpus("texts", ("one line", "another line", "the third"))
    assert tuple(file.read()) == memory.documents
    assert (file.name, file.digest, file.count) == (memory.name, memory.digest, memory.count)
    assert Corpus.of_file(path) == memory


def test_the_first_documents_are_another_text(path):
    file, memory = TextFile.of(path, 2), Corpus.of_file(path).first(2)
    assert tuple(file.read()) == memory.documents == ("one line", "another line")
    assert file.digest == memory.digest != TextFile.of(path).digest
    assert file.documents_in_key == 2
    assert TextFile.of(path).first(2) == file
    assert TextFile.of(path, 99).digest == TextFile.of(path).digest


def test_a_byte_order_mark_is_no_text(path):
    path.write_text("one line\nanother", encoding="utf-8-sig")
    assert tuple(TextFile.of(path).read()) == ("one line", "another")


def test_files_that_are_refused(path, tmp_path):
    path.write_text("\n \n")
    with pytest.raises(BadRequest, match=r"texts\.txt holds no text"):
        TextFile.of(path)
    path.write_bytes(b"fine\n\xff\xfe\x00")
    with pytest.raises(BadRequest, match=r"texts\.txt is not a readable UTF-8 text file"):
        Corpus.of_file(path)
    with pytest.raises(BadRequest, match=r"nowhere\.txt is not a readable"):
        TextFile.of(tmp_path / "nowhere.txt")


def test_a_sample_comes_evenly_from_all_over_a_file(tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("\n".join(f"{'x' * (n // 10)} {n}" for n in range(5000)))  # sorted by length
    whole, part = ([int(t.split()[-1]) for t in TextFile.of(path, n).sample()] for n in (None, 1000))
    assert len(whole) == len(set(whole)) == SAMPLE
    assert 2300 < sum(whole) / len(whole) < 2700
    assert 430 < sum(part) / len(part) < 570
    assert TextFile.of(path, 50).sample() == list(TextFile.of(path, 50).read())
    assert restored(TextFile.of(path).described()).sample() == TextFile.of(path).sample()


def test_a_description_brings_a_text_back(path, tmp_path):
    kept = tmp_path / "kept.json"
    for source in (TextFile.of(path), TextFile.of(path, 2), HubText("a/b", "c", "train", "text", "f00", 7)):
        kept.write_text(json.dumps(source.described()))
        assert read_description(kept) == source
    kept.write_text(json.dumps(Corpus.of_file(path).described()))
    assert read_description(kept) == Remembered("texts", Corpus.of_file(path).digest, 3)
    for nonsense in ("", "[]", "{}", '{"kind": "file"}', '{"kind": "hub", "a": 1}'):
        kept.write_text(nonsense)
        assert read_description(kept) is None


@pytest.fixture
def hub(monkeypatch):
    """A hub with one data set of ten rows, two of them empty; gives what was read of it."""
    asked = []

    class Api:
        def dataset_info(self, repository, revision, timeout):
            assert (repository, revision, timeout > 0) == ("some/texts", "main", True)
            return huggingface_hub.hf_api.DatasetInfo(id=repository, sha="c0ffee", private=False, downloads=0, likes=0)

    def rows():
        for n in range(10):
            asked.append(n)
            yield {"text": "" if n % 5 == 0 else f"text {n}", "title": "t", "id": n}

    def load(repository, config, split, revision, streaming):
        assert (repository, config, split, revision) == ("some/texts", "en", "train", "c0ffee")
        assert streaming
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_a_hub_text_is_streamed(hub):
    source = source_of("hub:some/texts:en", most=3)
    del hub[:]
    texts = source.read()
    assert next(texts) == "text 1"
    assert len(hub) < 5
    assert list(texts) == ["text 2", "text 3"]
    assert (source.name, source.documents_in_key, source.count) == ("some/texts en", 3, 3)
    whole = source_of("hub:some/texts:en")
    assert len(list(whole.read())) == 8
    assert (whole.documents_in_key, whole.count) == (0, None)
    assert whole.digest == source.digest  # the number of documents stands in the key beside it
    assert whole.first(3) == source


@pytest.mark.usefixtures("hub")
def test_a_hub_text_needs_the_column():
    with pytest.raises(BadRequest, match="has no text in a column 'id'; name one with --column: text, title"):
        source_of("hub:some/texts:en", column="id")


def test_a_hub_text_offline_is_refused():
    with pytest.raises(BadRequest, match=r"The data set some/texts could not be read from the hub \(\w+\); check"):
        source_of("hub:some/texts")
