"""Loading: where from, where to, in which form, and why not, before anything is read."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from editing_core import cli, cli_plan
from editing_core.bench.config import RunConfig
from editing_core.errors import BadSetting, ModelUnavailable, OutOfMemory
from editing_core.models import loading, memory
from editing_core.models.architectures import Architecture
from editing_core.models.host import ModelHost
from editing_core.models.language_model import LanguageModel
from editing_core.models.loading import REVISION, Wanted, default_device, free_on
from editing_core.models.weights import parameters, quantisation_of, weight_bytes
from tests.conftest import FAMILIES, tiny_config, tiny_model

GB = 10**9


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_counted_before_they_are_there(family):
    model = AutoModelForCausalLM.from_config(tiny_config(family))
    count = sum(p.numel() for p in model.parameters())
    assert parameters(tiny_config(family)) == count
    assert weight_bytes(tiny_config(family), torch.bfloat16) == 2 * count


def test_what_does_not_fit_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("read"))
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 20_000_000)
    with pytest.raises(OutOfMemory) as found:
        LanguageModel.load("pocket-gpt2", device="cpu")
    assert str(found.value) == (
        "The weights of pocket-gpt2 take 24 MB in float32, and 20 MB are free on cpu; choose it in bfloat16, or a "
        "smaller model."
    )
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 10_000_000)
    with pytest.raises(OutOfMemory, match="free on cpu; choose it in bfloat16 in nf4, or a smaller model"):
        LanguageModel.load("pocket-gpt2", device="cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 1_000_000)
    with pytest.raises(OutOfMemory, match="free on cpu; choose a smaller model"):
        LanguageModel.load("pocket-gpt2", device="cpu", dtype="bfloat16")


def test_the_command_line_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 1_000_000)
    command = ["edit", "--example", "1", "--device", "cpu"]
    assert cli.run(command) == 2
    told = capsys.readouterr().err.splitlines()
    assert "so it will probably not fit" in told[0]
    assert told[1].startswith("The weights of pocket-gpt2 take 24 MB in float32, and 1 MB are free on cpu; choose")


def test_a_large_edit_is_told_before_it_is_loaded(monkeypatch, capsys):
    loaded = []
    monkeypatch.setattr(cli_plan, "load_model", lambda *asked: loaded.append(asked))
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 900 * GB)
    options = cli._parser().parse_args(
        ["edit", "--model", "gpt-j-6b", "--example", "1", "--quantised", "nf4", "--revision", "abc", "--device", "cpu"]
    )
    plan = cli.asked(options)[0].plan
    cli_plan.load_for(plan, 1, options.model, *cli_plan.loading(options))
    assert capsys.readouterr().err == "gpt-j-6b needs about 3.1 GB for its weights; 900 GB are free.\n"
    assert loaded == [("gpt-j-6b", "float32", "nf4", "abc", "cpu")]
    cli_plan.load_for(plan, 1, "pocket-gpt2")
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("cards", "size", "where"),
    [([], 5, "cpu"), ([80], 200, "cuda"), ([80, 80], 60, "cuda"), ([80, 80], 75, "auto"), ([40, 80], 60, "auto")],
)
def test_where_weights_go_when_nothing_is_said(monkeypatch, cards, size, where):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(memory, "free_bytes", lambda d: (cards[d.index or 0] if d.type == "cuda" else 16) * GB)
    assert default_device(size * GB) == where
    assert free_on("auto") == (sum(cards) + 16) * GB
    assert free_on("auto", packed=True) == (sum(cards) or 16) * GB
    assert free_on({"a": "cpu", "b": "cpu"}) == 16 * GB
    assert free_on({"a": "cpu", "b": "disk"}) is None


def test_a_device_map_reaches_the_library_and_one_device_goes_straight_there(monkeypatch):
    asked = []

    def read(_source, **given):
        asked.append(given)
        raise OSError("enough")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)
    monkeypatch.setattr(memory, "free_bytes", lambda _device: GB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cpu", "cuda:1", "auto", {"": 0}):
        with pytest.raises(ModelUnavailable, match="enough"):
            LanguageModel.load("pocket-gpt2", device=device)
    assert [given.get("device_map") for given in asked] == [None, {"": "cuda:1"}, "auto", {"": 0}]
    assert all(given["use_safetensors"] and given["trust_remote_code"] is False for given in asked)


@pytest.mark.parametrize("device", ["cuda:2", "gpu", "/dev/sda", "disk:1", {"": 2}])
def test_devices_that_are_not_there_are_refused(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(memory, "free_bytes", lambda _device: GB)
    with pytest.raises(ModelUnavailable, match=r"There is no device .* here; choose cpu, cuda:0 to cuda:1 or auto"):
        LanguageModel.load("pocket-gpt2", device=device)


def test_a_device_on_the_command_line(capsys):
    assert cli.run(["edit", "--example", "1", "--device", "gpu"]) == 2
    assert capsys.readouterr().err.startswith("There is no device 'gpu' here; choose cpu")


def test_revisions_are_names_and_no_paths(tmp_path):
    for fine in ("main", "v1.0", "refs/pr/7", "5f2c1a-b_c"):
        assert REVISION.fullmatch(fine)
    for bad in ("../x", "a/../b", "a//b", "/a", "a b", "a/", ".git", ""):
        assert not REVISION.fullmatch(bad)
    with pytest.raises(ModelUnavailable, match="is no branch, tag or commit"):
        Wanted("x", "a/b", revision="../../etc")
    with pytest.raises(ModelUnavailable, match="mine is a folder and has no revisions; leave the revision out"):
        Wanted("mine", str(tmp_path), revision="main")


def test_an_unknown_quantisation_is_refused():
    with pytest.raises(ModelUnavailable, match="packed as 'int3', allowed are none, int8, nf4; choose one of them"):
        LanguageModel.load("pocket-gpt2", quantised="int3")


def test_without_bitsandbytes_the_file_to_install_is_named(monkeypatch, capsys):
    monkeypatch.setattr(loading, "find_spec", lambda _name: None)
    with pytest.raises(ModelUnavailable, match=r"needs bitsandbytes, .* 'pip install -r requirements-quantised.txt'"):
        LanguageModel.load("pocket-gpt2", quantised="nf4")
    assert cli.run(["edit", "--example", "1", "--quantised", "int8"]) == 2
    assert "Loading pocket-gpt2 in int8 needs bitsandbytes" in capsys.readouterr().err


def test_checkpoints_that_are_packed_already(tmp_path, monkeypatch):
    packed = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    config = LlamaConfig(quantization_config=packed)
    assert quantisation_of(config) == "nf4"
    assert quantisation_of(LlamaConfig(quantization_config={"load_in_8bit": True})) == "int8"
    assert quantisation_of(LlamaConfig()) == "none"
    Architecture.of(config)
    plain, small = (weight_bytes(config, torch.bfloat16, quantised) for quantised in ("none", "nf4"))
    assert small < plain / 3
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "find_spec", lambda _name: None)
    with pytest.raises(ModelUnavailable, match="Loading mine in nf4 needs bitsandbytes"):
        LanguageModel.load("mine", folder=tmp_path)
    monkeypatch.setattr(loading, "find_spec", lambda _name: "as if it were there")
    with pytest.raises(ModelUnavailable, match=r"mine is packed already \(nf4\), so it cannot be packed as int8"):
        LanguageModel.load("mine", folder=tmp_path, quantised="int8")


def test_a_host_lets_others_go_before_it_gives_up(monkeypatch):
    host, tried = ModelHost(device="cpu"), []

    def load(name, *_more):
        tried.append((name, host.is_loaded("small")))
        if name == "large" and host.is_loaded("small"):
            raise OutOfMemory("no room")
        return name

    monkeypatch.setattr(LanguageModel, "load", load)
    assert host.get("small") == "small"
    assert host.get("large") == "large"
    assert tried == [("small", False), ("large", True), ("large", False)]
    monkeypatch.setattr(LanguageModel, "load", lambda *_: (_ for _ in ()).throw(OutOfMemory("no room at all")))
    with pytest.raises(OutOfMemory, match="at all"):
        host.get("small")


COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED, UNKNOWN, NO_REVISION, SMALL = "some/gated", "some/unknown", "some/revisions", "some/small"


REFUSED = {GATED: (403, "GatedRepo"), UNKNOWN: (401, "RepoNotFound"), NO_REVISION: (404, "RevisionNotFound")}


class Hub(BaseHTTPRequestHandler):
    """A hub that refuses as the real one does, and has one model."""

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        self.server.asked.append(self.path)
        path = self.path.lstrip("/").removeprefix("api/models/")
        refused = [why for name, why in REFUSED.items() if path.startswith(name)]
        file = self.server.folder / path.rpartition("/")[2]
        if refused or not file.is_file():
            status, code = refused[0] if refused else (404, "EntryNotFound")
            return self.answer(status, b"", {"X-Error-Code": code, "X-Error-Message": code, "X-Repo-Commit": COMMIT})
        head = {"X-Repo-Commit": COMMIT, "ETag": f'"{file.name}"', "Content-Length": str(file.stat().st_size)}
        return self.answer(200, file.read_bytes() if body else b"", head)

    def answer(self, status, content, head):
        self.send_response(status)
        for name, value in {"Content-Length": "0", **head}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    lm = tiny_model("llama")
    lm.model.save_pretrained(tmp_path / "small")
    lm.tokenizer.save_pretrained(tmp_path / "small")
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        server.asked, server.folder = [], tmp_path / "small"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", server.asked
        server.shutdown()


SCRIPT = """
import json, sys
from editing_core.errors import EditingError
from editing_core.models.language_model import LanguageModel
told = []
for name, revision in json.loads(sys.argv[1]):
    try:
        lm = LanguageModel.load(name, device="cpu", revision=revision)
        told.append([lm.name, lm.revision, lm.source])
    except EditingError as error:
        told.append(str(error))
