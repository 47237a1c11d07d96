"""Matrix product with 8-bit weights on any processor.

Each activation multiplies a row of weights, which lie as int8 [K, M], and is added to the sums of all M
output channels; four activations share one pass over the sums. LLVM turns the loop over channels into
vector instructions. Overflow: the int32 sums wrap modulo 2**32, harmlessly, since the final value fits
(:mod:`fgq.kernels.weights`). The zero point enters once, through the bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.weights import int8_weights


@dataclass(frozen=True, slots=True, eq=False)
class Int8Matrix:
    """Prepared weights.

    Parameters
    ----------
    weights : ndarray of int8, shape (K, M)
        ``w8``, output channels last.
    bias : ndarray of int32, shape (M,)
        What the sums start from, the zero point's share included (modulo 2**32).
    """

    weights: NDArray[np.int8]
    bias: NDArray[np.int32]

    @property
    def channels(self) -> int:
        """K."""
        return int(self.weights.shape[0])


def prepare_matmul(
    codes: NDArray[np.int8],
    alpha: NDArray[np.uint8],
    group: NDArray[np.int32],
    bias: NDArray[np.int32],
    x_zero: int,
) -> Int8Matrix:
    """Unpack the weights; arguments as in :func:`fgq.kernels.weights.check_matmul_weights`."""
    rows = int8_weights(codes, alpha, group)
    row_sums = rows.sum(axis=1, dtype=np.int64)
    return Int8Matrix(np.ascontiguousarray(rows.T), (bias - x_zero * row_sums).astype(np.int32))


def run_matmul(prepared: Int8Matrix, x: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Multiply activations uint8 [rows, K], C order, into sums int32 [rows, M]."""
    acc = np.empty((x.shape[0], prepared.bias.size), np.int32)
    accumulate(prepared, x, acc, 0, 0)
    return acc


def accumulate(
    matrix: Int8Matrix, x: NDArray[np.uint8], out: NDArray[np.int32], row: int, column: int
) -> None:
    """Write the sums for activations uint8 [rows, K] into `out` from that row and column on."""
    _multiply(x, matrix.weights, matrix.bias, out, row, column)


@jit
def _multiply(
    x: NDArray[np.uint8],
    weights: NDArray[np.int8],
    bias: NDArray[np.int32],
    out: NDArray[np.int32],
    row: int,
    column: int,
) -> None:
    reduction = x.shape[1]
    for r in range(x.shape[0]):
        acc = out[row + r, column : column + bias.size]
        for m in range(bias.size):
            acc[m] = bias[m]
        for k in range(0, reduction - 3, 4):
            xa, xb, xc, xd = (
                np.int32(x[r, k]),
                np.int32(x[r, k + 1]),
                np.int32(x[r, k + 2]),
                np.int32(x[r, k + 3]),
            )
            wa, wb, wc, wd = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
            for m in range(bias.size):
                acc[m] += (xa * wa[m] + xb * wb[m]) + (xc * wc[m] + xd * wd[m])
        for k in range(reduction - reduction % 4, reduction):
            xa, wa = np.int32(x[r, k]), weights[k]
            for m in range(bias.size):
                acc[m] += xa * wa[m]
