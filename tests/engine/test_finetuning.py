"""Fine-tuning: what is trained, on what, and that nothing of it stays in the model."""

import math
from dataclasses import replace

import pytest
import torch

from editing_core.data.datasets import load_dataset, sample
from editing_core.data.pool import silent
from editing_core.data.subjects import known_facts
from editing_core.editors.assist import Assist
from editing_core.editors.finetuning import FineTuningSettings
from editing_core.editors.iterative import Iterative
from editing_core.editors.materials import Alike, Materials
from editing_core.editors.recipes import LADDER, RECIPES
from editing_core.editors.steps.examples import Example
from editing_core.editors.steps.token_rows import Labels, items_of, text_row, token_row
from editing_core.editors.steps.training import Course, Loss, Trainer, thinned
from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadRequest, BadSetting, Cancelled, NotFinite
from editing_core.evaluation.reference import finetuning
from editing_core.making import build_editor
from editing_core.models.delta import Dense, LowRank, WeightDelta
from editing_core.models.trainable import (
    Lora,
    adapted,
    embedding_module,
    linear_modules,
    parameters_in,
    unfrozen,
)
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.types import Probe, ignore
from tests.conftest import DISTINCT, bit_equal, cancel_after, each_of, snapshot

tiny_lm = each_of(DISTINCT)

PLAIN = FineTuningSettings(paraphrases=0, random_facts=0, epochs=4, rate=1e-2, dropout=0.0, rank=4, alpha=8.0)
EXAMPLES = [
    Example("edit", "Mary Walker was born in", "London", "Paris"),
    Example("paraphrase", "The old house. Mary Walker was born in", "London", "Paris"),
    Example("random", "The mother tongue of Peter Smith is", "French"),
]
COURSE = Course(rate=1e-2, epochs=3, batch=2)


def editor(lm, requests, settings=PLAIN, seed=0, **more):
    return editor_row("finetuning").build(settings, Materials(lm, None, None, seed, requests=requests, **more))


def gradients(weights):
    return [p.grad.clone() for p in weights.parameters]


def close(a, b):
    """Sums in another order: float32 rounding, a few units in the seventh digit of the largest entry."""
    most = max(float(x.abs().max()) for x in a)
    return all(torch.allclose(x, y, rtol=0, atol=5e-6 * most) for x, y in zip(a, b, strict=True))


def by_transformers(lm, weights, rows, first):
    """Gradients of the library's own loss, with everything before `first` ignored in each row."""
    for p in weights.parameters:
        p.grad = None
    longest = max(map(len, rows))
    ids, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), -100)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        labels[i, first[i] : len(row)] = torch.tensor(row[first[i] :])
    with torch.enable_grad():
        lm.model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
    return gradients(weights)


@pytest.mark.parametrize("mask", [True, False])
def test_masked_tokens_contribute_nothing_to_the_gradient(tiny_lm, mask):
    items = items_of(tiny_lm, EXAMPLES, Labels(mask), compare=False)
    rows = [(*item.row.ids, item.row.labels[-1]) for item in items]
    first = [len(row) - len(item.row.labels) for row, item in zip(rows, items, strict=True)]
    assert mask == (min(first) > 1)
    with unfrozen(tiny_lm, parameters_in(tiny_lm)) as weights:
        trainer = Trainer(tiny_lm, weights, Loss(), COURSE, 0)
        terms = trainer.gradients(items, ())
        own = gradients(weights)
        assert close(own, by_transformers(tiny_lm, weights, rows, first))
        other = [1 if mask else len(row) - 1 for row in rows]
        assert not close(own, by_transformers(tiny_lm, weights, rows, other))
    assert terms["loss"] > 0
    assert set(terms) == {"loss", "edit", "paraphrase", "random"}


