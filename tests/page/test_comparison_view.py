"""Editors side by side: the tables as HTML, and the choice of published figures in the page."""

import json
import re
from html.parser import HTMLParser

import pytest
from gradio_client import Client

from components.comparison_view import CHOICES, NOT_COMPARABLE, NOTHING, comparison_html, finding, size
from editing_core.evaluation.comparison import MODIFY, PRESERVE, UNEDITED, Comparison, Kind, Row

KINDS = {"subject replaced": Kind(50.0, 8.0, 4), "one hop": Kind(0.0, 0.0, 2)}


def row(editor, group, **more):
    return Row(editor, editor.upper(), "small", group, 4, 90.0, 80.0, 70.0, KINDS, machine="two <cores>", **more)


BEFORE = row(UNEDITED, "", controls={"subject replaced": Kind(90.0, 3.0, 4), "one hop": Kind(1.0, 1.0, 3)}, peak=2e9)
FOUND = {4: Comparison((BEFORE, row("memit", MODIFY, seconds=1.25, kept=4200.0, peak=1e9), row("swea", PRESERVE)))}


class Tables(HTMLParser):
    """Per table its rows, each a list of (tag, attributes, text), and its caption."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.captions, self.open = [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.rows.append([])
        if tag == "tr":
            self.rows[-1].append([])
        if tag in ("td", "th"):
            self.rows[-1][-1].append([tag, dict(attrs), ""])
        self.open = tag

    def handle_endtag(self, tag):
        self.open = "th" if tag == "a" else None

    def handle_data(self, data):
        if self.open == "caption":
            self.captions.append(data)
        elif self.open in ("td", "th", "a"):
            self.rows[-1][-1][-1][2] += data


def wide(cells):
    return sum(int(attributes.get("colspan", 1)) for _, attributes, _ in cells)


@pytest.mark.parametrize("source", CHOICES)
def test_every_row_is_as_wide_as_the_head_and_every_head_says_what_it_heads(source):
    tables = Tables(comparison_html(source, FOUND))
    assert len(tables.rows) == len(tables.captions) == 2
    for rows in tables.rows:
        assert {wide(cells) for cells in rows if cells[0][1].get("rowspan") is None} <= {
            wide(rows[0]),
            wide(rows[0]) - 1,
        }
        for cells in rows:
            assert cells[0][0] == "th"
            assert all("scope" in attributes for tag, attributes, _ in cells if tag == "th")


def test_ours_and_the_surveys_figures_stand_in_one_row():
    (rows, kinds) = Tables(comparison_html("ZsRE, GPT-J", FOUND)).rows
    named = {cells[0][2]: [text for _, _, text in cells[1:]] for cells in rows[2:]}
    assert named["MEMIT"] == [
        "90.0",
        "80.0",
        "70.0",
        "50.0",
        "1.25",
        "4.2 kB",
        "99.2",
        "87.2",
        "100.0",
        "52.7",
        "14.56",
    ]
    assert named["SWEA"][-5:] == ["-"] * 5
    assert named["SERAC"] == ["not here", "90.2", "90.0", "99.9", "5.5", "0.65"]
    assert [*named].index("Preserve parameters") < [*named].index("SWEA") < [*named].index("Modify parameters")
    by_kind = {cells[0][2]: [text for _, _, text in cells[1:]] for cells in kinds}
    assert by_kind["UNEDITED, true objects"] == ["90.0 (4)", "1.0 (3)", "-"]
    assert by_kind["MEMIT"] == ["50.0 (4)", "0.0 (2)", "1.0 GB"]


def test_what_cannot_be_compared_and_what_the_control_says_is_told():
    html = comparison_html("CounterFact, T5-XL", FOUND)
    assert NOT_COMPARABLE in html
    assert "two &lt;cores&gt;" in html
    assert "has only subject replaced;" in finding(FOUND[4])
    assert "one hop it can hardly answer" in finding(FOUND[4])
    nothing = Comparison((row(UNEDITED, "", controls=KINDS), row("memit", MODIFY)))
    assert "portability says nothing" in finding(nothing)
    assert "open" in finding(Comparison((row("memit", MODIFY),)))


def test_without_a_measured_comparison_the_survey_stands_alone():
    html = comparison_html("ZsRE, T5-XL", {})
    assert NOTHING in html
    assert html.count("not here") == 9


def test_sizes_are_told_with_two_digits():
    assert [size(n) for n in (12, 4_200, 42_000, 1_500_000, 2e9)] == ["12 B", "4.2 kB", "42 kB", "1.5 MB", "2.0 GB"]


def test_another_choice_brings_other_figures(tab, page):
    client = Client(page.local_url, verbose=False)
    for source in CHOICES:
        assert comparison_html(source) == tab.on_comparison(source)[tab.comparison.table]
        told = client.predict(source, api_name="/editors_side_by_side")
        assert re.sub(r"\s", "", source) in re.sub(r"\s|</?a[^>]*>", "", json.dumps(told))


@pytest.mark.browser
def test_the_choice_in_the_page(opening, page):
    sheet = opening(page.local_url)
    sheet.get_by_text("Editors side by side", exact=True).first.click()
    table = sheet.locator("#comparison-table")
    table.get_by_text("Survey").first.wait_for()
    assert "ZsRE, GPT-J" in table.inner_text()
    sheet.locator("#comparison-source label").last.click()
    table.get_by_text("CounterFact, T5-XL").first.wait_for()
    assert table.locator("table").first.evaluate("t => t.caption !== null")
