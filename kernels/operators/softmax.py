"""Softmax over the last axis of real values, with a factor and a mask before it.

    y = exp(v - max v) / sum exp(v - max v)        v = x * scale + mask

in float32. Against float64 it is good to 3e-7 of each result where the differences v - max v are exact; as
float32 they round, which for v of 20 is up to 1e-6.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.boundary import check
from fgq.kernels.operators.real_rows import RealRows
from fgq.kernels.simd.emit import Emitter, Value, emitted, f32, i64
from fgq.kernels.simd.functions import LEAST_EXPONENT, exp, reduced, total_of
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.simd.rows import each_vector, load, store

_NO_MASK = np.empty(0, np.float32)


class Softmax(RealRows):
    """Softmax over the last axis.

    Parameters
    ----------
    x : ndarray of float32
        What each call reads, C order.
    y : ndarray of float32, shape of `x`
        What it writes.
    scale : float
        What `x` is multiplied by before.
    mask : ndarray of float32, optional
        Added then; broadcasts against `x`, but is as wide along the last axis. Read by each call. A row that
        is -inf throughout becomes NaN.
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
        *,
        scale: float = 1.0,
        mask: NDArray[np.float32] | None = None,
        threads: int = 1,
    ) -> None:
        check("softmax", x=(x, x.shape, np.float32), y=(y, x.shape, np.float32))
        super().__init__(x, y, x.shape[-1], threads)
        self._factor, self._mask = np.float32(scale), _NO_MASK
        # where the row of the mask begins that belongs to each row of x
        self._places = np.full(self._rows, -1, np.int64)
        if mask is not None:
            check("softmax", mask=(mask, (*mask.shape[:-1], self._width), np.float32))
            try:
                places = np.arange(mask.size // self._width).reshape(mask.shape[:-1]) * self._width
                places = np.broadcast_to(places, x.shape[:-1])
            except ValueError:
                raise KernelError(
                    f"mask: found {list(mask.shape)} for {list(x.shape)}, wanted what broadcasts, as wide"
                ) from None
            self._places, self._mask = np.ascontiguousarray(places).reshape(-1), mask.reshape(-1)
        self._compute = _softmax(index_of(available()[0]))

    def _run(self, begin: int, end: int, scratch: NDArray[np.float32]) -> None:
        self._compute(
            self._x, self._factor, self._mask, self._places, self._width, self._together, begin, end, scratch,
            self._y,
        )  # fmt: skip


@cache
def _softmax(tier: int) -> Any:
    """Return the function that does rows, `together` of them in each step, for an instruction set."""
    wide = INSTRUCTION_SETS[tier].width > 0

    @jit
    def softmax(
        x: NDArray[np.float32],
        factor: np.float32,
        mask: NDArray[np.float32],
        places: NDArray[np.int64],
        width: int,
        together: int,
        begin: int,
        end: int,
        scratch: NDArray[np.float32],
        y: NDArray[np.float32],
    ) -> None:
        if wide:
            for row in range(begin, end, together):
                rows = min(together, end - row)
                _emit_softmax(tier, x, factor, mask, places, width, row, rows, scratch, y)
            return
        for row in range(begin, end):
            first, place = row * width, places[row]
            largest = np.float32(-np.inf)
            for k in range(width):
                scratch[k] = x[first + k] * factor
                if place >= 0:
                    scratch[k] += mask[place + k]
                largest = max(largest, scratch[k])
            total = 0.0
            for k in range(width):
                value = scratch[k] - largest
                scratch[k] = np.float32(0 if value < LEAST_EXPONENT else math.exp(value))
                total += scratch[k]
            for k in range(width):
                y[first + k] = np.float32(scratch[k] / total)

    return softmax


@emitted
def _emit_softmax(
    e: Emitter, x: Any, factor: Any, mask: Any, places: Any, width: Any, row: Any, rows: Any, scratch: Any,
    y: Any,
) -> None:  # fmt: skip
    lanes, factors = e.lanes(f32), e.filled(factor, f32)
    found, made = scratch, y + row * width * 4  # a number for each row; the rows themselves

    def within(value: Value, count: Any, other: float) -> Value:
        """Put `other` into the lanes behind a row."""
        return value if count is None else e.choose(e.first(count, lanes), value, e.filled(other, f32))

    def each(r: Value, less: Value | None, do: Any) -> None:
        """Emit ``do(v, k, value, count)`` for the vectors of a row, scaled, masked, and `less` taken away."""
        source = x + (row + r) * width * 4
        place = e.load_number(places + (row + r) * 8, i64)
        added = None if less is None else less * -1

        def step(k: Any, vectors: int, count: Any, *, masked: bool) -> None:
            for v in range(vectors):
                at = (k + v * lanes) * 4
                value = load(e, source + at, count, f32)
                if masked:
                    value = e.fused(value, factors, load(e, mask + (place * 4 + at), count, f32))
                    value = value if added is None else value + added
                else:
                    value = value * factors if added is None else e.fused(value, factors, added)
                do(v, at, value, count)

        with e.when(place < 0):
            each_vector(e, width, lanes, lambda *at: step(*at, masked=False))
        with e.when(place >= 0):
            each_vector(e, width, lanes, lambda *at: step(*at, masked=True))

    for r in e.range(0, rows):
        best = [e.variable(e.filled(-np.inf, f32)) for _ in range(4)]

        def largest(v: int, at: Any, value: Value, count: Any) -> None:
            best[v].value = e.larger(within(value, count, -np.inf), best[v].value)  # noqa: B023

        each(r, None, largest)
        e.store(found + r * 4, reduced(best, e.larger))
    for r in e.range(0, rows):
        sums = [e.variable(e.zeros(f32)) for _ in range(4)]
        line = made + r * width * 4

        def raised(v: int, at: Any, value: Value, count: Any) -> None:
            power = exp(value)
            sums[v] += within(power, count, 0.0)  # noqa: B023
            store(e, line + at, power, count)  # noqa: B023

        each(r, e.load_spread(found + r * 4, f32), raised)
        e.store(found + r * 4, e.number(1.0, f32) / reduced(sums, total_of))
    for r in e.range(0, rows):
        inverse, line = e.load_spread(found + r * 4, f32), made + r * width * 4

        def divided(k: Any, vectors: int, count: Any) -> None:
            places = [line + (k + v * lanes) * 4 for v in range(vectors)]  # noqa: B023
            powers = [load(e, place, count, f32) for place in places]
            for place, power in zip(places, powers, strict=True):
                store(e, place, power * inverse, count)  # noqa: B023

        each_vector(e, width, lanes, divided)
