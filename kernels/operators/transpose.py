"""Matrices of bytes, transposed: images of activations from NCHW to NHWC and back.

An image is a matrix [C, H * W] in one order and its transpose in the other. It is cut along the longer axis
into stretches, which threads take one by one. Bytes are transposed in squares of 16, by four rounds of
weaving row i with row i + 8, in as many squares side by side as fill a register; three channels, those of
colours, by a permutation of their own.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.boundary import check
from fgq.kernels.simd.emit import Emitter, Value, emitted, i8
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.threads import spread

_PIECE = 1 << 14
"""Bytes of a stretch, roughly: they stay in the nearest cache."""

_SHARE = 1 << 20
"""Bytes for which another thread is asked: waking it takes as long as transposing them."""

_SQUARE = 16


class Cut(IntEnum):
    """What each number of an image's cut into stretches is."""

    CHANNELS = 0
    PIXELS = 1
    LENGTH = 2
    """Pixels of a stretch; the last one of an image may be shorter."""
    COUNT = 3
    """Stretches of an image."""


@lru_cache(maxsize=256)
def cut_image(channels: int, pixels: int) -> NDArray[np.int64]:
    """Cut an image into stretches of pixels.

    Parameters
    ----------
    channels, pixels : int

    Returns
    -------
    ndarray of int64, shape (4,)
        In the order of :class:`Cut`.
    """
    length = min(max(_PIECE // max(channels, 1) & -64, 64), pixels)
    return np.array([channels, pixels, length, -(-pixels // max(length, 1))], np.int64)


@jit
def stretch(cut: NDArray[np.int64], unit: int) -> tuple[int, int, int]:
    """Return image, first pixel and number of pixels of a stretch, counted through all images."""
    image, part = divmod(unit, cut[Cut.COUNT])
    first = part * cut[Cut.LENGTH]
    return image, first, min(cut[Cut.LENGTH], cut[Cut.PIXELS] - first)


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
        If the arrays do not fit.
    """

    def __init__(self, x: NDArray[np.uint8], y: NDArray[np.uint8], threads: int = 1) -> None:
        if x.ndim != 3:
            raise KernelError(f"transpose: found an array {list(x.shape)}, wanted matrices [B, R, K]")
        images, rows, columns = x.shape
        check("transpose", x=(x, x.shape, np.uint8), y=(y, (images, columns, rows), np.uint8))
        self._x, self._y = x.reshape(-1), y.reshape(-1)
        self._threads = min(threads, max(-(-x.size // _SHARE), 1))
        self._down = rows > columns  # stretches are cut along the longer axis
        self._cut = cut_image(min(rows, columns), max(rows, columns))
        self._units = images * int(self._cut[Cut.COUNT])
        self._run = _stretch_transposer(index_of(available()[0]))

    def __call__(self) -> None:
        """Transpose what `x` now holds."""
        spread(self._units, self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        self._run(self._x, self._cut, self._down, begin, end, self._y)


@cache
def _stretch_transposer(tier: int) -> Any:
    """Return the function that transposes stretches `begin` to `end`, of rows (`down`) or of columns."""
    transpose = transposer(tier)

    @jit
    def run(
        x: NDArray[np.uint8], cut: NDArray[np.int64], down: bool, begin: int, end: int, y: NDArray[np.uint8]
    ) -> None:
        short, long = cut[Cut.CHANNELS], cut[Cut.PIXELS]
        for unit in range(begin, end):
            image, first, count = stretch(cut, unit)
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
