"""Recognise what runs on integers, and join what runs in one kernel call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.format.container import constant
from fgq.format.dynamic_functions import DynamicProduct, find_dynamic_products
from fgq.kernels.products.dispatch import Memory, Wish
from fgq.runtime.arithmetic import BinaryStep, read_binary
from fgq.runtime.concat import read_concat
from fgq.runtime.dynamic import DynamicProductStep, QuantizeRowsStep
from fgq.runtime.edges import read_quantize
from fgq.runtime.floats import read_gelu, read_layer_norm, read_softmax
from fgq.runtime.layers import IntegerLayer, find_integer_layers
from fgq.runtime.lookup import read_lookup
from fgq.runtime.moves import read_move
from fgq.runtime.pooling import read_pool
from fgq.runtime.products import ProductStep, RealEnd, Residual
from fgq.runtime.quantizers import is_operator, read_quantized
from fgq.runtime.step import Step

READERS = (read_binary, read_pool, read_concat, read_move)
"""What recognises steps other than products and quantization, each from the node that it is named after."""


_QUANTIZED = frozenset(
    "QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul ConvInteger "
    "MatMulInteger MatMulNBits".split()
)


@dataclass(frozen=True, slots=True)
class Options:
    """How a session is to run.

    Parameters
    ----------
    wish : Wish
        Which kernels may run its layers.
    memory : Memory
        How they hold the weights.
    """

    wish: Wish = Wish.AUTO
    memory: Memory = Memory.AUTO


def find_steps(graph: ir.Graph, options: Options) -> dict[ir.Value, Step]:
    """Return the steps that a graph's integers allow, by the values that they make.

    Parameters
    ----------
    graph : onnx_ir.Graph
        In topological order.
    options : Options

    Raises
    ------
    ModelError
        If a packed weight is damaged.
    KernelError
        If no kernel meets the wish.
    """
    layers = {layer.result: layer for layer in find_integer_layers(graph)}
    found = [step for node in graph for read in READERS if (step := read(node)) is not None]
    makers: dict[ir.Value, Step] = {step.result: step for step in found}
    residuals = _residuals([step for step in found if isinstance(step, BinaryStep)], layers)
    for result, layer in layers.items():
        follows = residuals.get(result) or _layer_end(layer)
        product = ProductStep(layer, options.wish, options.memory, follows)
        makers[product.result] = product
    dynamic = find_dynamic_products(graph)
    makers |= {step.result: step for step in _dynamic_steps(dynamic, options)}
    for step in _float_steps(graph):
        if (layers or dynamic) and step.result not in makers:
            makers[step.result] = step
    opset = graph.opset_imports.get("", 1)
    for node in graph:
        step = read_lookup(node, opset) or read_quantize(node)
        if step is not None and step.result not in makers and _pure(step.sources[0], makers):
            makers[step.result] = step
    return {
        result: step
        for result, step in makers.items()
        if not any(source.is_initializer() for source in step.sources)  # left to onnxruntime to fold
    }


def _dynamic_steps(products: list[DynamicProduct], options: Options) -> Iterator[Step]:
    """Yield a step for each product, and one quantization for all that read the same values."""
    quantized = {product.quantize: QuantizeRowsStep(product) for product in products}
    yield from quantized.values()
    for product in products:
        follows = real_end(product.result, product.row_scale)
        rows = quantized[product.quantize].result
        yield DynamicProductStep(product, rows, options.wish, options.memory, follows)


def _float_steps(graph: ir.Graph) -> list[Step]:
    opset = graph.opset_imports.get("", 1)
    found = (read_gelu(node) or read_layer_norm(node) or read_softmax(node, opset) for node in graph)
    return [step for step in found if step is not None]


def float_products(graph: ir.Graph) -> list[ir.Node]:
    """List the Conv, MatMul and Gemm nodes that multiply real values by constant weights, if that is all.

    Parameters
    ----------
    graph : onnx_ir.Graph

    Returns
    -------
    list of onnx_ir.Node
        Empty where anything in the graph is quantized.
    """
    if any(node.op_type in _QUANTIZED for node in graph.all_nodes()):
        return []
    products = [node for node in graph.all_nodes() if is_operator(node, "Conv", "MatMul", "Gemm")]
    return [node for node in products if any(constant(value) is not None for value in node.inputs[:2])]


def _residuals(
    additions: list[BinaryStep], layers: Mapping[ir.Value, IntegerLayer]
) -> dict[ir.Value, Residual]:
    """Return the additions that layers can do by the way, by the layers' results."""
    residuals: dict[ir.Value, Residual] = {}
    for step in additions:
        if step.op_type != "Add" or not step.same_shape or step.made.narrowed:
            continue
        for first, (own, other) in ((True, step.operands), (False, step.operands[::-1])):
            layer = layers.get(own.source)
            if layer is None or layer.requantization is None or layer.kind == "matmul_left":
                continue
            if own.source is other.source or not _read_once(own.source):
                continue
            residuals[own.source] = Residual(
                other=other, requantization=step.made, result=step.result, first=first
            )
            break
    return residuals


def _layer_end(layer: IntegerLayer) -> RealEnd | None:
    if layer.requantization is not None or layer.kind != "matmul" or layer.bias is not None:
        return None
    return real_end(layer.result, layer.row_scale)


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
    if (found := _added(value)) is not None:
        array = constant(found[1])
        if array is not None and array.dtype == np.float32 and array.ndim <= 1 and rank > 1:
            if array.size in (1, outputs):
                shift, value = np.broadcast_to(array.reshape(-1), (outputs or 1,)), found[0]
    residual = None
    if (found := _added(value)) is not None and shape is not None and rank > 1:
        sum_value, other = found
        if constant(other) is None and other.shape == shape and other.dtype == ir.DataType.FLOAT:
            residual, value = other, sum_value
    if value is product:
        return None
    return RealEnd(shift=shift, residual=residual, result=value)


def _added(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """Return the sum of a value and the other operand, where an Add alone reads the value."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node, index = uses[0].node, uses[0].idx
    other = node.inputs[1 - index] if is_operator(node, "Add") else None
    producer = value.producer()
    if other is None or other is value or producer is None or node.graph is not producer.graph:
        return None
    return node.outputs[0], other


def _read_once(value: ir.Value) -> bool:
    """Tell whether one operator alone reads an integer value, through one DequantizeLinear."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return False
    (real,) = uses[0].node.outputs
    return len(list(real.uses())) == 1 and not real.is_graph_output()


def _pure(value: ir.Value, makers: Mapping[ir.Value, Step]) -> bool:
    """Tell whether real values come from no operator that onnxruntime may join with their quantizer."""
    producer = value.producer()
    if producer is None or value in makers:
        return True
    return not any(read_quantized(read) for read in producer.inputs)
