"""Every format from small files of its own kind, every problem told, and how trials are drawn."""

import copy
import json
import sys
import types
from dataclasses import replace

import pytest

from editing_core import paths
from editing_core.data.datasets import FORMATS, Loaded, load_dataset, sample
from editing_core.data.problems import BadRecords
from editing_core.errors import BadRequest, UnknownName
from editing_core.types import EditRequest, Probe

COUNTERFACT = {
    "case_id": 12,
    "requested_rewrite": {
        "prompt": "The {home} of {} is",
        "relation_id": "P19",
        "target_new": {"str": "New York City", "id": "Q60"},
        "target_true": {"str": "São Paulo", "id": "Q174"},
        "subject": "Zoë {x} Müller",
    },
    "paraphrase_prompts": ["References\n\nZoë {x} Müller lives in"],
    "neighborhood_prompts": ["The {home} of Peter is", "Paul was born in"],
    "generation_prompts": ["Zoë {x} Müller was"],
}
ELIGIBLE = {
    "case_id": 0,
    "prompt": "Porsche, say Porsche fans, belongs to",
    "subject": "Porsche",
    "target_new": "Honda",
    "ground_truth": "Volkswagen",
    "rephrase_prompt": ["Who owns Porsche?"],
    "locality": {"neighborhood": {"prompt": ["Audi is of", "Seat is of"], "ground_truth": ["Volkswagen"] * 2}},
    "neighborhood_samples": [{"subject": "Audi", "prompt": "{} is of"}],
    "portability": {},
}
ZSRE = {
    "subject": "Élan",
    "src": "Is Élan by Élan?",
    "rephrase": "Who made Élan?",
    "answers": ["Lotus Cars Ltd", "Lotus"],
    "alt": "Ford",
    "loc": "nq question: who {really} sang",
    "loc_ans": "Gladys Knight",
    "pred": "x",
    "cond": "y",
}
KNOWEDIT = {
    "subject": "Ann",
    "prompt": "The husband of Ann is",
    "target_new": "Bob",
    "portability": {
        "Reasoning": [
            {"prompt": "His father is", "ground_truth": [["Carl", "Karl"], ["Charles", " "]]},
            {"prompt": "His mother is", "ground_truth": [[""], ["Dora"]]},
        ],
        "Subject_Aliasing": [{"prompt": ["Annie's husband is"], "ground_truth": "Bob"}],
    },
    "locality": {"Forgetfulness": [{"prompt": "Ann knew", "ground_truth": ["Eve"]}], "Relation_Specificity": []},
}
PORTABILITY = {"portability": {"Recalled Relation": "(a, b, c)", "New Question": "Where?", "New Answer": "Detroit"}}
GOOD = {
    "counterfact": COUNTERFACT,
    "counterfact-neighbor": ELIGIBLE,
    "zsre": ZSRE,
    "knowedit": KNOWEDIT,
    "portability": {**ZSRE, **PORTABILITY},
    "table": {"subject": "Mary", "prompt": "{} is in", "target_new": "Rome"},
}


@pytest.fixture
def load(tmp_path):
    """Loads records as a file of the format."""

    def load_(name, records, **options):
        path = tmp_path / "records.json"
        path.write_text(json.dumps(records), encoding="utf-8")
        return load_dataset(f"{name}:{path}", **options)

    return load_


def changed(record, path, value):
    """A copy with the value at a path replaced; a value of KeyError takes the key out."""
    out = copy.deepcopy(record)
    *way, last = path.split(".")
    place = out
    for key in way:
        place = place[key]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return out


def test_counterfact(load):
    loaded = load("counterfact", [COUNTERFACT])
    assert loaded[0] == EditRequest(
        subject="Zoë {x} Müller",
        prompt="The {home} of {} is",
        target_new="New York City",
        target_true="São Paulo",
        paraphrases=("References\n\nZoë {x} Müller lives in",),
        neighbors=(Probe("The {home} of Peter is", "São Paulo", "Peter"), Probe("Paul was born in", "São Paulo")),
        case_id=12,
        relation_id="P19",
        target_new_id="Q60",
        generation_prompts=("Zoë {x} Müller was",),
        source="counterfact:records.json",
    )
    assert loaded.name == "counterfact:records.json"
    assert loaded.problems == ()


