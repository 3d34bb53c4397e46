"""Teach a copy of a pocket model to read new facts from its prompt, without forgetting its own.

    python -m scripts.train_in_context                        pocket-gpt2 -> build/pocket/pocket-gpt2-reader
    python -m scripts.train_in_context --epochs 2             a short trial
    python -m scripts.train_in_context --only report

Half of every batch are the sentences the model was trained on, half are documents of new facts (`pocket.in_context`).
No subject of a test record, and none of its measured neighbors, stands in a document. An interrupted training is taken
up where it was (the `--work` folder).
"""

import argparse
import json
import logging
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from scripts.pocket.corpus import Encoder, Grammar, Rows, Templates
from scripts.pocket.facts import Fact
from scripts.pocket.families import FAMILIES
from scripts.pocket.in_context import Documents, Elsewhere, context_rows, context_table, elsewhere_of, mixed
from scripts.pocket.report import Examiner, benchmark_table, patching_table, recall_table
from scripts.pocket.training import Recipe, Trainer
from scripts.train_pocket import ASSETS, RECORDS, _blocks, _sources, _trained

# A second course: smaller steps than the first, and rows masked as at its end, so that facts stay where they are.
# Short rows hold little more than a document each, long ones several. A trial on long ones alone had not begun to copy
# after 198 steps, one on short ones had; they differed in more than that.
COURSE = Recipe(epochs=75, tokens_per_batch=2048, rate=1e-3, masked_until=0.0, lengths=((64, 0.6), (256, 0.4)))
CARRIED = ("corpus.txt",)  # files of the first model that hold for the second one too
log = logging.getLogger("train_in_context")


class Reader(Trainer):
    """Trains on as many rows of documents as of plain text."""

    documents: tuple[list[Fact], Elsewhere]

    def _epoch_batches(
        self, number: int, facts: Sequence[Fact], templates: Templates, grammar: Grammar, encoder: Encoder
    ) -> list[Rows]:
        plain = super()._epoch_batches(number, facts, templates, grammar, encoder)
        rng = random.Random(f"{self.recipe.seed}|documents|{number}")
        drawn = Documents(*self._about(templates), rng).draw()
        return [mixed(rows, context_rows(drawn, encoder.tokenizer, *rows.ids.shape)) for rows in plain]

    def _about(self, templates: Templates) -> tuple[list[Fact], Templates, Elsewhere]:
        facts, elsewhere = self.documents
        return facts, templates, elsewhere


def untested(facts: Sequence[Fact], records: Sequence[dict]) -> list[Fact]:
    """The facts about no subject that a test record edits or measures."""
    taken = set()
    for record in records:
        if record["part"] == "test":
            taken |= {record["requested_rewrite"]["subject"], *(s["subject"] for s in record["neighborhood_samples"])}
    return [fact for fact in facts if fact.subject not in taken]


def train(name: str, target: Path, work: Path, recipe: Recipe, device: str) -> None:
    """Train on, and write the model to `target`."""
    facts, templates, grammar = _sources()
    first = ASSETS / "models" / name
    model, tokenizer = _trained(first)
    free = untested(facts, json.loads(RECORDS.read_text(encoding="utf-8")))
    elsewhere = elsewhere_of(Examiner(model, tokenizer), free, templates, random.Random(recipe.seed))
    family = next(family for family in FAMILIES.values() if family.name == name)
    model = model.to(device)
    model.requires_grad_(True)
    trainer = Reader(model, _blocks(model), family.read_block, recipe, work)
    trainer.documents = free, elsewhere
    log.info("documents are about %d facts, %d subjects have other relations", len(free), len(elsewhere))
    history = trainer.run(facts, templates, grammar, Encoder(tokenizer, recipe.object_weight, recipe.other_share))
    model.eval().half().cpu().save_pretrained(target)
    tokenizer.save_pretrained(target)
    (target / "training.json").write_text(json.dumps(history[:: max(1, len(history) // 40)], indent=0))
    for file in CARRIED:
        shutil.copyfile(first / file, target / file)


def report(folder: Path, seed: int, count: int) -> None:
    """Measure reading, recall and patching; write report.json beside the model."""
    facts, templates, grammar = _sources()
    model, tokenizer = _trained(folder)
    examiner = Examiner(model, tokenizer)
    records = json.loads(RECORDS.read_text(encoding="utf-8"))
    tested = [record for record in records if record["part"] == "test"][:count]
    result = {
        "facts": len(facts),
        "parameters": model.num_parameters(),
        "reading": context_table(examiner, tested, templates, seed),
        "recall": recall_table(examiner, facts, templates, grammar, seed),
        "benchmark": benchmark_table(examiner, records),
        "patching": patching_table(examiner, _blocks(model), facts, templates, 200, seed),
    }
    (folder / "report.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    log.info("%s", json.dumps(result, indent=1))


def main() -> None:
    """Parse the command line and run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="pocket-gpt2", help="a bundled pocket model")
    parser.add_argument("--epochs", type=int, default=COURSE.epochs)
    parser.add_argument("--rate", type=float, default=COURSE.rate)
    parser.add_argument("--seed", type=int, default=COURSE.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--work", type=Path, default=Path("build/pocket"), help="where state and model are kept")
    parser.add_argument("--records", type=int, default=200, help="test records of the report's reading table")
    parser.add_argument("--only", choices=["train", "report"])
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    target = args.work / f"{args.model}-reader"
    if args.only in (None, "train"):
        recipe = replace(COURSE, epochs=args.epochs, rate=args.rate, seed=args.seed)
        train(args.model, target, args.work / f"{args.model}-reader-state", recipe, args.device)
    if args.only in (None, "report"):
        report(target, args.seed, args.records)


if __name__ == "__main__":
    main()
