"""Neighbor assistance: what an edit neighbor's row is, what it weighs, and that nothing else changes."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch

from editing_core.editors.assist import Assist
from editing_core.editors.iterative import Iterative
from editing_core.editors.row import ASSIST, KEYS, PROTECTION
from editing_core.editors.settings import TargetSettings
from editing_core.editors.steps import targets as module
from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.keys import SubjectRows, average, keys_of
from editing_core.editors.steps.rows import Labels, Objective, log_perplexity
from editing_core.editors.steps.spread import Ridge, Spread
from editing_core.editors.steps.staged import Staged
from editing_core.editors.steps.targets import optimise_targets
from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadSetting
from editing_core.making import build_editor
from editing_core.models.hooks import steering
from editing_core.models.norms import at_down
from editing_core.registry import EDITORS
from editing_core.session import run_edit
from editing_core.types import EditRequest, Probe
from tests.conftest import DISTINCT, bit_equal, each_of, snapshot, tiny_model
from tests.engine.conftest import as_numbers, materials, plan, small
from tests.engine.test_targets import uneven_threshold

SETTINGS = TargetSettings(steps=6, rate=0.3, relative_rate=True, stop_below=0.0, clamp=4.0)
PETER = Probe("Peter Smith was born in", "the United States", "Peter Smith")
TOWER = Probe("Everybody knows that the new tower was built by", "German", "the new tower")
NA = Assist(neighbors="na")


@pytest.fixture(scope="module")
def doubles():
    return cache(lambda family: tiny_model(family, torch.float64))


tiny_lm = each_of(DISTINCT)


@pytest.fixture(params=DISTINCT)
def double_lm(request, doubles):
    """Tiny models in float64: Adam's step on a gradient close to zero hangs on how the states were rounded."""
    return doubles(request.param)


@pytest.fixture
def aided(requests_):
    """Three edits with one, no and two edit neighbors; objects and answers of one and of more tokens."""
    first, second = requests_
    third = EditRequest(
        "Dr. Watson, M.D.", "The home town of {} is", "New York City", case_id=3, edit_neighbors=(TOWER, PETER)
    )
    return replace(first, edit_neighbors=(PETER,)), second, third


def run(lm, requests, contexts, assist=NA, settings=SETTINGS, sites=None, **more):
    sites = sites or [lm.architecture.block(1)]
    return optimise_targets(lm, requests, Objective(contexts, assist), sites, settings, **more)


def relative(a, b):
    """Distance of a from b in units of b; 0 for two zeros."""
    return float((a - b).norm()) / max(float(b.norm()), 1e-30)


def texts_of(request, contexts, nap=False):
    """(template, subject, answer) of a record's rows, spelled out: rewriting rows, then neighbors'."""
    rows = [
        (template.replace("{}", request.prompt), request.subject, request.target_new) for template in contexts.templates
    ]
    before = contexts.templates[1] if nap else "{}"
    for n in request.edit_neighbors:
        rows.append((before.replace("{}", n.prompt.replace(n.subject, "{}")), n.subject, n.answer))
    return rows


def token_losses(lm, rows, site=None, shift=None):
    """Per row the NLL of every answer token, each row in a plain forward of its own, `shift` at its own subject."""
    found = []
    for template, subject, answer in rows:
        text = lm.coder.continuation(template.replace("{}", subject), answer)
        at = lm.coder.subject_last(template, subject)

        def change(state, at=at):
            there = torch.arange(state.shape[1])[None, :, None] == at
            return state + there * shift

        with steering(lm.model, {site: change} if site else {}):
            logp = lm.model(torch.tensor([text.ids])).logits[0].float().log_softmax(-1)
        found.append(torch.stack([-logp[i, text.ids[i + 1]] for i in text.positions]))
    return found


def published(losses, n, weight=1.0):
    """All rows share one mean, a neighbor's summed loss is divided by the new object's length."""
    length, m = len(losses[0]), len(losses) - n
    edit, beside = (sum(row.sum() / length for row in rows) for rows in (losses[:n], losses[n:]))
    return (edit + weight * beside) / (n + weight * m)


