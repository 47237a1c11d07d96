"""Going over a row in memory: whole vectors, several at a time, and the lanes of one that are left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fgq.kernels.simd.emit import Emitter, Pointer, Type, Value, i8


def each_vector(
    e: Emitter, size: Any, lanes: int, do: Callable[[Any, int, Any], None], *, together: int = 4
) -> None:
    """Emit ``do(k, vectors, count)`` for all elements of a row.

    Parameters
    ----------
    e : Emitter
        Where it goes.
    size : Value
        How many elements there are.
    lanes : int
        How many make a vector, a power of two.
    do : callable
        Emits the code for `vectors` vectors from element `k` on; `count` is None, or of the one vector only
        the first `count` lanes are there.
    together : int
        How many vectors to take at a time while there are as many, a power of two.
    """
    most = size - (size & (together * lanes - 1)) if together > 1 else 0
    whole = size - (size & (lanes - 1))
    if together > 1:
        for k in e.range(0, most, together * lanes):
            do(k, together, None)
    for k in e.range(most, whole, lanes):
        do(k, 1, None)
    with e.when(whole < size):
        do(whole, 1, size - whole)


def load(e: Emitter, pointer: Any, count: Any, element: Type, lanes: int | None = None) -> Value:
    """Load a vector, or if `count` is given so many lanes and zeros behind them."""
    if count is None:
        return e.load(pointer, element, lanes)
    return e.load_first(pointer, count, element, lanes)


def store(e: Emitter, pointer: Pointer, value: Any, count: Any) -> None:
    """Store a vector, or if `count` is given so many lanes of it."""
    if count is None:
        e.store(pointer, value)
    else:
        e.store_first(pointer, value, count)


def store_activations(e: Emitter, pointer: Pointer, values: list[Value], count: Any) -> None:
    """Store int32 lanes, all 0..255, as bytes: those of four vectors, of one, or the first `count` of one."""
    if len(values) == 4:
        e.store(pointer, e.packed(values))
    else:
        store(e, pointer, values[0].signed(i8), count)
