"""Poolings of uint8 images NHWC, rounded as onnxruntime rounds.

    maximum:         y  = max over the window of x;  padding is never the largest
    average:         y  = saturate(round_half_even(sum of (x - x_zero) * x_scale / count / y_scale + y_zero))
    global average:  yq = y_zero + round_half_even((sum of x - count * x_zero) * multiplier)
                     with multiplier = x_scale / (y_scale * count)

The second is QLinearAveragePool, which works in float32 from window tap to window tap; the third is
QLinearGlobalAveragePool, which sums integers (onnxruntime, contrib_ops/cpu/quantization/qlinear_pool.cc and
core/mlas/lib/qlgavgpool.cpp). The innermost loops run over channels, which lie next to each other, and become
vectors.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.epilogue import ROUND
from fgq.kernels.simd.emit import Emitter, Value, emitted, i8
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.threads import spread
from fgq.kernels.window import Window


class MaxPool:
    """The largest activation of each window.

    Parameters
    ----------
    x, y : ndarray of uint8, shapes (B, H, W, C) and (B, OH, OW, C)
        What is read and written by each call, C order.
    kernel : tuple of int
        Rows and columns of the window.
    window : Window
        Strides, padding, dilations.
    threads : int
        How many threads to use.
    """

    def __init__(
        self,
        x: NDArray[np.uint8],
        y: NDArray[np.uint8],
        kernel: tuple[int, int],
        window: Window,
        threads: int = 1,
    ) -> None:
        self._x, self._y = x.reshape(-1), y.reshape(-1)
        self._numbers = _numbers(x.shape, y.shape, kernel, window)
        self._rows, self._threads = y.shape[0] * y.shape[1], threads

    def __call__(self) -> None:
        """Pool what `x` now holds."""
        spread(self._rows, self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        _max_pooler(index_of(available()[0]))(self._x, self._numbers, begin, end, self._y)


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
        self._x, self._y = x.reshape(-1), y.reshape(-1)
        self._numbers = _numbers(x.shape, y.shape, kernel, window, count_padding, y_zero, lowest, highest)
        self._zero, self._scales = np.float32(x_zero), np.array([x_scale, y_scale], np.float32)
        self._rows, self._threads = y.shape[0] * y.shape[1], threads
        self._sums = np.empty((threads, x.shape[3]), np.float32)

    def __call__(self) -> None:
        """Pool what `x` now holds."""
        spread(self._rows, self._threads, self._work)

    def _work(self, thread: int, begin: int, end: int) -> None:
        _average_pool(
            self._x, self._numbers, begin, end, self._zero, self._scales, self._sums[thread], self._y
        )


class GlobalAveragePool:
    """The mean of each channel of an image.

    Parameters
    ----------
    x, y : ndarray of uint8, shapes (B, H, W, C) and (B, 1, 1, C)
        What is read and written by each call, C order.
    x_scale, x_zero, y_scale, y_zero, lowest, highest, threads : as for :class:`AveragePool`
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
        images, height, width, channels = x.shape
        pixels = height * width
        self._x, self._y = x.reshape(images, -1), y.reshape(images, -1)
        self._multiplier = np.float32(x_scale) / (np.float32(y_scale) * np.float32(pixels))
        self._numbers = np.array([pixels, x_zero, y_zero, lowest, highest], np.int64)
        self._sums = np.empty((threads, channels), np.int32)
        self._images, self._threads = images, threads

    def __call__(self) -> None:
        """Pool what `x` now holds."""
        spread(self._images, self._threads, self._work)

    def _work(self, thread: int, begin: int, end: int) -> None:
        _global_average_pool(
            self._x, self._numbers, begin, end, self._multiplier, self._sums[thread], self._y
        )


def _numbers(
    x: tuple[int, ...], y: tuple[int, ...], kernel: tuple[int, int], window: Window, *others: int
) -> NDArray[np.int64]:
    return np.array(
        [*x[1:], *y[1:3], *kernel, *window.strides, *window.pads, *window.dilations, *others], np.int64
    )


