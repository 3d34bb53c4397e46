"""Info marks: every chart and setting of the page has its line, and every line an element."""

import json
import re

import gradio as gr
import pytest

import app
from components.definitions import SAME, SHARED, WIDGETS, definitions, head, scrolling
from editing_core.chart_cards import CHARTS
from editing_core.evaluation.metrics import CARDS

TYPED = (gr.Textbox, gr.Number, gr.Slider, gr.Dropdown, gr.Radio, gr.Checkbox, gr.CheckboxGroup, gr.File)


@pytest.fixture(scope="module")
def blocks():
    return list(app.build().blocks.values())


def test_every_line_is_about_an_element_of_the_page(blocks):
    ids = {block.elem_id for block in blocks if getattr(block, "elem_id", None)}
    assert not set(definitions()) - ids


def test_every_chart_has_its_card(blocks):
    plots = {block.elem_id for block in blocks if isinstance(block, gr.Plot)}
    assert None not in plots
    assert not plots - set(definitions())
    assert len(plots) == len(CHARTS)


def test_every_field_says_what_it_does(blocks):
    told = definitions()
    fields = [block for block in blocks if isinstance(block, TYPED) and block.show_label and block.label]
    assert [f.label for f in fields if not getattr(f, "info", None) and f.elem_id not in told] == []
    assert len(fields) > 150
    assert not [f.elem_id for f in fields if getattr(f, "info", None) and f.elem_id in told]  # once is enough


@pytest.mark.parametrize(
    "name", [*WIDGETS, *SAME, *(entry[0] for entry in SHARED), *(f"plot-{n}" for n in CHARTS if n != "losses")]
)
def test_a_line_is_one_sentence_or_two(name):
    title, text = definitions()[name]
    assert title
    assert text == text.strip()
    assert text.endswith(".")
    assert "\n" not in text
    assert 20 <= len(text) <= 260


def test_every_metric_has_a_definition():
    assert all(card.definition.endswith(".") and card.label for card in CARDS.values())


def test_the_head_holds_the_lines_as_data_and_cannot_be_left():
    text = head()
    found = re.search(r"<script type='application/json' id='es-tips'>(.*?)</script>", text, re.S)
    assert {name: tuple(told) for name, told in json.loads(found[1]).items()} == definitions()
    assert text.count("</script>") == 2


def test_a_wide_table_can_be_reached_by_keyboard():
    html = scrolling("<table></table>", "A 'name' with \"quotes\"")
    assert "tabindex='0'" in html
    assert "A &#x27;name&#x27; with &quot;quotes&quot;" in html
