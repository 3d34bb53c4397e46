"""Which neighbors may assist an edit, and that none of them is measured anywhere."""

from dataclasses import replace

import pytest

from editing_core.data.datasets import load_dataset
from editing_core.data.subjects import known_facts
from editing_core.editors.assist import Assist
from editing_core.evaluation.eligibility import (
    Eligibility,
    eligibility,
    with_controls,
    with_edit_neighbors,
    without_assisting,
)
from editing_core.evaluation.evaluator import Evaluator
from editing_core.evaluation.scoring import score_objects
from editing_core.session import assisted
from editing_core.types import EditRequest, Probe

RECORDS = 30


@pytest.fixture(scope="module")
def records():
    """Bundled records; the model knows nearly all of their neighbors."""
    return load_dataset("pocket-facts")[:RECORDS]


@pytest.fixture(scope="module")
def found(pocket, records):
    return eligibility(pocket, records)


@pytest.fixture(scope="module")
def facts(records):
    """Neighbors that the model knows, each about another subject, with their places."""
    return [n for r in records[:4] for n in r.neighbors]


def wrong(probe):
    """The same with an answer the model does not give."""
    return replace(probe, answer="a purple elephant")


def unplaced(probe):
    """The same without its subject."""
    return replace(probe, subject=None)


def asking(*neighbors, case_id=0, **more):
    return EditRequest("Fanny Davies", "{} plays the", "guitar", neighbors=neighbors, case_id=case_id, **more)


def measured(requests):
    return [n for r in requests for n in r.neighbors]


def check_nothing_that_assists_is_measured(requests):
    prompts = {n.prompt for r in requests for n in r.edit_neighbors}
    subjects = {n.subject.casefold() for r in requests for n in r.edit_neighbors if n.subject}
    for n in measured(requests):
        assert n.prompt not in prompts
        assert not (n.subject and n.subject.casefold() in subjects)


def test_known_means_that_every_token_of_the_answer_comes_first(pocket, records, facts):
    some = asking(
        facts[0], wrong(facts[1]), unplaced(facts[2]), replace(facts[3], answer=f"{facts[3].answer} elephant")
    )
    found = eligibility(pocket, [*records[:5], some])
    for request, entry in zip([*records[:5], some], found, strict=True):
        scores = score_objects(pocket, [(n.prompt, n.answer) for n in request.neighbors])
        assert entry.known == tuple(all(a == b for a, b in zip(s.labels, s.choices, strict=True)) for s in scores)
        assert entry.case_id == request.case_id
    assert found[-1].known == (True, False, True, False)
    assert found[-1].placed == (True, True, False, True)
    assert found[-1].usable == (0,)


@pytest.mark.parametrize(
    ("pick", "minimum", "reason"),
    [
        (lambda _f: (), 1, "it has no neighbors"),
        (lambda f: (f[0], wrong(f[1])), 2, "the model knows 1 of its 2 neighbors, 2 are needed"),
        (lambda f: (f[0], wrong(f[1])), 1, ""),
        (lambda f: (f[0], f[1], f[2]), 4, "the model knows 3 of its 3 neighbors, 4 are needed"),
        (
            lambda f: (unplaced(f[0]), unplaced(f[1])),
            2,
            "the subject's place is known for none of the neighbors the model knows",
        ),
        (
            lambda f: (unplaced(f[0]), wrong(f[1])),
            1,
            "the subject's place is known for none of the neighbors the model knows",
        ),
        (lambda f: (unplaced(f[0]), f[1]), 2, ""),
    ],
)
def test_reasons(pocket, facts, pick, minimum, reason):
    (found,) = eligibility(pocket, [asking(*pick(facts))], minimum)
    assert found.reason == reason
    assert found.eligible == (not reason)


def test_requests_that_come_with_edit_neighbors_qualify_as_they_are(pocket, facts):
    given = asking(wrong(facts[0]), facts[2], edit_neighbors=(facts[1],))
    bare = asking(edit_neighbors=(facts[1],), case_id=1)
    found = eligibility(pocket, [given, bare], 5)
    assert all(entry.eligible for entry in found)
    assert with_edit_neighbors([given, bare], found, count=3) == (given, bare)
    (only,) = with_edit_neighbors([given], found[:1], only_known=True)
    assert (only.neighbors, only.edit_neighbors) == ((facts[2],), (facts[1],))


