"""The float operators between the matrix products of a transformer: softmax, layer normalization, GELU.

    softmax:     y = exp(v - max v) / sum exp(v - max v)  over the last axis,  v = x * scale + mask
    layer norm:  y = (x - mean) / sqrt(variance + epsilon) * weight + bias     over the last axis
    GELU:        y = 0.5 x (1 + erf(x / sqrt 2))

exp is 2**n * p(r) with r = x - n ln 2 and the Taylor polynomial p of degree 7, |r| <= ln 2 / 2: its remainder
is below 6e-9, so that it is good to rounding. Below -87 it is 0, not a denormal: products of those are slow.
erf is z * P(z**2) / Q(z**2) for |z| <= 4, beyond which it is 1 to rounding; the coefficients are those of XLA
(ErfImpl32) and Eigen, good to 3e-7. GELU may be quantized by the way, as QuantizeLinear does it.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.simd.emit import Emitter, Value, emitted, f32, i8, i32
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.threads import spread

_ROWS = 16
"""Rows that a thread takes at a time."""

_PIECE = 1 << 13
"""Elements that a thread takes at a time where there are no rows."""

_NO_MASK = np.zeros(1, np.float32)


class Softmax:
    """Softmax over the last axis.

    Parameters
    ----------
    x, y : ndarray of float32, one shape
        What is read and written by each call, C order.
    scale : float
        What `x` is multiplied by before.
    mask : ndarray of float32, optional
        Added then; broadcast against `x`, except along the last axis.
    threads : int
        How many threads to use.
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
        self._width = x.shape[-1]
        self._rows = x.size // max(self._width, 1)
        self._x, self._y, self._scale = x.reshape(-1), y.reshape(-1), np.float32(scale)
        self._mask = _NO_MASK if mask is None else mask.reshape(-1)
        # where the row of the mask begins that belongs to each row of x
        self._places = np.full(self._rows, -1, np.int64)
        if mask is not None:
            places = np.arange(mask.size // self._width).reshape(mask.shape[:-1]) * self._width
            self._places = np.ascontiguousarray(np.broadcast_to(places, x.shape[:-1])).reshape(-1)
        self._threads = threads

    def __call__(self) -> None:
        """Compute from what `x` and `mask` now hold."""
        spread(-(-self._rows // _ROWS), self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        _softmax(index_of(available()[0]))(
            self._x, self._scale, self._mask, self._places, self._width,
            begin * _ROWS, min(end * _ROWS, self._rows), self._y,
        )  # fmt: skip


class LayerNorm:
    """Layer normalization over the last axis.

    Parameters
    ----------
    x, y : ndarray of float32, one shape
        What is read and written by each call, C order.
    weight, bias : ndarray of float32, shape (width,)
        Of the last axis.
    epsilon : float
        Added to the variance.
    threads : int
        How many threads to use.
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
        self._width, self._rows = weight.size, x.size // weight.size
        self._x, self._y = x.reshape(-1), y.reshape(-1)
        self._weight, self._bias = (np.require(a, requirements=["C", "W"]) for a in (weight, bias))
        self._epsilon, self._threads = np.float32(epsilon), threads

    def __call__(self) -> None:
        """Normalize what `x` now holds."""
        spread(-(-self._rows // _ROWS), self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        _layer_norm(index_of(available()[0]))(
            self._x, self._weight, self._bias, self._epsilon,
            begin * _ROWS, min(end * _ROWS, self._rows), self._y,
        )  # fmt: skip


class Gelu:
    """GELU, and what quantizes it.

    Parameters
    ----------
    x : ndarray of float32
        What each call reads, C order.
    y : ndarray of float32 or uint8, of the size of `x`
        What it writes.
    scale, zero_point : float, int
        Quantizer of a uint8 result.
    lowest, highest : int
        Its range.
    threads : int
        How many threads to use.
    """

    def __init__(
        self,
        x: NDArray[np.float32],
        y: NDArray[np.float32] | NDArray[np.uint8],
        *,
        scale: float = 1.0,
        zero_point: int = 0,
        lowest: int = 0,
        highest: int = 255,
        threads: int = 1,
    ) -> None:
        self._x, self._y = x.reshape(-1), y.reshape(-1)
        self._scale = np.float32(scale)
        self._numbers = np.array([zero_point, lowest - zero_point, highest - zero_point], np.int64)
        self._pieces, self._threads = -(-x.size // _PIECE), threads

    def __call__(self) -> None:
        """Compute from what `x` now holds."""
        spread(self._pieces, self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        tier, end = index_of(available()[0]), min(end * _PIECE, self._x.size)
        if self._y.dtype == np.uint8:
            _quantized_gelu(tier)(self._x, self._scale, self._numbers, begin * _PIECE, end, self._y)
        else:
            _gelu(tier)(self._x, begin * _PIECE, end, self._y)


# Vectors of real values

_LOG2_E = math.log2(math.e)
_LN2_HIGH = 0.693359375  # few bits: its products with whole numbers are exact
_LN2_LOW = math.log(2) - _LN2_HIGH
_LEAST_EXPONENT = -87.0
_TAYLOR = [1 / math.factorial(k) for k in range(7, -1, -1)]
_ERF_ABOVE = [
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
]  # fmt: skip
_ERF_BELOW = [
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
]  # fmt: skip


def _exp(e: Emitter, x: Value) -> Value:
    """Emit exp(x) for x <= 0."""

    def fill(number: float) -> Value:
        return e.filled(float(np.float32(number)), f32, x.lanes)

    kept = e.larger(x, fill(_LEAST_EXPONENT))
    whole = e.whole(kept * fill(_LOG2_E))
    n = whole.signed(f32)
    rest = e.fused(n, fill(-_LN2_LOW), e.fused(n, fill(-_LN2_HIGH), kept))
    value = fill(_TAYLOR[0])
    for factor in _TAYLOR[1:]:
        value = e.fused(value, rest, fill(factor))
    power = ((whole + 127) << 23).bits_as(f32)
    return e.choose(x < fill(_LEAST_EXPONENT), fill(0.0), value * power)


def _gelu_of(e: Emitter, x: Value) -> Value:

    def fill(number: float) -> Value:
        return e.filled(float(np.float32(number)), f32, x.lanes)

    def polynomial(factors: list[float], square: Value) -> Value:
        value = fill(factors[0])
        for factor in factors[1:]:
            value = e.fused(value, square, fill(factor))
        return value

    z = e.smaller(e.larger(x * fill(math.sqrt(0.5)), fill(-4.0)), fill(4.0))
    square = z * z
    erf = z * polynomial(_ERF_ABOVE, square) / polynomial(_ERF_BELOW, square)
    half = x * fill(0.5)
    return e.fused(half, erf, half)


def _sum(one: Value, other: Value) -> Value:
    total: Value = one + other
    return total


def _total(e: Emitter, value: Value, join: Any) -> Value:
    """Join the lanes of a vector into one number."""
    lanes = value.lanes
    while lanes > 1:
        lanes //= 2
        value = join(value.shuffled(range(lanes)), value.shuffled(range(lanes, 2 * lanes)))
    return value.lane(0)


class _Row:
    """Goes over one row in whole vectors and a rest."""

    def __init__(self, e: Emitter, width: Any) -> None:
        self.e, self.lanes, self.width = e, e.lanes(f32), width
        self.whole = width - width % self.lanes

    def each(self, do: Any) -> None:
        """Emit ``do(k, count)``; `count` is None for whole vectors."""
        for k in self.e.range(0, self.whole, self.lanes):
            do(k, None)
        with self.e.when(self.whole < self.width):
            do(self.whole, self.width - self.whole)

    def load(self, pointer: Any, k: Any, count: Any) -> Value:
        e = self.e
        at = pointer + k * 4
        return e.load(at, f32, self.lanes) if count is None else e.load_first(at, count, f32, self.lanes)

    def store(self, pointer: Any, k: Any, value: Value, count: Any) -> None:
        if count is None:
            self.e.store(pointer + k * 4, value)
        else:
            self.e.store_first(pointer + k * 4, value, count)

    def within(self, value: Value, count: Any, other: float) -> Value:
        """Put `other` into the lanes behind a row."""
        if count is None:
            return value
        return self.e.choose(self.e.first(count, self.lanes), value, self.e.filled(other, f32))


@cache
def _softmax(tier: int) -> Any:
    """Return the function that does rows, for an instruction set."""
    wide = INSTRUCTION_SETS[tier].width > 0

    @jit
    def softmax(
        x: NDArray[np.float32],
        scale: np.float32,
        mask: NDArray[np.float32],
        places: NDArray[np.int64],
        width: int,
        begin: int,
        end: int,
        y: NDArray[np.float32],
    ) -> None:
        for row in range(begin, end):
            first, place = row * width, places[row]
            if wide:
                _emit_softmax(tier, x, first, scale, mask, place, width, y)
                continue
            largest = np.float32(-np.inf)
            for k in range(width):
                value = x[first + k] * scale
                if place >= 0:
                    value += mask[place + k]
                y[first + k] = value
                largest = max(largest, value)
            total = np.float32(0)
            for k in range(width):
                gap = y[first + k] - largest
                value = np.float32(math.exp(gap) if gap >= _LEAST_EXPONENT else 0.0)
                y[first + k] = value
                total += value
            for k in range(width):
                y[first + k] /= total

    return softmax


@emitted
def _emit_softmax(
    e: Emitter, x: Any, first: Any, scale: Any, mask: Any, place: Any, width: Any, y: Any
) -> None:
    row, factor = _Row(e, width), e.filled(scale, f32)
    source, out, added = x + first * 4, y + first * 4, mask + place * 4
    best = e.variable(e.filled(-np.inf, f32))

    def scaled(k: Any, count: Any) -> None:
        value = row.load(source, k, count) * factor
        best.value = e.larger(best.value, row.within(value, count, -np.inf))
        row.store(out, k, value, count)

    def masked(k: Any, count: Any) -> None:
        value = row.load(source, k, count) * factor + row.load(added, k, count)
        best.value = e.larger(best.value, row.within(value, count, -np.inf))
        row.store(out, k, value, count)

    with e.when(place < 0):
        row.each(scaled)
    with e.when(place >= 0):
        row.each(masked)
    largest = e.filled(_total(e, best.value, e.larger), f32)
    total = e.variable(e.filled(0, f32))

    def raised(k: Any, count: Any) -> None:
        value = _exp(e, row.load(out, k, count) - largest)
        total.value = total.value + row.within(value, count, 0.0)
        row.store(out, k, value, count)

    row.each(raised)
    inverse = e.filled(1, f32) / e.filled(_total(e, total.value, _sum), f32)
    row.each(lambda k, count: row.store(out, k, row.load(out, k, count) * inverse, count))


@cache
def _layer_norm(tier: int) -> Any:
    """Return the function that does rows, for an instruction set."""
    wide = INSTRUCTION_SETS[tier].width > 0

    @jit
    def layer_norm(
        x: NDArray[np.float32],
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        epsilon: np.float32,
        begin: int,
        end: int,
        y: NDArray[np.float32],
    ) -> None:
        width = weight.size
        for row in range(begin, end):
            first = row * width
            if wide:
                _emit_layer_norm(tier, x, first, weight, bias, epsilon, width, y)
                continue
            mean, variance = np.float32(0), np.float32(0)
            for k in range(width):
                mean += x[first + k]
            mean /= np.float32(width)
            for k in range(width):
                variance += (x[first + k] - mean) ** 2
            inverse = np.float32(1) / np.float32(math.sqrt(variance / np.float32(width) + epsilon))
            for k in range(width):
                y[first + k] = (x[first + k] - mean) * inverse * weight[k] + bias[k]

    return layer_norm


@emitted
def _emit_layer_norm(
    e: Emitter, x: Any, first: Any, weight: Any, bias: Any, epsilon: Any, width: Any, y: Any
) -> None:
    row, source, out = _Row(e, width), x + first * 4, y + first * 4
    count_of_row = e.number(width).signed(f32)
    total, squares = (e.variable(e.filled(0.0, f32)) for _ in range(2))

    def add(k: Any, count: Any) -> None:
        total.value = total.value + row.load(source, k, count)

    row.each(add)
    mean = e.filled(_total(e, total.value, _sum) / count_of_row, f32)

    def add_square(k: Any, count: Any) -> None:
        gap = row.within(row.load(source, k, count) - mean, count, 0.0)
        squares.value = e.fused(gap, gap, squares.value)

    row.each(add_square)
    variance = _total(e, squares.value, _sum) / count_of_row + epsilon
    deviation = e.call("llvm.sqrt.f32", f32, variance)
    inverse = e.filled(e.number(1.0, f32) / deviation, f32)

    def normalize(k: Any, count: Any) -> None:
        value = (row.load(source, k, count) - mean) * inverse
        value = e.fused(value, row.load(weight, k, count), row.load(bias, k, count))
        row.store(out, k, value, count)

    row.each(normalize)


@cache
def _gelu(tier: int) -> Any:
    """Return the function ``gelu(x, begin, end, y)``, for an instruction set."""
    wide = INSTRUCTION_SETS[tier].width > 0

    @jit
    def gelu(x: NDArray[np.float32], begin: int, end: int, y: NDArray[np.float32]) -> None:
        if wide:
            _emit_gelu(tier, x, begin, end, y)
        else:
            for k in range(begin, end):
                y[k] = _one_gelu(x[k])

    return gelu


@cache
def _quantized_gelu(tier: int) -> Any:
    """Return the function ``gelu(x, scale, numbers, begin, end, y)``, for an instruction set."""
    wide = INSTRUCTION_SETS[tier].width > 0

    @jit
    def gelu(
        x: NDArray[np.float32],
        scale: np.float32,
        numbers: NDArray[np.int64],
        begin: int,
        end: int,
        y: NDArray[np.uint8],
    ) -> None:
        zero, lowest, highest = numbers[0], np.float32(numbers[1]), np.float32(numbers[2])
        if wide:
            _emit_quantized_gelu(tier, x, scale, zero, lowest, highest, begin, end, y)
        else:
            for k in range(begin, end):
                value = np.rint(_one_gelu(x[k]) / scale)
                y[k] = np.uint8(np.int64(min(max(value, lowest), highest)) + zero)

    return gelu


@jit
def _one_gelu(x: np.float32) -> np.float32:
    return np.float32(0.5) * x * np.float32(1 + math.erf(x * math.sqrt(0.5)))


@emitted
def _emit_gelu(e: Emitter, x: Any, begin: Any, end: Any, y: Any) -> None:
    row, source, out = _Row(e, end - begin), x + begin * 4, y + begin * 4
    row.each(lambda k, count: row.store(out, k, _gelu_of(e, row.load(source, k, count)), count))


@emitted
def _emit_quantized_gelu(
    e: Emitter, x: Any, scale: Any, zero: Any, lowest: Any, highest: Any, begin: Any, end: Any, y: Any
) -> None:
    row, source, out = _Row(e, end - begin), x + begin * 4, y + begin
    back, low, high = (e.filled(number, f32) for number in (-scale, lowest, highest))
    inverse = e.filled(e.number(1.0, f32) / scale, f32)
    zeros = e.filled(e.number(zero, i32), i32)

    def do(k: Any, count: Any) -> None:
        gelu = _gelu_of(e, row.load(source, k, count))
        value = gelu * inverse
        for _ in range(2):  # as good as a division, see activations.py
            value = e.fused(e.fused(value, back, gelu), inverse, value)
        integers = (e.whole(e.smaller(e.larger(value, low), high)) + zeros).signed(i8)
        if count is None:
            e.store(out + k, integers)
        else:
            e.store_first(out + k, integers, count)

    row.each(do)
