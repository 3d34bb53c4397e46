"""Exports: what leaves does what the applied edit does, the model stays as it is, and a bad export is told."""

import ast
import json
import shutil
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from editing_core.data.table import edit_of
from editing_core.errors import BadRequest, Cancelled
from editing_core.export import exporting, folders, hub, merged, reload, verify
from editing_core.export.adapter import write_adapter
from editing_core.export.card import card
from editing_core.export.compress import compressed
from editing_core.export.edit_file import read_edit, write_edit
from editing_core.export.merged import write_merged
from editing_core.export.origin import Origin
from editing_core.models.delta import LowRank, WeightDelta
from editing_core.models.language_model import LanguageModel
from tests.conftest import bit_equal, left_alone, snapshot, tiny_model
from tests.engine.exports import (
    IDS,
    applied,
    assert_same,
    low_rank,
    places,
    random_edit,
    reloaded,
    shape_of,
    whole_edit,
)

FACT = {"subject": "Mary *Walker*", "prompt": "{} was born in", "target_new": "London", "target_true": "Paris"}


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """A function from family to its tiny model, which has a folder of its own as a loaded one has."""

    @cache
    def make(family):
        lm = tiny_model(family)
        folder = tmp_path_factory.mktemp("base") / f"tiny-{family}"
        lm.model.save_pretrained(folder)
        lm.source = str(folder)
        return lm

    return make


@pytest.fixture(params=["gpt2", "gptj", "llama", "qwen3"])
def lm(request, placed):
    with left_alone(placed(request.param)) as model:
        yield model


@pytest.fixture
def gpt2(placed):
    with left_alone(placed("gpt2")) as model:
        yield model


def written(lm, delta, kind, folder):
    path = folder / ("edit.safetensors" if kind == "edit" else kind)
    assert exporting.export(lm, delta, kind, path, check=False) is None
    return path


@pytest.mark.parametrize("kind", ["adapter", "merged", "edit"])
def test_an_export_does_what_the_edit_does(lm, kind, tmp_path):
    delta = random_edit(lm)
    path = written(lm, delta, kind, tmp_path)
    assert_same(reloaded(lm, path, kind), applied(lm, delta), reload.logits(lm.model, IDS, "cpu"))


@pytest.mark.parametrize("kind", ["merged", "edit"])
def test_whole_weights_and_vectors_leave_too(lm, kind, tmp_path):
    delta = whole_edit(lm)
    path = written(lm, delta, kind, tmp_path)
    assert_same(reloaded(lm, path, kind), applied(lm, delta), reload.logits(lm.model, IDS, "cpu"))


