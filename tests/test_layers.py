"""Imports point one way: page -> engine, never back; and every folder of modules is packaged."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of everything a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def reaches(path: Path, *packages: str) -> set[str]:
    return {name for name in imported(path) if name.split(".")[0] in packages or name in packages}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", modules("editing_core"), ids=name_of)
def test_the_engine_knows_no_page(path):
    assert not reaches(path, "gradio", "components", "app", "scripts", "tests")


@pytest.mark.parametrize("path", modules("components"), ids=name_of)
def test_components_never_import_torch(path):
    assert not reaches(path, "torch", "transformers", "app", "scripts", "tests")


TOP = ("session", "preflight", "footprint", "registry", "charts", "bench", "cli")


@pytest.mark.parametrize(
    ("folder", "above"),
    [
        ("models", ("statistics", "editors", "evaluation", "runs", "data", *TOP)),
        ("statistics", ("editors", "evaluation", "runs", "data", *TOP)),
        ("evaluation", ("editors", "runs", "data", *TOP)),
        ("editors", ("evaluation", "runs", "data", *TOP)),
        ("data", ("editors", "evaluation", "runs", *TOP)),
        ("runs", (*TOP, "data")),
        ("export", TOP),
    ],
)
def test_inside_the_engine_too(folder, above):
    for path in modules(f"editing_core/{folder}"):
        assert not reaches(path, *(f"editing_core.{name}" for name in above)), name_of(path)
        tops = {".".join(name.split(".")[:2]) for name in imported(path)}
        assert not tops & {f"editing_core.{name}" for name in above}, name_of(path)


def test_the_check_finds_an_import(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def f():\n    from gradio.themes import Base\n    import torch.nn as nn\n")
    assert reaches(path, "gradio") == {"gradio.themes", "gradio.themes.Base"}
    assert reaches(path, "torch") == {"torch.nn"}


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {name_of(p.parent).replace("/", ".") for p in (ROOT / "editing_core").rglob("__init__.py")}
    assert set(listed) == folders | {"editing_core.assets"}
    assert len(listed) == len(set(listed))


def test_every_folder_of_modules_is_a_package():
    for path in modules("editing_core"):
        assert (path.parent / "__init__.py").is_file(), name_of(path.parent)
