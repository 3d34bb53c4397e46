"""GRACE: what becomes of requests in order, how values are found, and what a codebook does on the bundled model."""

from dataclasses import replace

import pytest
import torch

from editing_core.data.datasets import load_dataset, sample
from editing_core.data.pool import unedited
from editing_core.data.subjects import known_facts
from editing_core.editors.grace import GraceSettings, build_grace
from editing_core.editors.materials import Materials
from editing_core.editors.steps.radii import Calibration
from editing_core.editors.steps.values import Search, optimised
from editing_core.errors import BadRequest, BadSetting, Cancelled
from editing_core.evaluation.scoring import generate, score_objects
from editing_core.models import edits
from editing_core.models.codebook import Codebook, carried, queries
from editing_core.models.hooks import watching
from editing_core.types import EditRequest, Probe
from tests.conftest import DISTINCT, THREE, bit_equal, cancel_after, each_of, left_alone, seldom, snapshot, tiny_model

tiny_lm = each_of(seldom(DISTINCT, THREE))

SMALL = GraceSettings(layer=1, radius=1e-3, steps=40)
POCKET = GraceSettings(layer=4, query="mlp", radius=9.0)


def editor(lm, requests, settings=SMALL, seed=0, **more):
    return build_grace(settings, Materials(lm, None, None, seed, requests=requests, **more))


def nll(lm, request):
    return -score_objects(lm, [(request.full_prompt, request.target_new)])[0].logp


def fact(prompt, new, case=0):
    return EditRequest("Mary Walker", prompt, new, case_id=case)


# --- tiny models ---


def test_the_new_object_becomes_likely_and_the_model_stays_as_it_was(tiny_lm, requests_):
    before = snapshot(tiny_lm.model)
    plain = [nll(tiny_lm, r) for r in requests_]
    outcome = editor(tiny_lm, requests_).edit(tiny_lm, requests_)
    assert bit_equal(tiny_lm.model, before)
    assert not tiny_lm.edited
    log = outcome.targets
    assert log.log_p_initial.tolist() == pytest.approx(plain, rel=1e-4)
    with outcome.delta.applied(tiny_lm) as edited:
        after = [nll(edited, r) for r in requests_]
        (other,) = score_objects(edited, [("Peter Smith was born in", "London")])
    assert log.log_p_final.tolist() == pytest.approx(after, rel=1e-4)
    # Tiny models' states are short, and those of gemma2 capped: no token is ever certain.
    assert all(new < old - 0.5 for new, old in zip(after, plain, strict=True))
    assert other.logp == pytest.approx(
        score_objects(tiny_lm, [("Peter Smith was born in", "London")])[0].logp, abs=1e-5
    )
    assert log.finite.all()
    assert (log.norm > 0).all()


def test_the_same_seed_gives_the_same_edit_another_one_only_when_cold(tiny_lm, requests_):
    def values(seed, start):
        made = editor(tiny_lm, requests_, replace(SMALL, start=start, steps=3), seed).edit(tiny_lm, requests_)
        return made.delta.tensors()["values"]

    for start in ("warm", "cold"):
        assert torch.equal(values(0, start), values(0, start))
        assert torch.equal(values(0, start), values(1, start)) == (start == "warm")
    assert not torch.equal(values(0, "warm"), values(0, "cold"))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj"])
@pytest.mark.parametrize("start", ["warm", "cold"])
def test_a_batch_is_a_loop_in_the_order_of_the_requests(family, start, requests_):
    """In float64, because Adam's first steps turn a rounding of a small gradient into a whole step."""
    lm, settings = tiny_model(family, torch.float64), replace(SMALL, start=start, steps=10)
    requests = (*requests_, fact("{} was born in", "Paris", "three"), fact("{} plays the", "guitar", 4))
    together = editor(lm, requests, settings).edit(lm, requests)
    one_by_one = Codebook()
    for request in requests:
        with one_by_one.applied(lm) as edited:
            one_by_one = one_by_one + editor(lm, requests, settings).edit(edited, [request]).delta
    assert one_by_one.facts() == together.delta.facts()
    assert one_by_one.entries.radii == together.delta.entries.radii
    for name, tensor in together.delta.tensors().items():
        assert torch.allclose(tensor, one_by_one.tensors()[name], atol=1e-5)
    lm.divisor = 64  # every text in a forward of its own
    apart = editor(lm, requests, settings).edit(lm, requests)
    assert torch.allclose(apart.delta.tensors()["values"], together.delta.tensors()["values"], atol=1e-5)
    assert apart.targets.steps.tolist() == together.targets.steps.tolist()