def test_no_requests_and_no_neighbors(pocket):
    assert eligibility(pocket, []) == []
    assert eligibility(pocket, [asking()]) == [Eligibility(0, (), (), "it has no neighbors")]


def test_the_first_usable_ones_assist_in_the_order_of_the_data(pocket, facts):
    request = asking(wrong(facts[0]), unplaced(facts[1]), *facts[2:6])
    found = eligibility(pocket, [request])
    for count in (1, 3):
        (chosen,) = with_edit_neighbors([request], found, count)
        assert chosen.edit_neighbors == tuple(facts[2 : 2 + count])
        assert chosen.neighbors == tuple(n for n in request.neighbors if n not in chosen.edit_neighbors)
    (known,) = with_edit_neighbors([request], found, 1, only_known=True)
    assert known.edit_neighbors == (facts[2],)
    assert known.neighbors == (unplaced(facts[1]), *facts[3:6])


def test_a_random_choice_hangs_on_seed_and_record_only(records, found):
    def choose(some, entries, seed):
        chosen = with_edit_neighbors(some, entries, 1, "random", seed)
        return [r.edit_neighbors for r in chosen]

    first = choose(records, found, 0)
    assert choose(records, found, 0) == first
    assert choose(records[5:], found[5:], 0) == first[5:]
    assert choose(records, found, 1) != first
    assert first != [r.edit_neighbors for r in with_edit_neighbors(records, found)]
    places = [r.neighbors.index(n[0]) for r, n in zip(records, first, strict=True)]
    assert len(set(places)) > 4, "the choice prefers some places"
    for request, entry, (n,) in zip(records, found, first, strict=True):
        assert request.neighbors.index(n) in entry.usable


@pytest.mark.parametrize("choice", ["first", "random"])
@pytest.mark.parametrize("count", [1, 3])
def test_no_edit_neighbor_is_measured_in_any_record(pocket, records, found, choice, count):
    chosen = with_edit_neighbors(records, found, count, choice, 3)
    assert [len(r.edit_neighbors) for r in chosen] == [count] * RECORDS
    check_nothing_that_assists_is_measured(chosen)
    probes = Evaluator(texts=()).score(pocket, chosen[:5])
    asked = set(probes["prompt"])
    assert not asked & {n.prompt for r in chosen for n in r.edit_neighbors}
    # Of what is left out, everything has a reason.
    subjects = {n.subject for r in chosen for n in r.edit_neighbors}
    gone = [n for r, c in zip(records, chosen, strict=True) for n in r.neighbors if n not in c.neighbors]
    assert all(n.subject in subjects for n in gone)
    assert len(gone) > count * RECORDS, "no neighbor is shared, so exclusion across records was not tested"


def test_exclusion_is_by_prompt_and_by_subject_in_any_case():
    helper = Probe("Clara Haskil plays the", "piano", "Clara Haskil")
    first = asking(Probe("Clara Haskil lives in", "Vevey", "CLARA HASKIL"), helper, edit_neighbors=(helper,))
    second = asking(
        replace(helper, subject=None),  # the same prompt without a subject
        Probe("Karl Engel plays the", "piano", "Karl Engel"),
        Probe("The piano is played by Clara Haskil in", "Vevey"),  # nobody says what it is about
        case_id=1,
    )
    left = without_assisting([first, second])
    assert left[0].neighbors == ()
    assert left[1].neighbors == second.neighbors[1:]
    assert [r.edit_neighbors for r in left] == [(helper,), ()]
    assert without_assisting(left) == left
    assert without_assisting([second]) == (second,)


def test_no_edit_neighbor_is_measured_as_locality():
    helper = Probe("Clara Haskil plays the", "piano", "Clara Haskil")
    (left,) = without_assisting([asking(edit_neighbors=(helper,), locality=(replace(helper, family="Forgetfulness"),))])
    assert left.locality == ()