def test_counterfact_takes_subjects_from_the_samples(load):
    samples = [{"subject": "Pete", "prompt": "{}"}, {"subject": "Paul", "prompt": "{}"}]
    (request,) = load("counterfact", [{**COUNTERFACT, "neighborhood_samples": samples}])
    assert [probe.subject for probe in request.neighbors] == ["Pete", "Paul"]
    assert request.neighbors[1].template == "{} was born in"


def test_counterfact_without_neighbors_or_number(load):
    bare = {"requested_rewrite": COUNTERFACT["requested_rewrite"]}
    (request,) = load("counterfact", [bare])
    assert (request.neighbors, request.paraphrases, request.case_id) == ((), (), 0)


@pytest.mark.parametrize(
    ("template", "prompt", "subject"),
    [
        ("{} is in", "Rome is in", "Rome"),
        ("In {}, by", "In old Rome, by", "old Rome"),
        ("{} is in", "Rome lies in", None),
        ("ab {} ba", "ab a", None),
        ("aba{}aba", "aba", None),
        ("aba{}aba", "ababa", None),
        ("{} is", " is", None),
    ],
)
def test_a_neighbor_that_fits_the_template_has_the_subject_between(load, template, prompt, subject):
    record = changed(COUNTERFACT, "requested_rewrite.prompt", template)
    (request,) = load("counterfact", [{**record, "neighborhood_prompts": [prompt]}])
    assert request.neighbors[0].subject == subject


def test_eligible(load):
    (request,) = load("counterfact-neighbor", [ELIGIBLE])
    assert request.prompt == "Porsche, say {} fans, belongs to"
    assert request.edit_neighbors == (Probe("Audi is of", "Volkswagen", "Audi"),)
    assert request.neighbors == (Probe("Seat is of", "Volkswagen"),)
    assert (request.target_new, request.target_true) == ("Honda", "Volkswagen")
    assert request.paraphrases == ("Who owns Porsche?",)


def test_zsre(load):
    (request,) = load("zsre", [ZSRE])
    assert (request.subject, request.prompt) == ("Élan", "Is Élan by {}?")
    assert (request.target_new, request.target_true, request.compare) == ("Lotus Cars Ltd", None, False)
    assert request.paraphrases == ("Who made Élan?",)
    assert request.neighbors == (Probe("nq question: who {really} sang?", "Gladys Knight", family="nq"),)


def test_zsre_the_other_way(load):
    (request,) = load("zsre", [ZSRE], direction="alt")
    assert (request.target_new, request.target_true, request.compare) == ("Ford", "Lotus Cars Ltd", True)


def test_knowedit(load):
    (request,) = load("knowedit", [KNOWEDIT])
    assert (request.prompt, request.target_new, request.target_true) == ("The husband of {} is", "Bob", None)
    assert request.portability == (
        Probe("His father is", "Carl", aliases=("Karl", "Charles"), family="Reasoning"),
        Probe("Annie's husband is", "Bob", family="Subject_Aliasing"),
    )
    assert request.locality == (Probe("Ann knew", "Eve", family="Forgetfulness"),)


def test_knowedit_with_an_old_object_and_a_rephrasing(load):
    more = {"ground_truth": ["Dan", "Daniel"], "rephrase": "Ann's husband is", "portability": {}, "locality": {}}
    (request,) = load("knowedit", [{**KNOWEDIT, **more}])
    assert (request.target_true, request.paraphrases) == ("Dan", ("Ann's husband is",))
    assert (request.portability, request.locality) == ((), ())


def test_portability_of_both_kinds(load):
    first, second = load("portability", [{**ZSRE, **PORTABILITY}, {**COUNTERFACT, **PORTABILITY}])
    assert first.target_new == "Ford", "the new question follows from the alternative"
    assert second.target_new == "New York City"
    assert first.portability == second.portability == (Probe("Where?", "Detroit", family="one_hop"),)