def test_a_batch_in_many_forwards_gives_the_same_gradient(tiny_lm):
    loss = Loss(dpo=0.3, language=0.2)
    items = items_of(tiny_lm, EXAMPLES, Labels(), compare=True)
    texts = [text_row(tiny_lm, "The weather was fine, and so we went home."), text_row(tiny_lm, "The river runs.")]
    found = []
    with unfrozen(tiny_lm, parameters_in(tiny_lm)) as weights:
        trainer = Trainer(tiny_lm, weights, loss, COURSE, 0)
        for divisor in (1, 64):
            tiny_lm.divisor = divisor
            try:
                told = trainer.gradients(items, texts)
            finally:
                tiny_lm.divisor = 1
            found.append((gradients(weights), told))
    (one, terms), (many, again) = found
    assert close(one, many)
    assert again == pytest.approx(terms, rel=1e-5)
    assert terms["dpo"] == pytest.approx(math.log(2), rel=1e-5)  # nothing has changed yet
    mean = sum(len(i.row.labels) * terms[i.row.kind] for i in items) / sum(len(i.row.labels) for i in items)
    assert terms["loss"] == pytest.approx(0.8 * (0.7 * mean + 0.3 * math.log(2)) + 0.2 * terms["language"], rel=1e-5)


def test_memory_that_runs_out_once_changes_nothing(tiny_lm, requests_, monkeypatch):
    def train():
        return editor(tiny_lm, requests_).edit(tiny_lm, requests_).delta

    plain, often = train(), 0
    hidden = type(tiny_lm).hidden

    def scarce(self, batch, cache=None):
        nonlocal often
        if torch.is_grad_enabled():
            often += 1
            if often == 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(self, batch, cache)

    monkeypatch.setattr(type(tiny_lm), "hidden", scarce)
    try:
        again = train()
        assert tiny_lm.divisor == 2
    finally:
        tiny_lm.divisor = 1
    for name, update in plain.updates.items():
        assert torch.allclose(update.dense(), again.updates[name].dense(), atol=1e-4)


@pytest.mark.parametrize("rule", ["position", "identity", "last"])
def test_which_tokens_are_labelled(pocket, rule):
    example = Example("edit", "London, says Mary Walker, is", "London")
    row = token_row(pocket, example, "London", Labels(True, rule))
    end = pocket.tokenizer.eos_token_id
    say = [pocket.tokenizer.decode(label).strip() for label in row.labels]
    if rule == "position":
        assert say == ["London"]
        assert row.positions == (len(row.ids) - 1,)
    if rule == "last":
        assert say == ["London"]
        assert set(row.positions) == {len(row.ids) - 1}
    if rule == "identity":
        assert say[-1] == "London"
        assert end not in row.labels  # masked, the end of text is none of the object's tokens
        whole = token_row(pocket, example, "London", Labels(False, rule))
        assert whole.labels[-1] == end
        assert len(whole.labels) == len(whole.ids)
        longer = replace(EXAMPLES[1], prompt=f"The old house. {EXAMPLES[1].prompt}")
        filled = items_of(pocket, [example, longer], Labels(False, rule), compare=False)
        assert len({len(item.row.ids) for item in filled}) == 1
        assert filled[0].row.labels.count(end) > 1


def test_last_asks_every_token_of_the_prompts_end(pocket):
    row = token_row(
        pocket, Example("edit", "Mary Walker was born in", "New South Wales"), "New South Wales", Labels(True, "last")
    )
    assert len(row.labels) > 1
    assert set(row.positions) == {len(row.ids) - 1}
    assert pocket.tokenizer.decode(row.ids) == "Mary Walker was born in"


@pytest.mark.parametrize("where", ["attention", "mlp", "all"])
def test_an_adapter_and_its_factors_say_the_same(tiny_lm, where):
    parts = ("attention", "mlp") if where == "all" else (where,)
    names = linear_modules(tiny_lm, parts)
    assert len(names) == len(set(names)) > 0
    if where == "all":
        assert set(names) == {*linear_modules(tiny_lm, ("attention",)), *linear_modules(tiny_lm, ("mlp",))}
    before, batch = snapshot(tiny_lm.model), tiny_lm.batch([[5, 6, 7, 8], [9, 10, 11]])
    plain = tiny_lm.hidden(batch)
    with torch.random.fork_rng(), adapted(tiny_lm, names, Lora(3, 6.0)) as weights:
        torch.manual_seed(1)
        with torch.no_grad():
            for p in weights.parameters:
                p.normal_(0, 0.2)
        on, delta = tiny_lm.hidden(batch), weights.delta()
    assert bit_equal(tiny_lm.model, before)
    assert set(delta.updates) == {f"{name}.weight" for name in names}
    assert all(isinstance(u, LowRank) and u.rank() == 3 for u in delta.updates.values())
    with delta.applied(tiny_lm):
        merged = tiny_lm.hidden(batch)
    assert (on - plain).abs().max() > 0.1
    assert torch.allclose(on, merged, atol=1e-5 * float(on.detach().abs().max()))


