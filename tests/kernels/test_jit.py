import ast
import importlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import fgq.kernels

SOURCES = sorted(Path(fgq.kernels.__file__).parent.glob("*.py"))
COMPILERS = {"jit", "njit", "vectorize", "guvectorize", "cfunc", "stencil"}


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name != "_jit.py"], ids=lambda p: p.name)
def test_numba_flags_are_set_in_one_place(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("numba"):
            assert not COMPILERS & {alias.name for alias in node.names}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "numba":
            assert node.attr not in COMPILERS
        if isinstance(node, ast.keyword):
            assert node.arg not in {"fastmath", "parallel", "nogil", "boundscheck"}


@pytest.mark.parametrize("name", ["_add_by_line", "_add_by_sign"])
def test_ternary_kernels_multiply_once_per_segment(name):
    module = importlib.import_module("fgq.kernels.matmul_ternary_portable")
    tree = ast.parse(Path(module.__file__).read_text())
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert sum(isinstance(node, ast.Mult) for node in ast.walk(function)) == 1


RUN_WITHOUT_A_CACHE_FOLDER = """
import numba.core.caching as caching

write = caching._CacheLocator.ensure_cache_path

def refuse(self):
    if "UserProvided" not in type(self).__name__:
        raise PermissionError("read-only")
    write(self)

caching._CacheLocator.ensure_cache_path = refuse

import numpy as np
from fgq.kernels.epilogue import requantize

print(requantize(np.array([[7]], np.int32), np.float32(2), 1)[0, 0])
"""


def run_without_a_cache_folder(temporary):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    done = subprocess.run(
        [sys.executable, "-c", RUN_WITHOUT_A_CACHE_FOLDER],
        env=environment | {"TMPDIR": str(temporary)},
        cwd=temporary,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["15"]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="elsewhere nothing is cached then")
def test_a_read_only_home_gets_a_private_cache(tmp_path):
    run_without_a_cache_folder(tmp_path)
    (folder,) = tmp_path.glob("fgq-numba-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.rglob("*.nbi"))


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="elsewhere nothing is cached then")
def test_a_cache_that_others_can_write_is_not_used(tmp_path):
    folder = tmp_path / f"fgq-numba-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    run_without_a_cache_folder(tmp_path)
    assert not list(folder.iterdir())