BROKEN = [
    ("counterfact", "requested_rewrite", KeyError, "requested_rewrite.prompt", "is missing"),
    ("counterfact", "requested_rewrite", "text", "requested_rewrite.prompt", "of type str; a JSON object with keys"),
    ("counterfact", "requested_rewrite.target_new", {}, "requested_rewrite.target_new.str", "is missing; it must hold"),
    ("counterfact", "requested_rewrite.target_new.str", "  ", "requested_rewrite.target_new.str", "is empty"),
    (
        "counterfact",
        "requested_rewrite.target_new.str",
        7,
        "requested_rewrite.target_new.str",
        "of type int; it must be",
    ),
    (
        "counterfact",
        "requested_rewrite.target_new.str",
        "são paulo",
        "requested_rewrite.target_new.str",
        "equals the old",
    ),
    ("counterfact", "requested_rewrite.target_true", KeyError, "requested_rewrite.target_true.str", "is missing"),
    ("counterfact", "requested_rewrite.prompt", "no place", "requested_rewrite.prompt", "has 0 places {}"),
    ("counterfact", "requested_rewrite.subject", "a\tb", "requested_rewrite.subject", "control character"),
    ("counterfact", "paraphrase_prompts", "text", "paraphrase_prompts", "of type str; it must be a list"),
    ("counterfact", "paraphrase_prompts", ["<b>x</b>"], "paraphrase_prompts", "contains the markup '<b>'"),
    ("counterfact", "neighborhood_prompts", ["x", 3], "neighborhood_prompts", "of type int"),
    ("counterfact", "neighborhood_prompts", ["x" * 2000], "neighborhood_prompts", "has 2,000 characters"),
    (
        "counterfact",
        "neighborhood_samples",
        [{"subject": "a"}],
        "neighborhood_samples",
        "There are 1 neighborhood_samples",
    ),
    ("counterfact", "case_id", [1], "case_id", "must be a number or text"),
    ("counterfact-neighbor", "prompt", "He is from", "prompt", "does not contain the subject 'Porsche'"),
    ("counterfact-neighbor", "ground_truth", KeyError, "ground_truth", "is missing"),
    ("counterfact-neighbor", "locality.neighborhood.prompt", ["a"], "locality.neighborhood", "1 prompts and 2 answers"),
    (
        "counterfact-neighbor",
        "neighborhood_samples",
        [{"subject": "A", "prompt": "x"}],
        "neighborhood_samples",
        "0 places",
    ),
    (
        "zsre",
        "src",
        "Who?",
        "src",
        "The src 'Who?' does not contain the subject 'Élan'; write the subject as the prompt does",
    ),
    ("zsre", "answers", [], "answers", "empty or missing; give at least one answer"),
    ("zsre", "answers", ["", "b"], "answers", "is empty"),
    ("zsre", "rephrase", KeyError, "rephrase", "is missing"),
    ("zsre", "loc", KeyError, "loc", "is missing"),
    ("zsre", "loc_ans", "", "loc_ans", "is empty"),
    ("knowedit", "target_new", "", "target_new", "is empty"),
    ("knowedit", "prompt", "The husband is", "prompt", "does not contain the subject"),
    ("knowedit", "portability", [1], "portability", "it must be an object with a list for each kind"),
    ("knowedit", "locality.Forgetfulness", {}, "Forgetfulness", "it must be a list"),
    ("knowedit", "ground_truth", [5], "ground_truth", "An answer is of type int; answers must be text"),
    ("knowedit", "ground_truth", "Bob", "target_new", "equals the old one"),
    ("portability", "portability", KeyError, "portability.New Question", "is missing"),
    ("portability", "portability.New Answer", " ", "portability.New Answer", "is empty"),
    ("portability", "alt", "", "alt", "The alt is empty"),
    ("table", "target_new", "", "target_new", "The new object is empty"),
    ("table", "prompt", "x", "prompt", "has 0 places"),
]


@pytest.mark.parametrize(("name", "path", "value", "field", "message"), BROKEN)
def test_one_broken_record(load, name, path, value, field, message):
    loaded = load(name, [changed(GOOD[name], path, value), {**GOOD[name], "case_id": 99}], skip_bad=True)
    (problem,) = loaded.problems
    assert (problem.row, problem.field) == (1, field)
    assert message in str(problem)
    assert str(problem).startswith(f"Row 1, {field}: ")
    assert str(problem).endswith(".")
    assert "\n" not in str(problem)
    assert [request.case_id for request in loaded] == [99]


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("record", [7, None, "text", [], {}])
def test_records_of_no_known_form(load, name, record):
    assert len(load(name, [record, GOOD[name]], skip_bad=True).problems) == 1


def test_an_empty_alternative_is_told_only_where_it_is_written(load):
    records = [{**ZSRE, "alt": ""}, ZSRE]
    assert len(load("zsre", records)) == 2
    with pytest.raises(BadRecords, match="Row 1, alt: The alt is empty"):
        load("zsre", records, direction="alt")


