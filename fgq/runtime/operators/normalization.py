"""Softmax and layer normalization, in float32 at least."""

from __future__ import annotations

import math

import numpy as np

from fgq.runtime.operators.cast import computable, dtype_of
from fgq.runtime.operators.operator import Array


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
    mean = wide.mean(axes, keepdims=True)
    centred = wide - mean
    inverse = 1 / np.sqrt((centred * centred).mean(axes, keepdims=True) + wide.dtype.type(epsilon))
    result = (centred * inverse).astype(x.dtype, copy=False) * scale
    return result if bias is None else result + bias, mean, inverse


OPERATORS = {"LayerNormalization": layer_normalization, "Softmax": softmax}
