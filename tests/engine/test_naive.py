"""The engine against the plain per-fact loop: batches, replays, factors and shared rows change nothing."""

from dataclasses import replace
from functools import cache
from math import isnan

import pytest
import torch

from benchmarks import naive
from editing_core.data.datasets import load_dataset, sample
from editing_core.editors.memit import Memit, MemitSettings
from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.rows import Objective, log_perplexity
from editing_core.editors.steps.spread import Ridge, Spread
from editing_core.editors.steps.targets import optimise_targets
from editing_core.evaluation.evaluator import Evaluator
from editing_core.models.norms import in_stream
from editing_core.registry import editor_row
from editing_core.session import run_edit
from editing_core.statistics.covariance import Corpus, CovarianceStore
from editing_core.types import EditRequest, Probe
from tests.conftest import ROUGH, THREE, bit_equal, left_alone, seldom, snapshot, tiny_model
from tests.engine.conftest import EVALUATOR, LAYERS, plan
from tests.engine.test_assist import NA, PETER, TOWER
from tests.engine.test_targets import relative, uneven_threshold

# Eight steps, to be quick: with 25 the shifts of float32 models still agree to 4e-5.
SETTINGS = MemitSettings(layers=LAYERS, steps=8, rate=0.3, relative_rate=True, stop_below=0.0, clamp=4.0)
DTYPES = {"float32": torch.float32, "float64": torch.float64}
KINDS = ("gpt2", "gptj", "llama", "opt", "olmo2")  # as DISTINCT, but with a post-norm in double precision, too
CASES = seldom([(family, dtype) for family in KINDS for dtype in DTYPES], [(family, "float64") for family in THREE])
PLACE = ["case_id", "kind", "number", "prompt"]
NUMBERS = ["logp_new", "logp_true"]
COUNTS = ["rank_new", "rank_true", "hit_new", "hit_true"]


def close(lm):
    """How far apart vectors may be, relative to their norm."""
    if lm.model.dtype == torch.float32:
        return 1e-4
    # Some attention is computed in float32 whatever its weights are, and rounds differently in other batches.
    return 1e-6 if lm.architecture.family in ROUGH else 1e-9


def near(lm):
    """How far apart logarithms of probabilities may be."""
    if lm.model.dtype == torch.float32:
        return {"abs": 1e-5, "rel": 2e-6}  # log p = -18 already differs by 1.3e-5 between two batches of one model
    return {"abs": close(lm), "rel": 0}


@pytest.fixture(scope="module")
def made():
    """A function from family and dtype to its tiny model, made once."""
    return cache(lambda family, dtype: tiny_model(family, DTYPES[dtype]))


@pytest.fixture(params=CASES, ids="-".join)
def lm(request, made):
    with left_alone(made(*request.param)) as lm:
        yield lm


@pytest.fixture(scope="module")
def several(facts):
    """Facts of different lengths, two of them with edit neighbors, one with every kind of probe."""
    kept = (Probe("Mary Walker was born in the city of", "Paris", family="Forgetfulness"),)
    asked = (Probe("The birthplace of Mary Walker lies in", "France", aliases=("the south", "Europe")),)
    return (
        replace(
            facts[0],
            neighbors=(Probe("Peter Smith was born in", "Paris"), Probe("The river runs through", "the old city")),
            case_id=1,
            edit_neighbors=(PETER,),
            portability=asked,
            locality=kept,
        ),
        EditRequest(
            "The old bridge over the river", "Everybody knows that {} was built by", "the French", "German", case_id=2
        ),
        EditRequest(
            "Dr. Watson, M.D.", "The home town of {} is", "New York City", case_id=3, edit_neighbors=(TOWER, PETER)
        ),
        EditRequest("Anna Brown", "{} plays the", "guitar", "piano", case_id=4, compare=False),
    )


def sites_of(lm, case):
    a = lm.architecture
    return {"mlp": [a.down(1)], "pmet": [a.attention_out_of(1), a.down(1)]}.get(case, [a.block(1)])


