"""A run as one self-contained page."""

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the engine runs without the plotting library, which takes half a second to import
    from plotly.graph_objects import Figure

STYLE = (
    "body{font-family:system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}"
    ".scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.82rem}caption{text-align:left;padding:.4rem 0}"
    "th,td{padding:.2rem .5rem;text-align:right;border-bottom:1px solid #ddd}th{cursor:help}"
    "td:nth-child(-n+3),th:nth-child(-n+3){text-align:left}tr.block td{border-top:2px solid #888}"
    "tr.result td{background:rgba(204,121,167,.18)}"
    "pre{background:#f4f4f4;padding:.6rem;overflow-x:auto;font-size:.78rem}"
)


def html_page(title: str, lead: str, figures: "dict[str, Figure]", more: str = "") -> str:
    """One self-contained page: the plotting library is inside, nothing is fetched. more: markup above the figures."""
    parts = []
    for number, (name, figure) in enumerate(figures.items()):
        plot = figure.to_html(full_html=False, include_plotlyjs="inline" if number == 0 else False)
        parts.append(f"<section><h2>{html.escape(name)}</h2>{plot}</section>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>{more}{''.join(parts)}</html>\n"
    )
