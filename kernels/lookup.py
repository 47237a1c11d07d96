"""Functions of one activation by a table of 256 results."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.simd.emit import Emitter, Value, emitted, i8
from fgq.kernels.simd.isa import INSTRUCTION_SETS, available, index_of
from fgq.kernels.threads import spread

_PIECE = 1 << 14
"""Activations that a thread takes at a time."""


class Lookup:
    """``y = table[x]``.

    Parameters
    ----------
    x, y : ndarray of uint8
        What is read and written by each call, C order, of one size.
    table : ndarray of uint8, shape (256,)
        The results.
    threads : int
        How many threads to use.
    """

    def __init__(
        self, x: NDArray[np.uint8], y: NDArray[np.uint8], table: NDArray[np.uint8], threads: int = 1
    ) -> None:
        self._x, self._y, self._table = (
            x.reshape(-1),
            y.reshape(-1),
            np.require(table, requirements=["C", "W"]),
        )
        self._pieces, self._threads = -(-x.size // _PIECE), threads

    def __call__(self) -> None:
        """Look up what `x` now holds."""
        spread(self._pieces, self._threads, self._work)

    def _work(self, _thread: int, begin: int, end: int) -> None:
        look_up = _looker(index_of(available()[0]))
        look_up(self._x, self._table, begin * _PIECE, min(end * _PIECE, self._x.size), self._y)


@cache
def _looker(tier: int) -> Any:
    """Return the function ``look_up(x, table, begin, end, y)``, for an instruction set."""
    if "avx512vbmi" not in INSTRUCTION_SETS[tier].features:
        return _look_up

    @jit
    def look_up(
        x: NDArray[np.uint8], table: NDArray[np.uint8], begin: int, end: int, y: NDArray[np.uint8]
    ) -> None:
        _emit_look_up(tier, x, table, begin, end, y)

    return look_up


@emitted
def _emit_look_up(e: Emitter, x: Any, table: Any, begin: Any, end: Any, y: Any) -> None:
    quarters = [e.load(table + 64 * i, i8) for i in range(4)]

    def found(index: Value) -> Value:
        # a permutation looks at the lowest six bits
        low, middle, upper, top = (e.permuted(quarter, index) for quarter in quarters)
        odd = (index & 64).equals(0)
        return e.choose(index < 0, e.choose(odd, upper, top), e.choose(odd, low, middle))

    whole = end - ((end - begin) & 63)
    for k in e.range(begin, whole, 64):
        e.store(y + k, found(e.load(x + k, i8)))
    with e.when(whole < end):
        e.store_first(y + whole, found(e.load_first(x + whole, end - whole, i8)), end - whole)


@jit
def _look_up(
    x: NDArray[np.uint8], table: NDArray[np.uint8], begin: int, end: int, y: NDArray[np.uint8]
) -> None:
    for i in range(begin, end):
        y[i] = table[x[i]]
