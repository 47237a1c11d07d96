"""Products of activations that are quantized as they come: rows to bytes, and sums to real values.

    quantize   xq = clip(round_half_even(x / scale) + zero, 0, 255)
               with one scale and zero point for all rows
               (`fgq.kernels.operators.activations.dynamic_quantization`), or with those of each row, whose
               smallest and largest values are lo and hi, 0.0 included: scale = clip((hi - lo) / 255, 2**-100,
               2**120)   zero = round_half_even(-lo / scale)
    multiply   y[r, m] = float32(acc[r, m] - zero[r] * sum_k w8[m, k]) * (scale[r] * row_scale[m]) + shift[m]
                         (+ residual[r, m])

in float32. ``acc`` is what a layer with zero point 0 gives. The product with the zero point may wrap modulo
2**32, yet the difference is the sum over w8 * (xq - zero), which is an int32. Both ends of a product work row
by row, and several products may read the same rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.boundary import check
from fgq.kernels.operators.activations import QuantizeLinear, dynamic_quantization, ranger
from fgq.kernels.operators.rounding import LARGEST_SCALE, rounder
from fgq.kernels.products.driver import held
from fgq.kernels.products.epilogue import Sums
from fgq.kernels.products.layer import Layer
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.threads import spread

_LEAST_SCALE, _LARGEST_SCALE = np.float32(2.0**-100), np.float32(2.0**120)

_PIECE = 1 << 13
"""Elements that a thread takes at a time, roughly."""

NUMBERS_BYTES = 8
"""Of a row's scale and zero point."""


class Rows(NamedTuple):
    """Quantized rows in one piece of memory: the scales, the zero points, then the activations.

    Parameters
    ----------
    scales : ndarray of float32, shape (R,)
    zeros : ndarray of int32, shape (R,)
    activations : ndarray of uint8, shape (R, K)
    """

    scales: NDArray[np.float32]
    zeros: NDArray[np.int32]
    activations: NDArray[np.uint8]

    @classmethod
    def within(cls, memory: NDArray[np.uint8]) -> Rows:
        """Return the views of such a piece of memory.

        Parameters
        ----------
        memory : ndarray of uint8, shape (.., K + NUMBERS_BYTES)
            C order.
        """
        flat, count = memory.reshape(-1), memory.size // memory.shape[-1]
        scales, zeros, activations = np.split(flat, [4 * count, 8 * count])
        return cls(scales.view(np.float32), zeros.view(np.int32), activations.reshape(count, -1))


def bind_quantize(
    x: NDArray[np.float32], memory: NDArray[np.uint8], *, by_row: bool, threads: int
) -> Callable[[], None]:
    """Return the call that quantizes rows.

    Parameters
    ----------
    x : ndarray of float32, shape (.., K)
        What each call reads, C order. NaN takes no part in a range, and becomes 0.
    memory : ndarray of uint8, shape (.., K + NUMBERS_BYTES)
        What it writes, see `Rows`.
    by_row : bool
        Whether each row has a scale and zero point of its own.
    threads : int
        How many threads to use.
    """
    check(
        "quantize rows", x=(x, x.shape, np.float32),
        memory=(memory, (*x.shape[:-1], x.shape[-1] + NUMBERS_BYTES), np.uint8),
    )  # fmt: skip
    rows = Rows.within(memory)
    table = x.reshape(rows.activations.shape)
    if not by_row:

        def quantize_all() -> None:
            scale, zero = dynamic_quantization(table)
            QuantizeLinear(rows.activations, scale, zero, threads=threads)(table)
            rows.scales[:], rows.zeros[:] = scale, zero

        return quantize_all
    compute = _row_quantizer(index_of(available()[0]))
    each, units = _cut(len(table), x.shape[-1])

    def work(thread: int, begin: int, end: int) -> None:
        ends = held.borrow(2, 16 * 4).view(np.float32)
        last = min(end * each, len(table))
        compute(table, begin * each, last, ends, rows.scales, rows.zeros, rows.activations)

    return lambda: spread(units, threads, work)