def test_a_value_is_what_adam_makes_of_the_loss(requests_):
    """Against a plain loop: the library's model, one text, the value put in by a hook."""
    lm = tiny_model("llama", torch.float64)
    text = lm.coder.continuation(requests_[0].full_prompt, "the French")
    site, at = lm.architecture.down(1), text.start - 1
    found = optimised(lm, site, [text], Search(4, 0.3, 0.0))
    ids, module = torch.tensor([text.inputs]), lm.model.get_submodule(site)
    with watching(lm.model, [site]) as seen:
        lm.model(ids, use_cache=False)
    value = seen[site][0, at].clone().requires_grad_()
    adam, losses, values = torch.optim.Adam([value], lr=0.3), [], []

    def put(_module, _args, output):
        return torch.where(torch.arange(output.shape[1])[:, None] == at, value, output)

    handle = module.register_forward_hook(put)
    for _ in range(4):
        logits = lm.model(ids, use_cache=False).logits[0, list(text.positions)]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(text.object_ids))
        losses.append(loss.item())
        values.append(value.detach().clone())
        adam.zero_grad()
        loss.backward()
        adam.step()
    handle.remove()
    assert [step["target"] for step in found.history] == pytest.approx(losses, rel=1e-9)
    assert torch.allclose(found.value[0].double(), values[losses.index(min(losses))], atol=1e-6)
    assert float(found.norm) == pytest.approx(float((found.value[0].double() - values[0]).norm()), rel=1e-5)


def test_a_value_that_is_good_enough_takes_no_further_steps(tiny_models, requests_):
    with left_alone(tiny_models("gpt2")) as lm:
        few, all_ = (
            editor(lm, requests_, replace(SMALL, stop_below=stop)).edit(lm, requests_[:1]).targets
            for stop in (5.0, 0.0)
        )
    assert 1 < int(few.steps) < int(all_.steps) == SMALL.steps
    assert float(all_.log_p_final) < float(few.log_p_final) < 5.0
    assert len(few.history) == int(few.steps)


def test_the_best_value_is_kept_not_the_last(pocket):
    """Steps so large that the loss soon rises again."""
    request = fact("{} was born in", "London")
    settings = replace(POCKET, rate=10.0, steps=6, stop_below=0.0)
    log = editor(pocket, [request], settings).edit(pocket, [request]).targets
    losses = [step["target"] for step in log.history]
    assert min(losses) < 0.5 * losses[-1]
    assert float(log.log_p_final) == pytest.approx(min(losses), rel=1e-2)


def test_facts_near_each_other_share_a_value_or_part(tiny_models):
    with left_alone(tiny_models("gpt2")) as lm:
        one, two = fact("{} was born in", "London", 1), fact("The birthplace of {} is", "London", 2)
        other = fact("The home of {} is", "Paris", 3)
        k = queries(lm, 1, "down", [r.full_prompt for r in (one, two, other)])
        wide = replace(SMALL, radius=1e3)
        apart = editor(lm, (one, two), wide).edit(lm, (one, two))
        assert apart.delta.entries.radii == (1e3, 1e3)
        assert apart.notes == ()
        shared = replace(wide, share=True)
        outcome = editor(lm, (one, two), shared).edit(lm, (one, two))
        assert len(outcome.delta.entries.made) == 1
        assert outcome.notes == ("1 of 2 facts get the value of a near entry that has the same new object.",)
        assert outcome.targets.steps.tolist()[1] == 0
        assert outcome.targets.steps.tolist()[0] > 0
        with outcome.delta.applied(lm) as edited:
            again = editor(lm, (one, two), shared).edit(edited, (one, two))
        assert again.delta.empty
        # Without the first, the second is an entry of its own with that value.
        alone = outcome.delta.without(1)
        assert alone.log[0].prompt == two.full_prompt
        assert torch.equal(alone.entries.values, outcome.delta.entries.values)
        parted = editor(lm, (one, other), wide).edit(lm, (one, other)).delta
        far = float((k[0] - k[2]).norm())
        assert parted.entries.radii == pytest.approx((far / 2, far / 2), abs=2e-5)
        assert parted.without(3).entries.radii == (1e3,)


