"""Operators that move values and compute none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fgq.errors import ModelError
from fgq.runtime.operators.operator import Array

Ints = Sequence[int] | Array


def identity(x: Array, /) -> Array:
    """Return the input, also where it is a sequence or an optional value."""
    return x


def constant(
    *,
    value: Array | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[str] | None = None,
) -> Array:
    """Return the one attribute that is given."""
    given = [
        np.asarray(one, dtype)
        for one, dtype in (
            (value, None),
            (value_float, np.float32),
            (value_floats, np.float32),
            (value_int, np.int64),
            (value_ints, np.int64),
            (value_string, object),
            (value_strings, object),
        )
        if one is not None
    ]
    if len(given) != 1:
        raise ModelError(f"found {len(given)} values, wanted one")
    return given[0]


def constant_of_shape(sizes: Array, /, *, value: Array | None = None) -> Array:
    """Return one value, 0.0 unless given, in the shape that the input holds."""
    given = np.zeros(1, np.float32) if value is None else value
    return np.full(tuple(int(size) for size in sizes), given.reshape(()), given.dtype)


def shape(x: Array, /, *, start: int = 0, end: int | None = None) -> Array:
    """Return the dimensions from `start` to `end`."""
    return np.array(x.shape[start:end], np.int64)


def concat(first: Array, *others: Array, axis: int) -> Array:
    """Join along an axis."""
    return np.concatenate((first, *others), axis)


def transpose(x: Array, /, *, perm: Sequence[int] | None = None) -> Array:
    """Reorder the axes, backwards where nothing is said."""
    return np.transpose(x, perm)


def reshape(x: Array, target: Array, /, *, allowzero: int = 0) -> Array:
    """Change the shape: -1 is what remains, 0 the input's dimension unless `allowzero`."""
    sizes = [int(size) for size in target]
    if not allowzero:
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(x: Array, /, *, axis: int = 1) -> Array:
    """Make a matrix, whose rows run over the axes before `axis`."""
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(x: Array, chosen: Array | None = None, /, *, axes: Ints | None = None) -> Array:
    """Drop axes of length 1; `axes` is an attribute before opset 13."""
    axes = axes if chosen is None else chosen
    return np.squeeze(x, None if axes is None else tuple(int(axis) for axis in axes))


def unsqueeze(x: Array, chosen: Array | None = None, /, *, axes: Ints | None = None) -> Array:
    """Insert axes of length 1, counted in the result; `axes` is an attribute before opset 13."""
    axes = axes if chosen is None else chosen
    if axes is None:
        raise ModelError("found no axes, wanted some")
    return np.expand_dims(x, tuple(int(axis) for axis in axes))


def gather(x: Array, indices: Array, /, *, axis: int = 0) -> Array:
    """Pick entries of an axis; negative indices count from its end."""
    return np.take(x, indices, axis)


def expand(x: Array, target: Array, /) -> Array:
    """Broadcast with a shape, both ways."""
    sizes = tuple(int(size) for size in target)
    return np.array(np.broadcast_to(x, np.broadcast_shapes(x.shape, sizes)))


def slice_(
    x: Array,
    first: Array | None = None,
    last: Array | None = None,
    chosen: Array | None = None,
    steps: Array | None = None,
    /,
    *,
    starts: Ints | None = None,
    ends: Ints | None = None,
    axes: Ints | None = None,
) -> Array:
    """Cut out a part; before opset 10, `starts`, `ends` and `axes` are attributes."""
    starts, ends = (starts if first is None else first), (ends if last is None else last)
    axes = axes if chosen is None else chosen
    if starts is None or ends is None:
        raise ModelError("found no starts or no ends, wanted both")
    parts = [slice(None)] * x.ndim
    for index, axis in enumerate(range(len(starts)) if axes is None else axes):
        step = 1 if steps is None else int(steps[index])
        parts[int(axis)] = slice(int(starts[index]), int(ends[index]), step)
    return x[tuple(parts)]


def split(
    x: Array,
    sizes: Array | None = None,
    /,
    *,
    axis: int = 0,
    split: Ints | None = None,
    num_outputs: int | None = None,
    outputs: int,
) -> tuple[Array, ...]:
    """Cut along an axis into parts of the given sizes, or of one size with a shorter last part."""
    given = split if sizes is None else sizes
    length = x.shape[axis]
    part = -(-length // (num_outputs or outputs))
    lengths = [int(size) for size in given] if given is not None else [part] * (num_outputs or outputs)
    ends = np.cumsum(lengths)
    if given is not None and ends[-1] != length:
        raise ModelError(f"found parts of {int(ends[-1])} in all, wanted {length}")
    return tuple(np.split(x, np.minimum(ends[:-1], length), axis))


def pad(
    x: Array,
    amounts: Array | None = None,
    filling: Array | None = None,
    axes: Array | None = None,
    /,
    *,
    mode: str = "constant",
    pads: Ints | None = None,
    value: float = 0.0,
) -> Array:
    """Pad, or crop where an amount is negative; before opset 11, `pads` and `value` are attributes."""
    given = pads if amounts is None else amounts
    if given is None or mode not in ("constant", "edge", "reflect", "wrap"):
        raise ModelError(f"found pads {given} in mode {mode!r}, wanted constant, edge, reflect or wrap")
    chosen = range(x.ndim) if axes is None else [int(axis) for axis in axes]
    width = np.zeros((x.ndim, 2), np.int64)
    for axis, amount in zip(chosen, np.reshape(given, (2, -1)).T, strict=True):
        width[axis] = amount
    crop = np.maximum(-width, 0)
    part = x[tuple(slice(a, size - b) for size, (a, b) in zip(x.shape, crop.tolist(), strict=True))]
    width = np.maximum(width, 0)
    if mode != "constant":
        return np.pad(part, width, mode)  # type: ignore[call-overload,no-any-return]
    empty: Any = "" if x.dtype.kind == "O" else value
    scalar = np.asarray(empty).astype(x.dtype) if filling is None else np.reshape(filling, ())
    return np.pad(part, width, "constant", constant_values=scalar)


OPERATORS = {
    "Concat": concat,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "Identity": identity,
    "Pad": pad,
    "Reshape": reshape,
    "Shape": shape,
    "Slice": slice_,
    "Split": split,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
