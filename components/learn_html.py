"""A step of the lesson as HTML: its sentences with the terms explained, and what they mean as a list."""

import re
from collections.abc import Sequence
from html import escape

from editing_core.evaluation.metrics import CARDS
from editing_core.lesson import LessonStep
from editing_core.lesson_findings import Knowledge

TERMS = {
    "neighbor assistance (NA)": "A neighbor's answer is part of what is optimised, so that it stays.",
    "neighbor keys": "Keys are what the model looks facts up by; those of assisting neighbors are protected when the "
    "weights are written.",
    "old object": "The answer before the edit.",
    "new object": "The answer the edit should bring.",
    "neighbors": "Prompts about other subjects with the same answer as the old object; they should stay as they were.",
    "paraphrases": "Other prompts for the same fact; they should give the new object after the edit.",
    "hidden state": "The vector of numbers inside the model at a word; here at the subject's last one.",
    "iteration": "One pass of the editor on the result of the passes before; iteration 0 is the unedited model.",
    "took": "The new object is likelier than the old one and the model's first answer.",
    "UnderEdit": "The edit did not take: the new object is not likelier than the old one, or not the first answer.",
    "OverEdit": "The edit took too much: a neighbor that was right before is lost.",
    "lost": "Not answered right any more, or the new object is now at least as likely as the neighbor's own answer.",
    "p optimised": CARDS["ppl_optimised"].definition,
    "p spread": CARDS["ppl_spread"].definition,
    "delta p": CARDS["delta_ppl"].definition,
    "tolerance": "The largest size of delta p that counts as agreement.",
    "perplexity": "One over the probability per token: 1 is certain, 2 is like choosing between two equal words.",
    "MEMIT": "Mass-Editing Memory in a Transformer (arXiv 2210.07229): writes many facts at once into a few layers.",
}
_TERM = re.compile("|".join(rf"(?<!\w){re.escape(term)}(?!\w)" for term in sorted(TERMS, key=len, reverse=True)))


def step_html(step: LessonStep, sentences: Sequence[str]) -> str:
    """Title, the two sentences, and what to look at."""
    seen: set[str] = set()
    text = " ".join(explained(sentence, seen) for sentence in sentences)
    return (
        f"<div class='es-lesson'><h2>{step.number}. {escape(step.title)}</h2><p role='status'>{text}</p>"
        f"<p class='es-look'><b>What to look at:</b> {explained(step.look, seen)}</p></div>"
    )


def top_html(finding: Knowledge) -> str:
    """The likeliest next words after the first fact's prompt."""
    items = "".join(
        f"<span><b>{escape(chance.token.strip()) or escape(repr(chance.token))}</b> {chance.probability:.2g}</span>"
        for chance in finding.top
    )
    told = f"The {len(finding.top)} likeliest next words after “{escape(finding.facts[0].prompt)}”:"
    return f"<div class='es-answers es-top'><span>{told}</span>{items}</div>"


def explained(text: str, seen: set[str]) -> str:
    """The text with a tooltip at the first place of every term; `seen` are those that have one already."""

    def mark(found: re.Match[str]) -> str:
        term = found[0]
        if term in seen:
            return escape(term)
        seen.add(term)
        return f"<abbr tabindex='0' title='{escape(TERMS[term], quote=True)}'>{escape(term)}</abbr>"

    parts, start = [], 0
    for found in _TERM.finditer(text):
        parts += [escape(text[start : found.start()], quote=False), mark(found)]
        start = found.end()
    return "".join([*parts, escape(text[start:], quote=False)])


def words_html(texts: Sequence[str]) -> str:
    """The terms of some texts with what they mean, to be opened: a projector shows no tooltip."""
    terms = [term for term in TERMS if any(term == found[0] for text in texts for found in _TERM.finditer(text))]
    rows = "".join(f"<dt>{escape(term)}</dt><dd>{escape(TERMS[term])}</dd>" for term in terms)
    return (
        f"<details class='es-proof'><summary>The words of this step</summary><dl>{rows}</dl></details>" if rows else ""
    )
