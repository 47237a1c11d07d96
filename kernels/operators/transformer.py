"""The float operators between the matrix products of a transformer: softmax, layer normalization, GELU.

    softmax      y = exp(v - max v) / sum exp(v - max v)  over the last axis,  v = x * scale + mask
    layer norm   y = (v - mean) / sqrt(variance + epsilon) * weight + bias  over the last axis,  v = x + added
    GELU         y = x / 2 * (1 + erf(x / sqrt 2))
                 or  x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x**3)))

in float32 (Hendrycks and Gimpel, Gaussian error linear units, 2016, section 2, has both forms of the last). A
result may be quantized by the way, as QuantizeLinear does it: a row goes from the cache into bytes.

Against float64, softmax is good to 3e-7 of each result where the differences v - max v are exact (as float32
they round, which for v of 20 is up to 1e-6), layer normalization to 1e-6 for results of usual size, GELU to
3e-7 of x. :mod:`fgq.kernels.simd.functions` has exp and the rest.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.boundary import check, ready
from fgq.kernels.operators.rounding import rounder, rounding, rounding_tier, store_activations
from fgq.kernels.products.driver import held
from fgq.kernels.products.epilogue import Requantize
from fgq.kernels.simd.emit import Emitter, Value, emitted, f32, i64
from fgq.kernels.simd.functions import LEAST_EXPONENT, exp, gelu_by_erf, gelu_by_tanh, reduced, total_of
from fgq.kernels.simd.isa import INSTRUCTION_SETS
from fgq.kernels.simd.rows import each_vector, load, store
from fgq.kernels.threads import spread

_PIECE = 1 << 13
"""Elements that a thread takes at a time, roughly."""

_WIDTH = 1 << 10
"""Elements in a row, if there are no rows."""

_TOGETHER = 8
"""Rows that are taken through a step together: the sum over one is waited for while others are summed up."""

_STAGE = 1 << 12
"""Elements that may be between two steps, in the nearest cache."""

_NOTHING = np.empty(0, np.float32)


class _Rows:
    """Rows of real values, each made in one go and quantized if `y` holds bytes."""

    def __init__(
        self,
        x: NDArray[np.float32],
        y: NDArray[np.float32] | NDArray[np.uint8],
        width: int,
        y_scale: float,
        y_zero: int,
        lowest: int,
        highest: int,
        threads: int,
    ) -> None:
        made = np.uint8 if y.dtype == np.uint8 else np.float32
        check(type(self).__name__.lower(), x=(x, x.shape, np.float32), y=(y, x.shape, made))
        Requantize(np.float32(y_scale), y_zero, lowest, highest)  # checks the range
        self._x, self._y, self._width = x.reshape(-1), y.reshape(-1), width
        self._rows, self._threads = -(-x.size // max(width, 1)), threads
        self._together = min(max(_STAGE // max(width, 1), 1), _TOGETHER)
        self._each = max(_PIECE // max(width, 1) // self._together, 1) * self._together
        self._scale, self._numbers = np.float32(y_scale), np.array([y_zero, lowest, highest], np.int64)
        self._quantized = y.dtype == np.uint8
        self._tier = rounding_tier(y_scale)

    def __call__(self) -> None:
        """Compute from what the arrays now hold."""
        # a stage of rows, and two numbers for each of them
        scratch = held.borrow(self._threads, 4 * self._together * (self._width + 2)).view(np.float32)

        def work(thread: int, begin: int, end: int) -> None:
            self._run(begin * self._each, min(end * self._each, self._rows), scratch[thread])

        if self._threads == 1:
            self._run(0, self._rows, scratch[0])
        else:
            spread(-(-self._rows // self._each), self._threads, work)

    def _run(self, begin: int, end: int, scratch: NDArray[np.float32]) -> None:
        raise NotImplementedError


class Softmax(_Rows):
    """Softmax over the last axis.

    Parameters
    ----------
    x : ndarray of float32
        What each call reads, C order.
    y : ndarray of float32 or uint8, shape of `x`
        What it writes.
    scale : float
        What `x` is multiplied by before.
    mask : ndarray of float32, optional
        Added then; broadcasts against `x`, but is as wide along the last axis. Read by each call. A row that
        is -inf throughout becomes NaN.
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
        scale: float = 1.0,
        mask: NDArray[np.float32] | None = None,
        y_scale: float = 1.0,
        y_zero: int = 0,
        lowest: int = 0,
        highest: int = 255,
        threads: int = 1,
    ) -> None:
        super().__init__(x, y, x.shape[-1], y_scale, y_zero, lowest, highest, threads)
        self._factor, self._mask = np.float32(scale), _NOTHING
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
        self._compute = _softmax(self._tier, self._quantized)

    def _run(self, begin: int, end: int, scratch: NDArray[np.float32]) -> None:
        self._compute(
            self._x, self._factor, self._mask, self._places, self._width, self._together, begin, end,
            scratch, self._scale, self._numbers, self._y,
        )  # fmt: skip


