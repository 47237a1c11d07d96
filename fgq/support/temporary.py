"""Folders that are removed however a process ends: by itself, by a signal, or killed, by the next one."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from fgq.errors import OutputError
from fgq.support import stopping

if sys.platform != "win32":  # where what a killed process leaves stays
    import fcntl

_NAME = re.compile(r"(\..+\.)?fgq-[0-9a-f]{16}")
"""What these folders are called, and nothing else is."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder among the temporary files, which is removed at the end.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(new_folder(Path(tempfile.gettempdir())))
        except OSError as error:
            raise OutputError(
                f"temporary files: cannot be written ({error.strerror or error}), wanted a folder with "
                "space; TMPDIR may name one"
            ) from None
        yield folder


@contextmanager
def new_folder(place: Path, beside: str = "") -> Iterator[Path]:
    """Yield a new folder that only this user can enter, and remove it at the end with all that it holds.

    Like folders that killed processes have left in the same place are removed first.

    Parameters
    ----------
    place : Path
        The folder to make it in.
    beside : str
        A name of a file in `place` for which it is; then it is hidden.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    _remove_abandoned(place)
    lock = None
    while lock is None:
        folder = place / f"{f'.{beside}.' if beside else ''}fgq-{secrets.token_hex(8)}"
        with stopping.at_stop(partial(shutil.rmtree, folder, ignore_errors=True)):
            folder.mkdir(mode=0o700)
            try:
                lock = _locked(folder)
                if lock is not None:
                    yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                if lock is not None and lock >= 0:
                    os.close(lock)


def _locked(folder: Path) -> int | None:
    """Lock a new folder; return what holds the lock, -1 where there are none, None if the folder is gone."""
    if sys.platform == "win32":
        return -1
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:  # another process has taken it for an abandoned one
        return None
    with suppress(OSError):  # some file systems have no locks; there nothing is taken for abandoned either
        fcntl.flock(lock, fcntl.LOCK_EX)
    if not folder.exists():
        os.close(lock)
        return None
    return lock


def _remove_abandoned(place: Path) -> None:
    """Remove folders that were made here by processes which are gone, as their locks are with them."""
    if sys.platform == "win32":
        return
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if not (_NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)):
                continue
            with suppress(OSError):
                lock = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    if os.fstat(lock).st_uid == os.getuid():
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its maker lives
                        shutil.rmtree(entry.path, ignore_errors=True)
                finally:
                    os.close(lock)
