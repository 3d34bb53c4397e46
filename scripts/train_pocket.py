"""Build a pocket model: facts -> tokenizer -> training -> report and benchmark.

    python -m scripts.train_pocket --triples facts.tsv          choose facts anew, then everything
    python -m scripts.train_pocket                              from the facts in assets/facts
    python -m scripts.train_pocket --family llama               a sibling: the same facts, another architecture
    python -m scripts.train_pocket --only report                one stage of a trained model

Runs on the CPU or a GPU and takes up an interrupted training where it was (the `--work` folder).
The model goes to assets/models/NAME in half precision, its card and report beside it; one too large to ship
(gpt2-large) stays in the work folder. The benchmark is made of what pocket-gpt2 knows; siblings are asked for it.
"""

import argparse
import json
import logging
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from scripts.pocket.benchmark import Builder, heldout_texts, statistics_corpus, write_json
from scripts.pocket.corpus import Encoder, Grammar, Templates, epoch
from scripts.pocket.facts import Fact, read_facts, read_triples, select_facts, write_facts
from scripts.pocket.families import FAMILIES, Family
from scripts.pocket.report import Examiner, benchmark_table, patching_table, recall_table
from scripts.pocket.tokenizer import END, train_tokenizer
from scripts.pocket.training import Recipe, Trainer

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"
RECORDS = ASSETS / "benchmark" / "pocket-facts.json"
VOCABULARY = 5120
log = logging.getLogger("train_pocket")


def folder_of(family: Family, work: Path) -> Path:
    """Where the trained model goes."""
    return (ASSETS / "models" if family.shipped else work) / family.name


def choose_facts(triples: Path, per_relation: int, seed: int) -> None:
    """Write assets/facts/facts.tsv from a larger table of triples."""
    facts = select_facts(read_triples(triples), per_relation, seed)
    write_facts(facts, ASSETS / "facts" / "facts.tsv")
    log.info("%d facts, %d of them editable", len(facts), sum(f.edited for f in facts))


def train(family: Family, target: Path, work: Path, recipe: Recipe, device: str) -> None:
    """Train tokenizer and model, then write both, and the text for key statistics, to `target`."""
    facts, templates, grammar = _sources()
    rng = random.Random(recipe.seed)
    sample = [s.text for _ in range(8) for s in epoch(facts, templates, grammar, rng)]
    tokenizer = train_tokenizer(sample, sorted({f.object for f in facts}), VOCABULARY)
    torch.manual_seed(recipe.seed)
    model = family.build(len(tokenizer), tokenizer.convert_tokens_to_ids(END)).to(device)
    encoder = Encoder(tokenizer, recipe.object_weight, recipe.other_share)
    log.info("%d parameters, %d facts", model.num_parameters(), len(facts))
    trainer = Trainer(model, _blocks(model), family.read_block, recipe, work)
    history = trainer.run(facts, templates, grammar, encoder)
    model.eval().half().cpu().save_pretrained(target)
    tokenizer.save_pretrained(target)
    (target / "training.json").write_text(json.dumps(history[:: max(1, len(history) // 40)], indent=0))
    corpus = statistics_corpus(facts, templates, grammar, recipe.seed)
    (target / "corpus.txt").write_text("\n".join(corpus) + "\n", encoding="utf-8")
    log.info("%d documents for statistics", len(corpus))


def _sources() -> tuple[list[Fact], Templates, Grammar]:
    facts = read_facts(ASSETS / "facts" / "facts.tsv")
    templates = Templates.read(ASSETS / "facts" / "templates.json")
    return facts, templates, Grammar(ASSETS / "facts" / "text_grammar.json")


def _blocks(model: PreTrainedModel) -> torch.nn.ModuleList:
    return max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)


def _trained(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def benchmark(folder: Path, seed: int) -> None:
    """Write pocket-facts and the held-out texts."""
    facts, templates, grammar = _sources()
    records = Builder(Examiner(*_trained(folder)), facts, templates, grammar, seed).records()
    write_json(records, RECORDS)
    write_json(heldout_texts(facts, templates, grammar, seed), ASSETS / "benchmark" / "heldout.json")
    log.info("%d records", len(records))


def report(folder: Path, seed: int) -> None:
    """Measure recall, of the benchmark too, and patching; write report.json beside the model."""
    facts, templates, grammar = _sources()
    model, tokenizer = _trained(folder)
    examiner = Examiner(model, tokenizer)
    result = {
        "facts": len(facts),
        "parameters": model.num_parameters(),
        "recall": recall_table(examiner, facts, templates, grammar, seed),
        "benchmark": benchmark_table(examiner, json.loads(RECORDS.read_text(encoding="utf-8"))),
        "patching": patching_table(examiner, _blocks(model), facts, templates, 200, seed),
    }
    write_json(result, folder / "report.json")
    log.info("%s", json.dumps(result, indent=1))


def main() -> None:
    """Parse the command line and run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--family", default="gpt2", choices=sorted(FAMILIES), help="a row of scripts/pocket/families.py"
    )
    parser.add_argument("--triples", type=Path, help="table of relation_id, subject, object to choose from")
    parser.add_argument("--per-relation", type=int, default=185)
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--work", type=Path, default=Path("build/pocket"), help="where training state is kept")
    parser.add_argument("--only", choices=["facts", "train", "report", "benchmark"])
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    family = FAMILIES[args.family]
    folder = folder_of(family, args.work)
    if args.triples:
        choose_facts(args.triples, args.per_relation, args.seed)
    if args.only in (None, "train"):
        recipe = Recipe(epochs=args.epochs, seed=args.seed)
        train(family, folder, args.work / family.name / "state", recipe, args.device)
    # The records are what pocket-gpt2 knows: its siblings are edited with the same ones.
    if args.only in (None, "benchmark") and args.family == "gpt2":
        benchmark(folder, args.seed)
    if args.only in (None, "report"):
        report(folder, args.seed)


if __name__ == "__main__":
    main()
