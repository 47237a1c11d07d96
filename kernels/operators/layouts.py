"""Between real values in the order NCHW and activations in the order NHWC.

::

    quantize     xq = clip(round_half_even(x / scale) + zero_point)      float32 -> uint8   see rounding.py
    dequantize   x  = (xq - zero_point) * scale                          uint8 -> float32
    transpose    [B, R, K] -> [B, K, R]                                  uint8

An image is a matrix [C, H * W] in one order and its transpose in the other. A stretch of pixels is taken at a
time: of real values to quantize first, of activations to transpose first, so that only bytes are transposed
and what lies in between stays in the nearest cache. Bytes are transposed in squares of 16, by four rounds of
weaving row i with row i + 8, in as many squares side by side as fill a register; three channels, those of
colours, by a permutation of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.operators.rounding import rounder, rounding_tier
from fgq.kernels.products.driver import held
from fgq.kernels.products.epilogue import Requantize
from fgq.kernels.simd.emit import Emitter, Value, emitted, f32, i8, i32
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.simd.rows import each_vector, load, store
from fgq.kernels.threads import spread

_PIECE = 1 << 14
"""Elements that a thread takes at a time, roughly; as bytes they stay in the nearest cache."""

_SQUARE = 16


class QuantizeLinear:
    """Real values to activations, again and again (ONNX QuantizeLinear, and a Clip behind it).

    Parameters
    ----------
    scale : float
        Real value of one step; read as a float32.
    zero_point : int
        The activation that means 0.0, 0..255.
    lowest, highest : int
        Range of the activations within 0..255.
    image : bool
        Whether to bring images from NCHW into NHWC.
    threads : int
        How many threads to use.

    Raises
    ------
    KernelError
        If a number is out of its range.
    """

    def __init__(
        self,
        scale: float,
        zero_point: int,
        lowest: int = 0,
        highest: int = 255,
        *,
        image: bool = False,
        threads: int = 1,
    ) -> None:
        Requantize(np.float32(scale), zero_point, lowest, highest)  # checks the range
        self._scale, self._numbers = np.float32(scale), np.array([zero_point, lowest, highest], np.int64)
        self._image, self._threads = image, threads
        self._run = (_image_quantizer if image else rounder)(rounding_tier(scale))

    def __call__(self, x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        """Quantize.

        Parameters
        ----------
        x : ndarray of float32
            Any shape; (B, C, H, W) for images. NaN becomes the lowest activation.
        out : ndarray of uint8
            Written, C order: the shape of `x`, or (B, H, W, C) for images.

        Raises
        ------
        KernelError
            If the arrays do not fit.
        """
        _check(x, np.float32, out, np.uint8, _last if self._image else None)
        flat, result = np.ascontiguousarray(x).reshape(-1), out.reshape(-1)
        scale, numbers, run = self._scale, self._numbers, self._run
        if not self._image:
            _in_pieces(flat, self._threads, lambda *rows: run(*rows, scale, numbers, result, rows[1], 0))
            return
        cut, units = _cut(x.shape[0], x.shape[1], x.shape[2] * x.shape[3])
        scratch = held.borrow(self._threads, int(cut[1] * cut[3]))

        def work(thread: int, begin: int, end: int) -> None:
            run(flat, cut, begin, end, scale, numbers, scratch[thread], result)

        spread(units, self._threads, work)


class DequantizeLinear:
    """Activations to real values, again and again (ONNX DequantizeLinear).

    Parameters
    ----------
    scale, zero_point, threads : as for :class:`QuantizeLinear`
    image : bool
        Whether to bring images from NHWC into NCHW.

    Raises
    ------
    KernelError
        If a number is out of its range.
    """

    def __init__(self, scale: float, zero_point: int, *, image: bool = False, threads: int = 1) -> None:
        Requantize(np.float32(scale), zero_point)  # checks the range
        self._scale, self._zero = np.float32(scale), np.float32(zero_point)
        self._image, self._threads = image, threads
        self._run = (_image_dequantizer if image else _dequantizer)(index_of(available()[0]))

    def __call__(self, x: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        """Dequantize.

        Parameters
        ----------
        x : ndarray of uint8
            Any shape; (B, H, W, C) for images.
        out : ndarray of float32
            Written, C order: the shape of `x`, or (B, C, H, W) for images.

        Raises
        ------
        KernelError
            If the arrays do not fit.
        """
        _check(x, np.uint8, out, np.float32, _first if self._image else None)
        flat, result = np.ascontiguousarray(x).reshape(-1), out.reshape(-1)
        scale, zero, run = self._scale, self._zero, self._run
        if not self._image:
            _in_pieces(flat, self._threads, lambda *rows: run(*rows, scale, zero, result, rows[1], 0))
            return
        cut, units = _cut(x.shape[0], x.shape[3], x.shape[1] * x.shape[2])
        scratch = held.borrow(self._threads, int(cut[1] * cut[3]))

        def work(thread: int, begin: int, end: int) -> None:
            run(flat, cut, begin, end, scale, zero, scratch[thread], result)

        spread(units, self._threads, work)


class Transpose:
    """Bytes of matrices, transposed: NCHW to NHWC as [B, C, H * W], and back as [B, H * W, C].

    Parameters
    ----------
    x, y : ndarray of uint8, shapes (B, R, K) and (B, K, R)
        What is read and written by each call, C order.
    threads : int
        How many threads to use.

    Raises
    ------
    KernelError
        If the shapes do not fit.
    """

    def __init__(self, x: NDArray[np.uint8], y: NDArray[np.uint8], threads: int = 1) -> None:
        if x.ndim != 3 or (x.shape[0], x.shape[2], x.shape[1]) != y.shape:
            raise KernelError(
                f"transpose: found {list(x.shape)} for {list(y.shape)}, wanted [B, R, K] for [B, K, R]"
            )
        self._x, self._y, self._threads = x.reshape(-1), y.reshape(-1), threads
        images, rows, columns = x.shape
        self._down = rows > columns  # stretches are cut along the longer axis
        self._cut, self._units = _cut(images, min(rows, columns), max(rows, columns))
        self._run = _stretch_transposer(index_of(available()[0]))

    def __call__(self) -> None:
        """Transpose what `x` now holds."""
        spread(self._units, self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        self._run(self._x, self._cut, self._down, begin, end, self._y)


def _check(x: NDArray[Any], x_dtype: type, out: NDArray[Any], out_dtype: type, moved: Any) -> None:
    fits = x.dtype == x_dtype and out.dtype == out_dtype and (moved is None or x.ndim == 4)
    wanted = x.shape if moved is None or x.ndim != 4 else moved(x.shape)
    if not fits or out.shape != wanted:
        raise KernelError(
            f"layout: found {x.dtype}{list(x.shape)} for {out.dtype}{list(out.shape)}, wanted "
            f"{np.dtype(x_dtype)}{' of four axes' if moved else ''} for {np.dtype(out_dtype)}{list(wanted)}"
        )


def _last(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1])


def _first(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[-1], *shape[1:-1])


def _in_pieces(flat: NDArray[Any], threads: int, run: Callable[..., None]) -> None:
    """Call ``run(flat, place, 0, 1, count)`` for one row of all elements, or for pieces that threads take."""
    if threads == 1:
        run(flat, 0, 0, 1, flat.size)
        return

    def work(_thread: int, begin: int, end: int) -> None:
        run(flat, begin * _PIECE, 0, 1, min(end * _PIECE, flat.size) - begin * _PIECE)

    spread(-(-flat.size // _PIECE), threads, work)


@lru_cache(maxsize=256)
def _cut(images: int, channels: int, pixels: int) -> tuple[NDArray[np.int64], int]:
    """Return [images, channels, pixels, pixels of a stretch, stretches of an image] and all stretches."""
    stretch = min(max(_PIECE // max(channels, 1) & -64, 64), pixels)
    stretches = -(-pixels // max(stretch, 1))
    return np.array([images, channels, pixels, stretch, stretches], np.int64), images * stretches


@cache
def _dequantizer(tier: int) -> Any:
    """Return the function that dequantizes rows, for an instruction set.

    ``dequantize(x, x_place, x_pitch, rows, count, scale, zero, out, out_place, out_pitch)``, as
    :func:`fgq.kernels.operators.rounding.rounder` has it.
    """
    wide = INSTRUCTION_SETS[tier].width > 0

    @jit
    def dequantize(
        x: NDArray[np.uint8],
        x_place: int,
        x_pitch: int,
        rows: int,
        count: int,
        scale: np.float32,
        zero: np.float32,
        out: NDArray[np.float32],
        out_place: int,
        out_pitch: int,
    ) -> None:
        if wide:
            _emit_dequantize(
                tier, x, x_place, x_pitch, rows, count, scale, zero, out, out_place, out_pitch
            )  # fmt: skip
            return
        for row in range(rows):
            first, place = x_place + row * x_pitch, out_place + row * out_pitch
            for k in range(count):
                out[place + k] = (np.float32(x[first + k]) - zero) * scale

    return dequantize


@emitted
def _emit_dequantize(
    e: Emitter, x: Any, x_place: Any, x_pitch: Any, rows: Any, count: Any, scale: Any, zero: Any,
    out: Any, out_place: Any, out_pitch: Any,
) -> None:  # fmt: skip
    lanes = e.lanes(f32)
    steps, zeros = e.filled(scale, f32), e.filled(zero, f32)
    for row in e.range(0, rows):
        source, target = x + (x_place + row * x_pitch), out + (out_place + row * out_pitch) * 4

        def do(k: Any, vectors: int, some: Any) -> None:
            for at in [k + v * lanes for v in range(vectors)]:
                whole = load(e, source + at, some, i8, lanes).unsigned(i32).signed(f32)  # noqa: B023
                store(e, target + at * 4, (whole - zeros) * steps, some)  # noqa: B023

        each_vector(e, count, lanes, do)


@jit
def _stretch(cut: NDArray[np.int64], unit: int) -> tuple[int, int, int]:
    """Return image, first pixel and number of pixels of a stretch."""
    image, part = divmod(unit, cut[4])
    first = part * cut[3]
    return image, first, min(cut[3], cut[2] - first)


@cache
def _image_quantizer(tier: int) -> Any:
    """Return the function that quantizes stretches `begin` to `end` of NCHW into NHWC."""
    quantize, transpose = rounder(tier), transposer(tier)

    @jit
    def run(
        x: NDArray[np.float32],
        cut: NDArray[np.int64],
        begin: int,
        end: int,
        scale: np.float32,
        numbers: NDArray[np.int64],
        scratch: NDArray[np.uint8],
        out: NDArray[np.uint8],
    ) -> None:
        channels, pixels, pitch = cut[1], cut[2], cut[3]
        for unit in range(begin, end):
            image, first, count = _stretch(cut, unit)
            start = image * channels * pixels + first
            quantize(x, start, pixels, channels, count, scale, numbers, scratch, np.int64(0), pitch)
            place = (image * pixels + first) * channels
            transpose(scratch, np.int64(0), pitch, channels, count, out, place, channels)

    return run


@cache
def _image_dequantizer(tier: int) -> Any:
    """Return the function that dequantizes stretches `begin` to `end` of NHWC into NCHW."""
    dequantize, transpose = _dequantizer(tier), transposer(tier)

    @jit
    def run(
        x: NDArray[np.uint8],
        cut: NDArray[np.int64],
        begin: int,
        end: int,
        scale: np.float32,
        zero: np.float32,
        scratch: NDArray[np.uint8],
        out: NDArray[np.float32],
    ) -> None:
        channels, pixels, pitch = cut[1], cut[2], cut[3]
        for unit in range(begin, end):
            image, first, count = _stretch(cut, unit)
            place = (image * pixels + first) * channels
            transpose(x, place, channels, count, channels, scratch, np.int64(0), pitch)
            start = image * channels * pixels + first
            dequantize(scratch, np.int64(0), pitch, channels, count, scale, zero, out, start, pixels)

    return run


@cache
def _stretch_transposer(tier: int) -> Any:
    """Return the function that transposes stretches `begin` to `end`, of rows (`down`) or of columns."""
    transpose = transposer(tier)

    @jit
    def run(
        x: NDArray[np.uint8], cut: NDArray[np.int64], down: bool, begin: int, end: int, y: NDArray[np.uint8]
    ) -> None:
        short, long = cut[1], cut[2]
        for unit in range(begin, end):
            image, first, count = _stretch(cut, unit)
            start, along, across = image * short * long, first, first * short
            if down:
                transpose(x, start + across, short, count, short, y, start + along, long)
            else:
                transpose(x, start + along, long, short, count, y, start + across, short)

    return run


@cache
def transposer(tier: int) -> Any:
    """Return the function that transposes a matrix of bytes, for an instruction set.

    ``transpose(x, x_place, x_pitch, rows, columns, y, y_place, y_pitch)`` does
    ``y[y_place + j * y_pitch + i] = x[x_place + i * x_pitch + j]``.
    """
    width = INSTRUCTION_SETS[tier].width

    @jit
    def transpose(
        x: NDArray[np.uint8],
        x_place: int,
        x_pitch: int,
        rows: int,
        columns: int,
        y: NDArray[np.uint8],
        y_place: int,
        y_pitch: int,
    ) -> None:
        # vectors leave the rows from `bottom` on, and the columns from `side` on
        bottom, side = 0, 0
        if width > 0:
            if rows == 3 and y_pitch == 3:
                bottom, side = 3, columns - columns % width
                _emit_three_rows(tier, x, x_place, x_pitch, side, y, y_place)
            elif columns == 3 and x_pitch == 3:
                bottom, side = rows - rows % width, 3
                _emit_three_columns(tier, x, x_place, bottom, y, y_place, y_pitch)
            elif rows >= _SQUARE and columns >= _SQUARE:
                bottom, side = rows - rows % _SQUARE, columns - columns % _SQUARE
                _emit_squares(tier, x, x_place, x_pitch, bottom, side, y, y_place, y_pitch)
        if side < columns:
            for i in range(bottom):
                for j in range(side, columns):
                    y[y_place + j * y_pitch + i] = x[x_place + i * x_pitch + j]
        for i in range(bottom, rows):
            for j in range(columns):
                y[y_place + j * y_pitch + i] = x[x_place + i * x_pitch + j]

    return transpose


@emitted
def _emit_squares(
    e: Emitter,
    x: Any,
    x_place: Any,
    x_pitch: Any,
    rows: Any,
    columns: Any,
    y: Any,
    y_place: Any,
    y_pitch: Any,
) -> None:
    """Transpose squares of 16, as many side by side as fill a register, then single ones."""
    x, y = x + x_place, y + y_place

    def column_block(j: Value, lanes: int) -> None:
        for i in e.range(0, rows, _SQUARE):
            start = x + (i * x_pitch + j)
            lines = [e.load(start + x_pitch * r, i8, lanes) for r in range(_SQUARE)]
            for _ in range(4):
                lines = [half for r in range(8) for half in _woven(lines[r], lines[r + 8])]
            for square in range(lanes // _SQUARE):
                for r, line in enumerate(lines):
                    column = j + (square * _SQUARE + r)
                    part = line if lanes == _SQUARE else line.part(square, lanes // _SQUARE)
                    e.store(y + (column * y_pitch + i), part)

    wide = e.lanes(i8)
    most = columns - columns % wide
    for j in e.range(0, most, wide):
        column_block(j, wide)
    for j in e.range(most, columns, _SQUARE):
        column_block(j, _SQUARE)


def _woven(one: Value, other: Value) -> tuple[Value, Value]:
    """Return the lower and the upper halves of every 16 bytes, those of two vectors in turns."""
    lanes = one.lanes
    low, high = (
        one.shuffled(
            [b + half + k // 2 + lanes * (k % 2) for b in range(0, lanes, 16) for k in range(16)], other
        )
        for half in (0, 8)
    )
    return low, high


@emitted
def _emit_three_rows(
    e: Emitter, x: Any, x_place: Any, x_pitch: Any, columns: Any, y: Any, y_place: Any
) -> None:
    lanes = e.lanes(i8)
    start, out = x + x_place, y + y_place
    for j in e.range(0, columns, lanes):
        three = [e.load(start + (x_pitch * r + j), i8) for r in range(3)]
        for part in range(3):
            places = [divmod(lanes * part + k, 3) for k in range(lanes)]
            e.store(out + (j * 3 + part * lanes), _picked(three, [row * lanes + k for k, row in places]))


@emitted
def _emit_three_columns(
    e: Emitter, x: Any, x_place: Any, rows: Any, y: Any, y_place: Any, y_pitch: Any
) -> None:
    lanes = e.lanes(i8)
    start, out = x + x_place, y + y_place
    for i in e.range(0, rows, lanes):
        three = [e.load(start + (i * 3 + lanes * part), i8) for part in range(3)]
        for column in range(3):
            e.store(out + (y_pitch * column + i), _picked(three, [3 * k + column for k in range(lanes)]))


def _picked(three: list[Value], lanes: list[int]) -> Value:
    """Pick lanes of three vectors by numbers that count on from one to the next, two vectors at a time."""
    one, two, last = three
    both = 2 * one.lanes
    picked = one.shuffled([lane if lane < both else 0 for lane in lanes], two)
    return picked.shuffled([k if lane < both else lane - one.lanes for k, lane in enumerate(lanes)], last)
