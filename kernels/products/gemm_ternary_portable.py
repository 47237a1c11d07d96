"""Matrix product with ternary weights, without multiplying weights by activations, on any processor.

The reduction is cut into segments: the groups, or equal parts of a group longer than 127. The sum of a
segment is made by additions and subtractions; one multiplication by alpha brings it into the int32 sums.
Two tied planes, and several planes, are segments over the same activations. There are two ways to add, and
LLVM turns the innermost loop of both into vector instructions.

By line, for many rows of activations. A *line* is the 64 int16 values that one position k has in 64 rows.
Each segment has a table of lines,

    line 0 = 0        line 1 + i = x[k_i]        line 1 + n + i = -x[k_i]         i = 0..n-1

and each row of weights holds, for each segment, the list of the lines of its nonzero codes, filled up
with line 0 to a multiple of four. So a weight costs two thirds of a vector addition.

By sign, for few rows. With the codes as [K, M], each activation is added to, subtracted from or withheld
from the sums of all output channels, as their codes say.

Overflow: a segment adds at most 127 values of magnitude at most 255, and 127 * 255 < 2**15, so its int16
sum is exact (and lines number at most 1 + 2 * 127 = 255: an index is a uint8). The int32 sums wrap modulo
2**32, harmlessly, since the final value fits (:mod:`fgq.kernels.products.weights`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.products.driver import Engine, Plan
from fgq.kernels.products.weights import Weight
from fgq.kernels.simd.isa import InstructionSet, index_of

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

_OUTPUTS = 512
"""Output channels in a block: their sums stay in the second-level cache."""


def prepare(matrices: list[Weight], isa: InstructionSet) -> Engine:
    """List the nonzero codes.

    Parameters
    ----------
    matrices : list of Weight
        The conv groups' weights, [M / groups, K] each, in planes of codes -1..1.
    isa : InstructionSet
        The portable one.
    """
    listed = [_list(matrix) for matrix in matrices]
    longest = max(len(quads) for quads, *_ in listed)
    quads = np.zeros((len(listed), longest, _QUAD), np.uint8)
    for group, (own, *_) in enumerate(listed):
        quads[group, : len(own)] = own
    first, codes, alpha = (np.stack(arrays) for arrays in zip(*(rest for _, *rest in listed), strict=True))
    bounds = np.stack([_segments(matrix.group)[0] for matrix in matrices])
    reduction = int(bounds[0, -1])

    def plan(rows: int, outputs: int) -> Plan:
        step = min(outputs, _OUTPUTS)
        return Plan(
            rows_step=_LINE, outputs_step=step, pitch=reduction, direct=True,
            work_bytes=2 * _LINES * _LINE + 2 * max(_LINE, step) + 4 * _LINE * step,
        )  # fmt: skip

    return Engine(
        block=_add, tier=index_of(isa), weights=(quads, first, codes, alpha, bounds), plan=plan
    )  # fmt: skip


def _list(
    weight: Weight,
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int8], NDArray[np.int32]]:
    """Return quads uint8 [Q, 4], first [planes * S, M + 1], codes [planes, K, M] and alpha [planes * S, M].

    The lists of lines lie segment after segment, and in them row after row; `first` says where each row's
    list begins, and at its end where the segment's lists end.
    """
    bounds, group_of_segment = _segments(weight.group)
    stacked = np.stack([plane.codes for plane in weight.planes])
    counts = np.add.reduceat(stacked != 0, bounds[:-1], axis=2, dtype=np.int64)  # [planes, M, S]
    counts = counts.transpose(0, 2, 1).reshape(-1, stacked.shape[1])
    first = np.zeros((counts.shape[0], counts.shape[1] + 1), np.int64)
    np.cumsum(-(-counts // _QUAD), axis=1, out=first[:, 1:])
    first[1:] += np.cumsum(first[:-1, -1])[:, None]
    quads = np.zeros((int(first[-1, -1]), _QUAD), np.uint8)
    _list_lines(stacked, bounds, first, quads.reshape(-1))
    alpha = np.concatenate([plane.alpha[:, group_of_segment].T.astype(np.int32) for plane in weight.planes])
    return quads, first, np.ascontiguousarray(stacked.transpose(0, 2, 1)), alpha


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
    segments = bounds.size - 1
    for plane in range(codes.shape[0]):
        for s in range(segments):
            length = bounds[s + 1] - bounds[s]
            for m in range(codes.shape[1]):
                place = first[plane * segments + s, m] * _QUAD
                for i in range(length):
                    code = codes[plane, m, bounds[s] + i]
                    if code != 0:
                        lines[place] = 1 + i if code > 0 else 1 + length + i
                        place += 1


@jit
def _add(
    weights: Any,
    group: int,
    panel: NDArray[np.uint8],
    rows: int,
    first: int,
    outputs: int,
    sums: NDArray[np.int32],
    work: NDArray[np.uint8],
) -> None:
    quads, starts, codes, alpha, bounds = weights
    if rows <= _FEW:
        part = work[: 2 * outputs].view(np.int16)
        _add_by_sign(panel, rows, codes[group], bounds[group], alpha[group], first, outputs, sums, part)
    else:
        _add_by_line(
            panel, rows, quads[group], starts[group], bounds[group], alpha[group], first, outputs, sums, work
        )


@jit
def _add_by_line(
    panel: NDArray[np.uint8],
    rows: int,
    quads: NDArray[np.uint8],
    starts: NDArray[np.int64],
    bounds: NDArray[np.int64],
    alpha: NDArray[np.int32],
    first: int,
    outputs: int,
    sums: NDArray[np.int32],
    work: NDArray[np.uint8],
) -> None:
    segments = bounds.size - 1
    filled = 2 * _LINES * _LINE
    table = work[:filled].view(np.int16).reshape(_LINES, _LINE)
    part = work[filled : filled + 2 * _LINE].view(np.int16)
    filled += 2 * _LINE
    acc = work[filled : filled + 4 * outputs * _LINE].view(np.int32).reshape(outputs, _LINE)
    for m in range(outputs):
        for j in range(_LINE):
            acc[m, j] = 0
    for j in range(_LINE):
        table[0, j] = 0
    for s in range(segments):
        begin = bounds[s]
        length = bounds[s + 1] - begin
        for j in range(_LINE):
            seen = panel[min(j, rows - 1), begin : begin + length]
            for i in range(length):
                table[1 + i, j] = seen[i]
        for i in range(length):
            plus, minus = table[1 + i], table[1 + length + i]
            for j in range(_LINE):
                minus[j] = -plus[j]
        for plane in range(s, alpha.shape[0], segments):
            for m in range(outputs):
                for j in range(_LINE):
                    part[j] = 0
                for q in range(starts[plane, first + m], starts[plane, first + m + 1]):
                    a, b, c, d = (
                        table[quads[q, 0]],
                        table[quads[q, 1]],
                        table[quads[q, 2]],
                        table[quads[q, 3]],
                    )
                    for j in range(_LINE):
                        part[j] += (a[j] + b[j]) + (c[j] + d[j])
                total, scale = acc[m], alpha[plane, first + m]
                for j in range(_LINE):
                    total[j] += np.int32(part[j]) * scale
    for j in range(rows):
        for m in range(outputs):
            sums[j, m] = acc[m, j]


@jit
def _add_by_sign(
    panel: NDArray[np.uint8],
    rows: int,
    codes: NDArray[np.int8],
    bounds: NDArray[np.int64],
    alpha: NDArray[np.int32],
    first: int,
    outputs: int,
    sums: NDArray[np.int32],
    part: NDArray[np.int16],
) -> None:
    none = np.int16(0)
    segments = bounds.size - 1
    for r in range(rows):
        acc = sums[r, :outputs]
        for m in range(outputs):
            acc[m] = 0
        for line in range(alpha.shape[0]):
            plane, s = divmod(line, segments)
            begin, end = bounds[s], bounds[s + 1]
            fours = end - (end - begin) % 4
            for m in range(outputs):
                part[m] = 0
            for k in range(begin, fours, 4):
                xa, xb, xc, xd = (
                    np.int16(panel[r, k]),
                    np.int16(panel[r, k + 1]),
                    np.int16(panel[r, k + 2]),
                    np.int16(panel[r, k + 3]),
                )
                ya, yb, yc, yd = np.int16(-xa), np.int16(-xb), np.int16(-xc), np.int16(-xd)
                ca, cb, cc, cd = (
                    codes[plane, k, first : first + outputs],
                    codes[plane, k + 1, first : first + outputs],
                    codes[plane, k + 2, first : first + outputs],
                    codes[plane, k + 3, first : first + outputs],
                )
                for m in range(outputs):
                    va = xa if ca[m] > 0 else (ya if ca[m] < 0 else none)
                    vb = xb if cb[m] > 0 else (yb if cb[m] < 0 else none)
                    vc = xc if cc[m] > 0 else (yc if cc[m] < 0 else none)
                    vd = xd if cd[m] > 0 else (yd if cd[m] < 0 else none)
                    part[m] += (va + vb) + (vc + vd)
            for k in range(fours, end):
                xa = np.int16(panel[r, k])
                ya = np.int16(-xa)
                ca = codes[plane, k, first : first + outputs]
                for m in range(outputs):
                    part[m] += xa if ca[m] > 0 else (ya if ca[m] < 0 else none)
            scales = alpha[line, first : first + outputs]
            for m in range(outputs):
                acc[m] += np.int32(part[m]) * scales[m]
