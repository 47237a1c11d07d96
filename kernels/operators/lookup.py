"""Functions of one activation, by a table of all 256 results.

Whatever a DequantizeLinear, functions of real numbers and a QuantizeLinear do to an activation, a table of
256 bytes does it as well. It lies in registers: on processors with VBMI four permutations of 64 bytes and
three choices look up 64 activations. Others with vectors take the table in parts of 16 bytes: an index whose
upper half is flipped by the part's number, plus 0x70, finds its byte in the right part, and in the others,
where it is above 127, finds 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit
from fgq.kernels.boundary import check, ready
from fgq.kernels.simd.emit import Emitter, Value, emitted, i8
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.simd.rows import each_vector, load, store
from fgq.kernels.threads import spread

_PIECE = 1 << 14
"""Activations that a thread takes at a time."""


def tabulate(
    function: Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]],
    *,
    x_scale: float,
    x_zero: int,
    y_scale: float,
    y_zero: int,
    lowest: int = 0,
    highest: int = 255,
) -> NDArray[np.uint8]:
    """Return the table of ``QuantizeLinear(function(DequantizeLinear(x)))``.

    Parameters
    ----------
    function : callable
        Takes float32 [256] and returns as many real values.
    x_scale, x_zero, y_scale, y_zero : float, int
        The quantizers before and behind.
    lowest, highest : int
        Range of the results within 0..255.

    Returns
    -------
    ndarray of uint8, shape (256,)
        ``round_half_even(function((x - x_zero) * x_scale) / y_scale) + y_zero`` in float32, clipped. NaN
        becomes `lowest`.

    Raises
    ------
    KernelError
        If the function does not return 256 values.
    """
    real = (np.arange(256) - x_zero).astype(np.float32) * np.float32(x_scale)
    made = np.asarray(function(real), np.float32)
    if made.shape != (256,):
        raise KernelError(f"function: found a result of shape {list(made.shape)}, wanted [256]")
    with np.errstate(all="ignore"):
        steps = np.rint(made / np.float32(y_scale)) + np.float32(y_zero)
    steps = np.where(np.isnan(steps), np.float32(lowest), steps)
    return np.clip(steps, lowest, highest).astype(np.uint8)


def requantization_table(
    x_scale: float, x_zero: int, y_scale: float, y_zero: int, lowest: int = 0, highest: int = 255
) -> NDArray[np.uint8]:
    """Return what each activation of one quantizer is in another, uint8 [256].

    Parameters
    ----------
    x_scale, x_zero, y_scale, y_zero : float, int
        The quantizers before and behind.
    lowest, highest : int
        Range of the results within 0..255.
    """
    return tabulate(
        lambda real: real,
        x_scale=x_scale, x_zero=x_zero, y_scale=y_scale, y_zero=y_zero, lowest=lowest, highest=highest,
    )  # fmt: skip


class Lookup:
    """``y = table[x]``.

    Parameters
    ----------
    x, y : ndarray of uint8
        What is read and written by each call, C order, of one shape. They may be the same array.
    table : ndarray of uint8, shape (256,)
        The results.
    threads : int
        How many threads to use.

    Raises
    ------
    KernelError
        If an array does not fit.
    """

    def __init__(
        self, x: NDArray[np.uint8], y: NDArray[np.uint8], table: NDArray[np.uint8], threads: int = 1
    ) -> None:
        check("lookup", x=(x, x.shape, np.uint8), y=(y, x.shape, np.uint8))
        self._x, self._y, self._table = x.reshape(-1), y.reshape(-1), checked_table(table)
        self._pieces, self._threads = -(-x.size // _PIECE), threads
        self._look_up = looker(index_of(available()[0]))

    def __call__(self) -> None:
        """Look up what `x` now holds."""
        if self._threads == 1:
            self._look_up(self._x, 0, self._table, self._x.size, self._y, 0)
        else:
            spread(self._pieces, self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        first, last = begin * _PIECE, min(end * _PIECE, self._x.size)
        self._look_up(self._x, first, self._table, last - first, self._y, first)


def checked_table(table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a table in C order.

    Raises
    ------
    KernelError
        If it is not uint8 [256].
    """
    if table.dtype != np.uint8 or table.shape != (256,):
        raise KernelError(f"table: found {table.dtype}{list(table.shape)}, wanted uint8[256]")
    return ready(table)


@cache
def looker(tier: int) -> Any:
    """Return the function ``look_up(x, x_place, table, count, y, y_place)``, for an instruction set."""
    if INSTRUCTION_SETS[tier].width == 0:
        return _look_up

    @jit
    def look_up(
        x: NDArray[np.uint8],
        x_place: int,
        table: NDArray[np.uint8],
        count: int,
        y: NDArray[np.uint8],
        y_place: int,
    ) -> None:
        _emit_look_up(tier, x, x_place, table, count, y, y_place)

    return look_up


@emitted
def _emit_look_up(e: Emitter, x: Any, x_place: Any, table: Any, count: Any, y: Any, y_place: Any) -> None:
    find = _permuting(e, table) if e.isa.has("avx512vbmi") else _shuffling(e, table)
    source, target = x + x_place, y + y_place

    def do(k: Any, _: int, count: Any) -> None:
        store(e, target + k, find(load(e, source + k, count, i8)), count)

    each_vector(e, count, e.lanes(i8), do, together=1)


def _permuting(e: Emitter, table: Any) -> Callable[[Value], Value]:
    quarters = [e.load(table + 64 * i, i8) for i in range(4)]

    def find(index: Value) -> Value:
        # a permutation looks at the lowest six bits
        first, second, third, fourth = (e.permuted(quarter, index) for quarter in quarters)
        even = (index & 64).equals(0)
        return e.choose(index < 0, e.choose(even, third, fourth), e.choose(even, first, second))

    return find


def _shuffling(e: Emitter, table: Any) -> Callable[[Value], Value]:
    lanes = e.lanes(i8)
    parts = [e.load(table + 16 * i, i8, 16).shuffled([k % 16 for k in range(lanes)]) for i in range(16)]

    def find(index: Value) -> Value:
        result = e.zeros(i8)
        for i, part in enumerate(parts):
            place = e.call(f"llvm.uadd.sat.v{lanes}i8", index.type, index ^ (16 * i), e.filled(0x70, i8))
            result |= e.permuted_in_16(part, place)
        return result

    return find


@jit
def _look_up(
    x: NDArray[np.uint8],
    x_place: int,
    table: NDArray[np.uint8],
    count: int,
    y: NDArray[np.uint8],
    y_place: int,
) -> None:
    for k in range(count):
        y[y_place + k] = table[x[x_place + k]]
