"""Additions that run within a product: of a skip connection's integers, or of real values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.graph.queries import constant, is_operator, sole_reader, sole_use
from fgq.runtime.layers import IntegerLayer
from fgq.runtime.quantizers import Quantized, Requantization
from fgq.runtime.steps.arithmetic import BinaryStep


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RealEnd:
    """Additions of real values that follow a layer.

    Parameters
    ----------
    shift : ndarray of float32, shape (M,), or None
        A bias, added first.
    residual : onnx_ir.Value or None
        Real values of the shape of the result, added then.
    result : onnx_ir.Value
        The sum.
    """

    shift: NDArray[np.float32] | None
    residual: ir.Value | None
    result: ir.Value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Residual:
    """The addition of two quantized tensors, one of them a layer's result, that follows the layer.

    Parameters
    ----------
    other : Quantized
        What is added.
    requantization : Requantization
        How the sum becomes integers.
    result : onnx_ir.Value
        The integers of the sum.
    first : bool
        Whether the layer's result is the first of the two operands.
    """

    other: Quantized
    requantization: Requantization
    result: ir.Value
    first: bool


def residuals(
    additions: Sequence[BinaryStep], layers: Mapping[ir.Value, IntegerLayer]
) -> dict[ir.Value, Residual]:
    """Return the additions that fuse into the epilogues of layers, by the layers' results.

    Parameters
    ----------
    additions : sequence of BinaryStep
        Those of the graph; multiplications are passed over.
    layers : mapping of onnx_ir.Value to IntegerLayer
        By their results.
    """
    absorbed: dict[ir.Value, Residual] = {}
    for step in additions:
        if step.op_type != "Add" or not step.same_shape or step.requantization.narrowed:
            continue
        for first, (own, other) in ((True, step.operands), (False, step.operands[::-1])):
            layer = layers.get(own.source)
            if layer is None or layer.requantization is None or layer.kind == "matmul_left":
                continue
            if own.source is other.source or not _read_once(own.source):
                continue
            absorbed[own.source] = Residual(
                other=other, requantization=step.requantization, result=step.result, first=first
            )
            break
    return absorbed


def real_end(product: ir.Value, row_scale: NDArray[np.float32]) -> RealEnd | None:
    """Return the bias and the residual that alone read a matrix product's real values.

    Parameters
    ----------
    product : onnx_ir.Value
    row_scale : ndarray of float32, shape (M,) or ()
    """
    shape, rank = product.shape, len(product.shape or ())
    outputs = row_scale.size if row_scale.ndim else None
    shift, value = None, product
    if (addition := _added(value)) is not None:
        array = constant(addition[1])
        if array is not None and array.dtype == np.float32 and array.ndim <= 1 and rank > 1:
            if array.size in (1, outputs):
                shift, value = np.broadcast_to(array.reshape(-1), (outputs or 1,)), addition[0]
    residual = None
    if (addition := _added(value)) is not None and shape is not None and rank > 1:
        sum_value, other = addition
        if constant(other) is None and other.shape == shape and other.dtype == ir.DataType.FLOAT:
            residual, value = other, sum_value
    if value is product:
        return None
    return RealEnd(shift=shift, residual=residual, result=value)


def _added(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """Return the sum of a value and the other operand, where an Add alone reads the value."""
    use, producer = sole_use(value), value.producer()
    if use is None or producer is None:
        return None
    node, index = use
    other = node.inputs[1 - index] if is_operator(node, "Add") else None
    if other is None or node.graph is not producer.graph:
        return None
    return node.outputs[0], other


def _read_once(value: ir.Value) -> bool:
    """Tell whether one operator alone reads an integer value, through one DequantizeLinear."""
    dequantize = sole_reader(value)
    return dequantize is not None and sole_use(dequantize.outputs[0]) is not None