def uneven(lm, requests, objective, sites, settings):
    """Settings under which the requests stop at different steps."""
    alone = [optimise_targets(lm, [r], objective, sites, settings) for r in requests]
    # Clipped, because a threshold is at most 10.
    curves = [[min(10.0, sum(step.values())) for step in found.log.history] for found in alone]
    return replace(settings, stop_below=uneven_threshold(curves))


def statistics(store, lm, corpus, layers=LAYERS, floor=1e-3):
    store.collect(lm, layers, corpus)
    return {layer: store.get(lm, layer, corpus, floor) for layer in layers}


def check_targets(lm, requests, objective, sites, settings, adaptive=False):
    """The engine's targets and the plain values, compared."""
    fast = optimise_targets(lm, requests, objective, sites, settings, adaptive=adaptive)
    values, shifts, steps = naive.targets(lm, requests, objective, sites, settings, adaptive)
    assert fast.log.steps.tolist() == steps
    for site in sites:
        assert values[site].dtype == fast.values[site].dtype == lm.model.dtype
        for i in range(len(requests)):
            assert relative(shifts[site][i], fast.shifts[site][i]) <= close(lm)
            assert relative(values[site][i], fast.values[site][i]) <= close(lm)
    return fast, values


@pytest.mark.parametrize("case", ["block", "mlp", "pmet", "neighbors", "clamped"])
def test_targets_and_what_is_written(lm, case, several, contexts, store, corpus):
    objective = Objective(contexts, NA) if case == "neighbors" else Objective(contexts)
    sites = sites_of(lm, case)
    settings = replace(SETTINGS, clamp=0.4) if case == "clamped" else SETTINGS
    settings = uneven(lm, several, objective, sites, settings)
    fast, values = check_targets(lm, several, objective, sites, settings, adaptive=case == "pmet")
    assert len(set(fast.log.steps.tolist())) > 1, "no fact stopped early, so nothing was tested"
    assert bool(fast.log.clamped.any()) == (case == "clamped")
    known, share = statistics(store, lm, corpus), (lambda left: left**0.5) if case == "pmet" else float
    site, wanted, plainly = sites[-1], fast.values[sites[-1]], values[sites[-1]]
    if site == lm.architecture.down(1):  # what is spread is in units of the stream
        site, (wanted, plainly) = lm.architecture.added(1), (in_stream(lm, 1, found) for found in (wanted, plainly))
    written = Spread(site, objective, LAYERS, Ridge(known, 3.0), share).write(lm, several, wanted).updates
    plain = naive.spread(lm, several, objective, LAYERS, known, 3.0, plainly, site, share)
    assert plain.keys() == written.keys()
    apart = {name: relative(plain[name], update.dense()) for name, update in written.items()}
    assert max(apart.values()) <= close(lm), apart


def test_the_comparison_would_notice(lm, several, contexts):
    """A rate that is one percent off is far outside of what is allowed."""
    objective, (site,) = Objective(contexts), sites_of(lm, "block")
    fast = optimise_targets(lm, several, objective, [site], SETTINGS)
    _, shifts, _ = naive.targets(lm, several, objective, [site], replace(SETTINGS, rate=0.303))
    assert all(relative(shifts[site][i], fast.shifts[site][i]) > 10 * close(lm) for i in range(len(several)))


def check_table(lm, plain, table):
    """Every probe's numbers; nothing is told of an old object that is not there."""
    assert len(plain) == len(table)
    for entry, row in zip(plain, table.to_dict("records"), strict=True):
        assert [entry[name] for name in PLACE] == [row[name] for name in PLACE]
        for name in (*NUMBERS, *COUNTS):
            wanted = pytest.approx(row[name], **near(lm), nan_ok=True) if name in NUMBERS else row[name]
            assert entry[name] == wanted if name in entry else isnan(row[name])


def test_measuring(lm, several, contexts):
    check_table(lm, naive.evaluate(lm, several), EVALUATOR.score(lm, several))
    assert naive.held_out(lm, EVALUATOR.texts) == pytest.approx(EVALUATOR.collapse(lm), rel=near(lm)["abs"])
    for objective in (Objective(contexts), Objective(contexts, NA)):
        wanted = log_perplexity(lm, several, objective)[0]
        assert naive.perplexities(lm, several, objective).tolist() == pytest.approx(wanted.tolist(), **near(lm))


