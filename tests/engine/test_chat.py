"""Chat templates: what stands around prompts, where subjects are then, and that an edit is made and measured there."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from components.token_strip import strip_html, tokens_of
from editing_core.conventions import CLEAN, FAITHFUL
from editing_core.editors.steps.contexts import Contexts, draw_prefixed
from editing_core.editors.steps.keys import SubjectRows
from editing_core.editors.steps.rows import Objective, kl_row
from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadRequest, BadSetting
from editing_core.evaluation.evaluator import Evaluator
from editing_core.evaluation.generation import sample_texts
from editing_core.evaluation.scoring import generate, next_tokens, score_objects, text_perplexities
from editing_core.evaluation.unedited import Unedited
from editing_core.models.chat import ASK, frame_of
from editing_core.models.language_model import LanguageModel
from editing_core.models.tokens import PLAIN, Frame
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import look, planned, run_edit
from editing_core.share import Case
from editing_core.types import EditRequest
from tests.conftest import bit_equal, pocket_tokenizer, snapshot

# One for each way in which published templates stand around texts.
MARKED = (  # every turn between marks, as ChatML has it
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BRACKETED = (  # spaces around an answer, as Llama 2 has it
    "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' </s>' }}{% endif %}{% endfor %}"
)
DATED = (  # a system message with the day, as Llama 3 has it
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today: {{ date_string }}\n{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
)
THINKING = (  # an empty thought before the last answer, as Qwen 3 has it
    "{% for m in messages %}{% if loop.last and m['role'] == 'assistant' %}assistant: <think>\n\n</think>\n\n"
    "{{ m['content'] }}{% else %}{{ m['role'] }}: {{ m['content'] }}\n{% endif %}{% endfor %}"
)
SPOKEN = "{% for m in messages %}{{ m['role'] }} says: {{ m['content'] }} {% endfor %}"
TEMPLATES = {"marked": MARKED, "bracketed": BRACKETED, "dated": DATED, "thinking": THINKING, "spoken": SPOKEN}
STYLES = ("statement", "question")


def talking(template: str | None = SPOKEN) -> PreTrainedTokenizerFast:
    tokenizer = pocket_tokenizer().__class__.from_pretrained(pocket_tokenizer().name_or_path)
    tokenizer.chat_template = template
    return tokenizer


def speaking(lm: LanguageModel, template: str | None = SPOKEN) -> LanguageModel:
    """The same weights with a tokenizer that has a chat template."""
    return LanguageModel(lm.model, talking(template), lm.name, lm.revision, lock=lm.lock)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_frame_puts_texts_where_the_template_has_them(template):
    tokenizer = talking(template)
    question, statement = (frame_of(tokenizer, style, "any") for style in ("question", "statement"))
    for user, said in (("Mary was born in", "Paris"), ("The capital of France is", "the city of Rome")):
        talk = [{"role": "user", "content": user}, {"role": "assistant", "content": said}]
        given = {"date_string": "26 Jul 2024"} if template == DATED else {}
        whole = tokenizer.apply_chat_template(talk, tokenize=False, **given)
        assert whole.startswith(question.around(user) + question.joint + said)
        talk = [{"role": "user", "content": ASK}, {"role": "assistant", "content": f"{user} {said}"}]
        whole = tokenizer.apply_chat_template(talk, tokenize=False, **given)
        assert whole.startswith(f"{statement.around(user)}{statement.joint}{said}")
    assert not question.tail.endswith(" ")
    assert not question.special


def test_a_template_that_tells_the_day_is_frozen():
    assert "26 Jul 2024" in frame_of(talking(DATED), "question", "any").head


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('Only silence.') }}", "Only silence"),
        ("{{ messages[5]['content'] }}", "cannot hold a prompt"),
        ("nothing is shown", "the assistant's words once"),
        ("{{ messages[1]['content'] }}{{ messages[1]['content'] }}", "the assistant's words once"),
        ("{{ messages[1]['content'] }} {{ messages[0]['content'] }}", "the user's words once"),
        ("{{ messages[0]['content'] * 2 }} {{ messages[1]['content'] }}", "the user's words once"),
        ("{{ messages[0]['content'] | lower }} {{ messages[1]['content'] }}", "the user's words once"),
    ],
)
def test_a_template_that_cannot_hold_a_prompt_is_refused(template, reason):
    with pytest.raises(BadRequest, match=reason) as told:
        frame_of(talking(template), "question", "this-model")
    assert "this-model" in str(told.value)
    assert "'none'" in str(told.value)


def test_without_a_chat_the_model_is_itself(tiny_lm):
    assert tiny_lm.framed("none") is tiny_lm
    assert tiny_lm.coder.frame == PLAIN
    assert tiny_lm.coder.extra == 0


def test_a_framed_model_shares_weights_lock_and_nothing_else(pocket):
    lm = speaking(pocket)
    view = lm.framed("question")
    assert (view.model, view.lock, view.tokenizer) == (lm.model, lm.lock, lm.tokenizer)
    assert lm.frame == PLAIN
    assert view.framed("question") is view
    assert view.framed("none").frame == PLAIN


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("style", STYLES)
def test_the_subject_is_found_inside_the_rendered_text(pocket, template, style):
    lm = speaking(pocket, template).framed(style)
    for prompt, subject in (("{} was born in", "Mary Walker"), ("Mary knows that {} is in", "The Mary Bridge")):
        full, at = prompt.replace("{}", subject), lm.coder.subject_last(prompt, subject)
        places = lm.coder.places(full)
        (start, stop), text = places[at]
        end = len(lm.frame.head) + prompt.index("{}") + len(subject)
        assert start < end <= stop
        assert text.strip()
        assert text.strip() in subject
        assert len(places) == len(lm.coder.encode(full))
        assert [text for _, text in places] == [lm.frame.around(full)[a:b] for (a, b), _ in places]


def by_hand(lm: LanguageModel, style: str, request: EditRequest) -> EditRequest:
    """The request with the template written into its prompts, for templates that have nothing behind a prompt."""
    frame = lm.framed(style).frame
    assert not frame.tail
    around = frame.around
    return replace(
        request,
        prompt=around(request.prompt),
        paraphrases=tuple(map(around, request.paraphrases)),
        neighbors=tuple(replace(n, prompt=around(n.prompt)) for n in request.neighbors),
    )


def test_a_framed_edit_is_the_edit_of_prompts_framed_by_hand(pocket, requests_):
    """With nothing but text in the template and no prefixes, writing it into the prompts comes to the same."""
    lm, request = speaking(pocket), requests_[0]
    view, own = lm.framed("statement"), by_hand(lm, "statement", request)
    framed, written = Objective().rows(view, request, 0), Objective().rows(lm, own, 0)
    assert framed == written
    assert framed[0].ids != Objective().rows(lm, request, 0)[0].ids
    places = [(r.prompt, r.subject) for r in (request, own)]
    alone = SubjectRows.of(view, places[:1], Contexts())
    assert alone.ids == SubjectRows.of(lm, places[1:], Contexts()).ids
    evaluator, left_out = Evaluator(unedited=Unedited()), ["prompt", "case_id"]
    tables = (
        evaluator.score(view, [request]).drop(columns=left_out),
        evaluator.score(lm, [own]).drop(columns=left_out),
    )
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("style", STYLES)
def test_everything_that_reads_prompts_reads_them_in_the_template(pocket, requests_, style):
    lm, request = speaking(pocket, BRACKETED), requests_[0]
    view = lm.framed(style)
    head = view.coder.opening("")
    assert head
    contexts = Contexts.flat(("Some other words. {}",))
    rows = [row.ids for row in Objective(contexts).rows(view, request, 0)]
    rows += [kl_row(view, request, 0).ids, *SubjectRows.of(view, [(request.prompt, request.subject)], contexts).ids]
    assert all(row[: len(head) - 1] == head[:-1] for row in rows)
    text = view.tokenizer.decode(rows[1])
    assert text.index("Some other words. Mary Walker") > text.index("[INST]")
    openings = contexts.openings(view, 2)
    assert all(opening[: len(head) - 1] == head[:-1] for opening in openings)
    assert contexts.openings(view, 1) == ((), ())
    assert next_tokens(view, request.full_prompt) != next_tokens(lm, request.full_prompt)
    pairs = [(request.full_prompt, "London"), (request.full_prompt, "the French")]
    ids = torch.tensor([view.coder.continuation(*pairs[1]).ids])
    own = view.coder.continuation(*pairs[1])
    with torch.no_grad():
        logits = view.model(input_ids=ids).logits[0].double().log_softmax(-1)
    expected = logits[list(own.positions), list(own.object_ids)].mean()
    assert score_objects(view, pairs)[1].logp == pytest.approx(float(expected), abs=1e-5)
    assert view.tokenizer.decode(own.object_ids).strip() == "the French"


def test_texts_that_are_no_prompts_stay_as_they_are(pocket):
    lm = speaking(pocket)
    view = lm.framed("question")
    texts = ["The river runs through the old town and into the sea."]
    assert text_perplexities(view, texts) == text_perplexities(lm, texts)
    assert draw_prefixed(view, ((5, 3),), 0) == draw_prefixed(lm, ((5, 3),), 0)


def test_what_is_written_is_as_long_as_without_a_template(pocket):
    lm = speaking(pocket)
    view = lm.framed("question")
    plain, framed = (sample_texts(m, ["Mary Walker was born in"], length=30)[0] for m in (lm, view))
    sizes = [len(lm.tokenizer(text)["input_ids"]) for text in (plain, framed)]
    assert sizes == [30, 30 + view.coder.extra]
    assert generate(view, "Mary Walker was born in", 4)


MEMIT = editor_row("memit").preset("pocket-gpt2").settings


@pytest.fixture(scope="module")
def told(pocket):
    """A run in the template, of a fact that the bundled model knows."""
    lm = speaking(pocket)
    fact = EditRequest("Bernard Cornwell", "{} was born in", "Paris", "London")
    plan = EditPlan("memit", MEMIT, StopSettings(iterations=2), 0, conventions=CLEAN.changed({"chat": "statement"}))
    before = snapshot(lm.model)
    run = run_edit(lm, [fact], plan)
    assert bit_equal(lm.model, before)
    return lm, run


def test_an_edit_in_the_template_takes_where_it_is_asked_there(told):
    lm, run = told
    probes = run.probes_at(run.chosen)
    assert probes.loc[0, "p_new"] > 0.5
    assert probes.loc[0, "answer"] == "Paris"
    seen = look(lm, run.requests[0].full_prompt, run.delta_at(run.chosen), 3, "statement")
    assert seen.top[0].token.strip() == "Paris"
    assert seen.top[0].probability == pytest.approx(probes.loc[0, "p_new"], abs=1e-4)
    plain = look(lm, run.requests[0].full_prompt, run.delta_at(run.chosen), 3)
    assert plain.top[0].probability != pytest.approx(seen.top[0].probability, abs=1e-4)


def test_the_choice_is_kept_with_the_edit(told):
    _, run = told
    record = run.to_json()
    assert record["conventions"]["chat"] == "statement"
    assert any("assistant says: [prompt]" in note for note in record["notes"])
    assert planned(record)[1] == run.plan
    case = Case("pocket-gpt2", run.requests, run.plan)
    assert Case.of_text(case.to_text()) == case
    assert "chat=statement" in case.to_command()
    assert "chat='statement'" in case.to_python()


def test_a_record_from_before_there_was_a_choice_is_read(told):
    _, run = told
    record = run.to_json()
    del record["conventions"]["chat"]
    assert planned(record)[1].conventions == CLEAN


def test_measurements_of_unedited_models_are_kept_apart(pocket, requests_):
    lm = speaking(pocket)
    lm.revision = "0123456789ab"
    evaluator = Evaluator(unedited=Unedited())
    chats = ("none", "question", "none", "statement")
    found = [evaluator.score_unedited(lm.framed(c), requests_[:1])["p_new"].tolist() for c in chats]
    assert found[0] == found[2]
    assert len({tuple(values) for values in found}) == 3


def test_parts_of_an_answer_do_not_stand_behind_a_question():
    with pytest.raises(BadSetting, match="per_token"):
        FAITHFUL.changed({"chat": "question"})
    assert FAITHFUL.changed({"chat": "statement"}).chat == "statement"


def test_a_model_without_a_template_says_so(pocket, requests_):
    plan = EditPlan("memit", MEMIT, conventions=CLEAN.changed({"chat": "question"}))
    with pytest.raises(BadRequest, match="pocket-gpt2 has no chat template"):
        run_edit(pocket, requests_, plan)


def test_the_token_strip_shows_the_template(pocket, requests_):
    request = requests_[0]
    plain = tokens_of(pocket, request)
    assert not plain.template
    shown = tokens_of(speaking(pocket).framed("question"), request)
    own = [i for i in range(len(shown.texts)) if i not in shown.template]
    assert "".join(shown.texts[i] for i in own).strip() == request.full_prompt
    assert shown.texts[shown.edited] == plain.texts[plain.edited]
    html = strip_html(shown)
    assert html.count("es-token-template") == len(shown.template) > 5
    assert html.count("es-token-edited") == 1


def test_equal_frames_are_equal_and_say_what_they_add():
    assert Frame("a", "b").around("x") == "axb"
    assert Frame() == PLAIN
