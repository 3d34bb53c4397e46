"""What an edit did at its prompts, under the charts: a table for every kind of editor, nothing for whole layers."""

import re

import pytest
from gradio_client import Client

from components.result_html import findings_html
from editing_core.models.edit import Findings

TOLD = {
    "ike": ("What stands before every prompt", "new fact"),
    "kn": ("Rewritten neurons", "adds most"),
    "t-patcher": ("Neurons", "adds most"),
    "grace": ("Codebook", "radius"),
    "swea": ("Altered subjects", "suppressed"),
}
LATER = [pytest.param(name, marks=pytest.mark.slow) for name in ("ike", "t-patcher", "calinet", "swea")]


@pytest.fixture(scope="module")
def client(page):
    return Client(page.local_url, verbose=False)


@pytest.mark.parametrize("editor", ["kn", "grace", "rome", *LATER])
def test_every_kind_of_edit_shows_what_it_did(client, tab, saying, output_of, editor):
    client.predict(**saying(editor=editor), api_name="/edit")
    shown = output_of(client.predict(api_name="/shown"), tab.view.findings, "shown")
    if editor == "rome":
        assert shown == ""
        return
    title, column = TOLD.get(editor, TOLD["t-patcher"])
    assert f"es-heading'>{title}<" in shown
    assert column in re.sub(r"<[^>]+>", " ", shown)
    assert "Edward Matthew Ward" in shown


def test_what_is_shown_is_escaped_and_empty_findings_are_not_shown():
    found = Findings("A <title>", "said & done", ("prompt", "how far"), (("<b>who</b>", 0.25), ("none", 3)))
    shown = findings_html(found)
    assert "A &lt;title&gt;" in shown
    assert "said &amp; done" in shown
    assert "<td>&lt;b&gt;who&lt;/b&gt;</td><td>0.25</td>" in shown
    assert findings_html(None) == findings_html(Findings("", "")) == ""
