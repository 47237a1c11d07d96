"""Resize: every axis by itself, nearest values by index and interpolations by a small matrix.

Positions are computed in float32, in the order of operations of onnxruntime's CPU provider
(onnxruntime/core/providers/cpu/tensor/upsamplebase.h), so that integers picked by the nearest position are
the same. An interpolated value is ``sum_i f(s * (i - at)) * x[i]``, divided by the sum of the weights: f is a
triangle, or the cubic of R. Keys, Cubic convolution interpolation for digital image processing, IEEE
Transactions on Acoustics, Speech, and Signal Processing 29, 1981; s is 1, or with `antialias` the scale where
it is below 1.

Two things are as ONNX's own tests want them, and not as in onnxruntime: interpolated integers are rounded,
where it drops the fraction, and align_corners keeps the fraction of a size that scales give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fgq.errors import ModelError
from fgq.runtime.operators.cast import computable, limits
from fgq.runtime.operators.operator import Array

_SUPPORT = {"linear": 1, "cubic": 2}

_POLICIES = {"not_larger": np.min, "not_smaller": np.max}

_TIE = 1e-6
"""Positions so near to the middle of two values count as the middle (onnxruntime 1.31)."""


def resize(
    x: Array,
    *parameters: Array | None,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str | None = None,
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str | None = None,
    opset: int,
) -> Array:
    """Resize to scales or sizes; `parameters` are (scales) in opset 10, (roi, scales, sizes) since."""
    if opset < 11:
        parameters = (None, *parameters)
        coordinate_transformation_mode, nearest_mode = "asymmetric", "simple"
    roi, scales, sizes = (None if p is None or p.size == 0 else p for p in (*parameters, None, None)[:3])
    chosen = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes]
    transformation = coordinate_transformation_mode or "half_pixel"
    crops = transformation == "tf_crop_and_resize"

    wide, outside = computable(x), []
    for way in _ways(x.shape, chosen, roi, scales, sizes, keep_aspect_ratio_policy):
        if way.size == way.made and way.factor == 1 and not crops:
            continue
        at = _positions(transformation, way)
        if crops:
            lies = (at < 0) | (at > way.size - 1)
            outside.append(lies.reshape(-1, *[1] * (x.ndim - way.axis - 1)))
        if mode == "nearest":
            wide = wide.take(_nearest(at, way, nearest_mode or "round_prefer_floor"), way.axis)
            continue
        sharpness = min(float(way.factor), 1.0) if antialias else 1.0
        weights = _weights(at, way.size, mode, sharpness, cubic_coeff_a, bool(exclude_outside))
        weights = weights.astype(np.result_type(wide, np.float32))
        wide = np.moveaxis(np.moveaxis(wide, way.axis, -1) @ weights.T, -1, way.axis)
    for lies in outside:
        wide = np.where(lies, extrapolation_value, wide)
    ends = limits(x.dtype)
    if ends is not None and mode != "nearest":
        wide = np.clip(np.rint(wide), *ends)
    return wide.astype(x.dtype, copy=False)


@dataclass(frozen=True, slots=True)
class _Way:
    """An axis, and how it changes.

    Parameters
    ----------
    axis, size, made : int
        Which axis, and its length before and after.
    factor : float32
        The scale.
    width : float32
        How many new values there would be if there could be a fraction of one.
    start, end : float32
        The part that tf_crop_and_resize cuts out, between 0 and 1.
    """

    axis: int
    size: int
    made: int
    factor: np.float32
    width: np.float32
    start: np.float32
    end: np.float32


def _ways(
    shape: tuple[int, ...],
    axes: Sequence[int],
    roi: Array | None,
    scales: Array | None,
    sizes: Array | None,
    policy: str,
) -> list[_Way]:
    """Read how each axis changes; with a policy other than ``stretch`` all have the same factor."""
    if (scales is None) == (sizes is None):
        raise ModelError("found scales and sizes or neither, wanted one of them")
    length = np.array([shape[axis] for axis in axes], np.float32)
    if scales is not None:
        factors = scales.astype(np.float32)
        widths = factors * length
        made = np.floor(widths)
    elif policy == "stretch":
        made = np.asarray(sizes)
        widths = made.astype(np.float32)
        factors = widths / length
    elif policy in _POLICIES:
        factors = np.full(len(length), _POLICIES[policy](np.asarray(sizes, np.float32) / length))
        made = widths = np.floor(factors * length + np.float32(0.5))
    else:
        raise ModelError(
            f"keep_aspect_ratio_policy: found {policy!r}, wanted stretch, not_larger or not_smaller"
        )
    region = np.repeat([[0.0], [1.0]], len(axes), 1) if roi is None else roi.reshape(2, -1)
    columns = (factors, widths, *region.astype(np.float32))
    return [
        _Way(axis, shape[axis], int(new), *values)
        for axis, new, *values in zip(axes, made, *columns, strict=True)
    ]


def _positions(mode: str, way: _Way) -> Array:
    """Return where each new value lies among the old ones (ONNX Resize, coordinate_transformation_mode)."""
    size, made, factor = np.float32(way.size), way.made, way.factor
    last = size - np.float32(1)
    new: Array = np.arange(made, dtype=np.float32)
    half, one = np.float32(0.5), np.float32(1)
    if mode == "asymmetric":
        return new / factor
    if mode == "half_pixel":
        return (new + half) / factor - half
    if mode == "half_pixel_symmetric":
        offset = size / 2 * (one - np.float32(made) / (factor * size))
        return np.asarray(offset + (new + 0.5).astype(np.float64) / factor - 0.5, np.float32)
    if mode == "pytorch_half_pixel":
        return (new + half) / factor - half if made > 1 else new
    if mode == "tf_half_pixel_for_nn":
        return (new + half) / factor
    if mode == "align_corners":
        return new * last / (way.width - one) if made > 1 else new
    if mode == "tf_crop_and_resize":
        if made == 1:
            return new + half * (way.start + way.end) * last
        return way.start * last + new * (way.end - way.start) * last / np.float32(made - 1)
    raise ModelError(f"coordinate_transformation_mode: found {mode!r}, wanted one of ONNX's")


def _nearest(at: Array, way: _Way, mode: str) -> Array:
    """Return the index of the nearest old value."""
    whole = np.floor(at)
    above = (at - whole).astype(np.float64) - 0.5
    rules = {
        "simple": np.ceil(at) if way.factor < 1 else np.trunc(at),
        "floor": whole,
        "ceil": np.ceil(at),
        "round_prefer_floor": whole + (above > _TIE),
        "round_prefer_ceil": whole + (above >= -_TIE),
    }
    if mode not in rules:
        raise ModelError(f"nearest_mode: found {mode!r}, wanted one of ONNX's")
    index: Array = np.clip(rules[mode], 0, way.size - 1)
    return index.astype(np.intp)


def _weights(at: Array, size: int, mode: str, sharpness: float, a: float, exclude_outside: bool) -> Array:
    """Return the matrix [new values, old values] of an interpolation.

    Positions outside stand for the first or last value, or for nothing with `exclude_outside`.
    """
    if mode not in _SUPPORT:
        raise ModelError(f"mode: found {mode!r}, wanted nearest, linear or cubic")
    reach = math.ceil(_SUPPORT[mode] / sharpness)
    exact = at.astype(np.float64)[:, None]
    near = np.floor(exact) + np.arange(1 - reach, reach + 1)
    away = np.abs(near - exact) * sharpness
    if mode == "linear":
        weight = np.maximum(1 - away, 0)
    else:
        inner = ((a + 2) * away - (a + 3)) * away**2 + 1
        outer = a * (((away - 5) * away + 8) * away - 4)
        weight = np.where(away <= 1, inner, np.where(away < 2, outer, 0))
    if exclude_outside:
        weight[(near < 0) | (near > size - 1)] = 0
    weight /= weight.sum(1, keepdims=True)
    matrix = np.zeros((len(at), size))
    np.add.at(matrix, (np.arange(len(at))[:, None], np.clip(near, 0, size - 1).astype(np.intp)), weight)
    return matrix


OPERATORS = {"Resize": resize}
