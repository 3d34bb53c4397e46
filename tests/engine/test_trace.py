"""Causal tracing against a slow direct computation, and what must hold whatever the model."""

import math
from contextlib import ExitStack

import pytest
import torch

from editing_core.data.subjects import known_facts, subject_places
from editing_core.errors import BadRequest, BadSetting, Cancelled
from editing_core.explore.average import average
from editing_core.explore.trace import (
    KINDS,
    LAST_SUBJECT,
    ROLES,
    Trace,
    TraceSettings,
    embedding_deviation,
    trace,
)
from editing_core.models.edit import edits_on
from tests.conftest import DISTINCT, bit_equal, cancel_after, each_of, snapshot

PLACE = ("Everybody knows that {} was born in", "Mary Walker")
FEW = TraceSettings(samples=2)
NOISE = 0.5
distinct = each_of(DISTINCT)


class Direct:
    """One forward per sample, layer, kind and token, with hooks of its own."""

    def __init__(self, lm, noise, settings, token):
        self.model, self.settings, self.token, self.layers = lm.model, settings, token, lm.layers
        self.ids = torch.tensor([lm.coder.encode(PLACE[0].replace("{}", PLACE[1]))])
        self.subject = lm.coder.subject_tokens(*PLACE)
        at = lm.architecture
        self.sites = {"hidden": at.block, "mlp": at.down, "attention": at.attention_out_of}
        width = self.embedding.weight.shape[1]
        drawn = torch.Generator().manual_seed(settings.seed)
        self.noises = noise * torch.randn(settings.samples, len(self.subject), width, generator=drawn)
        self.clean = {}
        self.forward({site(i): self.keep(site(i)) for site in self.sites.values() for i in range(lm.layers)})

    @property
    def embedding(self):
        return self.model.get_input_embeddings()

    def forward(self, hooks, blur=None):
        """The token's probability with hooks by name of module, and one on the embeddings."""
        with ExitStack() as stack:
            for name, hook in hooks.items():
                stack.callback(self.model.get_submodule(name).register_forward_hook(hook).remove)
            if blur:
                stack.callback(self.embedding.register_forward_hook(blur).remove)
            logits = self.model(input_ids=self.ids, use_cache=False).logits[0, -1]
        return logits.double().softmax(-1)[self.token]

    def keep(self, name):
        def hook(_module, _args, out):
            self.clean[name] = flat(out[0] if isinstance(out, tuple) else out).clone()

        return hook

    def put(self, name, place):
        def hook(_module, _args, out):
            changed = (out[0] if isinstance(out, tuple) else out).clone()
            flat(changed)[place] = self.clean[name][place]
            return (changed, *out[1:]) if isinstance(out, tuple) else changed

        return hook

    def blur(self, sample):
        def hook(_module, _args, out):
            out = out.clone()
            out[0, self.subject[0] : self.subject[-1] + 1] += self.noises[sample]
            return out

        return hook

    def mean(self, names=(), place=0):
        """Over the samples, these modules put back at one token."""
        hooks = {name: self.put(name, place) for name in names}
        return sum(self.forward(hooks, self.blur(i)) for i in range(self.settings.samples)) / self.settings.samples

    def restored(self, kind):
        """(layers, tokens)."""
        window, rows = self.settings.window_in(self.layers), []
        for layer in range(self.layers):
            first = layer if kind == "hidden" else max(0, layer - window // 2)
            last = layer + 1 if kind == "hidden" else min(self.layers, layer - window // 2 + window)
            names = [self.sites[kind](other) for other in range(first, last)]
            rows.append(torch.stack([self.mean(names, at) for at in range(self.ids.shape[1])]))
        return torch.stack(rows)


def flat(tensor):
    return tensor.reshape(-1, tensor.shape[-1])


def test_a_trace_is_what_one_forward_after_the_other_gives(tiny_lm):
    against_direct(tiny_lm, FEW)


@pytest.mark.parametrize("window", [2, 3])
def test_a_window_of_layers_is_put_back_together(distinct, window):
    against_direct(distinct, TraceSettings(samples=2, window=window))


def against_direct(tiny_lm, settings):
    with torch.no_grad():
        found = trace(tiny_lm, PLACE, NOISE, settings, "London")
        slow = Direct(tiny_lm, NOISE, settings, tiny_lm.coder.continuation(found.prompt, "London").object_ids[0])
        # Rows run together add up in another order.
        assert found.blurred == pytest.approx(float(slow.mean()), abs=1e-6, rel=1e-4)
        for kind in KINDS:
            torch.testing.assert_close(found.restored[kind], slow.restored(kind), atol=1e-6, rtol=1e-4)
    assert found.window == settings.window_in(tiny_lm.layers)
    assert max(float((found.restored[kind] - found.blurred).abs().max()) for kind in KINDS) > 1e-2 * found.blurred


def test_restoring_the_clean_run_gives_exactly_the_clean_run(tiny_lm):
    """Without noise there is nothing to restore: every run is the clean one, to the last bit."""
    found = trace(tiny_lm, PLACE, 0.0, FEW)
    assert found.blurred == found.clean
    for kind in KINDS:
        assert torch.equal(found.restored[kind], torch.full_like(found.restored[kind], found.clean))


def test_restoring_the_last_block_at_the_last_token_gives_the_clean_answer(tiny_lm):
    found = trace(tiny_lm, PLACE, NOISE, FEW)
    assert float(found.restored["hidden"][-1, -1]) == pytest.approx(found.clean, abs=1e-6)
    assert torch.equal(found.effect("hidden")[-1, :-1], torch.zeros(len(found.tokens) - 1, dtype=torch.float64))


def test_before_the_subject_nothing_changes(tiny_lm):
    found = trace(tiny_lm, PLACE, NOISE, FEW)
    first = found.subject[0]
    assert first > 0
    assert all(bool((found.effect(kind)[:, :first] == 0).all()) for kind in KINDS)


def test_the_model_is_as_it_was(pocket):
    before = snapshot(pocket.model)
    trace(pocket, PLACE, NOISE, FEW)
    with pytest.raises(Cancelled):
        trace(pocket, PLACE, NOISE, FEW, watch=cancel_after(4))
    assert bit_equal(pocket.model, before)
    assert not edits_on(pocket.model)
    assert not any(m._forward_hooks for m in pocket.model.modules())


def test_the_same_seed_gives_the_same_trace_and_another_one_another(tiny_models):
    lm = tiny_models("llama")
    first, again, other = (trace(lm, PLACE, NOISE, TraceSettings(samples=2, seed=s)) for s in (1, 1, 2))
    assert torch.equal(first.restored["mlp"], again.restored["mlp"])
    assert not torch.equal(first.restored["mlp"], other.restored["mlp"])


def test_progress_is_told_by_layer_and_kind(tiny_models):
    lm, told = tiny_models("gpt2"), []
    trace(lm, PLACE, NOISE, FEW, watch=told.append)
    assert [(s.done, s.total) for s in told] == [(i + 1, 3 * lm.layers) for i in range(3 * lm.layers)]
    assert told[0].note == "hidden, layer 0"


def test_rows_that_do_not_fit_together_change_nothing(tiny_models, monkeypatch):
    lm = tiny_models("gptj")
    whole = trace(lm, PLACE, NOISE, FEW)
    monkeypatch.setattr(type(lm), "tokens_per_forward", 20)
    parts = trace(lm, PLACE, NOISE, FEW)
    for kind in KINDS:
        torch.testing.assert_close(whole.restored[kind], parts.restored[kind], atol=1e-7, rtol=1e-4)


def test_the_deviation_is_that_of_the_embeddings(tiny_lm):
    subjects = ["Mary Walker", "Paris", "Mary"]
    ids = [t for s in subjects for t in tiny_lm.tokenizer(f" {s}")["input_ids"]]
    own = tiny_lm.model.get_input_embeddings()(torch.tensor(ids)).detach()
    assert embedding_deviation(tiny_lm, subjects) == pytest.approx(float(own.std()), rel=1e-5)
    with pytest.raises(BadRequest, match="No subjects"):
        embedding_deviation(tiny_lm, [])


@pytest.mark.parametrize(
    ("values", "window"), [({}, 1), ({"window": 4}, 4)], ids=["in proportion to the depth", "as it is set"]
)
def test_the_window(values, window):
    assert TraceSettings(**values).window_in(6) == window
    assert TraceSettings().window_in(48) == 10


@pytest.mark.parametrize("values", [{"samples": 0}, {"level": -1.0}, {"level": math.nan}, {"window": 101}])
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(BadSetting):
        TraceSettings(**values)


def made(effects, subject=range(1, 3), tokens=5):
    """A trace with these effects in every kind."""
    restored = torch.tensor(effects, dtype=torch.float64)
    return Trace("a", ("t",) * tokens, subject, "x", 0.9, 0.0, dict.fromkeys(KINDS, restored), 1, 1.0)


def test_tokens_play_roles():
    assert made([[0.0] * 5]).roles() == dict(zip(ROLES, ([1], [], [2], [3], [], [4]), strict=True))
    assert made([[0.0] * 8], range(1, 5), 8).roles() == dict(zip(ROLES, ([1], [2, 3], [4], [5], [6], [7]), strict=True))
    assert made([[0.0] * 3], range(2, 3), 3).roles()["last token"] == []
    assert made([[0.0] * 3], range(2, 3), 3).roles()["first subject token"] == []


def test_an_average_counts_every_fact_once():
    long = made([[0, 1, 0, 0, 0.2, 0, 0, 0.4], [0, 0, 0, 0, 0.6, 0, 0, 0]], range(1, 5), 8)
    short = made([[0, 0, 0.4], [0, 0, 0.2]], range(2, 3), 3)
    found = average([long, short])
    mean, error = found.curve("mlp")
    assert mean.tolist() == pytest.approx([0.3, 0.4])
    assert error.tolist() == pytest.approx([0.1, 0.2])
    assert found.layer == 1
    assert found.facts == 2
    assert found.total == pytest.approx(0.9)
    first, alone = found.curve("mlp", ROLES[0])
    assert first.tolist() == pytest.approx([1.0, 0.0])
    assert alone.isnan().all()
    assert found.mean["hidden"][0, ROLES.index("middle subject tokens")] == 0
    assert average([short]).curve("mlp", ROLES[0])[0].isnan().all()
    with pytest.raises(BadRequest, match="trace one first"):
        average([])


def test_in_the_bundled_model_a_fact_comes_back_at_the_subjects_last_token(pocket):
    """What the model was trained for, seen from outside: early blocks at the subject, late ones at the end."""
    noise = 3 * embedding_deviation(pocket, [f.subject or "" for f in known_facts(0)[:500]])
    places = list(subject_places((f.prompt for f in known_facts(0)[:40]), 0))[:4]
    assert len(places) == 4
    found = average([trace(pocket, place, noise, TraceSettings(samples=4)) for place in places])
    hidden, last = found.mean["hidden"], found.mean["hidden"][:, ROLES.index("last token")]
    assert found.total > 0.2
    assert float(hidden[:3, ROLES.index(LAST_SUBJECT)].max()) > 0.5 * found.total
    assert float(last[-1]) > 0.9 * found.total
    assert float(last[0]) < 0.2 * found.total
