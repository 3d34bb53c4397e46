"""Our own table: what is read from CSV, JSONL and JSON, and that what is written is read back equal."""

import json

import pytest

from editing_core import paths
from editing_core.data.datasets import load_dataset
from editing_core.data.files import MAX_BYTES, MAX_RECORDS, read_records
from editing_core.data.table import edit_of, neighbor_of, read_edits, write_requests
from editing_core.errors import BadRequest
from editing_core.types import EditRequest, Probe

GOOD = {"subject": "Mary", "prompt": "{} lives in", "target_new": "Rome"}


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_csv_with_every_form_of_cell(tmp_path):
    header = "subject,prompt,target_new,target_true,paraphrases,neighbors,edit_neighbors,case_id,compare\n"
    row = 'Zoë {x},"{} lives, we say, in",New York,,Zoë {x} is in | "Home" of Zoë {x}:,'
    row += "Peter :: {} lives in=Paris | a=b=c,Ann :: {} is in=Rome,7,false\n"
    (request,) = read_edits(write(tmp_path, "a.csv", "\ufeff" + header + row))
    assert request == EditRequest(
        subject="Zoë {x}",
        prompt="{} lives, we say, in",
        target_new="New York",
        paraphrases=("Zoë {x} is in", '"Home" of Zoë {x}:'),
        neighbors=(Probe("Peter lives in", "Paris", "Peter"), Probe("a=b", "c")),
        edit_neighbors=(Probe("Ann is in", "Rome", "Ann"),),
        case_id=7,
        source="a.csv",
        compare=False,
    )


def test_csv_cells_may_hold_line_breaks(tmp_path):
    path = write(tmp_path, "a.csv", 'subject,prompt,target_new,paraphrases\nMary,{} lives in,Rome,"One.\nMary is in"\n')
    assert read_edits(path)[0].paraphrases == ("One.\nMary is in",)


def test_jsonl_and_json_give_the_same(tmp_path):
    rows = [GOOD, {**GOOD, "subject": "Žofie\u2028x", "paraphrases": ["a\nb"], "target_true": None}]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    jsonl, plain = write(tmp_path, "a.jsonl", lines + "\n"), write(tmp_path, "a.json", rows)
    first, second = read_edits(jsonl), read_edits(plain)
    assert [r.subject for r in first] == [r.subject for r in second] == ["Mary", "Žofie\u2028x"]
    assert [r.case_id for r in first] == [0, 1]
    assert first[1].paraphrases == ("a\nb",)


