"""What README.md and docs/ say is there, is there; and the example runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
TOP = ["editing_core", "components", "scripts", "tests", "docs", "assets"]


def fences(text: str, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(text) if name == language]


def named_paths(page: Path) -> set[str]:
    """Targets of relative links, and code spans that start with a folder of this repository."""
    text = page.read_text(encoding="utf-8")
    links = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target}
    found = {os.path.relpath(page.parent / target, ROOT) for target in links if target}
    spans = re.findall(r"`([\w./-]+)`", FENCE.sub("", text))
    return found | {s for s in spans if s.split("/")[0] in TOP and "/" in s}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_paths_exist(page):
    missing = sorted(path for path in named_paths(page) if not (ROOT / path).exists())
    assert not missing, f"{page.name} names {missing}"


def test_paths_are_found_at_all():
    found = set().union(*(named_paths(page) for page in PAGES))
    assert {"docs/add_an_editor.md", "editing_core/registry.py"} <= found


def test_no_placeholder_is_left():
    for page in PAGES:
        assert not re.search(r"<!-- [A-Z ]+ -->|TODO|FIXME", page.read_text(encoding="utf-8")), page.name


def test_readme_has_a_python_example():
    assert fences((ROOT / "README.md").read_text(encoding="utf-8"), "python")


def test_readme_example_runs(tmp_path):
    """All python blocks of the README, one after the other, in a fresh interpreter and an empty folder."""
    blocks = fences((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    if not blocks:
        pytest.fail("README.md has no ```python block")
    script = "import sys\nexec(compile(sys.stdin.read(), 'README.md', 'exec'), {'__name__': '__main__'})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="\n".join(blocks),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_commands_of_the_readme_parse():
    """Every `editscope ...` line is one the command line accepts, apart from running it."""
    import shlex

    from editing_core.cli import _parser

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for body in fences(text, "") + fences(text, "bash") for line in body.splitlines()]
    commands = [line.strip() for line in lines if line.strip().startswith("editscope ")]
    assert commands
    for command in commands:
        _parser().parse_args(shlex.split(command, comments=True)[1:])
