"""Estimated and real memory of edits: `python -m benchmarks.memory` prints a table, --quick two rows of it.

Each row is a fresh process that loads a model and does `run_edit`; its peak is the operating system's own
(Linux). Statistics are collected before, in a process of their own. The larger model has GPT-2 small's shape and
random weights: what it says is noise, what it takes is not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

ITERATIONS = 2
DOCUMENTS = 300  # of the bundled text, for the larger model's statistics
LARGER = "gpt2"


@dataclass(frozen=True)
class Case:
    """One edit. folder: of the larger model, empty for the bundled one."""

    model: str
    editor: str
    facts: int
    dtype: str = "float32"
    folder: str = ""
    iterations: int = ITERATIONS

    @property
    def label(self) -> str:
        """As a row's beginning."""
        shown = f"{self.model} shape" if self.folder else self.model
        return f"{shown} | {self.editor} | {self.dtype} | {self.facts}"


def bundled(editors: tuple[str, ...] = ("memit", "rome", "pmet", "alphaedit", "finetuning")) -> list[Case]:
    """The bundled model, every kind of editor, one fact and a hundred."""
    rounds = {"finetuning": 1}  # which takes minutes for a hundred facts
    return [Case("pocket-gpt2", e, facts, iterations=rounds.get(e, ITERATIONS)) for e in editors for facts in (1, 100)]


def larger(folder: str) -> list[Case]:
    """GPT-2 small's shape."""
    return [Case(LARGER, "memit", facts, dtype, folder, 1) for dtype in ("float32", "bfloat16") for facts in (1, 30)]


def estimated(case: Case) -> int:
    """Bytes that preflight tells."""
    from editing_core.preflight import Place, Undertaking

    folder = Path(case.folder) if case.folder else None
    asked = Undertaking(case.model, case.editor, None, case.facts, Place(case.dtype), case.iterations, folder)
    return asked.need().total


def measured(case: Case, home: Path) -> int:
    """Bytes at the peak of a fresh process; its statistics are made before where they are missing."""
    _run("prepare", case, home)
    return int(_run("edit", case, home))


def _run(what: str, case: Case, home: Path) -> str:
    environment = {**os.environ, "EDITSCOPE_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.memory", f"--{what}", json.dumps(asdict(case))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.splitlines()[-1] if done.stdout else ""


def _prepare(case: Case) -> None:
    """The statistics the case needs."""
    from editing_core import cli_plan
    from editing_core.models.language_model import LanguageModel
    from editing_core.registry import editor_row
    from editing_core.statistics.covariance import Corpus, CovarianceStore

    row = editor_row(case.editor)
    settings = row.preset(case.model).settings
    if not row.needs_statistics(settings):
        return
    store, corpus = CovarianceStore(), Corpus.bundled("pocket-gpt2")
    assert corpus is not None
    if case.folder:
        corpus = corpus.first(DOCUMENTS)
        lm = LanguageModel.load(case.model, "cpu", case.dtype, Path(case.folder))
        store.remember(lm, corpus)
    else:
        lm = cli_plan.load_model(case.model, case.dtype)
    store.collect(lm, row.layers(settings), corpus)


def _edit(case: Case) -> None:
    """The edit itself; prints the process's peak."""
    from editing_core.data.datasets import load_dataset, sample
    from editing_core.editors.stopping import StopSettings
    from editing_core.models.language_model import LanguageModel
    from editing_core.registry import editor_row
    from editing_core.runs.record import EditPlan
    from editing_core.session import run_edit

    folder = Path(case.folder) if case.folder else None
    lm = LanguageModel.load(case.model, "cpu", case.dtype, folder)
    requests = sample(load_dataset("pocket-facts"), case.facts, 0)
    settings = editor_row(case.editor).preset(case.model).settings
    run_edit(lm, requests, EditPlan(case.editor, settings, StopSettings(iterations=case.iterations, stop="none")))
    told = Path("/proc/self/status").read_text(encoding="utf-8")
    print(1024 * int(told.partition("VmHWM:")[2].split()[0]))


def make_larger(folder: Path) -> str:
    """A random model of GPT-2 small's shape with the bundled tokenizer, whose tokens are among its own."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

    from editing_core import paths

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(GPT2Config()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(paths.assets() / "models" / "pocket-gpt2").save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Estimated and real memory of edits.")
    parser.add_argument("--quick", action="store_true", help="the bundled model and MEMIT only")
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    parser.add_argument("--edit", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare or options.edit:
        work = _prepare if options.prepare else _edit
        return work(Case(**json.loads(options.prepare or options.edit)))
    with tempfile.TemporaryDirectory(prefix="editscope-memory-") as folder:
        home = Path(folder)
        cases = bundled(("memit",)) if options.quick else bundled() + larger(make_larger(home / "larger"))
        print("| model | editor | dtype | facts | estimate, MB | measured, MB | estimate / measured |")
        print("|---|---|---|---|---|---|---|")
        for case in cases:
            told, real = estimated(case), measured(case, home)
            print(f"| {case.label} | {told / 1e6:,.0f} | {real / 1e6:,.0f} | {told / real:.2f} |", flush=True)
    return None


if __name__ == "__main__":
    main()
