"""Build a pocket model: facts -> tokenizer -> training -> report and benchmark.

    python -m scripts.train_pocket --triples facts.tsv          choose facts anew, then everything
    python -m scripts.train_pocket                              from the facts in assets/facts
    python -m scripts.train_pocket --only report                one stage of a trained model

Runs on the CPU or a GPU and takes up an interrupted training where it was (the `--work` folder).
The model goes to assets/models/NAME in half precision, its card and report beside it.
"""

import argparse
import json
import logging
import random
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from scripts.pocket.benchmark import Builder, heldout_texts, statistics_corpus, write_json
from scripts.pocket.corpus import Encoder, Grammar, Templates, epoch
from scripts.pocket.facts import Fact, read_facts, read_triples, select_facts, write_facts
from scripts.pocket.report import Examiner, patching_table, recall_table
from scripts.pocket.tokenizer import END, train_tokenizer
from scripts.pocket.training import Recipe, Trainer

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"
CONTEXT = 256
VOCABULARY = 5120
READ_BLOCK = 3  # the first block that may look back at a subject's last token while training
log = logging.getLogger("train_pocket")


def new_gpt2(vocabulary: int, end: int) -> PreTrainedModel:
    """The shipped shape: 6 blocks of width 256, about 6.1M parameters."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=CONTEXT,
            n_embd=256,
            n_layer=6,
            n_head=4,
            # the default gelu_new is a slow composite on the CPU; this one is fused
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end,
            eos_token_id=end,
        )
    )


FAMILIES = {"gpt2": new_gpt2}


def choose_facts(triples: Path, per_relation: int, seed: int) -> None:
    """Write assets/facts/facts.tsv from a larger table of triples."""
    facts = select_facts(read_triples(triples), per_relation, seed)
    write_facts(facts, ASSETS / "facts" / "facts.tsv")
    log.info("%d facts, %d of them editable", len(facts), sum(f.edited for f in facts))


def train(name: str, family: str, work: Path, recipe: Recipe, device: str) -> None:
    """Train tokenizer and model, then write both to assets/models/NAME."""
    facts = read_facts(ASSETS / "facts" / "facts.tsv")
    templates = Templates.read(ASSETS / "facts" / "templates.json")
    grammar = Grammar(ASSETS / "facts" / "text_grammar.json")
    rng = random.Random(recipe.seed)
    sample = [s.text for _ in range(8) for s in epoch(facts, templates, grammar, rng)]
    tokenizer = train_tokenizer(sample, sorted({f.object for f in facts}), VOCABULARY)
    torch.manual_seed(recipe.seed)
    model = FAMILIES[family](len(tokenizer), tokenizer.convert_tokens_to_ids(END)).to(device)
    encoder = Encoder(tokenizer, recipe.object_weight, recipe.other_share)
    log.info("%d parameters, %d facts", model.num_parameters(), len(facts))
    blocks = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    history = Trainer(model, blocks, READ_BLOCK, recipe, work).run(facts, templates, grammar, encoder)
    target = ASSETS / "models" / name
    model.eval().half().cpu().save_pretrained(target)
    tokenizer.save_pretrained(target)
    (target / "training.json").write_text(json.dumps(history[:: max(1, len(history) // 40)], indent=0))


def _trained(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, list[Fact], Templates, Grammar]:
    folder = ASSETS / "models" / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    facts = read_facts(ASSETS / "facts" / "facts.tsv")
    templates = Templates.read(ASSETS / "facts" / "templates.json")
    return model, tokenizer, facts, templates, Grammar(ASSETS / "facts" / "text_grammar.json")


def report(name: str, seed: int) -> None:
    """Measure recall and patching; write report.json beside the model."""
    model, tokenizer, facts, templates, grammar = _trained(name)
    examiner = Examiner(model, tokenizer)
    blocks = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    result = {
        "facts": len(facts),
        "parameters": model.num_parameters(),
        "recall": recall_table(examiner, facts, templates, grammar, seed),
        "patching": patching_table(examiner, blocks, facts, templates, 200, seed),
    }
    write_json(result, ASSETS / "models" / name / "report.json")
    log.info("%s", json.dumps(result, indent=1))


def benchmark(name: str, seed: int) -> None:
    """Write pocket-facts, the held-out texts and the statistics text."""
    model, tokenizer, facts, templates, grammar = _trained(name)
    builder = Builder(Examiner(model, tokenizer), facts, templates, grammar, seed)
    records = builder.records()
    write_json(records, ASSETS / "benchmark" / "pocket-facts.json")
    write_json(heldout_texts(facts, templates, grammar, seed), ASSETS / "benchmark" / "heldout.json")
    corpus = statistics_corpus(facts, templates, grammar, seed)
    (ASSETS / "models" / name / "corpus.txt").write_text("\n".join(corpus) + "\n", encoding="utf-8")
    log.info("%d records, %d documents for statistics", len(records), len(corpus))


def main() -> None:
    """Parse the command line and run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--name", default="pocket-gpt2", help="folder below assets/models")
    parser.add_argument("--family", default="gpt2", choices=sorted(FAMILIES))
    parser.add_argument("--triples", type=Path, help="table of relation_id, subject, object to choose from")
    parser.add_argument("--per-relation", type=int, default=185)
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--work", type=Path, default=Path("build/pocket"), help="where training state is kept")
    parser.add_argument("--only", choices=["facts", "train", "report", "benchmark"])
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.triples:
        choose_facts(args.triples, args.per_relation, args.seed)
    if args.only in (None, "train"):
        recipe = Recipe(epochs=args.epochs, seed=args.seed)
        train(args.name, args.family, args.work / args.name, recipe, args.device)
    if args.only in (None, "report"):
        report(args.name, args.seed)
    if args.only in (None, "benchmark"):
        benchmark(args.name, args.seed)


if __name__ == "__main__":
    main()
