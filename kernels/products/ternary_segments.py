"""Ternary planes cut into segments: short runs along the reduction that share one scale.

A multiplication-free kernel adds up the activations of one segment in 16 bits and multiplies the sum by the
segment's scale. Groups longer than a segment are cut into several with the same scale; shorter ones leave
the end of their segment empty (code 0), so that all segments of a layer are equally long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgq.kernels.products.weights import Weight


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """The weights ``sum over s of scale[m, s] * codes[m, s, :]``, with segment s beginning at ``starts[s]``.

    Parameters
    ----------
    codes : ndarray of int8, shape (M, S, length)
        -1, 0 or 1; 0 behind the end of a group.
    scale : ndarray of uint8, shape (M, S)
        One a segment.
    starts : ndarray of int64, shape (S,)
        Where a segment begins along K. Its end may lie beyond K.
    """

    codes: NDArray[np.int8]
    scale: NDArray[np.uint8]
    starts: NDArray[np.int64]


def group_lengths(weight: Weight) -> NDArray[np.int64]:
    """Return how many positions along K each group has."""
    return np.diff(weight.starts, append=weight.group.size)


def cheapest(weight: Weight, choices: Sequence[int], cost: Callable[[int], float]) -> int:
    """Return the segment length with which a weight's groups cost least.

    Parameters
    ----------
    weight : Weight
        A matrix [M, K].
    choices : sequence of int
        Segment lengths to choose from.
    cost : callable
        What one segment of a length costs.
    """
    lengths = group_lengths(weight)
    return min(choices, key=lambda length: int((-(-lengths // length)).sum()) * cost(length))


def cut(weight: Weight, length: int) -> Segments:
    """Cut a matrix [M, K] of ternary planes into segments; each plane has its own, at the same places."""
    outputs, reduction = weight.shape
    lengths = group_lengths(weight)
    counts = -(-lengths // length)
    of_group = np.repeat(np.arange(lengths.size), counts)
    within = np.arange(of_group.size) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = weight.starts[of_group] + length * within
    # the place of each position of K: its segment, and how far behind the segment's start it lies
    segment = np.searchsorted(starts, np.arange(reduction), side="right") - 1
    offset = np.arange(reduction) - starts[segment]

    planes = len(weight.planes)
    trits = np.zeros((outputs, planes, starts.size, length), np.int8)
    for index, plane in enumerate(weight.planes):
        trits[:, index, segment, offset] = plane.codes
    scale = np.stack([plane.alpha[:, of_group] for plane in weight.planes], axis=1)
    return Segments(trits.reshape(outputs, -1, length), scale.reshape(outputs, -1), np.tile(starts, planes))
