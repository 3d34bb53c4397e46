"""`editscope export`, `editscope import` and `edit --save` in-process: what they write, print and refuse."""

import json

import pytest
import torch

from editing_core import cli, cli_export, cli_plan
from editing_core.data.table import plain
from editing_core.export import exporting
from editing_core.export.edit_file import read_edit, write_edit
from editing_core.export.importing import import_edit
from editing_core.export.origin import Origin
from editing_core.export.verify import Check
from editing_core.models.delta import Dense, WeightDelta
from editing_core.runs.folder import DONE, RunFolder
from editing_core.types import EditRequest
from tests.engine.exports import low_rank, shape_of

EDIT = ["edit", "--subject", "Fanny Davies", "--prompt", "{} plays the instrument called", "--new", "guitar"]
DOWN = "transformer.h.2.mlp.c_proj.weight"
GOOD = Check(1e-6, 10.0, 3, 20, 1.0, 1e-4, 5.0)
BAD = Check(0.5, 10.0, 3, 20, 1.0, 1e-4, 5.0)


@pytest.fixture(autouse=True)
def _loaded(pocket, monkeypatch):
    """The bundled model is loaded once, not once per command."""
    load = cli_plan.load_model
    monkeypatch.setattr(
        cli_plan, "load_model", lambda name, *more: pocket if name == pocket.name else load(name, *more)
    )


@pytest.fixture
def saved(pocket, tmp_path):
    """An edit file: one low-rank update and one whole."""
    other = "transformer.h.3.mlp.c_proj.weight"
    updates = {DOWN: low_rank(shape_of(pocket, DOWN), 2, size=0.02)}
    updates[other] = Dense(low_rank(shape_of(pocket, other), 3, seed=4, size=0.02).dense())
    fact = EditRequest("Fanny Davies", "{} plays the instrument called", "guitar", "piano")
    origin = Origin(pocket.name, pocket.revision, "memit", (fact,))
    write_edit(tmp_path / "edit.safetensors", WeightDelta(updates, origin.texts()))
    return tmp_path / "edit.safetensors"


def export(source, kind, out, *more):
    return cli.run(["export", "--edit", str(source), "--as", kind, "--out", str(out), *more])


def test_an_edit_is_saved_and_told(capsys, pocket, tmp_path):
    path = tmp_path / "mine.safetensors"
    assert cli.run([*EDIT, "--editor", "finetuning", "--iterations", "1", "--save", str(path)]) == 0
    origin = Origin.of(read_edit(path).provenance)
    assert (origin.model, origin.revision, origin.editor) == (pocket.name, pocket.revision, "finetuning")
    assert [r.target_new for r in origin.requests] == ["guitar"]
    capsys.readouterr()
    assert cli.run(["import", str(path)]) == 0
    out = capsys.readouterr().out
    assert "of pocket-gpt2 by finetuning" in out
    assert "Fanny Davies plays the instrument called" in out
    assert "relative norm" in out


def test_import_tells_forms_ranks_and_norms(capsys, saved):
    assert cli.run(["import", str(saved)]) == 0
    out = capsys.readouterr().out
    assert f"{DOWN}: 2 columns, rank 2, relative norm" in out
    assert "transformer.h.3.mlp.c_proj.weight: whole, rank" in out
    assert "piano -> guitar" in out


