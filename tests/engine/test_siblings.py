"""The pocket models of other architectures: the same facts in the same places, shipped, editable and exported."""

import json
import random
from dataclasses import asdict
from itertools import product

import pytest
import torch

from editing_core import paths
from editing_core.data.datasets import load_dataset, sample
from editing_core.editors.stopping import StopSettings
from editing_core.evaluation.scoring import score_objects
from editing_core.export import exporting
from editing_core.export.origin import described
from editing_core.models.catalog import CATALOG
from editing_core.models.hooks import watching
from editing_core.models.language_model import LanguageModel
from editing_core.registry import EDITORS, editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import run_edit
from scripts.pocket.corpus import Templates
from scripts.pocket.facts import read_facts
from scripts.pocket.families import FAMILIES
from scripts.pocket.report import Examiner, ask, benchmark_table, patching_table
from scripts.pocket.training import attention_masks, masked_states
from scripts.search_presets import CONFIRM_SEEDS, TABLE, Table, plan_of, start_of, trial_key
from tests.conftest import bit_equal, left_alone, snapshot

FACTS = paths.assets() / "facts"
MODELS = paths.assets() / "models"
RECORDS = paths.assets() / "benchmark" / "pocket-facts.json"
SIBLINGS = {"llama": "pocket-llama", "gptj": "pocket-gptj"}
SEARCHED = ("memit", "pmet", "rome")
MOST_BYTES = 15_000_000
SUBJECT = range(5, 9)  # where the subject stands in the rows below; its last token is 8


@pytest.fixture(scope="module", params=SIBLINGS)
def sibling(request) -> LanguageModel:
    lm = LanguageModel.load(SIBLINGS[request.param], device="cpu")
    assert lm.architecture.family == request.param
    with left_alone(lm):
        yield lm


@pytest.fixture(scope="module")
def knowledge():
    return read_facts(FACTS / "facts.tsv"), Templates.read(FACTS / "templates.json")


@pytest.fixture(scope="module")
def asked():
    """One record to edit, and two that must stay."""
    return sample(load_dataset("pocket-facts"), 3, trial=4)


def edited(lm, editor, requests):
    """A run of the preset until the rule stops it; the model must come out as it went in."""
    plan = EditPlan(editor, editor_row(editor).preset(lm.name).settings, StopSettings(iterations=5, stop="perplexity"))
    before = snapshot(lm.model)
    run = run_edit(lm, requests, plan)
    assert bit_equal(lm.model, before)
    return run


def test_masks_hide_a_subject_but_for_its_last_token():
    span_end = torch.tensor([[-1, 2, 2, -1]])
    early, late = attention_masks(span_end, torch.tensor([True]))
    assert early[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]
    assert late[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    for free in attention_masks(span_end, torch.tensor([False])):
        assert torch.equal(free[0, 0], torch.ones(4, 4).tril().bool())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_training_mask_holds_in_every_family(name):
    """What stands after a subject learns of it from the reading block on, through its last token alone."""
    family = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = family.build(50, 0).eval()
        ids = torch.randint(1, 50, (2, 14))
    ids[1] = ids[0]
    ids[1, SUBJECT[0]] = ids[0, SUBJECT[0]] % 49 + 1
    span_end = torch.full((2, 14), -1)
    span_end[:, list(SUBJECT)] = SUBJECT[-1]
    lists = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)}
    place, blocks = max(lists.items(), key=lambda found: len(found[1]))
    names = [f"{place}.{number}" for number in range(len(blocks))]

    @torch.no_grad()
    def differences(early, masked):
        """(blocks, 14): how far the two rows are apart, whose subjects begin with different tokens."""
        with watching(model, names) as seen:
            masked_states(model, blocks[:early], ids, span_end, torch.tensor([masked, masked]))
        return torch.stack([(seen[name][0] - seen[name][1]).abs().amax(-1) for name in names])

    after, last, read = slice(SUBJECT[-1] + 1, None), SUBJECT[-1], family.read_block
    trained = differences(read, True)
    assert (trained[1:, last] > 1e-6).all()
    assert trained[:read, after].max() == 0
    assert (trained[read:, after] > 0).all()
    assert differences(len(blocks), True)[:, after].max() == 0
    assert (differences(read, False)[1:, after] > 0).all()


def test_the_files_are_small_enough_and_complete(sibling):
    folder = MODELS / sibling.name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= MOST_BYTES
    assert (folder / "tokenizer.json").read_bytes() == (MODELS / "pocket-gpt2" / "tokenizer.json").read_bytes()
    assert (folder / "corpus.txt").read_bytes() == (MODELS / "pocket-gpt2" / "corpus.txt").read_bytes()
    row, report = CATALOG[sibling.name], json.loads((folder / "report.json").read_text())
    assert row.bundled
    assert sibling.model.num_parameters() == report["parameters"] == pytest.approx(row.parameters, rel=0.02)


