"""What a model's inputs and outputs are, and whether the arrays that are fed fit them.

The rules are onnxruntime's (1.31, InferenceSession.run), the messages say more:

- every input is fed, and nothing else; one of an optional type may be left out;
- dtypes are equal, nothing is converted, except plain Python values (lists, numbers, strings), which have no
  dtype of their own, and the byte order; an OrtValue and anything else with a ``numpy`` method or
  ``__array__`` counts as the array that it gives. Unlike onnxruntime, a number that the dtype cannot hold or
  would cut (1.5 as int64) is refused;
- ranks and fixed dimensions are equal. A tensor of no declared shape and a scalar look the same, ``[]``, and
  take any shape;
- a dimension's name is no constraint: two inputs ``[N, 3]`` and ``[N]`` may disagree about ``N``. Exporters
  reuse names freely, and an operator that needs equal sizes says so itself.

A good feed costs about a microsecond for each input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeArg:
    """The name, shape and type of an input or output, as onnxruntime describes them.

    Parameters
    ----------
    name : str
    shape : list of int, str or None
        A name or None stands for a dimension that may vary; empty for a scalar, an unknown shape and a
        sequence.
    type : str
        Such as ``tensor(float)`` or ``seq(tensor(int64))``.
    """

    name: str
    shape: list[int | str | None]
    type: str

    @classmethod
    def of(cls, value: ir.Value) -> NodeArg:
        """Describe a value of a graph.

        Parameters
        ----------
        value : onnx_ir.Value
        """
        kind = value.type.elem_type if isinstance(value.type, ir.OptionalType) else value.type
        dims = () if isinstance(kind, ir.SequenceType) or value.shape is None else value.shape
        shape = [(dim if dim >= 0 else None) if isinstance(dim, int) else dim.value for dim in dims]
        return cls(name=str(value.name), shape=shape, type=_type_name(value.type))


_WRAPPERS = {ir.SequenceType: "seq", ir.OptionalType: "optional"}


def _type_name(kind: Any) -> str:
    """Name a type as onnx's operator schemas and onnxruntime do: ``seq(tensor(float16))``."""
    if kind is None:
        return "tensor(undefined)"
    if type(kind) in _WRAPPERS:
        return f"{_WRAPPERS[type(kind)]}({_type_name(kind.elem_type)})"
    container = "sparse_tensor" if isinstance(kind, ir.SparseTensorType) else "tensor"
    return f"{container}({kind.dtype.name.lower()})"


_DTYPES = {
    f"tensor({data_type.name.lower()})": data_type.numpy()
    for data_type in ir.DataType
    if data_type is not ir.DataType.UNDEFINED
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_STRINGS = "tensor(string)"

_PYTHON = (list, tuple, bool, int, float, complex, str)
_HELD = {"b": "b", "u": "bui", "i": "bui", "f": "buif", "c": "buifc", "V": "buif"}
"""Kinds of dtypes that are read from plain Python values of which kinds; ``V`` are those of ml_dtypes."""


def check_feeds(specs: Sequence[NodeArg], feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is fed as arrays that fit the model's inputs.

    Parameters
    ----------
    specs : sequence of NodeArg
        The model's inputs.
    feeds : mapping of str to array_like
        A value for each.

    Returns
    -------
    dict of str to ndarray
        By the inputs' order; strings as objects. Sequences and what else is no tensor pass as they are.

    Raises
    ------
    DataError
        If an input is missing or unknown, or a value has another type, rank or dimension. The message names
        the input, what was found and what was wanted.
    """
    if not isinstance(feeds, dict | Mapping):
        raise DataError(f"inputs: found {type(feeds).__name__}, wanted a dict of arrays by input name")
    checked: dict[str, Any] = {}
    for spec in specs:
        name, wanted = spec.name, spec.shape
        array = feeds.get(name)
        if type(array) is not np.ndarray or array.dtype != _DTYPES.get(spec.type):
            if name not in feeds:
                if spec.type.startswith("optional"):
                    continue
                _refuse_names(specs, feeds)
            array = _array(spec, array)
            if not isinstance(array, np.ndarray):
                checked[name] = array
                continue
        if wanted:
            if len(wanted) != array.ndim:
                _refuse_shape(spec, array)
            for found, size in zip(array.shape, wanted, strict=True):
                if found != size and isinstance(size, int):
                    _refuse_shape(spec, array)
        checked[name] = array
    if len(checked) != len(feeds):
        _refuse_names(specs, feeds)
    return checked


def _array(spec: NodeArg, value: Any) -> Any:
    """Return a value as an array of the input's dtype, or as it is where the input is no tensor."""
    dtype = _DTYPES.get(spec.type)
    if dtype is None:
        return value
    if isinstance(value, _PYTHON) and not isinstance(value, np.generic):
        return _read(spec, value, dtype)
    if not isinstance(value, np.ndarray | np.generic) and hasattr(value, "numpy"):
        value = value.numpy()
    if not hasattr(value, "__array__"):
        _refuse_type(spec, type(value).__name__)
    array = np.asarray(value)
    if spec.type == _STRINGS and array.dtype.kind in "UOT":
        return array.astype(object)
    if array.dtype.newbyteorder("=") != dtype:
        _refuse_type(spec, _NAMES.get(array.dtype, f"tensor({array.dtype})"))
    return array.astype(dtype, copy=False)


def _read(spec: NodeArg, value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Read plain Python values, whose dtype is the input's if it can hold them."""
    try:
        plain = np.asarray(value)
        if spec.type == _STRINGS and plain.dtype.kind == "U":
            return plain.astype(object)
        if plain.size and plain.dtype.kind not in _HELD.get(dtype.kind, ""):
            _refuse_type(spec, f"Python values of type {plain.dtype}")
        return np.asarray(value, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"input {spec.name!r}: found values that are no array ({error}), wanted {spec.type}"
        ) from None


def _refuse_names(specs: Sequence[NodeArg], feeds: Mapping[str, Any]) -> NoReturn:
    names = [spec.name for spec in specs]
    missing = [spec.name for spec in specs if spec.name not in feeds]
    surplus = [name for name in feeds if name not in names]
    found, wanted = (", ".join(sorted(map(str, some))) or "none" for some in (feeds, names))
    if surplus:
        what = f"invalid input name {str(surplus[0])!r}"
    else:
        what = f"required inputs ({', '.join(missing)}) are missing from the feed"
    raise DataError(f"inputs: {what}: found {found}, wanted {wanted}")


def _refuse_type(spec: NodeArg, found: str) -> NoReturn:
    raise DataError(f"input {spec.name!r}: unexpected data type: found {found}, wanted {spec.type}")


def _refuse_shape(spec: NodeArg, array: NDArray[Any]) -> NoReturn:
    shapes = f"found {list(array.shape)}, wanted [{', '.join(map(_dimension, spec.shape))}]"
    if array.ndim != len(spec.shape):
        raise DataError(f"input {spec.name!r}: invalid rank {array.ndim}: {shapes}")
    wrong = [
        f"index {index} is {found}, not {size}"
        for index, (found, size) in enumerate(zip(array.shape, spec.shape, strict=True))
        if isinstance(size, int) and found != size
    ]
    raise DataError(f"input {spec.name!r}: invalid dimensions: {shapes} ({', '.join(wrong)})")


def _dimension(size: int | str | None) -> str:
    return "?" if size is None else str(size)