def test_embeddings_take_an_adapter_unless_the_output_shares_them(tiny_lm):
    if tiny_lm.model.config.tie_word_embeddings:
        with pytest.raises(BadSetting, match="shares its input embeddings"):
            editor(tiny_lm, (), replace(PLAIN, embeddings=True))
        return
    name, batch = embedding_module(tiny_lm), tiny_lm.batch([[5, 6, 7]])
    with torch.random.fork_rng(), adapted(tiny_lm, [name], Lora(2, 2.0)) as weights:
        with torch.no_grad():
            for p in weights.parameters:
                p.normal_(0, 0.2)
        on, delta = tiny_lm.hidden(batch), weights.delta()
    with delta.applied(tiny_lm):
        assert torch.allclose(on, tiny_lm.hidden(batch), atol=1e-5)
    assert not torch.allclose(on, tiny_lm.hidden(batch), atol=1e-2)


def test_dropout_acts_only_while_training(tiny_lm):
    names, batch = linear_modules(tiny_lm, ("mlp",)), tiny_lm.batch([[5, 6, 7]])
    with torch.random.fork_rng(), adapted(tiny_lm, names, Lora(2, 2.0, 0.5)) as weights:
        with torch.no_grad():
            for p in weights.parameters:
                p.normal_(0, 0.2)
        assert torch.equal(tiny_lm.hidden(batch), tiny_lm.hidden(batch))
        weights.dropout(True)
        assert not torch.equal(tiny_lm.hidden(batch), tiny_lm.hidden(batch))


@pytest.mark.parametrize("where", ["all", "blocks", "down"])
def test_whole_weights_give_a_delta_of_what_changed(tiny_lm, requests_, where):
    before = snapshot(tiny_lm.model)
    settings = replace(PLAIN, lora=False, where=where, layers=(1,), rate=1e-3)
    delta = editor(tiny_lm, requests_, settings).edit(tiny_lm, requests_).delta
    assert bit_equal(tiny_lm.model, before)
    assert all(isinstance(update, Dense) for update in delta.updates.values())
    block, down = f"{tiny_lm.architecture.block(1)}.", f"{tiny_lm.architecture.down(1)}."
    inside = {"all": "", "blocks": block, "down": down}[where]
    assert all(name.startswith(inside) for name in delta.updates)
    assert all(bool(update.value.any()) for update in delta.updates.values())
    assert (len(delta.updates) < len(list(tiny_lm.model.parameters()))) == (where != "all")
    again = WeightDelta.of(delta.tensors(), {})
    with again.applied(tiny_lm):
        changed = {name for name, value in tiny_lm.model.state_dict().items() if not torch.equal(value, before[name])}
    tied = {"lm_head.weight"} if tiny_lm.model.config.tie_word_embeddings else set()
    assert changed - tied == set(delta.updates)
    assert bit_equal(tiny_lm.model, before)


def test_what_was_trained_is_what_is_applied(tiny_lm):
    """The weights at the end of training are those that the edit gives, to the last bits of float32."""
    before = snapshot(tiny_lm.model)
    with unfrozen(tiny_lm, parameters_in(tiny_lm)) as weights:
        items = items_of(tiny_lm, EXAMPLES, Labels(), compare=False)
        Trainer(tiny_lm, weights, Loss(), COURSE, 0).run(items, (), ignore)
        trained, delta = snapshot(tiny_lm.model), weights.delta()
    with delta.applied(tiny_lm):
        for name, value in tiny_lm.model.state_dict().items():
            # A difference is rounded once to float32, and so is the sum: each by 2^-24 of what it is.
            slack = 2**-23 * ((trained[name] - before[name]).abs() + trained[name].abs())
            assert bool(((value - trained[name]).abs() <= slack).all()), name


