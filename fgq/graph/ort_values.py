"""What onnxruntime computes in types that NumPy does not have: bfloat16 and floats of 8 bits.

onnxruntime's own ``run`` refuses them; as OrtValues they pass. Here they are arrays of `ml_dtypes`.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import OrtValue

_TYPES = {
    f"tensor({name})": np.dtype(getattr(ml_dtypes, scalar))
    for name, scalar in {
        "bfloat16": "bfloat16",
        "float8e4m3fn": "float8_e4m3fn",
        "float8e4m3fnuz": "float8_e4m3fnuz",
        "float8e5m2": "float8_e5m2",
        "float8e5m2fnuz": "float8_e5m2fnuz",
    }.items()
}
"""onnxruntime's types that NumPy has through `ml_dtypes` alone."""


def needs_values(session: Any) -> bool:
    """Tell whether an input or output of an onnxruntime session is of such a type."""
    return any(known.type in _TYPES for known in (*session.get_inputs(), *session.get_outputs()))


def run_values(session: Any, names: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
    """Run an onnxruntime session as its ``run`` does, with arrays of such types too.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
    names : sequence of str or None
        Of the outputs; None for all.
    feed : mapping of str to ndarray

    Returns
    -------
    list of ndarray
    """
    wanted = [known.name for known in session.get_outputs()] if names is None else list(names)
    values = session.run_with_ort_values(wanted, {name: _value(array) for name, array in feed.items()})
    return [_array(value) for value in values]


def _value(array: NDArray[Any]) -> OrtValue:
    if array.dtype not in _TYPES.values():
        return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
    bits = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
    return OrtValue.ortvalue_from_numpy_with_onnx_type(
        bits, onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    )


def _array(value: OrtValue) -> NDArray[Any]:
    dtype, shape = _TYPES.get(value.data_type()), value.shape()
    if dtype is None:
        numbers: NDArray[Any] = value.numpy()
        return numbers
    size = math.prod(shape) * dtype.itemsize
    contents = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(bytearray(contents), dtype).reshape(shape)
