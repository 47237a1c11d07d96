"""Two-dimensional convolution with 8-bit weights on any processor.

The matrix product of :mod:`fgq.kernels.matmul_int8_portable` on the columns of
:mod:`fgq.kernels.im2col`; overflow is excluded there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fgq.kernels import im2col
from fgq.kernels.matmul_int8_portable import Int8Matrix, accumulate, prepare_matmul
from fgq.kernels.window import Window


def prepare_conv2d(
    codes: NDArray[np.int8],
    alpha: NDArray[np.uint8],
    group: NDArray[np.int32],
    bias: NDArray[np.int32],
    x_zero: int,
    window: Window,
) -> im2col.Convolution[Int8Matrix]:
    """Unpack the weights; arguments as in :func:`fgq.kernels.weights.check_conv2d_weights`."""
    return im2col.prepare(codes, alpha, group, bias, x_zero, window, prepare_matmul)


def run_conv2d(prepared: im2col.Convolution[Int8Matrix], x: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Convolve activations uint8 NHWC [B, H, W, C], C order, into sums int32 NHWC [B, OH, OW, M]."""
    return im2col.convolve(prepared, x, accumulate)
