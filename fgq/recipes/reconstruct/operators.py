"""ONNX operators in PyTorch: those that stand between the layers of a block.

Each entry of `OPERATORS` takes a node and the values it reads, None for an input that is left out, and
returns its first output. Rounding passes gradients on unchanged (the straight-through estimator, Bengio et
al. 2013, arXiv 1308.3432).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fgq.graph.queries import constant, is_read
from fgq.graph.windows import pads_of, spans

Inputs = Sequence[Tensor | None]
Operator = Callable[[ir.Node, Inputs], Tensor]


def round_through(x: Tensor) -> Tensor:
    """Round half to even; the gradient is that of the identity.

    Parameters
    ----------
    x : Tensor of float
    """
    return x + (torch.round(x) - x).detach()


def unsupported(node: ir.Node) -> str | None:
    """Say what about a node is not known here; None where it can be part of a block.

    Parameters
    ----------
    node : onnx_ir.Node
    """
    kind = node.op_type
    if node.domain != "" or kind not in OPERATORS:
        return f"the operator {node.domain}::{kind}" if node.domain else f"the operator {kind}"
    if is_read(node.outputs[1:]):
        return f"the second output of {kind}"
    attributes = node.attributes
    if kind in ("MaxPool", "AveragePool"):
        if attributes.get_int("ceil_mode", 0) or len(attributes.get_ints("kernel_shape")) != 2:
            return f"this form of {kind}"
        padded = any(attributes.get_ints("pads", [])) or "auto_pad" in attributes
        if kind == "AveragePool" and (padded or "dilations" in attributes):
            return f"this form of {kind}"
    if kind in ("QuantizeLinear", "DequantizeLinear"):
        scale = constant(node.inputs[1])
        if scale is None or scale.ndim or len(node.inputs) < 3:
            return f"{kind} with a scale for each channel, or without a zero point"
    return None


def _given(value: Tensor | None) -> Tensor:
    assert value is not None  # the graph has been checked: this input is not optional
    return value


def _ints(value: Tensor | None) -> list[int]:
    return [int(each) for each in _given(value).tolist()]


def _pointwise(function: Callable[..., Tensor]) -> Operator:
    return lambda node, x: function(*(_given(each) for each in x))


def _gemm(node: ir.Node, x: Inputs) -> Tensor:
    a, b = _given(x[0]), _given(x[1])
    a = a.T if node.attributes.get_int("transA", 0) else a
    b = b.T if node.attributes.get_int("transB", 0) else b
    result = node.attributes.get_float("alpha", 1.0) * (a @ b)
    if len(x) > 2 and x[2] is not None:
        result = result + node.attributes.get_float("beta", 1.0) * x[2]
    return result


def _padded(node: ir.Node, image: Tensor, kernel: Sequence[int], fill: float) -> Tensor:
    """Return an image with the margin that a node's windows reach into."""
    strides = node.attributes.get_ints("strides", [1, 1])
    dilations = node.attributes.get_ints("dilations", [1, 1])
    reach = spans(kernel, dilations)
    before, after = pads_of(node, image.shape[2:], reach, strides)
    if not any(chain(before, after)):
        return image
    return F.pad(image, (before[1], after[1], before[0], after[0]), value=fill)


def _conv(node: ir.Node, x: Inputs) -> Tensor:
    weight = _given(x[1])
    image = _padded(node, _given(x[0]), weight.shape[2:], 0.0)
    bias = x[2] if len(x) > 2 else None
    attributes = node.attributes
    return F.conv2d(
        image,
        weight,
        bias,
        list(attributes.get_ints("strides", [1, 1])),
        dilation=list(attributes.get_ints("dilations", [1, 1])),
        groups=attributes.get_int("group", 1),
    )


def _max_pool(node: ir.Node, x: Inputs) -> Tensor:
    attributes = node.attributes
    kernel = list(attributes.get_ints("kernel_shape"))
    image = _padded(node, _given(x[0]), kernel, -math.inf)
    strides = list(attributes.get_ints("strides", [1, 1]))
    return F.max_pool2d(image, kernel, strides, dilation=list(attributes.get_ints("dilations", [1, 1])))


def _average_pool(node: ir.Node, x: Inputs) -> Tensor:
    kernel = list(node.attributes.get_ints("kernel_shape"))
    return F.avg_pool2d(_given(x[0]), kernel, list(node.attributes.get_ints("strides", [1, 1])))


def _div(node: ir.Node, x: Inputs) -> Tensor:
    a, b = _given(x[0]), _given(x[1])
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def _clip(node: ir.Node, x: Inputs) -> Tensor:
    low, high = (x[place] if len(x) > place else None for place in (1, 2))
    value = _given(x[0])
    value = value if low is None else torch.maximum(value, low)
    return value if high is None else torch.minimum(value, high)


def _softmax(node: ir.Node, x: Inputs) -> Tensor:
    return torch.softmax(_given(x[0]), node.attributes.get_int("axis", -1))


def _layer_normalization(node: ir.Node, x: Inputs) -> Tensor:
    value = _given(x[0])
    axis = node.attributes.get_int("axis", -1) % value.ndim
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    result = F.layer_norm(value, value.shape[axis:], eps=epsilon) * _given(x[1])
    return result if len(x) < 3 or x[2] is None else result + x[2]


def _batch_normalization(node: ir.Node, x: Inputs) -> Tensor:
    value, scale, bias, mean, variance = (_given(each) for each in x)
    return F.batch_norm(value, mean, variance, scale, bias, eps=node.attributes.get_float("epsilon", 1e-5))


