"""Chat templates: an instruct model reads prompts inside of one, so an edit for it is made and measured there.

A template belongs to the tokenizer of a model. It is rendered once with markers in the places of the texts, and what
stands around them is the frame of every prompt: so subjects are found inside the rendered text, and texts of users
never become part of a template.
"""

from typing import Any

from transformers import PreTrainedTokenizerBase

from editing_core.errors import BadRequest
from editing_core.models.tokens import PLAIN, Frame

STYLES = ("none", "statement", "question")
ASK = "Complete the sentence."  # what the user says where the assistant says the prompt
_USER, _ASSISTANT = "EDITSCOPEUSER", "EDITSCOPEASSISTANT"
# Templates that tell the date would change an edit from day to day; the one that Llama 3 falls back to.
_GIVEN = {"date_string": "26 Jul 2024", "enable_thinking": False}


def frame_of(tokenizer: PreTrainedTokenizerBase, style: str, model: str) -> Frame:
    """The frame of prompts in a model's chat template.

    style: "none"; "statement", the assistant says the prompt and goes on; "question", the user says the prompt and
    the assistant answers with the object. BadRequest where the model has no template, or one that cannot be split.
    """
    if style == "none":
        return PLAIN
    if not tokenizer.chat_template:
        raise BadRequest(
            f"{model} has no chat template, so prompts cannot stand in one; choose 'none', or an instruct model."
        )
    before = _before_answer(tokenizer, _USER if style == "question" else ASK, model)
    if style == "statement":
        return Frame(before, special=False)
    if before.count(_USER) != 1:
        raise _unusable(model, "it does not show the user's words once")
    head, _, tail = before.partition(_USER)
    kept = tail.rstrip(" ")  # a space before an object belongs to the object's first token
    return Frame(head, kept, tail[len(kept) :], special=False)


def _before_answer(tokenizer: PreTrainedTokenizerBase, user: str, model: str) -> str:
    """What stands before the assistant's words when the user has said his."""
    talk = [{"role": "user", "content": user}, {"role": "assistant", "content": _ASSISTANT}]
    given: dict[str, Any] = _GIVEN
    try:
        text = str(tokenizer.apply_chat_template(talk, tokenize=False, **given))
    except Exception as error:
        # A template is a program of others and fails in ways of its own.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _unusable(model, reason[:100]) from error
    if text.count(_ASSISTANT) != 1:
        raise _unusable(model, "it does not show the assistant's words once")
    return text.partition(_ASSISTANT)[0]


def _unusable(model: str, reason: str) -> BadRequest:
    return BadRequest(
        f"The chat template of {model} cannot hold a prompt ({reason.rstrip('.')}); choose 'none' or another model."
    )
