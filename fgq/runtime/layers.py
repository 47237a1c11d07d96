"""Recognise the quantized layers of a converted model: integers in, and integers out where possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.container import ACTIVATION_BOUNDS, constant, read_weight
from fgq.qtensor import QuantizedTensor
from fgq.scheme import Quantizer

Kind = Literal["conv", "gemm", "matmul", "matmul_left"]
"""What a layer computes; ``matmul_left`` has its weight on the left."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Requantization:
    """How accumulators become the next layer's activations.

    Parameters
    ----------
    quantizer : Quantizer
        Scale and zero point of the result.
    lowest, highest : int
        The integers that ReLU, Clip and the width of the result leave, within 0..255.
    """

    quantizer: Quantizer
    lowest: int
    highest: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IntegerLayer:
    """A Conv, MatMul or Gemm on quantized activations, with the nodes that it absorbs.

    Parameters
    ----------
    node : onnx_ir.Node
        The operator.
    kind : Kind
    weight : QuantizedTensor
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
    weight: QuantizedTensor
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
    activation = _read_activation(value)
    if activation is None:
        return None
    clip = activation[0].producer()
    limits = _clip_limits(clip) if clip is not None and clip.op_type == "Clip" else None
    return 4 if limits is not None and limits[1] <= ACTIVATION_BOUNDS[4][1] else 8


def _recognise(node: ir.Node) -> IntegerLayer | None:
    found = read_layer_weight(node)
    if found is None:
        return None
    kind, index, weight = found
    activation = _read_activation(node.inputs[1 - index])
    if activation is None:
        return None
    source, quantizer = activation
    bias = None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = _read_bias(node.inputs[2], quantizer, weight)
        if bias is None:
            return None
    result, requantization = _read_result(node.outputs[0])
    return IntegerLayer(
        node=node,
        kind=kind,
        weight=weight,
        source=source,
        activation=quantizer,
        activation_bits=activation_bits(node.inputs[1 - index]) or 8,
        bias=bias,
        result=result,
        requantization=requantization,
    )


def _weight_rank(value: ir.Value | None) -> int | None:
    """Return the rank of a weight that is dequantized from constants, None for anything else."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    integers = node.inputs[0].producer()
    if integers is not None and integers.op_type in ("QuantizeLinear", "Clip"):
        return None
    w8 = constant(node.inputs[0])
    if w8 is not None:
        return w8.ndim
    shape = None if integers is None or len(integers.inputs) < 5 else constant(integers.inputs[4])
    return None if shape is None else len(shape)


def _read_activation(value: ir.Value | None) -> tuple[ir.Value, Quantizer] | None:
    """Return the uint8 tensor behind a DequantizeLinear, with its quantizer."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "":
        return None
    quantizer = _read_quantizer(node)
    source = node.inputs[0]
    if quantizer is None or source is None or constant(source) is not None:
        return None
    return source, quantizer


def _read_quantizer(node: ir.Node) -> Quantizer | None:
    """Return the quantizer of a QuantizeLinear or DequantizeLinear of uint8 with one scale."""
    scale = constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or zero is None or scale.size != 1 or zero.dtype != np.uint8:
        return None
    if scale.dtype != np.float32:
        return None
    return Quantizer(scale=float(scale.item()), zero_point=int(zero.item()))


def _read_bias(value: ir.Value, activation: Quantizer, weight: QuantizedTensor) -> NDArray[np.int32] | None:
    """Return a bias held in units of the accumulator, None where it is of another kind."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    integers, scale = constant(node.inputs[0]), constant(node.inputs[1])
    wanted = np.float32(activation.scale) * weight.row_scale
    if integers is None or integers.dtype != np.int32 or scale is None:
        return None
    return integers if np.array_equal(scale, wanted) else None


def _read_result(value: ir.Value) -> tuple[ir.Value, Requantization | None]:
    """Follow ReLU, Clip and QuantizeLinear after a layer as far as nothing else reads between them."""
    bounds: list[tuple[float, float]] = []
    current = value
    while (reader := _sole_reader(current)) is not None:
        if reader.op_type == "Relu":
            bounds.append((0.0, np.inf))
        elif reader.op_type == "Clip" and (limits := _clip_limits(reader)) is not None:
            bounds.append(limits)
        elif reader.op_type == "QuantizeLinear" and (quantizer := _read_quantizer(reader)) is not None:
            return _absorb_clip(reader.outputs[0], quantizer, bounds)
        else:
            break
        current = reader.outputs[0]
    return value, None


def _absorb_clip(
    value: ir.Value, quantizer: Quantizer, bounds: list[tuple[float, float]]
) -> tuple[ir.Value, Requantization]:
    lowest, highest = 0, quantizer.highest
    for bound in bounds:
        low, high = (_quantize(end, quantizer) for end in bound)
        lowest, highest = (min(max(end, low), high) for end in (lowest, highest))
    reader = _sole_reader(value)
    if reader is not None and reader.op_type == "Clip" and (limits := _clip_limits(reader)) is not None:
        low, high = (int(min(max(end, 0), 255)) for end in limits)
        lowest, highest = (min(max(end, low), high) for end in (lowest, highest))
        value = reader.outputs[0]
    return value, Requantization(quantizer=quantizer, lowest=lowest, highest=highest)


def _quantize(bound: float, quantizer: Quantizer) -> int:
    """Quantize a bound as QuantizeLinear does: divide in float32, round half to even, saturate."""
    if np.isinf(bound):
        return 0 if bound < 0 else quantizer.highest
    rounded = np.rint(np.float32(bound) / np.float32(quantizer.scale)) + quantizer.zero_point
    return int(np.clip(rounded, 0, quantizer.highest))


def _clip_limits(node: ir.Node) -> tuple[float, float] | None:
    limits = []
    for index, missing in ((1, -np.inf), (2, np.inf)):
        value = node.inputs[index] if len(node.inputs) > index else None
        array = constant(value)
        if value is not None and array is None:
            return None
        limits.append(missing if array is None else float(array.item()))
    return limits[0], limits[1]


def _sole_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0].node
    return node if node.domain == "" and uses[0].idx == 0 and node.graph is value.producer().graph else None  # type: ignore[union-attr]
