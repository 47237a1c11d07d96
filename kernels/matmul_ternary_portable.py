"""Matrix product with ternary weights, without multiplying weights by activations, on any processor.

The reduction is cut into segments: the groups, or equal parts of a group longer than 127. The sum of a
segment is made by additions and subtractions; one multiplication by alpha brings it into the int32 sums.
There are two ways to add, and LLVM turns the innermost loop of both into vector instructions.

By line, for many rows of activations. A *line* is the 64 int16 values that one position k has in 64 rows.
Each segment has a table of lines,

    line 0 = 0        line 1 + i = x[k_i]        line 1 + n + i = -x[k_i]         i = 0..n-1

and each row of weights holds, for each segment, the list of the lines of its nonzero codes, filled up
with line 0 to a multiple of four. So a weight costs two thirds of a vector addition.

By sign, for few rows. With the codes as [K, M], each activation is added to, subtracted from or withheld
from the sums of all output channels, as their codes say.

Overflow: a segment adds at most 127 values of magnitude at most 255, and 127 * 255 < 2**15, so its int16
sum is exact (and lines number at most 1 + 2 * 127 = 255: an index is a uint8). The int32 sums wrap modulo
2**32, harmlessly, since the final value fits (:mod:`fgq.kernels.weights`). The zero point enters once,
through the bias:

    sum_k w8[k] * (x[k] - x_zero) + bias  =  sum_k w8[k] * x[k]  +  (bias - x_zero * sum_k w8[k])
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.weights import int8_weights

_LINE = 64
"""Activation rows taken together."""

_FEW = 24
"""Rows up to which adding by sign is faster than a whole line of 64."""

_SEGMENT = 127
"""Longest segment: its sums fit an int16 and its lines a uint8."""

_LINES = 1 + 2 * _SEGMENT
"""Lines in the largest table."""

_QUAD = 4
"""Lists are added four lines at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class TernaryMatrix:
    """Prepared weights [M, K] in S segments.

    Parameters
    ----------
    quads : ndarray of uint8, shape (Q, 4)
        The lists of lines, those of one segment after another, row after row.
    first : ndarray of int64, shape (S, M + 1)
        Where each row's list begins in `quads`; the last one is where the segment's lists end.
    codes : ndarray of int8, shape (K, M)
        The same weights for adding by sign.
    bounds : ndarray of int64, shape (S + 1,)
        Where each segment begins along K.
    alpha : ndarray of int32, shape (S, M)
        Scales of the segments.
    bias : ndarray of int32, shape (M,)
        What the sums start from, the zero point's share included (modulo 2**32).
    """

    quads: NDArray[np.uint8]
    first: NDArray[np.int64]
    codes: NDArray[np.int8]
    bounds: NDArray[np.int64]
    alpha: NDArray[np.int32]
    bias: NDArray[np.int32]

    @property
    def channels(self) -> int:
        """K."""
        return int(self.bounds[-1])


