"""Texts of the collapse perplexity: the two forms of file that are read, and one sentence for every other."""

import json

import pytest

from editing_core.data import texts
from editing_core.data.texts import MAX_BYTES, MAX_TEXTS, read_texts
from editing_core.errors import BadRequest
from editing_core.evaluation.evaluator import bundled_texts
from editing_core.paths import assets


def written(folder, content, name="texts.json"):
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (["One text.", "Another text."], ("One text.", "Another text.")),
        ([{"Text": "One text."}, {"Text": "Another.", "Source": "x", "id": 2}], ("One text.", "Another.")),
        (["One text.", {"Text": "Another."}], ("One text.", "Another.")),
        (["  spaced, and\nof two lines \n"], ("  spaced, and\nof two lines \n",)),  # as they are: spaces are tokens
        (["Zoë liest."], ("Zoë liest.",)),
    ],
)
def test_reads_both_forms(tmp_path, content, found):
    assert read_texts(written(tmp_path, content)) == found


def test_reads_the_bundled_texts():
    assert read_texts(assets() / "benchmark" / "heldout.json") == bundled_texts()


def test_reads_as_many_as_are_allowed(tmp_path):
    assert len(read_texts(written(tmp_path, ["a text"] * MAX_TEXTS))) == MAX_TEXTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "texts.json is not a readable JSON file; give a JSON list of texts."),
        (b"", "texts.json is not a readable JSON file"),
        (b"{not json", "texts.json is not a readable JSON file"),
        (b"\xff\xfe\xfd", "texts.json is not a readable JSON file"),
        (b"Just a text.", "texts.json is not a readable JSON file"),
        ([], f"texts.json must be a JSON list of 1 to {MAX_TEXTS} texts; correct it."),
        ({"Text": "One text."}, "texts.json must be a JSON list"),
        ("One text.", "texts.json must be a JSON list"),
        (7, "texts.json must be a JSON list"),
        (["a text"] * (MAX_TEXTS + 1), f"texts.json must be a JSON list of 1 to {MAX_TEXTS} texts"),
        (["good", 7], "Row 2 of texts.json holds no text"),
        (["good", None], "Row 2 of texts.json holds no text"),
        (["good", ["nested"]], "Row 2 of texts.json holds no text"),
        (["good", "  \n"], "Row 2 of texts.json holds no text"),
        (
            [{"text": "small letter"}],
            'Row 1 of texts.json holds no text; give a text, or an object with a field "Text"',
        ),
        ([{"Text": 7}], "Row 1 of texts.json holds no text"),
        ([{"Text": ""}], "Row 1 of texts.json holds no text"),
    ],
)
def test_refusals(tmp_path, content, message):
    path = tmp_path / "texts.json" if content is None else written(tmp_path, content)
    with pytest.raises(BadRequest) as told:
        read_texts(path)
    assert str(told.value).startswith(message)
    assert "\n" not in str(told.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(BadRequest, match="is not a readable JSON file"):
        read_texts(tmp_path)


def test_a_file_that_is_too_large(tmp_path, monkeypatch):
    path = written(tmp_path, ["a text"])
    monkeypatch.setattr(texts, "MAX_BYTES", path.stat().st_size)
    assert read_texts(path) == ("a text",)
    monkeypatch.setattr(texts, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(BadRequest, match=r"texts\.json is larger than .* MB; choose fewer texts"):
        read_texts(path)
    assert MAX_BYTES == 4 * 2**20


def test_nesting_without_end(tmp_path):
    with pytest.raises(BadRequest, match="is not a readable JSON file"):
        read_texts(written(tmp_path, b"[" * 200_000))
