"""Poolings of uint8 images NHWC, rounded as onnxruntime rounds.

    maximum:  y  = max over the window of x;  padding is never the largest
    average:  yq = clip(round_half_even(sum of (x - x_zero) * x_scale / count / y_scale + y_zero))

The second is QLinearAveragePool, in float32 from the first tap of the window, row by row, to the last
(onnxruntime, contrib_ops/cpu/quantization/qlinear_pool.cc). Vectors run along the channels, which lie next to
each other.
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
from fgq.kernels.simd.emit import Emitter, Value, emitted, f32, i8, i32
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.simd.rows import each_vector, load, store
from fgq.kernels.threads import spread
from fgq.kernels.window import Window


class _Geometry(IntEnum):
    """What each number of a pooling's geometry is."""

    HEIGHT = 0
    WIDTH = 1
    CHANNELS = 2
    OUT_HEIGHT = 3
    OUT_WIDTH = 4
    ROWS = 5
    """Of the window, as the next one."""
    COLUMNS = 6
    STRIDE_DOWN = 7
    STRIDE_RIGHT = 8
    PAD_TOP = 9
    PAD_LEFT = 10
    PAD_BOTTOM = 11
    PAD_RIGHT = 12
    DILATION_DOWN = 13
    DILATION_RIGHT = 14
    COUNT_PADDING = 15
    """Whether an average counts taps on the padding."""


class _Mean(IntEnum):
    """What each float32 of an average is."""

    X_ZERO = 0
    X_SCALE = 1
    Y_SCALE = 2
    Y_ZERO = 3
    LOWEST = 4
    HIGHEST = 5


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
        self._numbers = _numbers(x, y, kernel, window, count_padding=count_padding)
        self._x, self._y = x.reshape(-1), y.reshape(-1)
        numbers = {
            _Mean.X_ZERO: x_zero, _Mean.X_SCALE: x_scale, _Mean.Y_SCALE: y_scale, _Mean.Y_ZERO: y_zero,
            _Mean.LOWEST: lowest, _Mean.HIGHEST: highest,
        }  # fmt: skip
        self._floats = np.array([numbers[field] for field in _Mean], np.float32)
        self._rows, self._threads = y.shape[0] * y.shape[1], threads
        self._pool = _average_pooler(index_of(available()[0]))

    def __call__(self) -> None:
        """Pool what `x` now holds."""
        spread(self._rows, self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        self._pool(self._x, self._numbers, self._floats, begin, end, self._y)


def _image(array: NDArray[np.uint8]) -> tuple[int, ...]:
    if array.ndim != 4:
        raise KernelError(f"pooling: found an array {list(array.shape)}, wanted images [B, H, W, C]")
    return array.shape


def _numbers(
    x: NDArray[np.uint8],
    y: NDArray[np.uint8],
    kernel: tuple[int, int],
    window: Window,
    *,
    count_padding: bool = False,
) -> NDArray[np.int64]:
    """Check the images, and return what compiled code is told of them, in the order of `_Geometry`."""
    images, height, width, channels = _image(x)
    _, out_height, out_width, _ = _image(y)
    check("pooling", x=(x, x.shape, np.uint8), y=(y, (images, out_height, out_width, channels), np.uint8))
    top, left, bottom, right = window.pads
    numbers = {
        _Geometry.HEIGHT: height, _Geometry.WIDTH: width, _Geometry.CHANNELS: channels,
        _Geometry.OUT_HEIGHT: out_height, _Geometry.OUT_WIDTH: out_width,
        _Geometry.ROWS: kernel[0], _Geometry.COLUMNS: kernel[1],
        _Geometry.STRIDE_DOWN: window.strides[0], _Geometry.STRIDE_RIGHT: window.strides[1],
        _Geometry.PAD_TOP: top, _Geometry.PAD_LEFT: left,
        _Geometry.PAD_BOTTOM: bottom, _Geometry.PAD_RIGHT: right,
        _Geometry.DILATION_DOWN: window.dilations[0], _Geometry.DILATION_RIGHT: window.dilations[1],
        _Geometry.COUNT_PADDING: count_padding,
    }  # fmt: skip
    return np.array([numbers[field] for field in _Geometry], np.int64)


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
    height, width, channels = numbers[_Geometry.HEIGHT], numbers[_Geometry.WIDTH], numbers[_Geometry.CHANNELS]
    dilation_down, dilation_right = numbers[_Geometry.DILATION_DOWN], numbers[_Geometry.DILATION_RIGHT]
    kh, kw = numbers[_Geometry.ROWS], numbers[_Geometry.COLUMNS]
    image, down = divmod(row, numbers[_Geometry.OUT_HEIGHT])
    top = down * numbers[_Geometry.STRIDE_DOWN] - numbers[_Geometry.PAD_TOP]
    left = right * numbers[_Geometry.STRIDE_RIGHT] - numbers[_Geometry.PAD_LEFT]
    first_i, last_i = _inside(top, kh, dilation_down, height)
    first_j, last_j = _inside(left, kw, dilation_right, width)
    line, column = top + first_i * dilation_down, left + first_j * dilation_right
    _, below = _inside(top, kh, dilation_down, height + numbers[_Geometry.PAD_BOTTOM])
    _, aside = _inside(left, kw, dilation_right, width + numbers[_Geometry.PAD_RIGHT])
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
        channels, ow = numbers[_Geometry.CHANNELS], numbers[_Geometry.OUT_WIDTH]
        below = numbers[_Geometry.DILATION_DOWN] * numbers[_Geometry.WIDTH] * channels
        aside = numbers[_Geometry.DILATION_RIGHT] * channels
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
        channels, ow = numbers[_Geometry.CHANNELS], numbers[_Geometry.OUT_WIDTH]
        below = numbers[_Geometry.DILATION_DOWN] * numbers[_Geometry.WIDTH] * channels
        aside = numbers[_Geometry.DILATION_RIGHT] * channels
        for row in range(begin, end):
            for right in range(ow):
                source, rows, columns, padded = _taps(numbers, row, right)
                place = (row * ow + right) * channels
                count = np.float32(padded if numbers[_Geometry.COUNT_PADDING] else max(rows * columns, 1))
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
                            total += (tap - floats[_Mean.X_ZERO]) * floats[_Mean.X_SCALE]
                    value = np.rint(total / count / floats[_Mean.Y_SCALE] + floats[_Mean.Y_ZERO])
                    value = value if value > floats[_Mean.LOWEST] else floats[_Mean.LOWEST]
                    y[place + c] = np.uint8(value if value < floats[_Mean.HIGHEST] else floats[_Mean.HIGHEST])

    return pool


@emitted
def _emit_mean(
    e: Emitter, x: Any, source: Any, below: Any, aside: Any, rows: Any, columns: Any, divisor: Any,
    floats: Any, y: Any, place: Any, channels: Any,
) -> None:  # fmt: skip
    lanes = e.lanes(f32)
    numbers = {field: e.load_spread(floats + 4 * field, f32) for field in _Mean}
    x_zero, x_scale, y_scale = numbers[_Mean.X_ZERO], numbers[_Mean.X_SCALE], numbers[_Mean.Y_SCALE]
    y_zero, low, high = numbers[_Mean.Y_ZERO], numbers[_Mean.LOWEST], numbers[_Mean.HIGHEST]
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
