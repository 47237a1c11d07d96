"""Changes to protobuf messages, field by field, and to bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import TensorProto

_INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    16,
    127,
    255,
    256,
    -(2**31),
    2**31 - 1,
    2**31,
    2**28,
    -(2**63),
    2**63 - 1,
    65536,
)
_FLOATS = (0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e-45, 1e-30, 1e30, 3e38, 0.5)
_TEXTS = (
    "",
    "x",
    "\0",
    "é",
    "../../x",
    "fgq",
    "ai.onnx",
    "com.microsoft",
    "a" * 3000,
    "%s",
    "\n",
    "\x1b[31m",
)


def field_by_field(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """Return a model with one to three fields changed.

    Parameters
    ----------
    model : onnx.ModelProto
    rng : numpy.random.Generator
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        special = _SPECIAL[int(rng.integers(len(_SPECIAL)))] if rng.random() < 0.5 else _any_field
        special(changed, rng)
    return changed


def byte_by_byte(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Return bytes with a few of them changed, cut out, put in, or taken from elsewhere."""
    changed = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 2, 4, 16]))):
        if not changed:
            break
        kind, at = rng.random(), int(rng.integers(len(changed)))
        length = int(rng.choice([1, 1, 2, 4, 8, 64]))
        if kind < 0.4:
            changed[at] ^= 1 << int(rng.integers(8))
        elif kind < 0.6:
            changed[at] = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))
        elif kind < 0.7:
            del changed[at : at + length]
        elif kind < 0.8:
            changed[at:at] = rng.bytes(length)
        elif kind < 0.88:
            source = int(rng.integers(max(1, len(other))))
            changed[at : at + length] = other[source : source + length]
        elif kind < 0.94:
            changed[at:at] = changed[max(0, at - 64) : at]
        else:
            del changed[at:]
    return bytes(changed)


def _sites(message: Message, found: dict[str, list[tuple[Message, FieldDescriptor]]]) -> None:
    for descriptor, value in message.ListFields():
        found.setdefault(descriptor.full_name, []).append((message, descriptor))
        if descriptor.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if _repeated(descriptor) else (value,):
                _sites(inner, found)


def _repeated(descriptor: FieldDescriptor) -> bool:
    return bool(descriptor.is_repeated)


def _pick(rng: np.random.Generator, choices: Any) -> Any:
    choices = list(choices)
    return choices[int(rng.integers(len(choices)))]


def _any_field(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Change a field of any message: of each name of field as often."""
    found: dict[str, list[tuple[Message, FieldDescriptor]]] = {}
    _sites(model, found)
    sites = found[_pick(rng, sorted(found))]
    message, descriptor = _pick(rng, sites)
    if rng.random() < 0.12:
        message.ClearField(descriptor.name)
        return
    if rng.random() < 0.05:  # a field that is not there
        unset = [one for one in message.DESCRIPTOR.fields if one.type != FieldDescriptor.TYPE_MESSAGE]
        descriptor = _pick(rng, unset) if unset else descriptor
    value = getattr(message, descriptor.name)
    if descriptor.type == FieldDescriptor.TYPE_MESSAGE:
        _change_message(message, descriptor, [getattr(one, descriptor.name) for one, _ in sites], rng)
    elif _repeated(descriptor):
        if len(value) and rng.random() < 0.7:
            at = int(rng.integers(len(value)))
            value[at] = _scalar(descriptor, value[at], sites, rng)
        elif len(value) and rng.random() < 0.5:
            del value[int(rng.integers(len(value)))]
        else:
            value.append(_scalar(descriptor, value[0] if len(value) else None, sites, rng))
    else:
        setattr(message, descriptor.name, _scalar(descriptor, value, sites, rng))


def _change_message(
    message: Message, descriptor: FieldDescriptor, siblings: list[Any], rng: np.random.Generator
) -> None:
    value = getattr(message, descriptor.name)
    if not _repeated(descriptor):
        value.CopyFrom(_pick(rng, siblings))
        return
    kind = rng.random()
    if not len(value):
        return
    at, other = int(rng.integers(len(value))), int(rng.integers(len(value)))
    if kind < 0.3:
        del value[at]
    elif kind < 0.5:
        value.append(value[at])
    elif kind < 0.75:
        kept = type(value[at])()
        kept.CopyFrom(value[at])
        value[at].CopyFrom(value[other])
        value[other].CopyFrom(kept)
    else:
        source = _pick(rng, siblings)
        if len(source):
            value[at].CopyFrom(_pick(rng, source))


def _scalar(descriptor: FieldDescriptor, value: Any, sites: Any, rng: np.random.Generator) -> Any:
    kinds = FieldDescriptor
    if descriptor.cpp_type in (
        kinds.CPPTYPE_INT32,
        kinds.CPPTYPE_INT64,
        kinds.CPPTYPE_UINT64,
        kinds.CPPTYPE_UINT32,
    ):
        found = (
            int(_pick(rng, _INTEGERS))
            if rng.random() < 0.6 or value is None
            else value + int(rng.integers(-3, 4))
        )
        low, high = {
            kinds.CPPTYPE_INT32: (-(2**31), 2**31 - 1), kinds.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
            kinds.CPPTYPE_UINT64: (0, 2**64 - 1), kinds.CPPTYPE_UINT32: (0, 2**32 - 1),
        }[descriptor.cpp_type]  # fmt: skip
        return min(max(found, low), high)
    if descriptor.cpp_type == kinds.CPPTYPE_ENUM:
        return int(_pick(rng, [one.number for one in descriptor.enum_type.values]))
    if descriptor.cpp_type in (kinds.CPPTYPE_FLOAT, kinds.CPPTYPE_DOUBLE):
        return float(_pick(rng, _FLOATS))
    if descriptor.type == kinds.TYPE_BYTES:
        return (
            byte_by_byte(value or b"x", value or b"y", rng)
            if rng.random() < 0.7
            else rng.bytes(int(rng.integers(9)))
        )
    if descriptor.cpp_type == kinds.CPPTYPE_STRING:
        if rng.random() < 0.6:
            other = getattr(*(lambda site: (site[0], site[1].name))(_pick(rng, sites)))
            texts = [other] if isinstance(other, str) else list(other)
            if texts:
                return _pick(rng, texts)
        return _pick(rng, _TEXTS)
    return value


def _graphs(model: onnx.ModelProto) -> list[Any]:
    """Return the main graph several times, and the functions."""
    return [model.graph] * 3 + list(model.functions)


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    found = list(model.graph.initializer)
    for graph in (model.graph, *model.functions):
        found += [
            attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")
        ]
    return found


def _tensor_values(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Change what a tensor holds: scales that are no numbers, zero points, codes, shapes as data."""
    tensors = [tensor for tensor in _tensors(model) if tensor.raw_data]
    if not tensors:
        return
    tensor = _pick(rng, tensors)
    array = onnx.numpy_helper.to_array(tensor).copy()
    if not array.size:
        return
    flat, at = array.reshape(-1), int(rng.integers(array.size))
    if array.dtype.kind == "f":
        value = _pick(rng, (*_FLOATS, flat[at] * 2, -flat[at], flat[at] * 1e-20))
    elif array.dtype.kind in "iu":
        info = np.iinfo(array.dtype)
        value = min(
            max(int(_pick(rng, (*_INTEGERS, int(flat[at]) + 1, int(flat[at]) - 1))), info.min), info.max
        )
    else:
        return
    if rng.random() < 0.2:
        flat[:] = value
    else:
        flat[at] = value
    tensor.raw_data = array.tobytes()


def _tensor_form(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Change the shape or the type of a tensor, with or without its data."""
    tensors = _tensors(model)
    if not tensors:
        return
    tensor, kind = _pick(rng, tensors), rng.random()
    dims = list(tensor.dims)
    if kind < 0.25 and tensor.raw_data:
        tensor.data_type = int(
            _pick(
                rng,
                (
                    TensorProto.INT8,
                    TensorProto.UINT8,
                    TensorProto.INT32,
                    TensorProto.FLOAT,
                    TensorProto.INT64,
                    TensorProto.BOOL,
                    TensorProto.FLOAT16,
                    TensorProto.DOUBLE,
                    TensorProto.INT4,
                ),
            )
        )
        return
    if kind < 0.5:
        if len(dims) > 1 and rng.random() < 0.5:
            rng.shuffle(dims)
        elif rng.random() < 0.5:
            dims.insert(int(rng.integers(len(dims) + 1)), 1)
        else:
            dims = [int(np.prod(dims, dtype=np.int64))]
        del tensor.dims[:]
        tensor.dims.extend(dims)
        return
    array = onnx.numpy_helper.to_array(tensor)
    if kind < 0.7 and array.ndim:  # fewer or more along one axis, data and all
        axis = int(rng.integers(array.ndim))
        size = max(0, array.shape[axis] + int(_pick(rng, (-1, -1, 1, -array.shape[axis]))))
        if array.shape[axis]:
            array = np.take(array, range(size), axis=axis, mode="wrap")
    elif kind < 0.85:
        array = array.astype(_pick(rng, (np.int8, np.uint8, np.int32, np.int64, np.float32, np.float64)))
    else:
        array = array.reshape(-1)[:1].reshape(_pick(rng, ((), (1,), (1, 1)))) if array.size else array
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def _node_reads(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Let a node read another value: of a later node, of an initializer, of nothing."""
    graph = _pick(rng, _graphs(model))
    if not graph.node:
        return
    node = _pick(rng, graph.node)
    names = [name for other in graph.node for name in (*other.output, *other.input)]
    if isinstance(graph, onnx.GraphProto):
        names += [tensor.name for tensor in graph.initializer] + [value.name for value in graph.input]
    kind = rng.random()
    if len(node.input) and kind < 0.6:
        node.input[int(rng.integers(len(node.input)))] = _pick(rng, [*names, ""])
    elif len(node.input) > 1 and kind < 0.75:
        order = [node.input[int(index)] for index in rng.permutation(len(node.input))]
        del node.input[:]
        node.input.extend(order)
    elif kind < 0.85:
        node.input.append(_pick(rng, names))
    elif len(node.input) and kind < 0.95:
        del node.input[-1]
    elif len(node.output):
        node.output[int(rng.integers(len(node.output)))] = _pick(rng, [*names, ""])


def _node_kind(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Put another operator in the place of one."""
    graph = _pick(rng, _graphs(model))
    if not graph.node:
        return
    node = _pick(rng, graph.node)
    if rng.random() < 0.5:
        node.op_type = _pick(
            rng,
            "Relu Neg Identity Add Mul Transpose Flatten MaxPool Sigmoid Conv MatMul Cast Softmax "
            "QuantizeLinear DequantizeLinear DynamicQuantizeLinear MatMulInteger Unpack Gemm Concat".split(),
        )
    else:
        node.op_type = _pick(rng, [other.op_type for other in graph.node])
    if rng.random() < 0.2:
        node.domain = _pick(rng, ("", "fgq", "ai.onnx", "com.microsoft", "other"))


def _attributes(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Change, drop, retype or add an attribute."""
    graph = _pick(rng, _graphs(model))
    nodes = [node for node in graph.node if len(node.attribute)]
    if not nodes:
        return
    node = _pick(rng, nodes)
    attribute, kind = _pick(rng, node.attribute), rng.random()
    if kind < 0.4:
        if attribute.ints:
            attribute.ints[int(rng.integers(len(attribute.ints)))] = int(_pick(rng, (*_INTEGERS, 4, 5)))
        elif attribute.type == onnx.AttributeProto.INT:
            attribute.i = int(_pick(rng, (*_INTEGERS, -2, 4)))
        elif attribute.type == onnx.AttributeProto.FLOAT:
            attribute.f = float(_pick(rng, _FLOATS))
        elif attribute.type == onnx.AttributeProto.STRING:
            attribute.s = _pick(rng, (b"SAME_UPPER", b"SAME_LOWER", b"VALID", b"tanh", b"", b"\xff"))
    elif kind < 0.55:
        attribute.type = int(rng.integers(0, 15))
    elif kind < 0.7:
        attribute.name = _pick(
            rng,
            "axis group pads strides dilations kernel_shape auto_pad ceil_mode transA alpha to x".split(),
        )
    elif kind < 0.8:
        if attribute.ints:
            attribute.ints.append(1)
    elif kind < 0.9:
        node.attribute.append(attribute)
    else:
        attribute.ref_attr_name = "axis"


def _order(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Put nodes in another order, or one of them into another graph."""
    graph = _pick(rng, _graphs(model))
    nodes = list(graph.node)
    if rng.random() < 0.5:
        nodes = [nodes[int(index)] for index in rng.permutation(len(nodes))]
    elif nodes:
        source = _pick(rng, _graphs(model))
        if source.node:
            nodes.insert(int(rng.integers(len(nodes) + 1)), _pick(rng, source.node))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _declared(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Change what inputs, outputs or inner values are said to be."""
    infos = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    if not infos or rng.random() < 0.25:
        names = [name for node in model.graph.node for name in node.output]
        names += [tensor.name for tensor in model.graph.initializer] + [
            value.name for value in model.graph.input
        ]
        shape = [int(_pick(rng, (1, 2, 3, 2**28, 2**40, -1, 0))) for _ in range(int(rng.integers(0, 4)))]
        dtype = int(_pick(rng, (TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT64)))
        info = onnx.helper.make_tensor_value_info(_pick(rng, names), dtype, shape)
        _pick(
            rng, (model.graph.input, model.graph.output, model.graph.value_info, model.graph.value_info)
        ).append(info)
        return
    info, kind = _pick(rng, infos), rng.random()
    tensor = info.type.tensor_type
    if kind < 0.5 and len(tensor.shape.dim):
        dim = _pick(rng, tensor.shape.dim)
        if rng.random() < 0.7:
            dim.dim_value = int(_pick(rng, (0, 1, 2, 3, 5, -1, 2**28, 2**62)))
        else:
            dim.dim_param = _pick(rng, ("N", "", "batch"))
    elif kind < 0.7:
        tensor.elem_type = int(_pick(rng, range(0, 24)))
    elif kind < 0.85 and len(tensor.shape.dim):
        del tensor.shape.dim[-1]
    elif kind < 0.95:
        tensor.shape.dim.add().dim_value = int(_pick(rng, (1, 2)))
    else:
        info.type.ClearField("tensor_type")
        _pick(rng, (info.type.sequence_type, info.type.optional_type)).SetInParent()


def _about(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Change what the file says about itself: opsets, versions, metadata, functions."""
    kind = rng.random()
    if kind < 0.3 and model.opset_import:
        _pick(rng, model.opset_import).version = int(_pick(rng, (*range(0, 30), 2**40, -1)))
    elif kind < 0.4:
        entry = model.opset_import.add()
        entry.domain, entry.version = _pick(rng, ("", "fgq", "ai.onnx", "x")), int(_pick(rng, (1, 2, 13, 21)))
    elif kind < 0.5:
        model.ir_version = int(_pick(rng, (0, 1, 3, 7, 8, 10, 12, 99, -1)))
    elif kind < 0.7:
        entry = model.metadata_props.add()
        entry.key = _pick(rng, ("fgq.form", "fgq.scaled", "fgq.form", "x"))
        entry.value = _pick(rng, ("packed", "int8", "", "[" * 2000, "null", '{"a": 1e999}', "[]", "x\n"))
    elif kind < 0.8:
        for entry in model.metadata_props:
            entry.value = _pick(rng, ("", "{}", "[1, 2]", entry.value[:-1], entry.value * 2, "nan"))
    elif model.functions:
        function = _pick(rng, model.functions)
        change = rng.random()
        if change < 0.3:
            call = onnx.helper.make_node(
                function.name, list(function.input), list(function.output), domain=function.domain
            )
            function.node.append(call)
        elif change < 0.5:
            model.functions.append(function)
        elif change < 0.7 and len(function.input):
            del function.input[-1]
        elif change < 0.85:
            function.opset_import[0].version = int(rng.integers(1, 28))
        else:
            function.name = _pick(rng, ("Relu", "QuantizeTokens", "MultiplyTokens", "Unpack", "Conv"))


_SPECIAL: tuple[Callable[[onnx.ModelProto, np.random.Generator], None], ...] = (
    _tensor_values, _tensor_values, _tensor_form, _tensor_form, _node_reads, _node_reads, _node_kind,
    _attributes, _attributes, _order, _declared, _declared, _about,
)  # fmt: skip