@pytest.mark.parametrize(
    ("value", "probe"),
    [
        ("Peter lives in=Paris", Probe("Peter lives in", "Paris")),
        ("1 + 1 = 2, 1 + 2 = 3", Probe("1 + 1 = 2, 1 + 2", "3")),
        ("Peter :: Old {} lives in=Paris", Probe("Old Peter lives in", "Paris", "Peter")),
        ("{x} :: {} is=y", Probe("{x} is", "y", "{x}")),
        ({"prompt": "p {}", "answer": "a"}, Probe("p {}", "a")),
        (
            {"prompt": "p", "answer": "a", "subject": "s", "aliases": ["b", "c"], "family": "f"},
            Probe("p", "a", "s", ("b", "c"), "f"),
        ),
    ],
)
def test_forms_of_a_probe(value, probe):
    assert neighbor_of(value) == probe


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no answer", "The neighbor 'no answer' has no answer; write it as"),
        ({"prompt": "p"}, "has no answer"),
        ({"prompt": "p", "answer": None}, "has no answer"),
        (5, "The neighbor '5' has no answer"),
        ("Peter :: lives in=Paris", "has 0 places {} for 'Peter'; exactly one is needed"),
        (" :: {} lives in=Paris", "The subject of a neighbor is empty"),
        ({"prompt": "{} is", "answer": "a", "subject": "Peter"}, "lacks its subject; write the prompt in full"),
        ({"prompt": "p", "answer": "a", "colour": 1}, "A neighbor has unknown colour; allowed are aliases, answer"),
        ({"prompt": "p", "answer": "a", "aliases": "b"}, "The aliases of a neighbor are of type str; write them in []"),
        ({"prompt": "p", "answer": "a", "subject": 3}, "The subject of a neighbor is of type int; it must be text"),
        ({"prompt": "p", "answer": 3}, "The answer of a probe must be text, got int"),
    ],
)
def test_refused_probes(value, message):
    with pytest.raises(BadRequest) as caught:
        neighbor_of(value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (7, "An edit must be a JSON object, got int; see the README for an example."),
        ({"subject": "A", "prompt": "{} is"}, "An edit has missing target_new; allowed are"),
        ({**GOOD, "colour": 1}, "An edit has unknown colour; allowed are"),
        ({**GOOD, "target_new": 5}, "The new object must be text, got int; put it in quotes."),
        ({**GOOD, "target_new": None}, "An edit has missing target_new"),
        ({**GOOD, "paraphrases": "text"}, "The paraphrases of an edit must be a list, got str; write them in []."),
        ({**GOOD, "generation_prompts": [3]}, "The generation_prompts is of type int; it must be text."),
        ({**GOOD, "locality": {"a": []}}, "The locality of an edit must be a list, got dict"),
        ({**GOOD, "portability": ["x"]}, "The neighbor 'x' has no answer"),
        ({**GOOD, "case_id": [1]}, "The case_id must be a number or text"),
        ({**GOOD, "relation_id": 3}, "The relation_id is of type int; it must be text."),
        ({**GOOD, "compare": "no"}, "The compare is of type str; it must be true or false."),
        ({**GOOD, "prompt": "She lives in"}, "has 0 places {}"),
        ({"requested_rewrite": {"subject": "A"}}, "Record 3 of x does not follow CounterFact's schema"),
    ],
)
def test_refused_records(record, message):
    with pytest.raises(BadRequest) as caught:
        edit_of(record, 3, "x")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_row_is_named(tmp_path):
    with pytest.raises(BadRequest, match=r"^Row 2: The new object is empty"):
        read_edits(write(tmp_path, "a.json", [GOOD, {**GOOD, "target_new": " "}]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{not json", "a.json is not a readable JSON file; give a JSON list of edits."),
        ("a.json", "[" * 100_000, "a.json is not a readable JSON file"),
        ("a.json", "{}", "a.json holds no list of edits; give a JSON list of edits with at least one."),
        ("a.jsonl", "\n", "a.jsonl holds no list of edits"),
        ("a.csv", "", "a.csv holds no list of edits"),
        ("a.csv", "subject,prompt\n", "a.csv holds no list of edits"),
        ("a.csv", "subject,subject\na,b\n", "a.csv is not a readable CSV file"),
        ("a.csv", 'subject,prompt\na,"b\n', "a.csv is not a readable CSV file"),
        ("a.csv", "subject,prompt,target_new\nMary,{} lives, in,Rome\n", "Row 1: The row has 4 cells under 3 columns"),
        ("a.csv", "subject,prompt,target_new\nMary,{} lives in,\n", "Row 1: An edit has missing target_new"),
        (
            "a.jsonl",
            '{"subject": \n',
            "Row 1: The line '{\"subject\":' is no JSON; write one JSON object on each line.",
        ),
    ],
)
def test_unusable_files(tmp_path, name, content, message):
    with pytest.raises(BadRequest) as caught:
        read_edits(write(tmp_path, name, content))
    assert message in str(caught.value)


def test_bounds(tmp_path):
    rows = write(tmp_path, "a.json", [1] * MAX_RECORDS)
    assert len(read_records(rows)) == MAX_RECORDS
    with pytest.raises(BadRequest, match="holds 30,001 records, at most 30,000 are allowed; split it"):
        read_records(write(tmp_path, "a.json", [1] * (MAX_RECORDS + 1)))
    with (tmp_path / "b.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(BadRequest, match=r"b\.json is larger than 64 MB; split it"):
        read_records(tmp_path / "b.json")


def test_what_is_written_is_read_back_equal(tmp_path, requests_):
    probe = Probe('A "quoted" {place} | of\nMary', "Rome = Roma", "Mary", ("Roma", "the city"), "Forgetfulness")
    full = EditRequest(
        subject="Zoë {x}",
        prompt="Of {curly} {} we say",
        target_new="New York City",
        target_true="Rio de Janeiro",
        paraphrases=("References\n\nZoë {x} is in",),
        neighbors=(probe, Probe("p :: {} q", "a=b")),
        case_id="007",
        relation_id="P19",
        target_new_id="Q60",
        edit_neighbors=(probe,),
        portability=(probe,),
        locality=(probe, probe),
        generation_prompts=("Zoë was",),
        source="zsre:a.json",
        compare=False,
    )
    bare = EditRequest("Mary", "{} lives in", "Rome")  # second in the file, and still number 0
    path = tmp_path / "edits.json"
    write_requests([full, bare, *requests_], path)
    assert read_edits(path) == [full, bare, *requests_]
    assert list(load_dataset(f"table:{path}")) == [full, bare, *requests_]


def test_writing_where_one_may_not_is_refused(tmp_path):
    with pytest.raises(BadRequest, match=r"edits\.json could not be written"):
        write_requests([], tmp_path / "nowhere" / "edits.json")


def test_templates_load_and_agree():
    tables = [load_dataset(f"table:{paths.assets() / 'templates' / f'edits.{kind}'}") for kind in ("csv", "json")]
    assert [len(table) for table in tables] == [3, 3]
    for from_csv, from_json in zip(*tables, strict=True):
        assert from_csv.full_prompt == from_json.full_prompt
        assert from_csv.paraphrases == from_json.paraphrases
        assert from_csv.neighbors == from_json.neighbors
        assert [p.prompt for p in from_csv.locality] == [p.prompt for p in from_json.locality]
        assert all(from_csv.subject in text for text in from_csv.paraphrases)


def test_a_misspelled_column_is_told_even_where_its_cells_are_empty(tmp_path):
    path = tmp_path / "edits.csv"
    path.write_text("subject,prompt,target_new,neighbours\nMary,{} lives in,Rome,\n")
    with pytest.raises(BadRequest, match="An edit has unknown neighbours"):
        read_edits(path)
