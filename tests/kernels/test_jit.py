import ast
import importlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numba
import pytest

import fgq.kernels
from fgq.errors import KernelError
from fgq.kernels import _jit
from fgq.kernels._jit import digest_of, jit

SOURCES = sorted(Path(fgq.kernels.__file__).parent.rglob("*.py"))
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
def test_portable_ternary_kernels_multiply_once_per_segment(name):
    module = importlib.import_module("fgq.kernels.products.gemm_ternary_portable")
    tree = ast.parse(Path(module.__file__).read_text())
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    by_scale = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and "part" in ast.unparse(node)
    ]
    in_loops = [node for loop in function.body if isinstance(loop, ast.For) for node in ast.walk(loop)]
    assert len(by_scale) == 1
    assert [node for node in in_loops if isinstance(node, ast.Mult)] == [by_scale[0].op]


VARIANTS = """
from fgq.kernels._jit import jit

def make_inner(number):
    @jit
    def inner(x):
        return x + number
    return inner

def make_outer(inner, factor):
    @jit
    def outer(x):
        return inner(x) * factor
    return outer
"""

RUN_VARIANTS = """
import sys
from numba.core import event
from variants import make_inner, make_outer

with event.install_recorder("numba:compile") as recorder:
    for number in map(int, sys.argv[1:]):
        print(make_outer(make_inner(number), 2)(10))
print(sum(1 for _, found in recorder.buffer if found.is_start))
"""


def test_variants_are_compiled_once_and_never_taken_for_each_other(tmp_path):
    (tmp_path / "variants.py").write_text(VARIANTS)

    def run(*numbers):
        done = subprocess.run(
            [sys.executable, "-c", RUN_VARIANTS, *map(str, numbers)],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return [int(line) for line in done.stdout.split()]

    # each pair is first compiled in a process of its own, where it gets the same running number
    assert run(1) == [22, 2]
    assert run(2) == [24, 2]
    assert run(2, 1, 3) == [24, 22, 26, 2]
    assert run(3, 2, 1) == [26, 24, 22, 0]


def test_any_change_in_the_package_makes_the_cache_stale(tmp_path):
    shutil.copytree(Path(fgq.kernels.__file__).parent, tmp_path / "kernels")
    before = digest_of(tmp_path / "kernels")
    assert before == digest_of(Path(fgq.kernels.__file__).parent)
    for path in (tmp_path / "kernels" / "simd" / "emit.py", tmp_path / "kernels" / "window.py"):
        path.write_text(path.read_text() + "#")
        after = digest_of(tmp_path / "kernels")
        assert after != before
        before = after


def test_a_stale_cache_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def compile_and_count():
        def function(x):
            return x + 1

        compiled = jit(function)
        compiled(1)
        return sum(compiled.stats.cache_misses.values())

    assert [compile_and_count(), compile_and_count()] == [1, 0]
    monkeypatch.setattr(_jit, "source_stamp", lambda: "another")
    assert [compile_and_count(), compile_and_count()] == [1, 0]


def test_what_has_no_name_in_another_process_cannot_be_closed_over():
    something = object()
    with pytest.raises(KernelError, match="found a object in its closure"):
        jit(lambda: something)


RUN_WITHOUT_A_CACHE_FOLDER = """
import numba.core.caching as caching

write = caching._CacheLocator.ensure_cache_path

def refuse(self):
    if "UserProvided" not in type(self).__name__:
        raise PermissionError("read-only")
    write(self)

caching._CacheLocator.ensure_cache_path = refuse

import numpy as np
from fgq.kernels import Weight, ternary_matmul

ones = Weight.single(np.ones((1, 3), np.int8), np.array([[5]], np.uint8), np.zeros(3, np.int32))
print(ternary_matmul(np.ones((1, 3), np.uint8), ones, tier="portable", kernel="dot")[0, 0])
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
    assert list(folder.rglob("*.nbc"))


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="elsewhere nothing is cached then")
def test_a_cache_that_others_can_write_is_not_used(tmp_path):
    folder = tmp_path / f"fgq-numba-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    run_without_a_cache_folder(tmp_path)
    assert not list(folder.iterdir())
