"""Collecting key statistics: streamed, in forwards of similar length, and to be interrupted at any time."""

from dataclasses import replace

import pytest
import torch

from editing_core.errors import BadRequest, Cancelled, NotFinite
from editing_core.models import memory
from editing_core.models.hooks import watching
from editing_core.statistics import estimate, moments
from editing_core.statistics.corpus import Corpus, TextFile
from editing_core.statistics.covariance import CovarianceStore
from editing_core.statistics.parts import Part
from tests.conftest import bit_equal, cancel_after, snapshot, tiny_model

LAYERS = [0, 2]


@pytest.fixture
def lm(tiny_models):
    return tiny_models("gpt2")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Several blocks, and several forwards in each."""
    monkeypatch.setattr(moments, "BLOCK_DOCUMENTS", 12)
    monkeypatch.setattr(moments, "TILE", 24)
    monkeypatch.setitem(memory.BOUNDS, "cpu", replace(memory.BOUNDS["cpu"], forward=100))


def matrices(store, lm, source, layers=LAYERS):
    return [store.get(lm, layer, source).matrix for layer in layers]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def whole(lm, corpus, tmp_path):
    """Collected at once."""
    store = CovarianceStore(tmp_path / "whole")
    store.collect(lm, LAYERS, corpus)
    return matrices(store, lm, corpus)


@torch.no_grad()
def test_batches_equal_single_documents(tiny_lm, corpus, tmp_path):
    store = CovarianceStore(tmp_path)
    store.collect(tiny_lm, [1], corpus)
    down = tiny_lm.architecture.down(1)
    total = tokens = 0
    for document in corpus.documents:
        with watching(tiny_lm.model, inputs=[down]) as seen:
            tiny_lm.model(torch.tensor([tiny_lm.tokenizer(document)["input_ids"][: tiny_lm.context]]))
        keys = seen[f"{down}.input"][0].double()
        total, tokens = total + keys.T @ keys, tokens + len(keys)
    found = store.get(tiny_lm, 1, corpus)
    assert found.tokens == tokens
    assert float((found.matrix - total / tokens).norm() / (total / tokens).norm()) < 1e-6
    assert torch.equal(found.matrix, found.matrix.T)


def test_a_streamed_file_equals_the_text_in_memory(lm, corpus, tmp_path):
    path = tmp_path / "small.txt"
    path.write_text("\n\n".join(corpus.documents) + "\n", encoding="utf-8")
    file, memory = TextFile.of(path), Corpus("small", tuple(text.strip() for text in corpus.documents))
    streamed, plain = CovarianceStore(tmp_path / "streamed"), CovarianceStore(tmp_path / "plain")
    assert streamed.key(lm, 0, file) == plain.key(lm, 0, memory)
    streamed.collect(lm, LAYERS, file)
    plain.collect(lm, LAYERS, memory)
    assert equal(matrices(streamed, lm, file), matrices(plain, lm, memory))


@pytest.mark.parametrize("stops", [(1,), (3, 1, 7), (2, 2, 2, 2)])
def test_resumed_equals_uninterrupted(lm, corpus, whole, tmp_path, stops):
    before = snapshot(lm.model)
    for stop in stops:
        with pytest.raises(Cancelled):
            CovarianceStore(tmp_path).collect(lm, LAYERS, corpus, cancel_after(stop))
        assert bit_equal(lm.model, before)
        assert not CovarianceStore(tmp_path).has(lm, LAYERS, corpus)
    last = CovarianceStore(tmp_path)
    steps = []
    last.collect(lm, LAYERS, corpus, steps.append)
    assert equal(matrices(last, lm, corpus), whole)
    assert not list(tmp_path.glob("*.part*"))
    every = []
    CovarianceStore(tmp_path / "again").collect(lm, LAYERS, corpus, every.append)
    assert len(steps) == len(every) - sum(stop + 1 for stop in stops)  # nothing was done twice


def test_killed_goes_on_from_the_last_part(lm, corpus, whole, tmp_path, monkeypatch):
    """A kill writes nothing: what the last part holds is done, what came after it is done again."""
    parts = []

    def copied(_step):
        parts.extend(path.read_bytes() for path in tmp_path.glob("*.part"))

    with monkeypatch.context() as patch:
        patch.setattr(Part, "keep", lambda self, sums, _stopping: self.write(sums))
        CovarianceStore(tmp_path).collect(lm, LAYERS, corpus, copied)
    assert len(set(parts)) == len(parts) > 5
    name = CovarianceStore(tmp_path / "new")._part([CovarianceStore().key(lm, n, corpus) for n in LAYERS]).path.name
    for number in (0, len(parts) // 2, len(parts) - 1):
        folder = tmp_path / f"killed-{number}"
        folder.mkdir()
        (folder / name).write_bytes(parts[number])
        store = CovarianceStore(folder)
        assert store.begun(lm, LAYERS, corpus)[1] > 0
        store.collect(lm, LAYERS, corpus)
        assert equal(matrices(store, lm, corpus), whole)


def test_a_part_is_written_when_it_is_time(tmp_path):
    written = []
    part = Part(tmp_path / "a.part", ["a"], seconds=0.0)
    part.write = written.append
    part.keep(moments.Sums(), stopping=False)
    later = Part(tmp_path / "a.part", ["a"], seconds=1000.0)
    later.write = written.append
    later.keep(moments.Sums(), stopping=False)
    assert len(written) == 1
    later.keep(moments.Sums(), stopping=True)
    assert len(written) == 2


def test_an_interrupt_in_the_middle_of_an_addition_keeps_nothing(lm, corpus, monkeypatch):
    sums = moments.Sums()
    kept = []

    def half(self, *_ignored):
        self.whole, self.tokens = False, 5
        raise KeyboardInterrupt

    monkeypatch.setattr(moments.Sums, "add", half)
    with pytest.raises(KeyboardInterrupt):
        moments.add_text(lm, LAYERS, corpus, sums, lambda *state: kept.append(state))
    assert kept == []


def test_a_part_of_something_else_is_not_used(lm, corpus, whole, tmp_path):
    def stopped(store, layers, source):
        with pytest.raises(Cancelled):
            store.collect(lm, layers, source, cancel_after(2))
        (part,) = store.root.glob("*.part")
        return part

    mine = stopped(CovarianceStore(tmp_path / "mine"), LAYERS, corpus)
    for n, (layers, source) in enumerate([([1], corpus), (LAYERS, Corpus("small", corpus.documents[1:]))]):
        other = stopped(CovarianceStore(tmp_path / f"other-{n}"), layers, source)
        assert other.name != mine.name
        mine.write_bytes(other.read_bytes())  # even under the right name
        store = CovarianceStore(mine.parent)
        steps = []
        store.collect(lm, LAYERS, corpus, steps.append)
        assert equal(matrices(store, lm, corpus), whole)
        for path in mine.parent.iterdir():
            path.unlink()


def test_a_damaged_part_is_ignored(lm, corpus, whole, tmp_path, caplog):
    with pytest.raises(Cancelled):
        CovarianceStore(tmp_path).collect(lm, LAYERS, corpus, cancel_after(3))
    (part,) = tmp_path.glob("*.part")
    content = part.read_bytes()
    for damaged in (content[:-100], b"", b"\x80" * 1000, content[:8] + b"{}" + content[10:]):
        part.write_bytes(damaged)
        store = CovarianceStore(tmp_path)
        store.collect(lm, LAYERS, corpus)
        assert "is damaged; the collection starts anew" in caplog.text
        assert equal(matrices(store, lm, corpus), whole)
        for layer in LAYERS:
            (tmp_path / store.key(lm, layer, corpus).file_name).unlink()
        caplog.clear()


def test_a_text_is_read_as_it_is_needed(lm, corpus):
    class Counted(Corpus):
        read_so_far = 0

        def read(self):
            for document in self.documents:
                Counted.read_so_far += 1
                yield document

    def stop(_step):
        raise Cancelled

    with pytest.raises(Cancelled):
        moments.add_text(lm, [0], Counted("c", corpus.documents), moments.Sums(), lambda *_state: None, stop)
    assert Counted.read_so_far == moments.BLOCK_DOCUMENTS < len(corpus.documents)


def test_blocks_end_at_documents_or_characters(monkeypatch):
    monkeypatch.setattr(moments, "BLOCK_CHARACTERS", 10)
    texts = ["a" * n for n in (4, 4, 4, 30, 1, 1)]
    divided = [[4, 4, 4], [30], [1, 1]]
    assert [[len(text) for text in block] for block in moments.blocks(iter(texts))] == divided
    assert [[len(text) for text in block] for block in moments.blocks(iter(texts), skip=3)] == divided[1:]


def test_forwards_stay_within_the_budget(lm, corpus, monkeypatch):
    seen = []
    original = type(lm).hidden

    def hidden(self, batch, cache=None):
        seen.append(batch.ids.shape)
        return original(self, batch, cache)

    monkeypatch.setattr(type(lm), "hidden", hidden)
    moments.add_text(lm, [0], corpus, moments.Sums(), lambda *_state: None)
    assert all(rows == 1 or rows * tokens <= 100 for rows, tokens in seen)
    assert any(rows > 1 for rows, _ in seen)


def test_memory_that_runs_out_halves_forwards_and_counts_every_token_once(corpus, whole, tmp_path, monkeypatch):
    lm = tiny_model("gpt2")
    original = type(lm).hidden

    def hidden(self, batch, cache=None):
        if batch.ids.numel() > 60 and len(batch.ids) > 1:
            raise MemoryError
        return original(self, batch, cache)

    monkeypatch.setattr(type(lm), "hidden", hidden)
    store = CovarianceStore(tmp_path)
    store.collect(lm, LAYERS, corpus)
    assert lm.divisor > 1
    for found, wanted in zip(matrices(store, lm, corpus), whole, strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < 1e-6


def test_sums_that_are_not_finite_are_refused(corpus, tmp_path):
    lm = tiny_model("gpt2")
    lm.model.get_submodule(lm.architecture.down(0).replace("c_proj", "c_fc")).bias[0] = float("inf")
    store = CovarianceStore(tmp_path)
    with pytest.raises(NotFinite, match="Keys of layer 0 are not finite in this dtype"):
        store.collect(lm, [0], corpus)
    assert not list(tmp_path.iterdir())


def test_a_text_without_tokens_is_refused(lm, tmp_path):
    with pytest.raises(BadRequest, match="empty holds no text"):
        CovarianceStore(tmp_path).collect(lm, [0], Corpus("empty", ("", "")))
    with pytest.raises(BadRequest, match="empty holds no text"):
        CovarianceStore(tmp_path).estimate(lm, [0], Corpus("empty", ("", "")))


def test_progress_tells_documents_rate_and_time_left(lm, corpus, tmp_path):
    steps = []
    CovarianceStore(tmp_path).collect(lm, LAYERS, corpus, steps.append)
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == steps[-1].total == len(corpus.documents)
    assert "tokens/s, about " in steps[0].note
    assert "about 0 s left" in steps[-1].note


def test_an_estimate_is_exact_where_it_can_be(lm, corpus, tmp_path):
    store = CovarianceStore(tmp_path)
    told = store.estimate(lm, LAYERS, corpus)
    store.collect(lm, LAYERS, corpus)
    files = [tmp_path / store.key(lm, layer, corpus).file_name for layer in LAYERS]
    assert 0 <= sum(file.stat().st_size for file in files) - told.disk < 2000  # their headers
    assert round(told.tokens) == store.get(lm, 0, corpus).tokens
    assert told.documents == len(corpus.documents)
    assert told.seconds > 0
    assert told.memory == 8 * 2 * told.width**2 + 4 * min(estimate.TILE, told.width) * told.width
    assert "40 documents with about" in str(told)


def test_an_estimate_of_a_slow_model_ends(lm, corpus, monkeypatch):
    monkeypatch.setattr(estimate, "SECONDS", 0.0)
    assert estimate.estimate(lm, [0], corpus).seconds > 0


def test_an_estimate_of_unknown_length(lm, corpus):
    class Endless(Corpus):
        count = None

    told = estimate.estimate(lm, [0], Endless("e", corpus.documents))
    assert told.seconds is None
    assert "tokens/s of a text of unknown length" in str(told)


@pytest.mark.parametrize(("seconds", "text"), [(3.2, "3 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations(seconds, text):
    assert moments.duration(seconds) == text
