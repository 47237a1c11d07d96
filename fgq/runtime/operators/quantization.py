"""From real values to integers and back.

    QuantizeLinear     xq = saturate(round_half_even(x / scale) + zero_point)
    DequantizeLinear   x  = (xq - zero_point) * scale

Half-precision values are computed in float32, as in onnxruntime; a NaN becomes the lowest integer, as in
onnxruntime on x86-64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fgq.errors import ModelError
from fgq.runtime.operators.cast import computable, convert, dtype_of, limits
from fgq.runtime.operators.operator import Array


def quantize_linear(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    /,
    *,
    axis: int = 1,
    saturate: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
) -> Array:
    """Quantize with a scale for the tensor, for each index of an axis or for each block along it."""
    dtype = dtype_of(output_dtype) if output_dtype else np.dtype(np.uint8)
    if zero_point is not None:
        dtype = zero_point.dtype
    step = _along(computable(scale), x.shape, axis, block_size)
    if precision:
        step = step.astype(dtype_of(precision))
    quotient = computable(computable(x).astype(step.dtype) / step)
    if limits(dtype) is None:
        zero = 0 if zero_point is None else _along(zero_point.astype(np.float32), x.shape, axis, block_size)
        return convert(quotient + zero, dtype, saturate=bool(saturate))
    return rounded(quotient, _zero(zero_point, dtype, x.shape, axis, block_size), dtype)


def dequantize_linear(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    /,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Array:
    """Dequantize with a scale for the tensor, for each index of an axis or for each block along it."""
    dtype = dtype_of(output_dtype) if output_dtype else scale.dtype
    if limits(x.dtype) is None:
        real = x.astype(np.float32)
    else:
        zero = _along(np.zeros(1, x.dtype) if zero_point is None else zero_point, x.shape, axis, block_size)
        real = (x.astype(np.int64) - zero.astype(np.int64)).astype(np.float32)
    return (real * _along(computable(scale), x.shape, axis, block_size)).astype(dtype, copy=False)


def dynamic_quantize_linear(x: Array, /) -> tuple[Array, Array, Array]:
    """Quantize to uint8 with the scale and the zero point that fit the values and 0.0."""
    lowest, highest = np.float32(x.min(initial=0)), np.float32(x.max(initial=0))
    scale = (highest - lowest) / np.float32(255)
    if highest == lowest:
        scale = np.float32(1)
    zero = rounded(np.asarray(-lowest / scale), 0, np.dtype(np.uint8))
    return rounded(x / scale, zero.astype(np.float32), zero.dtype), np.asarray(scale), zero


def rounded(real: Array, zero_point: Array | float, dtype: np.dtype[Any]) -> Array:
    """Round to integers, half to even, add the zero point and saturate.

    Parameters
    ----------
    real : ndarray of float32 or float64
        In steps of the result.
    zero_point : ndarray of the same type, or float
        What is added.
    dtype : dtype
        An integer type of 16 bits at most.
    """
    ends = limits(dtype)
    if ends is None:
        raise ModelError(f"zero point: found {dtype}, wanted an integer type")
    lowest, highest = ends
    whole = np.rint(real) + zero_point
    return np.asarray(np.clip(np.where(np.isnan(whole), lowest, whole), lowest, highest).astype(dtype))


def _zero(
    zero_point: Array | None, dtype: np.dtype[Any], shape: tuple[int, ...], axis: int, block_size: int
) -> Array | float:
    if zero_point is None:
        return 0.0
    return _along(zero_point.astype(np.float32), shape, axis, block_size)


def _along(values: Array, shape: tuple[int, ...], axis: int, block_size: int) -> Array:
    """Return scales or zero points in a shape that broadcasts with the tensor's.

    Raises
    ------
    ModelError
        If there are not as many as the granularity needs.
    """
    if block_size:
        sizes = list(shape)
        sizes[axis] = -(-shape[axis] // block_size)
        if list(values.shape) != sizes:
            raise ModelError(f"found scales {list(values.shape)}, wanted {sizes} for blocks of {block_size}")
        return np.repeat(values, block_size, axis).take(range(shape[axis]), axis)
    if values.size == 1:
        return values.reshape(())
    if values.ndim != 1 or values.size != shape[axis]:
        raise ModelError(f"found scales {list(values.shape)}, wanted one or {shape[axis]}")
    sizes = [1] * len(shape)
    sizes[axis] = values.size
    return values.reshape(sizes)


OPERATORS = {
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "QuantizeLinear": quantize_linear,
}
