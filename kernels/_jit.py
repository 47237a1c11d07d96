"""How every Numba function of this package is compiled: the one home of the flags.

Cached
    Compiling costs about a second a kernel, loading one from Numba's cache about ten milliseconds. The
    cache notices a change in the file of a function and in no other, so a compiled function calls only
    compiled functions of its own file, and what is shared between files is composed in Python.
Without the interpreter lock
    Kernels touch only arrays that they are handed or make themselves, so several Python threads may run
    them at once, on the same prepared weights too.
Serial
    Of Numba's threading layers only ``workqueue`` is always there, and it ends the process when two
    threads enter it together. A kernel therefore uses the thread that calls it and no other.
Exact
    No ``fastmath``: the float steps round as written, on every machine. Integers wrap modulo 2**32 in
    between, so a sum whose value fits is right whatever the order of its terms.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a kernel on its first call for the dtypes and layouts that it gets.

    Parameters
    ----------
    function : callable
        Takes NumPy arrays and integers. Callers keep to one dtype and to C order, hence one compilation.

    Returns
    -------
    callable
        The same function, compiled; with ``NUMBA_DISABLE_JIT=1`` the function itself.

    Notes
    -----
    Numba keeps its cache in ``NUMBA_CACHE_DIR``, else beside the source, else in the user's cache
    folder. Where none of these can be written (a read-only installation under a read-only home), a
    private folder among the temporary files takes their place, and failing that nothing is cached.
    """
    try:
        return _compile(function, cache=True)
    except RuntimeError:  # Numba found no folder that it can write
        folder = _private_temporary_folder()
    if folder is None:
        return _compile(function, cache=False)
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
    return _compile(function, cache=True)


def _compile(function: Callable[P, R], *, cache: bool) -> Callable[P, R]:
    return cast(Callable[P, R], numba.njit(cache=cache, nogil=True, error_model="numpy")(function))


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
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if private else None
