"""The model-local functions of the file format: their bodies, and which calls of a model are calls of them.

A call is ours if its function is: the same nodes with the same attributes, in the same order and opset, as a
release of fgq wrote them. A function of another body under the same name is any other function, which
onnxruntime runs. What has no meaning is not compared: names of values and nodes, documentation, metadata, the
order of attributes, and the types that shape inference notes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import onnx
import onnx_ir as ir
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper

from fgq.errors import ModelError

FUNCTION_DOMAIN = "fgq"
FUNCTION_VERSION = 1
"""The version of the domain, and with it of every body; a model of another version has none of ours."""

LEAST_OPSET = 13
"""DequantizeLinear takes a scale per channel from here on."""

UNPACK = "Unpack"
QUANTIZE_TOKENS = "QuantizeTokens"
MULTIPLY_TOKENS = "MultiplyTokens"

LEAST_SCALE, LARGEST_SCALE = 2.0**-100, 2.0**120
"""Bounds of a row's scale: a row of zeros has the first, and no finite row exceeds the second."""

_MARK = "fgq.function"
"""Under this key `recognise` notes in a node, in memory alone, which of our functions it calls."""


class _Signature(NamedTuple):
    """What a function takes and gives; its attributes are whole numbers."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
    body: Callable[[int], list[NodeProto]]


def function(name: str, opset: int) -> ir.Function:
    """Return a function with its body in operators of the given opset.

    Parameters
    ----------
    name : str
        `UNPACK`, `QUANTIZE_TOKENS` or `MULTIPLY_TOKENS`.
    opset : int
        The opset of the model that will hold the function, 13 or later.
    """
    return ir.serde.deserialize_function(_proto(name, opset))


def add_functions(model: ir.Model, *names: str) -> None:
    """Let a model hold functions, in operators of its own opset."""
    for name in names:
        made = function(name, model.opset_imports[""])
        model.functions[made.identifier()] = made
    model.opset_imports[FUNCTION_DOMAIN] = FUNCTION_VERSION


def inputs_of(name: str) -> tuple[str, ...]:
    """Return the names of a function's inputs, in order."""
    return _SIGNATURES[name].inputs


def recognise(model: ir.Model, name: str = "model") -> None:
    """Mark the calls of our functions in a model that was read, so that `called` tells them.

    Parameters
    ----------
    model : onnx_ir.Model
    name : str
        What errors call the model.

    Raises
    ------
    ModelError
        If a node calls a function of our domain that the model does not hold, or one of ours with other
        inputs, outputs or attributes than it has.
    """
    ours = {each for each in _SIGNATURES if _is_ours(model, each)}
    for node in model.graph.all_nodes():
        if node.domain != FUNCTION_DOMAIN:
            continue
        if node.op_identifier() not in model.functions:
            raise ModelError(
                f"{name}: node {node.name or node.op_type!r}: found a call of {_title(node.op_type)}, which "
                "the model does not hold, wanted the function with it; some tools drop functions"
            )
        if node.op_type in ours and not node.overload:
            _check_call(node, f"{name}: node {node.name or node.op_type!r}")
            node.meta[_MARK] = node.op_type


def called(node: ir.Node | None) -> str | None:
    """Return which of our functions a node calls, None if none: `recognise` has found its body to be ours."""
    found = None if node is None else node.meta.get(_MARK)
    return None if found is None else str(found)


def _is_ours(model: ir.Model, name: str) -> bool:
    found = model.functions.get((FUNCTION_DOMAIN, name, ""))
    if found is None or model.opset_imports.get(FUNCTION_DOMAIN) != FUNCTION_VERSION:
        return False
    opset = found.opset_imports.get("", 0)
    if not LEAST_OPSET <= opset <= onnx.defs.onnx_opset_version():
        return False
    return _canonical(ir.serde.serialize_function(found)) == _canonical(_proto(name, opset))


def _check_call(node: ir.Node, where: str) -> None:
    signature, title = _SIGNATURES[node.op_type], _title(node.op_type)
    for what, values, wanted in (
        ("inputs", node.inputs, signature.inputs),
        ("outputs", node.outputs, signature.outputs),
    ):
        given = [value for value in values if value is not None and value.name != ""]
        if not len(given) == len(values) == len(wanted):
            raise ModelError(f"{where}: found {len(given)} {what} of {title}, wanted {', '.join(wanted)}")
    attributes = node.attributes
    if sorted(attributes) != sorted(signature.attributes):
        found, wanted_attributes = (", ".join(each) or "none" for each in (attributes, signature.attributes))
        raise ModelError(f"{where}: found the attributes {found} of {title}, wanted {wanted_attributes}")
    for attribute in attributes.values():
        if attribute.is_ref() or attribute.type != ir.AttributeType.INT:
            raise ModelError(f"{where}: found no whole number for {attribute.name} of {title}, wanted one")


def _title(op_type: str) -> str:
    return f"{FUNCTION_DOMAIN}::{op_type}"


def _canonical(proto: FunctionProto) -> bytes:
    """Return bytes that two functions share if, and only if, they are the same node for node."""
    names = {"": ""}

    def renamed(found: list[str]) -> list[str]:
        return [names.setdefault(name, f"value{len(names)}") for name in found]

    kept = FunctionProto(domain=proto.domain, name=proto.name, overload=proto.overload)
    kept.input.extend(renamed(list(proto.input)))
    kept.attribute.extend(sorted(proto.attribute))
    kept.attribute_proto.extend(proto.attribute_proto)
    kept.opset_import.extend(sorted(proto.opset_import, key=lambda each: (each.domain, each.version)))
    for node in proto.node:
        added = kept.node.add(op_type=node.op_type, domain=node.domain, overload=node.overload)
        added.input.extend(renamed(list(node.input)))
        added.output.extend(renamed(list(node.output)))
        for attribute in sorted(node.attribute, key=lambda each: each.name):
            added.attribute.add().CopyFrom(attribute)
            added.attribute[-1].ClearField("doc_string")
    kept.output.extend(renamed(list(proto.output)))
    return bytes(kept.SerializeToString(deterministic=True))


