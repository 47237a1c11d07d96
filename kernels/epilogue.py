"""From int32 sums to real values or to the next layer's activations, rounded as onnxruntime rounds.

    dequantize:  y  = float32(acc) * scale[m]
    requantize:  yq = zero_point + round_half_even(clip(float32(acc) * multiplier[m],
                                                        lowest - zero_point, highest - zero_point))

All steps are float32: ``float32(acc)`` rounds to nearest even (above 2**24 it is not exact), the product
rounds once more. The second formula is that of MlasRequantizeOutput (onnxruntime,
onnxruntime/core/mlas/lib/quantize.cpp), which ends QLinearConv and QLinearMatMul: there the clipping comes
before the rounding, and ``multiplier = x_scale * row_scale / y_scale`` in float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit

_ROUND = np.float32(1.5 * 2**23)
"""Floats near this one are 1 apart: adding it rounds |v| < 2**22 to an integer, half to even."""


def dequantize(acc: NDArray[np.int32], scale: ArrayLike) -> NDArray[np.float32]:
    """Return ``float32(acc) * scale``.

    Parameters
    ----------
    acc : ndarray of int32, shape (.., M)
        Sums of a quantized layer.
    scale : array_like of float32, shape (M,) or ()
        ``x_scale * row_scale`` per output channel.

    Returns
    -------
    ndarray of float32, shape (.., M)
        Real values.

    Raises
    ------
    KernelError
        If an array has another dtype or shape.
    """
    rows, factors = _rows_and_factors(acc, "scale", scale)
    out = np.empty(rows.shape, np.float32)
    _dequantize(rows, factors, out)
    return out.reshape(acc.shape)


def requantize(
    acc: NDArray[np.int32], multiplier: ArrayLike, zero_point: int, lowest: int = 0, highest: int = 255
) -> NDArray[np.uint8]:
    """Return the sums as activations of the next layer.

    Parameters
    ----------
    acc : ndarray of int32, shape (.., M)
        Sums of a quantized layer.
    multiplier : array_like of float32, shape (M,) or ()
        ``x_scale * row_scale / y_scale`` per output channel.
    zero_point : int
        The integer that means 0.0 in the result, 0..255.
    lowest, highest : int
        Range of the result within 0..255: 15 is the highest 4-bit activation, and ReLU has
        ``lowest = zero_point``.

    Returns
    -------
    ndarray of uint8, shape (.., M)
        Activations.

    Raises
    ------
    KernelError
        If an array has another dtype or shape, or the range is not within 0..255.
    """
    if not (0 <= lowest <= highest <= 255 and 0 <= zero_point <= 255):
        raise KernelError(
            f"activations: found range {lowest}..{highest} and zero point {zero_point}, wanted them in 0..255"
        )
    rows, factors = _rows_and_factors(acc, "multiplier", multiplier)
    out = np.empty(rows.shape, np.uint8)
    _requantize(rows, factors, zero_point, lowest, highest, out)
    return out.reshape(acc.shape)


def _rows_and_factors(
    acc: NDArray[np.int32], name: str, factors: ArrayLike
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    if acc.dtype != np.int32 or acc.ndim == 0:
        raise KernelError(f"acc: found {acc.dtype}{list(acc.shape)}, wanted int32[.., M]")
    channels = acc.shape[-1]
    given = np.asarray(factors)
    if given.dtype != np.float32 or given.shape not in ((), (channels,)):
        raise KernelError(
            f"{name}: found {given.dtype}{list(given.shape)}, wanted float32[{channels}] or one float32"
        )
    rows = np.require(acc, requirements=["C", "W"]).reshape(-1, channels)
    return rows, np.full(channels, given, np.float32)


@jit
def _dequantize(acc: NDArray[np.int32], scale: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    for r in range(acc.shape[0]):
        for m in range(acc.shape[1]):
            out[r, m] = np.float32(acc[r, m]) * scale[m]


@jit
def _requantize(
    acc: NDArray[np.int32],
    multiplier: NDArray[np.float32],
    zero_point: int,
    lowest: int,
    highest: int,
    out: NDArray[np.uint8],
) -> None:
    low, high, zero = np.float32(lowest - zero_point), np.float32(highest - zero_point), np.int32(zero_point)
    for r in range(acc.shape[0]):
        for m in range(acc.shape[1]):
            value = np.float32(acc[r, m]) * multiplier[m]
            value = value if value > low else low
            value = value if value < high else high
            out[r, m] = np.int32((value + _ROUND) - _ROUND) + zero
