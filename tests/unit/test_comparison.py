"""Editors side by side: stored rows as values, the survey's tables as a frame, and both in one order of lines."""

import json
from dataclasses import asdict, replace
from math import sqrt

import pandas as pd
import pytest

from editing_core.evaluation.comparison import (
    GROUPS,
    MODIFY,
    PRESERVE,
    SHARES,
    SOURCES,
    UNEDITED,
    Comparison,
    Kind,
    Row,
    beside,
    kinds_of,
    lines,
    measured,
    published,
    read,
)
from editing_core.registry import EDITORS

REPLACED, REVERSED = "subject replaced", "reversed relation"


def row(editor, group=MODIFY, model="small", **more):
    kinds = more.pop("kinds", {REPLACED: Kind(50.0, None, 4), REVERSED: Kind(10.0, None, 12)})
    return Row(editor, editor.upper(), model, group, 16, 90.0, 80.0, 70.0, kinds, **more)


BEFORE = replace(
    row(UNEDITED, "", kinds={REPLACED: Kind(0.0, None, 4), REVERSED: Kind(2.0, None, 12)}),
    controls={REPLACED: Kind(60.0, None, 4), REVERSED: Kind(6.0, None, 12)},
)
BY_HAND = Comparison((BEFORE, row("memit", seconds=2.0), row("grace", PRESERVE), row("kn")))


def test_the_survey_as_printed():
    table = published().set_index(["dataset", "model", "editor"])
    assert len(table) == 36
    rome = table.loc[("COUNTERFACT", "GPT-J", "ROME")]
    assert rome[[*SHARES]].tolist() == [99.80, 86.63, 100.00, 46.49]
    assert rome["seconds"] == pytest.approx(14.72)  # of one edit; the table has ten
    assert rome["ours"] == "rome"
    assert table.loc[("ZsRE", "T5-XL", "SERAC"), "generality"] == 99.66
    assert table.loc[("ZsRE", "T5-XL", "SERAC"), "ours"] == ""


def test_what_is_not_printed_or_suspect_stays_open():
    table = published().set_index(["dataset", "model", "editor"])
    assert table.loc[("ZsRE", "T5-XL", "MEMIT"), [*SHARES]].isna().all()
    assert pd.isna(table.loc[("ZsRE", "GPT-J", "MEND"), "reliability"])
    assert pd.isna(table.loc[("COUNTERFACT", "T5-XL", "CaliNET"), "portability"])
    assert table.xs("T5-XL", level="model")["seconds"].isna().all()
    assert table.xs("GPT-J", level="model")["seconds"].notna().all()


def test_groups_and_names_of_the_survey():
    table = beside(*SOURCES[0]).set_index("editor")
    assert [*table.index[table["group"] == PRESERVE]] == ["SERAC", "CaliNET", "T-Patcher"]
    assert [*table.index[table["ours"] == ""]] == ["SERAC", "KE", "MEND"]
    assert set(table["ours"]) - {""} <= set(EDITORS)
    assert all(len(beside(*source)) == 9 for source in SOURCES)


def test_only_kinds_that_the_model_can_answer_count():
    assert BY_HAND.answerable("small") == (REPLACED,)
    assert BY_HAND.portability(BY_HAND.rows[1]) == 50.0
    assert BY_HAND.overall(BY_HAND.rows[1]) == pytest.approx((4 * 50 + 12 * 10) / 16)
    assert BY_HAND.values(BY_HAND.rows[1]) == {
        "reliability": 90.0,
        "generality": 80.0,
        "locality": 70.0,
        "portability": 50.0,
        "seconds": 2.0,
    }


def test_portability_is_open_where_nothing_can_be_answered_or_was_asked():
    guessing = replace(BEFORE, kinds=BEFORE.controls)  # as good about new objects as about true ones
    assert Comparison((guessing, row("memit"))).portability(row("memit")) is None
    assert Comparison((row("memit"),)).portability(row("memit")) is None
    assert BY_HAND.portability(row("memit", kinds={})) is None
    assert BY_HAND.overall(row("memit", kinds={})) is None


def test_questions_count_when_the_whole_answer_is_right():
    rows = [("a", REPLACED, 1.0), ("b", REPLACED, 0.5), ("c", REPLACED, 0.0), ("c", REVERSED, 1.0)]
    table = pd.DataFrame([{"case_id": c, "kind": "portability", "family": f, "hit_true": h} for c, f, h in rows])
    other = pd.DataFrame([{"case_id": "a", "kind": "edit", "family": "", "hit_true": 0.0}])
    found = kinds_of(pd.concat([other, table], ignore_index=True))
    assert [*found] == [REPLACED, REVERSED]
    assert found[REPLACED].value == pytest.approx(100 / 3)
    assert found[REPLACED].error == pytest.approx(100 * sqrt(1 / 3) / sqrt(3))
    assert found[REPLACED].questions == 3
    assert found[REVERSED] == Kind(100.0, None, 1)


def test_lines_begin_unedited_and_go_group_by_group():
    found = lines(BY_HAND, "ZsRE", "GPT-J")
    assert found[0].row is BEFORE
    assert found[0].printed == {}
    assert [line.group for line in found[1:]] == sorted([line.group for line in found[1:]], key=GROUPS.index)
    named = {line.label: line for line in found}
    assert named["MEMIT"].printed["reliability"] == 99.23
    assert named["GRACE"].printed == {}
    assert named["SERAC"].row is None
    assert named["FT"].row is None  # here fine-tuning was not measured
    assert "KN" in named
    assert sum(line.row is None for line in found) == 9 - 2


def test_a_second_model_has_rows_of_its_own_and_no_printed_ones():
    both = Comparison((*BY_HAND.rows, row("memit", model="reader")))
    found = [line for line in lines(both, "ZsRE", "GPT-J") if line.row and line.row.editor == "memit"]
    assert [line.label for line in found] == ["MEMIT", "MEMIT, reader"]
    assert found[1].printed == {}


def test_a_stored_comparison_comes_back(tmp_path):
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps({"16": {"a": asdict(BEFORE), "b": asdict(BY_HAND.rows[1])}}), encoding="utf-8")
    assert read(path) == {16: Comparison(BY_HAND.rows[:2])}
    assert read(tmp_path / "none.json") == {}


def test_the_bundled_comparison_has_every_editor_in_its_group():
    for comparison in measured().values():
        own = [r for r in comparison.rows if r.model == comparison.rows[0].model]
        assert [r.editor for r in own] == [UNEDITED, *EDITORS]
        assert all((r.group == PRESERVE) == EDITORS[r.editor].beside for r in own[1:])
        assert len({r.records for r in comparison.rows}) == 1