def test_the_card_tells_what_was_measured(sibling):
    card = (MODELS / sibling.name / "README.md").read_text(encoding="utf-8")
    report = json.loads((MODELS / sibling.name / "report.json").read_text())
    shown = [f"{value:.1f}" for value in (*report["recall"].values(), *report["benchmark"].values())]
    assert [figure for figure in shown if figure not in card] == []
    for site, label in (("subject_last", "subject's last token"), ("prompt_last", "prompt's last token")):
        (row,) = [line for line in card.splitlines() if line.startswith(f"| {label}")]
        told = [float(cell) for cell in row.split("|")[2:-1]]
        assert told == pytest.approx(report["patching"][site], abs=0.00501)


def test_knows_its_facts(sibling, knowledge):
    facts, templates = knowledge
    examiner, rng = Examiner(sibling.model, sibling.tokenizer), random.Random(0)
    picked = rng.sample(facts, 200)
    assert examiner.recall([ask(f, rng.choice(templates.trained_with(f))) for f in picked]) >= 97
    table = benchmark_table(examiner, random.Random(1).sample(json.loads(RECORDS.read_text()), 20))
    assert min(table.values()) >= 95


def test_facts_sit_at_the_subject_in_the_early_blocks(sibling, knowledge):
    blocks = [sibling.model.get_submodule(sibling.architecture.block(i)) for i in range(sibling.layers)]
    table = patching_table(Examiner(sibling.model, sibling.tokenizer), blocks, *knowledge, 40, seed=1)
    read = FAMILIES[sibling.architecture.family].read_block
    assert max(table["subject_last"][:read]) >= 0.8
    assert min(table["subject_last"][:read]) >= 0.6  # 40 pairs: a share of .8 strays by some .06
    assert max(table["prompt_last"][:read]) <= 0.1
    assert table["subject_last"][-1] <= 0.1
    assert table["prompt_last"][-1] >= 0.9


@pytest.mark.parametrize("editor", SEARCHED)
def test_a_search_begins_at_the_preset_of_pocket_gpt2(sibling, editor):
    read = FAMILIES[sibling.architecture.family].read_block
    first, own = editor_row(editor).preset("pocket-gpt2").settings, start_of(sibling.name, editor)
    place = "layer" if editor == "rome" else "layers"
    assert asdict(own) == asdict(first) | {place: read - 1 if editor == "rome" else tuple(range(read))}
    tried = plan_of(sibling.name, editor).ladders[place]
    assert tried[0] == getattr(own, place)
    assert len(set(tried)) == len(tried) >= 3
    assert max(max(t) if isinstance(t, tuple) else t for t in tried) == read - 1


@pytest.mark.parametrize("editor", SEARCHED)
def test_a_searched_preset_was_confirmed(sibling, editor):
    """On both draws of records that the search itself did not see, as docs/presets.csv tells."""
    preset = editor_row(editor).presets[sibling.name]
    table, size = Table(TABLE), plan_of(sibling.name, editor).confirm
    keys = [trial_key(sibling.name, editor, preset.settings, size, seed) for seed in CONFIRM_SEEDS]
    assert all(table.find(key) for key in keys)


@pytest.mark.parametrize("editor", EDITORS)
def test_presets_change_layers_below_the_block_that_reads(sibling, editor):
    row = EDITORS[editor]
    preset = row.preset(sibling.name)
    assert preset.suggested == (editor not in SEARCHED)
    layers = () if editor == "finetuning" or row.beside else row.layers(preset.settings)
    for layer in layers:
        assert layer < FAMILIES[sibling.architecture.family].read_block


@pytest.mark.parametrize(
    ("sibling", "editor"),
    [("llama", "memit")]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in product(SIBLINGS, SEARCHED)
        if case != ("llama", "memit")
    ],
    indirect=["sibling"],
)
def test_an_edit_changes_its_fact_and_leaves_the_others(sibling, asked, editor):
    objects = [(r.full_prompt, o) for r in asked for o in (r.target_true, r.target_new)]
    objects += [(probe.prompt, probe.answer) for probe in asked[0].neighbors]
    neighbors = len(asked[0].neighbors)
    assert neighbors >= 5
    assert [s.hit for s in score_objects(sibling, objects)] == [1.0, 0.0] * 3 + [1.0] * neighbors
    run = edited(sibling, editor, asked[:1])
    with run.delta_at(run.last).applied(sibling):
        after = [s.hit for s in score_objects(sibling, objects)]
    assert after[:6] == [0.0, 1.0] + [1.0, 0.0] * 2
    assert sum(after[6:]) >= neighbors - 1
    assert run.iterations["collapse_ppl"].iloc[-1] < 1.05 * run.iterations["collapse_ppl"].iloc[0]


@pytest.mark.slow
def test_an_edit_leaves_as_an_adapter(sibling, asked, tmp_path):
    """Another process, without EditScope, loads it onto the bundled model and says the same."""
    run = edited(sibling, "memit", asked[:1])
    check = exporting.export(sibling, described(run), "adapter", tmp_path / "adapter")
    assert check.ok, check.told()
    assert check.largest <= check.bound < 0.01 * check.change
    assert asked[0].target_new in (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
