"""Decide for each layer which scheme it gets, or why it stays float."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace

import onnx_ir as ir

from fgq.config import ConversionConfig, Misfit
from fgq.converters.float_layers import FloatNode, Layer
from fgq.converters.own import is_quantized, own_scale
from fgq.errors import ConfigError
from fgq.graph.queries import constant
from fgq.quantization.scheme import ActivationScheme, Granularity, WeightScheme

_LAYOUT = frozenset({"Reshape", "Squeeze", "Unsqueeze"})
"""Operators whose second input is a shape and no operand."""

_MEASURING = frozenset({"Shape", "Size"})
"""Operators that see how large a value is, and nothing of what it holds."""

_HEAD = _LAYOUT | set(
    "Add Sub Mul Div Flatten Transpose Identity Cast Softmax LogSoftmax Sigmoid Tanh Clip Relu".split()
)
"""What may stand between a classifier's last matrix product and the output."""


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The scheme of one layer.

    Parameters
    ----------
    layer : Layer
    weights : WeightScheme
    activations : ActivationScheme or None
        None where the layer's input stays float.
    note : str
        Why the layer differs from what was asked, or an empty string.
    """

    layer: Layer
    weights: WeightScheme
    activations: ActivationScheme | None
    note: str


def choose_schemes(
    model: ir.Model, found: Sequence[Layer | FloatNode], config: ConversionConfig
) -> list[Choice | FloatNode]:
    """Give each layer a scheme.

    Depthwise convolutions, and by default the first convolution after each input and the last matrix
    product before each output, take 8 bits; all others take the scheme of the configuration.

    Parameters
    ----------
    model : onnx_ir.Model
        The prepared model in which `found` was found.
    found : sequence of Layer or FloatNode
        What `fgq.converters.float_layers.find_layers` returned.
    config : ConversionConfig

    Raises
    ------
    ConfigError
        If a layer does not fit the group size and the fallback is ``error``, or `include` or `exclude`
        match no layer.
    """
    _check_patterns([layer.name for layer in found], config)
    eight_bit = _first_and_last(model, found) if config.first_last_int8 else {}
    return [
        entry if isinstance(entry, FloatNode) else _choose(entry, eight_bit.get(entry.node, ""), config)
        for entry in found
    ]


def _choose(layer: Layer, position: str, config: ConversionConfig) -> Choice | FloatNode:
    if config.include is not None and not re.search(config.include, layer.name):
        return FloatNode(layer.node, f"not included by {config.include!r}")
    if config.exclude is not None and re.search(config.exclude, layer.name):
        return FloatNode(layer.node, f"excluded by {config.exclude!r}")
    activations = config.activation_scheme
    notes = []
    kept = _own_quantizer(layer)
    if layer.in_subgraph and activations is not None:
        activations = None
        notes.append("in a subgraph: activations stay float")
    elif kept is not None:
        activations, note = kept
        notes.append(note)
    elif activations is not None and activations.is_dynamic and (obstacle := _dynamic_obstacle(layer)):
        activations = None
        notes.append(f"{obstacle}: activations stay float")
    if position or layer.is_depthwise:
        notes.insert(0, position or "depthwise")
    scheme = config.int8 if position or layer.is_depthwise else config.weight_scheme
    if coarser := _without_parts(layer, scheme):
        scheme = replace(scheme, granularity=Granularity.FILTER)
        notes.append(coarser)
    if position or layer.is_depthwise:
        return Choice(
            layer, scheme, activations and replace(activations, bits=8, tensors=1), "; ".join(notes)
        )
    length = layer.shape[layer.group_axis]
    if scheme.group_size is not None and length % scheme.group_size:
        scheme = _fit(layer, length, config)
        rest = length % scheme.group_length(length)
        notes.append(f"last group of {rest}" if rest else f"{length} input channels")
    return Choice(layer, scheme, activations, "; ".join(notes))


def _without_parts(layer: Layer, scheme: WeightScheme) -> str:
    """Say why a layer has one scale a filter and not what was asked for; empty where it does not."""
    if scheme.granularity is Granularity.KERNEL and (layer.op_type != "Conv" or layer.shape[2:] == (1, 1)):
        return "kernels of one weight: a scale for each filter"
    grouped = layer.op_type == "Conv" and layer.node.attributes.get_int("group", 1) > 1
    if scheme.granularity is Granularity.LAYER and grouped:
        return "grouped convolution: a scale for each filter"
    return ""


def _own_quantizer(layer: Layer) -> tuple[ActivationScheme | None, str] | None:
    """Return the activations of a layer that reads what the model itself has quantized, and a note of it."""
    if not is_quantized(layer.activation):
        return None
    if own_scale(layer.activation) is None:
        return None, "its input has a quantizer of the model's own, of other than 8 bits and one scale"
    return ActivationScheme(bits=8), "its input keeps the model's own quantizer"


def _dynamic_obstacle(layer: Layer) -> str:
    """Say why the activations of a layer cannot be quantized at run time; nothing where they can."""
    if layer.op_type == "Conv":
        return "a convolution, whose ranges would have to be static"
    if layer.weight_index == 0:
        return "its constant is on the left"
    if len(layer.shape) > 2:
        return "its constant is a batch of matrices"
    if layer.op_type == "Gemm" and layer.node.attributes.get_int("transA", 0) != 0:
        return "it transposes its input"
    return ""


def _fit(layer: Layer, length: int, config: ConversionConfig) -> WeightScheme:
    N = min(config.group_size, length)
    if config.group_size_fallback is Misfit.ERROR:
        raise ConfigError(
            f"{layer.name}: found {length} input channels, wanted a multiple of the group size "
            f"{config.group_size}; choose another --group-size, exclude the layer, or take "
            "--group-size-fallback ragged or smaller"
        )
    if config.group_size_fallback is Misfit.SMALLER:
        N = max(size for size in range(1, N + 1) if length % size == 0)
    return replace(config.weight_scheme, group_size=N)


def _check_patterns(names: Sequence[str], config: ConversionConfig) -> None:
    for option, pattern in (("--include", config.include), ("--exclude", config.exclude)):
        if pattern is not None and not any(re.search(pattern, name) for name in names):
            some = ", ".join(names[:3]) + (", .." if len(names) > 3 else "")
            raise ConfigError(
                f"{option} {pattern!r}: found no layer of that name, wanted at least one of {some}"
            )


def _first_and_last(model: ir.Model, found: Sequence[Layer | FloatNode]) -> dict[ir.Node, str]:
    """Return the first convolution after each input and the last matrix product before each output."""
    layers = {entry.node for entry in found if isinstance(entry, Layer)}
    marked = {
        node: "first convolution" for node in _first(model.graph.inputs, layers) if node.op_type == "Conv"
    }
    for output in model.graph.outputs:
        last = _head(output)
        if last in layers and last.op_type in ("Gemm", "MatMul"):
            marked[last] = "last matrix product"
    return marked


def _first(inputs: Iterable[ir.Value], layers: Set[ir.Node]) -> list[ir.Node]:
    """Return the layers that are reached from the inputs without passing another layer."""
    waiting = list(inputs)
    seen: set[ir.Node] = set()
    reached = []
    while waiting:
        for node in waiting.pop().consumers():
            if node in seen or (node.domain == "" and node.op_type in _MEASURING):
                continue
            seen.add(node)
            if node in layers:
                reached.append(node)
            else:
                waiting.extend(node.outputs)
    return reached


def _head(output: ir.Value) -> ir.Node | None:
    """Return the node at the end of a plain chain that leads back from `output`.

    The chain goes through operators of `_HEAD` with one operand that is computed; anything else (a
    normalization, a residual) means that the output has no classifier before it.
    """
    node = output.producer()
    while node is not None and node.domain == "" and node.op_type in _HEAD:
        operands = node.inputs[:1] if node.op_type in _LAYOUT else node.inputs
        computed = [value for value in operands if value is not None and constant(value) is None]
        if len(computed) != 1:
            return None
        node = computed[0].producer()
    return node
