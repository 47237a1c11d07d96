"""Recognise the quantized layers of a converted model: integers in, and integers out where possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.format.container import is_unpack, read_weight
from fgq.graph.queries import constant, is_operator
from fgq.graph.windows import may_crop
from fgq.quantization.scheme import Quantizer
from fgq.quantization.tensor import QuantizedTensor
from fgq.runtime.quantizers import Requantization, overflows, read_quantized, read_result

Kind = Literal["conv", "gemm", "matmul", "matmul_left"]
"""What a layer computes; ``matmul_left`` has its weight on the left."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IntegerLayer:
    """A Conv, MatMul or Gemm on quantized activations, with the nodes that it absorbs.

    Parameters
    ----------
    node : onnx_ir.Node
        The operator.
    kind : Kind
    row_scale : ndarray of float32, shape (M,) or ()
        Real value of one step of each output channel's weights.
    source : onnx_ir.Value
        The uint8 activations that the layer reads.
    activation : Quantizer
        Their scale and zero point.
    activation_bits : int
        Their width, 8 or 4.
    bias : ndarray of int32, shape (M,), or None
        In units of the accumulator.
    result : onnx_ir.Value
        What the layer computes: float values, or uint8 where `requantization` is given.
    requantization : Requantization or None
    """

    node: ir.Node
    kind: Kind
    row_scale: NDArray[np.float32]
    source: ir.Value
    activation: Quantizer
    activation_bits: int
    bias: NDArray[np.int32] | None
    result: ir.Value
    requantization: Requantization | None

    @property
    def name(self) -> str:
        """The operator's name."""
        return str(self.node.name)

    def read_weight(self) -> QuantizedTensor:
        """Return the weight: unpacked anew each time, so that nobody else holds it."""
        found = read_layer_weight(self.node)
        assert found is not None
        return found[2]


def find_integer_layers(graph: ir.Graph) -> list[IntegerLayer]:
    """List the layers of the main graph that run on integers, in graph order.

    Parameters
    ----------
    graph : onnx_ir.Graph

    Raises
    ------
    ModelError
        If a packed weight is damaged.
    """
    found = (_recognise(node) for node in graph)
    return [layer for layer in found if layer is not None]


def read_layer_weight(node: ir.Node) -> tuple[Kind, int, QuantizedTensor] | None:
    """Read the quantized weight of a Conv, MatMul or Gemm.

    Parameters
    ----------
    node : onnx_ir.Node

    Returns
    -------
    kind, index, weight : Kind, int, QuantizedTensor; or None
        What the operator is, which of its inputs the weight is, and the weight; None where the node is
        another operator or has no quantized weight.

    Raises
    ------
    ModelError
        If a packed weight is damaged.
    """
    kind: Kind
    if node.op_type == "Conv" and node.domain == "":
        kind, index, axes = "conv", 1, (1, 0)
    elif node.op_type == "Gemm" and node.domain == "":
        channel_axis = 0 if node.attributes.get_int("transB", 0) else 1
        kind, index, axes = "gemm", 1, (1 - channel_axis, channel_axis)
        if any(node.attributes.get_float(factor, 1.0) != 1.0 for factor in ("alpha", "beta")):
            return None
    elif node.op_type == "MatMul" and node.domain == "":
        left = _weight_rank(node.inputs[0])
        rank = left or _weight_rank(node.inputs[1])
        if rank is None or rank < 2:
            return None
        if left:
            kind, index, axes = "matmul_left", 0, (rank - 1, rank - 2)
        else:
            kind, index, axes = "matmul", 1, (rank - 2, rank - 1)
    else:
        return None
    weight = read_weight(node.inputs[index], group_axis=axes[0], channel_axis=axes[1])
    if weight is None or (kind == "conv" and len(weight.shape) != 4):
        return None
    return kind, index, weight


def activation_bits(value: ir.Value | None) -> int | None:
    """Return the width of the quantized activations that an operator reads; None where they are float.

    Parameters
    ----------
    value : onnx_ir.Value or None
        The operator's input.
    """
    found = read_quantized(value)
    return None if found is None else found.bits


def _recognise(node: ir.Node) -> IntegerLayer | None:
    found = read_layer_weight(node)
    if found is None:
        return None
    kind, index, weight = found
    if kind == "conv" and may_crop(node, weight.shape[2:]):
        return None
    activation = read_quantized(node.inputs[1 - index])
    if activation is None or overflows(node):
        return None
    bias = None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = _read_bias(node.inputs[2], activation.quantizer, weight)
        if bias is None:
            return None
    result, requantization = read_result(node.outputs[0])
    return IntegerLayer(
        node=node,
        kind=kind,
        row_scale=weight.row_scale,
        source=activation.source,
        activation=activation.quantizer,
        activation_bits=activation.bits,
        bias=bias,
        result=result,
        requantization=requantization,
    )


def _weight_rank(value: ir.Value | None) -> int | None:
    """Return the rank of a weight that is dequantized from constants, None for anything else."""
    node = None if value is None else value.producer()
    if node is None or not is_operator(node, "DequantizeLinear") or node.inputs[0] is None:
        return None
    w8 = constant(node.inputs[0])
    if w8 is not None:
        return w8.ndim
    integers = node.inputs[0].producer()
    shape = constant(integers.inputs[-1]) if integers is not None and is_unpack(integers) else None
    return None if shape is None else shape.size


def _read_bias(value: ir.Value, activation: Quantizer, weight: QuantizedTensor) -> NDArray[np.int32] | None:
    """Return a bias held in units of the accumulator, None where it is of another kind."""
    node = value.producer()
    if node is None or not is_operator(node, "DequantizeLinear"):
        return None
    integers, scale = constant(node.inputs[0]), constant(node.inputs[1])
    wanted = np.float32(activation.scale) * weight.row_scale
    if integers is None or integers.dtype != np.int32 or scale is None:
        return None
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    computed = len(node.inputs) > 2 and node.inputs[2] is not None and zero is None
    if computed or (zero is not None and zero.any()) or integers.ndim > 1 or scale.ndim > 1:
        return None
    outputs = weight.shape[weight.channel_axis]
    if integers.size not in (1, outputs) or scale.size not in (1, outputs):
        return None
    # onnxruntime reads the integers alone; writers round the product of the two scales in different ways
    same = np.allclose(scale, wanted, rtol=1e-5, atol=0)
    return np.array(np.broadcast_to(integers, (outputs,))) if same else None
