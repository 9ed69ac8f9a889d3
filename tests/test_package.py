"""What an installed package holds: everything that a run imports or reads."""

from __future__ import annotations

import tomllib
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).parents[1]


def test_every_folder_of_code_is_in_the_package() -> None:
    roots = ("flows", "tasks", "denoise_core", "style_core", "data")
    folders = {path.parent.relative_to(ROOT) for root in roots for path in (ROOT / root).rglob("*.py")}
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    found = {Path(name.replace(".", "/")) for name in find_packages(ROOT, include=include)}
    assert found == folders


def test_every_other_file_of_the_package_is_in_it() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    roots = ("flows", "tasks", "denoise_core", "style_core", "data")
    others = [
        path
        for root in roots
        for path in (ROOT / root).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    ]
    assert others
    assert [path for path in others if not any(path.match(pattern) for pattern in patterns)] == []
