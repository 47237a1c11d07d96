"""The reference kernels: plain NumPy, exact, and the judge of all others.

Why float64 gives the integers: weights are integers of magnitude 127 at most and ``x - x_zero`` integers
of magnitude 255 at most, so a product is an integer below 2**15, and any partial sum of K <= 66,000
products, in whatever order a BLAS library adds them and with or without fused multiply-add, is an integer
below 66,000 * 255 * 127 < 2**31. Every integer below 2**53 is a float64, so no step ever rounds.
Longer reductions are exact up to K = 2**53 / (255 * 127), about 2.8e11.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgq.kernels.weights import int8_weights
from fgq.kernels.window import Window

_BLOCK_BYTES = 1 << 24
"""Memory for the float64 activations of one block."""


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceMatmul:
    """A prepared matrix product: float64 weights [K, M] and what is added to the sums."""

    weights: NDArray[np.float64]
    bias: NDArray[np.int32]
    x_zero: int
    channels: int


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceConv2d:
    """A prepared convolution: float64 weights [groups, kh * kw * C / groups, M / groups]."""

    weights: NDArray[np.float64]
    bias: NDArray[np.int32]
    x_zero: int
    channels: int
    kernel: tuple[int, int]
    window: Window


def prepare_matmul(
    codes: NDArray[np.int8],
    alpha: NDArray[np.uint8],
    group: NDArray[np.int32],
    bias: NDArray[np.int32],
    x_zero: int,
) -> ReferenceMatmul:
    """Unpack the weights; arguments as in :func:`fgq.kernels.weights.check_matmul_weights`."""
    weights = int8_weights(codes, alpha, group).T.astype(np.float64)
    return ReferenceMatmul(weights, bias, x_zero, codes.shape[1])


def run_matmul(prepared: ReferenceMatmul, x: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Multiply activations uint8 [rows, K] into sums int32 [rows, M]."""
    acc = np.empty((x.shape[0], prepared.bias.size), np.int32)
    for rows in _blocks(x.shape[0], x.shape[1]):
        acc[rows] = _sums(x[rows], prepared.weights, prepared.x_zero) + prepared.bias
    return acc


def prepare_conv2d(
    codes: NDArray[np.int8],
    alpha: NDArray[np.uint8],
    group: NDArray[np.int32],
    bias: NDArray[np.int32],
    x_zero: int,
    window: Window,
) -> ReferenceConv2d:
    """Unpack the weights; arguments as in :func:`fgq.kernels.weights.check_conv2d_weights`."""
    outputs, height, width, channels = codes.shape
    by_group = int8_weights(codes, alpha, group).reshape(window.groups, outputs // window.groups, -1)
    weights = by_group.transpose(0, 2, 1).astype(np.float64)
    return ReferenceConv2d(weights, bias, x_zero, channels * window.groups, (height, width), window)


def run_conv2d(prepared: ReferenceConv2d, x: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Convolve activations uint8 NHWC [B, H, W, C] into sums int32 NHWC [B, OH, OW, M]."""
    window, kernel = prepared.window, prepared.kernel
    top, left, bottom, right = window.pads
    size = window.output_size(x.shape[1], x.shape[2], kernel)
    image = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=prepared.x_zero)
    reach = ((kernel[0] - 1) * window.dilations[0] + 1, (kernel[1] - 1) * window.dilations[1] + 1)
    # a view [B, OH, OW, C, kh, kw]: nothing is copied before a block is
    taps = np.lib.stride_tricks.sliding_window_view(image, reach, axis=(1, 2))
    taps = taps[
        :, :: window.strides[0], :: window.strides[1], :, :: window.dilations[0], :: window.dilations[1]
    ]

    acc = np.empty((x.shape[0], *size, prepared.bias.size), np.int32)
    inputs, outputs = prepared.channels // window.groups, prepared.bias.size // window.groups
    for batch in range(x.shape[0]):
        for rows in _blocks(size[0], size[1] * inputs * kernel[0] * kernel[1]):
            for index, weights in enumerate(prepared.weights):
                seen = taps[batch, rows, :, index * inputs : (index + 1) * inputs]
                columns = seen.transpose(0, 1, 3, 4, 2).reshape(-1, weights.shape[0])
                sums = _sums(columns, weights, prepared.x_zero)
                made = slice(index * outputs, (index + 1) * outputs)
                acc[batch, rows, :, made] = sums.reshape(-1, size[1], outputs) + prepared.bias[made]
    return acc


def _sums(x: NDArray[np.uint8], weights: NDArray[np.float64], x_zero: int) -> NDArray[np.int64]:
    return ((x.astype(np.float64) - x_zero) @ weights).astype(np.int64)


def _blocks(count: int, length: int) -> Iterator[slice]:
    """Cut `count` rows of `length` float64 values into blocks of bounded memory."""
    step = max(1, _BLOCK_BYTES // (8 * length))
    for start in range(0, count, step):
        yield slice(start, start + step)
