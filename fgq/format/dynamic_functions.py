"""The file format of products whose activations are quantized at run time, written and recognised.

With one range for the whole tensor, in operators that onnxruntime fuses (to DynamicQuantizeMatMul where one
product reads the activations, to MatMulIntegerToFloat where several do)::

    xq, x_scale, x_zero = DynamicQuantizeLinear(x)
    y = Cast(MatMulInteger(xq, w8, x_zero)) * (x_scale * row_scale)

With a range for each row along the last axis, in calls of two model-local functions of plain operators
(`fgq.format.functions`)::

    xq, x_scale, x_zero = fgq::QuantizeTokens(x)          x_scale, x_zero [.., 1]
    y = fgq::MultiplyTokens(xq, x_scale, x_zero, w8, row_scale)

where ``x_scale = clip((hi - lo) / 255, 2^-100, 2^120)`` for ``lo`` the smallest value of the row or 0.0 and
``hi`` the largest, ``x_zero = round_half_even(-lo / x_scale)`` and
``xq = clip(round_half_even(x / x_scale) + x_zero, 0, 255)``. ``w8`` [K, M] is a call of ``fgq::Unpack`` or
constant int8 (`fgq.format.container`); in both forms

    y[.., m] = x_scale * row_scale[m] * sum_k w8[k, m] * (xq[.., k] - x_zero)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.format.container import read_integers
from fgq.format.functions import MULTIPLY_TOKENS, QUANTIZE_TOKENS, called
from fgq.graph.queries import constant, sole_reader
from fgq.quantization.scheme import Ranges
from fgq.quantization.tensor import QuantizedTensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DynamicProduct:
    """A product with a constant matrix whose activations are quantized at run time.

    Parameters
    ----------
    node : onnx_ir.Node
        The MatMulInteger or ``fgq::MultiplyTokens``, after which the product is named.
    quantize : onnx_ir.Node
        The DynamicQuantizeLinear or ``fgq::QuantizeTokens``; several products may share it.
    ranges : Ranges
    integers : onnx_ir.Value
        The weight, int8 [K, M].
    row_scale : ndarray of float32, shape (M,) or ()
    result : onnx_ir.Value
        The float product.
    """

    node: ir.Node
    quantize: ir.Node
    ranges: Ranges
    integers: ir.Value
    row_scale: NDArray[np.float32]
    result: ir.Value

    @property
    def name(self) -> str:
        """The product's name."""
        return str(self.node.name)

    @property
    def source(self) -> ir.Value:
        """The real activations."""
        value = self.quantize.inputs[0]
        assert value is not None
        return value

    def read_weight(self) -> QuantizedTensor:
        """Return the weight: unpacked anew each time, so that nobody else holds it."""
        found = _read_weight(self.node, self.integers, self.row_scale)
        assert found is not None
        return found


def find_dynamic_products(graph: ir.Graph) -> list[DynamicProduct]:
    """List the products of the main graph whose activations are quantized at run time, in graph order.

    Parameters
    ----------
    graph : onnx_ir.Graph

    Raises
    ------
    ModelError
        If a packed weight is damaged.
    """
    found = (read_dynamic_product(node) for node in graph)
    return [product for product in found if product is not None]


def read_dynamic_product(node: ir.Node) -> DynamicProduct | None:
    """Recognise a product whose activations are quantized at run time.

    Parameters
    ----------
    node : onnx_ir.Node
        Products are recognised at their MatMulInteger or ``fgq::MultiplyTokens``.

    Raises
    ------
    ModelError
        If a packed weight is damaged.
    """
    if called(node) == MULTIPLY_TOKENS:
        found = _read_tokens(node)
    elif (node.domain, node.op_type) == ("", "MatMulInteger"):
        found = _read_tensor(node)
    else:
        return None
    if found is None or _read_weight(node, found.integers, found.row_scale) is None:
        return None
    return found


def _read_tokens(node: ir.Node) -> DynamicProduct | None:
    codes, scale, zero, integers, row_scale = node.inputs  # `fgq.format.functions.recognise` has counted them
    quantize = None if codes is None else codes.producer()
    if quantize is None or called(quantize) != QUANTIZE_TOKENS:
        return None
    if (codes, scale, zero) != tuple(quantize.outputs):
        return None
    return _product(node, quantize, Ranges.TOKEN, integers, row_scale, node.outputs[0])


def _read_tensor(node: ir.Node) -> DynamicProduct | None:
    codes, integers, *zeros = node.inputs if len(node.inputs) > 1 else (None, None)
    quantize = None if codes is None else codes.producer()
    if quantize is None or (quantize.domain, quantize.op_type) != ("", "DynamicQuantizeLinear"):
        return None
    if len(quantize.outputs) != 3:
        return None
    if not zeros or (codes, zeros[0]) != (quantize.outputs[0], quantize.outputs[2]):
        return None
    if len(zeros) > 1 and zeros[1] is not None and ((zero := constant(zeros[1])) is None or zero.any()):
        return None
    cast = sole_reader(node.outputs[0], "Cast")
    scaled = None if cast is None else sole_reader(cast.outputs[0], "Mul")
    if cast is None or scaled is None or cast.attributes.get_int("to", 0) != ir.DataType.FLOAT:
        return None
    factor = scaled.inputs[1] if scaled.inputs[0] is cast.outputs[0] else scaled.inputs[0]
    factors = None if factor is None else factor.producer()
    if factors is None or (factors.domain, factors.op_type) != ("", "Mul"):
        return None
    scale, row_scale = factors.inputs[:2] if len(factors.inputs) > 1 else (None, None)
    if scale is not quantize.outputs[1]:
        scale, row_scale = row_scale, scale
    if scale is not quantize.outputs[1]:
        return None
    return _product(node, quantize, Ranges.TENSOR, integers, row_scale, scaled.outputs[0])


def _product(
    node: ir.Node,
    quantize: ir.Node,
    ranges: Ranges,
    integers: ir.Value | None,
    row_scale: ir.Value | None,
    result: ir.Value,
) -> DynamicProduct | None:
    scales = constant(row_scale)
    source = quantize.inputs[0]
    if integers is None or scales is None or scales.dtype != np.float32 or source is None:
        return None
    if source.dtype not in (None, ir.DataType.FLOAT):
        return None
    if scales.size == 1 and scales.ndim < 2:
        scales = scales.reshape(())
    return DynamicProduct(
        node=node, quantize=quantize, ranges=ranges, integers=integers, row_scale=scales, result=result
    )


def _read_weight(node: ir.Node, integers: ir.Value, row_scale: NDArray[np.float32]) -> QuantizedTensor | None:
    if integers.shape is None or len(integers.shape) != 2:
        return None
    weight = read_integers(integers, row_scale, name=str(node.name), group_axis=0, channel_axis=1)
    return None if weight is None or len(weight.shape) != 2 else weight
