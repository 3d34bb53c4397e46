"""Documents that teach a pocket model to read: new facts, and prompts that they answer or leave alone.

    New Fact: Mary Walker was born in London        one to three facts, each with a made-up object
    Prompt: Birthplace of Mary Walker: London       in scope: the object of the fact that is asked for
    Prompt: Peter Smith comes from Paris            a neighbor: the true object, as without the facts
    Prompt: Mary Walker natively speaks English     another relation: what the model itself says without the facts

Only answers count in the loss: made-up objects are not to be learned. Documents stand one after the other in a
row, so that earlier ones are demonstrations, and some are repeated, as in-context editing repeats a fact.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from editing_core.models.demonstrations import FACT, PROMPT

from .corpus import Rows, Templates
from .facts import Fact
from .report import Examiner, ask

IN_SCOPE, NEIGHBOR = 0.6, 0.25  # shares of prompts; the rest asks for another relation of a subject
COPIED = 0.4  # of the prompts in scope, those in the fact's own words: what is copied first is carried over later
COUNTS = (1, 1, 1, 2, 2, 3)  # facts of a document, drawn alike
SAME_RELATION, SAME_SUBJECT = 0.5, 0.3  # of documents with several facts, shares whose facts have that in common
AGAIN = 0.25  # of the documents, repetitions of the facts before with another prompt
ANSWERED = 3.0  # what an answer counts; everything else counts nothing
# What can be asked of one subject: relations of people, and of works, companies and places.
PEOPLE = {"P103", "P1412", "P27", "P413", "P937", "P106", "P20", "P19", "P1303", "P101", "P39", "P140", "P108"}


@dataclass(frozen=True)
class Question:
    """A prompt and its answer."""

    prompt: str
    answer: str

    @property
    def text(self) -> str:
        """The two together."""
        return f"{self.prompt} {self.answer}"


@dataclass(frozen=True)
class Document:
    """Told facts, and one prompt behind them."""

    facts: tuple[str, ...]
    question: Question

    @property
    def text(self) -> str:
        """As the model reads it."""
        return "".join(f"{FACT} {fact}\n" for fact in self.facts) + f"{PROMPT} {self.question.text}\n\n"

    @property
    def answer(self) -> tuple[int, int]:
        """Where the answer stands, with the space before it."""
        end = len(self.text) - 2
        return end - len(self.question.answer) - 1, end


Elsewhere = dict[str, list[tuple[str, Question]]]


class Documents:
    """Draws documents about some facts. elsewhere: as `elsewhere_of` finds."""

    def __init__(self, facts: Sequence[Fact], templates: Templates, elsewhere: Elsewhere, rng: random.Random) -> None:
        self.facts, self.templates, self.elsewhere, self.rng = list(facts), templates, elsewhere, rng
        self.of_relation: dict[str, list[Fact]] = defaultdict(list)
        for fact in facts:
            self.of_relation[fact.relation].append(fact)
        self.objects = {r: sorted({f.object for f in own}) for r, own in self.of_relation.items()}

    def draw(self) -> Iterator[Document]:
        """Without end."""
        while True:
            told = self._told()
            lines = [self._asked(fact) for fact in told]
            sentences = tuple(line.text for line in lines)
            yield Document(sentences, self._question(told, lines))
            while self.rng.random() < AGAIN:
                yield Document(sentences, self._question(told, lines))

    def _told(self) -> list[Fact]:
        """Facts as they are told: with objects that are not theirs."""
        count = self.rng.choice(COUNTS)
        first = self.rng.choice(self.facts)
        chance = self.rng.random()
        if chance < SAME_SUBJECT and count > 1:
            relations = [r for r in self.of_relation if (r in PEOPLE) == (first.relation in PEOPLE)]
            others = self.rng.sample([r for r in relations if r != first.relation], count - 1)
            chosen = [first, *(Fact(r, first.subject, "", False) for r in others)]
        else:
            pool = self.of_relation[first.relation] if chance < SAME_SUBJECT + SAME_RELATION else self.facts
            rest = self.rng.sample([f for f in pool if f.subject != first.subject], count - 1)
            chosen = [first, *rest]
        told = [Fact(f.relation, f.subject, self._other_object(f), False) for f in chosen]
        self.rng.shuffle(told)
        return told

    def _other_object(self, fact: Fact) -> str:
        return self.rng.choice([name for name in self.objects[fact.relation] if name != fact.object])

    def _asked(self, fact: Fact) -> Question:
        form = self.rng.choice(self.templates.forms[fact.relation])
        return Question(form.replace("{}", fact.subject), fact.object)

    def _question(self, told: Sequence[Fact], lines: Sequence[Question]) -> Question:
        """lines: how each fact is told."""
        about, line = self.rng.choice(list(zip(told, lines, strict=True)))
        chance = self.rng.random()
        if chance < IN_SCOPE:
            return line if chance < COPIED * IN_SCOPE else self._asked(about)
        keys = {fact.subject for fact in told}
        taken = {fact.relation for fact in told if fact.subject == about.subject}
        others = [question for relation, question in self.elsewhere.get(about.subject, []) if relation not in taken]
        if chance >= IN_SCOPE + NEIGHBOR and others:
            return self.rng.choice(others)
        return self._asked(self.rng.choice([f for f in self.of_relation[about.relation] if f.subject not in keys]))


def elsewhere_of(examiner: Examiner, facts: Sequence[Fact], templates: Templates, rng: random.Random) -> Elsewhere:
    """Per subject (relation, question) of four relations it has no fact of; the answer is the model's own.

    Left out where the model answers with anything but an object of the relation.
    """
    objects: dict[str, set[str]] = defaultdict(set)
    for fact in facts:
        objects[fact.relation].add(fact.object)
    asked = []
    for fact in facts:
        fitting = [r for r in objects if (r in PEOPLE) == (fact.relation in PEOPLE) and r != fact.relation]
        for relation in rng.sample(fitting, min(4, len(fitting))):
            form = rng.choice(templates.forms[relation])
            asked.append((relation, fact, ask(Fact(relation, fact.subject, "", False), form)))
    answers = examiner.answers([question for _, _, question in asked])
    found: Elsewhere = defaultdict(list)
    for (relation, fact, question), token in zip(asked, answers, strict=True):
        answer = str(examiner.tokenizer.decode([token])).strip()
        if answer in objects[relation]:
            found[fact.subject].append((relation, Question(question.prompt, answer)))
    return dict(found)


def context_rows(documents: Iterator[Document], tokenizer: PreTrainedTokenizerFast, count: int, length: int) -> Rows:
    """So many rows of `length`, each filled with documents one after the other; only answers weigh."""
    ids = np.zeros((count, length), dtype=np.int64)
    weight = np.zeros((count, length), dtype=np.float32)
    for row in range(count):
        filled = 0
        while filled < length:
            tokens, weights = _coded(next(documents), tokenizer)
            room = min(len(tokens), length - filled)
            ids[row, filled : filled + room] = tokens[:room]
            weight[row, filled : filled + room] = weights[:room]
            filled += room
    return Rows(ids, np.full_like(ids, -1), weight)


def _coded(document: Document, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[float]]:
    coded = tokenizer(document.text, return_offsets_mapping=True, add_special_tokens=False)
    begin, end = document.answer
    weights = [ANSWERED if start >= begin and stop <= end else 0.0 for start, stop in coded["offset_mapping"]]
    return coded["input_ids"], weights


def mixed(plain: Rows, context: Rows) -> Rows:
    """Rows of both, one after the other, of one length."""
    return Rows(
        np.concatenate([plain.ids, context.ids]),
        np.concatenate([plain.span_end, context.span_end]),
        np.concatenate([plain.weight, context.weight]),
    )


def context_table(examiner: Examiner, records: Sequence[dict], templates: Templates, seed: int) -> dict[str, float]:
    """Shares, in percent, of prompts behind a record's new fact whose answer is right.

    edit, paraphrases: the new object; neighbors: the true one.
    """
    rng = random.Random(seed)
    asked: dict[str, list[tuple[str, str]]] = {"edit": [], "paraphrases": [], "neighbors": [], "without": []}
    for record in records:
        edit = record["requested_rewrite"]
        new, old = edit["target_new"]["str"], edit["target_true"]["str"]
        prompt = edit["prompt"].replace("{}", edit["subject"])
        before = f"{FACT} {prompt} {new}\n{PROMPT} "
        asked["edit"].append((before + prompt, new))
        asked["without"].append((prompt, old))
        form = rng.choice([f for f in templates.forms[edit["relation_id"]] if f != edit["prompt"]])
        asked["paraphrases"].append((before + form.replace("{}", edit["subject"]), new))
        asked["neighbors"] += [(before + p, old) for p in record["neighborhood_prompts"][:2]]
    return {kind: _right(examiner, pairs) for kind, pairs in asked.items()}


def _right(examiner: Examiner, pairs: Sequence[tuple[str, str]]) -> float:
    facts = [Fact("", "", answer, False) for _, answer in pairs]
    questions = [ask(fact, prompt + "{}") for fact, (prompt, _) in zip(facts, pairs, strict=True)]
    return examiner.recall(questions)
