"""The values that cross files: what is asked (EditRequest, Probe) and what is told on the way (Step).

A value that exists is valid; everything behind this file works without checks of its own.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from editing_core.errors import BadRequest, SubjectMissing

MAX_CHARACTERS = 1000  # of any one text; longer ones are files pasted by mistake
MAX_PROBES = 200  # paraphrases or neighbors of one edit
_MARKUP = re.compile(r"<[|!/a-zA-Z][^<>]*>")


def check_text(text: object, name: str, lines: bool = False) -> str:
    """`text` stripped, or BadRequest when it is empty, too long, or more than plain text.

    lines: whether line breaks and tabs are allowed, as in the real paraphrases of CounterFact.
    """
    if not isinstance(text, str):
        raise BadRequest(f"The {name} must be text, got {type(text).__name__}; put it in quotes.")
    text = text.strip()
    if not text:
        raise BadRequest(f"The {name} is empty; enter some text.")
    if len(text) > MAX_CHARACTERS:
        raise BadRequest(
            f"The {name} has {len(text):,} characters, at most {MAX_CHARACTERS:,} are allowed; shorten it."
        )
    if found := _MARKUP.search(text):
        raise BadRequest(f"The {name} contains the markup {found[0][:40]!r}; only plain text is allowed, remove it.")
    if any(unicodedata.category(c) in ("Cc", "Cs", "Cn", "Co") and not (lines and c in "\n\t") for c in text):
        raise BadRequest(f"The {name} contains a line break or a control character; write it on one plain line.")
    return text


@dataclass(frozen=True)
class Probe:
    """A prompt and the answer it should have.

    subject: what the prompt is about, where known. aliases: other answers that count as right. family: which
    kind of locality or portability it probes, such as "Forgetfulness".
    """

    prompt: str
    answer: str
    subject: str | None = None
    aliases: tuple[str, ...] = ()
    family: str = ""

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "prompt", check_text(self.prompt, "prompt of a probe", lines=True))
        set_(self, "answer", check_text(self.answer, "answer of a probe"))
        set_(self, "aliases", tuple(check_text(alias, "alias of an answer") for alias in self.aliases))

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text a model reads of this probe."""
        return (self.prompt, self.answer, *self.aliases)

    @property
    def place(self) -> tuple[str, str] | None:
        """(template, subject) where the subject stands in the prompt; None where that is not known."""
        return (self.template, self.subject) if self.template and self.subject else None

    @property
    def template(self) -> str | None:
        """The prompt with `{}` for the subject's last occurrence; None where no subject is known or found."""
        if not self.subject or "{}" in self.prompt:
            return None
        head, found, tail = self.prompt.rpartition(self.subject)
        return f"{head}{{}}{tail}" if found else None


@dataclass(frozen=True)
class EditRequest:
    """One fact to write: `prompt` with `{}` for the subject must be continued by `target_new`.

    target_true is the object before the edit; where it is None the model's own answer takes its place, unless
    compare is False: then there is no comparison of the two (ZsRE has no old objects). paraphrases are full
    prompts that contain the subject; neighbors are facts that must not change. edit_neighbors are neighbors
    an editor may use, and are never measured. portability: what should follow from the edit. locality:
    further facts that must not change, by family.
    """

    subject: str
    prompt: str
    target_new: str
    target_true: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbors: tuple[Probe, ...] = ()
    case_id: int | str = 0
    relation_id: str | None = None
    target_new_id: str | None = None
    edit_neighbors: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    locality: tuple[Probe, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    source: str = "form"
    compare: bool = True

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        for name, label in (("subject", "subject"), ("prompt", "prompt"), ("target_new", "new object")):
            set_(self, name, check_text(getattr(self, name), label))
        if self.target_true is not None:
            set_(self, "target_true", check_text(self.target_true, "old object"))
            if self.target_true.casefold() == self.target_new.casefold():
                raise BadRequest(f"The new object {self.target_new!r} equals the old one; enter a different object.")
        if not isinstance(self.case_id, int | str):
            raise BadRequest(f"The case_id must be a number or text, got {type(self.case_id).__name__}; correct it.")
        self._check_subject()
        for name in ("paraphrases", "neighbors", "edit_neighbors", "portability", "locality", "generation_prompts"):
            if len(getattr(self, name)) > MAX_PROBES:
                raise BadRequest(f"At most {MAX_PROBES} {name.replace('_', ' ')} fit one edit; remove some.")
        set_(self, "paraphrases", tuple(check_text(p, "paraphrase", lines=True) for p in self.paraphrases))

    def _check_subject(self) -> None:
        count = self.prompt.count("{}")
        if count != 1:
            raise SubjectMissing(
                f"The prompt {self.prompt[:80]!r} has {count} places {{}} for the subject, exactly one is needed; "
                f"write {{}} where {self.subject[:40]!r} belongs."
            )
        if "{}" in self.subject:
            raise BadRequest(
                f"The subject {self.subject[:40]!r} contains {{}}, which belongs in the prompt; remove it."
            )

    @property
    def full_prompt(self) -> str:
        """The prompt with the subject in its place. Replaced, not formatted: texts may hold braces."""
        return self.prompt.replace("{}", self.subject)

    @property
    def place(self) -> tuple[str, str]:
        """(template, subject) of the fact."""
        return self.prompt, self.subject

    @property
    def texts(self) -> list[str]:
        """Every text a model reads of this request."""
        own = [self.subject, self.prompt, self.target_new, self.target_true or "", *self.paraphrases]
        probes = (*self.neighbors, *self.edit_neighbors, *self.locality, *self.portability)
        return own + [text for probe in probes for text in probe.texts] + list(self.generation_prompts)


@dataclass(frozen=True)
class Step:
    """Progress: which part of the work, how far, and the loss terms where there are any."""

    stage: str
    done: int
    total: int
    round: int = 0
    terms: dict[str, float] = field(default_factory=dict)
    note: str = ""


Watch = Callable[[Step], None]


def ignore(_step: Step) -> None:
    """The watch of someone who does not look."""


def noting(watch: Watch, note: str) -> Watch:
    """A watch that tells every step with a note in front: which facts, record or chunk it is about."""
    return lambda step: watch(replace(step, note=f"{note}, {step.note}" if step.note else note))


Row = dict[str, Any]
