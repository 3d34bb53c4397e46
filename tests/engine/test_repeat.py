"""A saved run can be run again with the same result."""

import json

import pandas as pd
import pytest

from editing_core.cli import run
from editing_core.data.examples import example
from editing_core.editors.stopping import StopSettings
from editing_core.errors import BadRequest
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.session import planned, run_edit


def test_a_saved_run_repeats(pocket):
    settings = editor_row("memit").preset("pocket-gpt2").settings
    first = run_edit(pocket, example("takes").requests, EditPlan("memit", settings, StopSettings(iterations=2), 7))
    requests, plan = planned(json.loads(json.dumps(first.to_json())))
    assert requests == first.requests
    assert plan == first.plan
    again = run_edit(pocket, requests, plan)
    pd.testing.assert_frame_equal(again.iterations, first.iterations)
    assert again.contexts == first.contexts


@pytest.mark.parametrize("record", [{}, {"editor": "memit", "settings": 3}])
def test_what_is_no_run_is_refused(record):
    with pytest.raises(BadRequest, match="no run saved by EditScope"):
        planned(record)


def test_the_command_line_refuses_what_is_no_run(tmp_path, capsys):
    path = tmp_path / "list.json"
    path.write_text("[1]")
    assert run(["edit", "--repeat", str(path)]) == 2
    assert "holds no saved run" in capsys.readouterr().err
