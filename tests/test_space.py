"""A Hugging Face Space is made from the repository as it is: header, requirements and upload command of the README."""

import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from huggingface_hub import SpaceHardware
from huggingface_hub.utils import filter_repo_objects
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from components.zerogpu import LARGEST, LONGEST, MARGIN
from editing_core.models.catalog import CATALOG

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
HEADER = yaml.safe_load(README.split("---\n")[1])
SECTION = README.partition("## Your own Space\n")[2].partition("\n## ")[0]
COMMANDS = [shlex.split(line) for line in re.findall(r"^hf .*$", SECTION, re.MULTILINE)]
# https://huggingface.co/docs/hub/spaces-zerogpu, "Supported versions", in September 2026
ZEROGPU_TORCH = ("2.8.0", "2.9.1", "2.10.0", "2.11.0", "2.12.1", "2.13.0")
ZEROGPU_PYTHON = ("3.10", "3.12")
# Beside this Python, whether or not the environment is an activated one
HF = Path(sys.executable).with_name("hf")
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def requirements():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name.lower(): requirement.specifier for requirement in found}


def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def test_the_header_is_complete_and_fits():
    assert HEADER["title"] == "EditScope"
    assert HEADER["sdk"] == "gradio"
    assert HEADER["sdk_version"] == constraints()["gradio"]
    assert Version(HEADER["sdk_version"]) in requirements()["gradio"]
    assert HEADER["python_version"] in ZEROGPU_PYTHON
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert Version(HEADER["python_version"]) in SpecifierSet(project["requires-python"])
    assert (ROOT / HEADER["app_file"]).is_file()
    assert {HEADER["colorFrom"], HEADER["colorTo"]} <= COLORS
    assert len(HEADER["short_description"]) <= 60
    assert HEADER["license"] == "apache-2.0"
    assert HEADER["suggested_hardware"] in {hardware.value for hardware in SpaceHardware}


def test_models_of_the_header_are_in_the_catalog():
    assert HEADER["models"]
    assert set(HEADER["models"]) <= {row.source for row in CATALOG.values()}


@pytest.mark.parametrize("version", ZEROGPU_TORCH)
def test_requirements_allow_every_torch_of_zerogpu(version):
    assert Version(version) in requirements()["torch"]


def test_a_space_brings_spaces_itself():
    assert "spaces" not in requirements()
    assert "2.8 to 2.13" in SECTION


def test_the_commands_have_the_options_they_use():
    assert [command[:2] for command in COMMANDS] == [["hf", "repos"], ["hf", "upload"]]
    for command in COMMANDS:
        name = command[1:3] if command[1] == "repos" else command[1:2]
        told = subprocess.run([HF, *name, "--help"], capture_output=True, text=True, check=True).stdout
        options = {word for word in command if word.startswith("--")}
        assert options
        assert [option for option in options if f"{option} " not in told and f"{option}," not in told] == []
    flavor = COMMANDS[0][COMMANDS[0].index("--flavor") + 1]
    assert flavor == HEADER["suggested_hardware"]


def test_the_upload_takes_what_the_page_needs_and_little_else():
    command = COMMANDS[1]
    patterns = [after for option, after in pairwise(command) if option == "--exclude"]
    needed = [
        "app.py",
        "README.md",
        "requirements.txt",
        "constraints.txt",
        "components/jobs.py",
        "docs/screenshot-edit.png",
    ]
    for folder in ("components", "editing_core", "assets"):
        paths = [p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*") if p.is_file()]
        needed += [path for path in paths if "__pycache__" not in path]
    assert len(needed) > 100
    assert list(filter_repo_objects(needed, ignore_patterns=patterns)) == needed
    left = ["tests/test_space.py", ".venv/lib/python3.12/site.py", "build/lib/app.py", ".mypy_cache/3.11/cache.db"]
    left += ["components/__pycache__/jobs.cpython-312.pyc", "editscope.egg-info/PKG-INFO", ".gitattributes"]
    assert list(filter_repo_objects(left, ignore_patterns=patterns)) == []


def test_the_limits_told_are_those_there_are():
    assert f"more than {LONGEST / MARGIN:.0f} seconds" in SECTION
    assert f"up to {LARGEST / 1e9:.0f} billion" in " ".join(SECTION.split())