@pytest.mark.parametrize("lora", [True, False])
def test_it_writes_repeats_itself_and_can_be_stopped(tiny_lm, requests_, lora):
    before = snapshot(tiny_lm.model)
    settings = replace(PLAIN, lora=lora, rate=1e-2 if lora else 3e-3, dropout=0.1)
    steps = []
    outcome = editor(tiny_lm, requests_, settings).edit(tiny_lm, requests_, steps.append)
    assert bit_equal(tiny_lm.model, before)
    assert (outcome.targets.log_p_final < outcome.targets.log_p_initial).all()
    assert [step.done for step in steps] == [1, 2, 3, 4]
    assert "Trained in 4 steps on 2 examples: edit 2." in outcome.notes
    again = editor(tiny_lm, requests_, settings).edit(tiny_lm, requests_)
    other = editor(tiny_lm, requests_, settings, seed=1).edit(tiny_lm, requests_)
    first, second, third = ([u.dense() for u in found.delta.updates.values()] for found in (outcome, again, other))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert lora != all(torch.equal(a, b) for a, b in zip(first, third, strict=True))
    for count in range(4):
        with pytest.raises(Cancelled):
            editor(tiny_lm, requests_, settings).edit(tiny_lm, requests_, cancel_after(count))
        assert bit_equal(tiny_lm.model, before)
        assert not any(p.requires_grad or p.grad is not None for p in tiny_lm.model.parameters())
        assert not hasattr(tiny_lm.model, "peft_config")


def test_the_random_numbers_of_others_are_left_alone(tiny_models, requests_):
    lm = tiny_models("gpt2")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    editor(lm, requests_).edit(lm, requests_)
    assert torch.equal(torch.rand(3), expected)


def test_a_loss_that_is_no_number_ends_the_training(tiny_models, requests_):
    lm = tiny_models("gpt2")
    before = snapshot(lm.model)
    settings = replace(PLAIN, lora=False, rate=1.0, optimiser="sgd", clip=0.0, epochs=40)
    with pytest.raises(NotFinite, match="use a smaller rate"):
        editor(lm, requests_, replace(settings, weight_decay=10.0)).edit(lm, requests_)
    assert bit_equal(lm.model, before)


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
def test_a_bound_holds_every_entry(tiny_models, requests_, optimiser):
    lm = tiny_models("gpt2")
    settings = replace(PLAIN, lora=False, where="down", layers=(1,), bound=1e-3, rate=0.05, optimiser=optimiser)
    delta = editor(lm, requests_, settings).edit(lm, requests_).delta
    most = max(float(update.value.abs().max()) for update in delta.updates.values())
    assert most == pytest.approx(1e-3, rel=1e-3)


def test_weight_decay_by_count_is_that_of_the_baseline():
    settings = FineTuningSettings(weight_decay=1.0, decay_by_count=True)
    assert settings.decay(1) == pytest.approx(1.1687, abs=1e-4)
    assert settings.decay(10_000) == pytest.approx(3.86e-4, abs=1e-6)
    assert FineTuningSettings(weight_decay=0.3).decay(50) == 0.3


def test_enough_ends_an_epoch_early(tiny_models, requests_):
    lm = tiny_models("gpt2")
    steps = []
    outcome = editor(lm, requests_, replace(PLAIN, epochs=50, enough=10.0)).edit(lm, requests_, steps.append)
    assert len(steps) == 1
    assert all(not update.dense().any() for update in outcome.delta.updates.values())