def test_a_fact_that_is_there_is_not_inserted_again(tiny_lm, requests_):
    made = editor(tiny_lm, requests_)
    first = made.edit(tiny_lm, requests_).delta
    with first.applied(tiny_lm) as edited:
        again = made.edit(edited, requests_)
        other = made.edit(edited, [replace(requests_[0], target_new="Berlin")]).delta
    assert again.delta.empty
    assert again.targets.steps.tolist() == [0, 0]
    assert again.targets.log_p_final.tolist() == pytest.approx(again.targets.log_p_initial.tolist())
    # Another object for the same prompt takes its place.
    both = first + other
    assert [new.labels for new in both.entries.made] == [first.log[1].labels, other.log[0].labels]
    berlin = replace(requests_[0], target_new="Berlin")
    with first.applied(tiny_lm) as edited:
        before = nll(edited, berlin), nll(edited, requests_[0])
    with both.applied(tiny_lm) as edited:
        assert nll(edited, berlin) < before[0] - 0.5
        assert nll(edited, requests_[0]) > before[1] + 0.5
    assert replace(both, log=both.log[:-1], known=None).entries.made == first.entries.made


@pytest.mark.parametrize("share", [False, True])
def test_a_fact_whose_key_has_moved_is_reached_again(tiny_models, requests_, share):
    """As other edits of the stack make it: the entry is there, but reaches its prompt no more."""
    with left_alone(tiny_models("gpt2")) as lm:
        made = editor(lm, requests_, replace(SMALL, radius=0.01, share=share))
        first = made.edit(lm, requests_[:1]).delta
        (new,) = first.log
        moved = Codebook(1, "down", (replace(new, key=new.key + 0.015 * torch.eye(len(new.key))[0]),))
        with moved.applied(lm) as edited:
            again = made.edit(edited, requests_[:1]).delta
        both = moved + again
        assert both.entries.radii == pytest.approx((0.01, 0.01) if not share else (1.01 * 0.015,), rel=1e-3)
        found = [book.findings(lm, [requests_[0].full_prompt]).rows[0][1] for book in (moved, both)]
    assert found == ["no", "yes"]


def test_values_are_found_as_if_no_entry_answered(tiny_models, requests_):
    """One that is on reaches every prompt, whole, and the new fact's value is what it would be without."""
    with left_alone(tiny_models("gpt2")) as lm:
        everywhere = editor(lm, requests_, replace(SMALL, radius=1e6, places="prompt")).edit(lm, requests_[1:]).delta
        made = editor(lm, requests_)
        plain = made.edit(lm, requests_[:1]).delta
        with everywhere.applied(lm) as edited:
            later = made.edit(edited, requests_[:1]).delta
    assert torch.equal(plain.tensors()["values"], later.tensors()["values"])


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_stopped_at_any_step_nothing_stays_behind(tiny_lm, requests_, steps):
    before = snapshot(tiny_lm.model)
    with pytest.raises(Cancelled):
        editor(tiny_lm, requests_).edit(tiny_lm, requests_, cancel_after(steps))
    assert bit_equal(tiny_lm.model, before)
    assert not tiny_lm.gated
    assert carried(tiny_lm.model).empty


