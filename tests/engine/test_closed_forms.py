"""Closed forms of EMMET, AlphaEdit and ROME, and repeated passes: against dense solves, in float64."""

from dataclasses import replace

import pytest
import torch

from editing_core.editors import memit as memit_module
from editing_core.editors.alphaedit import AlphaEdit, AlphaEditSettings, NullSpace, null_space
from editing_core.editors.emmet import Emmet, EmmetSettings
from editing_core.editors.iterative import Iterative
from editing_core.editors.materials import Materials
from editing_core.editors.memit import Memit, MemitSettings
from editing_core.editors.r_rome import RRomeSettings
from editing_core.editors.rome import Rome, RomeSettings
from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.keys import SubjectRows, average, keys_of, states_at_subject
from editing_core.editors.steps.rows import Objective
from editing_core.editors.steps.spread import Ridge, Spread
from editing_core.editors.steps.targets import optimise_targets
from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadSetting, StatisticsMissing
from editing_core.registry import EDITORS, editor_row
from editing_core.statistics.covariance import Covariance
from tests.conftest import DISTINCT, each_of, tiny_model

tiny_lm = each_of(DISTINCT)

WIDTH, FACTS, OUT = 14, 4, 6
SMALL = {"steps": 3, "rate": 0.3, "relative_rate": True, "clamp": 2.0}


