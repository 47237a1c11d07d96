"""Convolution as matrix products: the taps of each output pixel are laid out as one row.

::

    image [B, H, W, C]  --im2col-->  columns [pixels, K]  --matmul-->  acc [pixels, M / groups]
                                     K = kh * kw * C / groups

Pixels are taken in blocks, so that the columns of one block stay in the cache and memory is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.window import Window

Matrix = TypeVar("Matrix")
Matrix_co = TypeVar("Matrix_co", covariant=True)

Accumulate = Callable[[Matrix, NDArray[np.uint8], NDArray[np.int32], int, int], None]
"""A matrix product ``accumulate(matrix, x, out, row, column)``: writes its sums for activations uint8
[rows, K] into int32 `out` from that row and column on."""

_BLOCK_BYTES = 1 << 18
"""Size of the columns of one block: a quarter of a small second-level cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Convolution(Generic[Matrix]):
    """A prepared convolution: one prepared matrix [M / groups, kh * kw * C / groups] for each conv group."""

    matrices: Sequence[Matrix]
    outputs: int
    x_zero: int
    channels: int
    kernel: tuple[int, int]
    window: Window


class PrepareMatmul(Protocol[Matrix_co]):
    """The preparation of a matrix product, as every matmul kernel has it."""

    def __call__(
        self,
        codes: NDArray[np.int8],
        alpha: NDArray[np.uint8],
        group: NDArray[np.int32],
        bias: NDArray[np.int32],
        x_zero: int,
        /,
    ) -> Matrix_co:
        """Prepare codes int8 [M, K]."""


def prepare(
    codes: NDArray[np.int8],
    alpha: NDArray[np.uint8],
    group: NDArray[np.int32],
    bias: NDArray[np.int32],
    x_zero: int,
    window: Window,
    prepare_matmul: PrepareMatmul[Matrix],
) -> Convolution[Matrix]:
    """Prepare each conv group's kernel as a matrix whose K runs over rows, columns and channels of taps.

    Each tap has scale groups of its own, so K has ``kh * kw * G`` of them.

    Parameters
    ----------
    codes, alpha, group, bias, x_zero
        As in :func:`fgq.kernels.weights.check_conv2d_weights`.
    window : Window
        The geometry.
    prepare_matmul : callable
        Prepares one matrix.
    """
    outputs, height, width, inputs = codes.shape
    taps = np.arange(height * width, dtype=np.int32)[:, None]
    matmul_group = (taps * np.int32(alpha.shape[-1]) + group).reshape(-1)
    matrices = [
        prepare_matmul(rows, scales, matmul_group, added, x_zero)
        for rows, scales, added in zip(
            np.split(codes.reshape(outputs, -1), window.groups),
            np.split(alpha.reshape(outputs, -1), window.groups),
            np.split(bias, window.groups),
            strict=True,
        )
    ]
    return Convolution(matrices, outputs, x_zero, inputs * window.groups, (height, width), window)


def convolve(
    prepared: Convolution[Matrix], x: NDArray[np.uint8], accumulate: Accumulate[Matrix]
) -> NDArray[np.int32]:
    """Convolve activations uint8 NHWC [B, H, W, C] into sums int32 NHWC [B, OH, OW, M].

    Parameters
    ----------
    prepared : Convolution
        The prepared weights.
    x : ndarray of uint8, shape (B, H, W, C)
        Activations in C order.
    accumulate : callable
        The matrix product for one of the prepared matrices.
    """
    window, kernel = prepared.window, prepared.kernel
    size = window.output_size(x.shape[1], x.shape[2], kernel)
    pixels = x.shape[0] * size[0] * size[1]
    acc = np.empty((pixels, prepared.outputs), np.int32)
    inputs, outputs = prepared.channels // window.groups, prepared.outputs // window.groups
    if kernel == (1, 1) and window == Window():
        accumulate(prepared.matrices[0], x.reshape(pixels, inputs), acc, 0, 0)
    else:
        length = kernel[0] * kernel[1] * inputs
        step = max(64, _BLOCK_BYTES // length // 64 * 64)
        columns = np.empty((min(step, pixels), length), np.uint8)
        for start in range(0, pixels, step):
            block = columns[: pixels - start]
            for index, matrix in enumerate(prepared.matrices):
                _im2col(
                    x, block, start, index * inputs, inputs, kernel, size,
                    window.strides, window.pads[:2], window.dilations, prepared.x_zero,
                )  # fmt: skip
                accumulate(matrix, block, acc, start, index * outputs)
    return acc.reshape(x.shape[0], *size, prepared.outputs)


@jit
def _im2col(
    x: NDArray[np.uint8],
    columns: NDArray[np.uint8],
    start: int,
    channel: int,
    inputs: int,
    kernel: tuple[int, int],
    size: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int],
    dilations: tuple[int, int],
    fill: int,
) -> None:
    """Write the taps of output pixels `start`, `start + 1`, .. into the rows of `columns`."""
    images, height, width, channels = x.shape
    lines = x.reshape(images, height, width * channels)
    # taps side by side are one run of bytes if the kernel sees all channels
    joined = inputs == channels and dilations[1] == 1
    for pixel in range(columns.shape[0]):
        image, place = divmod(start + pixel, size[0] * size[1])
        down, right = divmod(place, size[1])
        first = right * strides[1] - pads[1]
        inside = joined and first >= 0 and first + kernel[1] <= width
        step = kernel[1] if inside else 1
        filled = 0
        for i in range(kernel[0]):
            y = down * strides[0] - pads[0] + i * dilations[0]
            for j in range(0, kernel[1], step):
                z = first + j * dilations[1]
                taps = columns[pixel, filled : filled + step * inputs]
                if 0 <= y < height and 0 <= z < width:
                    begin = z * channels + channel
                    seen = lines[image, y, begin : begin + step * inputs]
                    for c in range(taps.size):
                        taps[c] = seen[c]
                else:
                    for c in range(taps.size):
                        taps[c] = fill
                filled += step * inputs