def prepare_matmul(
    codes: NDArray[np.int8],
    alpha: NDArray[np.uint8],
    group: NDArray[np.int32],
    bias: NDArray[np.int32],
    x_zero: int,
) -> TernaryMatrix:
    """List the nonzero codes; arguments as in :func:`fgq.kernels.weights.check_matmul_weights`."""
    bounds, group_of_segment = _segments(group)
    codes = np.require(codes, requirements=["C", "W"])
    counts = np.add.reduceat(codes != 0, bounds[:-1], axis=1, dtype=np.int64).T  # [S, M]
    first = np.zeros((len(bounds) - 1, codes.shape[0] + 1), np.int64)
    np.cumsum(-(-counts // _QUAD), axis=1, out=first[:, 1:])
    first[1:] += np.cumsum(first[:-1, -1])[:, None]
    quads = np.zeros((int(first[-1, -1]), _QUAD), np.uint8)
    _list_lines(codes, bounds, first, quads.reshape(-1))
    row_sums = int8_weights(codes, alpha, group).sum(axis=1, dtype=np.int64)
    return TernaryMatrix(
        quads=quads,
        first=first,
        codes=np.array(codes.T, order="C"),
        bounds=bounds,
        alpha=np.ascontiguousarray(alpha[:, group_of_segment].T.astype(np.int32)),
        bias=(bias - x_zero * row_sums).astype(np.int32),
    )


def run_matmul(prepared: TernaryMatrix, x: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Multiply activations uint8 [rows, K], C order, into sums int32 [rows, M]."""
    acc = np.empty((x.shape[0], prepared.bias.size), np.int32)
    accumulate(prepared, x, acc, 0, 0)
    return acc


def accumulate(
    matrix: TernaryMatrix, x: NDArray[np.uint8], out: NDArray[np.int32], row: int, column: int
) -> None:
    """Write the sums for activations uint8 [rows, K] into `out` from that row and column on."""
    rest = x.shape[0] % _LINE
    lined = x.shape[0] - (rest if rest <= _FEW else 0)
    scales = matrix.bounds, matrix.alpha, matrix.bias
    if lined:
        _add_by_line(x[:lined], matrix.quads, matrix.first, *scales, out, row, column)
    if lined < x.shape[0]:
        _add_by_sign(x[lined:], matrix.codes, *scales, out, row + lined, column)


def _segments(group: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where segments begin along K, with K at the end, and the group of each."""
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    lengths = np.diff(starts, append=group.size)
    parts = -(-lengths // _SEGMENT)
    group_of_segment = np.repeat(np.arange(starts.size), parts)
    part = np.arange(group_of_segment.size) - np.repeat(np.cumsum(parts) - parts, parts)
    begins = starts[group_of_segment] + part * lengths[group_of_segment] // parts[group_of_segment]
    return np.append(begins, group.size), group_of_segment


@jit
def _list_lines(
    codes: NDArray[np.int8], bounds: NDArray[np.int64], first: NDArray[np.int64], lines: NDArray[np.uint8]
) -> None:
    for s in range(bounds.size - 1):
        length = bounds[s + 1] - bounds[s]
        for m in range(codes.shape[0]):
            place = first[s, m] * _QUAD
            for i in range(length):
                code = codes[m, bounds[s] + i]
                if code != 0:
                    lines[place] = 1 + i if code > 0 else 1 + length + i
                    place += 1


@jit
def _add_by_line(
    x: NDArray[np.uint8],
    quads: NDArray[np.uint8],
    first: NDArray[np.int64],
    bounds: NDArray[np.int64],
    alpha: NDArray[np.int32],
    bias: NDArray[np.int32],
    out: NDArray[np.int32],
    row: int,
    column: int,
) -> None:
    table = np.zeros((_LINES, _LINE), np.int16)
    part = np.empty(_LINE, np.int16)
    acc = np.empty((bias.size, _LINE), np.int32)
    for start in range(0, x.shape[0], _LINE):
        rows = min(_LINE, x.shape[0] - start)
        for m in range(bias.size):
            for j in range(_LINE):
                acc[m, j] = bias[m]
        for s in range(bounds.size - 1):
            begin = bounds[s]
            length = bounds[s + 1] - begin
            for j in range(rows):
                seen = x[start + j, begin : begin + length]
                for i in range(length):
                    table[1 + i, j] = seen[i]
            for i in range(length):
                plus, minus = table[1 + i], table[1 + length + i]
                for j in range(_LINE):
                    minus[j] = -plus[j]
            for m in range(bias.size):
                for j in range(_LINE):
                    part[j] = 0
                for q in range(first[s, m], first[s, m + 1]):
                    a, b, c, d = (
                        table[quads[q, 0]],
                        table[quads[q, 1]],
                        table[quads[q, 2]],
                        table[quads[q, 3]],
                    )
                    for j in range(_LINE):
                        part[j] += (a[j] + b[j]) + (c[j] + d[j])
                sums, scale = acc[m], alpha[s, m]
                for j in range(_LINE):
                    sums[j] += np.int32(part[j]) * scale
        for j in range(rows):
            for m in range(bias.size):
                out[row + start + j, column + m] = acc[m, j]


@jit
def _add_by_sign(
    x: NDArray[np.uint8],
    codes: NDArray[np.int8],
    bounds: NDArray[np.int64],
    alpha: NDArray[np.int32],
    bias: NDArray[np.int32],
    out: NDArray[np.int32],
    row: int,
    column: int,
) -> None:
    none = np.int16(0)
    part = np.empty(bias.size, np.int16)
    for r in range(x.shape[0]):
        acc = out[row + r, column : column + bias.size]
        for m in range(bias.size):
            acc[m] = bias[m]
        for s in range(bounds.size - 1):
            begin, end = bounds[s], bounds[s + 1]
            fours = end - (end - begin) % 4
            for m in range(bias.size):
                part[m] = 0
            for k in range(begin, fours, 4):
                xa, xb, xc, xd = (
                    np.int16(x[r, k]),
                    np.int16(x[r, k + 1]),
                    np.int16(x[r, k + 2]),
                    np.int16(x[r, k + 3]),
                )
                ya, yb, yc, yd = np.int16(-xa), np.int16(-xb), np.int16(-xc), np.int16(-xd)
                ca, cb, cc, cd = codes[k], codes[k + 1], codes[k + 2], codes[k + 3]
                for m in range(bias.size):
                    va = xa if ca[m] > 0 else (ya if ca[m] < 0 else none)
                    vb = xb if cb[m] > 0 else (yb if cb[m] < 0 else none)
                    vc = xc if cc[m] > 0 else (yc if cc[m] < 0 else none)
                    vd = xd if cd[m] > 0 else (yd if cd[m] < 0 else none)
                    part[m] += (va + vb) + (vc + vd)
            for k in range(fours, end):
                xa = np.int16(x[r, k])
                ya = np.int16(-xa)
                ca = codes[k]
                for m in range(bias.size):
                    part[m] += xa if ca[m] > 0 else (ya if ca[m] < 0 else none)
            scales = alpha[s]
            for m in range(bias.size):
                acc[m] += np.int32(part[m]) * scales[m]
