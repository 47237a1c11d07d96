"""From int32 sums to real values or to the next layer's activations, rounded as onnxruntime rounds.

    dequantize:  y  = clip(float32(acc) * scale[m] + shift[m]  (+ residual),  lowest, highest)
    requantize:  yq = zero_point + round_half_even(clip(float32(acc) * multiplier[m],
                                                        lowest - zero_point, highest - zero_point))
    add:         yq = clip(round_half_even(fma(ra, a, fma(rb, b, z - fma(ra, za, rb * zb)))), lowest, highest)
                 with ra = a_scale / y_scale, rb = b_scale / y_scale

``acc`` is a sum and its bias. All steps are float32: ``float32(acc)`` rounds to nearest even (above 2**24
it is not exact), the product rounds once more. The second formula is that of MlasRequantizeOutput
(onnxruntime, onnxruntime/core/mlas/lib/quantize.cpp), which ends QLinearConv and QLinearMatMul: there the
clipping comes before the rounding, and ``multiplier = x_scale * row_scale / y_scale`` in float32. The third
is that of QLinearAdd as onnxruntime's x86-64 build computes it with fused multiply-adds (mlas/lib/qladd.cpp);
here `a` is the result of the second, which never leaves its register.

A kernel hands each tile of sums over as soon as it is done, while it is still in the nearest cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.boundary import check_range, ready
from fgq.kernels.simd.emit import Emitter, Pointer, Value, emitted, f32, i8, i32
from fgq.kernels.simd.isa import INSTRUCTION_SETS
from fgq.kernels.simd.rows import each_vector, load, store, store_activations

ROUND = np.float32(1.5 * 2**23)
"""Floats near this one are 1 apart: adding it rounds |v| < 2**22 to an integer, half to even."""

_SUMS, _DEQUANTIZE, _REQUANTIZE, _ADD = range(4)

_NO_FLOATS = np.empty(0, np.float32)


class Epilogue(ABC):
    """What becomes of a layer's sums."""

    dtype: type[np.generic]
    """Of the result."""

    residual_dtype: type[np.generic] | None = None
    """Of the array that may be added to the result."""

    needs_residual: bool = False
    """Whether there must be such an array."""

    @property
    @abstractmethod
    def integers(self) -> NDArray[np.int64]:
        """The whole-numbered parameters for compiled code; the first says which epilogue it is."""

    def factors(self, outputs: int) -> NDArray[np.float32]:
        """Return the factor of each output channel.

        Raises
        ------
        KernelError
            If there are not as many as output channels.
        """
        return _NO_FLOATS

    @property
    def floats(self) -> NDArray[np.float32]:
        """The parameters that all output channels share, for compiled code."""
        return _NO_FLOATS


@dataclass(frozen=True, eq=False)
class Sums(Epilogue):
    """The int32 sums themselves."""

    dtype = np.int32

    @cached_property
    def integers(self) -> NDArray[np.int64]:
        """See :class:`Epilogue`."""
        return np.array([_SUMS], np.int64)