def bind_multiply(
    layer: Layer,
    column_sums: NDArray[np.int32],
    row_scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    rows: Rows,
    residual: NDArray[np.float32] | None,
    out: NDArray[np.float32],
    scratch: NDArray[np.uint8],
    threads: int,
) -> Callable[[], None]:
    """Return the call that multiplies quantized rows by a layer's weights.

    Parameters
    ----------
    layer : Layer
        With zero point 0 and no bias.
    column_sums, row_scale, shift : ndarray of int32, float32, float32, each of shape (M,)
    rows : Rows
    residual : ndarray of float32, shape (R, M), or None
    out : ndarray of float32, shape (R, M)
        Written; the sums stand in it meanwhile.
    scratch : ndarray of uint8
        Of the layer's ``scratch_bytes``.
    threads : int
        How many threads to use.
    """
    count, outputs = len(rows.activations), layer.outputs
    check(
        "multiply rows", scales=(rows.scales, (count,), np.float32), zeros=(rows.zeros, (count,), np.int32),
        column_sums=(column_sums, (outputs,), np.int32), row_scale=(row_scale, (outputs,), np.float32),
        shift=(shift, (outputs,), np.float32), residual=(residual, (count, outputs), np.float32),
        out=(out, (count, outputs), np.float32),
    )  # fmt: skip
    sums = out.view(np.int32)
    add_up = layer.bind(rows.activations, sums, scratch, epilogue=Sums(), threads=threads)
    added = np.empty((0, out.shape[1]), np.float32) if residual is None else residual
    each, units = _cut(len(out), out.shape[1])

    def work(thread: int, begin: int, end: int) -> None:
        row = held.borrow(1, 4 * out.shape[1])[0].view(np.int32)
        last = min(end * each, len(out))
        _scale_sums(
            sums, begin * each, last, rows.scales, rows.zeros, column_sums, row_scale, shift, added, row, out
        )

    def multiply() -> None:
        add_up()
        spread(units, threads, work)

    return multiply


def _cut(rows: int, width: int) -> tuple[int, int]:
    """Return how many rows a thread takes at a time, and how many times that is."""
    each = max(_PIECE // width, 1)
    return each, -(-rows // each)


@cache
def _row_quantizer(tier: int) -> Any:
    """Return the function that quantizes rows from `begin` to `end`, for an instruction set."""
    find, quantize, divide = ranger(tier), rounder(tier), rounder(index_of(INSTRUCTION_SETS[-1]))

    @jit
    def rows(
        x: NDArray[np.float32],
        begin: int,
        end: int,
        ends: NDArray[np.float32],
        scales: NDArray[np.float32],
        zeros: NDArray[np.int32],
        activations: NDArray[np.uint8],
    ) -> None:
        width, flat, out = x.shape[1], x.reshape(-1), activations.reshape(-1)
        for r in range(begin, end):
            ends[:] = 0
            find(x[r], ends)
            lowest, highest = ends[0].min(), ends[1].max()
            scale = (highest - lowest) / np.float32(255)
            scale = min(max(scale, _LEAST_SCALE), _LARGEST_SCALE)
            zero = int(np.rint(min(-lowest / scale, np.float32(255))))
            place = r * width
            if scale <= LARGEST_SCALE:
                quantize(flat, place, 0, 1, width, scale, zero, 0, 255, out, place, 0)
            else:
                divide(flat, place, 0, 1, width, scale, zero, 0, 255, out, place, 0)
            scales[r], zeros[r] = scale, zero

    return rows


@jit
def _scale_sums(
    sums: NDArray[np.int32],
    begin: int,
    end: int,
    scales: NDArray[np.float32],
    zeros: NDArray[np.int32],
    column_sums: NDArray[np.int32],
    row_scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    residual: NDArray[np.float32],
    row: NDArray[np.int32],
    y: NDArray[np.float32],
) -> None:
    outputs = row_scale.size
    for r in range(begin, end):
        # a copy, as the sums lie where the results go: vectors are used for arrays that do not overlap
        for m in range(outputs):
            row[m] = sums[r, m]
        scale, zero = scales[r], zeros[r]
        for m in range(outputs):
            acc = np.int32(row[m] - zero * column_sums[m])
            y[r, m] = np.float32(acc) * (scale * row_scale[m]) + shift[m]
        if residual.size:
            for m in range(outputs):
                y[r, m] += residual[r, m]