class LayerNorm(_Rows):
    """Layer normalization over the last axis.

    Parameters
    ----------
    x : ndarray of float32
        What each call reads, C order.
    y : ndarray of float32 or uint8, shape of `x`
        What it writes.
    weight, bias : ndarray of float32, shape (width,)
        Of the last axis.
    epsilon : float
        Added to the variance.
    threads : int
        How many threads to use.
    added : ndarray of float32, shape of `x`, optional
        Added to `x` before.
    total : ndarray of float32, shape of `x`, optional
        Where that sum is written, too. It may be `x` or `added`.
    y_scale, y_zero, lowest, highest : float, int
        Quantizer of a uint8 result, and its range.

    Raises
    ------
    KernelError
        If arrays or numbers do not fit.
    """

    def __init__(
        self,
        x: NDArray[np.float32],
        y: NDArray[np.float32] | NDArray[np.uint8],
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        epsilon: float,
        threads: int = 1,
        *,
        added: NDArray[np.float32] | None = None,
        total: NDArray[np.float32] | None = None,
        y_scale: float = 1.0,
        y_zero: int = 0,
        lowest: int = 0,
        highest: int = 255,
    ) -> None:
        super().__init__(x, y, x.shape[-1], y_scale, y_zero, lowest, highest, threads)
        weight, bias = ready(weight), ready(bias)
        check(
            "layernorm", weight=(weight, x.shape[-1:], np.float32), bias=(bias, x.shape[-1:], np.float32),
            added=(added, x.shape, np.float32), total=(total, x.shape, np.float32),
        )  # fmt: skip
        if added is None and total is not None:
            raise KernelError("total: found no array to be added, wanted one")
        self._weight, self._bias = weight, bias
        self._epsilon = np.float32(epsilon)
        self._added, self._total = (_NOTHING if a is None else a.reshape(-1) for a in (added, total))
        self._compute = _layer_norm(
            self._tier, self._quantized, added=added is not None, kept=total is not None
        )

    def _run(self, begin: int, end: int, scratch: NDArray[np.float32]) -> None:
        self._compute(
            self._x, self._added, self._total, self._weight, self._bias, self._epsilon,
            self._together, begin, end, scratch, self._scale, self._numbers, self._y,
        )  # fmt: skip


class Gelu(_Rows):
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
        super().__init__(x, y, _WIDTH, y_scale, y_zero, lowest, highest, threads)
        self._compute = _gelu(self._tier, self._quantized, tanh)

    def _run(self, begin: int, end: int, scratch: NDArray[np.float32]) -> None:
        self._compute(self._x, self._width, begin, end, scratch, self._scale, self._numbers, self._y)


class _Result:
    """Where a row goes: floats as they are, or rounded to bytes."""

    def __init__(self, e: Emitter, y: Any, quantized: bool, scale: Any, numbers: Any) -> None:
        self._e, self._y, self._rounded = e, y, None
        if quantized:
            self._rounded = rounding(e, scale, *(e.load_number(numbers + 8 * i, i64) for i in range(3)))

    def store(self, place: Any, values: list[Value], count: Any) -> None:
        """Store the vectors that begin with element `place`."""
        if self._rounded is not None:
            whole = [self._rounded(value) for value in values]
            store_activations(self._e, self._y + place, whole, count)
            return
        for v, value in enumerate(values):
            store(self._e, self._y + (place + v * value.lanes) * 4, value, count)


@cache
def _softmax(tier: int, quantized: bool) -> Any:
    """Return the function that does rows, `together` of them in each step, for an instruction set."""
    wide, quantize = INSTRUCTION_SETS[tier].width > 0, rounder(tier)

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
        scale: np.float32,
        numbers: NDArray[np.int64],
        y: Any,
    ) -> None:
        if wide:
            for row in range(begin, end, together):
                rows = min(together, end - row)
                _emit_softmax(
                    tier, quantized, x, factor, mask, places, width, row, rows, scratch, scale, numbers, y
                )
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
                scratch[k] = np.float32(scratch[k] / total)
            if quantized:
                quantize(scratch, 0, 0, 1, width, scale, numbers, y, first, 0)
            else:
                y[first : first + width] = scratch[:width]

    return softmax


@emitted
def _emit_softmax(
    e: Emitter, quantized: Any, x: Any, factor: Any, mask: Any, places: Any, width: Any, row: Any, rows: Any,
    scratch: Any, scale: Any, numbers: Any, y: Any,
) -> None:  # fmt: skip
    lanes, factors = e.lanes(f32), e.filled(factor, f32)
    found, made = scratch, scratch + rows * 4  # a number for each row; the rows themselves
    result = _Result(e, y, quantized, scale, numbers)
    if not quantized:
        made = y + row * width * 4

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
            powers = [load(e, line + (k + v * lanes) * 4, count, f32) for v in range(vectors)]  # noqa: B023
            result.store((row + r) * width + k, [power * inverse for power in powers], count)  # noqa: B023

        each_vector(e, width, lanes, divided)


