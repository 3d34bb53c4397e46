"""The wheel holds all that the command line needs, and runs from an empty folder."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("editscope-*.whl")
    return path


def test_holds_engine_and_assets_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "editing_core/assets/models/pocket-gpt2/model.safetensors" in names
    assert "editing_core/assets/examples.json" in names
    assert "editing_core/cli.py" in names
    assert not [n for n in names if n.startswith(("tests/", "components/", "scripts/"))]
    assert not [n for n in names if "__pycache__" in n]


def test_edits_from_an_empty_folder(wheel, tmp_path):
    """A clean environment; the libraries are lent by this one, EditScope itself is not."""
    place = tmp_path / "venv"
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    (site,) = (place / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall"]
    done = subprocess.run([*install, "--prefix", str(place), str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"EDITSCOPE_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [str(place / "bin" / "editscope"), "edit", "--example", "1", "--json", "-"]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["model"] == "pocket-gpt2"
    assert record["iterations"][-1]["k"] >= 1
    assert list(empty.iterdir()) == []
    where = [str(python), "-c", "import editing_core; print(editing_core.__file__)"]
    assert (
        str(place)
        in subprocess.run(where, cwd=empty, env=environment, capture_output=True, text=True, check=True).stdout
    )
