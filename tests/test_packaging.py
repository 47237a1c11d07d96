"""The package as it is laid out and installed."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fgq

ROOT = Path(__file__).parents[1]
FOLDERS = {"fgq": "fgq", "kernels": "fgq.kernels", "converters": "fgq.converters", "eval": "fgq.eval"}
LONGEST = 600


def sources():
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def test_every_package_on_disk_is_listed_and_mapped():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = set()
    for folder, package in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *inner)))
    assert set(options["packages"]) == found
    assert options["package-dir"] == {package: folder for folder, package in FOLDERS.items()}


@pytest.mark.parametrize("folder", [name for name, package in FOLDERS.items() if name != package])
def test_a_folder_imported_by_its_own_name_is_refused(folder):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {folder}"
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert f"ImportError: import fgq.{folder}" in run.stderr


def test_public_names_are_importable_and_light():
    assert all(getattr(fgq, name) is not None for name in fgq.__all__)
    code = "import sys, fgq; print(sorted({'torch', 'numba', 'onnxruntime'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_can_be_read_in_one_go(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(text)), "a module says what it is"
