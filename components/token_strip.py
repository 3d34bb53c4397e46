"""The token strip and the present answers as HTML: what the model reads, and what it would say now."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from editing_core.evaluation.scoring import TokenChance
from editing_core.models.language_model import LanguageModel
from editing_core.types import EditRequest


@dataclass(frozen=True)
class Tokens:
    """What a model reads of a prompt: texts of the tokens, index of the edited one, and which are the template's."""

    texts: tuple[str, ...]
    edited: int
    template: frozenset[int] = frozenset()


def tokens_of(lm: LanguageModel, request: EditRequest) -> Tokens:
    """The prompt's tokens, in the model's chat template where it is framed; the subject's last one is edited."""
    places = lm.coder.places(request.full_prompt)
    start = len(lm.frame.head)
    own = range(start, start + len(request.full_prompt))
    outside = (i for i, ((first, last), _) in enumerate(places) if last > first and (last - 1 not in own))
    edited = lm.coder.subject_last(request.prompt, request.subject)
    return Tokens(tuple(text for _, text in places), edited, frozenset(outside))


def strip_html(tokens: Tokens) -> str:
    """One box per token; the edited one is framed and named, the template's are pale."""
    boxes = []
    for i, token in enumerate(tokens.texts):
        shown = escape(token).replace("\n", "↵").replace(" ", "·") or "∅"
        if i in tokens.template:
            boxes.append(f"<span class='es-token es-token-template' title='Chat template'>{shown}</span>")
        elif i == tokens.edited:
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
