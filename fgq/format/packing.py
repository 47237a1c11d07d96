"""Several codes a byte: how codes lie on disk.

With codes of magnitude L at most, a digit is a code plus L, in base ``b = 2 L + 1``, and a byte holds as many
digits as fit, the first one lowest::

    byte = sum over j of b**j * (code[j] + L)          j = 0 .. n - 1,  b**n <= 256

=====  ====  ==========  ================
L      base  codes/byte  bits per code
=====  ====  ==========  ================
1      3     5           1.6 (log2(3) = 1.585)
4      9     2           4
7      15    2           4
=====  ====  ==========  ================

Codes are taken in C order; the last byte is filled up with code 0. Bytes from ``b**n`` on mean nothing and
are refused.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError


def per_byte(max_code: int) -> int:
    """Return how many codes of magnitude `max_code` at most one byte holds."""
    base, count = 2 * max_code + 1, 1
    while base ** (count + 1) <= 256:
        count += 1
    return count


def used_bytes(max_code: int) -> int:
    """Return the number of bytes that mean something: 0 up to this one, not with it."""
    return int((2 * max_code + 1) ** per_byte(max_code))


@functools.cache
def table(max_code: int) -> NDArray[np.int8]:
    """Return the codes of every byte, int8 [256, codes a byte], first code first.

    Bytes that mean nothing have rows too. The array is shared: it cannot be written to.
    """
    base = 2 * max_code + 1
    digits = np.arange(256)[:, None] // base ** np.arange(per_byte(max_code)) % base
    codes = (digits - max_code).astype(np.int8)
    codes.flags.writeable = False
    return codes


def pack_codes(codes: NDArray[np.int8], max_code: int) -> NDArray[np.uint8]:
    """Pack codes, as many to a byte as fit.

    Parameters
    ----------
    codes : ndarray of int8
        Any shape, values in ``-max_code .. max_code``.
    max_code : int
        1, 4 or 7.

    Returns
    -------
    ndarray of uint8, shape (P,)
        ``P = ceil(codes.size / per_byte(max_code))`` bytes.

    Raises
    ------
    KernelError
        If a code is larger.
    """
    if codes.size and not (-max_code <= codes.min() and codes.max() <= max_code):
        raise KernelError(f"codes: found {codes.min()}..{codes.max()}, wanted {-max_code}..{max_code}")
    flat, count = codes.reshape(-1), per_byte(max_code)
    packed = np.full(-(-flat.size // count), used_bytes(max_code) // 2, np.uint8)  # the byte of codes 0 alone
    for place in range(count):
        # a code of -1 wraps to 255 in uint8, and b**place * 255 takes b**place off, modulo 256
        codes_here = flat[place::count].astype(np.uint8)
        codes_here *= np.uint8((2 * max_code + 1) ** place)
        packed[: codes_here.size] += codes_here
    return packed


def unpack_codes(packed: NDArray[np.uint8], shape: tuple[int, ...], max_code: int) -> NDArray[np.int8]:
    """Unpack what :func:`pack_codes` packed.

    Parameters
    ----------
    packed : ndarray of uint8, shape (P,)
        The bytes.
    shape : tuple of int
        Shape of the codes.
    max_code : int
        1, 4 or 7.

    Returns
    -------
    ndarray of int8
        Codes in ``-max_code .. max_code``, of the given shape, in memory of their own.

    Raises
    ------
    KernelError
        If the number of bytes does not fit the shape, or a byte means nothing: the place is named.
    """
    count, used = math.prod(shape), used_bytes(max_code)
    wanted = -(-count // per_byte(max_code))
    if packed.dtype != np.uint8 or packed.shape != (wanted,):
        raise KernelError(
            f"packed codes: found {packed.dtype}{list(packed.shape)} for {count} codes, "
            f"wanted uint8[{wanted}]"
        )
    if packed.size and packed.max() >= used:
        place = int(np.argmax(packed >= used))
        raise KernelError(
            f"packed codes: found byte {packed[place]} at index {place}, wanted 0..{used - 1}; "
            "the packed codes are damaged"
        )
    return np.take(table(max_code), packed, axis=0).reshape(-1)[:count].reshape(shape)
