"""GELU of real values, and the quantizer behind it.

    y = x / 2 * (1 + erf(x / sqrt 2))
    y = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x**3)))       the other form

in float32 (Hendrycks and Gimpel, Gaussian error linear units, 2016, section 2, has both). Against float64 it
is good to 3e-7 of x. A result may be rounded to bytes at once, as QuantizeLinear does it
(:mod:`fgq.kernels.operators.rounding`).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.boundary import check, check_range
from fgq.kernels.operators.real_rows import RealRows
from fgq.kernels.operators.rounding import rounder, rounding, rounding_tier
from fgq.kernels.simd.emit import Emitter, emitted, f32
from fgq.kernels.simd.functions import gelu_by_erf, gelu_by_tanh
from fgq.kernels.simd.isa import INSTRUCTION_SETS
from fgq.kernels.simd.rows import each_vector, load, store, store_activations

_WIDTH = 1 << 10
"""Elements of a row, as those of `x` make no difference."""


class Gelu(RealRows):
    """GELU of each element.

    Parameters
    ----------
    x : ndarray of float32
        What each call reads, C order.
    y : ndarray of float32 or uint8, shape of `x`
        What it writes.
    tanh : bool
        Whether to compute the form with tanh (ONNX Gelu, ``approximate="tanh"``), not that with erf.
    y_scale, y_zero, lowest, highest : float, int
        Quantizer of a uint8 result, and its range.
    threads : int
        How many threads to use.

    Raises
    ------
    KernelError
        If arrays or numbers do not fit.
    """

    def __init__(
        self,
        x: NDArray[np.float32],
        y: NDArray[np.float32] | NDArray[np.uint8],
        *,
        tanh: bool = False,
        y_scale: float = 1.0,
        y_zero: int = 0,
        lowest: int = 0,
        highest: int = 255,
        threads: int = 1,
    ) -> None:
        quantized = y.dtype == np.uint8
        check("gelu", x=(x, x.shape, np.float32), y=(y, x.shape, np.uint8 if quantized else np.float32))
        check_range(lowest, highest, y_zero)
        super().__init__(x, y, _WIDTH, threads)
        self._quantizer = np.float32(y_scale), y_zero, lowest, highest
        self._compute = _gelu(rounding_tier(y_scale), quantized, tanh)

    def _run(self, begin: int, end: int, scratch: NDArray[np.float32]) -> None:
        self._compute(self._x, self._width, begin, end, scratch, *self._quantizer, self._y)


@cache
def _gelu(tier: int, quantized: bool, tanh: bool) -> Any:
    """Return the function that does rows, the last of which may be shorter, for an instruction set."""
    wide, quantize = INSTRUCTION_SETS[tier].width > 0, rounder(tier)

    @jit
    def gelu(
        x: NDArray[np.float32],
        width: int,
        begin: int,
        end: int,
        scratch: NDArray[np.float32],
        scale: np.float32,
        zero: int,
        lowest: int,
        highest: int,
        y: Any,
    ) -> None:
        for row in range(begin, end):
            first = row * width
            count = min(width, x.size - first)
            if wide:
                _emit_gelu(tier, quantized, tanh, x, first, count, scale, zero, lowest, highest, y)
                continue
            for k in range(count):
                value = np.float64(x[first + k])
                if tanh:
                    shape = math.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3))
                else:
                    shape = math.erf(value * math.sqrt(0.5))
                scratch[k] = np.float32(0.5 * value * (1 + shape))
            if quantized:
                quantize(scratch, 0, 0, 1, count, scale, zero, lowest, highest, y, first, 0)
            else:
                y[first : first + count] = scratch[:count]

    return gelu


@emitted
def _emit_gelu(
    e: Emitter, quantized: Any, tanh: Any, x: Any, first: Any, size: Any, scale: Any, zero: Any, lowest: Any,
    highest: Any, y: Any,
) -> None:  # fmt: skip
    lanes, compute = e.lanes(f32), gelu_by_tanh if tanh else gelu_by_erf
    rounded = rounding(e, scale, zero, lowest, highest) if quantized else None

    def do(k: Any, vectors: int, count: Any) -> None:
        values = [load(e, x + (first + k + v * lanes) * 4, count, f32) for v in range(vectors)]
        made = [compute(value) for value in values]
        if rounded is not None:
            store_activations(e, y + (first + k), [rounded(value) for value in made], count)
            return
        for v, value in enumerate(made):
            store(e, y + (first + k + v * lanes) * 4, value, count)

    each_vector(e, size, lanes, do)