def test_at_least_one_known_neighbor_is_left_to_measure(pocket, facts):
    request = asking(*facts[:2])
    (chosen,) = with_edit_neighbors([request], eligibility(pocket, [request], 2), count=2)
    assert len(chosen.neighbors) >= 1


def test_edit_neighbors_without_a_place_do_not_qualify(pocket, facts):
    (found,) = eligibility(pocket, [asking(edit_neighbors=(unplaced(facts[0]),))])
    assert not found.eligible


def test_controls_are_as_many_known_facts_about_strangers(records, found):
    chosen = with_edit_neighbors(records, found, 2)
    controls = with_controls(chosen, known_facts(), 4)
    assert [len(r.edit_neighbors) for r in controls] == [2] * RECORDS
    assert [r.neighbors for r in controls] == [r.neighbors for r in chosen]
    away = {r.subject for r in records} | {n.subject for r in chosen for n in (*r.neighbors, *r.edit_neighbors)}
    taken = [n for r in controls for n in r.edit_neighbors]
    assert all(n.place for n in taken)
    assert not away & {n.subject for n in taken}
    assert len({n.prompt for n in taken}) == len(taken)
    check_nothing_that_assists_is_measured(controls)
    assert with_controls(chosen, known_facts(), 4) == controls
    assert with_controls(chosen, known_facts(), 5) != controls


def test_controls_come_only_where_neighbors_assist_and_while_there_are_any():
    helper, other = Probe("Clara Haskil plays the", "piano", "Clara Haskil"), Probe("Ada plays the", "flute", "Ada")
    pool = [other, Probe("The river is", "deep"), replace(helper, prompt="Of Clara Haskil we know the")]
    pool += [Probe("Fanny Davies was a", "pianist", "fanny davies"), Probe("Bob plays the", "drum", "Bob")]
    requests = [
        asking(edit_neighbors=(helper,)),
        asking(case_id=1),
        asking(case_id=2, edit_neighbors=(helper, helper)),
    ]
    found = with_controls(requests, pool)
    assert found[1].edit_neighbors == ()
    taken = [n.subject for r in found for n in r.edit_neighbors]
    assert sorted(taken) == ["Ada", "Bob"]  # the others have no place, are edited, or assisted
    assert [len(r.edit_neighbors) for r in found] == [1, 0, 1]


def test_a_session_chooses_who_assists_and_says_who_goes_without(pocket, facts, records):
    poor = asking(facts[0], wrong(facts[1]), case_id="poor")
    none = asking(case_id="none")
    rich = records[7]
    chosen, notes = assisted(pocket, (rich, poor, none), Assist(neighbors="na"), 0)
    assert [len(r.edit_neighbors) for r in chosen] == [1, 0, 0]
    assert chosen[1].neighbors == poor.neighbors
    assert notes == (
        "2 of 3 facts are edited without a neighbor's assistance: case poor, because the model knows 1 of its 2 "
        "neighbors, 2 are needed, and others.",
    )
    _, notes = assisted(pocket, (rich, none), Assist(neighbors="nap", count=2), 0)
    assert notes == (
        "1 of 2 facts are edited without a neighbor's assistance: case none, because it has no neighbors.",
    )
    chosen, notes = assisted(pocket, (rich, poor), Assist(neighbors="na", minimum=1, count=3), 0)
    assert ([len(r.edit_neighbors) for r in chosen], notes) == ([3, 1], ())
    chosen, notes = assisted(pocket, (rich,), Assist(keys=1.0, choice="random"), 6)
    assert len(chosen[0].edit_neighbors) == 1, "neighbor keys need edit neighbors as well"
    assert chosen == assisted(pocket, (rich,), Assist(neighbors="na", choice="random"), 6)[0]


def test_without_assistance_a_session_asks_nothing_and_still_measures_no_edit_neighbor(facts):
    given = asking(facts[1], facts[2], edit_neighbors=(facts[1],))
    chosen, notes = assisted(None, (given,), Assist(statistics="subjects"), 0)  # no model is needed
    assert notes == ()
    assert chosen == (replace(given, neighbors=(facts[2],)),)
