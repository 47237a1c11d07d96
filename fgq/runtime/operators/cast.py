"""Casts between all types of ONNX, those of 8, 6, 4 and 2 bits included (ml_dtypes)."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from fgq.errors import ModelError
from fgq.runtime.operators.operator import Array

_SATURATING = {
    np.dtype(kind)
    for kind in (
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e4m3fnuz,
        ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e5m2fnuz,
    )
}
_POWERS = np.dtype(ml_dtypes.float8_e8m0fnu)
_NARROW = {np.dtype(getattr(ml_dtypes, name)) for name in ("int4", "uint4", "int2", "uint2")}
_HALF = {np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)}


def dtype_of(code: int) -> np.dtype[Any]:
    """Return NumPy's name for an element type of ONNX.

    Parameters
    ----------
    code : int
        Of ``TensorProto.DataType``.

    Raises
    ------
    ModelError
        If there is no such type.
    """
    try:
        return ir.DataType(code).numpy()
    except (ValueError, TypeError):
        raise ModelError(f"element type: found {code}, wanted one of ONNX's") from None


def limits(dtype: np.dtype[Any]) -> tuple[int, int] | None:
    """Return the smallest and the largest number of an integer type, None for other types.

    Parameters
    ----------
    dtype : dtype
    """
    if dtype.kind not in "iu" and dtype not in _NARROW:
        return None
    info = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
    return int(info.min), int(info.max)


def computable(x: Array) -> Array:
    """Return half-precision values as float32, in which onnxruntime computes with them.

    Parameters
    ----------
    x : ndarray
        Of any type; others come back as they are.
    """
    return x.astype(np.float32) if x.dtype in _HALF else x


def convert(x: Array, dtype: np.dtype[Any], *, saturate: bool = True, round_mode: str = "up") -> Array:
    """Return values in another type (ONNX Cast).

    Integers lose their upper bits; floats lose their fraction on the way to integers, and what is out of
    range there is undefined. Floats of 8 bits saturate, infinities included, or overflow as the type does.

    Parameters
    ----------
    x : ndarray
    dtype : dtype
        ``object`` for strings.
    saturate : bool
        For floats of 8 bits alone.
    round_mode : {"up", "down", "nearest"}
        For float8e8m0 alone.
    """
    if x.dtype == dtype:
        return x
    if x.dtype.kind == "O":
        return _parsed(x, dtype)
    if dtype.kind == "O":
        return _printed(x)
    if dtype == _POWERS:
        return _power(x.astype(np.float32), saturate, round_mode)
    if saturate and dtype in _SATURATING:
        info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
        wide = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
        limited: Array = np.clip(wide, float(info.min), float(info.max))
        return limited.astype(dtype)
    try:
        return x.astype(dtype)
    except TypeError:  # between two types of ml_dtypes, which are all exact in float32
        return x.astype(np.float32).astype(dtype)


def _power(x: Array, saturate: bool, round_mode: str) -> Array:
    """Round to a power of two, FLOAT8E8M0 (Open Compute Project, Microscaling Formats 1.0, section 5.4)."""
    mantissa, exponent = np.frexp(np.abs(x))  # |x| = mantissa * 2**exponent with mantissa in [0.5, 1)
    steps = {"down": mantissa >= 1, "up": mantissa > 0.5, "nearest": mantissa >= 0.75}
    if round_mode not in steps:
        raise ModelError(f"round_mode: found {round_mode!r}, wanted up, down or nearest")
    power = exponent + 126 + steps[round_mode]  # the exponent's bits, 127 for 1.0
    power = np.where(x == 0, -1, np.where(np.isinf(x), 255, power))
    fits = (power >= 0) & (power <= 254)
    bits = np.clip(power, 0, 254) if saturate else np.where(fits, power, 255)
    return np.where(np.isnan(x), 255, bits).astype(np.uint8).view(_POWERS)


def _printed(x: Array) -> Array:
    """Write numbers as strings, floats as onnxruntime does, with 8 significant digits."""
    special = {"inf": "INF", "-inf": "-INF", "nan": "NaN"}
    if x.dtype.kind in "biu" or x.dtype in _NARROW:
        texts = [str(int(value)) for value in x.reshape(-1)]
    else:
        plain = (f"{float(value):.8g}" for value in x.reshape(-1))
        texts = [special.get(text, text) for text in plain]
    return np.array(texts, object).reshape(x.shape)


def _parsed(x: Array, dtype: np.dtype[Any]) -> Array:
    """Read numbers from strings; integers may have a fraction, which is dropped."""
    whole = dtype.kind in "biu" or dtype in _NARROW
    numbers = [_whole(str(text)) if whole else float(text) for text in x.reshape(-1)]
    wide = np.array(numbers, object if whole else np.float64)
    return wide.reshape(x.shape).astype(dtype)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return int(float(text))


def cast(x: Array, /, *, to: int, saturate: int = 1, round_mode: str = "up") -> Array:
    """Cast to the element type `to`."""
    return convert(x, dtype_of(to), saturate=bool(saturate), round_mode=round_mode)


OPERATORS = {"Cast": cast}
