"""Global average pooling of uint8 images NHWC, rounded as onnxruntime rounds.

    yq = y_zero + round_half_even(clip((sum of x - count * x_zero) * multiplier))
    with multiplier = x_scale / (y_scale * count)

This is QLinearGlobalAveragePool, which sums integers (onnxruntime, core/mlas/lib/qlgavgpool.cpp). Vectors run
along the channels, which lie next to each other.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.boundary import check, check_range
from fgq.kernels.simd.emit import Emitter, Value, emitted, f32, i8, i16, i32
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.simd.rows import each_vector, load, store
from fgq.kernels.threads import spread

_CHANNELS = 256
"""Channels of an image that a thread takes at a time."""

_BYTES = 256
"""So many bytes add up to an int16, read without sign."""


class _Integer(IntEnum):
    """What each integer of a global average is."""

    PIXELS = 0
    CHANNELS = 1
    SHIFT = 2
    """What is taken away from a sum: the zero points of all pixels."""
    ZERO = 3
    """Zero point of the result."""


class _Float(IntEnum):
    """What each float32 of a global average is."""

    MULTIPLIER = 0
    LOWEST = 1
    """Ends of the range, seen from the zero point."""
    HIGHEST = 2


class GlobalAveragePool:
    """The mean of each channel of an image.

    Parameters
    ----------
    x, y : ndarray of uint8, shapes (B, H, W, C) and (B, 1, 1, C)
        What is read and written by each call, C order.
    x_scale, x_zero, y_scale, y_zero : float, int
        Quantizers before and behind.
    lowest, highest : int
        Range of the result.
    threads : int
        How many threads to use.

    Raises
    ------
    KernelError
        If images or channels are not as many before and behind, a number is out of its range, or an image
        has more than 2**23 pixels.
    """

    def __init__(
        self,
        x: NDArray[np.uint8],
        y: NDArray[np.uint8],
        *,
        x_scale: float,
        x_zero: int,
        y_scale: float,
        y_zero: int,
        lowest: int = 0,
        highest: int = 255,
        threads: int = 1,
    ) -> None:
        if x.ndim != 4:
            raise KernelError(f"global average: found an array {list(x.shape)}, wanted images [B, H, W, C]")
        images, height, width, channels = x.shape
        check(
            "global average", x=(x, x.shape, np.uint8), y=(y, (images, 1, 1, channels), np.uint8)
        )  # fmt: skip
        pixels = height * width
        if y.size != images * channels or not 0 < pixels <= 1 << 23:
            raise KernelError(
                f"global average: found images {list(x.shape)} for {y.size} means, wanted 1 to 2**23 pixels "
                "and as many means as channels"
            )
        check_range(lowest, highest, y_zero)
        self._x, self._y = x.reshape(-1), y.reshape(-1)
        multiplier = np.float32(x_scale) / (np.float32(y_scale) * np.float32(pixels))
        floats = {
            _Float.MULTIPLIER: multiplier, _Float.LOWEST: lowest - y_zero,
            _Float.HIGHEST: highest - y_zero,
        }  # fmt: skip
        integers = {
            _Integer.PIXELS: pixels, _Integer.CHANNELS: channels,
            _Integer.SHIFT: pixels * x_zero, _Integer.ZERO: y_zero,
        }  # fmt: skip
        self._floats = np.array([floats[field] for field in _Float], np.float32)
        self._numbers = np.array([integers[field] for field in _Integer], np.int64)
        self._blocks, self._threads = -(-channels // _CHANNELS), threads
        self._units = images * self._blocks
        self._pool = _pooler(index_of(available()[0]))

    def __call__(self) -> None:
        """Pool what `x` now holds."""
        spread(self._units, self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        self._pool(self._x, self._numbers, self._floats, self._blocks, begin, end, self._y)


@cache
def _pooler(tier: int) -> Any:
    """Return the function that does units `begin` to `end`, blocks of channels, for an instruction set."""
    wide = INSTRUCTION_SETS[tier].width > 0

    @jit
    def pool(
        x: NDArray[np.uint8],
        numbers: NDArray[np.int64],
        floats: NDArray[np.float32],
        blocks: int,
        begin: int,
        end: int,
        y: NDArray[np.uint8],
    ) -> None:
        pixels, channels = numbers[_Integer.PIXELS], numbers[_Integer.CHANNELS]
        shift, zero = numbers[_Integer.SHIFT], numbers[_Integer.ZERO]
        low, high = floats[_Float.LOWEST], floats[_Float.HIGHEST]
        for unit in range(begin, end):
            image, block = divmod(unit, blocks)
            first = block * _CHANNELS
            count = min(_CHANNELS, channels - first)
            source, place = image * pixels * channels + first, image * channels + first
            if wide:
                _emit_mean(tier, x, source, pixels, channels, count, shift, zero, floats, y, place)
                continue
            for c in range(count):
                total = np.int32(-shift)
                for pixel in range(pixels):
                    total += np.int32(x[source + pixel * channels + c])
                value = np.float32(np.int32(total)) * floats[_Float.MULTIPLIER]
                value = value if value > low else low
                y[place + c] = np.uint8(np.rint(value if value < high else high) + zero)

    return pool


@emitted
def _emit_mean(
    e: Emitter, x: Any, source: Any, pixels: Any, channels: Any, count: Any, shift: Any, zero: Any,
    floats: Any, y: Any, place: Any,
) -> None:  # fmt: skip
    """Sum the bytes of a channel as int16, so many as fit, and these as int32."""
    lanes = e.lanes(i16)
    numbers = {field: e.load_spread(floats + 4 * field, f32) for field in _Float}
    factor = numbers[_Float.MULTIPLIER]
    low, high = numbers[_Float.LOWEST], numbers[_Float.HIGHEST]
    shifts, zeros = (e.filled(e.number(n, i32), i32) for n in (shift, zero))

    def finish(total: Value) -> Value:
        value = (total - shifts).signed(f32) * factor
        return (e.whole(e.smaller(e.larger(value, low), high)) + zeros).signed(i8)

    def do(c: Any, vectors: int, some: Any) -> None:
        totals = [e.variable(e.zeros(i32)) for _ in range(2 * vectors)]
        for first in e.range(0, pixels, _BYTES):
            rest = pixels - first
            until = first + e.choose(rest < _BYTES, rest, _BYTES)
            sums = [e.variable(e.zeros(i16)) for _ in range(vectors)]
            for pixel in e.range(first, until):
                start = x + (source + pixel * channels + c)
                for v, total in enumerate(sums):
                    total += load(e, start + v * lanes, some, i8, lanes).unsigned(i16)
            for v, total in enumerate(sums):
                for half in range(2):
                    totals[2 * v + half] += total.value.part(half, 2).unsigned(i32)
        means = [finish(total.value) for total in totals]
        for v in range(vectors):
            mean = means[2 * v].joined(means[2 * v + 1])
            store(e, y + (place + c + v * lanes), mean, some)

    each_vector(e, count, lanes, do)
