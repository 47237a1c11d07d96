"""Poolings that kill a process: those without a row of results, in onnxruntime's layout of blocked channels.

onnxruntime 1.31 pools float images of blocked channels (NCHWc) in threads that share the rows of the result,
and divides by their number. A window that is larger than the padded image by a stride leaves none.
`fgq.format.geometry` refuses one where sizes are known; here it is told whether one may come up when a model
runs, so that `fgq.graph.ort` opens the model without that layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx

_POOLS = frozenset({"AveragePool", "MaxPool"})

_BIG = 1000
"""Constants of more bytes are left out of what is inferred from."""

_KEEPING = frozenset(
    "Add BatchNormalization Clip Concat DequantizeLinear Div Dropout Elu Erf Gelu HardSigmoid HardSwish "
    "Identity LeakyRelu Mish Mul PRelu QuantizeLinear Relu Selu Sigmoid Softplus Sub Tanh".split()
)
"""Operators whose results have rows where all operands have."""


def may_lack_rows(model: onnx.ModelProto) -> bool:
    """Tell whether a pooling of images may have a result of no rows, as far as the file says.

    A pooling with a window that fits any image, as most have, never does: an image behind a convolution has
    one row at least. Where another one is, the sizes of the inputs decide, if they are fixed.

    Parameters
    ----------
    model : onnx.ModelProto
    """
    inner = [node for part in _parts(model) if part is not model.graph for node in part.node]
    if not all(_fits(node, 0) for node in inner if _is_pool(node)):
        return True
    suspects = list(_suspects(model.graph))
    rows = _rows(model) if suspects else {}
    return not all(_fits(node, rows.get(node.input[0], 0)) for node in suspects)


def _parts(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    waiting: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while waiting:
        part = waiting.pop()
        yield part
        for node in part.node:
            for attribute in node.attribute:
                waiting.extend(attribute.graphs)
                if attribute.HasField("g"):
                    waiting.append(attribute.g)


def _is_pool(node: onnx.NodeProto) -> bool:
    return node.op_type in _POOLS and node.domain in ("", "ai.onnx") and len(node.input) > 0


def _suspects(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the poolings that do not fit every image that may reach them."""
    filled = {tensor.name for tensor in graph.initializer if 0 not in tensor.dims}
    for node in graph.node:
        keeps = node.op_type == "Conv" and len(node.input) > 1  # refused by onnxruntime where it has no rows
        if _is_pool(node):
            keeps = _fits(node, int(node.input[0] in filled))
            if not keeps:
                yield node
        elif node.op_type in _KEEPING:
            keeps = all(name in filled for name in node.input if name)
        if keeps and node.output:
            filled.add(node.output[0])


def _fits(node: onnx.NodeProto, rows: int) -> bool:
    """Tell whether a pooling has a row of results for every image of so many rows or more."""
    attributes: Mapping[str, Any] = {
        found.name: onnx.helper.get_attribute_value(found)
        for found in node.attribute
        if not found.ref_attr_name
    }
    kernel = attributes.get("kernel_shape")
    if kernel is None:  # a function's, or none
        return False
    if len(kernel) != 2:
        return True
    if attributes.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
        return rows > 0
    pads = (attributes.get("pads") or [0] * 4) if attributes.get("auto_pad") != b"VALID" else [0] * 4
    stride, dilation = ((attributes.get(name) or [1])[0] for name in ("strides", "dilations"))
    return bool(dilation * (kernel[0] - 1) + 1 - pads[0] - pads[len(pads) // 2] - rows < stride)


def _rows(model: onnx.ModelProto) -> dict[str, int]:
    """Return how many rows the images of the main graph have, where the inputs' sizes say it."""
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.input.extend(model.graph.input)
    known = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _BIG and tensor.data_location != onnx.TensorProto.EXTERNAL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in known:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    for node in model.graph.node:
        held = light.graph.node.add()
        held.CopyFrom(node)
        if any(attribute.name == "ceil_mode" and attribute.i for attribute in node.attribute):
            held.domain = "fgq.opaque"  # onnx counts windows that the operator leaves out
    light.opset_import.append(onnx.helper.make_opsetid("fgq.opaque", 1))
    light.graph.name = "light"
    try:
        inferred = onnx.shape_inference.infer_shapes(light)
    except Exception:  # what onnx finds wrong is no size
        return {}
    found = dict[str, int]()
    for value in (*inferred.graph.input, *inferred.graph.value_info):
        axes = value.type.tensor_type.shape.dim
        if len(axes) == 4 and axes[2].dim_value > 0:
            found[value.name] = axes[2].dim_value
    return found