@pytest.fixture(scope="module")
def double():
    """A tiny model in float64, so that what is written is not rounded."""
    return tiny_model("gpt2", torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(seed=0, spread=0.0):
    """A statistic of random keys whose directions differ in size by up to e^spread."""
    samples = normal(5 * WIDTH, WIDTH, seed=seed) * torch.linspace(0, spread, WIDTH, dtype=torch.float64).exp()
    return Covariance(samples.T @ samples / len(samples), 10**6)


def none(keys):
    """No keys to protect."""
    return keys[:, :0]


def eye(n):
    return torch.eye(n, dtype=torch.float64)


def ridge(slack, weight=3.0, seed=0):
    return Ridge({0: covariance(seed)}, weight, slack)


@pytest.mark.parametrize("slack", [1.0, 0.7, 0.1, 1e-4])
def test_emmet_is_the_dense_solution(slack):
    """Delta = R (K^T A^-1 K + e I)^-1 K^T A^-1 with A = lambda C."""
    keys, residuals = normal(WIDTH, FACTS, seed=1), normal(OUT, FACTS, seed=2)
    right = torch.linalg.solve(3.0 * covariance().matrix, keys)
    wanted = residuals @ torch.linalg.inv(keys.T @ right + slack * eye(FACTS)) @ right.T
    torch.testing.assert_close(residuals @ ridge(slack)(0, keys, none(keys)).T, wanted, atol=1e-10, rtol=1e-10)


def test_emmet_with_full_slack_is_memit():
    """Delta = R K^T (lambda C + K K^T)^-1."""
    keys, residuals = normal(WIDTH, FACTS, seed=1), normal(OUT, FACTS, seed=2)
    wanted = residuals @ keys.T @ torch.linalg.inv(3.0 * covariance().matrix + keys @ keys.T)
    torch.testing.assert_close(residuals @ ridge(1.0)(0, keys, none(keys)).T, wanted, atol=1e-12, rtol=1e-12)


def test_the_editor_emmet_with_full_slack_is_the_editor_memit(tiny_lm, requests_, store, corpus, contexts):
    store.collect(tiny_lm, [0, 1], corpus)
    statistics = {layer: store.get(tiny_lm, layer, corpus, 1e-3) for layer in (0, 1)}
    shared = {"layers": (0, 1), **SMALL}
    memit = Memit(MemitSettings(**shared), Ridge(statistics, 5.0), Objective(contexts))
    full, some = (
        Emmet(EmmetSettings(**shared, slack=s), Ridge(statistics, 5.0, s), Objective(contexts)) for s in (1.0, 0.1)
    )
    wanted, same, other = (e.edit(tiny_lm, requests_).delta for e in (memit, full, some))
    for name, update in wanted.updates.items():
        assert torch.equal(same.updates[name].dense(), update.dense())
        assert not torch.allclose(other.updates[name].dense(), update.dense())


@pytest.mark.parametrize("weight", [1e-3, 1.0, 1e5])
def test_emmet_without_slack_meets_every_target(weight):
    """Delta K = R whatever lambda is, and with one key it is ROME: along C^-1 k."""
    keys, residuals = normal(WIDTH, FACTS, seed=1), normal(OUT, FACTS, seed=2)
    delta = residuals @ ridge(0.0, weight)(0, keys, none(keys)).T
    torch.testing.assert_close(delta @ keys, residuals, atol=1e-10, rtol=1e-10)
    key, residual = keys[:, :1], residuals[:, :1]
    along = torch.linalg.solve(covariance().matrix, key)
    rome = residual @ along.T / (key.T @ along)
    torch.testing.assert_close(residual @ ridge(0.0, weight)(0, key, none(key)).T, rome, atol=1e-10, rtol=1e-10)


def test_without_slack_equal_keys_do_no_harm():
    """Equal targets are met; of targets that contradict each other, the mean is."""
    keys, residuals = normal(WIDTH, FACTS, seed=1), normal(OUT, FACTS, seed=2)
    keys[:, 1] = keys[:, 0]
    delta = residuals @ ridge(0.0)(0, keys, none(keys)).T
    mean = (residuals[:, 0] + residuals[:, 1]) / 2
    wanted = torch.stack([mean, mean, residuals[:, 2], residuals[:, 3]], dim=1)
    torch.testing.assert_close(delta @ keys, wanted, atol=1e-9, rtol=1e-9)
    residuals[:, 1] = residuals[:, 0]
    alone = residuals[:, 1:] @ ridge(0.0)(0, keys[:, 1:], none(keys)).T
    torch.testing.assert_close(residuals @ ridge(0.0)(0, keys, none(keys)).T, alone, atol=1e-9, rtol=1e-9)


def test_more_facts_than_directions_do_no_harm_without_slack():
    keys, residuals = normal(WIDTH, WIDTH + 5, seed=1), normal(OUT, WIDTH + 5, seed=2)
    delta = residuals @ ridge(0.0)(0, keys, none(keys)).T
    # Least squares: what is left is orthogonal to the keys.
    torch.testing.assert_close((residuals - delta @ keys) @ keys.T, torch.zeros(OUT, WIDTH).double(), atol=1e-8, rtol=0)


@pytest.mark.parametrize("passes", [1, 2, 5])
def test_passes_with_frozen_keys_approach_the_exact_solution(passes):
    """R_q = R_0 (I + G)^-q; the updates add up to R_0 [I - (I + G)^-q] G^-1 K^T (lambda C)^-1."""
    keys, start = normal(WIDTH, FACTS, seed=1), normal(OUT, FACTS, seed=2)
    total = torch.zeros(OUT, WIDTH).double()
    for _ in range(passes):
        total = total + (start - total @ keys) @ ridge(1.0)(0, keys, none(keys)).T
    right = torch.linalg.solve(3.0 * covariance().matrix, keys)
    gram = keys.T @ right
    power = torch.linalg.matrix_power(torch.linalg.inv(eye(FACTS) + gram), passes)
    torch.testing.assert_close(start - total @ keys, start @ power, atol=1e-11, rtol=1e-11)
    wanted = start @ (eye(FACTS) - power) @ torch.linalg.inv(gram) @ right.T
    torch.testing.assert_close(total, wanted, atol=1e-11, rtol=1e-11)


def test_passes_over_one_layer_of_a_model_do_too(double, requests_, store, corpus):
    """A layer's own keys do not change when it is written, so three passes there follow the same law."""
    store.collect(double, [1], corpus)
    statistic, site = store.get(double, 1, corpus, 1e-2), double.architecture.down(1)
    rows = SubjectRows.of(double, [r.place for r in requests_], Contexts())
    keys, present = keys_of(double, rows, Contexts(), 1), states_at_subject(double, rows, site)[:, 0]
    gram = keys.T @ torch.cholesky_solve(keys, statistic.cholesky) / 5.0
    start = normal(*present.shape)
    way, total = Spread(site, Objective(), [1], Ridge({1: statistic}, 5.0), share=float), None
    for _ in range(3):
        if total is None:
            total = way.write(double, requests_, present + start)
            continue
        with total.applied(double):
            piece = way.write(double, requests_, present + start)
        total = total + piece
    left = start.T - next(iter(total.updates.values())).dense() @ keys
    power = torch.linalg.matrix_power(torch.linalg.inv(eye(2) + gram), 3)
    torch.testing.assert_close(left, start.T @ power, atol=1e-9, rtol=1e-9)


def space(seed=0, threshold=0.5):
    """(basis, projector) of the smaller half of a spread-out statistic."""
    basis = null_space(covariance(seed, spread=2.0), threshold, relative=True)
    assert 0 < basis.shape[1] < WIDTH
    return basis, basis @ basis.T


@pytest.mark.parametrize("earlier", [0, 3, WIDTH + 2])
@pytest.mark.parametrize("protected", [0, 2])
@pytest.mark.parametrize("eta", [1e-2, 10.0])
def test_alphaedit_is_the_dense_solution(earlier, protected, eta):
    """[P (K K^T + B + mu K' K'^T) + eta I] X = P K R^T, with B the sum over the keys of earlier batches."""
    basis, projector = space()
    keys, residuals = normal(WIDTH, FACTS, seed=1), normal(OUT, FACTS, seed=2)
    old, beside, mu = normal(WIDTH, earlier, seed=3), normal(WIDTH, protected, seed=4), 5.0
    solve = NullSpace({0: basis}, eta, mu)
    if earlier:  # in two batches
        solve.remember(0, old[:, :1])
        solve.remember(0, old[:, 1:])
    known = keys @ keys.T + old @ old.T + mu * beside @ beside.T
    wanted = torch.linalg.solve(projector @ known + eta * eye(WIDTH), projector @ keys @ residuals.T).T
    torch.testing.assert_close(residuals @ solve(0, keys, beside).T, wanted, atol=1e-10, rtol=1e-9)


def test_alphaedit_writes_nothing_outside_the_null_space():
    basis, projector = space()
    keys, residuals = normal(WIDTH, FACTS, seed=1), normal(OUT, FACTS, seed=2)
    delta = residuals @ NullSpace({0: basis}, 0.1)(0, keys, none(keys)).T
    outside = normal(WIDTH, 20, seed=5) - projector @ normal(WIDTH, 20, seed=5)
    assert (delta @ outside).norm() < 1e-12 * delta.norm() * outside.norm()
    assert (delta @ keys).norm() > 0.1 * residuals.norm()


def test_alphaedit_keeps_to_itself_layer_by_layer():
    basis, _ = space()
    keys = normal(WIDTH, FACTS, seed=1)
    solve = NullSpace({0: basis, 1: basis}, 1.0)
    before = solve(1, keys, none(keys))
    solve.remember(0, normal(WIDTH, 2, seed=3))
    assert torch.equal(solve(1, keys, none(keys)), before)
    assert not torch.allclose(solve(0, keys, none(keys)), before)


def test_own_keys_in_the_cache_slow_the_passes_down():
    """One key k with g = |P k|^2: a pass leaves eta / (eta + g) of the residual, the j-th one with j - 1 copies of k
    in the cache 1 - g / (eta + j g)."""
    basis, projector = space()
    key, start, eta = normal(WIDTH, 1, seed=1), normal(OUT, 1, seed=2), 2.0
    g = float((projector @ key).square().sum())
    for remembers in (False, True):
        solve, left, expected = NullSpace({0: basis}, eta), start, 1.0
        for j in range(1, 5):
            left = left - left @ solve(0, key, none(key)).T @ key
            expected *= 1 - g / (eta + (j if remembers else 1) * g)
            torch.testing.assert_close(left, start * expected, atol=1e-12, rtol=1e-10)
            if remembers:
                solve.remember(0, key)


DIAGONAL = Covariance(torch.diag(torch.tensor([4.0, 0.25, 1.0, 0.5, 10.0, 0.25], dtype=torch.float64)), 10**6)


@pytest.mark.parametrize(
    ("threshold", "relative", "free"),
    [
        (0.3, False, {1, 5}),
        (0.5, False, {1, 5}),  # strictly below
        (0.6, False, {1, 3, 5}),
        (1e3, False, {0, 1, 2, 3, 4, 5}),
        (0.0, True, {0, 1, 2, 3, 4, 5}),
        (14 / 16, True, {1, 2, 3, 5}),  # of a trace of 16, 10 + 4 are protected
        (15 / 16, True, {1, 3, 5}),
        (15.5 / 16, True, {1, 5}),
    ],
)
def test_null_space_of_a_diagonal_statistic(threshold, relative, free):
    basis = null_space(DIAGONAL, threshold, relative)
    assert basis.shape == (6, len(free))
    wanted = torch.diag(torch.tensor([float(i in free) for i in range(6)], dtype=torch.float64))
    torch.testing.assert_close(basis @ basis.T, wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(basis.T @ basis, eye(len(free)), atol=1e-12, rtol=0)


def test_a_share_of_the_trace_is_protected_at_least():
    """10 of 16 in one direction: protecting half of the trace protects that direction."""
    basis = null_space(DIAGONAL, 0.5, relative=True)
    assert float(DIAGONAL.matrix.trace() - (basis.T @ DIAGONAL.matrix @ basis).trace()) >= 0.5 * 16


@pytest.mark.parametrize(("threshold", "relative"), [(0.25, False), (1.0, True), (2.0, True)])
def test_an_empty_null_space_is_refused(threshold, relative):
    told = rf"With threshold {threshold:g} no direction of the keys is free \(the smallest eigenvalue is 0.25\); raise"
    with pytest.raises(BadSetting, match=told):
        null_space(DIAGONAL, threshold, relative)


def test_a_null_space_takes_rounding_below_zero_as_zero():
    matrix = DIAGONAL.matrix.clone()
    matrix[1, 1] = -1e-18
    assert null_space(Covariance(matrix, 10**6), 1e-6, relative=False).shape == (6, 1)


@pytest.fixture
def alphaedit(tiny_lm, store, corpus, contexts):
    """A function from the cache setting to the editor."""
    store.collect(tiny_lm, [0, 1], corpus)
    bases = {layer: null_space(store.get(tiny_lm, layer, corpus), 0.5, relative=True) for layer in (0, 1)}

    def make(cache):
        settings = AlphaEditSettings(layers=(0, 1), ridge=0.1, cache=cache, **SMALL)
        return AlphaEdit(settings, NullSpace(bases, 0.1), Objective(contexts))

    return make


def keys_now(lm, requests, contexts):
    rows = SubjectRows.of(lm, [r.place for r in requests], contexts)
    return {layer: keys_of(lm, rows, contexts, layer) for layer in (0, 1)}


def same(written, wanted):
    return written.keys() == wanted.keys() and all(torch.equal(written[layer], wanted[layer]) for layer in wanted)


def test_alphaedit_remembers_a_batch_once_it_is_settled(alphaedit, tiny_lm, requests_, contexts):
    editor = alphaedit("batch")
    outcome = Iterative(editor, StopSettings(iterations=2, stop="none")).edit(tiny_lm, requests_)
    assert editor.solve.written == {}
    with outcome.delta.applied(tiny_lm):
        editor.settle(tiny_lm, requests_)
        assert same(editor.solve.written, keys_now(tiny_lm, requests_, contexts))
    first = editor.solve.written[0]
    editor.settle(tiny_lm, requests_[:1])
    assert torch.equal(editor.solve.written[0][:, :2], first)
    assert editor.solve.written[0].shape[1] == 3


def test_alphaedit_can_remember_after_every_iteration(alphaedit, tiny_lm, requests_, contexts):
    editor = alphaedit("iteration")
    outcome = Iterative(editor, StopSettings(iterations=2, stop="none")).edit(tiny_lm, requests_)
    seen = []
    for done in outcome.rounds:
        with done.delta.applied(tiny_lm):
            seen.append(keys_now(tiny_lm, requests_, contexts))
    # Nested updates are rounded once each, their sum once.
    for layer in (0, 1):
        wanted = torch.cat([keys[layer] for keys in seen], dim=1)
        torch.testing.assert_close(editor.solve.written[layer], wanted, atol=1e-5, rtol=1e-4)
    with outcome.delta.applied(tiny_lm):
        editor.settle(tiny_lm, requests_)
    assert editor.solve.written[0].shape[1] == 4, "a batch is remembered twice"


def test_the_first_iteration_does_not_know_which_cache_follows(alphaedit, tiny_lm, requests_):
    first, second = (
        Iterative(alphaedit(cache), StopSettings(iterations=2, stop="none")).edit(tiny_lm, requests_)
        for cache in ("batch", "iteration")
    )
    for name in first.delta.updates:
        for k, agree in enumerate((True, False)):
            one, other = (run.rounds[k].delta.updates[name].dense() for run in (first, second))
            assert torch.equal(one, other) == agree


def test_alphaedit_leaves_protected_directions_of_a_model_alone(alphaedit, tiny_lm, requests_):
    editor = alphaedit("batch")
    outcome = editor.edit(tiny_lm, requests_)
    for layer, basis in editor.solve.bases.items():
        update = outcome.delta.updates[f"{tiny_lm.architecture.down(layer)}.weight"].dense()
        assert (update - update @ basis @ basis.T).norm() < 1e-10 * update.norm()
        assert f"{basis.shape[1]} of {basis.shape[0]}" in outcome.notes[0]


@pytest.mark.parametrize("key", ["bare", "mixed"])
def test_rome_meets_the_target_of_the_bare_prompt(key, tiny_lm, requests_, store, corpus, contexts):
    """W' k_0 - W k_0 is the shift exactly; averaged keys are tested where all editors are."""
    store.collect(tiny_lm, [1], corpus)
    settings, site = RomeSettings(layer=1, key=key, **SMALL), tiny_lm.architecture.down(1)
    editor = Rome(settings, store.get(tiny_lm, 1, corpus, 1e-3), Objective(contexts))
    (update,) = editor.edit(tiny_lm, requests_[:1]).delta.updates.values()
    keys = states_at_subject(tiny_lm, SubjectRows.of(tiny_lm, [requests_[0].place], contexts), site, inputs=True)
    shift = optimise_targets(tiny_lm, requests_[:1], Objective(contexts), [site], settings).shifts[site][0].double()
    # The anchor is read in a batch of its own, in float32.
    torch.testing.assert_close(update.dense() @ keys[0, 0], shift, atol=1e-4, rtol=1e-4)
    along = keys[0, 0] if key == "bare" else average(keys, contexts)[0]
    along = torch.cholesky_solve(along[:, None], editor.covariance.cholesky)[:, 0]
    torch.testing.assert_close(update.right[0], along / along.norm())


def test_r_rome_is_rome_with_one_key_and_without_statistics(tiny_lm, requests_, store):
    settings = RRomeSettings(layer=1, **SMALL)
    assert (settings.covariance, settings.key) == (False, "averaged")
    with pytest.raises(BadSetting, match="mixed"):
        RRomeSettings(key="mixed")
    row = editor_row("r-rome")
    assert not row.needs_statistics(settings)
    assert row.needs_statistics(replace(settings, covariance=True))
    materials = Materials(tiny_lm, store, None)  # no corpus at all
    editor = row.build(settings, materials)
    (update,) = editor.edit(tiny_lm, requests_[:1]).delta.updates.values()
    contexts = editor.objective.contexts
    key = keys_of(tiny_lm, SubjectRows.of(tiny_lm, [requests_[0].place], contexts), contexts, 1)[:, 0]
    assert len(contexts) == 21
    torch.testing.assert_close(update.right[0], key / key.norm())
    rome = replace(editor, settings=RomeSettings(layer=1, covariance=False, key="averaged", **SMALL))
    assert torch.equal(rome.edit(tiny_lm, requests_[:1]).delta.updates.popitem()[1].dense(), update.dense())
    for name in ("rome", "r-rome", "memit"):
        wanted = {"covariance": True, "layer": 1} if "rome" in name else {"layers": (1,)}
        with pytest.raises(StatisticsMissing, match="No covariance statistics are bundled for tiny-"):
            editor_row(name).build(editor_row(name).settings_class().changed(wanted), materials)


FAITHFUL = {
    "rome": {"covariance": False, "key": "mixed"},
    "alphaedit": {"cache": "iteration"},
    "kn": {"site": "pre", "grid": "ends", "old": "choice", "follow": "choice", "several": "sum"},
    "grace": {"start": "cold", "share": True, "published_radii": True, "stop_below": 0.0},
    "calinet": {"random_facts": 0, "similar_facts": 0, "start": "random", "optimiser": "adafactor"}
    | {"warmup": 100, "steps": 5000},
    "t-patcher": {"value": "amplified", "smoothing": 0.1, "steps": 2000},
    "swea": {"preserve": 0.0, "start": "embeddings"},
}
PROTECTING = ("memit", "pmet", "emmet", "alphaedit")  # with statistics, faithful or not
MODELS = ("pocket-gpt2", "gpt2-xl", "gpt-j-6b", "llama-2-7b", "a model without presets")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", EDITORS)
def test_faithful_presets_change_what_the_published_code_does_otherwise(name, model):
    row = editor_row(name)
    clean, faithful = row.preset(model), row.preset(model, "faithful")
    changes = FAITHFUL.get(name, {})
    if (name, model) == ("memit", "llama-2-7b"):
        changes = {"decay": 1e-3, "clamp": 4.0}
    assert row.preset(model, "clean") == clean
    assert faithful.settings == clean.settings.changed(changes)
    assert (faithful.settings != clean.settings) == bool(changes)
    assert (faithful.source, faithful.suggested) == (clean.source, clean.suggested)
    assert row.needs_statistics(faithful.settings) == (name in PROTECTING)


def test_a_pass_whose_targets_are_not_finite_is_rolled_back(tiny_models, requests_, store, corpus, monkeypatch):
    """The second pass of MEMIT gets an infinite target: the first one stays."""
    lm = tiny_models("gpt2")
    store.collect(lm, [1], corpus)
    editor = Memit(MemitSettings(layers=(1,), **SMALL), Ridge({1: store.get(lm, 1, corpus, 1e-3)}, 5.0), Objective())
    passes, found = [], memit_module.optimise_targets

    def breaking(*args, **more):
        passes.append(found(*args, **more))
        factor = float("inf") if len(passes) == 2 else 1.0
        return replace(passes[-1], values={site: value * factor for site, value in passes[-1].values.items()})

    monkeypatch.setattr(memit_module, "optimise_targets", breaking)
    outcome = Iterative(editor, StopSettings(iterations=3, stop="none")).edit(lm, requests_)
    assert (outcome.decision.k, outcome.decision.rule) == (1, "not finite")