@pytest.mark.parametrize(("least", "steps"), [(0, 4), (4, 4), (9, 9), (10, 10)])
def test_few_examples_are_seen_more_often(tiny_models, requests_, least, steps):
    lm, told = tiny_models("gpt2"), []
    editor(lm, requests_, replace(PLAIN, least_steps=least)).edit(lm, requests_, told.append)
    assert len(told) == steps
    assert told[-1].note == f"epoch {steps} of {steps}"


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25]), ("cosine", [1, 0.853553, 0.5, 0.146447])],
)
def test_schedules(tiny_models, schedule, shares):
    lm, seen = tiny_models("gpt2"), []
    with unfrozen(lm, [f"{lm.architecture.down(0)}.weight"]) as weights:
        trainer = Trainer(lm, weights, Loss(), replace(COURSE, epochs=4, schedule=schedule), 0)
        items = items_of(lm, EXAMPLES[:2], Labels(), compare=False)
        rate = []
        step = torch.optim.AdamW.step

        def watched(self, *given, **more):
            rate.append(self.param_groups[0]["lr"])
            return step(self, *given, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", watched)
            trainer.run(items, (), seen.append)
    assert [r / 1e-2 for r in rate] == pytest.approx(shares, abs=1e-5)


# --- what is trained beside the edits


@pytest.fixture(scope="module")
def records():
    return sample(load_dataset("pocket-facts:tune"), 12, 0)


def plan_of(settings, seed=0, **assist):
    return EditPlan("finetuning", settings, StopSettings(iterations=1, stop="none"), seed, Assist(**assist))


def examples_of(lm, requests, settings, seed=0, **assist):
    built = build_editor(lm, requests, plan_of(settings, seed, **assist), None)
    return built, built._examples(requests)


def count(examples):
    kinds = [example.kind for example in examples]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def test_every_edit_gets_its_share_of_each_kind(pocket, records):
    settings = FineTuningSettings(paraphrases=5, random_facts=7, similar_facts=3, encoder="own")
    built, examples = examples_of(pocket, records, settings)
    assert count(examples) == {"edit": 12, "paraphrase": 60, "random": 84, "similar": 36}
    for request in records:
        own = built.data.examples(request)
        assert own[0] == Example("edit", request.full_prompt, request.target_new, request.target_true)
        prefixed = [e for e in own if e.kind == "paraphrase"]
        assert len({e.prompt for e in prefixed}) == 5
        assert all(
            e.prompt.endswith(request.full_prompt) and len(e.prompt) > len(request.full_prompt) for e in prefixed
        )
        for kind in ("random", "similar"):
            facts = [e for e in own if e.kind == kind]
            assert len({(e.prompt, e.answer) for e in facts}) == len(facts)
            assert all(e.rejected != e.answer for e in facts)
    assert "mean hidden state of pocket-gpt2" in " ".join(built.about)


def test_similar_facts_are_nearer_than_random_ones(pocket, records):
    """Of the same relation more often: what the encoder is for."""
    settings = FineTuningSettings(paraphrases=0, random_facts=15, similar_facts=15, encoder="own")
    built, _ = examples_of(pocket, records, settings)
    relations = {(fact.prompt, fact.answer): fact.family for fact in known_facts(0)}
    shares = {}
    for kind in ("random", "similar"):
        found = [
            relations[(e.prompt, e.answer)] == request.relation_id
            for request in records
            for e in built.data.beside[request.case_id]
            if e.kind == kind
        ]
        shares[kind] = sum(found) / len(found)
    assert shares["similar"] > 2 * shares["random"]


@pytest.mark.parametrize("kind", ["random_facts", "similar_facts"])
def test_nothing_that_is_measured_is_trained_on(pocket, kind):
    requests = sample(load_dataset("pocket-facts"), 100, 0)
    settings = FineTuningSettings(**{"paraphrases": 0, "random_facts": 0, kind: 15}, encoder="own", language=0.1)
    built, examples = examples_of(pocket, requests, settings)
    beside = [e for e in examples if e.kind != "edit"]
    measured = {f"{n.prompt} {n.answer}".casefold() for r in requests for n in r.neighbors}
    measured |= {
        f"{p} {o}".casefold()
        for r in requests
        for p in (r.full_prompt, *r.paraphrases)
        for o in (r.target_new, r.target_true)
    }
    assert len(beside) == 1500
    assert not measured & {f"{e.prompt} {e.answer}".casefold() for e in beside}
    triples = {(r.subject, o) for r in requests for o in (r.target_new, r.target_true)}
    triples |= {(n.subject, n.answer) for r in requests for n in r.neighbors}
    subjects = {fact.prompt: fact.subject for fact in known_facts(0)}
    assert not triples & {(subjects[e.prompt], e.answer) for e in beside}
    text = "\n".join(built.data.texts)
    assert text
    assert not [n.subject for r in requests for n in r.neighbors if n.subject and f" {n.subject} " in text]


def test_texts_keep_the_sentences_that_speak_of_others(requests_):
    texts = ["Mary Walker was here. It was late!  Nobody knew.", "mary walker came.", "Nobody came."]
    assert silent(texts, requests_) == ["It was late! Nobody knew.", "Nobody came."]


def test_all_is_drawn_by_seed_from_the_unedited_model(pocket, records):
    settings = FineTuningSettings(paraphrases=4, random_facts=5, language=0.1)
    first, again, other = (examples_of(pocket, records, settings, seed)[0].data for seed in (0, 0, 1))
    assert first == again
    assert first.prefixes != other.prefixes
    assert first.beside != other.beside
    assert first.texts != other.texts
    assert all(prefix.endswith(". ") for prefix in first.prefixes)


def test_a_model_without_a_corpus_writes_its_own_texts(tiny_models, requests_):
    lm = tiny_models("gpt2")
    built = editor(lm, requests_, replace(PLAIN, language=0.1))
    assert len(built.data.texts) == 6
    assert any("No corpus comes with tiny-gpt2" in note for note in built.about)
    outcome = built.edit(lm, requests_)
    assert "language" in outcome.targets.history[0]


def test_without_facts_it_says_what_to_do(tiny_models, requests_):
    with pytest.raises(BadRequest, match="set random facts and similar facts to 0"):
        editor(tiny_models("gpt2"), requests_, replace(PLAIN, random_facts=3))


def test_the_bundled_model_can_make_the_words_up(tiny_models, pocket, requests_):
    lm = tiny_models("llama")
    own = editor(lm, requests_, replace(PLAIN, paraphrases=3)).data.prefixes
    small = editor(lm, requests_, replace(PLAIN, paraphrases=3, prefix_model="pocket-gpt2")).data.prefixes
    assert small == editor(pocket, requests_, replace(PLAIN, paraphrases=3)).data.prefixes != own


def test_alike_is_asked_for_every_request(tiny_models, requests_):
    facts = [Probe(f"Fact {i} is", "so", family="r") for i in range(6)]
    asked = []

    def alike(queries, items, number, own):
        asked.append((len(queries), len(items), number, own))
        return Alike([[5, 1], [0, 2]], [[1.0, 0.5]] * 2, "Told by a test.")

    built = editor(tiny_models("gpt2"), requests_, replace(PLAIN, similar_facts=2), facts=lambda: facts, alike=alike)
    assert asked == [(2, 6, 2, False)]
    assert [e.prompt for e in built.data.beside[1]] == ["Fact 5 is", "Fact 1 is"]
    assert built.about == ("Told by a test.",)


# --- with iterations and assistance


def test_the_rule_fires_after_one_iteration_and_without_it_training_goes_on(tiny_models, requests_):
    lm = tiny_models("gpt2")
    built = editor(lm, requests_)
    once = Iterative(built, StopSettings(iterations=5, tolerance=0.01)).edit(lm, requests_)
    assert [done.k for done in once.rounds] == [1]
    assert once.decision.rule == "perplexity"
    twice = Iterative(built, StopSettings(iterations=2, stop="none")).edit(lm, requests_)
    first, second = twice.rounds
    assert second.ppl_spread < first.ppl_spread
    assert first.ppl_optimised == pytest.approx(first.ppl_spread, rel=1e-4)
    rank = {name: update.rank() for name, update in second.delta.updates.items()}
    assert set(rank.values()) == {8}  # two adapters of rank 4 side by side


@pytest.mark.parametrize("weighting", ["code", "paper"])
def test_edit_neighbors_are_trained_with_their_weight(tiny_models, requests_, weighting):
    lm = tiny_models("gpt2")
    requests = tuple(
        replace(r, edit_neighbors=(Probe("Peter Smith was born in", "Paris", "Peter Smith"),)) for r in requests_
    )
    assist = Assist(neighbors="na", weighting=weighting, weight=3.0)
    built = editor(lm, requests, assist=assist)
    steps = []
    built.edit(lm, requests, steps.append)
    assert "neighbor" in steps[0].terms
    items = items_of(lm, built._examples(requests), Labels(), compare=False)
    own = [i for i in items if i.row.kind == "edit"]
    with unfrozen(lm, parameters_in(lm)) as weights:
        told = Trainer(lm, weights, built._loss(), COURSE, 0).gradients(items, ())
    n, m = (sum(len(i.row.labels) for i in group) for group in (own, [i for i in items if i not in own]))
    if weighting == "paper":
        assert told["loss"] == pytest.approx(told["edit"] + 3 * told["neighbor"], rel=1e-5)
    else:
        assert told["loss"] == pytest.approx((n * told["edit"] + 3 * m * told["neighbor"]) / (n + 3 * m), rel=1e-5)
    nap = editor(lm, requests, assist=replace(assist, neighbors="nap"))
    assert nap._examples(requests)[-1].prompt.endswith("Peter Smith was born in") != "Peter Smith was born in"


@pytest.mark.parametrize(
    ("settings", "assist", "words"),
    [
        (replace(PLAIN, bound=0.1), Assist(), "not for an adapter"),
        (replace(PLAIN, mask=False, labels="last"), Assist(), "set mask on"),
    ],
)
def test_what_has_no_place_in_training_is_refused(tiny_models, settings, assist, words):
    with pytest.raises(BadSetting, match=words):
        editor(tiny_models("gpt2"), (), settings, assist=assist)


def test_a_layer_the_model_has_not_is_refused(pocket, records):
    with pytest.raises(BadSetting, match="Layer 21"):
        build_editor(pocket, records, plan_of(FineTuningSettings(where="blocks", layers=(21,))), None)


# --- recipes


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
@pytest.mark.parametrize("model", ["pocket-gpt2", "gpt2-xl", "gpt-j-6b", "llama-2-7b", "someone/else"])
def test_every_recipe_gives_settings(recipe, model):
    row = editor_row("finetuning")
    settings = row.preset(model, "clean", recipe.name).settings
    assert row.recipe_of(settings, model).label == recipe.label


def test_recipes_have_a_row_in_every_table_of_the_paper():
    rows = {}
    for number in (2, 3, 4, 5, 6, 8, 9):
        table = finetuning(number)
        rows[number] = {name for name in table["editor"] if name.startswith("FT")}
    labels = {recipe.label for recipe in RECIPES}
    named = {"FT (21st layer)": "FT (single layer)", "FT-W (21st layer w/ weight decay)": "FT-W"}
    named |= {"FT + Mask + Para + Rand (w/o LoRA)": "FT + Mask + Para + Rand, without LoRA"}
    named |= {"FT + Mask + Para + Rand + Wikipedia Loss": "FT + Mask + Para + Rand + Wikipedia loss"}
    for number, found in rows.items():
        assert found, number
        for name in found:
            assert named.get(name, name) in labels, (number, name)


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(Exception, match="ft-mpr"):
        editor_row("finetuning").preset("pocket-gpt2", "clean", "ft-mprr")


def test_the_ladder_adds_one_ingredient_at_a_time():
    row = editor_row("finetuning")
    steps = [row.preset("pocket-gpt2", "clean", name).settings for name in LADDER]
    told = [(s.mask, s.paraphrases > 0, s.random_facts > 0, s.similar_facts > 0) for s in steps]
    assert told == [
        (False, False, False, False),
        (True, False, False, False),
        (True, True, False, False),
        (True, True, True, False),
        (True, True, False, True),
    ]


def test_a_long_history_is_averaged():
    history = [{"loss": float(i), "edit": 1.0} if i % 2 else {"loss": float(i)} for i in range(1000)]
    short = thinned(history)
    assert len(short) <= 300
    assert short[0]["loss"] == pytest.approx(1.5)
    assert sum(row["loss"] for row in short) / len(short) == pytest.approx(499.5)
    assert thinned(history[:2]) == ({"loss": 0.0}, {"loss": 1.0})