def printed(losses, n, weight=1.0):
    """As in the paper: the neighbors' mean loss, each over its own tokens, is added with its weight."""
    edit, beside = (sum(row.mean() for row in rows) / max(1, len(rows)) for rows in (losses[:n], losses[n:]))
    return edit + weight * beside


LOSSES = {"code": published, "paper": printed}


@pytest.mark.parametrize("weighting", LOSSES)
@pytest.mark.parametrize("neighbors", ["na", "nap"])
def test_weight_zero_is_no_assistance(tiny_lm, aided, contexts, neighbors, weighting):
    site = tiny_lm.architecture.block(1)
    plain = run(tiny_lm, aided, contexts, Assist())
    none = run(tiny_lm, aided, contexts, Assist(neighbors=neighbors, weighting=weighting, weight=0.0))
    full = run(tiny_lm, aided, contexts, Assist(neighbors=neighbors, weighting=weighting))
    # Other rows stand in the batch, so sums are rounded differently.
    assert relative(none.shifts[site], plain.shifts[site]) < 1e-4
    torch.testing.assert_close(none.log.log_p_final, plain.log.log_p_final, rtol=1e-4, atol=1e-5)
    for i, request in enumerate(aided):
        assert (relative(full.shifts[site][i], plain.shifts[site][i]) > 0.01) == bool(request.edit_neighbors)


def test_weight_zero_is_no_assistance_for_the_adaptive_rule(tiny_models):
    """The factor is lowered when the labels that count come first; a neighbor of weight 0 does not."""
    lm = tiny_models("gpt2")
    request = EditRequest("Mary Walker", "Yesterday we met {}", "London", edit_neighbors=(PETER,))
    settings = TargetSettings(steps=12, rate=1.0, stop_below=0.0, clamp=20.0, kl_factor=0.1)
    site = lm.architecture.block(2)  # at the last position of the last block, so that any object can be had
    plain, none, full = (
        run(lm, [request], Contexts(), assist, settings, [site], adaptive=True)
        for assist in (Assist(), replace(NA, weight=0.0), NA)
    )
    assert plain.log.factor < 1, "the factor was never lowered, so nothing was tested"
    assert full.log.factor == 1, "the neighbor was right as well, so nothing was tested"
    assert torch.equal(none.log.factor, plain.log.factor)
    assert relative(none.shifts[site], plain.shifts[site]) < 1e-4


@pytest.mark.parametrize("neighbors", ["na", "nap"])
def test_every_row_is_shifted_at_its_own_subject_and_nowhere_else(tiny_lm, aided, contexts, neighbors, monkeypatch):
    scenes, shifts = [], []

    class Spy(module.Replay):
        def __init__(self, lm, sites, some, openings):
            scenes.extend(some)
            super().__init__(lm, sites, some, openings)

        def run(self, added):
            shifts.append({name: shift.detach() for name, shift in added.items()})
            return super().run(added)

    monkeypatch.setattr(module, "Replay", Spy)
    found = run(tiny_lm, aided, contexts, Assist(neighbors=neighbors), replace(SETTINGS, steps=2))
    site = tiny_lm.architecture.block(1)
    assert not shifts[0][site].any()
    number = 0
    # Fewest tokens behind the subject first; each record has one row more, "SUBJECT is a", behind its others.
    rows = {i: texts_of(r, contexts, neighbors == "nap") for i, r in enumerate(aided)}
    while number < len(scenes):
        record = int((found.shifts[site] - shifts[-1][site][number]).norm(dim=-1).argmin())
        for template, subject, _ in rows.pop(record):
            assert scenes[number].shifted == tiny_lm.coder.subject_last(template, subject)
            torch.testing.assert_close(shifts[-1][site][number], found.shifts[site][record])
            number += 1
        torch.testing.assert_close(shifts[-1][site][number], found.shifts[site][record])
        number += 1
    assert not rows