@functools.cache
def _proto(name: str, opset: int) -> FunctionProto:
    signature = _SIGNATURES[name]
    return helper.make_function(
        FUNCTION_DOMAIN,
        name,
        list(signature.inputs),
        list(signature.outputs),
        signature.body(opset),
        [helper.make_opsetid("", opset)],
        attributes=list(signature.attributes),
    )


def _unpack(opset: int) -> list[NodeProto]:
    node = helper.make_node
    pick = node("Gather", ["alpha32", "group"], ["alpha_of_weight"])
    axis = AttributeProto(name="axis", ref_attr_name="axis", type=AttributeProto.INT)
    pick.attribute.append(axis)
    return [
        node("Cast", ["codes"], ["index"], to=TensorProto.INT32),
        node("Gather", ["table", "index"], ["digits"], axis=0),
        node("Constant", [], ["all"], value_ints=[-1]),
        node("Reshape", ["digits", "all"], ["padded"]),
        node("Constant", [], ["start"], value_ints=[0]),
        node("ReduceProd", ["shape"], ["count"], keepdims=1),
        node("Slice", ["padded", "start", "count"], ["flat"]),
        node("Reshape", ["flat", "shape"], ["code8"]),
        node("Cast", ["code8"], ["code"], to=TensorProto.INT32),
        node("Cast", ["alpha"], ["alpha32"], to=TensorProto.INT32),
        pick,
        node("Mul", ["code", "alpha_of_weight"], ["w32"]),
        node("Cast", ["w32"], ["w8"], to=TensorProto.INT8),
    ]


def _quantize_tokens(opset: int) -> list[NodeProto]:
    node = helper.make_node
    return [
        node("Constant", [], ["none"], value_float=0.0),
        node("Constant", [], ["steps"], value_float=255.0),
        node("Constant", [], ["least_scale"], value_float=LEAST_SCALE),
        node("Constant", [], ["largest_scale"], value_float=LARGEST_SCALE),
        *_ends("ReduceMin", "Min", "lowest", opset),
        *_ends("ReduceMax", "Max", "highest", opset),
        node("Sub", ["highest", "lowest"], ["range"]),
        node("Div", ["range", "steps"], ["step"]),
        node("Clip", ["step", "least_scale", "largest_scale"], ["x_scale"]),
        node("Div", ["lowest", "x_scale"], ["lowest_steps"]),
        node("Neg", ["lowest_steps"], ["zero_steps"]),
        node("Round", ["zero_steps"], ["zero_whole"]),
        node("Clip", ["zero_whole", "none", "steps"], ["zero_real"]),
        node("Cast", ["zero_real"], ["x_zero"], to=TensorProto.UINT8),
        node("Div", ["x", "x_scale"], ["x_steps"]),
        node("Round", ["x_steps"], ["x_whole"]),
        node("Add", ["x_whole", "zero_real"], ["x_raised"]),
        node("Clip", ["x_raised", "none", "steps"], ["x_clipped"]),
        node("Cast", ["x_clipped"], ["xq"], to=TensorProto.UINT8),
    ]


def _ends(reduce: str, bound: str, name: str, opset: int) -> list[NodeProto]:
    """Return the nodes that find one end of each row's range, 0.0 included."""
    node, found = helper.make_node, f"{name}_found"
    if opset < 18:  # the axes are an attribute there, and an input from then on
        reduced = [node(reduce, ["x"], [found], axes=[-1], keepdims=1)]
    else:
        axes = f"{name}_axes"
        reduced = [
            node("Constant", [], [axes], value_ints=[-1]),
            node(reduce, ["x", axes], [found], keepdims=1),
        ]
    return [*reduced, node(bound, [found, "none"], [name])]


def _multiply_tokens(opset: int) -> list[NodeProto]:
    node = helper.make_node
    return [
        node("MatMulInteger", ["xq", "w8"], ["sums"]),
        # onnxruntime's MatMulInteger takes one zero point, not one for each row
        node("Cast", ["w8"], ["w32"], to=TensorProto.INT32),
        node("Constant", [], ["rows"], value_ints=[0]),
        node("ReduceSum", ["w32", "rows"], ["column_sums"], keepdims=0),
        node("Cast", ["x_zero"], ["zero32"], to=TensorProto.INT32),
        node("Mul", ["zero32", "column_sums"], ["offset"]),
        node("Sub", ["sums", "offset"], ["acc"]),
        node("Cast", ["acc"], ["acc_real"], to=TensorProto.FLOAT),
        node("Mul", ["x_scale", "row_scale"], ["factor"]),
        node("Mul", ["acc_real", "factor"], ["y"]),
    ]


_SIGNATURES: Mapping[str, _Signature] = {
    UNPACK: _Signature(("codes", "table", "alpha", "group", "shape"), ("w8",), ("axis",), _unpack),
    QUANTIZE_TOKENS: _Signature(("x",), ("xq", "x_scale", "x_zero"), (), _quantize_tokens),
    MULTIPLY_TOKENS: _Signature(("xq", "x_scale", "x_zero", "w8", "row_scale"), ("y",), (), _multiply_tokens),
}
