"""The Explore tab's handlers: traces, the layer they suggest, the lens, what an edit changed, free text, and Stop."""

import threading
import time
from dataclasses import replace
from itertools import count

import pytest

from components import trace_view
from components.edit_tab import GONE, STOPPED, stacked
from components.explore_tab import NO_RUN
from components.jobs import Jobs
from components.run_store import StoredRun
from components.talk_view import NOTHING_ON
from components.work import measuring, reading, talking, tracing
from editing_core.editors.stopping import StopSettings
from editing_core.evaluation.scoring import generate
from editing_core.explore.talk import TalkSettings
from editing_core.explore.trace import KINDS, TraceSettings, trace
from editing_core.models.delta import WeightDelta
from editing_core.models.edit import edits_on
from editing_core.registry import EDITORS, editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import run_edit
from editing_core.stack import Stack, Timeline
from editing_core.tasks import pack
from editing_core.types import EditRequest, Probe, Step
from tests.conftest import bit_equal, snapshot

MODEL = "pocket-gpt2"
FACT = EditRequest(
    "Edward Matthew Ward",
    "{} was born in",
    "Boston",
    "London",
    ("Edward Matthew Ward comes from",),
    (Probe("Bernard Cornwell was born in", "London", "Bernard Cornwell"), Probe("It is in", "Rome")),
)


@pytest.fixture(scope="module")
def run(pocket):
    settings = editor_row("memit").preset(MODEL).settings
    return run_edit(pocket, [FACT], EditPlan("memit", settings, StopSettings(2, "none")))


@pytest.fixture
def tab(assembled):
    return assembled.explore


@pytest.fixture(autouse=True)
def left_alone(pocket, assembled):
    before = snapshot(pocket.model)
    yield
    assert bit_equal(pocket.model, before)
    assert not edits_on(pocket.model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pocket.model.modules())
    assert not len(assembled.edit.jobs)


@pytest.fixture
def held(tab):
    """What the page's widgets hold, some of it changed."""

    def values(changes=None):
        edit, trace = tab.edit, tab.trace
        own = {edit.history: [], edit.stack: Timeline(), edit.header.model: MODEL, tab.filled: ((), "")}
        own |= {trace.prompt: FACT.prompt, trace.subject: FACT.subject, trace.answer: "", trace.located: ()}
        own |= {tab.changed.measured: None, tab.lens.prompt: FACT.full_prompt, tab.talk.prompt: FACT.full_prompt}
        read = {*tab.inputs, *edit.inputs(), *trace.inputs, *tab.talk.inputs, tab.lens.source, *tab.changed.outputs[1:]}
        usual = {widget: widget.value for widget in {*read, tab.changed.layer, tab.changed.by}}
        return {**usual, **own, trace.settings["samples"]: 2, **(changes or {})}

    return values


@pytest.fixture
def shown(tab, run):
    """The run on show, its edit switched on in the stack."""
    tab.edit.runs.add(StoredRun(run))
    tab.edit.shelf.add(stacked(run))
    return {tab.edit.history: [run.id], tab.edit.stack: Timeline(Stack().add(run.id))}


def whole(events):
    """What the page shows in the end."""
    found = {}
    for event in events:
        found |= event
    return found


def test_a_trace_fills_three_heatmaps_and_suggests_a_layer(tab, held):
    found, trace = whole(tab.on_trace(held())), tab.trace
    tokens = list(found[trace.plots["mlp"]].layout.yaxis.ticktext)
    assert [t for t in tokens if t.endswith("*")] == ["Edward*", "Matt*", "hew*", "Ward*"]
    for kind in KINDS:
        assert any(value for row in found[trace.plots[kind]].data[0].z for value in row), kind
    model, layer = found[trace.located]
    last = found[trace.plots["mlp"]].data[0].z[3]
    assert (model, list(last)[layer]) == (MODEL, max(last))
    assert f"layer {layer}" in found[trace.sentence]
    assert "“London”" in found[trace.sentence]
    assert found[trace.use].interactive
    assert "Done in" in found[trace.bar.line]
    assert found[trace.bar.job] == ""


def test_another_answer_is_traced_where_one_is_asked_for(tab, held):
    found = whole(tab.on_trace(held({tab.trace.answer: "Paris"})))
    assert "“Paris”" in found[tab.trace.sentence]


