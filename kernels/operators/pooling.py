"""Poolings of uint8 images NHWC, rounded as onnxruntime rounds.

    maximum:         y  = max over the window of x;  padding is never the largest
    average:         yq = clip(round_half_even(sum of (x - x_zero) * x_scale / count / y_scale + y_zero))
    global average:  yq = y_zero + round_half_even(clip((sum of x - count * x_zero) * multiplier))
                     with multiplier = x_scale / (y_scale * count)

The second is QLinearAveragePool, in float32 from the first tap of the window, row by row, to the last; the
third is QLinearGlobalAveragePool, which sums integers (onnxruntime,
contrib_ops/cpu/quantization/qlinear_pool.cc and core/mlas/lib/qlgavgpool.cpp). Vectors run along the
channels, which lie next to each other.
"""

from __future__ import annotations

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
from fgq.kernels.window import Window

_CHANNELS = 256
"""Channels of an image that a thread takes at a time, for the global average."""

_BYTES = 256
"""So many bytes add up to an int16, read without sign."""


class MaxPool:
    """The largest activation of each window.

    Parameters
    ----------
    x, y : ndarray of uint8, shapes (B, H, W, C) and (B, OH, OW, C)
        What is read and written by each call, C order. The shape of `y` says where windows end: with ONNX's
        ceil_mode some reach beyond the padding.
    kernel : tuple of int
        Rows and columns of the window.
    window : Window
        Strides, padding, dilations.
    lowest, highest : int
        Range of the result.
    threads : int
        How many threads to use.

    Raises
    ------
    KernelError
        If an array does not fit, images or channels are not as many before and behind, or the range is not
        within 0..255.
    """

    def __init__(
        self,
        x: NDArray[np.uint8],
        y: NDArray[np.uint8],
        kernel: tuple[int, int],
        window: Window,
        *,
        lowest: int = 0,
        highest: int = 255,
        threads: int = 1,
    ) -> None:
        check_range(lowest, highest, lowest)
        self._numbers = _numbers(x, y, kernel, window)
        self._x, self._y = x.reshape(-1), y.reshape(-1)
        self._bounds = (np.uint8(lowest), np.uint8(highest)) if (lowest, highest) != (0, 255) else None
        self._rows, self._threads = y.shape[0] * y.shape[1], threads
        self._pool = _max_pooler(index_of(available()[0]))

    def __call__(self) -> None:
        """Pool what `x` now holds."""
        spread(self._rows, self._threads, self._work)
        if self._bounds is not None:
            np.clip(self._y, *self._bounds, out=self._y)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        self._pool(self._x, self._numbers, begin, end, self._y)


