"""The Edit tab's box for generated texts: what it adds to the table, and that nothing is generated without it."""

import json
import re

import pandas as pd
import pytest
from gradio_client import Client

from components import result_html, settings_form
from editing_core.evaluation.metrics import CARDS

COLUMNS = ("fluency", "consistency")


@pytest.fixture(scope="module")
def client(page):
    return Client(page.local_url, verbose=False)


@pytest.fixture
def edited(client, saying, output_of, tab, parameters):
    """A function that edits with the box as told; gives the table as HTML and the kept run."""

    def run(box, **fact):
        asked = {**saying(**fact), parameters[tab.settings.generate._id]: box}
        done = client.predict(**asked, api_name="/edit")
        assert "Done in" in output_of(done, tab.progress.line)
        outputs = client.predict(api_name="/shown")
        with open(output_of(outputs, tab.view.whole, "shown"), encoding="utf-8") as file:
            return output_of(outputs, tab.view.table, "shown"), json.load(file)

    return run


def cells(table, column):
    """The texts of a column of the iteration table."""
    head = [re.sub("<[^>]*>", "", name) for name in re.findall(r"<th[^>]*>(.*?)</th>", table)]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", table)]
    return [row[head.index(column)] for row in rows if row]


def test_the_box_adds_both_columns_with_their_definitions(edited):
    table, run = edited(True)
    for column in COLUMNS:
        assert result_html.escape(CARDS[column].definition) in table
        shown = [result_html.cell(column, row[column]) for row in run["iterations"]]
        assert cells(table, column) == shown
        assert all(re.search(r"\d", text) for text in shown)


def test_a_fact_without_reference_texts_shows_a_dash(edited):
    table, run = edited(True, new="Nowhere")
    assert cells(table, "consistency") == ["-", "-"]
    assert all(re.search(r"\d", text) for text in cells(table, "fluency"))
    assert any("no reference texts" in note for note in run["notes"])


def test_without_the_box_nothing_is_generated(edited):
    table, run = edited(False)
    assert "fluency" not in table
    assert run["generate"] is False


def test_the_box_is_off_at_first_and_says_what_it_asks_for(tab):
    box = tab.settings.generate
    assert box.value is False
    assert "fluency and consistency" in box.label
    assert settings_form.read_references({box: False}, tab.settings) is None
    assert settings_form.read_references({box: True}, tab.settings).texts["P19", "Boston"]


def test_rows_that_were_not_measured_show_a_dash():
    assert result_html.cell("fluency", float("nan")) == result_html.cell("consistency", None) == "-"
    assert result_html.cell("specificity_accuracy", pd.NA) == ""
    assert result_html.cell("fluency", 512.3) == "512"
    assert result_html.cell("consistency", 12.34) == "12.3 %"
