"""Sums and products of two quantized tensors, rounded as onnxruntime rounds.

    add:       see :mod:`fgq.kernels.epilogue`, whose formula for a residual is QLinearAdd's
    multiply:  yq = saturate(round_half_even((a - za) * (b - zb) * (a_scale * b_scale / y_scale)) + y_zero)

The second is QLinearMul (onnxruntime, core/mlas/lib/qlmul.cpp). A second operand that is the same all over an
image, [B, 1, 1, C], is read again for each pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.epilogue import ROUND, QuantizedAdd
from fgq.kernels.simd.emit import Emitter, Value, emitted, f32, i8, i32
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.threads import spread

_ROWS = 64
"""Rows that a thread takes at a time."""


class _Binary:
    """Operands cut into rows of the last axis, the second one repeated as need be."""

    def __init__(
        self, a: NDArray[np.uint8], b: NDArray[np.uint8], y: NDArray[np.uint8], threads: int
    ) -> None:
        if a.shape != y.shape or not repeats(b.shape, y.shape):
            raise KernelError(f"operands: found {list(a.shape)} and {list(b.shape)} for {list(y.shape)}")
        self._width = y.shape[-1] if y.ndim else 1
        rows = y.size // max(self._width, 1)
        if a.shape == b.shape:  # long rows cost least
            self._width, rows = min(y.size, 4096), -(-y.size // 4096)
        self._each = 1 if a.shape == b.shape else rows // max(b.size // max(self._width, 1), 1)
        self._a, self._b, self._y = a.reshape(-1), b.reshape(-1), y.reshape(-1)
        self._rows, self._threads = rows, threads

    def __call__(self) -> None:
        """Compute from what the operands now hold."""
        spread(-(-self._rows // _ROWS), self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        self._run(begin * _ROWS, min(end * _ROWS, self._rows))

    def _run(self, begin: int, end: int) -> None:
        raise NotImplementedError


class Add(_Binary):
    """The sum of two quantized tensors.

    Parameters
    ----------
    a : ndarray of uint8
        First operand.
    b : ndarray of uint8, shape of `a` or [B, 1, .., 1, C]
        Second operand.
    y : ndarray of uint8, shape of `a`
        Written by each call.
    add : QuantizedAdd
        Scales and zero points; the own result is `a`. With ``own_first`` false the operands count in the
        other order.
    threads : int
        How many threads to use.

    Raises
    ------
    KernelError
        If the shapes do not fit.
    """

    def __init__(
        self,
        a: NDArray[np.uint8],
        b: NDArray[np.uint8],
        y: NDArray[np.uint8],
        add: QuantizedAdd,
        threads: int = 1,
    ) -> None:
        super().__init__(a, b, y, threads)
        own, other, shift = add.floats
        first, second = (own, other) if add.own_first else (other, own)
        self._floats = np.array([first, second, shift, add.lowest, add.highest], np.float32)
        self._swapped = not add.own_first

    def _run(self, begin: int, end: int) -> None:
        _adder(index_of(available()[0]))(
            self._a, self._b, self._width, self._each, begin, end, self._floats, self._swapped, self._y
        )


class Multiply(_Binary):
    """The product of two quantized tensors.

    Parameters
    ----------
    a, b, y, threads : as for :class:`Add`
    multiplier : float
        ``a_scale * b_scale / y_scale`` in float32.
    zeros : tuple of int
        Zero points of `a`, `b` and `y`.
    lowest, highest : int
        Range of the result.

    Raises
    ------
    KernelError
        If the shapes do not fit.
    """

    def __init__(
        self,
        a: NDArray[np.uint8],
        b: NDArray[np.uint8],
        y: NDArray[np.uint8],
        *,
        multiplier: float,
        zeros: tuple[int, int, int],
        lowest: int = 0,
        highest: int = 255,
        threads: int = 1,
    ) -> None:
        super().__init__(a, b, y, threads)
        self._multiplier = np.float32(multiplier)
        self._numbers = np.array([*zeros, lowest, highest], np.int32)

    def _run(self, begin: int, end: int) -> None:
        _multiplier(index_of(available()[0]))(
            self._a, self._b, self._width, self._each, begin, end, self._multiplier, self._numbers, self._y
        )


def repeats(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Tell whether an operand of `shape` can be used for a result of shape `whole`: [B, 1, .., 1, C]."""
    if shape == whole:
        return True
    return (
        len(shape) == len(whole) > 1
        and shape[0] == whole[0]
        and shape[-1] == whole[-1]
        and all(size == 1 for size in shape[1:-1])
    )


@cache
def _adder(tier: int) -> Any:
    """Return the function that adds rows, for an instruction set."""
    if INSTRUCTION_SETS[tier].width == 0:
        return _add

    @jit
    def add(
        a: NDArray[np.uint8],
        b: NDArray[np.uint8],
        width: int,
        each: int,
        begin: int,
        end: int,
        floats: NDArray[np.float32],
        swapped: bool,
        y: NDArray[np.uint8],
    ) -> None:
        one, two = (b, a) if swapped else (a, b)
        for row in range(begin, end):
            first, second = row * width, row // each * width
            if swapped:
                first, second = second, first
            place = row * width
            count = min(width, y.size - place)
            _emit_sum(
                tier, one, first, two, second, y, place, count,
                floats[0], floats[1], floats[2], floats[3], floats[4],
            )  # fmt: skip

    return add


