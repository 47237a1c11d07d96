"""What an ONNX file may say in more than one way, said in one.

onnxruntime takes all of them; `onnx_ir` and what is built on it know one each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from fgq.errors import ModelError
from fgq.format.maps import forget_maps, holds_map

_MOST_DENSE = 1 << 31
"""Bytes of a sparse tensor made dense beyond which it is refused; protobuf ends there."""

_Nodes = onnx.GraphProto | onnx.FunctionProto


def plain(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return the same model in its plainest form, itself where it is in it already.

    1. The standard operators' domain is written as the empty string, not as ``ai.onnx``.
    2. An axis of any length has no size, not a negative one.
    3. Sparse tensors are dense.
    4. Nothing is said of maps between the nodes.

    Parameters
    ----------
    proto : onnx.ModelProto
        Not changed.
    name : str
        What errors call the model.

    Raises
    ------
    ModelError
        If a sparse tensor contradicts itself or is too large.
    """
    if not any(_is_other(part) for part in _parts(proto)) and not _named_otherwise(proto.opset_import):
        return proto
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    _rename_domain(changed.opset_import)
    for part in _parts(changed):
        _make_plain(part, name)
    return changed


def _parts(proto: onnx.ModelProto) -> Iterator[_Nodes]:
    """Yield the graph, the functions, and the graphs inside them."""
    waiting: list[_Nodes] = [proto.graph, *proto.functions]
    while waiting:
        part = waiting.pop()
        yield part
        for node in part.node:
            for attribute in node.attribute:
                waiting.extend(attribute.graphs)
                if attribute.HasField("g"):
                    waiting.append(attribute.g)


def _is_other(part: _Nodes) -> bool:
    if any(node.domain == "ai.onnx" or _sparse_attribute(node) for node in part.node):
        return True
    if isinstance(part, onnx.FunctionProto):
        return _named_otherwise(part.opset_import)
    if part.sparse_initializer or any(holds_map(value.type) for value in part.value_info):
        return True
    return any(dim.dim_value < 0 for dim in _axes(part))


def _make_plain(part: _Nodes, name: str) -> None:
    for node in part.node:
        if node.domain == "ai.onnx":
            node.domain = ""
        sparse = _sparse_attribute(node)
        if sparse is not None:
            dense = _dense(sparse.sparse_tensor, name)
            node.attribute.remove(sparse)
            node.attribute.append(onnx.helper.make_attribute("value", dense))
    if isinstance(part, onnx.FunctionProto):
        _rename_domain(part.opset_import)
        return
    part.initializer.extend(_dense(sparse, name) for sparse in part.sparse_initializer)
    del part.sparse_initializer[:]
    forget_maps(part)
    for dim in _axes(part):
        if dim.dim_value < 0:
            dim.ClearField("dim_value")


def _axes(graph: onnx.GraphProto) -> Iterator[onnx.TensorShapeProto.Dimension]:
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield from value.type.tensor_type.shape.dim


def _named_otherwise(imports: Iterable[onnx.OperatorSetIdProto]) -> bool:
    return any(entry.domain == "ai.onnx" for entry in imports)


def _rename_domain(imports: Iterable[onnx.OperatorSetIdProto]) -> None:
    for entry in imports:
        if entry.domain == "ai.onnx":
            entry.domain = ""


def _sparse_attribute(node: onnx.NodeProto) -> onnx.AttributeProto | None:
    if node.op_type != "Constant":
        return None
    return next((found for found in node.attribute if found.HasField("sparse_tensor")), None)


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    """Return a tensor of COO format as a dense one of the name of its values."""
    label, shape = sparse.values.name, tuple(sparse.dims)
    where = f"{name}: sparse tensor {label!r}"
    for tensor in (sparse.values, sparse.indices):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError(f"{where}: found external data, wanted them in the model")
    try:
        values = numpy_helper.to_array(sparse.values)
        places = _places(numpy_helper.to_array(sparse.indices), shape)
    except Exception as error:
        raise ModelError(f"{where}: found data that do not fit its shape {list(shape)} ({error})") from None
    size = math.prod(shape)
    if min(shape, default=0) < 0 or size * values.itemsize > _MOST_DENSE:
        raise ModelError(f"{where}: found the shape {list(shape)}, wanted at most {_MOST_DENSE} bytes")
    if places.shape != values.shape or (places.size and not 0 <= places.min() <= places.max() < size):
        raise ModelError(f"{where}: found values or places that do not fit its shape {list(shape)}")
    dense = np.zeros(size, values.dtype)
    dense[places] = values
    return numpy_helper.from_array(dense.reshape(shape), label)


def _places(indices: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return where the values lie among all elements: indices are one number each, or one for each axis."""
    if indices.ndim == 1:
        return indices
    found: NDArray[np.int64] = np.ravel_multi_index(tuple(indices.T), shape)
    return found
