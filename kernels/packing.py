"""Five trits a byte: how ternary codes lie on disk.

A trit is a code plus one, 0..2, and a byte holds five of them, the first one lowest::

    byte = sum over j of 3**j * (code[j] + 1)          j = 0..4,  0 <= byte <= 242 = 3**5 - 1

which is 1.6 bits a weight where log2(3) = 1.585 is the least possible. Codes are taken in C order; the
last byte is filled up with code 0. Bytes 243..255 mean nothing and are refused.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels.weights import check_ternary

PER_BYTE = 5
"""Trits in one byte."""

USED_BYTES = 3**PER_BYTE
"""Bytes below this one, 243, mean something."""

TABLE: NDArray[np.int8] = (
    np.arange(256)[:, None] // 3 ** np.arange(PER_BYTE) % 3 - 1  # bytes that mean nothing have rows too
).astype(np.int8)
"""The codes of every byte, int8 [256, 5], first code first."""


def pack_trits(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack ternary codes, five to a byte.

    Parameters
    ----------
    codes : ndarray of int8
        Any shape, values in {-1, 0, 1}.

    Returns
    -------
    ndarray of uint8, shape (P,)
        ``P = ceil(codes.size / 5)`` bytes.

    Raises
    ------
    KernelError
        If a code is none of -1, 0, 1.
    """
    check_ternary(codes)
    flat = codes.reshape(-1)
    packed = np.full(-(-flat.size // PER_BYTE), USED_BYTES // 2, np.uint8)  # 121 is five codes 0
    for place in range(PER_BYTE):
        # a code of -1 wraps to 255 in uint8, and 3**place * 255 takes 3**place off, modulo 256
        codes_here = flat[place::PER_BYTE].astype(np.uint8)
        codes_here *= np.uint8(3**place)
        packed[: codes_here.size] += codes_here
    return packed


def unpack_trits(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.int8]:
    """Unpack what :func:`pack_trits` packed.

    Parameters
    ----------
    packed : ndarray of uint8, shape (P,)
        The bytes.
    shape : tuple of int
        Shape of the codes.

    Returns
    -------
    ndarray of int8
        Codes in {-1, 0, 1}, of the given shape, in memory of their own.

    Raises
    ------
    KernelError
        If the number of bytes does not fit the shape, or a byte is one of 243..255: the place is named.
    """
    count = math.prod(shape)
    wanted = -(-count // PER_BYTE)
    if packed.dtype != np.uint8 or packed.shape != (wanted,):
        raise KernelError(
            f"trits: found {packed.dtype}{list(packed.shape)} for {count} codes, wanted uint8[{wanted}]"
        )
    if packed.size and packed.max() >= USED_BYTES:
        place = int(np.argmax(packed >= USED_BYTES))
        raise KernelError(
            f"trits: found byte {packed[place]} at index {place}, wanted 0..{USED_BYTES - 1}; "
            "the packed codes are damaged"
        )
    return np.take(TABLE, packed, axis=0).reshape(-1)[:count].reshape(shape)
