"""The token strip and the present answers as HTML: what the model reads, and what it would say now."""

from collections.abc import Sequence
from html import escape

from editing_core.evaluation.scoring import TokenChance
from editing_core.models.language_model import LanguageModel
from editing_core.models.tokens import subject_last
from editing_core.types import EditRequest


def tokens_of(lm: LanguageModel, request: EditRequest) -> tuple[list[str], int]:
    """The prompt's tokens as text and the index of the edited one, the subject's last."""
    text = request.full_prompt
    offsets = lm.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return [text[start:stop] for start, stop in offsets], subject_last(lm.tokenizer, request.prompt, request.subject)


def strip_html(tokens: Sequence[str], edited: int) -> str:
    """One box per token; the edited one is framed and named."""
    boxes = []
    for i, token in enumerate(tokens):
        shown = escape(token).replace(" ", "·") or "∅"
        if i == edited:
            boxes.append(f"<span class='es-token es-token-edited' title='The edit acts at this token'>{shown}</span>")
        else:
            boxes.append(f"<span class='es-token'>{shown}</span>")
    note = "<span class='es-note'>framed: subject's last token, where the edit acts</span>"
    return f"<div class='es-strip'>{''.join(boxes)}</div>{note}"


def answers_html(chances: Sequence[TokenChance]) -> str:
    """The most likely next tokens with their probabilities."""
    items = "".join(
        f"<span class='es-answer'><b>{escape(c.token.strip()) or escape(repr(c.token))}</b> {c.probability:.3g}</span>"
        for c in chances
    )
    return f"<div class='es-answers'><span class='es-note'>Model says now</span>{items}</div>"


def hint_html(text: str) -> str:
    """A quiet line where a strip would be."""
    return f"<div class='es-hint'>{escape(text)}</div>"
