"""Where every array of a run lies in one block of memory, planned ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64
"""Arrays begin at multiples of a cache line, which is also the widest register."""


@dataclass(frozen=True, slots=True)
class LiveRange:
    """An array that needs memory for a while.

    Parameters
    ----------
    size : int
        Bytes.
    first, last : int
        The instruction that writes it, and the last one that reads it.
    """

    size: int
    first: int
    last: int


def arrange(ranges: Sequence[LiveRange]) -> tuple[list[int], int]:
    """Find places for arrays, so that none share memory while both are needed.

    The largest come first, each into the lowest gap that holds it ("greedy by size", Pisarchyk and Lee 2020,
    arXiv 2001.03288, section 5.2).

    Parameters
    ----------
    ranges : sequence of LiveRange

    Returns
    -------
    offsets : list of int
        Where each array begins.
    total : int
        Bytes of the whole block.
    """
    offsets = [0] * len(ranges)
    placed: list[tuple[int, int, LiveRange]] = []
    for index in sorted(range(len(ranges)), key=lambda i: -ranges[i].size):
        live = ranges[index]
        start = 0
        for begin, end, other in placed:
            if other.last < live.first or live.last < other.first:
                continue
            if begin - start >= live.size:
                break
            start = max(start, end)
        end = start + live.size
        end += -end % ALIGNMENT
        offsets[index] = start
        placed.append((start, end, live))
        placed.sort(key=lambda entry: entry[0])
    return offsets, max((end for _, end, _ in placed), default=0)
