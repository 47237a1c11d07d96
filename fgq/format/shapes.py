"""Infer the types and shapes of a model's values, from those of its inputs alone.

What a file says of the values between is not believed: it may be older than the sizes of the inputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from fgq.errors import ModelError
from fgq.format.maps import forget_maps, holds_map
from fgq.graph import ort

_BIG = 1000
"""Constants of more bytes are left out of what is inferred from: their type and shape suffice."""

_LONGEST = 1 << 14
"""Elements of a vector beyond which its values are not followed into shapes: onnx holds each."""

_FOLLOWED = frozenset("Add Cast Concat Gather Identity Mul Size Slice Squeeze Sub Unsqueeze Where".split())
"""Operators whose values onnx follows, whatever their type."""

POOLS = frozenset({"AveragePool", "LpPool", "MaxPool"})

_OPAQUE = "fgq.opaque"
"""A domain of which onnx knows nothing."""


class InferShapes(ir.passes.InPlacePass):
    """Infer types and shapes as far as onnx and onnxruntime can.

    1. Types and shapes of what nodes compute are forgotten, and inferred anew by onnx. An output keeps its
       declared type, and its declared shape unless that is of another rank or size.
    2. Where onnx knows no type (operators of other domains, and what reads them), onnxruntime is asked.
    3. Where neither knows one, the declared type holds, without a shape.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass in place."""
        computed = [value for node in model.graph.all_nodes() for value in node.outputs]
        before = [(value.type, value.shape) for value in computed]
        for value in computed:
            value.shape = None
            if not value.is_graph_output():
                value.type = None
        skeleton = _skeleton(model)
        _infer(model, skeleton)
        unknown = [value for node in model.graph for value in node.outputs if value.type is None]
        _ask_onnxruntime(skeleton, [value for value in unknown if value.uses() or value.is_graph_output()])
        for value, (kind, shape) in zip(computed, before, strict=True):
            if value.type is None:
                value.type = kind
            if value.is_graph_output() and shape is not None and _agree(shape, value.shape):
                value.shape = shape
        after = [(value.type, value.shape) for value in computed]
        return ir.passes.PassResult(model, after != before)


def _skeleton(model: ir.Model) -> onnx.ModelProto:
    """Return the model with its big constants as inputs."""
    big, small = list[ir.Value](), list[ir.Value]()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and not value.is_graph_input():
            (big if tensor.nbytes > _BIG else small).append(value)
            value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
    view = ir.GraphView(
        [*model.graph.inputs, *big],
        model.graph.outputs,
        nodes=list(model.graph),
        initializers=small,
        opset_imports=dict(model.opset_imports),
        name="skeleton",
    )
    return onnx.helper.make_model(
        ir.serde.serialize_graph(view),  # type: ignore[arg-type]
        opset_imports=[onnx.helper.make_opsetid(*each) for each in model.opset_imports.items()],
        ir_version=model.ir_version,
        functions=[ir.serde.serialize_function(function) for function in model.functions.values()],
    )


def _infer(model: ir.Model, skeleton: onnx.ModelProto) -> None:
    """Give the values the types and shapes that onnx infers."""
    try:
        known = onnx.ModelProto()
        known.CopyFrom(skeleton)
        known.opset_import.append(onnx.helper.make_opsetid(_OPAQUE, 1))
        inferred = onnx.shape_inference.infer_shapes(known)
        while _forget_pool(known.graph, inferred.graph):
            inferred = onnx.shape_inference.infer_shapes(known)
        _hide_long(inferred.graph, {})
        inferred = onnx.shape_inference.infer_shapes(inferred, data_prop=True)
    except Exception:  # whatever onnx finds wrong, the engines say it better
        return
    forget_maps(inferred.graph)
    for entry in inferred.graph.output:
        if holds_map(entry.type):
            entry.ClearField("type")
    found = ir.serde.deserialize_graph(inferred.graph)
    for node, same in zip(model.graph.all_nodes(), found.all_nodes(), strict=True):
        for value, other in zip(node.outputs, same.outputs, strict=True):
            if other.type is not None:
                value.type = other.type
            if isinstance(value.type, ir.TensorType):  # a sequence has none; its elements' may differ
                value.shape = other.shape


def _forget_pool(graph: onnx.GraphProto, inferred: onnx.GraphProto) -> bool:
    """Forget the size of the first pooling of which onnx infers a wrong one; tell whether there is one.

    With ``ceil_mode``, onnx counts windows that begin behind the image, which the operators leave out.

    Parameters
    ----------
    graph : onnx.GraphProto
        Where the pooling is hidden, and what is left of its shape is written.
    inferred : onnx.GraphProto
        The same with the shapes that onnx infers.
    """
    entries = (*inferred.input, *inferred.value_info, *inferred.output)
    shapes = {entry.name: entry.type.tensor_type for entry in entries}
    for node in graph.node:
        if node.domain != "" or node.op_type not in POOLS or node.output[0] not in shapes:
            continue
        attributes = {found.name: onnx.helper.get_attribute_value(found) for found in node.attribute}
        given = shapes.get(node.input[0])
        if not attributes.get("ceil_mode") or given is None:
            continue
        found = shapes[node.output[0]]
        sizes = windows([dim.dim_value for dim in given.shape.dim][2:], attributes)
        changed = False
        for dim, size in zip(found.shape.dim[2:], sizes, strict=False):
            if size is not None and dim.dim_value != size:
                dim.Clear()  # onnxruntime infers what onnx does, and would refuse the right one
                changed = True
        if changed:
            node.domain = _OPAQUE
            own = next((value for value in graph.output if value.name == node.output[0]), None)
            (own or graph.value_info.add(name=node.output[0])).type.tensor_type.CopyFrom(found)
            return True
    return False


def windows(sizes: Sequence[int], attributes: Mapping[str, Any]) -> list[int | None]:
    """Return how many windows a pooling with ``ceil_mode`` has along each axis, None if unknown.

    Parameters
    ----------
    sizes : sequence of int
        Of the image; 0 where unknown.
    attributes : mapping of str to value
        The node's attributes as onnx reads them.
    """
    kernel, axes = attributes["kernel_shape"], len(sizes)
    strides, dilations = (attributes.get(name) or [1] * axes for name in ("strides", "dilations"))
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return [-(-size // stride) if size else None for size, stride in zip(sizes, strides, strict=True)]
    pads = attributes.get("pads") or [0] * (2 * axes)
    counts: list[int | None] = []
    for axis, size in enumerate(sizes):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        count = -(-(size + pads[axis] + pads[axis + axes] - reach) // strides[axis]) + 1
        if (count - 1) * strides[axis] >= size + pads[axis]:
            count -= 1
        counts.append(count if size > 0 else None)
    return counts


def _hide_long(graph: onnx.GraphProto, around: Mapping[str, bool]) -> None:
    """Hide the nodes that read vectors which are long, or may be, from the inference that follows values.

    So are all calls of functions, whose bodies may make such vectors. Their results keep the types and shapes
    that they have without.

    Parameters
    ----------
    graph : onnx.GraphProto
        With the shapes that are inferred without following values.
    around : mapping of str to bool
        The values outside, and whether each is surely no long vector.
    """
    short = dict(around)
    short.update((entry.name, _is_short(entry)) for entry in (*graph.input, *graph.value_info, *graph.output))
    for tensor in graph.initializer:
        short[tensor.name] = len(tensor.dims) != 1 or tensor.dims[0] <= _LONGEST
    for node in graph.node:
        followed = node.op_type in _FOLLOWED
        if node.domain != "" or (followed and not all(short.get(name, False) for name in node.input if name)):
            node.domain = _OPAQUE
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                _hide_long(subgraph, short)


def _is_short(entry: onnx.ValueInfoProto) -> bool:
    kind = entry.type.tensor_type
    if not kind.HasField("shape"):
        return False
    axes = kind.shape.dim
    return len(axes) != 1 or (axes[0].HasField("dim_value") and axes[0].dim_value <= _LONGEST)


def _ask_onnxruntime(skeleton: onnx.ModelProto, values: Sequence[ir.Value]) -> None:
    """Give values the types and shapes that onnxruntime infers, if it takes the model without its weights."""
    if not values:
        return
    del skeleton.graph.output[:]
    skeleton.graph.output.extend(onnx.ValueInfoProto(name=str(value.name)) for value in values)
    try:
        session = ort.open_session(skeleton.SerializeToString(), "model", threads=1, optimized=False)
    except ModelError:
        return
    for value, known in zip(values, session.get_outputs(), strict=True):
        value.type = _read_type(known.type)
        if isinstance(value.type, ir.TensorType) and known.shape:  # a scalar and an unknown shape look alike
            value.shape = ir.Shape(known.shape)


_WRAPPERS = {"seq": ir.SequenceType, "optional": ir.OptionalType}


def _read_type(name: str) -> ir.TypeProtocol | None:
    """Read a type as onnxruntime writes it, such as ``seq(tensor(float))``; None where onnx_ir has none."""
    found = re.fullmatch(r"(\w+)\((.*)\)", name)
    if found is None:
        return None
    kind, inner = found.groups()
    if kind == "tensor":
        return ir.TensorType(ir.DataType[inner.upper()]) if inner.upper() in ir.DataType.__members__ else None
    elements = _read_type(inner) if kind in _WRAPPERS else None
    return None if elements is None else _WRAPPERS[kind](elements)


def _agree(declared: ir.Shape, inferred: ir.Shape | None) -> bool:
    """Tell whether a declared shape contradicts no inferred one."""
    return inferred is None or (
        len(declared) == len(inferred)
        and all(
            a == b
            for a, b in zip(declared, inferred, strict=True)
            if isinstance(a, int) and isinstance(b, int)
        )
    )
