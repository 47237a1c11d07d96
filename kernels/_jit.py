"""How every Numba function of this package is compiled: the one home of the flags and of the cache.

Cached
    Compiling costs about a second a kernel, loading one from the cache about ten milliseconds. Numba
    alone would miss changes in the files that a function borrows from, and never find a function again
    that closes over another one. Here the cache is stamped with the content of the whole package, and a
    closure is known by the names and numbers in it (:mod:`fgq.kernels._code_cache`).
Without the interpreter lock
    Kernels touch only arrays that they are handed, so several Python threads may run them at once, on the
    same prepared weights too (:mod:`fgq.kernels.threads`).
Exact
    No ``fastmath``: the float steps round as written, on every machine. Integers wrap modulo 2**32 in
    between, so a sum whose value fits is right whatever the order of its terms.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import llvmlite
import numba
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic as Intrinsic

from fgq.errors import KernelError
from fgq.kernels._code_cache import PackageCache, own_folder

P = ParamSpec("P")
R = TypeVar("R")


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a kernel on its first call for the dtypes and layouts that it gets.

    Parameters
    ----------
    function : callable
        Takes NumPy arrays and integers. Callers keep to one dtype and to C order, hence one compilation.
        It may close over integers and over other functions compiled here.

    Returns
    -------
    callable
        The same function, compiled; with ``NUMBA_DISABLE_JIT=1`` the function itself.

    Notes
    -----
    Numba keeps its cache in ``NUMBA_CACHE_DIR``, else beside the source, else in the user's cache
    folder. Where none of these can be written (a read-only installation under a read-only home), or
    others can write there too, a private folder among the temporary files takes their place, and failing
    that nothing is cached.
    """
    if function.__closure__:
        # variants need names of their own: code from the cache is linked by name
        variant = hashlib.sha256(describe_closure(function).encode()).hexdigest()[:16]
        function.__name__, function.__qualname__ = (
            f"{name}_{variant}" for name in (function.__name__, function.__qualname__)
        )
    compiled: Any = numba.njit(nogil=True, error_model="numpy")(function)
    if isinstance(compiled, Dispatcher):
        cached = _cache_of(function)
        if cached is not None:
            compiled._cache = cached  # type: ignore[attr-defined]
    return cast(Callable[P, R], compiled)


def describe_closure(function: Callable[..., Any]) -> str:
    """Return what a function closes over, in the same words in every process.

    Raises
    ------
    KernelError
        If it closes over something other than numbers, strings, tuples and compiled functions.
    """
    return repr([_describe(cell.cell_contents) for cell in function.__closure__ or ()])


def _describe(value: Any) -> Any:
    if value is None or isinstance(value, int | float | str):
        return value
    if isinstance(value, tuple):
        return tuple(_describe(item) for item in value)
    if isinstance(value, Dispatcher):
        return value.py_func.__module__, value.py_func.__qualname__  # which tells variants apart
    if isinstance(value, Intrinsic):
        return value.__module__, value.__qualname__  # type: ignore[attr-defined]
    raise KernelError(
        f"compiled function: found a {type(value).__name__} in its closure, wanted numbers and functions"
    )


@cache
def source_stamp() -> str:
    """Return a digest of every source file of this package and of the version of the code generator."""
    return digest_of(Path(__file__).parent)


def digest_of(folder: Path) -> str:
    """Return a digest of the Python files in a folder and below, and of the version of the code generator."""
    digest = hashlib.sha256(llvmlite.__version__.encode())
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _cache_of(function: Callable[..., Any]) -> PackageCache | None:
    stamp, closure = source_stamp(), describe_closure(function)
    try:
        return PackageCache(function, stamp, closure)
    except RuntimeError:  # no folder that it can write, or none that is this user's own
        folder = _private_temporary_folder()
    if folder is None:
        return None
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
    try:
        return PackageCache(function, stamp, closure)
    except RuntimeError:  # the disk is full, or NUMBA_CACHE_LOCATOR_CLASSES knows better
        return None


def _private_temporary_folder() -> Path | None:
    """Make or find a folder that only this user can enter: what it holds will be run as code."""
    if not hasattr(os, "getuid"):
        return None
    folder = Path(tempfile.gettempdir()) / f"fgq-numba-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    return folder if private and own_folder(str(folder)) else None
