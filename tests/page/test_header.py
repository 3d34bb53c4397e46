"""The line under the model picker, for models that are not loaded."""

import gradio as gr
import pytest

from components import header
from editing_core import preflight
from editing_core.errors import UnknownName
from editing_core.models.host import ModelHost
from editing_core.registry import EDITORS
from editing_core.statistics.covariance import CovarianceStore


@pytest.mark.parametrize("editor", EDITORS)
def test_it_tells_what_the_editor_would_take_and_what_is_free(editor, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "free_here", lambda _device: 3 * 10**9)
    told = header.state_html(ModelHost(device="cpu"), CovarianceStore(tmp_path), "pocket-gpt2", editor)
    assert f"not loaded; {preflight.Undertaking('pocket-gpt2', editor).need()}; 3 GB are free." in told
    assert ("statistics" in told) == (editor in ("memit", "pmet", "alphaedit"))  # where they take a share worth naming


def test_of_a_model_that_is_not_here_it_tells_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "_known", lambda _source: None)
    told = header.state_html(ModelHost(device="cpu", dtype="bfloat16"), CovarianceStore(tmp_path), "gpt-j-6b", "memit")
    assert "not loaded; needs about 12 GB for its weights; " in told


def test_a_page_of_ones_own_takes_hub_ids_and_a_public_one_what_is_on_offer():
    with gr.Blocks():
        own, public = header.build(), header.build(200e6)
    assert own.model.allow_custom_value
    assert own.check("EleutherAI/pythia-70m") == "EleutherAI/pythia-70m"
    assert own.check("gpt-j-6b") == "gpt-j-6b"
    assert not public.model.allow_custom_value
    assert public.check("gpt2") == "gpt2"
    for name in ("EleutherAI/pythia-70m", "gpt-j-6b"):
        with pytest.raises(UnknownName, match="Unknown model"):
            public.check(name)


@pytest.mark.parametrize("name", ["/etc/passwd", "../models/x", "a/../b", "a/b/c", "", None, "file:///x/y", "~/x"])
def test_what_is_typed_is_never_a_path(name):
    with gr.Blocks():
        own = header.build()
    with pytest.raises(UnknownName):
        own.check(name)


def test_of_a_model_by_its_hub_id_it_tells_that_presets_are_suggestions(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "_known", lambda _source: None)
    told = header.state_html(ModelHost(device="cpu"), CovarianceStore(tmp_path), "owner/some-model", "memit")
    assert "not loaded" in told
    assert "presets are suggestions" in told
