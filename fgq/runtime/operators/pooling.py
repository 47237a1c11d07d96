"""Pooling over windows of images, channels second."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fgq.runtime.operators.cast import computable, limits
from fgq.runtime.operators.normalization import mean_along
from fgq.runtime.operators.operator import Array
from fgq.runtime.operators.windows import Sliding


def max_pool(
    x: Array,
    /,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
    outputs: int,
) -> Array | tuple[Array, Array]:
    """Take the largest value of each window; a second result says where it is.

    Its indices count over the whole tensor, within an image by rows or, with `storage_order`, by columns.
    """
    sliding = Sliding.of(
        x.shape[2:], kernel_shape, strides=strides, dilations=dilations, pads=pads,
        auto_pad=auto_pad, ceil_mode=bool(ceil_mode),
    )  # fmt: skip
    ends = limits(x.dtype)
    lowest = -np.inf if ends is None else ends[0]
    result = np.full((*x.shape[:2], *sliding.sizes), lowest, x.dtype)
    padded = sliding.padded(x, lowest)
    if outputs < 2:
        for _tap, values in sliding.taps(padded):
            np.maximum(result, values, out=result)
        return result
    order = "F" if storage_order else "C"
    places = np.arange(math.prod(sliding.image)).reshape(sliding.image, order=order)  # type: ignore[call-overload]
    indices = np.full(result.shape, -1, np.int64)
    for (_tap, values), (_same, place) in zip(
        sliding.taps(padded), sliding.taps(sliding.padded(places, -1)), strict=True
    ):
        better = ((values > result) | (indices < 0)) & (place >= 0)
        result = np.where(better, values, result)
        indices = np.where(better, place, indices)
    images = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *[1] * len(sliding.sizes))
    return result, indices + images * math.prod(sliding.image)


def average_pool(
    x: Array,
    /,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Average each window over what lies in the image, or in the padded image if so asked."""
    sliding = Sliding.of(
        x.shape[2:], kernel_shape, strides=strides, dilations=dilations, pads=pads,
        auto_pad=auto_pad, ceil_mode=bool(ceil_mode),
    )  # fmt: skip
    wide = computable(x)
    total = np.zeros((*x.shape[:2], *sliding.sizes), wide.dtype)
    for _tap, values in sliding.taps(sliding.padded(wide, 0)):
        total += values
    total /= _counts(sliding, bool(count_include_pad)).astype(wide.dtype)
    return total.astype(x.dtype, copy=False)


def _counts(sliding: Sliding, padding: bool) -> Array:
    """Return how many taps of each window lie in the image, with or without its padding."""
    counts: Array = np.ones((), np.int64)
    for axis, size in enumerate(sliding.image):
        starts = np.arange(sliding.sizes[axis]) * sliding.strides[axis] - sliding.before[axis]
        at = starts[:, None] + np.arange(sliding.kernel[axis]) * sliding.dilations[axis]
        first, last = (-sliding.before[axis], size + sliding.after[axis]) if padding else (0, size)
        counts = np.multiply.outer(counts, ((at >= first) & (at < last)).sum(1))
    return counts


def global_average_pool(x: Array, /) -> Array:
    """Average each channel."""
    return mean_along(x, range(2, x.ndim)).astype(x.dtype, copy=False)


def global_max_pool(x: Array, /) -> Array:
    """Take the largest value of each channel."""
    return np.asarray(x.max(tuple(range(2, x.ndim)), keepdims=True))


OPERATORS = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "MaxPool": max_pool,
}