def test_a_neighbor_row_says_its_text_up_to_the_subject(tiny_lm, aided, contexts):
    rows = Objective(contexts, NA).rows(tiny_lm, aided[2], 0)
    decode = tiny_lm.tokenizer.decode
    for row, neighbor in zip(rows[-2:], aided[2].edit_neighbors, strict=True):
        assert row.assists
        assert decode(list(row.ids[: row.subject + 1])).endswith(neighbor.subject)
        assert decode(list(row.labels)) == f" {neighbor.answer}"
        assert decode([*row.ids, row.labels[-1]]) == f"{neighbor.prompt} {neighbor.answer}"
    assert not any(row.assists for row in rows[:-2])


def test_nap_puts_the_first_prefix_and_no_other_before_the_neighbor(tiny_lm, aided):
    contexts = Contexts.grouped(("One. {}", "Two words. {}", "Three words here. {}"))

    def told(assist, contexts):
        rows = Objective(contexts, assist).rows(tiny_lm, aided[2], 0)
        return [tiny_lm.tokenizer.decode(list(row.ids)) for row in rows if row.assists]

    plain = told(NA, contexts)
    assert told(Assist(neighbors="nap"), contexts) == [f"One. {text}" for text in plain]
    assert told(Assist(neighbors="nap"), Contexts()) == plain
    assert told(Assist(), contexts) == []
    unplaced = replace(aided[0], edit_neighbors=(Probe("The river runs through", "Paris"),))
    assert Objective(contexts, NA).neighbors_of(unplaced) == []


@pytest.mark.parametrize(
    ("assist", "edit", "beside"),
    [
        (NA, 1 / 5, 1 / 5),
        (replace(NA, weight=0.5), 1 / 4, 1 / 8),
        (replace(NA, weight=3.0), 1 / 9, 1 / 3),
        (replace(NA, weight=0.0), 1 / 3, 0.0),
        (replace(NA, weighting="paper"), 1 / 3, 1 / 2),
        (replace(NA, weighting="paper", weight=3.0), 1 / 3, 3 / 2),
    ],
)
def test_weights_by_hand(tiny_models, aided, contexts, assist, edit, beside):
    """Three rewriting rows, two neighbors; in the published weighting a label counts by the new object's length."""
    lm, request = tiny_models("gpt2"), aided[2]
    rows = Objective(contexts, assist).rows(lm, request, 0)
    lengths = [len(row.labels) for row in rows]
    new = lengths[0]
    assert len(set(lengths)) > 1, "all lengths are equal, so nothing was tested"
    scale = [length / new if assist.weighting == "code" else 1.0 for length in lengths]
    assert [row.weight for row in rows] == pytest.approx([edit] * 3 + [beside * s for s in scale[3:]], abs=1e-12)
    assert [row.share for row in rows] == pytest.approx([1 / 3] * 3 + [1 / 2] * 2)
    assert [row.even for row in rows] == pytest.approx([1 / 5] * 5)
    per_label = Labels.of(lm, rows).weight
    by_hand = [edit / new] * 3 * new
    for length in lengths[3:]:
        by_hand += [beside / (new if assist.weighting == "code" else length)] * length
    assert per_label.tolist() == pytest.approx(by_hand, abs=1e-7)


def test_without_edit_neighbors_assistance_changes_no_row(tiny_lm, requests_, contexts):
    for request in requests_:
        for weighting in LOSSES:
            assisted = Objective(contexts, replace(NA, weighting=weighting, weight=5.0)).rows(tiny_lm, request, 0)
            assert assisted == Objective(contexts).rows(tiny_lm, request, 0)


