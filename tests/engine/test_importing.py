"""Imports: what we or peft wrote comes back as it is; everything hostile or damaged is refused in one sentence."""

import json
import os
import pickle
import stat
import struct
import time
import warnings
import zipfile

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from editing_core.errors import BadRequest
from editing_core.export import archive, fitting, peft_files, reload
from editing_core.export.adapter import write_adapter
from editing_core.export.archive import pack_adapter
from editing_core.export.edit_file import write_edit
from editing_core.export.importing import import_edit
from editing_core.export.origin import MOST_TEXT, Origin, check_base, same_model
from editing_core.export.patterns import first_match, is_target
from editing_core.models.delta import Dense, LowRank, WeightDelta
from editing_core.models.language_model import LanguageModel
from tests.conftest import left_alone, tiny_model
from tests.engine.exports import IDS, applied, low_rank, places, random_edit, shape_of, whole_edit

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def lm(tiny_models):
    with left_alone(tiny_models("gpt2")) as model:
        yield model


@pytest.fixture
def adapter(lm, tmp_path):
    """The folder of a good adapter."""
    write_adapter(lm, random_edit(lm), tmp_path / "adapter")
    return tmp_path / "adapter"


def change(folder, **options):
    """Change the configuration; None takes an option out."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | options
    config = {name: value for name, value in config.items() if value is not None}
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")


def refused(lm, path, words):
    """It is refused with these words, in one line that says what to do."""
    with pytest.raises(BadRequest, match=words) as caught:
        import_edit(lm, path)
    text = str(caught.value)
    assert "\n" not in text
    assert ";" in text
    assert text.endswith(".")


# What comes back


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_our_adapter_comes_back_to_the_bit(tiny_lm, tmp_path, form):
    delta = random_edit(tiny_lm)
    write_adapter(tiny_lm, delta, tmp_path / "a")
    path = tmp_path / "a"
    if form == "zip":
        pack_adapter(path, tmp_path / "a.zip")
        path = tmp_path / "a.zip"
    found = import_edit(tiny_lm, path)
    assert found.updates.keys() == delta.updates.keys()
    for name, update in delta.updates.items():
        assert torch.equal(found.updates[name].left, update.left)
        assert torch.equal(found.updates[name].right, update.right)
    assert found.provenance["editor"] == "memit"
    assert found.provenance["model"] == tiny_lm.name


def test_our_edit_file_comes_back_to_the_bit(lm, tmp_path):
    delta = WeightDelta(whole_edit(lm).updates, {"model": lm.name, "created": "today"})
    write_edit(tmp_path / "e.safetensors", delta)
    found = import_edit(lm, str(tmp_path / "e.safetensors"))
    assert all(torch.equal(tensor, delta.tensors()[name]) for name, tensor in found.tensors().items())
    assert found.provenance["created"] == "today"


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "qwen3"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"0.*": 2}, "alpha_pattern": {"1.*": 5}},
        {"rank_pattern": {r"^.*\.1\..*": 6}, "use_rslora": True},
    ],
)
def test_an_adapter_of_peft_is_the_edit_it_is(family, options, tmp_path):
    """Trained elsewhere: several modules, alpha other than r, patterns; and embeddings where they are not tied."""
    lm = tiny_model(family)
    embeddings = ["wte"] if family == "gptj" else []
    ends = [name.removesuffix(".weight").rpartition(".")[2] for name in places(lm)]
    patterns = {k: {p.replace("0.*", ends[0]).replace("1.*", ends[1]) if p[0] != "^" else p: n for p, n in v.items()}
                for k, v in options.items() if isinstance(v, dict)}  # fmt: skip
    config = LoraConfig(r=3, lora_alpha=7, target_modules=[*ends, *embeddings], **{**options, **patterns})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft tells that it keeps the embeddings whole, and corrects fan_in_fan_out
        other = get_peft_model(tiny_model(family).model, config).eval()
        for number, (name, parameter) in enumerate(other.named_parameters()):
            if "lora_" in name:
                generator = torch.Generator().manual_seed(number)
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        other.save_pretrained(tmp_path)
    found = import_edit(lm, tmp_path)
    expected, here = reload.logits(other, IDS, "cpu"), applied(lm, found)
    for number, logits in expected.items():
        assert (here[number] - logits).abs().max() <= 1e-5 * max(1.0, float(logits.abs().max()))
    assert "does not say which model" in found.provenance["note"]


def test_tied_embeddings_come_back_as_one_weight(tiny_models, tmp_path):
    lm = tiny_models("gpt2")
    name = "transformer.wte.weight"
    delta = WeightDelta({name: low_rank(shape_of(lm, name), 2)})
    write_adapter(lm, delta, tmp_path / "a")
    found = import_edit(lm, tmp_path / "a")
    assert list(found.updates) == [name]
    assert torch.equal(found.updates[name].dense(), delta.updates[name].dense())
    tensors = load_file(tmp_path / "a" / TENSORS)
    one = {key: tensor for key, tensor in tensors.items() if "lm_head" not in key}
    save_file(one, tmp_path / "a" / TENSORS)
    refused(lm, tmp_path / "a", "which are one weight")


# Files that are none


def test_pickles_are_never_opened(lm, tmp_path, adapter):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    for name in ("adapter_model.bin", "edit.pt", "edit.CKPT", "edit.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        refused(lm, tmp_path / name, "never read")
    (adapter / TENSORS).unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(lm, adapter, r"a \.bin file is a pickle")
    (tmp_path / "edit.safetensors").write_bytes(pickle.dumps(Bomb()))
    refused(lm, tmp_path / "edit.safetensors", "not a readable safetensors file")
    (adapter / TENSORS).write_bytes(pickle.dumps(Bomb()))
    refused(lm, adapter, "damaged or cut off")
    assert not (tmp_path / "ran").exists()


def test_what_is_not_there_or_of_no_kind(lm, tmp_path, adapter):
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    refused(lm, tmp_path / "notes.txt", "of no kind that is read")
    refused(lm, tmp_path / "nothing.safetensors", "There is no file or folder")
    refused(lm, adapter / TENSORS, "one half of an adapter")
    (tmp_path / "empty").mkdir()
    refused(lm, tmp_path / "empty", f"holds no file {CONFIG}")


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_links_in_a_folder_are_not_followed(lm, adapter, tmp_path, name):
    (adapter / name).rename(tmp_path / name)
    (adapter / name).symlink_to(tmp_path / name)
    refused(lm, adapter, f"holds no file {name}")


@pytest.mark.parametrize("cut", [1, 100, 3000])
@pytest.mark.parametrize("form", ["adapter", "edit"])
def test_truncated_files(lm, adapter, tmp_path, cut, form):
    path = adapter / TENSORS
    if form == "edit":
        path = tmp_path / "e.safetensors"
        write_edit(path, random_edit(lm))
    path.write_bytes(path.read_bytes()[:-cut])
    refused(lm, adapter if form == "adapter" else path, "damaged or cut off" if form == "adapter" else "not a readable")


@pytest.mark.parametrize("size", [2**62, 10_000, 3])
def test_headers_of_safetensors_that_lie(lm, adapter, size):
    (adapter / TENSORS).write_bytes(
        struct.pack("<Q", size) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
    )
    refused(lm, adapter, "damaged or cut off")


def test_files_too_large_to_be_read(lm, adapter, tmp_path, monkeypatch):
    write_edit(tmp_path / "e.safetensors", random_edit(lm))
    monkeypatch.setattr(peft_files, "MAX_BYTES", 1000)
    monkeypatch.setattr("editing_core.export.edit_file.MAX_BYTES", 1000)
    refused(lm, adapter, "at most .* are read")
    refused(lm, tmp_path / "e.safetensors", "at most .* are read")
    monkeypatch.undo()
    monkeypatch.setattr(fitting, "MAX_BYTES", 1000)
    refused(lm, tmp_path / "e.safetensors", "at most .* are read")
    (adapter / CONFIG).write_text(" " * (2**20 + 1), encoding="utf-8")
    refused(lm, adapter, "at most .* are read")


# Configurations


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"peft_type": "IA3"}, "of type 'IA3'"),
        ({"peft_type": None}, "of type 'None'"),
        ({"peft_type": ["LORA"]}, "only LORA"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"an_option_of_tomorrow": "x"}, "an_option_of_tomorrow"),
        ({"base_model_name_or_path": "openai-community/gpt2"}, "for the model 'openai-community/gpt2'"),
        ({"lora_alpha": "4", "alpha_pattern": {}}, "a number is needed"),
        ({"lora_alpha": float("nan"), "alpha_pattern": {}}, "a number is needed"),
        ({"lora_alpha": 1e300, "alpha_pattern": {}}, "a number is needed"),
        ({"r": 10**8, "rank_pattern": {}}, "says rank"),
        ({"r": True, "rank_pattern": {}}, "a number is needed"),
        ({"rank_pattern": [1]}, "no JSON object"),
        ({"rank_pattern": {"(a+)+b": 1}}, "too intricate"),
        ({"rank_pattern": {"*": 1}}, "is none"),
        ({"rank_pattern": {f"a{i}": 1 for i in range(10_001)}}, "patterns, at most"),
        ({"target_modules": ["c_attn"]}, "target_modules does not name"),
        ({"target_modules": None}, "target_modules does not name"),
        ({"target_modules": "((x*)*)*"}, "too intricate"),
    ],
)
def test_configurations_that_mean_something_else(lm, adapter, options, words):
    change(adapter, **options)
    refused(lm, adapter, words)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 100_000, '"LORA"'])
def test_configurations_that_are_none(lm, adapter, text):
    (adapter / CONFIG).write_bytes(text.encode("latin-1"))
    refused(lm, adapter, CONFIG)


def test_patterns_end():
    """The name that a naive engine would try for ever."""
    start = time.monotonic()
    for pattern in (r".*.*.*x", r"(\w*|\w*|\w*)x", r"\w+\w+\w+x"):
        assert first_match({pattern: 1}, "a" * 120) is None
    assert time.monotonic() - start < 1
    for pattern in ("(a*)*b", "a*" + "b" * 500, "(?=a)", "a{9}", "[ab]", ".*.*.*.*"):
        with pytest.raises(BadRequest, match="too intricate"):
            first_match({pattern: 1}, "a")


def test_patterns_fit_as_peft_says():
    from peft.utils.other import get_pattern_key

    names = [f"model.layers.{i}.{part}" for i in (1, 11) for part in ("mlp.down_proj", "self_attn.o_proj")]
    patterns = ["down_proj", "layers.1.mlp.down_proj", r"layers\.1\..*", "^model.layers.11.*", r".*\.(o_proj|k_proj)"]
    for pattern in patterns:
        for name in names:
            assert (first_match({pattern: 1}, name) is not None) == (get_pattern_key([pattern], name) == pattern), name
    assert is_target(r".*\.1\.mlp\.(?:down_proj|up_proj)", names[0])
    assert not is_target(r"mlp\.down_proj", names[0])
    assert is_target(["down_proj"], names[0])
    assert not is_target(["own_proj"], names[0])


# Tensors


PLACE = "transformer.h.0.mlp.c_proj"
WEIGHT = f"{PLACE}.weight"
A, B = (f"base_model.model.{PLACE}.lora_{part}.weight" for part in "AB")
GOOD = {A: torch.ones(2, 128), B: torch.ones(32, 2)}
TIED = Dense(torch.ones(5120, 32))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({A: torch.ones(2, 127)}, "has shape"),
        ({A: torch.ones(2, 32), B: torch.ones(128, 2)}, "has shape"),
        ({A: torch.ones(3, 128)}, "are needed"),
        ({A: torch.ones(256)}, "are needed"),
        ({A: torch.ones(0, 128), B: torch.ones(32, 0)}, "are needed"),
        ({A: torch.zeros(30_000, 128), B: torch.zeros(32, 30_000)}, "with r up to 20,000"),
        ({A: torch.full((2, 128), float("nan"))}, "infinite or undefined"),
        ({B: torch.full((32, 2), float("inf"))}, "infinite or undefined"),
        ({A: torch.full((2, 128), 1e30), B: torch.full((32, 2), 1e30)}, "too large"),
        ({A: torch.ones(2, 128, dtype=torch.int32)}, "floating ones"),
        ({A: None}, "only factor B"),
        ({A.replace("h.0", "h.77"): torch.ones(2, 128)}, "no linear layer or embedding"),
        ({A.replace("mlp.c_proj", "ln_1"): torch.ones(2, 128)}, "no linear layer or embedding"),
        ({A.replace("base_model.model.", ""): torch.ones(2, 128)}, "only LoRA factors"),
        ({A.replace("lora_A", "lora_magnitude_vector"): torch.ones(2)}, "DoRA"),
        ({B.replace("weight", "bias"): torch.ones(2)}, "biases"),
        ({A.replace("lora_A.weight", "lora_embedding_A"): torch.ones(2, 128)}, "another kind of layer"),
        ({"base_model.model.lm_head.modules_to_save.weight": torch.ones(2)}, "whole modules"),
        ({"base_model.model.transformer.wte.weight": torch.ones(5120, 32)}, "by its own"),
        ({"something": torch.ones(2)}, "only LoRA factors"),
    ],
)
def test_tensors_that_are_no_edit_of_this_model(lm, adapter, changes, words):
    change(adapter, r=2, lora_alpha=2, rank_pattern={}, alpha_pattern={})
    tensors = {**GOOD, **changes}
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, adapter / TENSORS)
    refused(lm, adapter, words)


def test_the_same_adapter_without_the_changes_is_read(lm, adapter):
    """Or the refusals above would say nothing."""
    change(adapter, r=2, lora_alpha=2, rank_pattern={}, alpha_pattern={})
    save_file(GOOD, adapter / TENSORS)
    assert list(import_edit(lm, adapter).updates) == ["transformer.h.0.mlp.c_proj.weight"]


@pytest.mark.parametrize(
    ("updates", "words"),
    [
        ({}, "changes nothing"),
        ({"nowhere.weight": Dense(torch.ones(2, 2))}, "does not have"),
        ({WEIGHT: Dense(torch.ones(128, 32))}, "has shape"),
        ({WEIGHT: Dense(torch.ones(32, 128, dtype=torch.int8))}, "floating ones"),
        ({WEIGHT: LowRank(torch.zeros(32, 20_001), torch.zeros(20_001, 128))}, "rank 20,001"),
        ({WEIGHT: Dense(torch.full((32, 128), float("nan")))}, "undefined"),
        ({"transformer.ln_f.weight": Dense(torch.full((32,), float("inf")))}, "undefined"),
        ({"transformer.wte.weight": TIED, "lm_head.weight": TIED.scaled(2)}, "one weight"),
    ],
)
def test_edit_files_that_fit_another_model(lm, tmp_path, updates, words):
    WeightDelta(updates).save(tmp_path / "e.safetensors")
    refused(lm, tmp_path / "e.safetensors", words)


def test_factors_without_a_product(lm, tmp_path):
    tensors = {f"{WEIGHT}|left": torch.ones(32, 2), f"{WEIGHT}|right": torch.ones(3, 128)}
    save_file(tensors, tmp_path / "e.safetensors", metadata={"format": "editscope-delta-1"})
    refused(lm, tmp_path / "e.safetensors", "damaged")


@pytest.mark.parametrize("texts", ['{"model": 3}', "3", "[" * 100_000, json.dumps({"facts": "x" * (MOST_TEXT + 1)})])
def test_origins_that_are_none(lm, tmp_path, texts):
    name = places(lm)[0]
    tensors = {f"{name}|value": torch.ones(shape_of(lm, name))}
    save_file(tensors, tmp_path / "e.safetensors", metadata={"format": "editscope-delta-1", "provenance": texts})
    refused(lm, tmp_path / "e.safetensors", "damaged|texts")


# Zips


def packed(path, members, method=zipfile.ZIP_STORED, **changes):
    with zipfile.ZipFile(path, "w", method) as zipped:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            for key, value in changes.items():
                setattr(info, key, value)
            zipped.writestr(info, content)
    return path


@pytest.fixture
def files(adapter):
    return [(name, (adapter / name).read_bytes()) for name in (CONFIG, TENSORS)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../../evil.json", "only .* are allowed"),
        ("/etc/evil.json", "only .* are allowed"),
        ("adapter/adapter_config.json", "only .* are allowed"),
        ("adapter_model.bin", "only .* are allowed"),
        (CONFIG + "\0.txt", "only .* are allowed"),
        (CONFIG, "more than once"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_in_a_zip(lm, files, tmp_path, name, words):
    path = packed(tmp_path / "a.zip", [*files, (name.replace("\0", "?"), b"{}")])
    path.write_bytes(path.read_bytes().replace(b".json?", b".json\0"))  # zipfile writes no such name itself
    refused(lm, path, words)
    assert not list(tmp_path.rglob("evil*"))


def test_kinds_of_members_in_a_zip(lm, files, tmp_path):
    link = (stat.S_IFLNK | 0o777) << 16
    refused(lm, packed(tmp_path / "l.zip", files, external_attr=link), "is a link")
    refused(lm, packed(tmp_path / "f.zip", files, external_attr=0x10), "a folder")
    refused(lm, packed(tmp_path / "m.zip", files, method=zipfile.ZIP_LZMA), "method 14")
    refused(lm, packed(tmp_path / "n.zip", files[:1]), f"no {TENSORS}")
    encrypted = bytearray(packed(tmp_path / "e.zip", files).read_bytes())
    for sign, at in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        encrypted[encrypted.index(sign) + at] |= 1
    (tmp_path / "e.zip").write_bytes(encrypted)
    refused(lm, tmp_path / "e.zip", "encrypted")


def test_zips_that_unpack_to_much_more(lm, files, tmp_path, monkeypatch):
    """A bomb is refused by what it declares; one that declares less is cut there, and then damaged."""
    bomb = packed(tmp_path / "b.zip", [files[0], (TENSORS, bytes(50 * 2**20))], zipfile.ZIP_DEFLATED)
    refused(lm, bomb, "times its size is allowed")
    data = bytearray(bomb.read_bytes())
    for sign, at in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        where = data.rindex(sign) + at
        data[where : where + 4] = struct.pack("<L", 1000)
    (tmp_path / "liar.zip").write_bytes(data)
    refused(lm, tmp_path / "liar.zip", "damaged")
    monkeypatch.setitem(archive.LIMITS, TENSORS, 100)
    refused(lm, packed(tmp_path / "s.zip", files), "at most 100")


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"hello" * 1000])
def test_zips_that_are_none(lm, tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    refused(lm, tmp_path / "a.zip", "no zip file or damaged")


def test_a_damaged_zip(lm, files, tmp_path):
    data = bytearray(packed(tmp_path / "a.zip", files).read_bytes())
    at = data.index(files[1][1][-500:])
    data[at] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    refused(lm, tmp_path / "a.zip", "damaged")
    (tmp_path / "a.zip").write_bytes(data[: len(data) // 2])
    refused(lm, tmp_path / "a.zip", "damaged")


# Whose edit it is


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("gpt2-xl", "openai-community/gpt2-xl", True),
        ("gpt2-xl", "/data/models/gpt2-xl/", True),
        ("gpt-j-6b", "EleutherAI/gpt-j-6B", True),
        ("llama-2-7b", "C:\\models\\Llama-2-7b-hf", True),
        ("pocket-gpt2", "/home/x/assets/models/pocket-gpt2", True),
        ("someone/own", "/data/own", True),
        ("own", "someone/Own", True),
        ("gpt2", "someone/gpt2", False),
        ("gpt2", "gpt2-xl", False),
        ("someone/own", "another/own", False),
        ("pocket-gpt2", "bundled", False),
        ("own", "gpt2", False),
    ],
)
def test_names_of_one_model(one, other, same):
    assert same_model(one, other) is same
    assert same_model(other, one) is same


@pytest.mark.parametrize(
    ("own", "told", "words"),
    [
        ("a" * 40, "a" * 40, None),
        ("a" * 40, "A" * 40, None),
        ("b" * 12, "b" * 12, None),
        ("a" * 40, "b" * 40, "refused"),
        ("a" * 12, "b" * 12, "refused"),
        ("a" * 40, "b" * 12, "cannot be told"),
        ("a" * 40, "main", "cannot be told"),
        ("a" * 40, "", "cannot be told"),
    ],
)
def test_revisions(lm, own, told, words):
    here = LanguageModel(lm.model, lm.tokenizer, "tiny", own)
    origin = Origin(model="tiny", revision=told)
    if words == "refused":
        with pytest.raises(BadRequest, match="for revision"):
            check_base(here, origin)
    else:
        remarks = check_base(here, origin)
        assert (words is None) == (remarks == ())
        assert words is None or words in remarks[0]


def test_what_a_file_says_of_itself_is_one_printable_line(lm, tmp_path):
    evil = {"editor": "\x1b[2J\nrm -rf", "facts": '[{"subject": "<script>"}]', "versions": "[1]", "strange": "x"}
    write_edit(tmp_path / "e.safetensors", WeightDelta(random_edit(lm).updates, evil))
    found = import_edit(lm, tmp_path / "e.safetensors").provenance
    assert found["editor"] == "[2J rm -rf"
    assert set(found) == {"editor", "note"}
