"""Rewrite the float graph: quantizers at the sites, integer weights and biases in the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike
from onnx_ir.passes import common

from fgq.config import Form
from fgq.converters.dynamic_products import transposed, write_product
from fgq.converters.float_layers import Layer
from fgq.converters.rewriting import Names, add_initializer
from fgq.converters.sites import Site
from fgq.format.container import ACTIVATION_BOUNDS, PACKED
from fgq.format.functions import FUNCTION_DOMAIN, UNPACK, add_functions
from fgq.format.packing import pack_codes, table
from fgq.quantization.scheme import Quantizer
from fgq.quantization.tensor import QuantizedTensor
from fgq.quantization.weights import quantize_bias


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedLayer:
    """A layer with its quantized weight.

    Parameters
    ----------
    layer : Layer
    weight : QuantizedTensor
    input_scale : float or None
        The scale of its quantized input; None where the input stays float.
    """

    layer: Layer
    weight: QuantizedTensor
    input_scale: float | None


def insert_quantizers(model: ir.Model, sites: Mapping[Site, Mapping[int, Quantizer]]) -> None:
    """Quantize the activations of a prepared float model in place.

    Parameters
    ----------
    model : onnx_ir.Model
    sites : mapping of Site to a mapping of bits to Quantizer
        One quantizer for each width in ``site.bits``.
    """
    names = Names(model.graph)
    for site, quantizers in sites.items():
        _insert_quantizers(names, site, quantizers)


def write_weights(
    model: ir.Model, layers: Sequence[QuantizedLayer], form: Form, dynamic: Mapping[ir.Value, ir.Node]
) -> None:
    """Put integer weights and biases into a model whose activations are quantized.

    Parameters
    ----------
    model : onnx_ir.Model
    layers : sequence of QuantizedLayer
    form : Form
        How the weights are written.
    dynamic : mapping of onnx_ir.Value to onnx_ir.Node
        Of the activations whose ranges are found at run time, what quantizes them
        (`fgq.converters.dynamic_products.quantize_inputs`).
    """
    names = Names(model.graph)
    for entry in layers:
        quantize = dynamic.get(entry.layer.activation)
        if quantize is not None:
            weight = transposed(entry.weight)
            nodes, w8 = _integers(names, str(entry.layer.weight.name), weight, form)
            model.graph.insert_before(entry.layer.node, nodes)
            write_product(names, entry.layer, quantize, w8, weight.row_scale)
            continue
        _write_weight(names, entry, form)
        if entry.input_scale is not None and entry.layer.bias is not None:
            _write_bias(names, entry, entry.input_scale)
    if any(entry.weight.scheme.codes in PACKED for entry in layers) and form is not Form.INT8:
        add_functions(model, UNPACK)
    finish(model, inline=form is Form.INLINED)


def finish(model: ir.Model, *, inline: bool) -> None:
    """Drop what nothing reads, write equal constants once, and give every value a name of its own.

    Parameters
    ----------
    model : onnx_ir.Model
    inline : bool
        Whether to replace calls of model-local functions by their bodies, and leave no function.
    """
    if inline:
        common.InlinePass()(model)
        common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        model.opset_imports.pop(FUNCTION_DOMAIN, None)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.DeduplicateHashedInitializersPass(size_limit=1 << 40),
    )(model)
    _part_zero_points(model.graph)
    common.NameFixPass()(model)


def _part_zero_points(graph: ir.Graph) -> None:
    """Give each dequantized weight a zero point of its own.

    With ``session.x64quantprecision`` onnxruntime writes weights anew, and refuses a zero point that it has
    written before.
    """
    taken, names = set[ir.Value](), Names(graph)
    for node in graph:
        if node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
            continue
        integers, zero = node.inputs[0], node.inputs[2]
        maker = None if integers is None else integers.producer()
        activations = maker is not None and maker.op_type in ("QuantizeLinear", "Clip")
        if activations or zero is None or zero.const_value is None or zero.dtype != ir.DataType.INT8:
            continue
        if zero in taken:
            zero = add_initializer(names, str(zero.name), zero.const_value.numpy())
            node.replace_input_with(2, zero)
        taken.add(zero)


def _insert_quantizers(names: Names, site: Site, quantizers: Mapping[int, Quantizer]) -> None:
    tensor = site.tensor
    # The readers are listed before the first node is added: each width takes its own.
    readers = {bits: [node for node, width in site.readers.items() if width == bits] for bits in quantizers}
    others = site.others
    nodes: list[ir.Node] = []
    source = tensor
    widest = max(quantizers)
    for bits in sorted(quantizers, reverse=True):
        chain = _quantizer_nodes(names, source, str(tensor.name), quantizers[bits])
        nodes += chain
        result = chain[-1].outputs[0]
        takers = readers[bits] + (others if bits == widest else [])
        for taker in dict.fromkeys(takers):
            for index, value in enumerate(taker.inputs):
                if value is tensor:
                    taker.replace_input_with(index, result)
        source = result
    graph, producer = names.graph, tensor.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)


def _quantizer_nodes(names: Names, source: ir.Value, name: str, quantizer: Quantizer) -> list[ir.Node]:
    """Return QuantizeLinear, for 4 bits Clip, and DequantizeLinear, reading `source`."""
    stem = f"{name}_int{quantizer.bits}"
    scale = add_initializer(names, f"{stem}_scale", np.float32(quantizer.scale))
    zero = add_initializer(names, f"{stem}_zero_point", np.uint8(quantizer.zero_point))
    nodes = [_node(names, "QuantizeLinear", [source, scale, zero], stem, ir.DataType.UINT8, source.shape)]
    if quantizer.bits < 8:
        bounds = [
            add_initializer(names, f"{stem}_{end}", np.uint8(bound))
            for end, bound in zip(("lowest", "highest"), ACTIVATION_BOUNDS[quantizer.bits], strict=True)
        ]
        clip = [nodes[0].outputs[0], *bounds]
        nodes.append(_node(names, "Clip", clip, f"{stem}_clipped", ir.DataType.UINT8, source.shape))
    last = nodes[-1].outputs[0]
    nodes.append(
        _node(
            names, "DequantizeLinear", [last, scale, zero], f"{stem}_value", ir.DataType.FLOAT, source.shape
        )
    )
    return nodes


def _write_weight(names: Names, entry: QuantizedLayer, form: Form) -> None:
    layer, tensor = entry.layer, entry.weight
    stem = str(layer.weight.name)
    nodes, w8 = _integers(names, stem, tensor, form)
    nodes.append(_dequantize_node(names, stem, w8, tensor.row_scale, axis=tensor.channel_axis, dtype=np.int8))
    _insert_for(names, layer, nodes)
    layer.node.replace_input_with(layer.weight_index, nodes[-1].outputs[0])


def _integers(names: Names, stem: str, tensor: QuantizedTensor, form: Form) -> tuple[list[ir.Node], ir.Value]:
    """Return the int8 weights, and the nodes that make them."""
    if tensor.scheme.codes in PACKED and form is not Form.INT8:
        node = _unpack_node(names, stem, tensor)
        return [node], node.outputs[0]
    return [], add_initializer(names, f"{stem}.w8", tensor.int8())


def _unpack_node(names: Names, stem: str, tensor: QuantizedTensor) -> ir.Node:
    (plane,) = tensor.planes
    arrays: dict[str, ArrayLike] = {
        "codes": pack_codes(plane.codes, tensor.scheme.codes.largest),
        "table": table(tensor.scheme.codes.largest),
        "alpha": plane.alpha,
        "group": tensor.group,
        "shape": np.array(tensor.shape, np.int64),
    }
    inputs = [add_initializer(names, f"{stem}.{name}", array) for name, array in arrays.items()]
    node = _node(
        names, UNPACK, inputs, f"{stem}.w8", ir.DataType.INT8, ir.Shape(tensor.shape), FUNCTION_DOMAIN
    )
    node.attributes["axis"] = ir.AttrInt64("axis", tensor.group_axis)
    return node


def _write_bias(names: Names, entry: QuantizedLayer, input_scale: float) -> None:
    layer, row_scale = entry.layer, entry.weight.row_scale
    bias = layer.bias_array
    assert layer.bias is not None
    assert bias is not None
    stem = str(layer.bias.name)
    integers = add_initializer(names, f"{stem}.int32", quantize_bias(bias, input_scale, row_scale))
    scale = np.float32(input_scale) * row_scale
    node = _dequantize_node(names, stem, integers, scale, axis=0, dtype=np.int32)
    _insert_for(names, layer, [node])
    layer.node.replace_input_with(2, node.outputs[0])


def _dequantize_node(
    names: Names, stem: str, integers: ir.Value, scale: np.ndarray, *, axis: int, dtype: type[np.generic]
) -> ir.Node:
    """Return ``scale * integers``; the zero points are always written (docs/architecture.md, Traps)."""
    scale = np.asarray(scale, np.float32)
    inputs = [
        integers,
        add_initializer(names, f"{stem}.scale", scale),
        add_initializer(names, f"{stem}.zero_point", np.zeros(scale.shape, dtype)),
    ]
    node = _node(names, "DequantizeLinear", inputs, f"{stem}.value", ir.DataType.FLOAT, integers.shape)
    if scale.ndim:
        node.attributes["axis"] = ir.AttrInt64("axis", axis)
    return node


def _insert_for(names: Names, layer: Layer, nodes: Sequence[ir.Node]) -> None:
    """Insert the nodes of a weight before its layer, or first of all for a layer in a subgraph."""
    graph = names.graph
    graph.insert_before(graph[0] if layer.in_subgraph else layer.node, nodes)


def _node(
    names: Names,
    op_type: str,
    inputs: Sequence[ir.Value],
    name: str,
    dtype: ir.DataType,
    shape: ir.Shape | None,
    domain: str = "",
) -> ir.Node:
    """Return a node called `name`, of one output that has a name like it."""
    node = ir.node(op_type, inputs, domain=domain, name=name)
    node.outputs[0].name = names.new(name)
    node.outputs[0].dtype = dtype
    node.outputs[0].shape = shape
    return node
