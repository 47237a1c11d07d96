"""Files of arrays (.npz), which may be damaged or hostile: no pickle, sizes checked before data are read.

Headers and data are read in one way, so that what is checked is what is read.
"""

from __future__ import annotations

import math
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import DataError


@dataclass(frozen=True, slots=True)
class Header:
    """Shape and type of an array that need not be in memory."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"

    @property
    def nbytes(self) -> int:
        """The size of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


_READERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # which differs in the names of fields alone
}

_MOST_ARRAYS = 10_000
"""Members of a file that are looked at; each takes time whatever its size."""

_PIECE = 1 << 18
"""Bytes that are read at a time."""


def read_headers(path: Path) -> dict[str, Header]:
    """Read the shapes and types of a file's arrays without their data.

    Parameters
    ----------
    path : Path
        A file as written by ``numpy.savez``.

    Returns
    -------
    dict of str to Header
        By key.

    Raises
    ------
    DataError
        If the file is damaged, two arrays have one name, an array is not as long as its header says or would
        not fit into this machine's memory, or holds anything but numbers and text.
    """
    headers = {}
    with _opened(path) as archive:
        for name, member in _members(path, archive).items():
            with archive.open(member) as file:
                headers[name], _ = _read_header(path, name, member, file)
    return headers


def read_array(path: Path, name: str, header: Header | None = None) -> NDArray[Any]:
    """Read one array, with the checks of `read_headers`.

    Parameters
    ----------
    path : Path
        A file as written by ``numpy.savez``.
    name : str
        The array's key.
    header : Header, optional
        What the array was found to be earlier: another one is refused.

    Returns
    -------
    ndarray
        In the order of axes in which the file has it.

    Raises
    ------
    DataError
        As `read_headers` does, or if the data cannot be read or the file has changed meanwhile.
    """
    with _opened(path) as archive:
        member = _members(path, archive).get(name)
        if member is None:
            raise DataError(f"{path}: found no array {name!r} any more, wanted the file as it was checked")
        with archive.open(member) as file:
            found, in_columns = _read_header(path, name, member, file)
            if header not in (None, found):
                raise DataError(
                    f"{path}: found {name}: {found}, wanted the {header} that it was when it was checked"
                )
            content = np.empty(found.nbytes, np.uint8)
            place = 0
            # Piece by piece: what a size promises costs memory only as far as there are data.
            while place < len(content) and (part := file.read(min(_PIECE, len(content) - place))):
                content[place : place + len(part)] = np.frombuffer(part, np.uint8)
                place += len(part)
            if place < len(content) or file.read(1):  # which looks at the checksum
                raise ValueError(f"array {name!r} is cut short")
            array: NDArray[Any] = content.view(found.dtype)
            return array.reshape(found.shape, order="F" if in_columns else "C")


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as ``numpy.savez_compressed`` does, under names that need not be valid keywords.

    Parameters
    ----------
    path : Path
    arrays : mapping of str to ndarray
        Numbers, no Python objects.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive, and turn whatever its bytes make the readers raise into one line."""
    try:
        if not path.is_file():
            raise DataError(
                f"{path}: found no file but a folder, device or pipe, or nothing; wanted a .npz file"
            )
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DataError:
        raise
    except MemoryError:
        raise DataError(f"{path}: found arrays that do not fit into memory, wanted smaller files") from None
    except Exception as error:  # of zipfile, its decompressors and numpy, for hostile bytes
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"{path}: found no readable .npz file ({reason}), wanted one by numpy.savez"
        ) from None


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the one member of each name: of two, readers would differ on which one it is."""
    members: dict[str, zipfile.ZipInfo] = {}
    if len(archive.infolist()) > _MOST_ARRAYS:
        raise DataError(
            f"{path}: found {len(archive.infolist())} arrays, wanted at most {_MOST_ARRAYS} in a file"
        )
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name in members:
            raise DataError(f"{path}: found two arrays named {name!r}, wanted one")
        members[name] = member
    return members


def _read_header(path: Path, name: str, member: zipfile.ZipInfo, file: IO[bytes]) -> tuple[Header, bool]:
    """Read an array's header, and whether its axes are in Fortran's order; check it against the member."""
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"array {name!r} has the unknown version {version[0]}.{version[1]}")
    shape, in_columns, dtype = _READERS[version](file)
    if dtype.hasobject:
        raise DataError(f"{path}: found Python objects in {name!r}, wanted an array of numbers")
    if dtype.kind not in "biufcSU" or dtype.itemsize == 0:
        raise DataError(f"{path}: found {dtype} values in {name!r}, wanted an array of numbers")
    header = Header(shape, dtype)
    if any(length < 0 for length in shape):
        raise ValueError(f"array {name!r} has a negative length")
    if file.tell() + header.nbytes != member.file_size:
        raise ValueError(f"array {name!r} is cut short")
    if header.nbytes > _memory():
        raise DataError(
            f"{path}: found {name}: {header}, {header.nbytes} bytes, wanted arrays that fit into memory"
        )
    return header, in_columns


@cache
def _memory() -> int:
    """Return the bytes of memory that this machine has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not told
        return sys.maxsize
