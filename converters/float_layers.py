"""Find the layers of a float model, and say of each whether and how its weights can be quantized."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from fgq.graph.queries import constant
from fgq.graph.windows import may_crop
from fgq.quantization.tensor import MAX_REDUCTION

WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN", "Einsum"})
"""Operators that hold most of a network's weights; every one of them appears in the report, and so does an
embedding (a Gather from a table) and an operator of another domain that holds a matrix."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A node whose weights can be quantized.

    Parameters
    ----------
    node : onnx_ir.Node
        A Conv, MatMul or Gemm.
    weight_index : int
        Which of the node's inputs is the weight: 1, or 0 for a constant on the left of a MatMul.
    group_axis, channel_axis : int
        The weight's reduction axis along which groups run, and its axis of output channels.
    in_subgraph : bool
        Whether the node lies in the body of an If, Loop or Scan, where activations cannot be observed.
    """

    node: ir.Node
    weight_index: int
    group_axis: int
    channel_axis: int
    in_subgraph: bool

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.node.name)

    @property
    def op_type(self) -> str:
        """The node's operator."""
        return self.node.op_type

    @property
    def weight(self) -> ir.Value:
        """The constant that holds the weights."""
        value = self.node.inputs[self.weight_index]
        assert value is not None
        return value

    @property
    def weight_array(self) -> NDArray[Any]:
        """The weights."""
        array = constant(self.weight)
        assert array is not None
        return array

    @property
    def activation(self) -> ir.Value:
        """The input that is computed at run time."""
        value = self.node.inputs[1 - self.weight_index]
        assert value is not None
        return value

    @property
    def bias(self) -> ir.Value | None:
        """The constant bias of a Conv or Gemm, if it has one."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    @property
    def bias_array(self) -> NDArray[Any] | None:
        """The values of the bias, if there is one."""
        return constant(self.bias)

    @property
    def output(self) -> ir.Value:
        """The layer's result."""
        return self.node.outputs[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return tuple(self.weight_array.shape)

    @property
    def products(self) -> int:
        """K, the number of products that one output adds up."""
        return products_of_sum(self.op_type, self.shape, self.group_axis)

    @property
    def is_depthwise(self) -> bool:
        """Whether every filter of a convolution sees one input channel."""
        return self.op_type == "Conv" and self.shape[1] == 1


@dataclass(frozen=True, slots=True, eq=False)
class FloatNode:
    """A node with weights, or made for them, that stays as it is, and why.

    `layer` is what it could have been, of a layer that is planned to stay float.
    """

    node: ir.Node
    reason: str
    layer: Layer | None = None

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.node.name)

    @property
    def op_type(self) -> str:
        """The node's operator."""
        return self.node.op_type


def find_layers(model: ir.Model) -> list[Layer | FloatNode]:
    """List every node of a prepared model that holds weights, subgraphs included, in graph order.

    Parameters
    ----------
    model : onnx_ir.Model
        A model after `fgq.converters.passes.prepare`.
    """
    return [
        _describe(node, in_subgraph=node.graph is not model.graph)
        for node in model.graph.all_nodes()
        if _holds_weights(node)
    ]


def _holds_weights(node: ir.Node) -> bool:
    if node.domain == "" and node.op_type != "Gather":
        return node.op_type in WEIGHTED
    return any(_is_matrix(value) for value in node.inputs)


def _is_matrix(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and array.ndim > 1 and array.dtype.kind == "f"


def _describe(node: ir.Node, in_subgraph: bool) -> Layer | FloatNode:
    found: Layer | str
    match node.op_type if node.domain == "" else f"{node.domain}::{node.op_type}":
        case "Conv":
            found = _conv(node, in_subgraph)
        case "MatMul":
            found = _matmul(node, in_subgraph)
        case "Gemm":
            found = _gemm(node, in_subgraph)
        case "Gather":
            table = constant(node.inputs[0])
            found = "an embedding: rows are looked up, nothing is multiplied"
            if table is not None and table.ndim > 2:
                found = "matrices are picked at run time: what multiplies them is not converted"
        case other:
            found = f"the operator {other} is not converted"
    if isinstance(found, str):
        return FloatNode(node, found)
    return _check_values(found)


def _conv(node: ir.Node, in_subgraph: bool) -> Layer | str:
    weight = constant(node.inputs[1])
    if weight is None:
        return _not_constant("weights", node.inputs[1])
    if constant(node.inputs[0]) is not None:
        return "both sides are constant"
    if weight.ndim != 4:
        return f"a convolution of {weight.ndim - 2} spatial axes; 2 are converted"
    if may_crop(node, weight.shape[2:]):
        return "its strides are longer than its windows, where onnxruntime reads auto_pad in a way of its own"
    return Layer(node, 1, group_axis=1, channel_axis=0, in_subgraph=in_subgraph)


def _matmul(node: ir.Node, in_subgraph: bool) -> Layer | str:
    left, right = (constant(value) for value in node.inputs)
    if right is not None and left is None:
        if right.ndim < 2:
            return "its constant side is a vector"
        return Layer(node, 1, group_axis=right.ndim - 2, channel_axis=right.ndim - 1, in_subgraph=in_subgraph)
    if left is not None and right is None:
        if left.ndim < 2:
            return "its constant side is a vector"
        return Layer(node, 0, group_axis=left.ndim - 1, channel_axis=left.ndim - 2, in_subgraph=in_subgraph)
    if left is not None:
        return "both sides are constant"
    if any(_is_quantized(value) for value in node.inputs):
        return "its weights are already quantized"
    return "both sides are computed at run time"


def _gemm(node: ir.Node, in_subgraph: bool) -> Layer | str:
    if constant(node.inputs[1]) is None:
        return _not_constant("weights", node.inputs[1])
    if constant(node.inputs[0]) is not None:
        return "both sides are constant"
    channel_axis = 0 if node.attributes.get_int("transB", 0) else 1
    return Layer(node, 1, group_axis=1 - channel_axis, channel_axis=channel_axis, in_subgraph=in_subgraph)


def _not_constant(what: str, value: ir.Value | None) -> str:
    how = "already quantized" if _is_quantized(value) else "computed at run time"
    return f"its {what} are {how}"


def _is_quantized(value: ir.Value | None) -> bool:
    """Tell whether a value is a constant of integers, dequantized."""
    node = None if value is None else value.producer()
    if node is None or (node.domain, node.op_type) != ("", "DequantizeLinear"):
        return False
    return constant(node.inputs[0]) is not None


def _check_values(layer: Layer) -> Layer | FloatNode:
    dtype = layer.weight.const_value.dtype  # type: ignore[union-attr]
    reason = None
    if dtype != ir.DataType.FLOAT:
        reason = f"weights of type {str(dtype).lower()}; float is converted"
    elif 0 in layer.shape:
        reason = "its weights are empty"
    elif layer.bias is not None and constant(layer.bias) is None:
        reason = "its bias is computed at run time"
    else:
        length = layer.products
        if length > MAX_REDUCTION:
            reason = f"a reduction over {length} products; an int32 holds {MAX_REDUCTION}"
    return layer if reason is None else FloatNode(layer.node, reason)


def products_of_sum(op_type: str, shape: tuple[int, ...], group_axis: int) -> int:
    """Return K, the number of products that one output of a layer adds up.

    Parameters
    ----------
    op_type : str
        Conv, MatMul or Gemm.
    shape : tuple of int
        The shape of the weight.
    group_axis : int
        The weight's reduction axis.
    """
    return math.prod(shape[1:]) if op_type == "Conv" else shape[group_axis]