def test_progress_is_told_for_every_request_and_step(tiny_models, requests_):
    seen = []
    with left_alone(tiny_models("gpt2")) as lm:
        steps = editor(lm, requests_).edit(lm, requests_, seen.append).targets.steps
    assert [(s.stage, s.done, s.total) for s in seen[:2]] == [("insert", 1, 2), ("insert", 2, 2)]
    assert len(seen) == 2 + int(steps.max())
    assert all(s.terms["target"] >= 0 for s in seen[2:])


def test_another_layers_codebook_is_refused_before_anything_is_done(tiny_models, requests_):
    with left_alone(tiny_models("gpt2")) as lm:
        first = editor(lm, requests_).edit(lm, requests_[:1]).delta
        with first.applied(lm) as edited, pytest.raises(BadRequest, match="a model has one codebook at most"):
            editor(lm, requests_, replace(SMALL, layer=2)).edit(edited, requests_[1:], cancel_after(0))


def test_the_last_layer_cannot_write_several_tokens_and_says_so(tiny_models, requests_):
    with left_alone(tiny_models("gpt2")) as lm:
        last = editor(lm, requests_, replace(SMALL, layer=2))
        assert last.edit(lm, requests_[:1]).notes == ()
        (note,) = last.edit(lm, requests_[1:]).notes
        assert "first token of an object only" in note
        assert editor(lm, requests_).edit(lm, requests_[1:]).notes == ()


def test_bad_sites_are_refused(tiny_models, requests_):
    with pytest.raises(BadRequest, match="set query to down"):
        editor(tiny_models("opt"), requests_, replace(SMALL, query="mlp"))


# --- calibration ---


def test_the_radius_is_between_paraphrases_and_unrelated_prompts():
    assert Calibration(4.0, 9.0).radius == pytest.approx(6.0)
    assert Calibration(4.0, 4.0).radius == 4.0
    assert Calibration(9.0, 4.0).radius == 4.0
    told = Calibration(4.0, 9.0).told("paraphrases")
    assert told.startswith(
        "90% of paraphrases end within 4 of their edit, 1% of unrelated facts within 9; the radius is 6"
    )
    assert "they cross" in Calibration(9.0, 4.0).told("paraphrases")


@pytest.mark.parametrize("kind", ["prefixes", "paraphrases"])
def test_calibration_measures_what_it_may(tiny_models, requests_, kind):
    """Distances by hand; neighbors, which are measured, are never asked."""
    lm = tiny_models("gpt2")
    facts = [Probe(f"{name} lives in", "Paris", name) for name in ("Anna Brown", "John Stone", "Peter Smith")]
    settings = replace(SMALL, calibrate=kind)
    made = editor(lm, requests_, settings, facts=lambda: facts)
    blind = [replace(r, neighbors=(), edit_neighbors=()) for r in requests_]
    assert editor(lm, blind, settings, facts=lambda: facts).radius == made.radius
    own = queries(lm, 1, "down", [r.full_prompt for r in requests_])
    far = (own[:, None] - queries(lm, 1, "down", [f.prompt for f in facts])).norm(dim=2).flatten().quantile(0.01)
    (note,) = made.about
    assert f"1% of unrelated facts within {float(far):.3g}" in note
    if kind == "paraphrases":
        near = torch.stack(
            [
                (key - other).norm()
                for key, r in zip(own, requests_, strict=True)
                for other in queries(lm, 1, "down", r.paraphrases)
            ]
        ).quantile(0.9)
        assert f"90% of paraphrases, which are measured too, end within {float(near):.3g}" in note
        expected = float((near * far) ** 0.5) if near < far else float(far)
        assert made.radius == pytest.approx(expected, rel=1e-5)
    outcome = made.edit(lm, requests_)
    assert outcome.notes[0] == note
    assert {new.radius for new in outcome.delta.log} == {made.radius}


def test_calibration_without_anything_to_measure_is_refused(tiny_models, requests_):
    lm, asked = tiny_models("gpt2"), replace(SMALL, calibrate="paraphrases")
    with pytest.raises(BadSetting, match="set calibrate to off"):
        editor(lm, requests_, asked)
    with pytest.raises(BadSetting, match="no edit has such paraphrases"):
        editor(lm, [fact("{} was born in", "London")], asked, facts=lambda: [Probe("a", "b")])


