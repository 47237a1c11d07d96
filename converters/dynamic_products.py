"""Products whose activations are quantized at run time (format: `fgq.format.dynamic_functions`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.converters.float_layers import Layer
from fgq.converters.rewriting import Names, add_initializer, redirect, take_name
from fgq.converters.select import Choice
from fgq.format.dynamic_functions import find_dynamic_products
from fgq.format.functions import FUNCTION_DOMAIN, MULTIPLY_TOKENS, QUANTIZE_TOKENS, add_functions
from fgq.graph.queries import sole_reader
from fgq.quantization.scheme import Ranges
from fgq.quantization.tensor import Plane, QuantizedTensor


def quantize_inputs(model: ir.Model, choices: Sequence[Choice]) -> dict[ir.Value, ir.Node]:
    """Quantize what layers read at run time, and give it back to them as real values.

    Layers that read the same tensor share the quantization of it. `write_product` later joins a layer and
    the integers; until then the model has float weights and is one that any layer can be observed in.

    Parameters
    ----------
    model : onnx_ir.Model
        A prepared float model, changed in place.
    choices : sequence of Choice
        Its layers, of which those with dynamic ranges are changed.

    Returns
    -------
    dict of onnx_ir.Value to onnx_ir.Node
        For the values that the layers now read, what quantizes them.
    """
    layers = [
        (choice.layer, choice.activations.ranges)
        for choice in choices
        if choice.activations is not None and choice.activations.is_dynamic
    ]
    names = Names(model.graph)
    found: dict[ir.Value, ir.Node] = {}
    done: dict[ir.Value, ir.Value] = {}
    for layer, ranges in layers:
        tensor = layer.activation
        if tensor not in done:
            nodes = _quantize_nodes(names, tensor, ranges)
            model.graph.insert_before(layer.node, nodes)
            done[tensor] = nodes[-1].outputs[0]
            found[done[tensor]] = nodes[0]
        layer.node.replace_input_with(1 - layer.weight_index, done[tensor])
    if any(ranges is Ranges.TOKEN for _, ranges in layers):
        add_functions(model, QUANTIZE_TOKENS, MULTIPLY_TOKENS)
    return found


def transposed(weight: QuantizedTensor) -> QuantizedTensor:
    """Return a matrix with its output channels on the last axis, [K, M]."""
    if weight.channel_axis == 1:
        return weight
    planes = tuple(
        Plane(codes=np.ascontiguousarray(plane.codes.T), alpha=np.ascontiguousarray(plane.alpha.T))
        for plane in weight.planes
    )
    return replace(weight, planes=planes, group_axis=0, channel_axis=1)


def write_product(
    names: Names, layer: Layer, quantize: ir.Node, w8: ir.Value, row_scale: NDArray[np.float32]
) -> None:
    """Replace a MatMul or Gemm by the product of integers, and a bias by an Add.

    Parameters
    ----------
    names : Names
    layer : Layer
    quantize : onnx_ir.Node
        What quantizes its activations.
    w8 : onnx_ir.Value
        Its weights, int8 [K, M].
    row_scale : ndarray of float32, shape (M,) or ()
    """
    name = layer.name
    scale = add_initializer(names, f"{layer.weight.name}.scale", row_scale)
    if quantize.op_type == QUANTIZE_TOKENS:
        inputs = [*quantize.outputs, w8, scale]
        nodes = [ir.node(MULTIPLY_TOKENS, inputs, domain=FUNCTION_DOMAIN, name=name)]
    else:
        codes, x_scale, x_zero = quantize.outputs
        sums = ir.node("MatMulInteger", [codes, w8, x_zero], name=name)
        real = ir.node("Cast", [sums.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{name}_real")
        factor = ir.node("Mul", [x_scale, scale], name=f"{name}_factor")
        scaled = ir.node("Mul", [real.outputs[0], factor.outputs[0]], name=f"{name}_scaled")
        nodes = [sums, real, factor, scaled]
    if layer.bias is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], layer.bias], name=f"{name}_bias"))
    for node in nodes[:-1]:
        node.outputs[0].name = names.new(str(node.name))
    result = nodes[-1].outputs[0]
    redirect(layer.output, result)
    take_name(names, layer.output, result, "_float")
    names.graph.insert_before(layer.node, nodes)
    names.graph.remove(layer.node, safe=True)
    if quantize.op_type != QUANTIZE_TOKENS:
        _raise_to_addend(names, result)


def _raise_to_addend(names: Names, product: ir.Value) -> None:
    """Give a product as many axes as the constant that is added to it.

    onnxruntime would fuse the two, and lose the axes of the sum that only the constant has.
    """
    reader, shape = sole_reader(product), product.shape
    if reader is None or (reader.domain, reader.op_type) != ("", "Add") or shape is None:
        return
    index = 0 if reader.inputs[0] is product else 1
    other = reader.inputs[1 - index]
    more = 0 if other is None or other.shape is None else len(other.shape) - len(shape)
    if more <= 0 or reader.graph is None:
        return
    axes = add_initializer(names, f"{product.name}_axes", np.arange(more))
    raised = ir.node("Unsqueeze", [product, axes], name=f"{product.name}_raised")
    raised.outputs[0].name = names.new(f"{product.name}_raised")
    reader.graph.insert_before(reader, [raised])
    reader.replace_input_with(index, raised.outputs[0])


def drop_dynamic(names: Names) -> None:
    """Let products read their activations as they are, and multiply them by real weights.

    Parameters
    ----------
    names : Names
        Of the main graph.
    """
    graph = names.graph
    for product in find_dynamic_products(graph):
        weight = add_initializer(names, f"{product.integers.name}_real", product.read_weight().dequantize())
        node = ir.node("MatMul", [product.source, weight], name=product.name)
        result = node.outputs[0]
        producer = product.result.producer()
        assert producer is not None
        redirect(product.result, result)
        take_name(names, product.result, result, "_integers")
        graph.insert_before(producer, [node])
        graph.remove(producer, safe=True)


def _quantize_nodes(names: Names, tensor: ir.Value, ranges: Ranges) -> list[ir.Node]:
    """Return the nodes that quantize a tensor, the quantization first and what makes real values last."""
    stem = f"{tensor.name}_int8"
    if ranges is Ranges.TENSOR:
        quantize = ir.node("DynamicQuantizeLinear", [tensor], num_outputs=3, name=stem)
        nodes = [quantize, ir.node("DequantizeLinear", quantize.outputs, name=f"{stem}_value")]
    else:
        quantize = ir.node(QUANTIZE_TOKENS, [tensor], domain=FUNCTION_DOMAIN, num_outputs=3, name=stem)
        codes, scale, zero = quantize.outputs
        to_float = {"to": int(ir.DataType.FLOAT)}
        raised, low = (
            ir.node("Cast", [value], to_float, name=f"{stem}_{what}")
            for value, what in ((codes, "raised"), (zero, "low"))
        )
        steps = ir.node("Sub", [raised.outputs[0], low.outputs[0]], name=f"{stem}_steps")
        real = ir.node("Mul", [steps.outputs[0], scale], name=f"{stem}_value")
        nodes = [quantize, raised, low, steps, real]
    for value, suffix in zip(quantize.outputs, ("", "_scale", "_zero_point"), strict=True):
        value.name = names.new(f"{stem}{suffix}")
    for node in nodes[1:]:
        node.outputs[0].name = names.new(str(node.name))
    nodes[-1].outputs[0].dtype, nodes[-1].outputs[0].shape = ir.DataType.FLOAT, tensor.shape
    return nodes
