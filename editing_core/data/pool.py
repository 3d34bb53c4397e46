"""Facts that may be trained on beside edits: bundled or given ones, without all that evaluation uses.

Source: Gangadhar and Stratos 2024, https://arxiv.org/abs/2402.11078: what is trained on holds no triple used in
evaluation.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from editing_core.types import EditRequest, Probe

WORD = re.compile(r"\w+")
SENTENCES = re.compile(r"(?<=[.!?])\s+")


def true_facts(requests: Iterable[EditRequest]) -> list[Probe]:
    """What holds before the edits: the old fact of every record that has one."""
    return [
        Probe(request.full_prompt, request.target_true, request.subject, family=request.relation_id or "")
        for request in requests
        if request.target_true is not None
    ]


def unedited(facts: Iterable[Probe], requests: Sequence[EditRequest]) -> list[Probe]:
    """The facts that may be trained on beside these edits, in their order.

    Left out are those with an edit's subject and relation, which is a fact's family, or of a relation that either side
    does not name; those whose subject and object stand, as whole words, in one text that is measured; those whose
    sentence is measured itself, or was there before. Letter case and white space do not count.
    """
    texts = _Texts.of(requests)
    edited = defaultdict[str, set[str]](set)
    for request in requests:
        edited[_plain(request.subject)].add(request.relation_id or "")
    seen = set(texts.texts)
    kept: list[Probe] = []
    for fact in facts:
        sentence = _sentence(fact.prompt, fact.answer)
        subject = _plain(fact.subject or "")
        relations = edited.get(subject, set())
        hits_edit = bool(relations) and (not fact.family or "" in relations or fact.family in relations)
        if sentence in seen or hits_edit or (subject and texts.hold(subject, _plain(fact.answer))):
            continue
        seen.add(sentence)
        kept.append(fact)
    return kept


@dataclass(frozen=True)
class _Texts:
    """Normalised texts, and for every word the numbers of those with it."""

    texts: tuple[str, ...]
    places: dict[str, set[int]]

    @staticmethod
    def of(requests: Iterable[EditRequest]) -> "_Texts":
        """Every text that is measured of these requests, once."""
        texts = tuple(dict.fromkeys(text for request in requests for text in _measured(request)))
        places = defaultdict[str, set[int]](set)
        for number, text in enumerate(texts):
            for word in WORD.findall(text):
                places[word].add(number)
        return _Texts(texts, dict(places))

    def hold(self, subject: str, answer: str) -> bool:
        """Whether one text has both as whole words."""
        words = set(WORD.findall(f"{subject} {answer}"))
        rarest_first = sorted((self.places.get(word, set()) for word in words), key=len)
        numbers = set.intersection(*rarest_first) if rarest_first else set(range(len(self.texts)))
        patterns = [re.compile(rf"(?<!\w){re.escape(part)}(?!\w)") for part in (subject, answer)] if numbers else []
        return any(all(pattern.search(self.texts[number]) for pattern in patterns) for number in numbers)


def _measured(request: EditRequest) -> Iterator[str]:
    """Sentences: every prompt that is measured with every answer it is measured by. Not edit neighbors."""
    objects = [request.target_new, *([request.target_true] if request.target_true else [])]
    for prompt in (request.full_prompt, *request.paraphrases):
        yield from (_sentence(prompt, answer) for answer in objects)
    for probe in (*request.neighbors, *request.locality, *request.portability):
        yield from (_sentence(probe.prompt, answer) for answer in (probe.answer, *probe.aliases))


def _sentence(prompt: str, answer: str) -> str:
    return _plain(f"{prompt} {answer}")


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def silent(texts: Iterable[str], requests: Sequence[EditRequest]) -> list[str]:
    """The texts without the sentences that name a subject which is edited or measured; empty ones are left out."""
    names = defaultdict[str, list[list[str]]](list)
    for name in {name for request in requests for name in _named(request)}:
        if words := WORD.findall(name):
            names[words[0]].append(words)

    def rest(text: str) -> str:
        sentences = SENTENCES.split(text)
        # Word by word, because a name such as Kathryn J. Whitmire may look like the end of a sentence.
        words = [(word, n) for n, sentence in enumerate(sentences) for word in WORD.findall(_plain(sentence))]
        plain, speaking = [word for word, _ in words], set[int]()
        for at, word in enumerate(plain):
            for name in names.get(word, ()):
                if plain[at : at + len(name)] == name:
                    speaking |= {n for _, n in words[at : at + len(name)]}
        return " ".join(sentence for n, sentence in enumerate(sentences) if n not in speaking)

    return [kept for text in texts if (kept := rest(text).strip())]


def _named(request: EditRequest) -> Iterator[str]:
    """Subjects of a request and of what is measured with it; the prompt where no subject is known."""
    yield _plain(request.subject)
    for probe in (*request.neighbors, *request.locality, *request.portability):
        yield _plain(probe.subject or probe.prompt)