def test_import_refuses_with_one_sentence(capsys, tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    assert cli.run(["import", str(tmp_path / "adapter_model.bin")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_export_without_a_check(capsys, saved, tmp_path):
    assert export(saved, "merged", tmp_path / "merged", "--no-check") == 0
    assert f"Written to {tmp_path / 'merged'}." in capsys.readouterr().out
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_whole_weights_need_a_rank_and_what_is_lost_is_told(capsys, pocket, saved, tmp_path):
    assert export(saved, "adapter", tmp_path / "a", "--no-check") == 2
    assert "no product of two thin matrices" in capsys.readouterr().err
    assert export(saved, "adapter", tmp_path / "a", "--no-check", "--rank", "2") == 0
    assert "Compressed from rank 256 to 2 at most; of the squared norm was given up: 0." in capsys.readouterr().out
    assert {u.left.shape[1] for u in import_edit(pocket, tmp_path / "a").updates.values()} == {2}


def test_a_failing_check_is_an_error(capsys, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "verify", lambda *_: GOOD)
    assert export(saved, "edit", tmp_path / "new.safetensors") == 0
    assert GOOD.told() in capsys.readouterr().out
    monkeypatch.setattr(exporting, "verify", lambda *_: BAD)
    pushed = []
    monkeypatch.setattr(cli_export, "push", lambda *given: pushed.append(given))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert export(saved, "edit", tmp_path / "new.safetensors", "--push", "a/b") == 2
    assert capsys.readouterr().err == f"{BAD.told()}\n"
    assert pushed == []


@pytest.mark.parametrize("kind", ["adapter", "edit"])
def test_push_uploads_what_was_written_and_nothing_beside_it(capsys, saved, tmp_path, monkeypatch, kind):
    pushed = []

    def push(folder, repository, token, private):
        pushed.append((sorted(p.name for p in folder.iterdir()), repository, token, private))
        return "https://somewhere"

    monkeypatch.setattr(cli_export, "push", push)
    out = tmp_path / ("out.safetensors" if kind == "edit" else "out")
    flags = ("--no-check", "--rank", "1", "--push", "a/b")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert export(saved, kind, out, *flags) == 2
    assert "HF_TOKEN" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert export(saved, kind, out, *flags, "--public") == 0
    names = ["README.md", "out.safetensors"] if kind == "edit" else sorted(p.name for p in out.iterdir())
    assert pushed == [(names, "a/b", "hf_secret", False)]
    assert "hf_secret" not in "".join(capsys.readouterr())


def stored(root, pocket, **changes):
    """A run that is done, as far as an export looks at it."""
    fact = EditRequest("Fanny Davies", "{} plays the instrument called", "guitar", "piano")
    folder = RunFolder.create(root, {"dataset": "pocket-facts", "model": pocket.name, "editor": "rome"})
    (folder.path / "records.json").write_text(json.dumps([plain(fact)]), encoding="utf-8")
    WeightDelta({DOWN: low_rank(shape_of(pocket, DOWN), 1, size=0.02)}).save(folder.path / "delta.safetensors")
    folder.update(status=DONE, result={"revision": pocket.revision, "versions": {"torch": "2"}} | changes)
    return folder


@pytest.mark.parametrize("name", ["abcdefgh", "-bcdefgh"])
def test_a_stored_run_leaves_with_its_facts(capsys, pocket, tmp_path, monkeypatch, name):
    """Also one whose id begins like an option, as one in 64 does."""
    monkeypatch.setattr("editing_core.runs.folder.new_id", lambda: name)
    folder = stored(tmp_path / "runs", pocket)
    out = tmp_path / "a"
    arguments = ["export", f"--run={folder.id}", "--root", str(tmp_path / "runs"), "--as", "adapter", "--no-check"]
    assert cli.run([*arguments, "--out", str(out)]) == 0, capsys.readouterr().err
    found = import_edit(pocket, out)
    origin = Origin.of(found.provenance)
    assert (origin.editor, origin.versions, len(origin.requests)) == ("rome", {"torch": "2"}, 1)
    assert torch.equal(found.updates[DOWN].left, low_rank(shape_of(pocket, DOWN), 1, size=0.02).left)


def test_runs_without_an_edit_or_of_another_revision(capsys, pocket, tmp_path):
    root = tmp_path / "runs"
    other = stored(root, pocket, revision="0" * 12)
    bare = stored(root, pocket)
    (bare.path / "delta.safetensors").unlink()
    for name, words in ((other.id, "for revision"), (bare.id, "kept no edit"), ("nobody", "There is no run")):
        given = [
            "export",
            f"--run={name}",
            "--root",
            str(root),
            "--as",
            "edit",
            "--out",
            str(tmp_path / "e.safetensors"),
        ]
        assert cli.run(given) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("edit", "edit.bin", "ends in .safetensors"),
        ("adapter", "edit.safetensors", "is a file"),
        ("merged", ".", "already"),
    ],
)
def test_places_are_checked_before_anything_is_loaded(capsys, saved, monkeypatch, kind, name, words):
    monkeypatch.setattr(cli_plan, "load_model", lambda *_: pytest.fail("loaded"))
    assert export(saved, kind, saved.parent / name) == 2
    assert words in capsys.readouterr().err
