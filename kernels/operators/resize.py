"""Images of activations NHWC made larger or smaller by copying pixels, and padded with a constant.

Nothing is computed but which pixel goes where, so the quantizer stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.threads import spread


class ResizeNearest:
    """``y[b, i, j] = x[b, rows[i], columns[j]]`` (ONNX Resize, mode nearest).

    Parameters
    ----------
    x, y : ndarray of uint8, shapes (B, H, W, C) and (B, OH, OW, C)
        What is read and written by each call, C order.
    rows, columns : array_like of int, shapes (OH,) and (OW,)
        Which row and which column of `x` each one of `y` shows.
    threads : int
        How many threads to use.

    Raises
    ------
    KernelError
        If shapes do not fit or an index is outside the image.
    """

    def __init__(
        self,
        x: NDArray[np.uint8],
        y: NDArray[np.uint8],
        rows: ArrayLike,
        columns: ArrayLike,
        threads: int = 1,
    ) -> None:
        self._rows, self._columns = (np.array(places, np.int64) for places in (rows, columns))
        fits = x.ndim == y.ndim == 4 and x.shape[::3] == y.shape[::3]
        if not fits or (self._rows.shape, self._columns.shape) != (y.shape[1:2], y.shape[2:3]):
            raise KernelError(
                f"resize: found {list(x.shape)} for {list(y.shape)}, {self._rows.size} rows and "
                f"{self._columns.size} columns, wanted as many images and channels, and an index for each"
            )
        for name, places, size in (("rows", self._rows, x.shape[1]), ("columns", self._columns, x.shape[2])):
            if places.size and not (0 <= places.min() and places.max() < size):
                raise KernelError(
                    f"{name}: found indices {places.min()}..{places.max()}, wanted them in 0..{size - 1}"
                )
        self._x, self._y, self._threads = x.reshape(-1, x.shape[3]), y.reshape(-1, y.shape[3]), threads
        self._height, self._width, self._lines = x.shape[1], x.shape[2], y.shape[0] * y.shape[1]

    def __call__(self) -> None:
        """Resize what `x` now holds."""
        spread(self._lines, self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        _resize(self._x, self._height, self._width, self._rows, self._columns, begin, end, self._y)


class Pad:
    """An array in the middle of a constant (ONNX Pad, mode constant).

    Parameters
    ----------
    x, y : ndarray of uint8, of up to 4 axes
        What is read and written by each call, C order.
    before : sequence of int
        How much of `y` lies before `x`, for each axis.
    value : int
        What lies around it, 0..255.
    threads : int
        How many threads to use.

    Raises
    ------
    KernelError
        If `y` has no room for `x`.
    """

    def __init__(
        self, x: NDArray[np.uint8], y: NDArray[np.uint8], before: ArrayLike, value: int, threads: int = 1
    ) -> None:
        starts = np.asarray(before, np.int64).reshape(-1)
        room = x.ndim == y.ndim == starts.size <= 4
        if not room or (starts < 0).any() or (starts + x.shape > y.shape).any() or not 0 <= value <= 255:
            raise KernelError(
                f"pad: found {list(x.shape)} behind {starts.tolist()} in {list(y.shape)} with {value}, "
                "wanted room for it, and 0..255"
            )
        more = (1,) * (4 - x.ndim)
        self._x, self._y = x.reshape(more + x.shape), y.reshape(more + y.shape)
        self._before = np.concatenate([np.zeros(len(more), np.int64), starts])
        self._value, self._threads = np.uint8(value), threads
        self._lines = self._y.shape[0] * self._y.shape[1]

    def __call__(self) -> None:
        """Pad what `x` now holds."""
        spread(self._lines, self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        _pad(self._x, self._before, self._value, begin, end, self._y)


@jit
def _resize(
    x: NDArray[np.uint8],
    height: int,
    width: int,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    begin: int,
    end: int,
    y: NDArray[np.uint8],
) -> None:
    wide, channels = columns.size, x.shape[1]
    for line in range(begin, end):
        image, row = divmod(line, rows.size)
        first = line * wide
        if line > begin and row > 0 and rows[row] == rows[row - 1]:
            y[first : first + wide] = y[first - wide : first]
            continue
        source = (image * height + rows[row]) * width
        for column in range(wide):
            taken, made = x[source + columns[column]], y[first + column]
            for c in range(channels):
                made[c] = taken[c]


@jit
def _pad(
    x: NDArray[np.uint8],
    before: NDArray[np.int64],
    value: Any,
    begin: int,
    end: int,
    y: NDArray[np.uint8],
) -> None:
    image_before, row_before, column_before, first = before[0], before[1], before[2], before[3]
    images, height, width, channels = x.shape
    for line in range(begin, end):
        image, row = divmod(line, y.shape[1])
        made = y[image, row]
        if not (0 <= image - image_before < images and 0 <= row - row_before < height):
            made[:] = value
            continue
        source = x[image - image_before, row - row_before]
        if channels == made.shape[1]:
            made[:column_before] = value
            made[column_before : column_before + width] = source
            made[column_before + width :] = value
            continue
        made[:] = value
        made[column_before : column_before + width, first : first + channels] = source