class AveragePool:
    """The mean of each window.

    Parameters
    ----------
    x, y, kernel, window, threads : as for :class:`MaxPool`
    x_scale, x_zero, y_scale, y_zero : float, int
        Quantizers before and behind.
    lowest, highest : int
        Range of the result.
    count_padding : bool
        Whether taps on the padding count (ONNX AveragePool, count_include_pad).

    Raises
    ------
    KernelError
        If images or channels are not as many before and behind, or a number is out of its range.
    """

    def __init__(
        self,
        x: NDArray[np.uint8],
        y: NDArray[np.uint8],
        kernel: tuple[int, int],
        window: Window,
        *,
        x_scale: float,
        x_zero: int,
        y_scale: float,
        y_zero: int,
        lowest: int = 0,
        highest: int = 255,
        count_padding: bool = False,
        threads: int = 1,
    ) -> None:
        check_range(lowest, highest, y_zero)
        self._numbers = _numbers(x, y, kernel, window, count_padding)
        self._x, self._y = x.reshape(-1), y.reshape(-1)
        self._floats = np.array([x_zero, x_scale, y_scale, y_zero, lowest, highest], np.float32)
        self._rows, self._threads = y.shape[0] * y.shape[1], threads
        self._pool = _average_pooler(index_of(available()[0]))

    def __call__(self) -> None:
        """Pool what `x` now holds."""
        spread(self._rows, self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        self._pool(self._x, self._numbers, self._floats, begin, end, self._y)


class GlobalAveragePool:
    """The mean of each channel of an image.

    Parameters
    ----------
    x, y : ndarray of uint8, shapes (B, H, W, C) and (B, 1, 1, C)
        What is read and written by each call, C order.
    x_scale, x_zero, y_scale, y_zero, lowest, highest, threads : as for :class:`AveragePool`

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
        images, height, width, channels = _image(x)
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
        self._floats = np.array([multiplier, lowest - y_zero, highest - y_zero], np.float32)
        self._numbers = np.array([pixels, channels, pixels * x_zero, y_zero], np.int64)
        self._blocks, self._threads = -(-channels // _CHANNELS), threads
        self._units = images * self._blocks
        self._pool = _global_average_pooler(index_of(available()[0]))

    def __call__(self) -> None:
        """Pool what `x` now holds."""
        spread(self._units, self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        self._pool(self._x, self._numbers, self._floats, self._blocks, begin, end, self._y)


def _image(array: NDArray[np.uint8]) -> tuple[int, ...]:
    if array.ndim != 4:
        raise KernelError(f"pooling: found an array {list(array.shape)}, wanted images [B, H, W, C]")
    return array.shape


def _numbers(
    x: NDArray[np.uint8], y: NDArray[np.uint8], kernel: tuple[int, int], window: Window, *others: int
) -> NDArray[np.int64]:
    images, *image, channels = _image(x)
    size = _image(y)[1:3]
    check("pooling", x=(x, x.shape, np.uint8), y=(y, (images, *size, channels), np.uint8))
    sizes = *image, channels, *size, *kernel
    return np.array([*sizes, *window.strides, *window.pads, *window.dilations, *others], np.int64)


@jit
def _inside(start: int, taps: int, dilation: int, size: int) -> tuple[int, int]:
    """Return the first tap of a window within an image, along one axis, and the one behind the last."""
    first = -(start // dilation) if start < 0 else 0
    last = min((size - 1 - start) // dilation + 1, taps)
    return first, max(last, first)


@jit
def _taps(numbers: NDArray[np.int64], row: int, right: int) -> tuple[int, int, int, int]:
    """Return where a window's taps inside the image begin, their rows and columns, and all that count.

    `row` is the output row, counted through all images. The last number is what an average divides by if
    padding counts; what lies beyond the padding, with ceil_mode, never does.
    """
    height, width, channels, oh, _, kh, kw = numbers[:7]
    image, down = divmod(row, oh)
    top, left = down * numbers[7] - numbers[9], right * numbers[8] - numbers[10]
    first_i, last_i = _inside(top, kh, numbers[13], height)
    first_j, last_j = _inside(left, kw, numbers[14], width)
    line, column = top + first_i * numbers[13], left + first_j * numbers[14]
    _, below = _inside(top, kh, numbers[13], height + numbers[11])
    _, aside = _inside(left, kw, numbers[14], width + numbers[12])
    source = ((image * height + line) * width + column) * channels
    return source, last_i - first_i, last_j - first_j, below * aside


@cache
def _max_pooler(tier: int) -> Any:
    """Return the function that pools output rows `begin` to `end` of all images, for an instruction set."""
    wide = INSTRUCTION_SETS[tier].width > 0

    @jit
    def pool(
        x: NDArray[np.uint8], numbers: NDArray[np.int64], begin: int, end: int, y: NDArray[np.uint8]
    ) -> None:
        channels, ow = numbers[2], numbers[4]
        below, aside = numbers[13] * numbers[1] * channels, numbers[14] * channels
        for row in range(begin, end):
            for right in range(ow):
                source, rows, columns, _ = _taps(numbers, row, right)
                place = (row * ow + right) * channels
                if wide:
                    _emit_largest(tier, x, source, below, aside, rows, columns, y, place, channels)
                    continue
                largest = y[place : place + channels]
                largest[:] = 0
                for i in range(rows):
                    for j in range(columns):
                        tap = source + i * below + j * aside
                        for c in range(channels):
                            largest[c] = max(largest[c], x[tap + c])

    return pool


@emitted
def _emit_largest(
    e: Emitter, x: Any, source: Any, below: Any, aside: Any, rows: Any, columns: Any,
    y: Any, place: Any, channels: Any,
) -> None:  # fmt: skip
    lanes = e.lanes(i8)
    larger = f"llvm.umax.v{lanes}i8"

    def do(c: Any, vectors: int, count: Any) -> None:
        best = [e.variable(e.zeros(i8)) for _ in range(vectors)]
        for i in e.range(0, rows):
            for j in e.range(0, columns):
                tap = x + (source + i * below + j * aside + c)
                for v, held in enumerate(best):
                    value = load(e, tap + v * lanes, count, i8)
                    held.value = e.call(larger, value.type, held.value, value)
        for v, held in enumerate(best):
            store(e, y + (place + c + v * lanes), held, count)

    each_vector(e, channels, lanes, do)


@cache
def _average_pooler(tier: int) -> Any:
    """Return the function that pools output rows `begin` to `end` of all images, for an instruction set."""
    wide = INSTRUCTION_SETS[tier].width > 0

    @jit
    def pool(
        x: NDArray[np.uint8],
        numbers: NDArray[np.int64],
        floats: NDArray[np.float32],
        begin: int,
        end: int,
        y: NDArray[np.uint8],
    ) -> None:
        channels, ow = numbers[2], numbers[4]
        below, aside = numbers[13] * numbers[1] * channels, numbers[14] * channels
        for row in range(begin, end):
            for right in range(ow):
                source, rows, columns, padded = _taps(numbers, row, right)
                place = (row * ow + right) * channels
                count = np.float32(padded if numbers[15] else max(rows * columns, 1))
                if wide:
                    _emit_mean(
                        tier, x, source, below, aside, rows, columns, count, floats, y, place, channels
                    )
                    continue
                for c in range(channels):
                    total = np.float32(0)
                    for i in range(rows):
                        for j in range(columns):
                            tap = np.float32(x[source + i * below + j * aside + c])
                            total += (tap - floats[0]) * floats[1]
                    value = np.rint(total / count / floats[2] + floats[3])
                    value = value if value > floats[4] else floats[4]
                    y[place + c] = np.uint8(value if value < floats[5] else floats[5])

    return pool


@emitted
def _emit_mean(
    e: Emitter, x: Any, source: Any, below: Any, aside: Any, rows: Any, columns: Any, divisor: Any,
    floats: Any, y: Any, place: Any, channels: Any,
) -> None:  # fmt: skip
    lanes = e.lanes(f32)
    x_zero, x_scale, y_scale, y_zero, low, high = (e.load_spread(floats + 4 * i, f32) for i in range(6))
    divisors = e.filled(divisor, f32)

    def real(pointer: Any, count: Any) -> Value:
        return (load(e, pointer, count, i8, lanes).unsigned(i32).signed(f32) - x_zero) * x_scale

    def do(c: Any, vectors: int, count: Any) -> None:
        totals = [e.variable(e.zeros(f32)) for _ in range(vectors)]
        for i in e.range(0, rows):
            for j in e.range(0, columns):
                tap = x + (source + i * below + j * aside + c)
                for v, total in enumerate(totals):
                    total += real(tap + v * lanes, count)
        means = [
            e.whole(e.smaller(e.larger(total.value / divisors / y_scale + y_zero, low), high)).signed(i8)
            for total in totals
        ]
        for v, mean in enumerate(means):
            store(e, y + (place + c + v * lanes), mean, count)

    each_vector(e, channels, lanes, do)


@cache
def _global_average_pooler(tier: int) -> Any:
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
        pixels, channels, shift, zero = numbers[0], numbers[1], numbers[2], numbers[3]
        for unit in range(begin, end):
            image, block = divmod(unit, blocks)
            first = block * _CHANNELS
            count = min(_CHANNELS, channels - first)
            source, place = image * pixels * channels + first, image * channels + first
            if wide:
                _emit_global_mean(tier, x, source, pixels, channels, count, shift, zero, floats, y, place)
                continue
            for c in range(count):
                total = np.int32(-shift)
                for pixel in range(pixels):
                    total += np.int32(x[source + pixel * channels + c])
                value = np.float32(np.int32(total)) * floats[0]
                value = value if value > floats[1] else floats[1]
                y[place + c] = np.uint8(np.rint(value if value < floats[2] else floats[2]) + zero)

    return pool


@emitted
def _emit_global_mean(
    e: Emitter, x: Any, source: Any, pixels: Any, channels: Any, count: Any, shift: Any, zero: Any,
    floats: Any, y: Any, place: Any,
) -> None:  # fmt: skip
    """Sum the bytes of a channel as int16, so many as fit, and these as int32."""
    lanes = e.lanes(i16)
    factor, low, high = (e.load_spread(floats + 4 * i, f32) for i in range(3))
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