@cache
def _layer_norm(tier: int, quantized: bool, added: bool, kept: bool) -> Any:
    """Return the function that does rows, `together` of them in each step, for an instruction set."""
    wide, quantize = INSTRUCTION_SETS[tier].width > 0, rounder(tier)

    @jit
    def layer_norm(
        x: NDArray[np.float32],
        other: NDArray[np.float32],
        total: NDArray[np.float32],
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        epsilon: np.float32,
        together: int,
        begin: int,
        end: int,
        scratch: NDArray[np.float32],
        scale: np.float32,
        numbers: NDArray[np.int64],
        y: Any,
    ) -> None:
        width = weight.size
        size = np.float32(width)
        if wide:
            for row in range(begin, end, together):
                rows = min(together, end - row)
                _emit_layer_norm(
                    tier, quantized, added, kept, x, other, total, weight, bias, epsilon, size, width,
                    row, rows, scratch, scale, numbers, y,
                )  # fmt: skip
            return
        for row in range(begin, end):
            first = row * width
            mean, variance = 0.0, 0.0
            for k in range(width):
                scratch[k] = x[first + k]
                if added:
                    scratch[k] += other[first + k]
                if kept:
                    total[first + k] = scratch[k]
                mean += scratch[k]
            mean = mean / width
            for k in range(width):
                variance += (scratch[k] - mean) * (scratch[k] - mean)
            inverse = 1 / math.sqrt(variance / width + epsilon)
            for k in range(width):
                scratch[k] = np.float32((scratch[k] - mean) * inverse * weight[k] + bias[k])
            if quantized:
                quantize(scratch, 0, 0, 1, width, scale, numbers, y, first, 0)
            else:
                y[first : first + width] = scratch[:width]

    return layer_norm


@emitted
def _emit_layer_norm(
    e: Emitter, quantized: Any, added: Any, kept: Any, x: Any, other: Any, total: Any, weight: Any, bias: Any,
    epsilon: Any, size: Any, width: Any, row: Any, rows: Any, scratch: Any, scale: Any, numbers: Any, y: Any,
) -> None:  # fmt: skip
    lanes, here = e.lanes(f32), row * width * 4
    means, inverses = scratch, scratch + rows * 4
    result = _Result(e, y, quantized, scale, numbers)
    values = x + here
    if added:
        values = total + here if kept else scratch + rows * 8 if quantized else y + here

    for r in e.range(0, rows):
        sums, line = [e.variable(e.zeros(f32)) for _ in range(4)], r * width * 4

        def add(k: Any, vectors: int, count: Any) -> None:
            for v in range(vectors):
                at = line + (k + v * lanes) * 4  # noqa: B023
                value = load(e, x + (here + at), count, f32)
                if added:
                    value = value + load(e, other + (here + at), count, f32)
                    store(e, values + at, value, count)
                sums[v] += value  # noqa: B023

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
        line = values + r * width * 4
        mean, inverse = e.load_spread(means + r * 4, f32), e.load_spread(inverses + r * 4, f32)

        def normalize(k: Any, vectors: int, count: Any) -> None:
            made = []
            for at in [(k + v * lanes) * 4 for v in range(vectors)]:
                value = (load(e, line + at, count, f32) - mean) * inverse  # noqa: B023
                factor, shift = (load(e, given + at, count, f32) for given in (weight, bias))
                made.append(e.fused(value, factor, shift))
            result.store((row + r) * width + k, made, count)  # noqa: B023

        each_vector(e, width, lanes, normalize)


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
        numbers: NDArray[np.int64],
        y: Any,
    ) -> None:
        for row in range(begin, end):
            first = row * width
            count = min(width, x.size - first)
            if wide:
                _emit_gelu(tier, quantized, tanh, x, first, count, scale, numbers, y)
                continue
            for k in range(count):
                value = np.float64(x[first + k])
                if tanh:
                    shape = math.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3))
                else:
                    shape = math.erf(value * math.sqrt(0.5))
                scratch[k] = np.float32(0.5 * value * (1 + shape))
            if quantized:
                quantize(scratch, 0, 0, 1, count, scale, numbers, y, first, 0)
            else:
                y[first : first + count] = scratch[:count]

    return gelu


@emitted
def _emit_gelu(
    e: Emitter, quantized: Any, tanh: Any, x: Any, first: Any, size: Any, scale: Any, numbers: Any, y: Any
) -> None:
    lanes, compute = e.lanes(f32), gelu_by_tanh if tanh else gelu_by_erf
    result = _Result(e, y, quantized, scale, numbers)

    def do(k: Any, vectors: int, count: Any) -> None:
        values = [load(e, x + (first + k + v * lanes) * 4, count, f32) for v in range(vectors)]
        result.store(first + k, [compute(value) for value in values], count)

    each_vector(e, size, lanes, do)