@pytest.mark.parametrize("weighting", LOSSES)
@pytest.mark.parametrize("neighbors", ["na", "nap"])
def test_first_step_descends_the_loss_of_plain_forwards(double_lm, aided, contexts, neighbors, weighting):
    """Adam's first step is rate * g / (|g| + 1e-8), with g the gradient of the loss spelled out here.

    At a shift of zero neither KL nor decay has a gradient.
    """
    site, request = double_lm.architecture.block(1), aided[2]
    assist = Assist(neighbors=neighbors, weighting=weighting, weight=2.0)
    settings = TargetSettings(steps=2, rate=0.1, stop_below=0.0, clamp=20.0)
    step = run(double_lm, [request], contexts, assist, settings).shifts[site][0]
    shift = torch.zeros_like(step).requires_grad_()
    with torch.enable_grad():
        losses = token_losses(double_lm, texts_of(request, contexts, neighbors == "nap"), site, shift)
        (gradient,) = torch.autograd.grad(LOSSES[weighting](losses, len(contexts), 2.0), shift)
    sure = gradient.abs() > 1e-4 * gradient.abs().max()  # rounding may turn the sign of the rest
    assert sure.sum() > 0.9 * len(sure)
    torch.testing.assert_close(step[sure], (-0.1 * gradient / (gradient.abs() + 1e-8))[sure], atol=1e-4, rtol=0)


