"""Read the quantizers of a graph: which integers stand for a value, and what happens before they are made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.format.container import ACTIVATION_BOUNDS
from fgq.graph.queries import constant, is_operator, sole_use
from fgq.quantization.scheme import Quantizer

_LARGEST = float(np.finfo(np.float32).max)

_MOST_SUM = 2.0**31
"""No sum of products of integers is larger, however many they are."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Quantized:
    """Activations that an operator reads as integers.

    Parameters
    ----------
    source : onnx_ir.Value
        The integers.
    quantizer : Quantizer
        Their scale and zero point, for integers held in uint8.
    bits : int
        8, or 4 where they are clipped to 0..15.
    """

    source: ir.Value
    quantizer: Quantizer
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Requantization:
    """How real values become the next layer's activations.

    Parameters
    ----------
    quantizer : Quantizer
        Scale and zero point of the result.
    lowest, highest : int
        The integers that ReLU, Clip and the width of the result leave, within 0..255.
    narrowed : bool
        Whether a ReLU or Clip before the quantizer leaves fewer integers than the quantizer alone.
        onnxruntime then computes the operator in float.
    """

    quantizer: Quantizer
    lowest: int
    highest: int
    narrowed: bool = False


def overflows(node: ir.Node) -> bool:
    """Tell whether an operator's quantizers have scales whose values or products float32 cannot hold.

    Integers then cannot stand for real values: a sum of zero would be multiplied by infinity.

    Parameters
    ----------
    node : onnx_ir.Node
        An operator, with or without quantizers around it.
    """
    scales = [scale for value in node.inputs[:2] if (scale := dequantized_by(value)) is not None]
    if not scales:
        return False
    given = [float(np.abs(scale.astype(np.float64)).max(initial=0.0)) for scale in scales]
    numbers = [255.0 * scale for scale in given]
    if len(given) == 2 and is_operator(node, "Conv", "Gemm", "MatMul", "Mul"):
        given = [given[0] * given[1]]
        numbers.append(_most_sum(node) * given[0])
    made = read_result(node.outputs[0])[1]
    if made is not None:
        numbers += [scale / made.quantizer.scale for scale in given]
    return not all(number <= _LARGEST for number in numbers)


def _most_sum(node: ir.Node) -> float:
    """Return what no sum of an operator's products of integers exceeds."""
    if is_operator(node, "Mul"):
        return 255.0 * 255.0
    shape = None if node.inputs[1] is None else node.inputs[1].shape
    if shape is None or len(shape) < 2:
        return _MOST_SUM
    if is_operator(node, "Conv"):
        summed = shape[1:]
    else:
        summed = shape[-1:] if node.attributes.get_int("transB", 0) else shape[-2:-1]
    if not all(isinstance(size, int) for size in summed):
        return _MOST_SUM
    return min(_MOST_SUM, 255.0 * 255.0 * float(np.prod([float(size) for size in summed])))  # type: ignore[arg-type]


def dequantized_by(value: ir.Value | None) -> NDArray[np.float32] | None:
    """Return the constant scales of the DequantizeLinear that makes a value, None where there are none."""
    node = None if value is None else value.producer()
    if node is None or not is_operator(node, "DequantizeLinear"):
        return None
    scale = constant(node.inputs[1])
    return None if scale is None or scale.dtype != np.float32 else scale


def read_quantized(value: ir.Value | None) -> Quantized | None:
    """Return the integers behind a DequantizeLinear; None where there are none, or they are constant.

    Parameters
    ----------
    value : onnx_ir.Value or None
        An operator's input.
    """
    node = None if value is None else value.producer()
    if node is None or not is_operator(node, "DequantizeLinear"):
        return None
    quantizer, source = read_quantizer(node), node.inputs[0]
    if quantizer is None or source is None or constant(source) is not None:
        return None
    clip = source.producer()
    limits = clip_limits(clip) if clip is not None and is_operator(clip, "Clip") else None
    most = ACTIVATION_BOUNDS[4][1]
    narrow = limits is not None and limits[0] >= 0 and max(limits[1], quantizer.zero_point) <= most
    return Quantized(source=source, quantizer=quantizer, bits=4 if narrow else 8)