@cache
def _max_pooler(tier: int) -> Any:
    """Return the function that pools output rows `begin` to `end` of all images, for an instruction set."""
    wide = INSTRUCTION_SETS[tier].width > 0

    @jit
    def pool(
        x: NDArray[np.uint8], numbers: NDArray[np.int64], begin: int, end: int, y: NDArray[np.uint8]
    ) -> None:
        height, width, channels, oh, ow, kh, kw = numbers[:7]
        below, aside = numbers[13] * width * channels, numbers[14] * channels
        for row in range(begin, end):
            image, down = divmod(row, oh)
            top = down * numbers[7] - numbers[9]
            # the taps that lie inside the image
            first_i = max(-(top // numbers[13]), 0) if top < 0 else 0
            last_i = min((height - 1 - top) // numbers[13] + 1, kh)
            for right in range(ow):
                left, place = right * numbers[8] - numbers[10], (row * ow + right) * channels
                first_j = max(-(left // numbers[14]), 0) if left < 0 else 0
                last_j = min((width - 1 - left) // numbers[14] + 1, kw)
                line, column = top + first_i * numbers[13], left + first_j * numbers[14]
                source = ((image * height + line) * width + column) * channels
                rows, columns = max(last_i - first_i, 0), max(last_j - first_j, 0)
                if wide:
                    _emit_largest(tier, x, source, below, aside, rows, columns, y, place, channels)
                else:
                    for c in range(channels):
                        largest = np.uint8(0)
                        for i in range(rows):
                            for j in range(columns):
                                largest = max(largest, x[source + i * below + j * aside + c])
                        y[place + c] = largest

    return pool


@emitted
def _emit_largest(
    e: Emitter, x: Any, source: Any, below: Any, aside: Any, rows: Any, columns: Any,
    y: Any, place: Any, channels: Any,
) -> None:  # fmt: skip
    lanes = e.lanes(i8)
    signs = e.filled(e.number(-128, i8), i8)  # flips the order of unsigned bytes into that of signed ones

    def largest(c: Any, count: Any) -> Value:
        best = e.variable(signs)
        for i in e.range(0, rows):
            for j in e.range(0, columns):
                tap = x + (source + i * below + j * aside + c)
                value = e.load(tap, i8) if count is None else e.load_first(tap, count, i8)
                best.value = e.larger(best.value, value ^ signs)
        found: Value = best.value ^ signs
        return found

    whole = channels - channels % lanes
    for c in e.range(0, whole, lanes):
        e.store(y + (place + c), largest(c, None))
    with e.when(whole < channels):
        e.store_first(y + (place + whole), largest(whole, channels - whole), channels - whole)


@jit
def _average_pool(
    x: NDArray[np.uint8],
    numbers: NDArray[np.int64],
    begin: int,
    end: int,
    x_zero: np.float32,
    scales: NDArray[np.float32],
    sums: NDArray[np.float32],
    y: NDArray[np.uint8],
) -> None:
    height, width, channels, oh, ow, kh, kw = numbers[:7]
    zero, lowest, highest = np.float32(numbers[16]), np.float32(numbers[17]), np.float32(numbers[18])
    for row in range(begin, end):
        image, down = divmod(row, oh)
        top = down * numbers[7] - numbers[9]
        for right in range(ow):
            left, place = right * numbers[8] - numbers[10], (row * ow + right) * channels
            sums[:] = 0
            taps = 0
            for i in range(kh):
                line = top + i * numbers[13]
                if line < 0 or line >= height:
                    continue
                for j in range(kw):
                    column = left + j * numbers[14]
                    if column < 0 or column >= width:
                        continue
                    taps += 1
                    source = ((image * height + line) * width + column) * channels
                    for c in range(channels):
                        sums[c] += (np.float32(x[source + c]) - x_zero) * scales[0]
            if numbers[15]:
                # what lies beyond the padding, with ceil_mode, never counts
                below = min(top + kh * numbers[13], height + numbers[11]) - top
                aside = min(left + kw * numbers[14], width + numbers[12]) - left
                taps = -(-below // numbers[13]) * -(-aside // numbers[14])
            count = np.float32(max(taps, 1))
            for c in range(channels):
                value = np.rint(sums[c] / count / scales[1] + zero)
                y[place + c] = np.uint8(min(max(value, lowest), highest))


@jit
def _global_average_pool(
    x: NDArray[np.uint8],
    numbers: NDArray[np.int64],
    begin: int,
    end: int,
    multiplier: np.float32,
    sums: NDArray[np.int32],
    y: NDArray[np.uint8],
) -> None:
    pixels, channels = numbers[0], sums.size
    shift, zero = np.int32(pixels * numbers[1]), np.int32(numbers[2])
    lowest, highest = np.float32(numbers[3] - numbers[2]), np.float32(numbers[4] - numbers[2])
    for image in range(begin, end):
        sums[:] = 0
        for pixel in range(pixels):
            for c in range(channels):
                sums[c] += x[image, pixel * channels + c]
        for c in range(channels):
            value = np.float32(np.int32(sums[c] - shift)) * multiplier
            value = min(max(value, lowest), highest)
            y[image, c] = np.uint8(np.int32((value + ROUND) - ROUND) + zero)
