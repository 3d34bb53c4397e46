"""What importing the engine costs: nothing is loaded that an edit does not need."""

import json
import subprocess
import sys

import pytest

# Each takes from half a second to several; what needs them imports them when it is called.
HEAVY = ("plotly", "gradio", "peft", "sentence_transformers", "datasets", "sklearn", "nltk", "matplotlib", "playwright")


@pytest.mark.parametrize("module", ["editing_core", "editing_core.cli", "editing_core.bench.runner"])
def test_heavy_libraries_wait_until_they_are_needed(module):
    code = f"import sys, json, {module}; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    allowed = ["plotly"] if module == "editing_core.cli" else []  # it draws the pages it exports
    assert json.loads(done.stdout.splitlines()[-1]) == allowed
