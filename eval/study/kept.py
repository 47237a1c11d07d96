"""What a study keeps in its folder, so that it continues where it stopped.

Names carry a digest of all that a file depends on. Other options, another model or other data have other
names, and nothing stale is ever found.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from fgq.errors import DataError
from fgq.format import onnx_file
from fgq.support.schema import LARGEST_JSON, read_text

T = TypeVar("T")

_DIGITS = 12
"""Of a digest, in a file's name."""


def digest(**dependencies: Any) -> str:
    """Return a short name for everything that a result depends on, the version of fgq included.

    Parameters
    ----------
    **dependencies
        Values that JSON can hold; others count by their text.
    """
    text = json.dumps(dependencies | {"fgq": version("fgq")}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def model_digest(path: Path) -> str:
    """Return the SHA-256 of a model's files, external data included.

    Parameters
    ----------
    path : Path

    Raises
    ------
    ModelError
        If the model cannot be read.
    """
    total = hashlib.sha256()
    for file in sorted(onnx_file.files_of(path, onnx_file.load(path))):
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


def data_identity(data: str) -> list[tuple[str, int, int]]:
    """Say which data these are: of files name, size and time of change; of a known data set its name.

    Parameters
    ----------
    data : str
        As for `fgq.eval.datasets.open_dataset`.

    Returns
    -------
    list of (str, int, int)
        Path, bytes, and nanoseconds.
    """
    path = Path(data)
    if not path.exists():
        return [(data, 0, 0)]
    files = sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]
    stats: list[tuple[str, os.stat_result]] = [(str(file.resolve()), file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def kept(path: Path, make: Callable[[], T], read: Callable[[dict[str, Any]], T]) -> T:
    """Return what a file holds; where there is none, make it and keep it.

    Parameters
    ----------
    path : Path
    make : callable
        Returns a dataclass of plain values.
    read : callable
        Returns it from what `dataclasses.asdict` gave.

    Raises
    ------
    DataError
        If the file holds something else.
    OutputError
        If it cannot be written.
    """
    if path.exists():
        return read_kept(path, read)
    made = make()
    keep(path, made)
    return made


def keep(path: Path, value: Any) -> None:
    """Write a dataclass of plain values, whole or not at all.

    Parameters
    ----------
    path : Path
    value : dataclass

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with onnx_file.staged(path) as staged:
        staged.write_text(json.dumps(asdict(value), indent=1) + "\n", encoding="utf-8")


def read_kept(path: Path, read: Callable[[dict[str, Any]], T]) -> T:
    """Return what `keep` wrote.

    Parameters
    ----------
    path : Path
    read : callable
        As for `kept`.

    Raises
    ------
    DataError
        If the file cannot be read or holds something else.
    """
    try:
        return read(json.loads(read_text(path, DataError, LARGEST_JSON)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: found {type(error).__name__}: {error}, wanted what a study keeps: remove the file"
        ) from None
