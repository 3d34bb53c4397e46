"""`editscope stats`: what it tells before, while and after it collects."""

import pytest

from editing_core import cli, cli_stats
from editing_core.statistics.corpus import Corpus
from editing_core.types import ignore
from tests.conftest import pocket_tokenizer, tiny_model


@pytest.fixture
def command(tmp_path, monkeypatch):
    """For a local model without bundled text, with a store of its own."""
    monkeypatch.setenv("EDITSCOPE_HOME", str(tmp_path / "home"))
    tiny_model("llama").model.save_pretrained(tmp_path / "mine")
    pocket_tokenizer().save_pretrained(tmp_path / "mine")
    return ["stats", "--model", str(tmp_path / "mine"), "--editor", "memit", "--set", "layers=0,1"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(Corpus.bundled("pocket-gpt2").documents[:40]))
    return path


def test_an_estimate_comes_before(command, text, capsys):
    assert cli.run([*command, "--collect", str(text)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Collecting layers [0, 1]: about 0 s for 40 documents with about ")
    assert "on disk" in out.splitlines()[0]
    assert "of memory" in out.splitlines()[0]
    assert "mine layer 1: " in out
    assert "From a small sample" not in out


def test_a_small_sample_is_called_one(command, text, capsys):
    assert cli.run([*command, "--collect", str(text), "--documents", "3"]) == 0
    sample = capsys.readouterr().out
    assert "From a small sample: " in sample
    assert cli.run(command) == 0  # it is the one in use
    assert capsys.readouterr().out.splitlines() == sample.splitlines()[1:]
    assert cli.run([*command, "--collect", str(text)]) == 0
    assert "From a small sample" not in capsys.readouterr().out
    assert cli.run([*command, "--collect"]) == 0
    assert "Collecting" not in capsys.readouterr().out


def test_more_layers_of_the_same_text(command, text, capsys):
    assert cli.run([*command, "--collect", str(text)]) == 0
    assert cli.run([*command, "--set", "layers=0,1,2", "--collect"]) == 0
    assert "Collecting layers [0, 1, 2]" in capsys.readouterr().out
    text.unlink()
    assert cli.run([*command, "--set", "layers=0,1,2"]) == 0
    assert "not collected" not in capsys.readouterr().out


def test_an_interrupted_collection_goes_on(command, text, capsys, monkeypatch):
    def stop(_step):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_stats, "progress", stop)
    assert cli.run([*command, "--collect", str(text)]) == 130
    assert cli.run(command) == 0
    assert "no statistics" in capsys.readouterr().out  # what was not finished is not in use
    monkeypatch.setattr(cli_stats, "progress", ignore)
    assert cli.run([*command, "--collect", str(text)]) == 0
    assert "tokens, are done already." in capsys.readouterr().out


def test_another_text_for_a_model_that_has_one(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("EDITSCOPE_HOME", str(tmp_path / "home"))
    assert cli.run(["stats", "--collect", "--documents", "5", "--set", "layers=0"]) == 0
    assert "Runs of pocket-gpt2 go on with the statistics of the text that comes with it." in capsys.readouterr().out
    assert cli.run(["stats", "--set", "layers=0"]) == 0
    assert capsys.readouterr().out == "pocket-gpt2 layer 0: not collected\n"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--documents", "5"], "--documents 5 says from how many documents to collect, at least 1; give it with"),
        (["--collect", "--documents", "0"], "--documents 0 says from how many documents"),
        (["--collect", "hub:some/texts"], "The data set some/texts could not be read from the hub"),
    ],
)
def test_refusals(more, sentence, capsys):
    assert cli.run(["stats", *more]) == 2
    err = capsys.readouterr().err
    assert err.startswith(sentence)
    assert err.count("\n") == 1
