"""What an edit changed: norms, singular values, and what it does to the keys of other prompts."""

import pytest
import torch

from editing_core.editors.stopping import StopSettings
from editing_core.explore.changed import MOST_VALUES, changes_of, key_table, layer_of, singular_values
from editing_core.models.delta import Dense, LowRank, WeightDelta
from editing_core.models.hooks import watching
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import run_edit
from editing_core.types import EditRequest, Probe


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("out", "inner", "rank"), [(5, 7, 2), (7, 5, 5), (4, 6, 9)])
def test_singular_values_of_factors_are_those_of_the_product(out, inner, rank):
    update = LowRank(drawn(out, rank), drawn(rank, inner, seed=1))
    whole = torch.linalg.svdvals(update.dense())
    found = singular_values(update)
    torch.testing.assert_close(found[: len(whole)][: min(rank, len(whole))], whole[: min(rank, len(whole))])
    assert found[len(whole) :].abs().sum() < 1e-9
    torch.testing.assert_close(singular_values(Dense(update.dense())), whole)


def test_a_vector_has_one_singular_value_its_length():
    assert singular_values(Dense(torch.tensor([3.0, 4.0]))).tolist() == pytest.approx([5.0])


def test_changes_tell_layer_norm_and_shape(tiny_lm):
    name = f"{tiny_lm.architecture.down(1)}.weight"
    weight = tiny_lm.model.get_parameter(name).detach()
    out = 32
    update = LowRank(drawn(out, 3), drawn(3, weight.numel() // out, seed=1))
    norm = tiny_lm.architecture.final_norm + ".weight"
    other = Dense(drawn(out, seed=2))
    far, near = changes_of(tiny_lm, WeightDelta({norm: other, name: update}))[::-1]
    assert (near.parameter, near.layer) == (name, 1)
    assert (far.parameter, far.layer) == (norm, None)
    assert near.norm == pytest.approx(float(update.dense().norm()))
    assert near.relative == pytest.approx(near.norm / float(weight.double().norm()), rel=1e-5)
    assert near.values[:3] == pytest.approx(torch.linalg.svdvals(update.dense())[:3].tolist())
    assert far.values == pytest.approx([far.norm])
    assert layer_of(tiny_lm, "nowhere.3.weight") is None


def test_no_more_values_than_are_shown(pocket):
    name = f"{pocket.architecture.down(0)}.weight"
    (change,) = changes_of(pocket, WeightDelta({name: LowRank(drawn(256, 80), drawn(80, 1024, seed=1))}))
    assert len(change.values) == MOST_VALUES
    assert change.norm**2 > sum(v**2 for v in change.values)


def test_the_key_table_against_keys_and_outputs_taken_by_hand(tiny_lm, requests_):
    layer, name = 1, f"{tiny_lm.architecture.down(1)}.weight"
    inner = tiny_lm.model.get_parameter(name).numel() // 32
    update = LowRank(drawn(32, 2).float(), drawn(2, inner, seed=1).float())
    known = Probe("Peter Smith was born in", "Paris", "Peter Smith")
    request = EditRequest(**{**vars(requests_[0]), "neighbors": (known, Probe("It is in", "Paris"))})
    table = key_table(tiny_lm, [request], WeightDelta({name: update}))
    assert table["kind"].tolist() == ["edit", "paraphrase", "paraphrase", "neighbor"]
    assert set(table["layer"]) == {layer}
    site = tiny_lm.architecture.down(layer)

    def key(prompt, subject):
        template = prompt.replace(subject, "{}")
        at = tiny_lm.coder.subject_last(template, subject)
        with torch.no_grad(), watching(tiny_lm.model, outputs=[site], inputs=[site]) as seen:
            tiny_lm.hidden(tiny_lm.batch([tiny_lm.coder.encode(prompt)]))
        return seen[f"{site}.input"][0, at].double(), seen[site][0, at].double()

    own, _ = key(request.full_prompt, "Mary Walker")
    for row in table.itertuples():
        found, value = key(row.prompt, "Peter Smith" if row.kind == "neighbor" else "Mary Walker")
        assert row.cosine == pytest.approx(float(torch.cosine_similarity(found, own, dim=0)), abs=1e-5)
        expected = (update.dense().double() @ found).norm() / value.norm()
        assert row.moved == pytest.approx(float(expected), rel=1e-4)
    assert table["cosine"][0] == pytest.approx(1.0)


def test_an_edit_of_other_weights_moves_no_key(tiny_lm, requests_):
    name = tiny_lm.architecture.final_norm + ".weight"
    assert key_table(tiny_lm, requests_, WeightDelta({name: Dense(torch.ones(32))})).empty


def test_an_edit_moves_its_own_fact_most(pocket):
    """What makes an edit local: it answers to the edited subject's key and hardly to those of other subjects."""
    others = ("Edward Matthew Ward", "Paul Verhoeven", "Danielle Darrieux")
    neighbors = tuple(Probe(f"{name} was born in", "London", name) for name in others)
    fact = EditRequest(
        "Bernard Cornwell", "{} was born in", "Paris", "London", ("Bernard Cornwell comes from",), neighbors
    )
    settings = editor_row("memit").preset("pocket-gpt2").settings
    run = run_edit(pocket, [fact], EditPlan("memit", settings, StopSettings(iterations=1)))
    table = key_table(pocket, run.requests, run.delta_at(1))
    assert set(table["layer"]) == set(settings.layers)
    mean = table.groupby("kind")["moved"].mean()
    assert mean["edit"] > mean["neighbor"]
    assert mean["paraphrase"] > mean["neighbor"]
    last = table[table["layer"] == max(settings.layers)]
    assert last[last["kind"] == "neighbor"]["cosine"].max() < last[last["kind"] == "paraphrase"]["cosine"].min()