def _gelu(node: ir.Node, x: Inputs) -> Tensor:
    return F.gelu(_given(x[0]), approximate=node.attributes.get_string("approximate", "none"))


def _hard_sigmoid(node: ir.Node, x: Inputs) -> Tensor:
    alpha = node.attributes.get_float("alpha", 0.2)
    return torch.clamp(alpha * _given(x[0]) + node.attributes.get_float("beta", 0.5), 0, 1)


def _leaky_relu(node: ir.Node, x: Inputs) -> Tensor:
    return F.leaky_relu(_given(x[0]), node.attributes.get_float("alpha", 0.01))


def _reshape(node: ir.Node, x: Inputs) -> Tensor:
    value, sizes = _given(x[0]), _ints(x[1])
    if not node.attributes.get_int("allowzero", 0):
        sizes = [value.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
    return value.reshape(sizes)


def _flatten(node: ir.Node, x: Inputs) -> Tensor:
    value = _given(x[0])
    axis = node.attributes.get_int("axis", 1)
    axis = axis + value.ndim if axis < 0 else axis
    return value.reshape(math.prod(value.shape[:axis]), -1)


def _transpose(node: ir.Node, x: Inputs) -> Tensor:
    value = _given(x[0])
    return value.permute(list(node.attributes.get_ints("perm", list(range(value.ndim))[::-1])))


def _unsqueeze(node: ir.Node, x: Inputs) -> Tensor:
    value, axes = _given(x[0]), _ints(x[1])
    for axis in sorted(axis % (value.ndim + len(axes)) for axis in axes):
        value = value.unsqueeze(axis)
    return value


def _squeeze(node: ir.Node, x: Inputs) -> Tensor:
    value = _given(x[0])
    return value.squeeze() if len(x) < 2 or x[1] is None else value.squeeze(tuple(_ints(x[1])))


def _cast(node: ir.Node, x: Inputs) -> Tensor:
    dtype = ir.DataType(node.attributes.get_int("to")).numpy()
    return _given(x[0]).to(torch.from_numpy(np.empty(0, dtype)).dtype)


def _expand(node: ir.Node, x: Inputs) -> Tensor:
    value = _given(x[0])
    return value.expand(np.broadcast_shapes(value.shape, tuple(_ints(x[1]))))


def _slice(node: ir.Node, x: Inputs) -> Tensor:
    value, starts, ends = _given(x[0]), _ints(x[1]), _ints(x[2])
    axes = _ints(x[3]) if len(x) > 3 and x[3] is not None else list(range(len(starts)))
    steps = _ints(x[4]) if len(x) > 4 and x[4] is not None else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        places = range(value.shape[axis])[start:end:step]
        value = value.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return value


def _concat(node: ir.Node, x: Inputs) -> Tensor:
    return torch.cat([_given(each) for each in x], node.attributes.get_int("axis"))


def _gather(node: ir.Node, x: Inputs) -> Tensor:
    value, places = _given(x[0]), _given(x[1])
    axis = node.attributes.get_int("axis", 0) % value.ndim
    places = torch.where(places < 0, places + value.shape[axis], places)
    picked = value.index_select(axis, places.reshape(-1))
    return picked.reshape(*value.shape[:axis], *places.shape, *value.shape[axis + 1 :])


def _shape(node: ir.Node, x: Inputs) -> Tensor:
    start = node.attributes.get_int("start", 0)
    stop = node.attributes.get_int("end", _given(x[0]).ndim)
    return torch.tensor(_given(x[0]).shape[start:stop], dtype=torch.int64)


def _reduce_mean(node: ir.Node, x: Inputs) -> Tensor:
    value = _given(x[0])
    axes = list(node.attributes.get_ints("axes", [])) if len(x) < 2 or x[1] is None else _ints(x[1])
    keep = bool(node.attributes.get_int("keepdims", 1))
    unchanged = node.attributes.get_int("noop_with_empty_axes", 0)
    if not axes and unchanged:
        return value
    return value.mean(axes or list(range(value.ndim)), keepdim=keep)


def _quantize(node: ir.Node, x: Inputs) -> Tensor:
    """Return the integers as float values, so that gradients reach what is before."""
    value, scale, zero = _given(x[0]), _given(x[1]), _given(x[2])
    limits = torch.iinfo(zero.dtype)
    return torch.clamp(round_through(value / scale) + zero, limits.min, limits.max)


def _dequantize(node: ir.Node, x: Inputs) -> Tensor:
    value, scale, zero = _given(x[0]), _given(x[1]), _given(x[2])
    return (value - zero) * scale


OPERATORS: dict[str, Operator] = {
    "Add": _pointwise(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": _div,
    "Erf": _pointwise(torch.erf),
    "Exp": _pointwise(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _pointwise(partial(torch.mean, dim=(2, 3), keepdim=True)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _pointwise(F.hardswish),
    "Identity": _pointwise(torch.Tensor.clone),
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": _leaky_relu,
    "MatMul": _pointwise(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _pointwise(torch.mul),
    "Neg": _pointwise(torch.neg),
    "Pow": _pointwise(torch.pow),
    "QuantizeLinear": _quantize,
    "ReduceMean": _reduce_mean,
    "Relu": _pointwise(torch.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _pointwise(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Sqrt": _pointwise(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _pointwise(torch.sub),
    "Tanh": _pointwise(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _pointwise(torch.where),
}
"""What a block may hold, by ONNX name; opset 13 at least."""
