"""Explore's charts: what was measured is what is drawn, texts are escaped, and nothing measured says what to do."""

import json
from math import log

import pandas as pd
import pytest
import torch

from editing_core import charts_changed, charts_explore
from editing_core.charts import LOST
from editing_core.evaluation.scoring import TokenChance
from editing_core.explore.average import average
from editing_core.explore.changed import KEY_COLUMNS, Change
from editing_core.explore.lens import Lens
from editing_core.explore.trace import KINDS, ROLES, Trace

TOKENS = ("Mario", " Del", "<b>", " was", " born")
MLP = torch.tensor([[0.1, 0.1, 0.6, 0.1, 0.1], [0.1, 0.0, 0.3, 0.1, 0.2]], dtype=torch.float64)


def traced(mlp=MLP, tokens=TOKENS, window=3):
    restored = {"hidden": mlp + 0.1, "mlp": mlp, "attention": torch.full_like(mlp, 0.1)}
    return Trace("p", tokens, range(3), "London", 0.9, 0.1, restored, window, 0.5)


def texts_of(figure):
    """All texts of a figure, as a browser gets them."""
    return json.dumps(json.loads(figure.to_json())).replace("\\u003c", "<").replace("\\u003e", ">")


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_is_drawn_token_by_layer_with_its_effects(kind):
    found = traced()
    figure = charts_explore.trace_heatmap(found, kind)
    heat = figure.data[0]
    assert [list(row) for row in heat.z] == found.effect(kind).T.tolist()
    assert (heat.zmin, heat.zmax) == pytest.approx((-0.1, 0.6))  # those of all three kinds
    assert list(figure.layout.yaxis.ticktext) == ["Mario*", "Del*", "&lt;b&gt;*", "was", "born"]
    assert figure.layout.height >= 300
    p = float(found.restored[kind][1, 2])
    assert heat.hovertext[2][1] == f"&lt;b&gt;*, layer 1<br>p restored {p:.3g}, effect {p - 0.1:.3g}"


def test_the_largest_effect_is_marked_and_nothing_where_nothing_came_back():
    mark = charts_explore.trace_heatmap(traced(), "mlp").data[1]
    assert (mark.x[0], mark.y[0]) == (0, 2)
    assert len(charts_explore.trace_heatmap(traced(), "attention").data) == 1
    title = charts_explore.trace_heatmap(traced(), "mlp").layout.title.text
    assert title == "MLP, 3 layers together"
    assert charts_explore.trace_heatmap(traced(), "hidden").layout.title.text == "Hidden state"


def test_an_average_is_drawn_role_by_layer_with_gaps_where_nobody_plays():
    found = average([traced(), traced(MLP / 2)])
    heat = charts_explore.trace_heatmap(found, "mlp").data[0]
    assert len(heat.z) == len(ROLES)
    assert list(heat.z[2]) == pytest.approx(found.mean["mlp"][:, 2].tolist())
    assert list(heat.z[4]) == [None, None]
    assert "no fact has such a token" in heat.hovertext[4][0]
    assert "(standard error)" in heat.hovertext[2][0]
    assert "standard error" not in texts_of(charts_explore.trace_heatmap(average([traced()]), "mlp"))


def test_curves_have_the_means_and_a_band_of_the_standard_error():
    found = average([traced(), traced(MLP / 2)])
    lines = {line.name: line for line in charts_explore.trace_curves(found).data}
    mean, error = found.curve("mlp")
    assert list(lines["MLP"].y) == mean.tolist()
    upper, lower = (mean + error).tolist(), (mean - error).tolist()
    assert list(lines["mlp"].y) == pytest.approx(upper + lower[::-1])
    alone = charts_explore.trace_curves(average([traced()]))
    assert [line.name for line in alone.data] == ["Hidden state", "MLP", "Attention"]
    assert len({line.marker.symbol for line in alone.data}) == len({line.line.dash for line in alone.data}) == 3


