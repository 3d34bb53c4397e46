"""pocket-facts: a benchmark in CounterFact's schema from the facts a pocket model knows.

Every record's subject is one that is never a neighbor of another record, every neighbor is a fact the
model answers correctly, and the counterfactual object is another frequent object of the same relation.
Also written here: the held-out texts for the collapse perplexity and the text for key statistics.
"""

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from .corpus import Grammar, Templates, epoch, fact_sentence
from .facts import Fact
from .report import Examiner, ask

NEIGHBORS = 10
PARAPHRASES = 2
RECORDS = 1200
TUNE_SHARE = 1 / 3


class Builder:
    """Makes records from facts the examined model knows."""

    def __init__(
        self, examiner: Examiner, facts: Sequence[Fact], templates: Templates, grammar: Grammar, seed: int
    ) -> None:
        self.examiner, self.templates, self.grammar = examiner, templates, grammar
        self.rng = random.Random(seed)
        self.groups: dict[tuple[str, str], list[Fact]] = defaultdict(list)
        self.objects: dict[str, list[str]] = defaultdict(list)
        for fact in facts:
            self.groups[fact.relation, fact.object].append(fact)
            if fact.object not in self.objects[fact.relation]:
                self.objects[fact.relation].append(fact.object)
        self.edited = [f for f in facts if f.edited]

    def records(self, wanted: int = RECORDS) -> list[dict]:
        """Up to `wanted` records, relations in turn, in random order, split into tune and test."""
        by_relation: dict[str, list[Fact]] = defaultdict(list)
        for fact in self.rng.sample(self.edited, len(self.edited)):
            by_relation[fact.relation].append(fact)
        records: list[dict] = []
        while len(records) < wanted and any(by_relation.values()):
            for relation in sorted(by_relation):
                if by_relation[relation] and len(records) < wanted:
                    record = self._record(by_relation[relation].pop())
                    records += [record] if record else []
        self.rng.shuffle(records)
        for i, record in enumerate(records):
            record["case_id"] = i
            record["part"] = "tune" if i < TUNE_SHARE * len(records) else "test"
        return records

    def _record(self, fact: Fact) -> dict | None:
        forms = self.templates.trained_with(fact)
        prompt = self.rng.choice(forms)
        others = self.rng.sample([f for f in self.templates.forms[fact.relation] if f != prompt], PARAPHRASES)
        if self.examiner.recall([ask(fact, form) for form in [prompt, *others]]) < 100:
            return None
        neighbors = self._neighbors(fact)
        if len(neighbors) < NEIGHBORS:
            return None
        new = self.rng.choice([o for o in self.objects[fact.relation] if o != fact.object])
        pool = self.groups[fact.relation, new]
        holders = self.rng.sample(pool, min(NEIGHBORS, len(pool)))
        prefixed = [f"{self.grammar.sentence(self.rng)} {form.replace('{}', fact.subject)}" for form in others]
        return {
            "requested_rewrite": {
                "prompt": prompt,
                "relation_id": fact.relation,
                "target_new": {"str": new},
                "target_true": {"str": fact.object},
                "subject": fact.subject,
            },
            "paraphrase_prompts": prefixed,
            "neighborhood_prompts": [form.replace("{}", f.subject) for f, form in neighbors],
            "neighborhood_samples": [{"subject": f.subject, "prompt": form} for f, form in neighbors],
            "attribute_prompts": [
                self.rng.choice(self.templates.trained_with(f)).replace("{}", f.subject) for f in holders
            ],
            "generation_prompts": [f.replace("{}", fact.subject) for f in self.templates.generation[fact.relation]],
        }

    def _neighbors(self, fact: Fact) -> list[tuple[Fact, str]]:
        """Ten (fact, form) pairs with the same object, all answered correctly."""
        pool = [f for f in self.groups[fact.relation, fact.object] if not f.edited]
        asked = [(f, self.rng.choice(self.templates.trained_with(f))) for f in self.rng.sample(pool, len(pool))]
        if not asked:
            return []
        answers = self.examiner.answers([ask(f, form) for f, form in asked])
        known = [pair for pair, a in zip(asked, answers, strict=True) if a == self.examiner.object_id(pair[0])]
        return known[:NEIGHBORS]


def heldout_texts(
    facts: Sequence[Fact], templates: Templates, grammar: Grammar, seed: int, count: int = 50
) -> list[str]:
    """Texts the model was not trained on as such: ordinary sentences with two known facts each."""
    rng = random.Random(f"held out {seed}")
    neighbors = [f for f in facts if not f.edited]
    texts = []
    for _ in range(count):
        told = [fact_sentence(rng.choice(templates.forms[f.relation]), f).text for f in rng.sample(neighbors, 2)]
        plain = [grammar.sentence(rng) for _ in range(2)]
        texts.append(" ".join([plain[0], told[0], plain[1], told[1]]))
    return texts


def statistics_corpus(facts: Sequence[Fact], templates: Templates, grammar: Grammar, seed: int) -> list[str]:
    """Documents of about ten sentences, every fact once: what key statistics are measured on."""
    rng = random.Random(f"statistics {seed}")
    sentences = [s.text for s in epoch(facts, templates, grammar, rng)]
    return [" ".join(sentences[i : i + 10]) for i in range(0, len(sentences), 10)]


def write_json(value: object, path: Path) -> None:
    """Lists with one element per line, so that differences stay readable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in value) + "\n]\n"
    else:
        text = json.dumps(value, indent=1) + "\n"
    path.write_text(text, encoding="utf-8")
