"""From int32 sums to real values or to the next layer's activations, rounded as onnxruntime rounds.

    dequantize:  y  = clip(float32(acc) * scale[m]  (+ residual), lowest, highest)
    requantize:  yq = zero_point + round_half_even(clip(float32(acc) * multiplier[m],
                                                        lowest - zero_point, highest - zero_point))

with ``acc = sum + bias[m]``. All steps are float32: ``float32(acc)`` rounds to nearest even (above 2**24 it
is not exact), the product rounds once more. The second formula is that of MlasRequantizeOutput (onnxruntime,
onnxruntime/core/mlas/lib/quantize.cpp), which ends QLinearConv and QLinearMatMul: there the clipping comes
before the rounding, and ``multiplier = x_scale * row_scale / y_scale`` in float32.

A kernel hands each tile of sums over as soon as it is done, while it is still in the nearest cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fgq.errors import KernelError
from fgq.kernels._jit import jit

_ROUND = np.float32(1.5 * 2**23)
"""Floats near this one are 1 apart: adding it rounds |v| < 2**22 to an integer, half to even."""

_SUMS, _DEQUANTIZE, _REQUANTIZE = range(3)


class Epilogue(ABC):
    """What becomes of a layer's sums."""

    dtype: type[np.generic]
    """Of the result."""

    residual_dtype: type[np.generic] | None
    """Of the array that is added to the result, where one is."""

    @property
    @abstractmethod
    def integers(self) -> NDArray[np.int64]:
        """The whole-numbered parameters for compiled code; the first says which epilogue it is."""

    @abstractmethod
    def floats(self, outputs: int) -> NDArray[np.float32]:
        """Return the parameters per output channel, and behind them any others, for compiled code.

        Raises
        ------
        KernelError
            If there are not as many as output channels.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Sums(Epilogue):
    """The int32 sums themselves."""

    dtype = np.int32
    residual_dtype = None

    @property
    def integers(self) -> NDArray[np.int64]:
        """See :class:`Epilogue`."""
        return np.array([_SUMS], np.int64)

    def floats(self, outputs: int) -> NDArray[np.float32]:
        """See :class:`Epilogue`."""
        return np.empty(0, np.float32)


@cache
def finisher(tier: int) -> Any:
    """Return the function that finishes a tile of sums, compiled for an instruction set.

    ``finish(sums, rows, outputs, row, channel, bias, integers, floats, residual, out)`` takes the first
    `rows` x `outputs` of `sums`, int32 [>= rows, >= outputs], which belong to rows `row`, .. and channels
    `channel`, .. of the layer, and writes them into `out`, the bytes of an array [all rows, bias.size].
    `residual` are the bytes of another such array, or empty.
    """
    return _finish


@jit
def _finish(
    sums: NDArray[np.int32],
    rows: int,
    outputs: int,
    row: int,
    channel: int,
    bias: NDArray[np.int32],
    integers: NDArray[np.int64],
    floats: NDArray[np.float32],
    residual: NDArray[np.uint8],
    out: NDArray[np.uint8],
) -> None:
    whole = out.view(np.int32)
    for r in range(rows):
        begin = (row + r) * bias.size + channel
        for m in range(outputs):
            whole[begin + m] = sums[r, m] + bias[channel + m]


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