def lens(last="London", p=0.8):
    def cell(text, chance):
        return (TokenChance(text, chance), TokenChance("<i>", 0.01))

    top = tuple(tuple(cell(last if layer == t == 1 else "the", p + layer / 10) for t in range(2)) for layer in range(2))
    return Lens(("<u>", " was"), top, {"London": torch.tensor([0.1, p]), "<Paris>": torch.tensor([0.0, 1 - p])})


def test_a_lens_shows_first_tokens_chances_and_the_five_likeliest():
    figure = charts_explore.lens_grid(lens(), None, "before")
    heat = figure.data[0]
    assert [list(row) for row in heat.z] == [[0.8, 0.8], [0.9, 0.9]]
    assert [list(row) for row in heat.text] == [["the", "the"], ["the", "London"]]
    assert heat.hovertext[1][1] == "behind was, layer 1<br>1. London 0.9<br>2. &lt;i&gt; 0.01"
    assert list(figure.layout.xaxis.ticktext) == ["&lt;u&gt;", "was"]
    assert len(figure.data) == 1


def test_cells_that_differ_are_framed_and_bold_on_both_sides():
    for one, other in ((lens(), lens("Boston")), (lens("Boston"), lens())):
        heat, frames = charts_explore.lens_grid(one, other, "after").data
        assert heat.text[1][1] == f"<b>{one.first(1, 1).token}</b>"
        assert heat.text[0][0] == "the"
        assert list(frames.x) == [0.5, 1.5, 1.5, 0.5, 0.5, None]
        assert list(frames.y) == [0.5, 0.5, 1.5, 1.5, 0.5, None]
    assert len(charts_explore.lens_grid(lens(), lens(), "after").data) == 1


def test_of_a_long_prompt_the_last_tokens_are_shown():
    count = charts_explore.SHOWN_TOKENS + 5
    top = tuple(tuple((TokenChance("abcdefghijklmnop", t / 100),) for t in range(count)) for _ in range(2))
    figure = charts_explore.lens_grid(Lens(tuple(str(t) for t in range(count)), top, {}), None, "before")
    assert list(figure.layout.xaxis.ticktext) == [str(t) for t in range(5, count)]
    assert figure.data[0].z[0][0] == 0.05
    assert figure.data[0].text[0][0] == "abcde…"
    assert "last 24 of 29 tokens" in figure.layout.title.text


def test_chances_by_layer_are_dashed_before_and_solid_after():
    figure = charts_explore.chances_by_layer(lens(), lens(p=0.3), "London", "<Paris>")
    lines = {line.name: line for line in figure.data}
    assert list(lines["new, before"].y) == pytest.approx([0.1, 0.8])
    assert list(lines["old, after"].y) == pytest.approx([0.0, 0.7])
    assert {lines[f"{what}, before"].line.dash for what in ("new", "old")} == {"dash"}
    assert {lines[f"{what}, after"].line.dash for what in ("new", "old")} == {"solid"}
    assert "<Paris>" not in texts_of(figure)
    assert "press Edit first" in texts_of(charts_explore.chances_by_layer(lens(), None, "", ""))


CHANGES = [
    Change("model.layers.0.mlp.down.weight", 0, 2.0, 0.1, (2.0, 1e-3, 1e-15)),
    Change("model.layers.3.mlp.down.weight", 3, 4.0, 0.2, (4.0,)),
    Change("model.<norm>.weight", None, 1.0, 0.5, ()),
]


def test_changes_are_drawn_by_layer_with_their_shape():
    norms = {bar.name: bar for bar in charts_changed.change_norms(CHANGES).data}
    assert list(norms["mlp.down.weight"].x) == ["0", "3"]
    assert list(norms["mlp.down.weight"].y) == [0.1, 0.2]
    assert list(norms["model.&lt;norm&gt;.weight"].x) == ["outside"]
    values = charts_changed.change_values(CHANGES)
    assert [list(line.y) for line in values.data] == [[2.0, 1e-3], [4.0]]
    assert values.layout.yaxis.type == "log"
    many = [Change(f"h.{i}.w", i, 1.0, i / 100, (1.0,)) for i in range(30)]
    shown = charts_changed.change_values(many)
    assert [line.name for line in shown.data] == [f"layer {i}" for i in range(18, 30)]
    assert "12 most changed" in shown.layout.title.text