@dataclass(frozen=True, eq=False)
class Dequantize(Epilogue):
    """Real values, ``clip(float32(acc) * scale[m] + shift[m] + residual, lowest, highest)``; NaN stays NaN.

    Parameters
    ----------
    scale : array_like of float32, shape (M,) or ()
        ``x_scale * row_scale`` per output channel.
    lowest, highest : float
        Range of the result: ReLU has ``lowest = 0``.
    shift : array_like of float32, shape (M,) or (), optional
        A bias in real values.
    """

    scale: ArrayLike
    lowest: float = -np.inf
    highest: float = np.inf
    shift: ArrayLike | None = None

    dtype = np.float32
    residual_dtype = np.float32

    @cached_property
    def integers(self) -> NDArray[np.int64]:
        """See :class:`Epilogue`."""
        return np.array([_DEQUANTIZE], np.int64)

    def factors(self, outputs: int) -> NDArray[np.float32]:
        """See :class:`Epilogue`: the scales and behind them the shifts."""
        if outputs not in self._factors:
            pair = ("scale", self.scale), ("shift", np.float32(0) if self.shift is None else self.shift)
            joined = np.concatenate([_per_output(name, given, outputs) for name, given in pair])
            self._factors[outputs] = joined
        return self._factors[outputs]

    @cached_property
    def _factors(self) -> dict[int, NDArray[np.float32]]:
        """By the number of outputs: joined once."""
        return {}

    @cached_property
    def floats(self) -> NDArray[np.float32]:
        """See :class:`Epilogue`."""
        return np.array([self.lowest, self.highest], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedAdd:
    """The sum of two quantized tensors, as onnxruntime's QLinearAdd gives it.

    Parameters
    ----------
    scale, zero_point : float, int
        Of the layer's own result, which the requantization makes.
    residual_scale, residual_zero_point : float, int
        Of the uint8 array that is added.
    sum_scale, sum_zero_point : float, int
        Of the sum.
    lowest, highest : int
        Range of the sum within 0..255; ReLU has ``lowest = sum_zero_point``.
    own_first : bool
        Whether the own result is the first of the two operands; their order enters the rounding.
    """

    scale: float
    zero_point: int
    residual_scale: float
    residual_zero_point: int
    sum_scale: float
    sum_zero_point: int
    lowest: int = 0
    highest: int = 255
    own_first: bool = True

    def __post_init__(self) -> None:
        for zero in (self.zero_point, self.residual_zero_point, self.sum_zero_point):
            check_range(self.lowest, self.highest, zero)
        for scale in (self.scale, self.residual_scale, self.sum_scale):
            if not 0 < scale < np.inf:
                raise KernelError(f"scale: found {scale}, wanted a positive number")

    @property
    def floats(self) -> NDArray[np.float32]:
        """Factor of the own result, factor of the residual, and what is added, float32 [3]."""
        own, other = (
            np.float32(scale) / np.float32(self.sum_scale) for scale in (self.scale, self.residual_scale)
        )
        terms = [(own, self.zero_point), (other, self.residual_zero_point)]
        (first, first_zero), (second, second_zero) = terms if self.own_first else reversed(terms)
        # in float64 a product of two float32 is exact, so this rounds as a fused multiply-add does
        shift = np.float32(np.float64(first) * first_zero + np.float64(second * np.float32(second_zero)))
        return np.array([own, other, np.float32(self.sum_zero_point) - shift], np.float32)


@dataclass(frozen=True, eq=False)
class Requantize(Epilogue):
    """The next layer's activations.

    Parameters
    ----------
    multiplier : array_like of float32, shape (M,) or ()
        ``x_scale * row_scale / y_scale`` per output channel.
    zero_point : int
        The integer that means 0.0 in the result, 0..255.
    lowest, highest : int
        Range of the result within 0..255: 15 is the highest 4-bit activation, and ReLU has
        ``lowest = zero_point``.
    add : QuantizedAdd, optional
        The addition of another uint8 tensor that follows.

    Raises
    ------
    KernelError
        If the range is not within 0..255.
    """

    multiplier: ArrayLike
    zero_point: int
    lowest: int = 0
    highest: int = 255
    add: QuantizedAdd | None = None

    dtype = np.uint8

    def __post_init__(self) -> None:
        check_range(self.lowest, self.highest, self.zero_point)

    @property
    def residual_dtype(self) -> type[np.generic] | None:  # type: ignore[override]
        """See :class:`Epilogue`."""
        return None if self.add is None else np.uint8

    @property
    def needs_residual(self) -> bool:  # type: ignore[override]
        """See :class:`Epilogue`."""
        return self.add is not None

    @cached_property
    def integers(self) -> NDArray[np.int64]:
        """See :class:`Epilogue`."""
        own = self.zero_point, self.lowest - self.zero_point, self.highest - self.zero_point
        if self.add is None:
            return np.array([_REQUANTIZE, *own], np.int64)
        return np.array([_ADD, *own, self.add.lowest, self.add.highest, self.add.own_first], np.int64)

    def factors(self, outputs: int) -> NDArray[np.float32]:
        """See :class:`Epilogue`."""
        return _per_output("multiplier", self.multiplier, outputs)

    @cached_property
    def floats(self) -> NDArray[np.float32]:
        """See :class:`Epilogue`."""
        return _NO_FLOATS if self.add is None else self.add.floats


def _per_output(name: str, given: ArrayLike, outputs: int) -> NDArray[np.float32]:
    factors = np.asarray(given)
    if factors.dtype != np.float32 or factors.shape not in ((), (outputs,)):
        raise KernelError(
            f"{name}: found {factors.dtype}{list(factors.shape)}, wanted float32[{outputs}] or one float32"
        )
    if factors.shape == (outputs,):
        whole = factors.flags.c_contiguous and factors.flags.writeable
        return factors if whole else ready(factors)
    return np.full(outputs, factors, np.float32)


@cache
def finisher(tier: int) -> Any:
    """Return the function that finishes a tile of sums, compiled for an instruction set.

    ``finish(sums, rows, outputs, row, channel, bias, integers, factors, floats, residual, out)`` takes the
    first `rows` x `outputs` of `sums`, int32 [>= rows, >= outputs], which belong to rows `row`, .. and
    channels `channel`, .. of the layer, and writes them into `out`, the bytes of an array
    [all rows, bias.size]. `residual` are the bytes of another such array, or empty.
    """
    if INSTRUCTION_SETS[tier].width == 0:
        return _finish

    @jit
    def finish(
        sums: NDArray[np.int32],
        rows: int,
        outputs: int,
        row: int,
        channel: int,
        bias: NDArray[np.int32],
        integers: NDArray[np.int64],
        factors: NDArray[np.float32],
        floats: NDArray[np.float32],
        residual: NDArray[np.uint8],
        out: NDArray[np.uint8],
    ) -> None:
        pitch, width, begin = sums.shape[1], bias.size, row * bias.size + channel
        kind, given = integers[0], residual.size > 0
        if kind == _SUMS:
            _emit_sums(tier, sums, pitch, rows, outputs, bias, channel, out, begin, width)
        elif kind == _DEQUANTIZE:
            _emit_floats(
                tier, sums, pitch, rows, outputs, bias, factors, channel, floats[0], floats[1],
                residual, given, out, begin, width,
            )  # fmt: skip
        elif kind == _REQUANTIZE:
            _emit_activations(
                tier, sums, pitch, rows, outputs, bias, factors, channel,
                integers[1], integers[2], integers[3], out, begin, width,
            )  # fmt: skip
        else:
            _emit_additions(
                tier, sums, pitch, rows, outputs, bias, factors, channel,
                integers[1], integers[2], integers[3], integers[4], integers[5], integers[6],
                floats[0], floats[1], floats[2], residual, out, begin, width,
            )  # fmt: skip

    return finish


class _Tile:
    """Goes over the vectors of a tile, down its columns: what belongs to a channel is loaded once."""

    def __init__(
        self, e: Emitter, sums: Any, pitch: Any, rows: Any, outputs: Any, bias: Any, channel: Any,
        begin: Any, width: Any, factors: Any = None, *, shifted: bool = False,
    ) -> None:  # fmt: skip
        self.shifted = shifted
        self.e, self.sums, self.pitch, self.rows, self.outputs = e, sums, pitch, rows, outputs
        self.bias, self.channel, self.begin, self.width, self.factors = bias, channel, begin, width, factors
        self.lanes = e.lanes(i32)

    def each(self, finish: Any) -> None:
        """Emit ``finish(sums, factors, place, count)`` for the vectors of each row, biases added.

        `sums` and `factors` are lists of four neighbouring vectors or of one, factors in pairs with shifts
        where there are such; `place` is where the first belongs in the result; `count` is None, or how many
        lanes there are of a vector cut short.
        """

        def do(k: Any, vectors: int, count: Any) -> None:
            self._down([k + i * self.lanes for i in range(vectors)], count, finish)

        each_vector(self.e, self.outputs, self.lanes, do)

    def _down(self, columns: list[Value], count: Any, finish: Any) -> None:
        biases = [self.load(self.bias + (self.channel + m) * 4, count, i32) for m in columns]
        factors: list[Any] = []
        if self.factors is not None:
            factors = [self.load(self.factors + (self.channel + m) * 4, count, f32) for m in columns]
        if self.shifted:
            begin = self.factors + (self.channel + self.width) * 4
            factors = list(zip(factors, [self.load(begin + m * 4, count, f32) for m in columns], strict=True))
        for r in self.e.range(0, self.rows):
            line = self.sums + r * self.pitch * 4
            sums = [
                self.load(line + m * 4, count, i32) + bias for m, bias in zip(columns, biases, strict=True)
            ]
            finish(sums, factors, self.begin + r * self.width + columns[0], count)

    def load(self, pointer: Pointer, count: Any, element: Any) -> Value:
        """Load a vector's lanes, as many as there are."""
        return load(self.e, pointer, count, element, self.lanes)

    def store(self, pointer: Pointer, values: list[Value], count: Any) -> None:
        """Store vectors of four-byte lanes one behind the other, or as many lanes of one as there are."""
        for i, value in enumerate(values):
            store(self.e, pointer + i * self.lanes * 4, value, count)


@emitted
def _emit_sums(
    e: Emitter, sums: Any, pitch: Any, rows: Any, outputs: Any, bias: Any, channel: Any,
    out: Any, begin: Any, width: Any,
) -> None:  # fmt: skip
    tile = _Tile(e, sums, pitch, rows, outputs, bias, channel, begin, width)
    tile.each(lambda sums, _, place, count: tile.store(out + place * 4, sums, count))


@emitted
def _emit_floats(
    e: Emitter, sums: Any, pitch: Any, rows: Any, outputs: Any, bias: Any, factors: Any, channel: Any,
    lowest: Any, highest: Any, residual: Any, given: Any, out: Any, begin: Any, width: Any,
) -> None:  # fmt: skip
    tile = _Tile(e, sums, pitch, rows, outputs, bias, channel, begin, width, factors, shifted=True)
    low, high = e.filled(lowest, f32), e.filled(highest, f32)

    def clip(value: Value) -> Value:
        return e.smaller(high, e.larger(low, value))  # the second operand where one is NaN

    def alone(sums: list[Value], factors: list[Any], place: Any, count: Any) -> None:
        pairs = zip(sums, factors, strict=True)
        values = [clip(acc.signed(f32) * factor + shift) for acc, (factor, shift) in pairs]
        tile.store(out + place * 4, values, count)

    def added(sums: list[Value], factors: list[Any], place: Any, count: Any) -> None:
        others = [tile.load(residual + (place + i * tile.lanes) * 4, count, f32) for i in range(len(sums))]
        values = [
            clip(acc.signed(f32) * factor + shift + other)
            for acc, (factor, shift), other in zip(sums, factors, others, strict=True)
        ]
        tile.store(out + place * 4, values, count)

    with e.when(given.equals(0)):
        tile.each(alone)
    with e.when(given > 0):
        tile.each(added)


def _requantized(e: Emitter, acc: Value, factor: Value, zero: Value, low: Value, high: Value) -> Value:
    return e.whole(e.smaller(e.larger(acc.signed(f32) * factor, low), high)) + zero


@emitted
def _emit_activations(
    e: Emitter, sums: Any, pitch: Any, rows: Any, outputs: Any, bias: Any, factors: Any, channel: Any,
    zero: Any, lowest: Any, highest: Any, out: Any, begin: Any, width: Any,
) -> None:  # fmt: skip
    tile = _Tile(e, sums, pitch, rows, outputs, bias, channel, begin, width, factors)
    low, high = (e.filled(e.number(end).signed(f32), f32) for end in (lowest, highest))
    zeros = e.filled(e.number(zero, i32), i32)

    def finish(sums: list[Value], factors: list[Value], place: Any, count: Any) -> None:
        values = [
            _requantized(e, acc, factor, zeros, low, high) for acc, factor in zip(sums, factors, strict=True)
        ]
        store_activations(e, out + place, values, count)

    tile.each(finish)


@emitted
def _emit_additions(
    e: Emitter, sums: Any, pitch: Any, rows: Any, outputs: Any, bias: Any, factors: Any, channel: Any,
    zero: Any, lowest: Any, highest: Any, sum_lowest: Any, sum_highest: Any, own_first: Any,
    own: Any, other: Any, shift: Any, residual: Any, out: Any, begin: Any, width: Any,
) -> None:  # fmt: skip
    tile = _Tile(e, sums, pitch, rows, outputs, bias, channel, begin, width, factors)
    low, high, sum_low, sum_high = (
        e.filled(e.number(end).signed(f32), f32) for end in (lowest, highest, sum_lowest, sum_highest)
    )
    own, other, shift = (e.filled(number, f32) for number in (own, other, shift))
    zeros, ordered = e.filled(e.number(zero, i32), i32), e.number(own_first) > 0
    first, second = e.choose(ordered, own, other), e.choose(ordered, other, own)

    def add(acc: Value, factor: Value, place: Any, count: Any) -> Value:
        mine = _requantized(e, acc, factor, zeros, low, high).signed(f32)
        theirs = tile.load(residual + place, count, i8).unsigned(i32).signed(f32)
        one, two = e.choose(ordered, mine, theirs), e.choose(ordered, theirs, mine)
        value = e.fused(first, one, e.fused(second, two, shift))
        return e.whole(e.smaller(e.larger(value, sum_low), sum_high))

    def finish(sums: list[Value], factors: list[Value], place: Any, count: Any) -> None:
        values = [
            add(acc, factor, place + i * tile.lanes, count)
            for i, (acc, factor) in enumerate(zip(sums, factors, strict=True))
        ]
        store_activations(e, out + place, values, count)

    tile.each(finish)


@jit
def _finish(
    sums: NDArray[np.int32],
    rows: int,
    outputs: int,
    row: int,
    channel: int,
    bias: NDArray[np.int32],
    integers: NDArray[np.int64],
    factors: NDArray[np.float32],
    floats: NDArray[np.float32],
    residual: NDArray[np.uint8],
    out: NDArray[np.uint8],
) -> None:
    kind = integers[0]
    for r in range(rows):
        begin, line = (row + r) * bias.size + channel, sums[r]
        if kind == _SUMS:
            whole = out.view(np.int32)
            for m in range(outputs):
                whole[begin + m] = line[m] + bias[channel + m]
        elif kind == _DEQUANTIZE:
            real, added = out.view(np.float32), residual.view(np.float32)
            lowest, highest = floats[0], floats[1]
            for m in range(outputs):
                value = np.float32(np.int32(line[m] + bias[channel + m])) * factors[channel + m]
                value += factors[bias.size + channel + m]
                if residual.size > 0:
                    value += added[begin + m]
                value = lowest if value < lowest else value  # NaN stays NaN
                real[begin + m] = highest if value > highest else value
        else:
            zero, low, high = np.int32(integers[1]), np.float32(integers[2]), np.float32(integers[3])
            for m in range(outputs):
                value = np.float32(np.int32(line[m] + bias[channel + m])) * factors[channel + m]
                value = value if value > low else low
                value = value if value < high else high
                whole_value = np.int32((value + ROUND) - ROUND) + zero
                if kind == _ADD:
                    # products of float32 are exact in float64: each line rounds once, as a fused one does
                    own = np.float64(floats[0]) * whole_value
                    other = np.float64(floats[1]) * residual[begin + m]
                    first, second = (own, other) if integers[6] else (other, own)
                    value = np.float32(second + np.float64(floats[2]))
                    value = np.float32(first + np.float64(value))
                    lowest, highest = np.float32(integers[4]), np.float32(integers[5])
                    value = value if value > lowest else lowest
                    value = value if value < highest else highest
                    whole_value = np.int32((value + ROUND) - ROUND)
                out[begin + m] = whole_value