# --- the bundled model ---


@pytest.fixture(scope="module")
def records():
    return sample(load_dataset("pocket-facts:tune"), 30, trial=1)


def tally(edited, plain, requests):
    """Shares: edit prompts and paraphrases that give the new object, neighbors whose first choice stays."""
    edit = [(r.full_prompt, r.target_new) for r in requests]
    para = [(p, r.target_new) for r in requests for p in r.paraphrases]
    kept = [(n.prompt, n.answer) for r in requests for n in r.neighbors]

    def share(hits):
        return sum(hits) / len(hits)

    return (
        share([s.hit for s in score_objects(edited, edit)]),
        share([s.hit for s in score_objects(edited, para)]),
        share([s.choices == old for s, old in zip(score_objects(edited, kept), plain, strict=True)]),
    )


def first_choices(lm, requests):
    return [s.choices for s in score_objects(lm, [(n.prompt, n.answer) for r in requests for n in r.neighbors])]


def test_single_edits_flip_the_prompt_and_most_paraphrases(pocket, records):
    """Measured on 30: E 1.00, P 0.87, N 0.92. Five here, so the bounds are loose."""
    found = []
    for request in records[:5]:
        plain = first_choices(pocket, [request])
        assert tally(pocket, plain, [request]) == (0, 0, 1)  # the check can fail
        delta = editor(pocket, [request], POCKET).edit(pocket, [request]).delta
        with delta.applied(pocket) as edited:
            found.append(tally(edited, plain, [request]))
            assert generate(edited, request.full_prompt, 5).strip().startswith(request.target_new)
    e, p, n = (sum(column) / len(found) for column in zip(*found, strict=True))
    assert e == 1
    assert p > 0.6
    assert n > 0.8


def test_thirty_edits_one_after_the_other_hold_and_keep_the_rest(pocket, records, tmp_path):
    """Measured: E 1.00, P 0.57, N 0.97."""
    plain = first_choices(pocket, records)
    book, one = Codebook(), editor(pocket, records, POCKET)
    for request in records:
        with book.applied(pocket) as edited:
            book = book + one.edit(edited, [request]).delta
    book.save(tmp_path / "edit.safetensors")
    back = edits.load(tmp_path / "edit.safetensors")
    with back.applied(pocket) as edited:
        e, p, n = tally(edited, plain, records)
    assert e == 1
    assert p > 0.4
    assert n > 0.95
    assert back.entries.radii == book.entries.radii
    # Conflicts made balls smaller, and taking everything else out gives the first its radius back.
    assert min(book.entries.radii) < POCKET.radius
    rest = book
    for request in records[1:]:
        rest = rest.without(request.case_id)
    assert rest.entries.radii == (POCKET.radius,)
    at_once = one.edit(pocket, records).delta
    assert at_once.entries.radii == pytest.approx(book.entries.radii, abs=1e-4)


def test_a_small_radius_hears_no_paraphrase(pocket, records):
    """Why the radius has to be calibrated: at the published 1.0 nothing but the edit itself is answered."""
    (request,) = records[:1]
    delta = editor(pocket, [request], replace(POCKET, radius=1.0)).edit(pocket, [request]).delta
    with delta.applied(pocket) as edited:
        assert tally(edited, first_choices(pocket, [request]), [request])[:2] == (1, 0)
    found = delta.findings(pocket, [request.full_prompt, *request.paraphrases])
    assert [row[1] for row in found.rows] == ["yes", *["no"] * len(request.paraphrases)]


def test_calibration_finds_a_radius_that_works_here(pocket, records):
    """Measured on 30: radius 8.9, P 0.83, N 0.92."""
    some = records[:8]
    made = editor(pocket, some, replace(POCKET, calibrate="prefixes"), facts=lambda: unedited(known_facts(0), some))
    assert 7.5 < made.radius < 10.5
