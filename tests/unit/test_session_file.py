"""A session file gives the same stack and edits again, and what is none is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from editing_core import session_file
from editing_core.errors import BadRequest
from editing_core.models.delta import Dense, LowRank, WeightDelta
from editing_core.session_file import FORMAT, load_session, save_session
from editing_core.stack import Stack, StackedEdit
from editing_core.types import EditRequest, Probe

FACT = EditRequest(
    "Apple", "{} was founded in", "Rome", "Cupertino", neighbors=(Probe("IBM was founded in", "Armonk", "IBM"),)
)


def low(seed):
    torch.manual_seed(seed)
    return WeightDelta(
        {"a.weight": LowRank(torch.randn(4, 2, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64))}
    )


@pytest.fixture
def session():
    dense = WeightDelta({"a.weight": Dense(torch.ones(4, 3)), "a.bias": Dense(torch.ones(4))})
    edits = {
        "one": StackedEdit("one", low(0), (FACT,), "pocket-gpt2", "abc", (), "MEMIT"),
        "two": StackedEdit("two", dense, (FACT,), "pocket-gpt2", "abc", ("one", "gone"), "Fine-tuning"),
    }
    return Stack().add("one").add("two").switch("one", False).note("two", "seen in class"), edits


def test_it_comes_back_with_new_ids(session, tmp_path):
    stack, edits = session
    save_session(tmp_path / "s.safetensors", stack, edits)
    found, again = load_session(tmp_path / "s.safetensors")
    assert [(e.on, e.note) for e in found.entries] == [(False, ""), (True, "seen in class")]
    assert not set(found.ids) & set(stack.ids)
    for old, new in zip(stack.ids, found.ids, strict=True):
        was, now = edits[old], again[new]
        assert (was.requests, was.model, was.revision, was.origin) == (
            now.requests,
            now.model,
            now.revision,
            now.origin,
        )
        for key, tensor in was.delta.tensors().items():
            assert torch.equal(tensor, now.delta.tensors()[key])
    assert again[found.ids[1]].made_on[0] == found.ids[0]


def test_an_edit_that_left_the_server_is_left_out(session, tmp_path):
    stack, edits = session
    save_session(tmp_path / "s.safetensors", stack, {"two": edits["two"]})
    assert len(load_session(tmp_path / "s.safetensors")[0].entries) == 1
    with pytest.raises(BadRequest, match="no edit to save"):
        save_session(tmp_path / "none.safetensors", stack, {})
    assert not (tmp_path / "none.safetensors").exists()


def rewritten(tmp_path, session, change, tensors=None):
    """A saved session with another header or other tensors."""
    from safetensors import safe_open

    stack, edits = session
    path = tmp_path / "s.safetensors"
    save_session(path, stack, edits)
    with safe_open(path, framework="pt") as file:
        kept, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    rows = json.loads(metadata["entries"])
    told = change(rows)
    save_file(
        tensors(kept) if tensors else kept,
        path,
        metadata={"format": FORMAT, "entries": told if isinstance(told, str) else json.dumps(rows)},
    )
    return path


CHANGES = {
    "no JSON": lambda _: "{",
    "no list": lambda _: "{}",
    "nested": lambda _: "[" * 100_000,
    "many": lambda rows: rows.extend(rows * 60),
    "twice the same id": lambda rows: rows[1].update(id=rows[0]["id"]),
    "no id": lambda rows: rows[0].pop("id"),
    "facts of text": lambda rows: rows[0].update(facts="a"),
    "a fact without its place": lambda rows: rows[0]["facts"][0].update(prompt="x"),
    "markup in a note": lambda rows: rows[0].update(note="<img src=x onerror=alert(1)>"),
    "markup in the origin": lambda rows: rows[0].update(origin="<b>x</b>"),
    "note of numbers": lambda rows: rows[0].update(note=3),
    "one entry too few": lambda rows: rows.pop(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_header_that_was_changed_is_refused(name, session, tmp_path):
    path = rewritten(tmp_path, session, CHANGES[name])
    with pytest.raises(BadRequest) as refused:
        load_session(path)
    assert "\n" not in str(refused.value)


TENSORS = {
    "not finite": lambda kept: {k: torch.full_like(t, float("nan")) for k, t in kept.items()},
    "of no entry": lambda kept: {**kept, "9|a|left": torch.ones(1, 1)},
    "without number": lambda kept: {**kept, "a|left": torch.ones(1, 1)},
    "a factor alone": lambda kept: {k: t for k, t in kept.items() if not k.endswith("right")},
    "three axes": lambda kept: {k: t[None] for k, t in kept.items()},
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_were_changed_are_refused(name, session, tmp_path):
    path = rewritten(tmp_path, session, lambda _: None, TENSORS[name])
    with pytest.raises(BadRequest):
        load_session(path)


def test_other_files_are_refused(tmp_path, monkeypatch):
    low(0).save(tmp_path / "edit.safetensors")
    with pytest.raises(BadRequest, match="no EditScope session"):
        load_session(tmp_path / "edit.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(BadRequest, match="damaged"):
        load_session(tmp_path / "text.safetensors")
    monkeypatch.setattr(session_file, "MOST_BYTES", 3)
    with pytest.raises(BadRequest, match="larger than"):
        load_session(tmp_path / "text.safetensors")
