"""Ternary codes in bytes, in the order in which lookups in a register want them.

A lookup finds a byte by the low bits of another one, in all bytes of a register at once: vpermb among 64 by
six bits, vpshufb among 16 by four. So three trits make a code of 27 values, or two a code of 9, first trit
most significant::

    three trits a code (vpermb)        bits  7   6  5   4 .. 0           two trits a code (vpshufb)
                           byte 2 i         third  (0-2)  first code     bits   7 .. 4         3 .. 0
                           byte 2 i + 1   spare third (3-4) second              second code    first code

Bits above a code do not disturb: a table of vpermb holds its 32 entries twice, and vpshufb has a mask. In a
segment of 64 weights, 63 make 21 codes in 14 bytes. The last one is "+" in the spare bit of the first third
code and "-" in that of the second: the upper halves of these two tables count its activation too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

_BITS = {1: 2, 2: 4, 3: 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A code of neighbouring weights within a segment.

    Parameters
    ----------
    position : int
        Of its first weight.
    trits : int
        How many weights.
    byte, shift : int
        Where its bits begin.
    split : bool
        Whether it is a third code, of which two bits lie in the next byte.
    spare : int
        What the upper half of its table counts the segment's last weight: 1, -1, or 0.
    """

    position: int
    trits: int
    byte: int
    shift: int = 0
    split: bool = False
    spare: int = 0

    def weights(self, entry: int) -> list[int]:
        """Return what an entry of the table counts each activation."""
        code = entry % (1 << _BITS[self.trits])
        if code >= 3**self.trits:
            return [0] * self.trits
        return [code // 3 ** (self.trits - 1 - trit) % 3 - 1 for trit in range(self.trits)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How the codes of a segment lie in bytes.

    Parameters
    ----------
    length : int
        Positions in a segment.
    size : int
        Bytes of an output channel's codes.
    fields : tuple of Field
        Its codes.
    """

    length: int
    size: int
    fields: tuple[Field, ...]


TRIPLE_LENGTHS = (4, 9, 18, 33, 64)
"""Segments of three trits a code that fill 1, 2, 4, 8 and 14 bytes."""

PAIR_LENGTHS = (4, 8, 16, 32, 64)
"""Segments of two trits a code that fill 1, 2, 4, 8 and 16 bytes."""


@cache
def format_of(length: int, triples: bool) -> Format:
    """Return how segments of a length are stored, with three or two trits a code."""
    if not triples:
        pairs = [Field(position=2 * i, trits=2, byte=i // 2, shift=i % 2 * 4) for i in range(length // 2)]
        return Format(length=length, size=length // 4, fields=tuple(pairs))
    count = length // 3
    if length == 4:
        return Format(
            length=4, size=1,
            fields=(Field(position=0, trits=3, byte=0), Field(position=3, trits=1, byte=0, shift=5)),
        )  # fmt: skip
    signs = {2: 1, 5: -1} if length % 3 else {}
    fields = [
        Field(
            position=3 * i, trits=3, byte=i // 3 * 2 + i % 3 % 2, shift=5 * (i % 3 == 2),
            split=i % 3 == 2, spare=signs.get(i, 0),
        )
        for i in range(count)
    ]  # fmt: skip
    return Format(length=length, size=count // 3 * 2 + count % 3, fields=tuple(fields))


def pack_segments(trits: NDArray[np.int8], form: Format) -> NDArray[np.uint8]:
    """Return the bytes of segments.

    Parameters
    ----------
    trits : ndarray of int8, shape (.., length)
        -1, 0 or 1.
    form : Format
        Where they go.

    Returns
    -------
    ndarray of uint8, shape (.., size)
        The codes.
    """
    packed = np.zeros((*trits.shape[:-1], form.size), np.uint8)
    for field in form.fields:
        code = np.zeros(trits.shape[:-1], np.uint8)
        for position in range(field.position, field.position + field.trits):
            code = 3 * code + (trits[..., position] + 1).astype(np.uint8)
        packed[..., field.byte] |= code << np.uint8(field.shift)
        if field.split:
            spare = (trits[..., -1] == field.spare) & bool(field.spare)
            packed[..., field.byte + 1] |= (code >> 3 << 5) | spare.astype(np.uint8) << np.uint8(7)
    return packed
