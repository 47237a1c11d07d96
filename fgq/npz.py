"""Files of arrays (.npz), which may be damaged or hostile: no pickle, sizes checked before data are read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        If the file is damaged, an array is not as long as its header says, or holds Python objects.
    """
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    read = np.lib.format.read_array_header_2_0
                    if version == (1, 0):
                        read = np.lib.format.read_array_header_1_0
                    shape, _, dtype = read(file)
                    end = file.tell() + math.prod(shape) * dtype.itemsize
                if dtype.hasobject:
                    raise DataError(f"{path}: found Python objects in {name!r}, wanted an array of numbers")
                if end != member.file_size:
                    raise ValueError(f"array {name!r} is cut short")
                headers[name] = Header(shape, dtype)
    except DataError:
        raise
    except Exception as error:  # whatever zipfile, its decompressors and numpy raise for hostile bytes
        raise _unreadable(path, error) from None
    return headers


def read_array(path: Path, name: str) -> NDArray[Any]:
    """Read one array.

    Parameters
    ----------
    path : Path
        A file whose headers `read_headers` has accepted.
    name : str
        The array's key.

    Returns
    -------
    ndarray

    Raises
    ------
    DataError
        If the data cannot be read or do not fit into memory.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            array: NDArray[Any] = archive[name]
            return array
    except Exception as error:  # as above
        raise _unreadable(path, error) from None


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


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return DataError(f"{path}: found no readable .npz file ({reason}), wanted one by numpy.savez")
