"""Convolutions and matrix products of 8-bit integers, exact in int32.

    acc = sum_k (x[k] - x_zero) * (w[k] - w_zero)                      modulo 2**32
    y   = saturate(round_half_even(float32(acc) * x_scale * w_scale / y_scale) + y_zero)

Where the activations have one zero point, and weights less theirs are at most 127 in magnitude, a kernel of
:mod:`fgq.kernels` computes the sums; products in float64, which are exact up to 2**53, compute all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fgq.errors import ModelError
from fgq.kernels import Weight, Window
from fgq.runtime.operators.operator import Array
from fgq.runtime.operators.quantization import rounded
from fgq.runtime.operators.windows import Sliding

_LONGEST = 66_000
"""Sums of so many products, 255 * 127 at most, stay below 2**31."""


def matmul_integer(
    a: Array, b: Array, a_zero_point: Array | None = None, b_zero_point: Array | None = None, /
) -> Array:
    """Multiply matrices less their zero points, one for each row of `a` and each column of `b` or for all."""
    left, right = _by_row(a_zero_point, a), 0 if b_zero_point is None else b_zero_point.astype(np.int16)
    weight = b.astype(np.int16) - right
    if b.ndim == 2 and a.ndim >= 1 and np.ndim(left) == 0 and _for_kernels(weight, b.shape[0]):
        from fgq.kernels.products.layer import Layer  # loads compiled code

        x, zero = _unsigned(a, int(left))
        layer = Layer(_single(weight.T), x_zero=zero)
        rows = x.reshape(math.prod(a.shape[:-1]), len(b))
        return layer(rows).reshape(*a.shape[:-1], b.shape[1])
    return _wrapped(np.matmul(a.astype(np.float64) - left, weight.astype(np.float64)))


def conv_integer(
    x: Array,
    w: Array,
    x_zero_point: Array | None = None,
    w_zero_point: Array | None = None,
    /,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Convolve images and kernels less their zero points, one for each output channel or for all."""
    if kernel_shape is not None and tuple(kernel_shape) != w.shape[2:]:
        raise ModelError(f"kernel_shape: found {list(kernel_shape)}, wanted {list(w.shape[2:])}")
    if x.shape[1] != w.shape[1] * group:
        raise ModelError(f"found {x.shape[1]} channels, wanted {group} groups of {w.shape[1]}")
    sliding = Sliding.of(
        x.shape[2:], w.shape[2:], strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad
    )
    zero = 0 if x_zero_point is None else int(x_zero_point.reshape(()))
    weight = w.astype(np.int16)
    if w_zero_point is not None:
        weight -= w_zero_point.astype(np.int16).reshape(-1, *[1] * (w.ndim - 1))
    if w.ndim in (3, 4) and _for_kernels(weight, w[0].size) and x.size:
        return _convolved(x, weight, zero, sliding, group)
    # padding is the zero point, which adds nothing
    padded = sliding.padded(x.astype(np.float64) - zero, 0.0)
    images = padded.reshape(len(x), group, w.shape[1], *padded.shape[2:])
    kernels = weight.astype(np.float64).reshape(group, len(w) // group, *w.shape[1:])
    total = np.zeros((group, kernels.shape[1], len(x), *sliding.sizes))
    for tap, values in sliding.taps(images):
        weights = kernels[(slice(None),) * 3 + tap]
        for index in range(group):
            total[index] += np.tensordot(weights[index], values[:, index], (1, 1))
    return _wrapped(np.moveaxis(total.reshape(len(w), *total.shape[2:]), 1, 0))


def qlinear_matmul(
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    /,
) -> Array:
    """Multiply matrices and quantize the products."""
    sums = matmul_integer(a, b, a_zero_point, b_zero_point)
    scale = _by_row(a_scale, a, np.float32) * b_scale.astype(np.float32) / y_scale.astype(np.float32)
    return rounded(sums.astype(np.float32) * scale, y_zero_point.astype(np.float32), y_zero_point.dtype)


def qlinear_conv(
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    w: Array,
    w_scale: Array,
    w_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    bias: Array | None = None,
    /,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Convolve, add the bias, in units of the sums, and quantize the result."""
    sums = conv_integer(
        x, w, x_zero_point, w_zero_point, auto_pad=auto_pad, dilations=dilations, group=group,
        kernel_shape=kernel_shape, pads=pads, strides=strides,
    )  # fmt: skip
    channels = (-1, *[1] * (w.ndim - 2))
    if bias is not None:
        sums = sums + bias.reshape(channels)
    scale = x_scale.reshape(()) * w_scale.reshape(channels) / y_scale.reshape(())
    return rounded(sums.astype(np.float32) * scale, y_zero_point.astype(np.float32), y_zero_point.dtype)


def _by_row(values: Array | None, a: Array, dtype: type[np.generic] = np.int16) -> Array:
    """Return zero points or scales of the rows of a matrix, as they broadcast with it."""
    if values is None:
        return np.zeros((), dtype)
    wide = values.astype(dtype)
    if wide.size == 1:
        return wide.reshape(())
    return wide[:, None] if wide.ndim == 1 else wide


def _for_kernels(weight: Array, length: int) -> bool:
    return bool(weight.size) and length <= _LONGEST and int(np.abs(weight).max()) <= 127


def _single(weight: Array) -> Weight:
    """Return integers as a weight of one group with scale 1."""
    codes = np.ascontiguousarray(weight, np.int8)
    alpha = np.ones((*codes.shape[:-1], 1), np.uint8)
    return Weight.single(codes, alpha, np.zeros(codes.shape[-1], np.int32))


def _unsigned(x: Array, zero: int) -> tuple[Array, int]:
    """Return activations as uint8, int8 ones and their zero point moved by 128."""
    if x.dtype == np.uint8:
        return x, zero
    return (x.view(np.uint8) ^ np.uint8(128)), zero + 128


def _convolved(x: Array, weight: Array, zero: int, sliding: Sliding, group: int) -> Array:
    """Convolve images of one or two dimensions in a kernel, which wants channels last."""
    from fgq.kernels.products.layer import Layer

    flat = (1,) * (4 - x.ndim)  # an image of one dimension has one row
    (above, left), (below, right) = ((0,) * len(flat) + ends for ends in (sliding.before, sliding.after))
    down, across = flat + sliding.strides
    rows, columns = flat + sliding.dilations
    window = Window(
        strides=(down, across), pads=(above, left, below, right), dilations=(rows, columns), groups=group
    )
    image, zero = _unsigned(np.ascontiguousarray(x), zero)
    channels_last = image.reshape(*x.shape[:2], *flat, *x.shape[2:]).transpose(0, 2, 3, 1)
    kernels = weight.reshape(*weight.shape[:2], *flat, *weight.shape[2:]).transpose(0, 2, 3, 1)
    result = Layer(_single(kernels), window=window, x_zero=zero)(channels_last)
    return np.ascontiguousarray(result.transpose(0, 3, 1, 2)).reshape(len(x), -1, *sliding.sizes)


def _wrapped(sums: Array) -> Array:
    """Return whole numbers below 2**53 modulo 2**32."""
    return sums.astype(np.int64).astype(np.int32)


OPERATORS = {
    "ConvInteger": conv_integer,
    "MatMulInteger": matmul_integer,
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
}