def read_quantizer(node: ir.Node) -> Quantizer | None:
    """Return the quantizer of a QuantizeLinear or DequantizeLinear of 8-bit integers with one scale."""
    scale = constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or zero is None or scale.size != 1 or zero.size != 1 or scale.dtype != np.float32:
        return None
    if zero.dtype not in (np.uint8, np.int8) or not 0.0 < scale.item() < np.inf:
        return None
    shift = 128 if zero.dtype == np.int8 else 0
    return Quantizer(scale=float(scale.item()), zero_point=int(zero.item()) + shift)


def read_result(value: ir.Value) -> tuple[ir.Value, Requantization | None]:
    """Follow ReLU, Clip and QuantizeLinear after an operator as far as nothing else reads between them.

    Parameters
    ----------
    value : onnx_ir.Value
        What the operator computes.

    Returns
    -------
    result : onnx_ir.Value
        The integers, or `value` itself.
    requantization : Requantization or None
        None where the result stays float.
    """
    bounds: list[tuple[float, float]] = []
    current = value
    while (reader := _next_operator(current)) is not None:
        if reader.op_type == "Relu":
            bounds.append((0.0, np.inf))
        elif reader.op_type == "Clip" and (limits := clip_limits(reader)) is not None:
            bounds.append(limits)
        elif reader.op_type == "QuantizeLinear" and (quantizer := read_quantizer(reader)) is not None:
            return _absorb_clip(reader.outputs[0], quantizer, bounds)
        else:
            break
        current = reader.outputs[0]
    return value, None


def read_clipped(quantize: ir.Node) -> tuple[ir.Value, Requantization] | None:
    """Return the integers that a QuantizeLinear, and a Clip to 4 bits behind it, make."""
    quantizer = read_quantizer(quantize)
    return None if quantizer is None else _absorb_clip(quantize.outputs[0], quantizer, [])


def clip_limits(node: ir.Node) -> tuple[float, float] | None:
    """Return the limits of a Clip, None where they are computed or no numbers.

    They are attributes up to opset 10, and inputs from 11 on.
    """
    limits = []
    for index, name, missing in ((1, "min", -np.inf), (2, "max", np.inf)):
        value = node.inputs[index] if len(node.inputs) > index else None
        array = constant(value)
        if value is not None and (array is None or array.size != 1):
            return None
        given = node.attributes.get_float(name, missing) if array is None else float(array.item())
        if np.isnan(given):
            return None
        limits.append(given)
    return limits[0], limits[1]


def _next_operator(value: ir.Value) -> ir.Node | None:
    """Return the standard operator of the same graph that alone reads a value, as its first input."""
    use, producer = sole_use(value), value.producer()
    if use is None or producer is None:
        return None
    node, index = use
    return node if node.domain == "" and index == 0 and node.graph is producer.graph else None


def _absorb_clip(
    value: ir.Value, quantizer: Quantizer, bounds: list[tuple[float, float]]
) -> tuple[ir.Value, Requantization]:
    lowest, highest = 0, quantizer.highest
    for bound in bounds:
        low, high = (_quantize(end, quantizer) for end in bound)
        lowest, highest = (min(max(end, low), high) for end in (lowest, highest))
    narrowed = (lowest, highest) != (0, quantizer.highest)
    reader = _next_operator(value)
    if value.dtype != ir.DataType.INT8 and reader is not None and reader.op_type == "Clip":
        limits = clip_limits(reader)
        if limits is not None:
            low, high = (int(min(max(end, 0), 255)) for end in limits)
            lowest, highest = (min(max(end, low), high) for end in (lowest, highest))
            value = reader.outputs[0]
    return value, Requantization(quantizer=quantizer, lowest=lowest, highest=highest, narrowed=narrowed)


def _quantize(bound: float, quantizer: Quantizer) -> int:
    """Quantize a bound as QuantizeLinear does: divide in float32, round half to even, saturate."""
    if np.isinf(bound):
        return 0 if bound < 0 else quantizer.highest
    rounded = np.rint(np.float32(bound) / np.float32(quantizer.scale)) + quantizer.zero_point
    return int(np.clip(rounded, 0, quantizer.highest))
