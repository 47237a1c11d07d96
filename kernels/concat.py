"""Concatenation of uint8 arrays, each with a scale of its own.

    yq = saturate(round_half_even((x - x_zero) * x_scale / y_scale) + y_zero)

in float32, from a table of 256 results for each part, as QLinearConcat has it (onnxruntime,
contrib_ops/cpu/quantization/quant_ops).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.threads import spread

_BYTES = 1 << 14
"""What a thread takes at a time, roughly."""


def requantization_table(
    x_scale: float, x_zero: int, y_scale: float, y_zero: int, lowest: int = 0, highest: int = 255
) -> NDArray[np.uint8]:
    """Return what each activation of one quantizer is in another, uint8 [256].

    Parameters
    ----------
    x_scale, x_zero, y_scale, y_zero : float, int
        The quantizers before and behind.
    lowest, highest : int
        Range of the result.
    """
    real = (np.arange(256) - x_zero).astype(np.float32) * np.float32(x_scale)
    integers = np.rint(real / np.float32(y_scale)) + np.float32(y_zero)
    table: NDArray[np.uint8] = np.clip(integers, lowest, highest).astype(np.uint8)
    return table


class Concat:
    """Arrays behind each other along an axis.

    Parameters
    ----------
    parts : sequence of ndarray of uint8
        What each call reads, C order.
    y : ndarray of uint8
        What it writes, C order.
    axis : int
        Along which they are joined.
    tables : sequence of ndarray of uint8, shape (256,)
        What becomes of the activations of each part.
    threads : int
        How many threads to use.
    """

    def __init__(
        self,
        parts: Sequence[NDArray[np.uint8]],
        y: NDArray[np.uint8],
        axis: int,
        tables: Sequence[NDArray[np.uint8]],
        threads: int = 1,
    ) -> None:
        self._rows, self._threads = int(np.prod(y.shape[:axis], dtype=np.int64)), threads
        width = y.size // max(self._rows, 1)
        self._each = max(_BYTES // max(width, 1), 1)
        self._y, self._width = y.reshape(-1), width
        self._parts: list[tuple[Any, ...]] = []
        begin = 0
        for part, table in zip(parts, tables, strict=True):
            size = part.size // max(self._rows, 1)
            same = bool((table == np.arange(256)).all())
            self._parts.append(
                (part.reshape(-1), np.require(table, requirements=["C", "W"]), size, begin, same)
            )
            begin += size

    def __call__(self) -> None:
        """Join what the parts now hold."""
        spread(-(-self._rows // self._each), self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        first, last = begin * self._each, min(end * self._each, self._rows)
        for part, table, size, place, same in self._parts:
            _copier(same)(part, table, size, first, last, self._width, place, self._y)


@cache
def _copier(same: bool) -> Any:
    """Return the function that copies rows of a part, through its table unless that changes nothing."""

    @jit
    def copy(
        x: NDArray[np.uint8],
        table: NDArray[np.uint8],
        size: int,
        begin: int,
        end: int,
        width: int,
        place: int,
        y: NDArray[np.uint8],
    ) -> None:
        for row in range(begin, end):
            source, target = row * size, row * width + place
            for k in range(size):
                y[target + k] = x[source + k] if same else table[x[source + k]]

    return copy