def test_logs_are_those_of_plain_forwards_at_the_returned_shift(tiny_lm, aided, contexts):
    """log_p_final over the edit's rows only, log_p_all over all rows alike, a row by the mean of its own tokens."""
    site = tiny_lm.architecture.block(1)
    found = run(tiny_lm, aided, contexts)
    at_start = run(tiny_lm, aided, contexts, settings=replace(SETTINGS, steps=1)).log
    plain = log_perplexity(tiny_lm, aided, Objective(contexts, NA))
    torch.testing.assert_close(at_start.log_p_final, plain[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(at_start.log_p_all, plain[1], atol=1e-5, rtol=1e-5)
    for i, request in enumerate(aided):
        with torch.no_grad():
            rows = token_losses(tiny_lm, texts_of(request, contexts), site, found.shifts[site][i])
            unshifted = token_losses(tiny_lm, texts_of(request, contexts))
        for losses, edit, every in (
            (rows, found.log.log_p_final[i], found.log.log_p_all[i]),
            (unshifted, plain[0][i], plain[1][i]),
        ):
            means = torch.stack([row.mean() for row in losses])
            assert float(edit) == pytest.approx(float(means[: len(contexts)].mean()), abs=1e-4)
            assert float(every) == pytest.approx(float(means.mean()), abs=1e-4)
        if not request.edit_neighbors:
            assert float(found.log.log_p_all[i]) == pytest.approx(float(found.log.log_p_final[i]), abs=1e-6)


def check_same(lm, requests, contexts, settings, sites, **more):
    together = run(lm, requests, contexts, NA, settings, sites, **more)
    for i, request in enumerate(requests):
        alone = run(lm, [request], contexts, NA, settings, sites, **more)
        assert int(together.log.steps[i]) == int(alone.log.steps[0])
        for site in sites:
            assert relative(together.shifts[site][i], alone.shifts[site][0]) < 1e-4
        for name in ("log_p_initial", "log_p_final", "log_p_all", "factor", "norm"):
            assert float(getattr(together.log, name)[i]) == pytest.approx(float(getattr(alone.log, name)[0]), rel=1e-4)
    return together


def test_batched_equals_one_by_one(double_lm, aided, contexts):
    check_same(double_lm, aided, contexts, SETTINGS, [double_lm.architecture.block(1)])


def test_batched_equals_one_by_one_with_two_sites(double_lm, aided, contexts):
    sites = [double_lm.architecture.attention_out_of(1), double_lm.architecture.down(1)]
    check_same(double_lm, aided, contexts, SETTINGS, sites, adaptive=True)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_batched_equals_one_by_one_when_records_finish_early(double_lm, aided, contexts, order, monkeypatch):
    """Also when the only record without neighbors, or one with them, leaves the batch first."""
    judged, finished = [], module._Problem._finished

    def spy(problem, loss, *more):
        judged.append(float(loss))
        return finished(problem, loss, *more)

    settings = replace(SETTINGS, rate=1.0, decay=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(module._Problem, "_finished", spy)
        for request in aided:
            run(double_lm, [request], contexts, settings=settings)
    curves = [judged[i : i + settings.steps] for i in range(0, len(judged), settings.steps)]
    settings = replace(settings, stop_below=uneven_threshold(curves))
    found = check_same(double_lm, [aided[i] for i in order], contexts, settings, [double_lm.architecture.block(1)])
    assert len(set(found.log.steps.tolist())) > 1, "no record stopped early, so nothing was tested"


def build(name, lm, store, corpus, assist):
    """An editor of this name with small settings, statistics included."""
    row, settings = EDITORS[name], small(name)
    store.collect(lm, list(row.layers(settings)), corpus)
    return row.build(settings, materials(lm, store, corpus, assist=assist))


@pytest.mark.parametrize("name", [name for name, row in EDITORS.items() if ASSIST not in row.cannot])
def test_every_editor_takes_neighbors_in_and_leaves_no_trace(name, tiny_lm, store, corpus, aided):
    before, editor = snapshot(tiny_lm.model), build(name, tiny_lm, store, corpus, NA)
    assert editor.objective.assist == NA
    some = replace(editor.objective.contexts, templates=("{}", "One. {}"), weights=(0.5, 0.5))  # ROME has 21
    editor = replace(editor, objective=replace(editor.objective, contexts=some))
    alone = replace(editor, objective=replace(editor.objective, assist=Assist()))
    stop = StopSettings(iterations=1, stop="none")
    first, second, plain = (Iterative(e, stop).edit(tiny_lm, aided) for e in (editor, editor, alone))
    assert bit_equal(tiny_lm.model, before)
    one, two, without = (as_numbers(outcome.delta) for outcome in (first, second, plain))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert max(relative(one[name], without[name]) for name in one) > 0.01
    (done,), (again,) = first.rounds, second.rounds
    assert torch.equal(done.log_p_spread, again.log_p_spread)
    assert torch.equal(done.log_p_optimised, again.log_p_optimised)
    # The published numbers take the neighbors' rows in, ours do not.
    assert torch.equal(done.log_p_optimised, done.outcome.targets.log_p_final)
    assert not torch.allclose(done.log_p_optimised, done.outcome.targets.log_p_all)


ASKED = {ASSIST: Assist(neighbors="na"), PROTECTION: Assist(statistics="subjects"), KEYS: Assist(keys=1.0)}


@pytest.mark.parametrize("name", EDITORS)
def test_assistance_that_has_no_part_is_refused_with_the_reason(name, tiny_models, store, requests_):
    """The row says what; all else of assistance it takes."""
    row, lm = EDITORS[name], tiny_models("gpt2")
    refused = set(row.cannot) & ASKED.keys()
    refused |= {PROTECTION} if ASSIST in refused else set()
    refused |= {KEYS} if PROTECTION in refused else set()
    for what, assist in ASKED.items():
        if what not in refused:
            row.check(assist=assist)
            continue
        how = replace(plan(name), assist=assist)
        told = f"^{re.escape(row.label)} was asked for (neighbor|protected).*set "
        with pytest.raises(BadSetting, match=told):
            build_editor(lm, requests_, how, store)
        with pytest.raises(BadSetting, match="was asked for"):
            run_edit(lm, requests_[:1], how, store)


@pytest.mark.parametrize("name", ["memit", "pmet", "emmet", "alphaedit"])
def test_editors_that_spread_write_less_along_neighbor_keys(name, tiny_models, store, corpus, aided):
    """Looked at in the lowest edited layer, whose keys the edit does not change."""
    lm = tiny_models("gpt2")
    off, on = (build(name, lm, store, corpus, a).edit(lm, aided).delta for a in (Assist(), Assist(keys=1e4)))
    places = [n.place for n in aided[2].edit_neighbors]
    keys = keys_of(lm, SubjectRows.of(lm, places, Contexts()), Contexts(), 0)
    before, now = (as_numbers(delta)[f"{lm.architecture.down(0)}.weight"] for delta in (off, on))
    assert (now @ keys).norm() < 1e-2 * (before @ keys).norm()
    assert now.norm() > 1e-2 * before.norm()


class Problem:
    """One layer of a tiny model: keys and residuals of the edits, keys of their neighbors, and what is written."""

    def __init__(self, lm, requests, covariance, contexts):
        self.lm, self.requests, self.covariance, self.contexts = lm, requests, covariance, contexts
        self.site = lm.architecture.added(1)
        places = [r.place for r in requests]
        # As Spread measures them: C is so ill-conditioned here that another order of sums would show.
        beside = [TOWER.place, PETER.place]
        bare, known = (Staged(lm, SubjectRows.of(lm, some, Contexts())) for some in (places, beside))
        prefixed = Staged(lm, SubjectRows.of(lm, places, contexts.prefixed))
        at_subject = torch.cat([bare.keys(1), prefixed.keys(1)], dim=1)
        self.keys = average(at_subject, contexts).T
        self.beside = known.keys(1)[:, 0].T
        present = bare.outputs(self.site)[:, 0]
        noise = torch.randn(present.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.targets, self.residuals = present + noise, at_down(lm, 1, noise, at_subject[:, 0]).T

    def written(self, mu, weight=2.0, slack=1.0, named=None):
        """The update that Spread writes; `named` is what the objective is told, `mu` what the solver is."""
        objective = Objective(self.contexts, Assist(keys=mu if named is None else named))
        solve = Ridge({1: self.covariance}, weight, slack, mu)
        delta = Spread(self.site, objective, [1], solve, share=float).write(self.lm, self.requests, self.targets)
        (update,) = delta.updates.values()
        return update.dense()


@pytest.fixture
def problem(tiny_lm, aided, store, corpus, contexts):
    store.collect(tiny_lm, [1], corpus)
    # PETER assists two edits and is protected once.
    return Problem(tiny_lm, aided, store.get(tiny_lm, 1, corpus, 1e-3), contexts)


@pytest.mark.parametrize("slack", [1.0, 0.3])
@pytest.mark.parametrize("mu", [0.1, 10.0])
def test_protecting_keys_is_adding_them_to_the_statistics(problem, mu, slack):
    """Delta = R (K^T A^-1 K + e I)^-1 K^T A^-1 with A = lambda C + mu K' K'^T, solved densely."""
    p, weight = problem, 2.0
    factor = p.covariance.cholesky @ p.covariance.cholesky.T
    known = weight * factor + mu * p.beside @ p.beside.T
    right = torch.linalg.solve(known, p.keys)  # A^-1 K
    gram = p.keys.T @ right + slack * torch.eye(p.keys.shape[1], dtype=torch.float64)
    wanted = p.residuals @ torch.linalg.solve(gram, right.T)
    got = p.written(mu, weight, slack)
    # Two solves with C, whose condition number in a tiny model is about 1e6.
    assert relative(got, wanted) < 1e-8
    assert relative(got, p.written(0.0, weight, slack)) > 1e-3


def test_protection_of_strength_zero_is_none(problem):
    assert relative(problem.written(0.0, named=1.0), problem.written(0.0)) < 1e-12


def test_a_very_large_mu_leaves_the_protected_keys_alone(problem):
    """The answer to them falls like 1 / mu, and the edit itself does not vanish."""
    sizes = [float((problem.written(mu) @ problem.beside).norm()) for mu in (1e2, 1e4, 1e6)]
    assert sizes[1] == pytest.approx(sizes[0] / 100, rel=0.2)
    assert sizes[2] == pytest.approx(sizes[1] / 100, rel=0.05)
    got = problem.written(1e6)
    assert (got @ problem.beside).norm() < 1e-4 * (got @ problem.keys).norm()
