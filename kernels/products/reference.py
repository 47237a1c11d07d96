"""The reference kernel: plain NumPy, exact, and the judge of all others.

Why float64 gives the integers: weights are integers of magnitude 127 at most and ``x - x_zero`` integers
of magnitude 255 at most, so a product is an integer below 2**15, and any partial sum of K <= 66,000
products, in whatever order a BLAS library adds them and with or without fused multiply-add, is an integer
below 66,000 * 255 * 127 < 2**31. Every integer below 2**53 is a float64, so no step ever rounds.
Longer reductions are exact up to K = 2**53 / (255 * 127), about 2.8e11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels.products.epilogue import Epilogue, finisher
from fgq.kernels.products.weights import Weight
from fgq.kernels.simd.isa import InstructionSet, available, index_of
from fgq.kernels.window import Window

_BLOCK_BYTES = 1 << 24
"""Memory for the float64 activations of one block."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A prepared layer.

    Parameters
    ----------
    weights : ndarray of float64, shape (groups, K, M / groups)
        ``w8``, with K = kh * kw * C / groups.
    bias : ndarray of int32, shape (M,)
        Added to the sums.
    x_zero : int
        Zero point of the activations.
    taps : tuple of int
        Kernel rows and columns.
    window : Window
        The geometry; that of a matrix product is the plain one.
    """

    weights: NDArray[np.float64]
    bias: NDArray[np.int32]
    x_zero: int
    taps: tuple[int, int]
    window: Window


def prepare(
    weight: Weight,
    bias: NDArray[np.int32],
    x_zero: int,
    window: Window | None,
    isa: InstructionSet | None = None,
) -> Reference:
    """Unpack the weights; arguments as in :func:`fgq.kernels.products.weights.check_weights`."""
    taps = (1, 1) if window is None else (weight.shape[1], weight.shape[2])
    window = window or Window()
    by_group = weight.int8().reshape(window.groups, weight.shape[0] // window.groups, -1)
    return Reference(by_group.transpose(0, 2, 1).astype(np.float64), bias, x_zero, taps, window)


def scratch_shape(prepared: Reference, shape: tuple[int, ...], threads: int) -> tuple[int, int]:
    """Return threads and bytes of the scratch that an input of this shape needs: one, and none."""
    return 1, 0


def bind(
    prepared: Reference,
    x: NDArray[np.uint8],
    epilogue: Epilogue,
    residual: NDArray[Any] | None,
    out: NDArray[Any],
    scratch: NDArray[np.uint8],
) -> Callable[[], None]:
    """Return a function that runs a layer on activations uint8 NHWC [B, H, W, C], in the calling thread."""

    def run() -> None:
        out[...] = apply(sums(prepared, x), epilogue, residual)

    return run


def sums(prepared: Reference, x: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return int32 sums NHWC [B, OH, OW, M] for activations uint8 NHWC [B, H, W, C]."""
    window, kernel = prepared.window, prepared.taps
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
    inputs, outputs = x.shape[3] // window.groups, prepared.bias.size // window.groups
    for batch in range(x.shape[0]):
        for rows in _blocks(size[0], size[1] * inputs * kernel[0] * kernel[1]):
            for index, weights in enumerate(prepared.weights):
                seen = taps[batch, rows, :, index * inputs : (index + 1) * inputs]
                columns = seen.transpose(0, 1, 3, 4, 2).reshape(-1, weights.shape[0])
                made_sums = ((columns.astype(np.float64) - prepared.x_zero) @ weights).astype(np.int64)
                made = slice(index * outputs, (index + 1) * outputs)
                acc[batch, rows, :, made] = made_sums.reshape(-1, size[1], outputs) + prepared.bias[made]
    return acc


def apply(acc: NDArray[np.int32], epilogue: Epilogue, residual: NDArray[Any] | None) -> NDArray[Any]:
    """Finish whole sums at once, for a kernel that does not do so tile by tile.

    Parameters
    ----------
    acc : ndarray of int32, shape (.., M)
        Sums, the bias included.
    epilogue : Epilogue
        What becomes of them.
    residual : ndarray, shape (.., M), or None
        Added by the epilogue.
    """
    outputs = acc.shape[-1]
    out = np.empty(acc.shape, epilogue.dtype)
    rows = acc.reshape(-1, outputs)
    added = np.empty(0, np.uint8) if residual is None else residual.reshape(-1).view(np.uint8)
    finisher(index_of(available()[-1]))(
        rows, len(rows), outputs, 0, 0, np.zeros(outputs, np.int32), epilogue.integers,
        epilogue.factors(outputs), epilogue.floats, added, out.reshape(-1).view(np.uint8),
    )  # fmt: skip
    return out


def _blocks(count: int, length: int) -> Iterator[slice]:
    """Cut `count` rows of `length` float64 values into blocks of bounded memory."""
    step = max(1, _BLOCK_BYTES // (8 * length))
    for start in range(0, count, step):
        yield slice(start, start + step)