def test_all_problems_are_told_together(load):
    records = [{**ZSRE, "answers": []}, ZSRE, 5, {**ZSRE, "src": "?"}, {**ZSRE, "loc": ""}]
    with pytest.raises(BadRecords) as caught:
        load("zsre", records)
    assert [problem.row for problem in caught.value.problems] == [1, 3, 4, 5]
    message = str(caught.value)
    assert message.startswith("4 of 5 records of zsre:records.json cannot be used: Row 1, answers: ")
    assert "Row 3" in message
    assert "Row 4" in message
    assert "Row 5" not in message
    assert "And 1 more." in message
    assert "correct them, or go on with the good ones (--skip-bad)" in message


def test_skipping_goes_on_with_the_good_ones(load):
    loaded = load("zsre", [5, ZSRE, 6, {**ZSRE, "case_id": "x"}], skip_bad=True)
    assert [request.case_id for request in loaded] == [1, "x"], "a record keeps its number when another is left out"
    assert [problem.row for problem in loaded.problems] == [1, 3]


def test_nothing_good_is_refused_also_when_skipping(load):
    with pytest.raises(BadRecords, match="1 of 1 records") as caught:
        load("zsre", [5], skip_bad=True)
    assert "--skip-bad" not in str(caught.value)


def test_a_case_id_counts_once(load):
    loaded = load("counterfact", [COUNTERFACT, {**COUNTERFACT, "case_id": 3}, COUNTERFACT], skip_bad=True)
    assert [request.case_id for request in loaded] == [12, 3]
    assert str(loaded.problems[0]).startswith("Row 3, case_id: The case_id 12 is taken by row 1; give every record")


def test_a_bad_line_does_not_hide_the_others(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ZSRE) + "\n{broken\n" + json.dumps(ZSRE) + "\n", encoding="utf-8")
    loaded = load_dataset(f"zsre:{path}", skip_bad=True)
    assert len(loaded) == 2
    assert str(loaded.problems[0]).startswith("Row 2, line: The line '{broken' is no JSON")


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("zsres", {}, UnknownName, "Unknown data set 'zsres'. Did you mean 'zsre'?"),
        ("zsre", {}, BadRequest, "zsre is not bundled; give a path: zsre:PATH."),
        ("zsre:nowhere.json", {}, BadRequest, "There is no file 'nowhere.json'; give a path from here, or from"),
        ("zsre:.", {}, BadRequest, "There is no file '.'"),
        ("zsre:x", {"direction": "up"}, UnknownName, "Unknown direction of zsre 'up'"),
        ("counterfact:x", {"direction": "alt"}, BadRequest, "has no option 'direction', it has none; leave it out"),
        ("zsre:x", {"colour": "red"}, BadRequest, "has no option 'colour', it has direction; leave it out"),
        ("pocket-facts:dev", {}, UnknownName, "Unknown part of pocket-facts 'dev'"),
    ],
)
def test_refused_names(name, options, error, message):
    with pytest.raises(error) as caught:
        load_dataset(name, **options)
    assert message in str(caught.value)


