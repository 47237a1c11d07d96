"""Layer normalization over the last axis of real values.

    y = (x - mean) / sqrt(variance + epsilon) * weight + bias

in float32. Against float64 it is good to 1e-6 for results of usual size.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.boundary import check, ready
from fgq.kernels.operators.real_rows import RealRows
from fgq.kernels.simd.emit import Emitter, emitted, f32
from fgq.kernels.simd.functions import reduced, total_of
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.simd.rows import each_vector, load, store


class LayerNorm(RealRows):
    """Layer normalization over the last axis.

    Parameters
    ----------
    x : ndarray of float32
        What each call reads, C order.
    y : ndarray of float32, shape of `x`
        What it writes.
    weight, bias : ndarray of float32, shape (width,)
        Of the last axis.
    epsilon : float
        Added to the variance.
    threads : int
        How many threads to use.

    Raises
    ------
    KernelError
        If an array does not fit.
    """

    def __init__(
        self,
        x: NDArray[np.float32],
        y: NDArray[np.float32],
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        epsilon: float,
        threads: int = 1,
    ) -> None:
        weight, bias = ready(weight), ready(bias)
        check(
            "layernorm", x=(x, x.shape, np.float32), y=(y, x.shape, np.float32),
            weight=(weight, x.shape[-1:], np.float32), bias=(bias, x.shape[-1:], np.float32),
        )  # fmt: skip
        super().__init__(x, y, x.shape[-1], threads)
        self._weight, self._bias, self._epsilon = weight, bias, np.float32(epsilon)
        self._compute = _layer_norm(index_of(available()[0]))

    def _run(self, begin: int, end: int, scratch: NDArray[np.float32]) -> None:
        self._compute(
            self._x, self._weight, self._bias, self._epsilon, self._together, begin, end, scratch, self._y
        )


@cache
def _layer_norm(tier: int) -> Any:
    """Return the function that does rows, `together` of them in each step, for an instruction set."""
    wide = INSTRUCTION_SETS[tier].width > 0

    @jit
    def layer_norm(
        x: NDArray[np.float32],
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        epsilon: np.float32,
        together: int,
        begin: int,
        end: int,
        scratch: NDArray[np.float32],
        y: NDArray[np.float32],
    ) -> None:
        width = weight.size
        size = np.float32(width)
        if wide:
            for row in range(begin, end, together):
                rows = min(together, end - row)
                _emit_layer_norm(tier, x, weight, bias, epsilon, size, width, row, rows, scratch, y)
            return
        for row in range(begin, end):
            first = row * width
            mean, variance = 0.0, 0.0
            for k in range(width):
                mean += x[first + k]
            mean = mean / width
            for k in range(width):
                variance += (x[first + k] - mean) * (x[first + k] - mean)
            inverse = 1 / math.sqrt(variance / width + epsilon)
            for k in range(width):
                y[first + k] = np.float32((x[first + k] - mean) * inverse * weight[k] + bias[k])

    return layer_norm


@emitted
def _emit_layer_norm(
    e: Emitter, x: Any, weight: Any, bias: Any, epsilon: Any, size: Any, width: Any, row: Any, rows: Any,
    scratch: Any, y: Any,
) -> None:  # fmt: skip
    lanes, here = e.lanes(f32), row * width * 4
    means, inverses, values = scratch, scratch + rows * 4, x + here

    for r in e.range(0, rows):
        sums, line = [e.variable(e.zeros(f32)) for _ in range(4)], values + r * width * 4

        def add(k: Any, vectors: int, count: Any) -> None:
            for v in range(vectors):
                sums[v] += load(e, line + (k + v * lanes) * 4, count, f32)  # noqa: B023

        each_vector(e, width, lanes, add)
        e.store(means + r * 4, reduced(sums, total_of) / size)
    for r in e.range(0, rows):
        squares, line = [e.variable(e.zeros(f32)) for _ in range(4)], values + r * width * 4
        mean = e.load_spread(means + r * 4, f32)

        def square(k: Any, vectors: int, count: Any) -> None:
            for v in range(vectors):
                centred = load(e, line + (k + v * lanes) * 4, count, f32) - mean  # noqa: B023
                if count is not None:
                    centred = e.choose(e.first(count, lanes), centred, e.zeros(f32))
                squares[v].value = e.fused(centred, centred, squares[v].value)  # noqa: B023

        each_vector(e, width, lanes, square)
        variance = reduced(squares, total_of) / size
        e.store(inverses + r * 4, e.number(1.0, f32) / e.call("llvm.sqrt.f32", f32, variance + epsilon))
    for r in e.range(0, rows):
        line, target = values + r * width * 4, y + (here + r * width * 4)
        mean, inverse = e.load_spread(means + r * 4, f32), e.load_spread(inverses + r * 4, f32)

        def normalize(k: Any, vectors: int, count: Any) -> None:
            made = []
            for at in [(k + v * lanes) * 4 for v in range(vectors)]:
                value = (load(e, line + at, count, f32) - mean) * inverse  # noqa: B023
                factor, shift = (load(e, given + at, count, f32) for given in (weight, bias))
                made.append(e.fused(value, factor, shift))
            for v, value in enumerate(made):
                store(e, target + (k + v * lanes) * 4, value, count)  # noqa: B023

        each_vector(e, width, lanes, normalize)
