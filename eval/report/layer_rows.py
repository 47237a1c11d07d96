"""The layers of a converted model beside those of the float model that it was made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from fgq.config import ConversionConfig, Form
from fgq.converters.float_layers import FloatNode, Layer, find_layers
from fgq.converters.select import Choice, choose_schemes
from fgq.converters.survey import describe
from fgq.errors import ModelError
from fgq.quantization.scheme import ActivationScheme, Quantizer
from fgq.quantization.tensor import QuantizedTensor
from fgq.report import LayerReport
from fgq.runtime.layers import read_layer_weight
from fgq.runtime.quantizers import read_quantized

LEFT_OUT = "it could be converted, and was left out (--include, --exclude)"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedLayer:
    """A layer of the float model, and what the converted one has in its place.

    Parameters
    ----------
    layer : Layer
        Of the prepared float model.
    node : onnx_ir.Node
        Of the converted model.
    weight_index : int
        Which of the inputs of `node` is the weight.
    weight : QuantizedTensor
    quantizer : Quantizer or None
        Of the layer's input; None where that stays float, or gets its range at run time.
    """

    layer: Layer
    node: ir.Node
    weight_index: int
    weight: QuantizedTensor
    quantizer: Quantizer | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReportedLayer:
    """A node of the float model that holds weights.

    Parameters
    ----------
    report : LayerReport
        What became of it; its reason says why it is float, or kept at 8 bits.
    result : str
        The tensor that it computes.
    quantized : QuantizedLayer or None
        None where it is float.
    """

    report: LayerReport
    result: str
    quantized: QuantizedLayer | None


def pair_layers(model: ir.Model, converted: ir.Model) -> list[ReportedLayer]:
    """Find each layer of a float model in a converted one.

    Parameters
    ----------
    model : onnx_ir.Model
        The prepared float model.
    converted : onnx_ir.Model

    Returns
    -------
    list of ReportedLayer
        In the order of the float model, layers that are never converted included.

    Raises
    ------
    ModelError
        If the converted model has no quantized weight that can be read, or one of another shape than the
        layer of that name.
    """
    # A name may be used again in a subgraph.
    nodes = {(node.graph is not converted.graph, node.name): node for node in converted.graph.all_nodes()}
    found = find_layers(model)
    quantized = {
        entry.node: pair
        for entry in found
        if isinstance(entry, Layer)
        and (pair := _pair(entry, nodes.get((entry.in_subgraph, entry.name)))) is not None
    }
    if not quantized:
        raise ModelError(
            "converted model: found no quantized weight of a layer that the float model has, wanted a model "
            "of the packed or int8 form that fgq convert made from it"
        )
    chosen = choose_schemes(model, found, _likely_config(list(quantized.values())))
    return [_report(entry, quantized) for entry in chosen]


def _pair(layer: Layer, node: ir.Node | None) -> QuantizedLayer | None:
    if node is None or (found := read_layer_weight(node)) is None:
        return None
    _, index, tensor = found
    if tensor.shape != layer.shape:
        raise ModelError(
            f"converted model: {layer.name}: found weights {list(tensor.shape)}, wanted {list(layer.shape)} "
            "as in the float model, from which it must have been converted"
        )
    activation = read_quantized(node.inputs[1 - index])
    return QuantizedLayer(
        layer=layer,
        node=node,
        weight_index=index,
        weight=tensor,
        # Integers of 4 bits are held, and quantized, as uint8; the clip makes them 4 bits wide.
        quantizer=None if activation is None else replace(activation.quantizer, bits=activation.bits),
    )


def _likely_config(layers: Sequence[QuantizedLayer]) -> ConversionConfig:
    """Return options under which most layers would get the scheme that they have."""
    sizes = Counter(size for each in layers if (size := each.weight.scheme.group_size) is not None)
    return ConversionConfig(group_size=sizes.most_common(1)[0][0]) if sizes else ConversionConfig()


def _report(entry: Choice | FloatNode, quantized: Mapping[ir.Node, QuantizedLayer]) -> ReportedLayer:
    node = entry.layer.node if isinstance(entry, Choice) else entry.node
    pair = quantized.get(node)
    if isinstance(entry, Choice) and pair is not None:
        report = _describe(entry, pair)
    else:
        report = describe(entry, None, Form.PACKED)
        if isinstance(entry, Choice):  # with its weights and multiplications, which count
            report = replace(report, scheme="float", activations="float", reason=LEFT_OUT)
    return ReportedLayer(report=report, result=str(node.outputs[0].name), quantized=pair)


def _describe(choice: Choice, pair: QuantizedLayer) -> LayerReport:
    scheme = pair.weight.scheme
    activations = None if pair.quantizer is None else ActivationScheme(bits=pair.quantizer.bits)
    # A note explains the scheme that the options give, which need not be the one that was taken.
    note = choice.note if choice.weights.group_size == scheme.group_size else ""
    made = replace(choice, weights=scheme, activations=activations, note=note)
    return describe(made, pair.weight, Form.PACKED)  # in the int8 form all codes read as 8 bits
