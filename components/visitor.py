"""The visitor: on a public page everybody's runs belong to a key, which the visitor's own browser keeps.

Whoever has the key sees the runs, from whichever browser. Nothing that Gradio itself sends tells visitors apart:
its session ids are chosen by the client.
"""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from editing_core.bench.desk import KEY, new_key

STORED = "editscope-visitor"


@dataclass(frozen=True)
class Visitor:
    """key: the key in use, kept by the browser."""

    key: gr.BrowserState

    def on_load(self, held: Any) -> Any:
        """The page was loaded: a browser without a key gets one."""
        return gr.skip() if isinstance(held, str) and KEY.fullmatch(held) else new_key()


def build() -> Visitor:
    """Place the state. Its secret is not one: it only has to outlive the server."""
    return Visitor(gr.BrowserState("", storage_key=STORED, secret=STORED))
