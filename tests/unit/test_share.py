"""A case as a link, as Python and as a command: each gives the same case again, and what is no case is refused."""

import base64
import json
import shlex
import zlib

import pytest

from editing_core import cli
from editing_core.conventions import FAITHFUL, Conventions
from editing_core.data.examples import load_examples
from editing_core.editors.assist import Assist
from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadRequest, EditingError
from editing_core.registry import EDITORS, editor_row
from editing_core.runs.record import EditPlan
from editing_core.share import MOST_BYTES, MOST_LETTERS, Case
from editing_core.types import EditRequest, Probe

FACT = EditRequest(
    "Paul Allen",
    "{} worked for",
    "Apple",
    "Microsoft",
    ("Paul Allen's employer: it's",),
    (Probe("Bill Gates worked for", "Microsoft"),),
    source="form",
)


def case_of(editor="memit", facts=(FACT,), settings=None, **more):
    own = settings or editor_row(editor).preset("pocket-gpt2").settings
    return Case("pocket-gpt2", tuple(facts), EditPlan(editor, own, **more))


CASES = {
    **{editor: case_of(editor) for editor in EDITORS},
    "changed": case_of(
        settings=editor_row("memit").preset("pocket-gpt2").settings.changed({"layers": (1, 2), "rate": 0.2}),
        stop=StopSettings(3, "monotone", 0.5, 0.0),
        seed=7,
        assist=Assist("na", "paper", 0.5, count=2, keys=1.0, statistics="subjects"),
    ),
    "faithful": case_of(conventions=FAITHFUL),
    "one switch": case_of(conventions=Conventions(padding="left")),
    "quotes": case_of(facts=(EditRequest('O\'Brien "the" $HOME', "`{}` \\ wrote", "a; b && c"),)),
    "several": case_of(
        facts=[
            EditRequest(
                f"Person {n}",
                "{} worked for",
                "Apple",
                neighbors=(Probe("Bill Gates worked for", "Microsoft", "Bill Gates", ("MS",), "x"),),
                case_id=n,
            )
            for n in range(3)
        ]
    ),
    **{e.name: case_of(e.editor, e.requests, assist=Assist().changed(e.assist)) for e in load_examples()},
}


@pytest.mark.parametrize("name", CASES)
def test_a_link_gives_the_same_case(name):
    case = CASES[name]
    assert Case.of_text(case.to_text()) == case
    assert Case.of_text(f"https://example.org/?__theme=dark&case={case.to_text()}&x=1") == case


@pytest.mark.parametrize("name", CASES)
def test_the_python_gives_the_same_case(name, monkeypatch):
    case, told = CASES[name], {}
    import editing_core

    monkeypatch.setattr(editing_core.LanguageModel, "load", staticmethod(lambda model: model))
    monkeypatch.setattr(editing_core, "run_edit", lambda *asked: told.update(asked=asked))
    text = case.to_python()
    exec(text.partition("print(")[0], told)
    model, requests, plan = told["asked"]
    assert (model, tuple(requests), plan) == (case.model, case.requests, case.plan)


@pytest.mark.parametrize("name", CASES)
def test_the_command_gives_the_same_case(name):
    case = CASES[name]
    words = shlex.split(case.to_command())
    assert words[:4] == ["python", "-m", "editing_core", "edit"]
    options = cli._parser().parse_args(words[3:])
    found, _ = cli.asked(options)
    assert found.model == case.model
    assert found.plan == case.plan
    untold = [EditRequest(**{**vars(r), "source": "command line"}) for r in found.requests]
    assert untold == [EditRequest(**{**vars(r), "source": "command line"}) for r in case.requests]


def test_a_plain_fact_is_told_in_flags_and_several_as_a_case():
    assert "--subject 'Paul Allen'" in CASES["memit"].to_command()
    assert "--case" in CASES["several"].to_command()


def packed(value):
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(value).encode())).decode().rstrip("=")


def plainly(**changes):
    return {**CASES["memit"].to_plain(), **changes}


HOSTILE = {
    "nothing": "",
    "no base64": "é!",
    "not packed": base64.urlsafe_b64encode(b"plain text").decode(),
    "cut off": CASES["memit"].to_text()[:-9],
    "too long": "A" * (MOST_LETTERS + 1),
    "unpacks to much": packed("a" * (MOST_BYTES + 1)),
    "nested": base64.urlsafe_b64encode(zlib.compress(b"[" * 90_000)).decode(),
    "a list": packed([1, 2]),
    "another version": packed(plainly(version=2)),
    "no editor": packed(plainly(editor=None)),
    "unknown editor": packed(plainly(editor="__import__")),
    "a path": packed(plainly(model="/etc/passwd")),
    "a path up": packed(plainly(model="a/../b")),
    "no model": packed(plainly(model=3)),
    "seed of text": packed(plainly(seed="1")),
    "enormous seed": packed(plainly(seed=10**30)),
    "truth as seed": packed(plainly(seed=True)),
    "unknown setting": packed(plainly(settings={"lr": 1})),
    "setting out of range": packed(plainly(settings={"layers": [99999]})),
    "settings of text": packed(plainly(settings="rate=1")),
    "stop of list": packed(plainly(stop=[1])),
    "many iterations": packed(plainly(stop={"iterations": 10**9})),
    "assist of nothing": packed(plainly(assist=None)),
    "no facts": packed(plainly(facts=[])),
    "facts of text": packed(plainly(facts=["a"])),
    "many facts": packed(plainly(facts=[{"subject": "a", "prompt": "{} b", "target_new": "c"}] * 101)),
    "markup": packed(plainly(facts=[{"subject": "<script>alert(1)</script>", "prompt": "{} b", "target_new": "c"}])),
    "no place": packed(plainly(facts=[{"subject": "a", "prompt": "b", "target_new": "c"}])),
    "unknown field": packed(plainly(facts=[{"subject": "a", "prompt": "{} b", "target_new": "c", "__class__": 1}])),
    "probes of numbers": packed(
        plainly(facts=[{"subject": "a", "prompt": "{} b", "target_new": "c", "neighbors": [1]}])
    ),
    "infinite": base64.urlsafe_b64encode(
        zlib.compress(json.dumps(plainly(stop={"tolerance": float("inf")})).encode())
    ).decode(),
    "not a number": base64.urlsafe_b64encode(
        zlib.compress(json.dumps(plainly(settings={"rate": float("nan")})).encode())
    ).decode(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_case_is_refused_in_one_sentence(name):
    with pytest.raises(EditingError) as refused:
        Case.of_text(HOSTILE[name])
    text = str(refused.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text) < 600


def test_too_much_for_a_link_is_said_when_it_is_made():
    many = case_of(
        facts=[
            EditRequest(f"Person {n * 7919}", "{} worked for", f"Company {n * 104729}", case_id=n) for n in range(101)
        ]
    )
    with pytest.raises(BadRequest, match="as a file"):
        many.to_text()


def test_no_secret_can_be_in_a_link(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    told = json.dumps(CASES["memit"].to_plain())
    assert "hf_secret" not in told
    assert "/home" not in told
