"""Means, softmax and normalizations: what sums along axes, in float32 at least."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fgq.runtime.operators.cast import computable, dtype_of
from fgq.runtime.operators.operator import Array


def mean_along(x: Array, axes: Sequence[int], *, keepdims: bool = True) -> Array:
    """Average along axes in float32 at least; the mean of nothing is NaN, without a warning.

    Parameters
    ----------
    x : ndarray
    axes : sequence of int
    keepdims : bool
        Whether the axes stay, with length 1.
    """
    wide = computable(x)
    count = math.prod(x.shape[axis] for axis in axes)
    return np.asarray(wide.sum(tuple(axes), keepdims=keepdims) / count)


def reduce_mean(
    x: Array,
    chosen: Array | None = None,
    /,
    *,
    axes: Sequence[int] | None = None,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Array:
    """Average along axes, all where none is given; `axes` is an attribute before opset 18."""
    given = tuple(int(axis) for axis in (() if chosen is None else chosen)) or tuple(axes or ())
    if not given and noop_with_empty_axes:
        return x
    return mean_along(x, given or range(x.ndim), keepdims=bool(keepdims)).astype(x.dtype, copy=False)


def softmax(x: Array, /, *, axis: int | None = None, opset: int) -> Array:
    """Compute ``exp(x) / sum(exp(x))`` along the axis; before opset 13, over all axes from it on."""
    wide = computable(x)
    if opset < 13:
        first = 1 if axis is None else axis
        rows = wide.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:]))
        return _softmax(rows, -1).reshape(x.shape).astype(x.dtype, copy=False)
    return _softmax(wide, -1 if axis is None else axis).astype(x.dtype, copy=False)


def _softmax(x: Array, axis: int) -> Array:
    if x.size == 0:
        return x
    powers = np.exp(x - x.max(axis, keepdims=True))
    quotient: Array = powers / powers.sum(axis, keepdims=True)
    return quotient


def layer_normalization(
    x: Array,
    scale: Array,
    bias: Array | None = None,
    /,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Array, Array, Array]:
    """Normalize over the axes from `axis` on; also return the mean and the inverse deviation.

    Ba, Kiros and Hinton, Layer Normalization, 2016, equation 3, with `epsilon` beside the variance. Mean and
    deviation have the type `stash_type`.
    """
    wide = computable(x).astype(dtype_of(stash_type))
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean = mean_along(wide, axes)
    centred = wide - mean
    inverse = 1 / np.sqrt(mean_along(centred * centred, axes) + wide.dtype.type(epsilon))
    result = (centred * inverse).astype(x.dtype, copy=False) * scale
    return result if bias is None else result + bias, mean, inverse


def batch_normalization(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    variance: Array,
    /,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> tuple[Array, Array, Array]:
    """Normalize channels by the given statistics, or in training by those of the batch, which change them.

    Ioffe and Szegedy, Batch Normalization, 2015, algorithms 1 and 2.
    """
    wide = computable(x)
    channels = (-1, *[1] * (x.ndim - 2))
    if training_mode:
        axes = (0, *range(2, x.ndim))
        used_mean = mean_along(wide, axes, keepdims=False)
        centred = wide - used_mean.reshape(channels)
        used_variance = mean_along(centred * centred, axes, keepdims=False)
        mean, variance = (
            (old * momentum + new * (1 - momentum)).astype(old.dtype)
            for old, new in ((mean, used_mean), (variance, used_variance))
        )
    else:
        used_mean, used_variance = computable(mean), computable(variance)
    factor = computable(scale) / np.sqrt(used_variance + used_variance.dtype.type(epsilon))
    shift = computable(bias) - used_mean * factor
    result = wide * factor.reshape(channels) + shift.reshape(channels)
    return result.astype(x.dtype, copy=False), mean, variance


OPERATORS = {
    "BatchNormalization": batch_normalization,
    "LayerNormalization": layer_normalization,
    "ReduceMean": reduce_mean,
    "Softmax": softmax,
}
