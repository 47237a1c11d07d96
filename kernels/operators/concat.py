"""Concatenation of uint8 arrays, each brought from its own quantizer to that of the result.

    yq = clip(round_half_even((x - x_zero) * x_scale / y_scale) + y_zero, lowest, highest)

in float32, by a table for each part, as QLinearConcat has it (onnxruntime,
contrib_ops/cpu/quantization/qlinear_concat.cc). A part whose quantizer is that of the result is copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.boundary import check
from fgq.kernels.operators.lookup import checked_table, looker
from fgq.kernels.simd.emit import Emitter, emitted, i8
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.simd.rows import each_vector, load, store
from fgq.kernels.threads import spread

_PIECE = 1 << 14
"""Bytes of the result that a thread takes at a time, roughly."""


class Concat:
    """Arrays behind each other along an axis.

    Parameters
    ----------
    parts : sequence of ndarray of uint8
        What each call reads, C order.
    y : ndarray of uint8
        What it writes, C order.
    axis : int
        Along which they are joined, 0 or more.
    tables : sequence of ndarray of uint8, shape (256,)
        What becomes of the activations of each part
        (:func:`fgq.kernels.operators.lookup.requantization_table`).
    threads : int
        How many threads to use.

    Raises
    ------
    KernelError
        If shapes do not fit.
    """

    def __init__(
        self,
        parts: Sequence[NDArray[np.uint8]],
        y: NDArray[np.uint8],
        axis: int,
        tables: Sequence[NDArray[np.uint8]],
        threads: int = 1,
    ) -> None:
        check("concat", y=(y, y.shape, np.uint8))
        for index, part in enumerate(parts):
            check("concat", **{f"part {index}": (part, part.shape, np.uint8)})
        joined = sum(part.shape[axis] for part in parts)
        for part in parts:
            if (*part.shape[:axis], joined, *part.shape[axis + 1 :]) != y.shape:
                found = ", ".join(str(list(part.shape)) for part in parts)
                raise KernelError(
                    f"concat: found {found} for {list(y.shape)}, wanted parts of it along axis {axis}"
                )
        rows = math.prod(y.shape[:axis])
        self._rows, self._threads = rows, threads
        self._y, self._width = y.reshape(-1), y.size // max(rows, 1)
        self._each = max(_PIECE // max(self._width, 1), 1)
        tier, self._parts, place = index_of(available()[0]), list[tuple[Any, ...]](), 0
        for part, table in zip(parts, map(checked_table, tables), strict=True):
            size = part.size // max(rows, 1)
            if part.size:
                same = bool((table == np.arange(256)).all())
                self._parts.append((_mover(tier, same), part.reshape(-1), table, size, place))
            place += size

    def __call__(self) -> None:
        """Join what the parts now hold."""
        if self._threads == 1:
            self._move(0, self._rows)
        else:
            spread(-(-self._rows // self._each), self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        self._move(begin * self._each, min(end * self._each, self._rows))

    def _move(self, begin: int, end: int) -> None:
        for move, part, table, size, place in self._parts:
            move(part, table, size, begin, end, self._width, place, self._y)


@cache
def _mover(tier: int, same: bool) -> Any:
    """Return the function that moves rows of a part, through its table unless that changes nothing."""
    move_row = _copier(tier) if same else looker(tier)

    @jit
    def move(
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
            move_row(x, row * size, table, size, y, row * width + place)

    return move


@cache
def _copier(tier: int) -> Any:
    """Return a function that copies, called as those that look up."""
    wide = INSTRUCTION_SETS[tier].width > 0

    @jit
    def copy(
        x: NDArray[np.uint8],
        x_place: int,
        table: NDArray[np.uint8],
        count: int,
        y: NDArray[np.uint8],
        y_place: int,
    ) -> None:
        if wide:
            _emit_copy(tier, x, x_place, count, y, y_place)
        else:
            for k in range(count):
                y[y_place + k] = x[x_place + k]

    return copy


@emitted
def _emit_copy(e: Emitter, x: Any, x_place: Any, count: Any, y: Any, y_place: Any) -> None:
    source, target = x + x_place, y + y_place

    def do(k: Any, _: int, some: Any) -> None:
        store(e, target + k, load(e, source + k, some, i8), some)

    each_vector(e, count, e.lanes(i8), do, together=1)