def test_a_whole_matrix_leaves_as_an_adapter_once_it_is_compressed(gpt2, tmp_path):
    name = places(gpt2)[0]
    whole = WeightDelta({name: whole_edit(gpt2).updates[name]})
    with pytest.raises(BadRequest, match="no product of two thin matrices"):
        write_adapter(gpt2, whole, tmp_path / "none")
    small = compressed(whole, energy=1e-9)
    assert small.parts[0].after == 3
    path = written(gpt2, small.delta, "adapter", tmp_path)
    assert_same(reloaded(gpt2, path, "adapter"), applied(gpt2, whole), reload.logits(gpt2.model, IDS, "cpu"))
    assert "Compressed from rank 32 to 3" in (path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gptj"])
def test_embeddings_shared_with_the_output_or_not(placed, family, tmp_path):
    """An adapter of the embeddings alone would leave a tied output as it was."""
    lm = placed(family)
    name = next(n for n, p in lm.model.named_parameters() if p is lm.model.get_input_embeddings().weight)
    delta = WeightDelta({name: low_rank(shape_of(lm, name), 2, size=0.05)})
    path = written(lm, delta, "adapter", tmp_path)
    tied = lm.model.get_output_embeddings().weight is lm.model.get_input_embeddings().weight
    assert tied == (family != "gptj")
    assert len(json.loads((path / "adapter_config.json").read_text())["target_modules"]) == 1 + tied
    assert_same(reloaded(lm, path, "adapter"), applied(lm, delta), reload.logits(lm.model, IDS, "cpu"))


def test_columns_of_iterations_and_empty_updates(gpt2, tmp_path):
    """Factors side by side, more of them than the matrix has rows, and one update that is nothing."""
    first, second = places(gpt2)
    updates = {first: low_rank(shape_of(gpt2, first), 60, size=0.05)}
    rows, columns = shape_of(gpt2, second)
    updates[second] = LowRank(torch.zeros(rows, 0), torch.zeros(0, columns))
    delta = WeightDelta(updates)
    path = written(gpt2, delta, "adapter", tmp_path)
    assert json.loads((path / "adapter_config.json").read_text())["r"] == 60
    assert_same(reloaded(gpt2, path, "adapter"), applied(gpt2, delta), reload.logits(gpt2.model, IDS, "cpu"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, tmp_path):
    """A merged model and an edit file have the very weights; an adapter stays within the stated bound."""
    tiny = tiny_model("llama", dtype)
    tiny.model.save_pretrained(tmp_path / "base")
    # Loaded, because loading keeps the frequencies of positions in float32, and a cast of the whole model does not.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype)
    lm = LanguageModel(model, tiny.tokenizer, tiny.name, source=str(tmp_path / "base"))
    delta = random_edit(lm)
    here, plain = applied(lm, delta), reload.logits(lm.model, IDS, "cpu")
    for kind in ("merged", "edit", "adapter"):
        found = reloaded(lm, written(lm, delta, kind, tmp_path), kind)
        scale = max(float(t.abs().max()) for t in here.values())
        largest = max(float((found[n] - here[n]).abs().max()) for n in here)
        assert largest <= (verify.bound(dtype, scale) if kind == "adapter" else 0)
        assert max(float((plain[n] - here[n]).abs().max()) for n in here) > 2 * verify.bound(dtype, scale)


def test_a_merged_model_is_whole(gpt2, tmp_path):
    config = dict(vars(gpt2.model.config))
    delta = random_edit(gpt2)
    path = written(gpt2, delta, "merged", tmp_path)
    assert dict(vars(gpt2.model.config)) == config
    with delta.applied(gpt2):
        saved, edited = load_file(path / "model.safetensors"), snapshot(gpt2.model)
    assert all(torch.equal(saved[name], edited[name]) for name in saved)
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer("The river runs")["input_ids"] == gpt2.tokenizer("The river runs")["input_ids"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_merge_that_fails_leaves_nothing(gpt2, tmp_path, monkeypatch, error):
    def fail(_folder):
        raise error

    monkeypatch.setattr(type(gpt2.model), "save_pretrained", lambda _self, folder: fail(folder))
    with pytest.raises(BadRequest if isinstance(error, OSError) else KeyboardInterrupt):
        write_merged(gpt2, random_edit(gpt2), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_merge_needs_room_and_an_unedited_model(gpt2, tmp_path, monkeypatch):
    delta = random_edit(gpt2)
    with delta.applied(gpt2), pytest.raises(BadRequest, match="carries another edit"):
        write_merged(gpt2, delta, tmp_path / "out")
    monkeypatch.setattr(merged.shutil, "disk_usage", lambda _place: SimpleNamespace(free=1000))
    with pytest.raises(BadRequest, match=r"takes .* MB, .* has .* free; name a folder with room"):
        write_merged(gpt2, delta, tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


def test_folders_are_replaced_only_where_they_hold_an_earlier_adapter(gpt2, tmp_path):
    path = written(gpt2, random_edit(gpt2, rank=1), "adapter", tmp_path)
    write_adapter(gpt2, random_edit(gpt2, rank=3), path)
    assert json.loads((path / "adapter_config.json").read_text())["r"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    (path / "diary.txt").write_text("mine", encoding="utf-8")
    for kind in ("adapter", "merged"):
        with pytest.raises(BadRequest, match=r"holds .* already; name another folder"):
            exporting.export(gpt2, random_edit(gpt2), kind, path, check=False)
    assert (path / "diary.txt").read_text(encoding="utf-8") == "mine"


def test_a_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("old", encoding="utf-8")
    rename = folders.os.rename

    def fail(source, target):
        if str(source).endswith(".part"):
            raise OSError(5, "broken")
        rename(source, target)

    monkeypatch.setattr(folders.os, "rename", fail)
    with pytest.raises(BadRequest, match="broken"), folders.whole_folder(tmp_path / "out", frozenset({"README.md"})):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == "old"


def test_an_edit_file_keeps_numbers_and_origin(gpt2, tmp_path):
    origin = Origin("tiny-gpt2", "local", "memit", (edit_of(FACT, 0, "here"),), {"torch": "2"}, "2026-01-01")
    delta = WeightDelta({**whole_edit(gpt2).updates, **random_edit(gpt2, dtype=torch.float64).updates}, origin.texts())
    write_edit(tmp_path / "new" / "edit.safetensors", delta)
    found = read_edit(tmp_path / "new" / "edit.safetensors")
    assert Origin.of(found.provenance) == origin
    assert found.updates.keys() == delta.updates.keys()
    parts = delta.tensors()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in found.tensors().items())
    with pytest.raises(BadRequest, match=r"ends in \.safetensors"):
        write_edit(tmp_path / "edit.bin", delta)
    with pytest.raises(BadRequest, match="changes nothing"):
        write_edit(tmp_path / "none.safetensors", WeightDelta())


def test_the_script_of_the_check_knows_nothing_of_editscope():
    tree = ast.parse(Path(reload.__file__).read_text(encoding="utf-8"))
    named = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    named |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    tops = {name.split(".")[0] for name in named}
    assert tops - sys.stdlib_module_names == {"torch", "transformers", "peft", "safetensors"}


def pocket_edit(pocket):
    """Large enough to be seen, on several layers."""
    names = [f"{pocket.architecture.down(layer)}.weight" for layer in (1, 3)]
    updates = {name: low_rank(shape_of(pocket, name), 2, seed=i, size=0.02) for i, name in enumerate(names)}
    facts = (edit_of({**FACT, "neighbors": ["Peter Smith was born in=Paris"]}, 0, "here"),)
    return WeightDelta(updates, Origin(editor="rome", requests=facts).texts())


def test_the_check_in_a_process_of_its_own(pocket, tmp_path):
    """It passes, it fails on an adapter somebody changed, and the README.md tells what it found."""
    steps = []
    delta, path = pocket_edit(pocket), tmp_path / "adapter"
    with left_alone(pocket):
        check = exporting.export(pocket, delta, "adapter", path, watch=steps.append)
    assert check.ok, check.told()
    assert check.largest <= 1e-5 * check.scale < check.change
    assert (check.rows, check.bound) == (3, 1e-5 * max(1, check.scale))
    assert {step.stage for step in steps} == {"check"}
    text = (path / "README.md").read_text(encoding="utf-8")
    assert check.told() in text
    assert r"Mary \*Walker\* was born in **London** (before: Paris)" in text
    assert str(Path(pocket.source).parent) not in text + (path / "adapter_config.json").read_text(encoding="utf-8")

    tensors = load_file(path / "adapter_model.safetensors")
    first = next(name for name in tensors if "lora_A" in name)
    tensors[first] = tensors[first] * 1.01
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    failed = verify.verify(pocket, delta, path, "adapter")
    assert not failed.ok
    assert failed.bound < failed.largest < failed.change
    assert failed.told().startswith("The check failed: ")
    assert failed.told() in card(pocket, delta, "adapter", failed)


def test_an_export_that_cannot_be_loaded_fails_the_check(pocket, tmp_path):
    path = tmp_path / "edit.safetensors"
    exporting.export(pocket, pocket_edit(pocket), "edit", path, check=False)
    path.write_bytes(path.read_bytes()[:-100])
    check = verify.verify(pocket, pocket_edit(pocket), path, "edit")
    assert not check.ok
    assert "could not be loaded (" in check.told()


def test_a_cancelled_check_leaves_no_process(pocket, tmp_path):
    def cancel(_step):
        raise Cancelled

    path = tmp_path / "adapter"
    with pytest.raises(Cancelled):
        exporting.export(pocket, pocket_edit(pocket), "adapter", path, watch=cancel)
    assert psutil.Process().children() == []
    assert "not loaded again" in (path / "README.md").read_text(encoding="utf-8")


def test_a_check_that_takes_too_long_is_ended(pocket, tmp_path):
    check = verify.verify(pocket, pocket_edit(pocket), tmp_path, "adapter", limit=0.01)
    assert not check.ok
    assert "took longer than" in check.told()
    assert psutil.Process().children() == []


@pytest.mark.parametrize(
    "found",
    [{}, {"0": torch.zeros(2, 3)}, {"0": torch.zeros(1, 3), "1": torch.tensor([[0.0, float("nan"), 0.0]])}],
)
def test_missing_or_undefined_logits_are_infinitely_far(found):
    assert verify._largest([torch.zeros(1, 3), torch.zeros(1, 3)], found) == float("inf")


def test_a_check_says_when_it_cannot_tell(gpt2, tmp_path):
    assert "tells little" in verify.Check(0.0, 10.0, 1, 5, 1.0, 1e-4, 1e-5).told()
    assert "tells little" not in verify.Check(0.0, 10.0, 1, 5, 1.0, 1e-4, 1.0).told()
    unplaced = LanguageModel(gpt2.model, gpt2.tokenizer, "made by hand")
    with pytest.raises(BadRequest, match="cannot be checked"):
        exporting.export(unplaced, random_edit(gpt2), "adapter", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_the_card_names_a_published_model_with_its_revision(gpt2):
    lm = LanguageModel(gpt2.model, gpt2.tokenizer, "gpt2-xl", "0" * 40)
    text = card(lm, random_edit(lm), "adapter")
    assert text.startswith("---\nbase_model: openai-community/gpt2-xl\nlibrary_name: peft\n")
    assert f'from_pretrained("openai-community/gpt2-xl", revision="{"0" * 40}", dtype="float32")' in text
    assert "It was not loaded again" in text
    for kind in ("adapter", "merged", "edit"):
        for model in (lm, gpt2):
            text = card(model, random_edit(lm), kind)
            ast.parse(text.partition("```python\n")[2].partition("```")[0])
    assert "base_model" not in card(gpt2, random_edit(gpt2), "merged")


class FakeHub:
    """What `push` does to the hub; `fails` is raised by the upload."""

    made: ClassVar = []
    fails: Exception | None = None

    def __init__(self, token):
        self.token = token

    def create_repo(self, repository, **how):
        self.made.append((self.token, repository, how["private"]))

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, **_how):
        if self.fails:
            raise self.fails
        names = {p.name for p in folder_path.iterdir() if any(p.match(pattern) for pattern in allow_patterns)}
        self.made.append((repo_id, names))


@pytest.fixture
def fake_hub(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "made", [])
    return FakeHub


def test_push(gpt2, tmp_path, fake_hub):
    path = written(gpt2, random_edit(gpt2), "adapter", tmp_path)
    (path / "secret.env").write_text("no export", encoding="utf-8")
    assert hub.push(path, "someone/an-edit", " hf_secret\n") == "https://huggingface.co/someone/an-edit"
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert fake_hub.made == [("hf_secret", "someone/an-edit", True), ("someone/an-edit", names)]


@pytest.mark.parametrize(
    "name", ["an-edit", "a/b/c", "../up", "some one/x", "a/..", "a/b--c", "a/b.git", "/a", "a/", "x/" + "y" * 96]
)
def test_names_that_are_none_never_reach_the_hub(tmp_path, fake_hub, name):
    with pytest.raises(BadRequest, match="no name of a repository"):
        hub.push(tmp_path, name, "hf_secret")
    assert fake_hub.made == []


@pytest.mark.parametrize(
    ("status", "words"), [(401, "not valid"), (403, "no right"), (418, "status 418"), (None, "Boom")]
)
@pytest.mark.usefixtures("fake_hub")
def test_errors_of_the_hub_are_one_sentence_without_the_token(tmp_path, monkeypatch, caplog, status, words):
    class Boom(Exception):
        response = SimpleNamespace(status_code=status)

    monkeypatch.setattr(FakeHub, "fails", Boom("Authorization: Bearer hf_secret"))
    (tmp_path / "README.md").write_text("x", encoding="utf-8")
    with pytest.raises(BadRequest, match=words) as caught:
        hub.push(tmp_path, "a/b", "hf_secret")
    assert "hf_secret" not in str(caught.value) + caplog.text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_what_is_no_export_is_not_uploaded(tmp_path, fake_hub):
    with pytest.raises(BadRequest, match="no folder"):
        hub.push(tmp_path / "none", "a/b", "hf_secret")
    with pytest.raises(BadRequest, match="No token"):
        hub.push(tmp_path, "a/b", "  ")
    (tmp_path / "README.md").symlink_to("/etc/hostname")
    with pytest.raises(BadRequest, match="is a link"):
        hub.push(tmp_path, "a/b", "hf_secret")
    assert fake_hub.made == []


def test_the_model_is_as_it_was_after_everything(tmp_path):
    lm = tiny_model("gptj")
    before = snapshot(lm.model)
    for kind in ("adapter", "merged", "edit"):
        written(lm, random_edit(lm), kind, tmp_path)
    assert bit_equal(lm.model, before)
    shutil.rmtree(tmp_path / "merged")
    assert {p.name for p in tmp_path.iterdir()} == {"adapter", "edit.safetensors"}