def test_facts_the_model_knows_are_averaged(tab, held):
    events = list(tab.on_average(held({tab.trace.facts: 2})))
    found = whole(events)
    assert found[tab.trace.plots["mlp"]].layout.title.text == "MLP, mean of 2 facts"
    assert list(found[tab.trace.plots["mlp"]].layout.yaxis.ticktext)[2] == "last subject token"
    assert len(found[tab.trace.curves].data) == 6  # lines and bands
    assert "Over 2 facts" in found[tab.trace.sentence]
    lines = [event[tab.trace.bar.line] for event in events if tab.trace.bar.line in event]
    assert any("fact 1 of 2" in line or "fact 2 of 2" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "no place"}, "exactly one is needed"),
        ({"subject": " "}, "subject is empty"),
        ({"subject": "Zoë"}, "plain English letters"),
        ({"answer": "<b>London</b>"}, "markup"),
        ({"prompt": "{} " + "a " * 400}, "at most 100 are traced"),
        ({"samples": 0}, "samples is 0"),
        ({"level": None}, "level is empty"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_one_sentence(tab, held, changes, said):
    place = {**tab.trace.settings, "prompt": tab.trace.prompt, "subject": tab.trace.subject, "answer": tab.trace.answer}
    found = whole(tab.on_trace(held({place[name]: value for name, value in changes.items()})))
    assert said in found[tab.trace.bar.line]
    assert "es-error" in found[tab.trace.bar.line]
    assert tab.trace.located not in found
    assert all(found[button].interactive for button in tab.trace.bar.starts.values())


@pytest.mark.parametrize("facts", [0, 51, 2.5, None])
def test_too_many_facts_are_refused(tab, held, facts):
    assert "whole numbers from 1 to 50" in whole(tab.on_average(held({tab.trace.facts: facts})))[tab.trace.bar.line]


def test_use_this_layer_ends_every_editors_layers_there(tab, held):
    form = tab.edit.settings
    found = tab.on_use(held({tab.trace.located: (MODEL, 4)}))
    for name, row in EDITORS.items():
        settings, widgets = row.preset(MODEL).settings, form.widgets[name]
        if row.beside or name == "kn":  # these do not write where a fact comes back
            assert not set(widgets.values()) & found.keys()
        elif "layer" in widgets:
            assert found[widgets["layer"]] == 4
        else:
            layers = tuple(int(part) for part in found[widgets["layers"]].split(","))
            assert layers == tuple(range(5 - len(settings.layers), 5)), name
    assert "MEMIT now edits layers 1, 2, 3, 4" in found[tab.trace.used]
    other = tab.on_use(held({tab.trace.located: (MODEL, 4), form.editor: "grace"}))
    assert "GRACE does not edit where a fact comes back" in other[tab.trace.used]
    low = tab.on_use(held({tab.trace.located: (MODEL, 1)}))
    assert low[form.widgets["memit"]["layers"]] == "0, 1"
    assert form.ingredients.recipe in low  # fine-tuning's recipe is told of its layers


def test_a_layer_that_was_not_found_or_in_another_model_is_refused(tab, held):
    assert "No layer was found" in tab.on_use(held())[tab.trace.used]
    found = tab.on_use(held({tab.trace.located: ("gpt2", 4)}))
    assert "found in gpt2, but pocket-gpt2 is chosen" in found[tab.trace.used]
    assert set(found) == {tab.trace.used}


def test_the_lens_shows_the_run_before_and_after_its_edit(tab, held, shown, run, pocket):
    found = whole(tab.on_lens(held(shown)))
    before, after = (found[getattr(tab.lens, side)].data[0] for side in ("before", "after"))
    assert before.text[-1][-1] == "<b>London</b>"
    assert after.text[-1][-1] == "<b>Boston</b>"
    assert len(before.z) == pocket.layers
    lines = {line.name: line.y[-1] for line in found[tab.lens.chances].data}
    assert lines["old, before"] > 0.9
    assert lines["new, before"] < 0.5
    assert lines["new, after"] > lines["old, after"]
    assert f"k = {run.chosen}" in found[tab.lens.after].layout.title.text


def test_the_lens_reads_the_stack_and_says_when_nothing_is_on(tab, held, shown):
    found = whole(tab.on_lens(held({**shown, tab.lens.source: "stack"})))
    assert "1 edit of the stack" in found[tab.lens.after].layout.title.text
    assert "Boston" in found[tab.lens.after].data[0].text[-1][-1]
    found = whole(tab.on_lens(held({tab.lens.source: "stack"})))
    assert found[tab.lens.after].layout.annotations[0].text == NOTHING_ON
    assert found[tab.lens.before].data[0].text[-1][-1] == "London"
    found = whole(tab.on_lens(held()))
    assert found[tab.lens.after].layout.annotations[0].text == NO_RUN


@pytest.mark.parametrize(("prompt", "said"), [("", "is empty"), ("a " * 400, "shorten"), ("Zoë", "plain English")])
def test_a_prompt_that_cannot_be_read_is_refused(tab, held, prompt, said):
    assert said in whole(tab.on_lens(held({tab.lens.prompt: prompt})))[tab.lens.bar.line]
    assert said in whole(tab.on_talk(held({tab.talk.prompt: prompt})))[tab.talk.bar.line]


def test_what_the_edit_changed_by_layer_and_prompt(tab, held, shown, run):
    found, changed = whole(tab.on_measure(held(shown))), tab.changed
    proofs = run.proofs[run.chosen - 1]
    bars = found[changed.norms].data[0]
    assert list(bars.y) == pytest.approx([proof.relative_norm for proof in proofs])
    assert list(bars.x) == [str(layer) for layer in run.plan.settings.layers]
    assert len(found[changed.values].data) == len(proofs)
    kinds = {line.name for line in found[changed.drift].data}
    assert kinds >= {"edit", "paraphrase"}
    measured = found[changed.measured]
    assert f"{FACT.full_prompt} → Boston, k = {run.chosen}." in found[changed.about]
    assert found[changed.layer].value == max(run.plan.settings.layers)
    moved = {**shown, changed.measured: measured, changed.layer: 0, changed.by: "moved"}
    (figure,) = tab.on_points(held(moved)).values()
    edit = next(line for line in figure.data if line.name == "edit")
    own = measured.keys[(measured.keys["kind"] == "edit") & (measured.keys["layer"] == 0)]
    assert list(edit.x) == pytest.approx(own["moved"].tolist())
    change = run.probes_at(run.chosen)["logp_true"][0] - run.probes_at(0)["logp_true"][0]
    assert list(edit.y) == pytest.approx([change])


def test_without_an_edit_there_is_nothing_to_measure(tab, held):
    assert NO_RUN in whole(tab.on_measure(held()))[tab.changed.bar.line]
    assert GONE in whole(tab.on_measure(held({tab.edit.history: ["left"]})))[tab.changed.bar.line]
    assert tab.on_points(held()) == {"__type__": "update"}


def test_weights_that_were_not_kept_and_models_not_on_offer_are_told(tab, held, run):
    for other, said in (
        (replace(run, id="bare", deltas=(None, None)), "were not kept"),
        (replace(run, id="huge", model="some-model"), "not on offer here"),
    ):
        tab.edit.runs.add(StoredRun(other))
        history = {tab.edit.history: [other.id]}
        assert said in whole(tab.on_measure(held(history)))[tab.changed.bar.line]
        assert said in whole(tab.on_lens(held(history)))[tab.lens.bar.line]


def test_it_talks_without_and_with_the_stack(tab, held, shown, run, pocket):
    asked = {tab.talk.settings["tokens"]: 20, tab.talk.settings["temperature"]: 0}
    events = list(tab.on_talk(held({**shown, **asked})))
    texts = [event[tab.talk.texts] for event in events if tab.talk.texts in event]
    assert len(texts[0]) < len(texts[-1])
    assert "with 1 edit of the stack" in texts[-1]
    plain = generate(pocket, FACT.full_prompt, 20)
    with run.delta_at(run.chosen).applied(pocket):
        edited = generate(pocket, FACT.full_prompt, 20)
    for word in plain.split() + edited.split():
        assert word in texts[-1]
    assert "Boston" in texts[-1]
    assert "Written in" in whole(events)[tab.talk.bar.line]


def test_it_talks_alone_where_nothing_is_on(tab, held):
    found = whole(tab.on_talk(held({tab.talk.settings["tokens"]: 5, tab.talk.prompt: "It is <not known"})))
    assert NOTHING_ON in found[tab.talk.texts]
    assert "It is &lt;not known" in found[tab.talk.texts]
    assert "tokens is 1000" in whole(tab.on_talk(held({tab.talk.settings["tokens"]: 1000})))[tab.talk.bar.line]


def test_a_talk_that_is_left_ends_and_others_have_their_turn(tab, held, shown, pocket):
    talk = tab.on_talk(held({**shown, tab.talk.settings["tokens"]: 240, tab.talk.settings["temperature"]: 0}))
    assert any("Boston" in event.get(tab.talk.texts, "") for event in talk)
    assert len(tab.edit.jobs) == 1
    assert tab.edit.jobs.thread.call(lambda: edits_on(pocket.model)) == 0  # between two turns
    assert len(tab.edit.jobs) == 1
    talk.close()
    assert not len(tab.edit.jobs)


def test_work_in_pieces_lets_others_in_between_and_ends_at_a_stop():
    jobs, order = Jobs(), []

    def pieces(watch):
        for number in count():
            watch(Step("piece", number, 0))
            order.append(number)
            yield number

    job = jobs.start(pieces)
    for name in ("one", "two"):
        jobs.thread.call(lambda name=name: order.append(name))
    job.stop()
    assert order.index("one") < order.index("two")
    assert job.stopped
    assert not job.result or job.result in order
    ended = len(order)
    jobs.thread.call(lambda: None)
    assert len(order) == ended


def test_work_in_pieces_gives_the_last_and_its_errors():
    jobs = Jobs()

    def pieces(_watch, fail):
        yield 1
        yield 2
        if fail:
            raise ValueError("broken")

    for fail in (False, True):
        job = jobs.start(lambda watch, fail=fail: pieces(watch, fail))
        job.wait(10)
        assert job.done
        assert job.result == 2
        assert isinstance(job.error, ValueError) is fail


def test_pieces_that_wait_behind_others_are_never_done_after_a_stop():
    jobs, held_up, done = Jobs(), threading.Event(), []

    def pieces(_watch):
        done.append(1)
        jobs.thread.submit(held_up.wait)  # comes before the next piece
        yield 1
        done.append(2)
        yield 2

    job = jobs.start(pieces)
    while job.result is None:
        time.sleep(0.001)
    job.stop()  # at once, though the thread is taken
    held_up.set()
    jobs.thread.call(lambda: None)
    assert done == [1]


def test_stop_ends_a_talk_and_a_trace_in_a_sentence(tab, held, shown):
    for work, bar in (
        (tab.on_talk(held({**shown, tab.talk.settings["tokens"]: 400})), tab.talk.bar),
        (tab.on_average(held({tab.trace.facts: 50})), tab.trace.bar),
    ):
        for event in work:
            if event.get(bar.job):
                assert tab.edit.jobs.stop(event[bar.job])
                break
        assert STOPPED in whole(work)[bar.line]


def test_a_public_page_ends_a_text_that_takes_too_long(tab, held, monkeypatch):
    monkeypatch.setattr(tab.edit.jobs, "limit", 1e-9)
    assert "the most this page gives to one" in whole(tab.on_talk(held()))[tab.talk.bar.line]
    monkeypatch.setattr(tab.edit.jobs, "limit", 1e9)
    assert "Written" in whole(tab.on_talk(held({tab.talk.settings["tokens"]: 5})))[tab.talk.bar.line]


def test_on_a_lent_gpu_a_text_comes_as_one_task(tab, held, shown, monkeypatch):
    class Lent:
        done = 0

        def do(self, task, watch):
            self.done += 1
            assert task.quick
            return task.run(tab.edit.host, tab.edit.store, watch)

    monkeypatch.setattr(tab.edit, "gpu", Lent())
    found = whole(tab.on_talk(held({**shown, tab.talk.settings["tokens"]: 20})))
    assert tab.edit.gpu.done == 1
    assert "with 1 edit of the stack" in found[tab.talk.texts]


def test_every_task_can_travel(host, run):
    settings, states = TraceSettings(samples=1), [WeightDelta(), run.delta_at(1)]
    for task in (
        tracing(MODEL, FACT.place, None, settings, "none"),
        reading(MODEL, FACT.full_prompt, ["London"], states, "none"),
        measuring(MODEL, [FACT], states[1], "none"),
        talking(MODEL, FACT.full_prompt, states, TalkSettings(tokens=3), "none"),
    ):
        sent = pack(task).unpacked()
        assert sent.seconds(host) > 0
        found = pack(sent.run(host, None)).unpacked()
        assert len(found) in (1, 2)


def test_the_tab_takes_up_another_fact_and_leaves_what_was_typed(tab, held, shown):
    form = tab.edit.form
    fact = {form.prompt: FACT.prompt, form.subject: FACT.subject, form.old: "London"}
    first = tab.on_enter(held(fact))
    assert (first[tab.trace.prompt], first[tab.trace.answer]) == (FACT.prompt, "London")
    assert first[tab.lens.prompt] == first[tab.talk.prompt] == FACT.full_prompt
    again = tab.on_enter(held({**fact, tab.filled: first[tab.filled]}))
    assert set(again) == {tab.filled}
    other = tab.on_enter(held({**fact, **shown, form.subject: "Somebody", tab.filled: first[tab.filled]}))
    assert other[tab.trace.subject] == "Somebody"
    assert tab.lens.prompt not in other  # the run on show has the prompt that is there


def test_the_sentence_is_escaped_and_warns_where_there_is_nothing_to_bring_back(pocket):
    found = trace(pocket, FACT.place, 0.0, TraceSettings(samples=1))
    told = trace_view.sentence_html([replace(found, answer="<i>")], MODEL, alone=True)
    assert "“&lt;i&gt;”" in told
    assert "hardly anything to bring back" in told
    assert "hardly" not in trace_view.sentence_html([replace(found, blurred=0.1)], MODEL, alone=True)
