"""The line under the model picker, for models that are not loaded."""

import pytest

from components import header
from editing_core import preflight
from editing_core.models.host import ModelHost
from editing_core.registry import EDITORS
from editing_core.statistics.covariance import CovarianceStore


@pytest.mark.parametrize("editor", EDITORS)
def test_it_tells_what_the_editor_would_take_and_what_is_free(editor, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "free_here", lambda _device: 3 * 10**9)
    told = header.state_html(ModelHost(device="cpu"), CovarianceStore(tmp_path), "pocket-gpt2", editor)
    assert f"not loaded; {preflight.need('pocket-gpt2', editor)}; 3 GB are free." in told
    assert ("statistics" in told) == (editor in ("memit", "pmet", "alphaedit"))  # where they take a share worth naming


def test_of_a_model_that_is_not_here_it_tells_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "_known", lambda _source: (None, 0))
    told = header.state_html(ModelHost(device="cpu", dtype="bfloat16"), CovarianceStore(tmp_path), "gpt-j-6b", "memit")
    assert "not loaded; needs about 12 GB for its weights; " in told
