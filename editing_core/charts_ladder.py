"""The ladder as a chart: for every recipe its efficacy, generalization, specificity and score."""

from collections.abc import Sequence
from math import isnan

import plotly.graph_objects as go

from editing_core.charts import INK, KEPT, NEW, OLD, empty, finish
from editing_core.evaluation.metrics import CARDS
from editing_core.ladder import SUCCESSES, Rung, ladder_table

TITLE = "What each ingredient buys"
BARS = dict(zip(SUCCESSES, ((NEW, ""), (OLD, "/"), (KEPT, "."), (INK, "x")), strict=True))


def ladder(rungs: Sequence[Rung]) -> go.Figure:
    """Grouped bars, the unedited model first."""
    if not rungs:
        return empty(TITLE, "Compare ingredients to see what masking, paraphrases and unedited facts buy.")
    table = ladder_table(rungs)
    figure = go.Figure()
    names = [str(name).replace(" + ", "<br>+ ") for name in table["recipe"]]
    for metric, (colour, pattern) in BARS.items():
        figure.add_bar(
            x=names,
            y=[None if isnan(value) else value for value in table[metric]],
            name=CARDS[metric].label,
            marker={
                "color": colour,
                "pattern": {"shape": pattern, "fillmode": "overlay", "fgcolor": "white", "fgopacity": 0.5, "size": 5},
            },
            hovertemplate="%{y:.1f} %<extra>" + CARDS[metric].label + "</extra>",
        )
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_yaxes(range=[0, 104], ticksuffix=" %")
    return finish(figure, TITLE, 360)
