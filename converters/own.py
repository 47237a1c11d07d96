"""Quantizers that a model brings with it.

onnxruntime merges a DequantizeLinear and the QuantizeLinear that reads it into one of other ranges, also
where nothing but moves of values, a maximum or a bound stand between them. So no second quantizer is set
where the model has one: what comes out of its DequantizeLinear is integers already, and what goes into its
QuantizeLinear stays real.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from fgq.graph.queries import constant

LAYOUT = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
"""Operators that move integers and do not change them."""

_DOMAINS = ("", "com.microsoft")


def is_bound(node: ir.Node | None) -> bool:
    """Tell whether a node is a ReLU or a clip by constants, which an integer operator absorbs."""
    if node is None or node.domain != "":
        return False
    if node.op_type == "Clip":
        return all(value is None or constant(value) is not None for value in node.inputs[1:])
    return node.op_type == "Relu"


def is_layout(node: ir.Node | None) -> bool:
    """Tell whether a node moves values and changes none; Dropout that is said to train does."""
    if node is None or node.domain != "" or node.op_type not in LAYOUT:
        return False
    return node.op_type != "Dropout" or len(node.inputs) < 3 or node.inputs[2] is None


def before_layout(value: ir.Value) -> ir.Value:
    """Return the value that operators of `LAYOUT` have moved to this place."""
    producer = value.producer()
    while producer is not None and is_layout(producer):
        first = producer.inputs[0]
        assert first is not None
        value, producer = first, first.producer()
    return value


def is_quantized(value: ir.Value) -> bool:
    """Tell whether a quantizer of the model's own has made the values, up to bounds and maxima after it."""
    return any(_is_dequantize(node) for node in _before(value))


def own_scale(value: ir.Value) -> float | None:
    """Return the scale of the model's own quantizer of 8 bits whose values these are.

    None where there is none, where it has several scales or computes them, and where a bound stands behind
    it, which need not be one of its steps.
    """
    for node in _before(value):
        if is_bound(node):
            return None
        if _is_dequantize(node):
            integers, scale = node.inputs[0], constant(node.inputs[1])
            zero = node.inputs[2] if len(node.inputs) > 2 else None
            known = scale is not None and scale.dtype == np.float32 and scale.size == 1
            known = known and (zero is None or constant(zero) is not None)
            types = {each.dtype for each in (integers, zero) if each is not None and each.dtype is not None}
            if scale is None or not known or not types or types - {ir.DataType.UINT8, ir.DataType.INT8}:
                return None
            return float(scale.item()) if np.isfinite(scale).all() and scale.item() > 0 else None
    return None


def goes_to_quantizer(node: ir.Node) -> bool:
    """Tell whether a node is a quantizer of the model's own, or hands values on to one."""
    if node.domain in _DOMAINS and node.op_type == "QuantizeLinear":
        return True
    return _passes(node) and any(goes_to_quantizer(reader) for reader in node.outputs[0].consumers())


def _before(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the nodes that made the values, from the last to the one that did more than pass them on."""
    node = value.producer()
    while node is not None:
        yield node
        first = node.inputs[0] if node.inputs else None
        node = first.producer() if _passes(node) and first is not None else None


def _passes(node: ir.Node) -> bool:
    return is_layout(node) or is_bound(node) or (node.domain == "" and node.op_type == "MaxPool")


def _is_dequantize(node: ir.Node) -> bool:
    return (
        node.domain in _DOMAINS
        and node.op_type == "DequantizeLinear"
        and node.inputs[0] is not None
        and constant(node.inputs[0]) is None
    )
