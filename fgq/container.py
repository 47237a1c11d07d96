"""The file format: how a quantized weight is written into, and recognised in, a standard ONNX model.

A weight of the packed form is one call of a model-local function, whose output feeds the ordinary
operator through a DequantizeLinear::

    w8 = fgq::Unpack<axis>(codes u8[P], table i8[256, 5], alpha u8, group i32, shape i64)
    W  = DequantizeLinear(w8, row_scale, zeros)

``codes`` hold five trits a byte, ``table`` says what a byte holds, ``alpha`` has the weight's shape with
the group axis cut to the number of groups, and ``group`` names the group of each position on that axis.
The function is made of plain operators of opset 13, so any runtime that inlines functions can run it;
onnxruntime folds it to int8 when it loads the model.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
from onnx import AttributeProto, FunctionProto, TensorProto, helper

FUNCTION_DOMAIN = "fgq"
FUNCTION_NAME = "Unpack"
FUNCTION_VERSION = 1
FUNCTION_INPUTS = ("codes", "table", "alpha", "group", "shape")

LEAST_OPSET = 13
"""DequantizeLinear takes a scale per channel from here on."""

LEAST_IR_VERSION = 8
"""Model-local functions exist from here on."""

ACTIVATION_BOUNDS = {4: (0, 15), 8: (0, 255)}
"""The integers of an activation by its bits; both are stored as uint8."""


@functools.cache
def _function_proto(opset: int) -> FunctionProto:
    node = helper.make_node
    pick = node("Gather", ["alpha32", "group"], ["alpha_of_weight"])
    axis = AttributeProto(name="axis", ref_attr_name="axis", type=AttributeProto.INT)
    pick.attribute.append(axis)
    body = [
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
    return helper.make_function(
        FUNCTION_DOMAIN,
        FUNCTION_NAME,
        list(FUNCTION_INPUTS),
        ["w8"],
        body,
        [helper.make_opsetid("", opset)],
        attributes=["axis"],
    )


def unpack_function(opset: int) -> ir.Function:
    """Return the function ``fgq::Unpack`` with its body in operators of the given opset.

    Parameters
    ----------
    opset : int
        The opset of the model that will hold the function, 13 or later.
    """
    return ir.serde.deserialize_function(_function_proto(opset))


def is_unpack(node: ir.Node | None) -> bool:
    """Tell whether a node is a call of ``fgq::Unpack``."""
    return node is not None and node.domain == FUNCTION_DOMAIN and node.op_type == FUNCTION_NAME


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the array of an initializer or Constant node, or None where the value is not constant.

    A graph input with a default value is not constant: a caller may override it.
    """
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()