def check_edit(lm, requests, plan_, store, corpus, evaluator):
    """A run of MEMIT with all its measurements, and the same in plain loops."""
    run = run_edit(lm, requests, plan_, store, evaluator=evaluator)
    s, contexts = plan_.settings, Contexts.grouped(run.contexts[1:])
    known = statistics(store, lm, corpus, s.layers, s.covariance_floor)
    iterations = plan_.stop.iterations
    plain = naive.edit(lm, run.requests, s, known, Objective(contexts), iterations, evaluator.texts)
    assert len(plain.deltas) == len(run.deltas) == iterations
    for k in range(iterations + 1):
        check_table(lm, plain.tables[k], run.probes[run.probes["k"] == k])
        row = run.iterations.set_index("k").loc[k]
        assert plain.held_out[k] == pytest.approx(row["collapse_ppl"], rel=near(lm)["abs"])
        assert float(plain.perplexities[k].exp().mean()) == pytest.approx(row["ppl_spread"], rel=close(lm))
    for k, (delta, steps) in enumerate(zip(plain.deltas, plain.steps, strict=True)):
        assert run.cases[run.cases["k"] == k + 1]["steps"].tolist() == steps
        for name, update in run.deltas[k].updates.items():
            assert relative(delta[name], update.dense()) <= close(lm)
    return run, plain


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_whole_edit_of_two_iterations(made, dtype, facts, corpus, tmp_path):
    lm, store = made("gpt2", dtype), CovarianceStore(tmp_path)
    store.remember(lm, corpus)
    store.collect(lm, list(LAYERS), corpus)
    with left_alone(lm):
        check_edit(lm, facts, plan("memit"), store, store.corpus_of(lm), EVALUATOR)


def test_facts_of_the_bundled_model(pocket, contexts, store):
    """Three real facts, written by the editor with its preset."""
    asked, s = sample(load_dataset("pocket-facts"), 3, trial=4), editor_row("memit").preset("pocket-gpt2").settings
    bundled = Corpus.bundled("pocket-gpt2")
    corpus = Corpus("beginning", bundled.documents[:60])  # all of it takes longer than everything else here
    objective, evaluator = Objective(contexts), Evaluator(EVALUATOR.texts)
    with left_alone(pocket):
        known = statistics(store, pocket, corpus, s.layers, s.covariance_floor)
        assert all(len(statistic.matrix) < statistic.tokens for statistic in known.values())
        outcome = Memit(s, Ridge(known, s.covariance_weight), objective).edit(pocket, asked)
        plain = naive.edit(pocket, asked, s, known, objective, texts=EVALUATOR.texts)
        assert [outcome.targets.steps.tolist()] == [*plain.steps]
        for name, update in outcome.delta.updates.items():
            assert relative(plain.deltas[0][name], update.dense()) <= close(pocket)
        check_table(pocket, plain.tables[0], evaluator.score(pocket, asked))
        with outcome.delta.applied(pocket):
            check_table(pocket, plain.tables[1], evaluator.score(pocket, asked))
    assert (plain.perplexities[1] < plain.perplexities[0] - 1).all()


def test_the_factor_that_falls(pocket):
    """PMET's rule needs labels that come first, which random models hardly reach."""
    asked, a = sample(load_dataset("pocket-facts"), 3, trial=4), pocket.architecture
    settings = editor_row("pmet").preset("pocket-gpt2").settings
    sites = [a.attention_out_of(settings.layers[-1]), a.down(settings.layers[-1])]
    with left_alone(pocket):
        fast, _ = check_targets(pocket, asked, Objective(), sites, settings, adaptive=True)
    assert (fast.log.factor < 1).any()


def test_an_error_puts_the_weights_back(made, several, contexts, store, corpus):
    """Statistics of the second layer are missing when the first is written."""
    lm = made("gpt2", "float32")
    before, known = snapshot(lm.model), statistics(store, lm, corpus)
    site = lm.architecture.block(1)
    targets = torch.ones(len(several), lm.model.config.hidden_size)
    with pytest.raises(KeyError):
        naive.spread(lm, several, Objective(contexts), LAYERS, {0: known[0]}, 3.0, targets, site, float)
    assert bit_equal(lm.model, before)
