"""Encoders: a sentence encoder from a folder, and the model's own hidden states where there is none."""

import json
import sys
import time

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from editing_core.data import encoder as encoders
from editing_core.data.encoder import Encoder, encoder_of, nearest, neighbor_distances
from editing_core.data.suggest import suggest
from editing_core.errors import BadRequest
from editing_core.types import EditRequest, Probe

TEXTS = ["Mary Walker was born in Paris", "The piano", "A river runs through the old city and under the bridge"]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No test sees what another one loaded."""
    monkeypatch.setattr(encoders, "_sentence_encoders", {})
    monkeypatch.delenv("EDITSCOPE_ENCODER", raising=False)


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory):
    """A folder with a tiny random SentenceTransformer."""
    sentences = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for text in TEXTS for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    bert, folder = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("encoders") / "tiny-sentences"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            initializer_range=0.5,
        )
        BertModel(config).save_pretrained(bert)
    fast.save_pretrained(bert)
    body = Transformer(str(bert), max_seq_length=32)
    sentences.SentenceTransformer(modules=[body, Pooling(16)], device="cpu").save(str(folder))
    return folder


def test_the_operators_sentence_encoder_serves(sentence_model, monkeypatch, tiny_models):
    monkeypatch.setenv("EDITSCOPE_ENCODER", str(sentence_model))
    encoder = encoder_of(tiny_models("gpt2"))
    assert (encoder.name, encoder.note) == ("tiny-sentences", "")
    vectors = encoder.encode([*TEXTS, TEXTS[0]])
    assert (vectors.shape, vectors.dtype) == ((4, 16), torch.float32)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(4), atol=1e-6)
    assert torch.equal(vectors[0], vectors[3])
    assert (vectors[0] - vectors[1]).abs().max() > 0.01
    assert encoder_of(tiny_models("llama")) is encoder
    assert encoder_of(tiny_models("gpt2"), own=True).name == "mean hidden state of tiny-gpt2"


def test_a_sentence_encoder_is_loaded_once_and_so_is_a_failure(monkeypatch, tiny_models):
    asked = []
    monkeypatch.setattr(encoders, "_load", lambda source, _device: asked.append(source) or 1 / 0)
    notes = {encoder_of(tiny_models("gpt2")).note for _ in range(3)}
    assert asked == [encoders.DEFAULT]
    assert notes == {
        "No sentence encoder could be loaded (all-MiniLM-L6-v2: ZeroDivisionError); "
        "the mean hidden state of tiny-gpt2 serves instead."
    }


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/no/such/folder", "there is no folder on this machine"),
        ("nobody/nothing", "nothing is not on this machine, which is offline"),
    ],
)
def test_without_a_sentence_encoder_the_model_serves_at_once(monkeypatch, tiny_models, source, reason):
    monkeypatch.setenv("EDITSCOPE_ENCODER", source)
    started = time.perf_counter()
    encoder = encoder_of(tiny_models("gpt2"))
    assert time.perf_counter() - started < 5
    assert encoder.name == "mean hidden state of tiny-gpt2"
    assert reason in encoder.note
    assert "/no/such" not in encoder.note


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch, tiny_models):
    monkeypatch.setattr(encoders.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(encoders, "PATIENCE", 0.2)
    monkeypatch.setattr(encoders, "HfApi", lambda: type("Silent", (), {"model_info": lambda *_, **__: time.sleep(2)}))
    started = time.perf_counter()
    note = encoder_of(tiny_models("gpt2")).note
    assert time.perf_counter() - started < 1.5
    assert "the hub did not answer" in note


def test_a_missing_package_is_a_reason(monkeypatch, tiny_models):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert "sentence-transformers is not installed" in encoder_of(tiny_models("gpt2")).note


def test_pickled_weights_and_code_are_not_loaded(monkeypatch, tmp_path, sentence_model, tiny_models):
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"pickle")
    monkeypatch.setenv("EDITSCOPE_ENCODER", str(pickled))
    assert "not safetensors" in encoder_of(tiny_models("gpt2")).note
    coded = tmp_path / "coded"
    coded.mkdir()
    for file in sentence_model.iterdir():
        if file.is_file():
            (coded / file.name).write_bytes(file.read_bytes())
    (coded / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    (coded / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "own.Own"}]))
    monkeypatch.setenv("EDITSCOPE_ENCODER", str(coded))
    assert "could be loaded (coded: ValueError)" in encoder_of(tiny_models("gpt2")).note
    assert not (tmp_path / "ran").exists()


def test_the_models_own_states_do_not_depend_on_padding(tiny_lm):
    encoder = encoder_of(tiny_lm, own=True)
    together = encoder.encode(TEXTS)
    assert together.shape == (3, 32)
    assert torch.allclose(together.norm(dim=1), torch.ones(3), atol=1e-6)
    for text, vector in zip(TEXTS, together, strict=True):
        # Batches of other lengths sum in another order: float32 leaves 1e-7 per term, some dozens are added.
        assert torch.allclose(encoder.encode([text])[0], vector, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_the_mean_is_over_the_texts_own_tokens(tiny_models):
    lm = tiny_models("gpt2")
    with torch.no_grad():
        ids = torch.tensor([lm.tokenizer(TEXTS[0])["input_ids"]])
        mean = lm.model.base_model(input_ids=ids)[0][0].mean(0)
    assert torch.allclose(encoders._means(lm, [TEXTS[0], TEXTS[2]])[0], mean, atol=1e-5)


def test_texts_longer_than_the_context_and_empty_ones_have_vectors(tiny_models):
    vectors = encoder_of(tiny_models("gpt2"), own=True).encode(["word " * 500, " ", ""])
    assert torch.isfinite(vectors).all()
    assert encoder_of(tiny_models("gpt2"), own=True).encode([]).shape == (0, 0)


def test_vectors_kept_are_not_computed_again(tiny_models):
    calls = []
    encoder = Encoder("counting", "", lambda texts: calls.append(1) or torch.ones(len(texts), 2))
    assert torch.equal(encoder.encode_once(("a", "b")), encoder.encode_once(("a", "b")))
    assert len(calls) == 1
    first, second = (encoder_of(tiny_models("gpt2"), own=True) for _ in range(2))
    assert first.kept is second.kept


def test_nearest_is_by_cosine_and_ties_by_number():
    items = torch.nn.functional.normalize(torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]), dim=1)
    assert nearest(torch.tensor([[1.0, 0.0]]), items, 3)[0] == [[1, 3, 2]]
    assert nearest(items, items, 1)[0] == [[0], [1], [2], [1]]
    assert nearest(items[:2], items, 9)[0][0] == [0, 2, 1, 3]
    assert nearest(items[:2], torch.zeros(0, 0), 3) == ([[], []], [[], []])


def test_many_queries_are_compared_as_few_are():
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(300, 4), dim=1)
    found, cosines = nearest(rows, rows, 2)
    assert [best[0] for best in found] == list(range(300))
    assert found[299] == nearest(rows[299:], rows, 2)[0][0]
    assert cosines[299] == [float((rows[299] @ rows[n]).round(decimals=5)) for n in found[299]]


def by_letter(texts):
    """A vector per text by which letters it has, so that expected neighbors can be named by hand."""
    return torch.tensor([[float(text.casefold().count(chr(97 + i))) for i in range(26)] for text in texts])


def test_distances_are_between_subjects_and_between_prompts_where_there_is_none():
    encoder = Encoder("letters", "", by_letter)
    probes = (Probe("aa lives in", "b", "aa"), Probe("bb lives in", "b", "bb"), Probe("aaa lives in", "b"))
    request = EditRequest("aaa", "{} lives in", "new", "b", neighbors=probes)
    found = neighbor_distances(encoder, request)
    assert found["aa lives in"] == pytest.approx(0, abs=1e-6)
    assert found["bb lives in"] == pytest.approx(1)
    assert found["aaa lives in"] == pytest.approx(0, abs=1e-6)
    assert neighbor_distances(encoder, EditRequest("aaa", "{} lives in", "new")) == {}


# --- suggestions by similarity -----------------------------------------------------------------------------------


def test_an_unknown_wording_finds_its_relation_only_with_an_encoder(pocket):
    with pytest.raises(BadRequest, match="No bundled relation fits"):
        suggest("Somebody", "{} plays in the position of", None)
    encoder = encoder_of(pocket, own=True)
    found = suggest("Somebody", "{} plays in the position of", None, encoder)
    assert found.relation == "sports position"
    assert found.how == "by the nearest wording (mean hidden state of pocket-gpt2)"
    assert len(found.neighbors) == 10


@pytest.mark.parametrize("prompt", ["What is the war during which {} was in the armed forces?", "the", ""])
def test_what_is_near_to_no_relation_is_still_refused(pocket, prompt):
    with pytest.raises(BadRequest, match="No bundled relation fits"):
        suggest("Somebody", prompt, None, encoder_of(pocket, own=True))


def test_neighbors_with_the_same_object_come_nearest_first():
    encoder = Encoder("letters", "", by_letter)
    found = suggest("Edward Matthew Ward", "{} was born in", "London", encoder)
    assert found.how == "by wording"
    assert {probe.answer for probe in found.neighbors} == {"London"}
    start = encoder.encode(["Edward Matthew Ward was born in London"])[0]
    near = [float(encoder.encode([f"{p.subject} was born in London"])[0] @ start) for p in found.neighbors]
    assert near == sorted(near, reverse=True)
    drawn = suggest("Edward Matthew Ward", "{} was born in", "London")
    assert [p.subject for p in drawn.neighbors] != [p.subject for p in found.neighbors]
    assert suggest("Edward Matthew Ward", "{} has an own wording", "London").how == "by the subject"