@cache
def _multiplier(tier: int) -> Any:
    """Return the function that multiplies rows, for an instruction set."""
    if INSTRUCTION_SETS[tier].width == 0:
        return _multiply

    @jit
    def multiply(
        a: NDArray[np.uint8],
        b: NDArray[np.uint8],
        width: int,
        each: int,
        begin: int,
        end: int,
        multiplier: np.float32,
        numbers: NDArray[np.int32],
        y: NDArray[np.uint8],
    ) -> None:
        lowest, highest = np.float32(numbers[3] - numbers[2]), np.float32(numbers[4] - numbers[2])
        for row in range(begin, end):
            place = row * width
            count = min(width, y.size - place)
            _emit_product(
                tier, a, place, b, row // each * width, y, place, count,
                multiplier, numbers[0], numbers[1], numbers[2], lowest, highest,
            )  # fmt: skip

    return multiply


def _pairs(e: Emitter, a: Any, b: Any, y: Any, count: Any, compute: Callable[[Value, Value], Value]) -> None:
    """Emit ``y = compute(a, b)``, int32 lanes all 0..255, from int32 lanes of activations."""
    lanes = e.lanes(i32)

    def computed(k: Any, some: Any = None) -> Value:
        one, two = (
            e.load(operand + k, i8, lanes) if some is None else e.load_first(operand + k, some, i8, lanes)
            for operand in (a, b)
        )
        return compute(one.unsigned(i32), two.unsigned(i32))

    most = count - (count & (4 * lanes - 1))
    whole = count - (count & (lanes - 1))
    for k in e.range(0, most, 4 * lanes):
        e.store(y + k, e.packed([computed(k + i * lanes) for i in range(4)]))
    for k in e.range(most, whole, lanes):
        e.store(y + k, computed(k).signed(i8))
    with e.when(whole < count):
        e.store_first(y + whole, computed(whole, count - whole).signed(i8), count - whole)


@emitted
def _emit_sum(
    e: Emitter, a: Any, a_begin: Any, b: Any, b_begin: Any, y: Any, y_begin: Any, count: Any,
    first: Any, second: Any, shift: Any, lowest: Any, highest: Any,
) -> None:  # fmt: skip
    first, second, shift, low, high = (e.filled(n, f32) for n in (first, second, shift, lowest, highest))

    def compute(one: Value, two: Value) -> Value:
        value = e.fused(first, one.signed(f32), e.fused(second, two.signed(f32), shift))
        return e.whole(e.smaller(e.larger(value, low), high))

    _pairs(e, a + a_begin, b + b_begin, y + y_begin, count, compute)


@emitted
def _emit_product(
    e: Emitter, a: Any, a_begin: Any, b: Any, b_begin: Any, y: Any, y_begin: Any, count: Any,
    multiplier: Any, a_zero: Any, b_zero: Any, y_zero: Any, lowest: Any, highest: Any,
) -> None:  # fmt: skip
    factor, low, high = (e.filled(number, f32) for number in (multiplier, lowest, highest))
    zeros = [e.filled(e.number(zero, i32), i32) for zero in (a_zero, b_zero, y_zero)]

    def compute(one: Value, two: Value) -> Value:
        # differences of bytes multiply exactly in float32
        value = (one - zeros[0]).signed(f32) * (two - zeros[1]).signed(f32) * factor
        return e.whole(e.smaller(e.larger(value, low), high)) + zeros[2]

    _pairs(e, a + a_begin, b + b_begin, y + y_begin, count, compute)


@jit
def _add(
    a: NDArray[np.uint8],
    b: NDArray[np.uint8],
    width: int,
    each: int,
    begin: int,
    end: int,
    floats: NDArray[np.float32],
    swapped: bool,
    y: NDArray[np.uint8],
) -> None:
    for row in range(begin, end):
        first, second = row * width, row // each * width
        for c in range(min(width, y.size - first)):
            one, two = a[first + c], b[second + c]
            if swapped:
                one, two = two, one
            # in float64 products of two float32 are exact: each sum rounds once, as a fused one does
            value = np.float32(np.float64(floats[1]) * two + np.float64(floats[2]))
            value = np.float32(np.float64(floats[0]) * one + np.float64(value))
            value = min(max(value, floats[3]), floats[4])
            y[first + c] = np.uint8(np.int32((value + ROUND) - ROUND))


@jit
def _multiply(
    a: NDArray[np.uint8],
    b: NDArray[np.uint8],
    width: int,
    each: int,
    begin: int,
    end: int,
    multiplier: np.float32,
    numbers: NDArray[np.int32],
    y: NDArray[np.uint8],
) -> None:
    lowest, highest = np.float32(numbers[3] - numbers[2]), np.float32(numbers[4] - numbers[2])
    for row in range(begin, end):
        first, second = row * width, row // each * width
        for c in range(min(width, y.size - first)):
            product = (np.int32(a[first + c]) - numbers[0]) * (np.int32(b[second + c]) - numbers[1])
            value = np.float32(np.int32(product)) * multiplier
            value = min(max(value, lowest), highest)
            y[first + c] = np.uint8(np.int32((value + ROUND) - ROUND) + numbers[2])