def probes(p_true, hit=1.0, p_new=0.01):
    rows = [("edit", 0, p_true[0], 1.0), ("paraphrase", 0, p_true[1], 1.0)]
    rows += [("neighbor", i, p, hit) for i, p in enumerate(p_true[2:])]
    named = {"case_id": 7, "prompt": "<p>", "target_true": "London", "target_new": "Boston"}
    return pd.DataFrame(
        [
            {**named, "kind": k, "number": n, "p_true": p, "logp_true": log(p), "logp_new": log(p_new), "hit_true": h}
            for k, n, p, h in rows
        ]
    )


def keys(*cosines):
    kinds = [("edit", 0), ("paraphrase", 0), ("neighbor", 0), ("neighbor", 1)]
    rows = [(7, *kind, "<p>", layer, c, c / 10) for layer in (2, 3) for kind, c in zip(kinds, cosines, strict=True)]
    return pd.DataFrame(rows, columns=KEY_COLUMNS)


@pytest.mark.parametrize("by", ["cosine", "moved"])
def test_prompts_stand_by_key_and_drift_and_lost_neighbors_are_crossed(by):
    before, now = probes([0.9, 0.9, 0.9, 0.9]), probes([0.1, 0.2, 0.8, 0.7])
    now.loc[3, "hit_true"] = 0.0
    figure = charts_changed.key_drift(keys(1.0, 0.9, 0.1, 0.5), before, now, 3, by)
    points = {line.name: line for line in figure.data}
    assert set(points) == {"edit", "paraphrase", "neighbor kept", "neighbor lost"}
    scale = 1.0 if by == "cosine" else 0.1
    assert list(points["neighbor lost"].x) == pytest.approx([0.5 * scale])
    assert list(points["neighbor lost"].y) == pytest.approx([log(0.7) - log(0.9)])
    assert (points["neighbor lost"].marker.symbol, points["neighbor lost"].marker.color) == ("x", LOST)
    assert list(points["edit"].y) == pytest.approx([log(0.1) - log(0.9)])
    assert len({line.marker.symbol for line in figure.data}) == 4
    assert "<p>" not in texts_of(figure)
    assert "layer 3" in figure.layout.xaxis.title.text


def test_prompts_without_an_old_answer_are_left_out():
    before, now = probes([0.9] * 4), probes([0.5] * 4)
    now["logp_true"] = float("nan")
    told = texts_of(charts_changed.key_drift(keys(1.0, 0.9, 0.1, 0.5), before, now, 3, "cosine"))
    assert "No prompt of this edit" in told


def test_what_was_not_measured_says_what_to_do():
    nothing = pd.DataFrame()
    for figure, button in (
        (charts_explore.trace_heatmap(None, "mlp"), "Press Trace"),
        (charts_explore.trace_curves(None), "Press Average over facts"),
        (charts_explore.lens_grid(None, None, "<before>"), "Press Look"),
        (charts_explore.chances_by_layer(None, None, "", ""), "Press Look"),
        (charts_changed.change_norms(()), "Press Measure"),
        (charts_changed.change_values(()), "Press Measure"),
        (charts_changed.key_drift(None, nothing, nothing, 0, "cosine"), "Press Measure"),
    ):
        assert button in figure.layout.annotations[0].text
        assert not figure.data
        assert figure.layout.height >= 300
        assert "<before>" not in texts_of(figure)


@pytest.mark.parametrize(
    ("token", "text"), [(" was", "was"), (" ", "·"), ("", "∅"), ("\n", "↵"), ("a b", "a·b"), ("<b>", "&lt;b&gt;")]
)
def test_tokens_can_be_seen(token, text):
    assert charts_explore.token_text(token) == text