print(json.dumps(told))
"""


def asked_of(endpoint, cache, *models, offline="0"):
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": offline, "HF_HUB_DISABLE_XET": "1"}
    own |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    given = [sys.executable, "-c", SCRIPT, json.dumps(models)]
    done = subprocess.run(given, env={**os.environ, **own}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_hub_says_why_not_and_the_commit_is_pinned(hub, tmp_path):
    endpoint, asked = hub
    gated, unknown, revision, small, pinned = asked_of(
        endpoint, tmp_path / "cache", (GATED, ""), (UNKNOWN, ""), (NO_REVISION, "v9"), (SMALL, ""), (SMALL, COMMIT)
    )
    assert gated == (
        f"The model '{GATED}' is gated: accept its licence on https://huggingface.co/{GATED}, log in with "
        "'hf auth login' or set HF_TOKEN, and load it again, or choose the bundled pocket-gpt2."
    )
    assert unknown.startswith(f"The model '{UNKNOWN}' is not on the hub under '{UNKNOWN}', or is private; check the")
    assert revision.startswith(f"The model '{NO_REVISION}' has no revision 'v9'; name a branch, tag or commit of https")
    assert small == pinned == [SMALL, COMMIT, SMALL]
    # The configuration is asked for by branch, all else from the commit that it came from.
    weights = [path for path in asked if path.endswith(".safetensors")]
    assert weights
    assert all(f"/resolve/{COMMIT}/" in path for path in weights)
    here, other = asked_of(endpoint, tmp_path / "cache", (SMALL, ""), ("some/other", ""), offline="1")
    assert here == small
    assert other.startswith("The model 'some/other' is not on this machine and the hub cannot be reached; check the")


def test_free_memory_is_what_the_system_says():
    assert free_on("cpu") == pytest.approx(psutil.virtual_memory().available, rel=0.3)


def test_a_benchmark_keeps_how_its_model_was_loaded():
    plain, packed = RunConfig(), RunConfig(quantised="nf4", revision="v2")
    assert not {"quantised", "revision"} & plain.to_json().keys()  # so that runs stored before have the same key
    assert RunConfig.of(packed.to_json()) == packed
    assert packed.key != plain.key
    assert packed.name.endswith("quantised nf4, revision v2")
    with pytest.raises(BadSetting, match=r"Unknown quantised 'int3'. .*Known: int8, nf4, none"):
        RunConfig.of({"quantised": "int3"}, "grid.toml")
