"""What a model holds, layer by layer: float, to be converted, being converted, or converted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import onnx
import onnx_ir as ir

from fgq.config import ConversionConfig, Form
from fgq.converters.compatibility import minimum_onnxruntime
from fgq.converters.float_layers import WEIGHTED, FloatNode, Layer, find_layers, products_of_sum
from fgq.converters.passes import prepare
from fgq.converters.reader import Source, read_float_model
from fgq.converters.select import Choice, choose_schemes
from fgq.converters.sites import Site
from fgq.format import container, onnx_file
from fgq.format.dynamic_functions import read_dynamic_product
from fgq.format.shapes import InferShapes
from fgq.quantization.mmse import StreamingHistogram, expected_error
from fgq.quantization.scheme import ActivationScheme, Quantizer
from fgq.quantization.tensor import QuantizedTensor
from fgq.quantization.weights import lost_groups, signal_to_noise_db
from fgq.report import (
    LayerCheck,
    LayerReport,
    QuantizerReport,
    Report,
    bits_per_weight,
    multiplications,
    removed_share,
)
from fgq.runtime.layers import activation_bits, read_layer_weight


def inspect(path: str | os.PathLike[str], config: ConversionConfig) -> Report:
    """Report the layers of a converted model, or what a conversion of a float model would do.

    Parameters
    ----------
    path : path-like
    config : ConversionConfig
        The options of the conversion; unused for a converted model.

    Returns
    -------
    Report
        Its `converted_bytes` are 0 for a float model.
    """
    model = container.load(path)
    InferShapes()(model)
    layers = tuple(_converted_layers(model))
    if not any(layer.is_converted for layer in layers):
        return survey(path, config)
    return Report(
        options={},
        layers=layers,
        float_bytes=0,
        converted_bytes=model_bytes(path, model),
        minimum_onnxruntime=minimum_onnxruntime(model),
    )


def survey(source: Source, config: ConversionConfig) -> Report:
    """Report what a conversion would do, without calibrating, quantizing or writing anything.

    Parameters
    ----------
    source : path-like, onnx.ModelProto or onnx_ir.Model
    config : ConversionConfig
    """
    model = read_float_model(source)
    size = model_bytes(source, model)
    prepare(model)
    chosen = choose_schemes(model, find_layers(model), config)
    return Report(
        options=asdict(config),
        layers=tuple(describe(entry, None, config.form) for entry in chosen),
        float_bytes=size,
        converted_bytes=0,
        minimum_onnxruntime=minimum_onnxruntime(model),
    )


def describe(
    entry: Choice | FloatNode, tensor: QuantizedTensor | None, form: Form, check: LayerCheck | None = None
) -> LayerReport:
    """Report one layer.

    Parameters
    ----------
    entry : Choice or FloatNode
    tensor : QuantizedTensor or None
        Its quantized weight; None where it is float, or not quantized yet.
    form : Form
        How the weights are written.
    check : LayerCheck, optional
        How near its output is to the float network's.
    """
    if isinstance(entry, FloatNode):
        return _float_layer(entry.node, entry.reason, entry.layer)
    layer, quantized = entry.layer, dict[str, Any]()
    if tensor is not None:
        weight = layer.weight_array
        quantized = {
            "signal_to_noise_db": signal_to_noise_db(weight, tensor.dequantize()),
            "multiplications_removed": removed_share(tensor),
            "lost_groups": lost_groups(weight, tensor),
            "bits_per_weight": bits_per_weight(tensor, packed=form is not Form.INT8),
        }
    if check is not None:
        quantized |= {
            "output_error": check.error,
            "nearest_output_error": check.nearest_error,
            "reverted_outputs": check.reverted,
        }
    return LayerReport(
        name=layer.name,
        operator=layer.op_type,
        shape=layer.shape,
        scheme=str(entry.weights),
        activations=str(entry.activations or "float"),
        activation_bits=None if entry.activations is None else entry.activations.width,
        reason=entry.note,
        multiplications=multiplications(layer.products, _lengths(layer.output)),
        **quantized,
    )


def describe_quantizers(
    quantizers: Mapping[Site, Mapping[int, Quantizer]], histograms: Mapping[str, StreamingHistogram]
) -> tuple[QuantizerReport, ...]:
    """Report the quantizers of activations.

    Parameters
    ----------
    quantizers : mapping of Site to a mapping of bits to Quantizer
    histograms : mapping of str to StreamingHistogram
        What was observed, by tensor name.
    """
    found = []
    for site, by_bits in quantizers.items():
        histogram = histograms[str(site.tensor.name)]
        for bits, quantizer in by_bits.items():
            error = expected_error(histogram, quantizer)
            found.append(
                QuantizerReport(
                    tensor=str(site.tensor.name),
                    bits=bits,
                    scale=quantizer.scale,
                    zero_point=quantizer.zero_point,
                    signal_to_noise_db=error.snr_db,
                    clipped_share=error.clipped_share,
                )
            )
    return tuple(found)


def model_bytes(source: Source, model: ir.Model) -> int:
    """Return the size of a model: of its file and external data, or of its tensors in memory."""
    if isinstance(source, ir.Model | onnx.ModelProto):
        tensors = [value.const_value for value in model.graph.initializers.values()]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)
    return sum(path.stat().st_size for path in onnx_file.files_of(source, model))


def _converted_layers(model: ir.Model) -> Iterator[LayerReport]:
    for node in model.graph.all_nodes():
        product = read_dynamic_product(node)
        if product is not None:
            dynamic = ActivationScheme(ranges=product.ranges)
            yield _converted_layer(product.name, "MatMul", product.read_weight(), dynamic, product.result)
            continue
        if node.domain != "" or node.op_type not in WEIGHTED:
            continue
        found = read_layer_weight(node)
        if found is None:
            yield _float_layer(node, "no quantized weight")
            continue
        _, index, tensor = found
        bits = activation_bits(node.inputs[1 - index])
        scheme = None if bits is None else ActivationScheme(bits=bits)
        yield _converted_layer(str(node.name), node.op_type, tensor, scheme, node.outputs[0])


def _converted_layer(
    name: str, op_type: str, tensor: QuantizedTensor, activations: ActivationScheme | None, result: ir.Value
) -> LayerReport:
    products = products_of_sum(op_type, tensor.shape, tensor.group_axis)
    return LayerReport(
        name=name,
        operator=op_type,
        shape=tensor.shape,
        scheme=str(tensor.scheme),
        activations="float" if activations is None else str(activations),
        activation_bits=None if activations is None else activations.width,
        reason="",
        bits_per_weight=bits_per_weight(tensor, packed=True),
        multiplications=multiplications(products, _lengths(result)),
        multiplications_removed=removed_share(tensor),
    )


def _float_layer(node: ir.Node, reason: str, layer: Layer | None = None) -> LayerReport:
    products = None if layer is None else multiplications(layer.products, _lengths(layer.output))
    return LayerReport(
        name=str(node.name),
        operator=node.op_type,
        shape=() if layer is None else layer.shape,
        scheme="float",
        activations="float",
        reason=reason,
        multiplications=products,
    )


def _lengths(value: ir.Value) -> list[int | None] | None:
    if value.shape is None:
        return None
    return [size if isinstance(size, int) else None for size in value.shape]
