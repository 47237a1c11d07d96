"""Depthwise convolution with 8-bit weights on any processor: one input channel per filter.

Channels lie next to each other in NHWC, so a tap multiplies all channels of a pixel at once; LLVM turns
the loop over channels into vector instructions. Taps on the padding are skipped, since there
``x - x_zero`` is 0. Overflow: as in :mod:`fgq.kernels.weights`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.weights import int8_weights
from fgq.kernels.window import Window


@dataclass(frozen=True, slots=True, eq=False)
class Depthwise:
    """Prepared weights: ``w8`` as int8 [kh, kw, M], output channels last."""

    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    x_zero: int
    window: Window

    @property
    def channels(self) -> int:
        """C, as many as conv groups."""
        return self.window.groups


def prepare_conv2d(
    codes: NDArray[np.int8],
    alpha: NDArray[np.uint8],
    group: NDArray[np.int32],
    bias: NDArray[np.int32],
    x_zero: int,
    window: Window,
) -> Depthwise:
    """Unpack the weights; arguments as in :func:`fgq.kernels.weights.check_conv2d_weights`."""
    weights = int8_weights(codes, alpha, group)[..., 0].transpose(1, 2, 0)
    return Depthwise(np.ascontiguousarray(weights), np.require(bias, requirements=["C", "W"]), x_zero, window)


def run_conv2d(prepared: Depthwise, x: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Convolve activations uint8 NHWC [B, H, W, C], C order, into sums int32 NHWC [B, OH, OW, M]."""
    height, width, outputs = prepared.weights.shape
    window = prepared.window
    size = window.output_size(x.shape[1], x.shape[2], (height, width))
    if outputs != prepared.channels:
        x = np.repeat(x, outputs // prepared.channels, axis=3)
    acc = np.empty((x.shape[0], *size, outputs), np.int32)
    _slide(
        x, prepared.weights, prepared.bias, prepared.x_zero,
        window.strides, window.pads[:2], window.dilations, acc,
    )  # fmt: skip
    return acc


@jit
def _slide(
    x: NDArray[np.uint8],
    weights: NDArray[np.int8],
    bias: NDArray[np.int32],
    x_zero: int,
    strides: tuple[int, int],
    pads: tuple[int, int],
    dilations: tuple[int, int],
    out: NDArray[np.int32],
) -> None:
    zero = np.int32(x_zero)
    for b in range(out.shape[0]):
        for down in range(out.shape[1]):
            for right in range(out.shape[2]):
                acc = out[b, down, right]
                for m in range(bias.size):
                    acc[m] = bias[m]
                for i in range(weights.shape[0]):
                    y = down * strides[0] - pads[0] + i * dilations[0]
                    if y < 0 or y >= x.shape[1]:
                        continue
                    for j in range(weights.shape[1]):
                        z = right * strides[1] - pads[1] + j * dilations[1]
                        if z < 0 or z >= x.shape[2]:
                            continue
                        taps, seen = weights[i, j], x[b, y, z]
                        for m in range(bias.size):
                            acc[m] += taps[m] * (np.int32(seen[m]) - zero)
