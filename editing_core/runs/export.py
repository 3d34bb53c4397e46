"""Files of a single run: written whole or not at all, figures as one self-contained page."""

import html
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from plotly.graph_objects import Figure

from editing_core.errors import BadRequest


def check_folder(path: Path) -> None:
    """BadRequest when no folder can be written there; asked before long work begins, and nothing is made yet."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise BadRequest(f"{path.name} could not be written, {there.name} is no folder to write in; choose another.")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write that becomes `path` at the end of the block, and vanishes when that is not reached.

    BadRequest when it cannot be written.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise BadRequest(f"{path.name} could not be written ({error.strerror}); choose another place.") from error
    finally:
        with suppress(OSError):  # there is none where its folder could not be made
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """A whole text file or none."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


STYLE = (
    "body{font-family:system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}"
    ".scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.82rem}caption{text-align:left;padding:.4rem 0}"
    "th,td{padding:.2rem .5rem;text-align:right;border-bottom:1px solid #ddd}th{cursor:help}"
    "td:nth-child(-n+3),th:nth-child(-n+3){text-align:left}tr.block td{border-top:2px solid #888}"
    "tr.result td{background:rgba(204,121,167,.18)}"
    "pre{background:#f4f4f4;padding:.6rem;overflow-x:auto;font-size:.78rem}"
)


def html_page(title: str, lead: str, figures: dict[str, Figure], more: str = "") -> str:
    """One self-contained page: the plotting library is inside, nothing is fetched. more: markup above the figures."""
    parts = []
    for number, (name, figure) in enumerate(figures.items()):
        plot = figure.to_html(full_html=False, include_plotlyjs="inline" if number == 0 else False)
        parts.append(f"<section><h2>{html.escape(name)}</h2>{plot}</section>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>{more}{''.join(parts)}</html>\n"
    )
