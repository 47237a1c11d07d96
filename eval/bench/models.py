"""The same layers as ONNX models, in the forms that other engines run.

Matrix products take and give float32, as ours do; 8-bit convolutions take and give uint8, and stand between
the quantizers of their neighbours. NCHW is ONNX's layout; onnxruntime has the other ones for itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fgq.eval.bench.drawn_layers import DrawnLayer
from fgq.eval.bench.shapes import Conv

_OPSET, _IR_VERSION = 17, 8
"""Old enough for every onnxruntime that is supported."""

_MICROSOFT = "com.microsoft"

BLOCK = 64
"""Weights that share a scale in MatMulNBits."""

INPUT, OUTPUT = "x", "y"
"""Names in every model."""

Nodes = list[onnx.NodeProto]


def float_weights(layer: DrawnLayer) -> NDArray[np.float32]:
    """Return the weights that the codes stand for, [M, K] or [M, kh, kw, C]."""
    scale = layer.row_scale.reshape(-1, *(1,) * (len(layer.shape.weights) - 1))
    return scale * layer.weight.int8().astype(np.float32)


def float_matmul(layer: DrawnLayer) -> onnx.ModelProto:
    """Return MatMul."""
    return _model([_node("MatMul", "x w", "y")], layer, {"w": float_weights(layer).T})


def static_matmul(layer: DrawnLayer) -> onnx.ModelProto:
    """Return QLinearMatMul between quantizers with constant scales."""
    nodes = [
        _node("QuantizeLinear", "x x_scale x_zero", "xq"),
        _node("QLinearMatMul", "xq x_scale x_zero w w_scale w_zero y_scale y_zero", "yq"),
        _node("DequantizeLinear", "yq y_scale y_zero", "y"),
    ]
    return _model(nodes, layer, {"w": layer.weight.int8().T, **_quantizers(layer)})


def dynamic_matmul(layer: DrawnLayer) -> onnx.ModelProto:
    """Return MatMulInteger with scales from each input, which onnxruntime makes one operator of."""
    nodes = [
        _node("DynamicQuantizeLinear", "x", "xq scale zero"),
        _node("MatMulInteger", "xq w zero w_zero", "sums"),
        _node("Cast", "sums", "real", to=TensorProto.FLOAT),
        _node("Mul", "scale w_scale", "both"),
        _node("Mul", "real both", "y"),
    ]
    weights: dict[str, NDArray[Any]] = {
        "w": layer.weight.int8().T,
        "w_scale": layer.row_scale,
        "w_zero": np.zeros((), np.int8),
    }
    return _model(nodes, layer, weights)


def blockwise_matmul(layer: DrawnLayer, bits: int) -> onnx.ModelProto:
    """Return MatMulNBits: weights of 2 or 4 bits, activations quantized to 8 bits inside.

    Parameters
    ----------
    layer : DrawnLayer
    bits : int
        Of a weight. Ternary groups of 64 are met exactly, smaller ones are rounded.
    """
    outputs, inputs = layer.shape.weights
    blocks = -(-inputs // BLOCK)
    padded = np.zeros((outputs, blocks * BLOCK), np.float32)
    padded[:, :inputs] = float_weights(layer)
    cut = padded.reshape(outputs, blocks, BLOCK)
    middle = 1 << (bits - 1)
    scales = np.abs(cut).max(axis=-1, keepdims=True) / np.float32(middle - 1)
    codes = (np.rint(cut / np.where(scales > 0, scales, 1)) + middle).astype(np.uint8)
    packed = np.zeros((outputs, blocks, BLOCK * bits // 8), np.uint8)
    for place in range(8 // bits):  # the first code lies in the lowest bits
        packed |= codes[..., place :: 8 // bits] << np.uint8(bits * place)
    node = _node(
        "MatMulNBits", "x w scales", "y", domain=_MICROSOFT,
        K=inputs, N=outputs, bits=bits, block_size=BLOCK, accuracy_level=4,
    )  # fmt: skip
    return _model([node], layer, {"w": packed, "scales": scales.reshape(outputs, blocks)})


def float_conv(layer: DrawnLayer) -> onnx.ModelProto:
    """Return Conv."""
    weights = np.moveaxis(float_weights(layer), -1, 1)
    return _model([_node("Conv", "x w", "y", **_geometry(layer))], layer, {"w": weights})


def integer_conv(layer: DrawnLayer, *, channels_last: bool = False) -> onnx.ModelProto:
    """Return QLinearConv, ONNX's or onnxruntime's own with channels last."""
    options = {"domain": _MICROSOFT, "channels_last": 1} if channels_last else {}
    inputs = "x x_scale x_zero w w_scale w_zero y_scale y_zero"
    node = _node("QLinearConv", inputs, "y", **_geometry(layer), **options)
    weights = {"w": np.moveaxis(layer.weight.int8(), -1, 1), **_quantizers(layer)}
    return _model([node], layer, weights, integers=True, channels_last=channels_last)


def quantized_conv(layer: DrawnLayer, *, channels_last: bool = False) -> onnx.ModelProto:
    """Return Conv between DequantizeLinear and QuantizeLinear, and Transpose where channels are last.

    OpenVINO keeps channels last inside: there these transpositions move nothing.
    """
    weights = {"w": np.moveaxis(layer.weight.int8(), -1, 1), **_quantizers(layer)}
    read, made = ("xl", "yl") if channels_last else ("xr", "y")
    nodes = [
        _node("DequantizeLinear", "x x_scale x_zero", read),
        _node("DequantizeLinear", "w w_scale w_zero", "wr", axis=0),
        _node("Conv", "xr wr", "yr", **_geometry(layer)),
        _node("QuantizeLinear", "yr y_scale y_zero", made),
    ]
    if channels_last:
        nodes.insert(1, _node("Transpose", read, "xr", perm=[0, 3, 1, 2]))
        nodes.append(_node("Transpose", made, "y", perm=[0, 2, 3, 1]))
    return _model(nodes, layer, weights, integers=True, channels_last=channels_last)


def quantized_matmul(layer: DrawnLayer) -> onnx.ModelProto:
    """Return MatMul behind DequantizeLinear, its output left float."""
    nodes = [
        _node("QuantizeLinear", "x x_scale x_zero", "xq"),
        _node("DequantizeLinear", "xq x_scale x_zero", "xr"),
        _node("DequantizeLinear", "w w_scale w_zero", "wr", axis=1),
        _node("MatMul", "xr wr", "y"),
    ]
    return _model(nodes, layer, {"w": layer.weight.int8().T, **_quantizers(layer)})


def feed(layer: DrawnLayer, model: onnx.ModelProto) -> NDArray[Any]:
    """Return the activations as a model takes them."""
    description = model.graph.input[0].type.tensor_type
    integers = description.elem_type == TensorProto.UINT8
    x: NDArray[Any] = layer.integers(8) if integers else layer.x
    if isinstance(layer.shape, Conv) and description.shape.dim[-1].dim_value != layer.shape.channels:
        x = np.moveaxis(x, -1, 1)
    return np.ascontiguousarray(x)


def _node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def _geometry(layer: DrawnLayer) -> dict[str, Any]:
    assert isinstance(layer.shape, Conv)
    window = layer.shape.window
    return {"strides": window.strides, "pads": window.pads, "kernel_shape": [layer.shape.taps] * 2}


def _quantizers(layer: DrawnLayer) -> dict[str, NDArray[Any]]:
    """Return the scales and zero points of 8-bit activations and of weights."""
    given, made = layer.input_quantizer(8), layer.output_quantizer(8)
    return {
        "x_scale": np.array(given.scale, np.float32),
        "x_zero": np.array(given.zero_point, np.uint8),
        "w_scale": layer.row_scale,
        "w_zero": np.zeros(len(layer.row_scale), np.int8),
        "y_scale": np.array(made.scale, np.float32),
        "y_zero": np.array(made.zero_point, np.uint8),
    }


def _model(
    nodes: Nodes,
    layer: DrawnLayer,
    weights: dict[str, NDArray[Any]],
    *,
    integers: bool = False,
    channels_last: bool = False,
) -> onnx.ModelProto:
    shape = list(layer.x.shape)
    if isinstance(layer.shape, Conv) and not channels_last:
        shape = [shape[0], shape[3], shape[1], shape[2]]
    type_ = TensorProto.UINT8 if integers else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(INPUT, type_, shape)],
        [helper.make_tensor_value_info(OUTPUT, type_, None)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
