"""Compiled kernels on disk: whole, of this very source and kept by this user, or as good as absent.

An entry is what Numba pickles, which is code. It is loaded only from folders that nobody but this user can
change, and only with a digest over its content, its key and the source it was made from: one that is
truncated, altered, of another function or of another version is compiled anew and replaced. Entries are
written aside and renamed, under a name that follows from their key, so that processes that write at once
leave one whole entry. Where none can be written (a full disk, a read-only folder), code is compiled each
time.
"""

from __future__ import annotations

import hashlib
import os
import pickle  # noqa: TID251 - the form that Numba gives compiled code; see above for what is loaded
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, UserProvidedCacheLocator
from numba.core.serialize import dumps

_DIGEST = hashlib.sha256().digest_size

_ABANDONED = 3600.0
"""Seconds after which a file that was being written belongs to nobody any more."""


class _OwnFolder:
    """One of Numba's ways to find a folder, for those folders that are safe to load code from."""

    def __init__(self, locator: Any) -> None:
        self._locator = locator

    def from_function(self, function: Callable[..., Any], file: str) -> Any:
        found = self._locator.from_function(function, file)
        if found is None or own_folder(found.get_cache_path()) is not None:
            return found
        if self._locator is UserProvidedCacheLocator:
            _say_that_others_write(numba.config.CACHE_DIR)  # type: ignore[attr-defined]
        return None


class _Implementation(CompileResultCacheImpl):
    _locator_classes: list[Any] = [_OwnFolder(each) for each in CompileResultCacheImpl._locator_classes]  # noqa: RUF012


class PackageCache(FunctionCache):
    """The cache of one function, out of date as soon as any file of the package changes.

    Parameters
    ----------
    function : callable
    stamp : str
        What the code was made from (`fgq.kernels._jit.source_stamp`).
    closure : str
        What the function closes over (`fgq.kernels._jit.describe_closure`).

    Raises
    ------
    RuntimeError
        If no folder can be written to that is safe to load code from.
    """

    _impl_class = _Implementation

    def __init__(self, function: Callable[..., Any], stamp: str, closure: str) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        folder = own_folder(self._cache_path)
        if folder is None:  # NUMBA_CACHE_LOCATOR_CLASSES has found it
            raise RuntimeError(f"{self._cache_path}: found a folder that others can write to")
        self._folder = folder
        self._stamp = f"{numba.__version__}\0{stamp}"
        self._closure = closure

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return compiled code, or None where there is none that is whole and up to date."""
        target_context.refresh()
        if not self._enabled:
            return None
        key = self._key(sig, target_context.codegen())
        try:
            with self._path(key).open("rb") as file:
                digest, payload = file.read(_DIGEST), file.read()
            if digest != self._digest(key, payload):
                return None
            return self._impl.rebuild(target_context, pickle.loads(payload))
        except Exception:  # whatever keeps it from being loaded: compiling it anew says what is wrong, if any
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep compiled code, where it can be kept."""
        if not self._enabled or not self._impl.check_cachable(data):
            return
        key = self._key(sig, data.codegen)
        payload = dumps(self._impl.reduce(data))
        with suppress(OSError):
            self._impl.locator.ensure_cache_path()
            _write_whole(self._path(key), self._digest(key, payload) + payload)

    def flush(self) -> None:
        """Remove what is kept of this function."""
        for path in self._folder.glob(f"{self._impl.filename_base}.*.nbc"):
            path.unlink(missing_ok=True)

    def _key(self, sig: Any, codegen: Any) -> str:
        return repr((sig, codegen.magic_tuple(), self._closure))

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        return self._folder / f"{self._impl.filename_base}.{name}.nbc"

    def _digest(self, key: str, payload: bytes) -> bytes:
        return hashlib.sha256(f"{self._stamp}\0{key}\0".encode() + payload).digest()


@cache
def own_folder(folder: str) -> Path | None:
    """Return where a folder really is, if nobody but this user, and the system, can change what it holds.

    The folder itself must be this user's. Above it, folders may be the system's too, and such as anybody
    may write to where nobody may rename what is another's (``/tmp``). Where there are no such owners
    (Windows), folders are taken as they are.
    """
    if not hasattr(os, "getuid"):
        return Path(folder)
    user = os.getuid()
    try:
        place = Path(folder).resolve(strict=True)
        found = place.stat()
        above = [each.stat() for each in place.parents]
    except (OSError, RuntimeError):
        return None
    if found.st_uid != user or _others_write(found):
        return None
    for each in above:
        if each.st_uid not in (0, user) or (_others_write(each) and not each.st_mode & stat.S_ISVTX):
            return None
    return place


def _others_write(found: os.stat_result) -> bool:
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and found.st_gid not in _own_groups()


@cache
def _say_that_others_write(folder: str) -> None:
    warnings.warn(
        f"NUMBA_CACHE_DIR: found {folder}, where others can write too, wanted a folder of this user alone; "
        "compiled kernels are kept elsewhere",
        stacklevel=2,
    )


@cache
def _own_groups() -> frozenset[int]:
    """Return the group that a user alone is in, where systems give each user one of his name."""
    import grp
    import pwd

    try:
        user = pwd.getpwuid(os.getuid())
        group = grp.getgrgid(user.pw_gid)
    except KeyError:
        return frozenset()
    alone = group.gr_name == user.pw_name and not set(group.gr_mem) - {user.pw_name}
    return frozenset([group.gr_gid] if alone else [])


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file aside and put it in its place, and remove what killed processes have left aside."""
    aside = path.with_name(f"{path.name}.{uuid4().hex[:16]}.new")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    for left in _abandoned(path):
        left.unlink(missing_ok=True)


def _abandoned(path: Path) -> Iterator[Path]:
    for left in path.parent.glob(f"{path.name}.*.new"):
        with suppress(FileNotFoundError):
            if left.lstat().st_mtime < time.time() - _ABANDONED:
                yield left
