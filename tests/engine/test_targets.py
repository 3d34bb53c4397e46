"""Target optimisation: every record of a batch is treated as if alone."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from editing_core.editors.memit import MemitSettings
from editing_core.editors.settings import TargetSettings
from editing_core.editors.steps.rows import Labels, Objective, kl_row, log_perplexity
from editing_core.editors.steps.targets import optimise_targets
from editing_core.models import memory
from editing_core.models.hooks import steering
from editing_core.types import EditRequest
from tests.conftest import DISTINCT, each_of, tiny_model

tiny_lm = each_of(DISTINCT)

SETTINGS = TargetSettings(steps=8, rate=0.3, relative_rate=True, stop_below=0.0, clamp=4.0)


@pytest.fixture
def three(requests_):
    third = EditRequest(subject="Dr. Watson, M.D.", prompt="The home town of {} is", target_new="Boston", case_id=3)
    return (*requests_, third)


def run(lm, requests, contexts, settings=SETTINGS, sites=None, **more):
    return optimise_targets(lm, requests, Objective(contexts), sites or [lm.architecture.block(1)], settings, **more)


def relative(a, b):
    """Distance of a from b in units of b; 0 for two zeros."""
    return float((a - b).norm()) / max(float(b.norm()), 1e-30)


def check_same(lm, requests, contexts, settings, sites, adaptive=False):
    together = run(lm, requests, contexts, settings, sites, adaptive=adaptive)
    for i, request in enumerate(requests):
        alone = run(lm, [request], contexts, settings, sites, adaptive=adaptive)
        assert int(together.log.steps[i]) == int(alone.log.steps[0])
        for site in sites:
            assert relative(together.shifts[site][i], alone.shifts[site][0]) < 1e-4
            assert relative(together.values[site][i], alone.values[site][0]) < 1e-4
        for name in ("log_p_initial", "log_p_final", "norm"):
            assert float(getattr(together.log, name)[i]) == pytest.approx(float(getattr(alone.log, name)[0]), rel=1e-4)
    return together


def test_batched_equals_one_by_one(tiny_lm, three, contexts):
    found = check_same(tiny_lm, three, contexts, SETTINGS, [tiny_lm.architecture.block(1)])
    assert found.log.steps.tolist() == [SETTINGS.steps] * 3


def test_batched_equals_one_by_one_with_two_sites(tiny_lm, three, contexts):
    sites = [tiny_lm.architecture.attention_out_of(1), tiny_lm.architecture.down(1)]
    check_same(tiny_lm, three, contexts, SETTINGS, sites, adaptive=True)


def losses(lm, request, contexts):
    """The total loss of one record at every step."""
    history = run(lm, [request], contexts).log.history
    return [sum(step.values()) for step in history]


def uneven_threshold(curves):
    """A loss at which the curves end at different steps, none at the first one where that can be had."""
    values = sorted(value for curve in curves for value in curve)
    best = (0, False, 0.0)
    for low, high in pairwise(values):
        middle = (low + high) / 2
        ends = [next((i for i, v in enumerate(curve) if v < middle), len(curve) - 1) for curve in curves]
        if high - low > 1e-3:  # no rounding may decide
            best = max(best, (len(set(ends)), min(ends) > 0, middle))
    return best[2]


def test_batched_equals_one_by_one_with_mixed_early_stops(tiny_lm, three, contexts):
    threshold = uneven_threshold([losses(tiny_lm, request, contexts) for request in three])
    settings = replace(SETTINGS, stop_below=threshold)
    found = check_same(tiny_lm, three, contexts, settings, [tiny_lm.architecture.block(1)])
    assert len(set(found.log.steps.tolist())) > 1, "no record stopped early, so nothing was tested"


def test_a_finished_record_keeps_the_shift_it_was_judged_by(tiny_lm, requests_, contexts):
    """Its final log-perplexity is that of the returned shift, measured independently."""
    site = tiny_lm.architecture.block(1)
    curve = losses(tiny_lm, requests_[0], contexts)
    settings = replace(SETTINGS, stop_below=(curve[3] + curve[4]) / 2)
    found = run(tiny_lm, requests_, contexts, settings)
    for i, request in enumerate(requests_):
        rows = Objective(contexts).rows(tiny_lm, request, 0)
        labels, subjects = Labels.of(tiny_lm, rows), torch.tensor([row.subject for row in rows])
        index = torch.arange(len(rows))
        places = [(number, at) for number, row in enumerate(rows) for at in row.positions]
        row, at = (torch.tensor(column) for column in zip(*places, strict=True))

        def shift(state, subjects=subjects, index=index, i=i):
            state = state.clone()
            state[index, subjects] += found.shifts[site][i]
            return state

        with torch.no_grad(), steering(tiny_lm.model, {site: shift}):
            logits = tiny_lm.logits_at(tiny_lm.batch([row.ids for row in rows]), row, at)
        nll = torch.nn.functional.cross_entropy(logits, labels.id, reduction="none")
        assert float((nll * labels.weight).sum()) == pytest.approx(float(found.log.log_p_final[i]), abs=1e-4)


@pytest.mark.parametrize("clamp", [0.05, 0.75, 4.0])
def test_shift_stays_within_the_clamp(tiny_lm, three, contexts, clamp):
    found = run(tiny_lm, three, contexts, replace(SETTINGS, clamp=clamp, rate=2.0))
    site = tiny_lm.architecture.block(1)
    anchors = (found.values[site] - found.shifts[site]).norm(dim=-1)
    norms = found.shifts[site].norm(dim=-1)
    assert (norms <= clamp * anchors * (1 + 1e-5)).all()  # the anchor comes back from a float32 difference
    if clamp == 0.05:
        assert found.log.clamped.all()
        torch.testing.assert_close(norms, clamp * anchors, rtol=1e-4, atol=0)


def test_first_step_measures_the_plain_model(tiny_lm, three, contexts):
    found = run(tiny_lm, three, contexts)
    torch.testing.assert_close(
        found.log.log_p_initial, log_perplexity(tiny_lm, three, Objective(contexts))[0], atol=1e-5, rtol=1e-5
    )
    assert found.log.history[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert found.log.history[0]["decay"] == 0.0


def test_log_perplexity_of_the_bare_prompt_is_its_score(tiny_lm, requests_):
    from editing_core.evaluation.scoring import score_objects

    expected = [-s.logp for s in score_objects(tiny_lm, [(r.full_prompt, r.target_new) for r in requests_])]
    assert log_perplexity(tiny_lm, requests_, Objective())[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_kl_row_ends_with_the_subject(tiny_lm, three):
    for request in three:
        row = kl_row(tiny_lm, request, 0)
        assert tiny_lm.tokenizer.decode(list(row.ids)).strip() == request.subject
        assert row.subject == len(row.ids) - 1
        assert not row.labels


def test_optimising_makes_the_new_object_likelier(tiny_lm, three, contexts):
    found = run(tiny_lm, three, contexts)
    assert (found.log.log_p_final < found.log.log_p_initial).all()
    assert found.log.finite.all()
    assert found.log.norm.min() > 0


def test_chunks_change_nothing(tiny_lm, three, contexts, monkeypatch):
    site = tiny_lm.architecture.block(1)
    whole = run(tiny_lm, three, contexts)
    monkeypatch.setitem(memory.BOUNDS, "cpu", replace(memory.BOUNDS["cpu"], backward=1))
    seen = []
    parts = run(tiny_lm, three, contexts, watch=seen.append)
    assert relative(parts.shifts[site], whole.shifts[site]) < 1e-4
    assert [step.note for step in seen if step.done == 1] == ["facts 1-1 of 3", "facts 2-2 of 3", "facts 3-3 of 3"]
    assert parts.log.steps.tolist() == whole.log.steps.tolist()


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_poisoned_record_leaves_the_others_alone(contexts, requests_, adaptive):
    """Its subject's token has undefined numbers in the input embedding; the head is another matrix."""
    lm = tiny_model("llama")
    poisoned = EditRequest(subject="Zanzibar", prompt="{} was born in", target_new="Boston", case_id=9)
    others = {t for r in requests_ for row in [*Objective(contexts).rows(lm, r, 0), kl_row(lm, r, 0)] for t in row.ids}
    only = set(lm.tokenizer(" Zanzibar")["input_ids"]) | set(lm.tokenizer("Zanzibar")["input_ids"])
    assert only - others
    with torch.no_grad():
        for token in only - others:
            lm.model.get_input_embeddings().weight[token] = float("nan")
    site = lm.architecture.block(1)
    clean = run(lm, requests_, contexts, adaptive=adaptive)
    mixed = run(lm, (requests_[0], poisoned, requests_[1]), contexts, adaptive=adaptive)
    assert mixed.log.finite.tolist() == [True, False, True]
    assert relative(mixed.shifts[site][[0, 2]], clean.shifts[site]) < 1e-4
    assert clean.log.steps.tolist() == mixed.log.steps[[0, 2]].tolist()
    assert (mixed.shifts[site][1] == 0).all()


def test_same_in_bfloat16_up_to_rounding(contexts, requests_):
    lm = tiny_model("llama", torch.bfloat16)
    found = run(lm, requests_, contexts, MemitSettings(layers=(0, 1), steps=3))
    assert found.log.finite.all()
    assert all(v.dtype == torch.float32 for v in found.values.values())
