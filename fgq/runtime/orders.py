"""In which order the axes of a value lie in memory.

ONNX has channels on axis 1; kernels want them last. A value is kept in the order in which it was made, until
somebody needs another one: ``stored = value.transpose(order)``. So a Transpose moves nothing, and images stay
NHWC from the first convolution to the last. None stands for the plain order, whatever the rank.
"""

from __future__ import annotations

from collections.abc import Sequence

Order = tuple[int, ...] | None
"""The axes of the value, from the slowest to the fastest; None where they lie as in ONNX."""


def simplified(order: Sequence[int]) -> Order:
    """Return the order, None for the plain one."""
    return None if list(order) == sorted(order) else tuple(order)


def channels_last(rank: int) -> Order:
    """Return the order that puts axis 1 last."""
    return simplified((0, *range(2, rank), 1))


def after_transpose(order: Order, permutation: Sequence[int]) -> Order:
    """Return the order in which a Transpose's result already lies, where its source lies in `order`."""
    axes = range(len(permutation)) if order is None else order
    place = {axis: index for index, axis in enumerate(permutation)}
    return simplified([place[axis] for axis in axes])


def between(order: Order, wanted: Order, rank: int) -> tuple[int, ...]:
    """Return the permutation that brings an array from one order into another."""
    place = {axis: index for index, axis in enumerate(range(rank) if order is None else order)}
    return tuple(place[axis] for axis in (range(rank) if wanted is None else wanted))


def place_of(axis: int, order: Order, rank: int) -> int:
    """Return where an axis of the value lies in memory."""
    axis %= rank
    return axis if order is None else order.index(axis)