def test_relative_paths_are_also_looked_for_in_the_data_folder(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "mine.json").write_text(json.dumps([ZSRE, ZSRE]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDITSCOPE_DATA", raising=False)
    with pytest.raises(BadRequest, match="There is no file"):
        load_dataset("zsre:mine.json")
    monkeypatch.setenv("EDITSCOPE_DATA", str(folder))
    assert len(load_dataset("zsre:mine.json")) == 2
    (tmp_path / "mine.json").write_text(json.dumps([ZSRE]))
    assert len(load_dataset("zsre:mine.json")) == 1, "a file that is here comes first"
    with pytest.raises(BadRequest, match="give a path: zsre:PATH"):
        load_dataset("zsre")


@pytest.fixture
def library(monkeypatch):
    """A stand-in for the library `datasets`; answers with what a test puts into it."""
    module = types.SimpleNamespace(calls=[])
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_tables_of_the_hub_are_read_at_a_pinned_revision(library):
    def load_table(repository, **options):
        library.calls.append((repository, options))
        return iter([COUNTERFACT])

    library.load_dataset = load_table
    loaded = load_dataset("counterfact")
    assert (loaded.name, loaded[0].subject, loaded[0].source) == ("counterfact", "Zoë {x} Müller", "counterfact")
    ((repository, options),) = library.calls
    assert repository == "azhx/counterfact"
    assert len(options["revision"]) == 40
    assert set(options) == {"revision", "split"}


def test_files_of_the_hub_are_read_as_files(library, tmp_path):
    path = tmp_path / "0a1b2c"  # the cache names files by their hash
    path.write_text(json.dumps([KNOWEDIT]))
    library.DownloadManager = lambda: types.SimpleNamespace(download=lambda url: library.calls.append(url) or path)
    assert load_dataset("knowedit")[0].subject == "Ann"
    revision = FORMATS["knowedit"].hub.revision
    assert library.calls == [f"hf://datasets/zjunlp/KnowEdit@{revision}/benchmark/wiki_recent/recent_test.json"]
    assert len(revision) == 40


def test_a_hub_that_cannot_be_reached_asks_for_a_path(library):
    def fail(*_arguments, **_options):
        raise ConnectionError("no route\nto host")

    library.load_dataset = fail
    message = (
        r"counterfact could not be fetched from azhx/counterfact \(ConnectionError\); check .* counterfact:PATH\.$"
    )
    with pytest.raises(BadRequest, match=message):
        load_dataset("counterfact")


def test_without_the_library_a_path_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadRequest, match="is not installed; install it, or give a path: knowedit:PATH"):
        load_dataset("knowedit")


def test_every_row_of_the_registry_is_complete():
    for name, row in FORMATS.items():
        assert row.name == name
        assert row.label
        assert row.description.endswith(".")
        assert row.source.startswith("https://") or name == "table"


def test_bundled_parts():
    test, tune = load_dataset("pocket-facts"), load_dataset("pocket-facts:tune")
    assert (len(test), len(tune), test.name) == (800, 400, "pocket-facts:test")
    assert load_dataset("pocket-facts:test") == test
    assert not {r.case_id for r in test} & {r.case_id for r in tune}
    assert all(len(r.neighbors) == 10 and r.neighbors[0].subject for r in test)


def test_the_whole_bundled_file_is_a_part():
    """For a thousand edits at once; the parts it is made of keep their records and the order of the file."""
    every = load_dataset("pocket-facts:all")
    ids = [r.case_id for r in every]
    file = json.loads((paths.assets() / "benchmark" / "pocket-facts.json").read_text(encoding="utf-8"))
    assert (every.name, len(every)) == ("pocket-facts:all", 1200)
    assert ids == [record["case_id"] for record in file]
    assert len(set(ids)) == 1200
    for part in ("test", "tune"):
        own = load_dataset(f"pocket-facts:{part}")
        taken = {r.case_id for r in own}
        assert [replace(r, source=own.name) for r in every if r.case_id in taken] == list(own)
    thousand = sample(every, 1000, 0)
    assert len({(r.subject, r.prompt) for r in thousand}) == 1000, "no fact is edited twice"
    assert load_dataset("pocket-facts").name == "pocket-facts:test", "which stays the default"
    assert "not for quality" in FORMATS["pocket-facts"].description


def edits(count):
    return Loaded("x", tuple(EditRequest("Mary", "{} is in", "Rome", case_id=i) for i in range(count)))


def test_trials_are_disjoint_and_always_the_same():
    requests = edits(10)
    trials = [[r.case_id for r in sample(requests, 3, trial)] for trial in range(3)]
    assert trials == [[r.case_id for r in sample(list(requests), 3, trial)] for trial in range(3)]
    drawn = [number for trial in trials for number in trial]
    assert len(set(drawn)) == 9
    assert drawn != sorted(drawn), "drawn from everywhere in the file"


def test_all_records_keep_the_order_of_the_file():
    assert sample(edits(10), 10, 0) == list(edits(10))


@pytest.mark.parametrize(
    ("limit", "trial", "message"),
    [
        (300, 2, "Trial 2 was asked for, this data set has 800 records: with 300 each there are trials 0 to 1; ask"),
        (800, 1, "trials 0 to 0"),
        (300, -1, "Trial -1 was asked for"),
        (801, 0, "801 edits were asked for, this data set part has 800; ask for 1 to 800."),
        (0, 0, "0 edits were asked for"),
    ],
)
def test_refused_trials(limit, trial, message):
    with pytest.raises(BadRequest) as caught:
        sample(edits(800), limit, trial)
    assert message in str(caught.value)


def test_loaded_is_a_sequence():
    loaded = edits(5)
    assert (len(loaded), loaded[1].case_id, loaded[-1].case_id) == (5, 1, 4)
    assert [r.case_id for r in loaded[1:3]] == [1, 2]
    assert loaded[2] in loaded
