r"""Move scales of channels out of activations and into the weights that multiply them.

For any positive s of each channel, ``x W = (x / s) (s W)``. Where x comes from a normalization or another
layer, ``1 / s`` goes into its constants; a Mul computes it where other operators read x too (SmoothQuant,
Xiao et al. 2022, arXiv 2211.10438, section 4). Powers of two change no value but its exponent.

The model's metadata tell which scales were moved, so that its weights can be compared with the float ones
that they stand for.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.converters.float_layers import Layer, find_layers
from fgq.converters.rewriting import Names, add_initializer
from fgq.errors import ModelError
from fgq.format.container import SCALED_KEY
from fgq.graph.queries import constant, sole_reader
from fgq.support.schema import base64, check, items, parse_json, shown, table, text

_HOMOGENEOUS = frozenset({"Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity"})
"""Operators that a positive scale of each channel passes through."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A constant input of a node with one value, or slice, for each channel.

    Parameters
    ----------
    node : onnx_ir.Node
    place : int
        Which of its inputs.
    axis : int
        Where the channels lie.
    """

    node: ir.Node
    place: int
    axis: int

    def multiply(self, names: Names, factors: NDArray[np.float32]) -> None:
        """Let the node read the constant times a factor for each channel."""
        value, array = self.node.inputs[self.place], constant(self.node.inputs[self.place])
        assert value is not None
        assert array is not None
        along = [1] * array.ndim
        along[self.axis] = -1
        product = (array * factors.reshape(along)).astype(array.dtype)
        self.node.replace_input_with(self.place, add_initializer(names, str(value.name), product))


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A tensor whose channels may be scaled, and the layers that read it.

    Parameters
    ----------
    tensor : onnx_ir.Value
    layers : tuple of Layer
        Each sums over the tensor's channels, along its group axis.
    channel_axis : int
        Where the tensor's channels lie: 1 for a convolution, else -1.
    source : tuple of Parameter, or None
        Constants in proportion to which the channels are; None where a Mul must scale them.
    """

    tensor: ir.Value
    layers: tuple[Layer, ...]
    channel_axis: int
    source: tuple[Parameter, ...] | None


def find_readings(layers: Sequence[Layer]) -> list[Reading]:
    """List the tensors whose channels may be scaled.

    Parameters
    ----------
    layers : sequence of Layer
        Of the main graph, in graph order.

    Returns
    -------
    list of Reading
        A tensor that others than the layers read needs a Mul; it has one before MatMuls alone, as a
        convolution or Gemm may read integers that another one made.
    """
    by_tensor: dict[ir.Value, list[Layer]] = {}
    for layer in layers:
        by_tensor.setdefault(layer.activation, []).append(layer)
    found = []
    for tensor, readers in by_tensor.items():
        axes = {_channel_axis(layer) for layer in readers}
        if len(axes) != 1 or None in axes:
            continue
        (axis,) = axes
        assert axis is not None
        alone = {layer.node for layer in readers} == set(tensor.consumers())
        alone = alone and not tensor.is_graph_output()
        source = _parameters(tensor, axis) if alone else None
        if source is not None or all(layer.op_type == "MatMul" for layer in readers):
            found.append(Reading(tensor, tuple(readers), axis, source))
    return found


class MoveScales(ir.passes.InPlacePass):
    """Divide the channels of activations by scales, and multiply the weights that read them.

    1. Weights and the constants before become new initializers, as others may share the old ones.
    2. Without such constants the layers read a Mul by the inverse scales; other readers go on as they were.
    3. The metadata hold the scales of each tensor and the layers that took them, for `repeat_moves`.

    Parameters
    ----------
    scales : mapping of Reading to ndarray of float32, shape (C,)
        Scales of the channels, powers of two.
    """

    def __init__(self, scales: Mapping[Reading, NDArray[np.float32]]) -> None:
        super().__init__()
        self._scales = scales

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass in place."""
        names = Names(model.graph)
        for reading, scales in self._scales.items():
            inverse = np.reciprocal(scales)
            for layer in reading.layers:
                Parameter(layer.node, layer.weight_index, layer.group_axis).multiply(names, scales)
            if reading.source is None:
                _insert_mul(names, reading, inverse)
            else:
                for parameter in reading.source:
                    parameter.multiply(names, inverse)
        if self._scales:
            model.metadata_props[SCALED_KEY] = json.dumps([_record(*move) for move in self._scales.items()])
        return ir.passes.PassResult(model, bool(self._scales))


_RECORDS = items(table({"tensor": text, "layers": items(text, least=1), "exponents": base64}))
"""What the metadata hold, see `_record`."""

_LARGEST_EXPONENT = 126
"""Scales of larger exponents have no inverse among the normal numbers."""


def repeat_moves(model: ir.Model, converted: ir.Model, name: str = "converted model") -> None:
    """Move scales in a float model, in place, as in the conversion that was made from it.

    Parameters
    ----------
    model : onnx_ir.Model
        The prepared float model.
    converted : onnx_ir.Model
    name : str
        What errors call the converted model.

    Raises
    ------
    ModelError
        If the converted model's metadata are no such scales, or the float model has no such tensors and
        layers.
    """
    where = f"{name}: metadata {SCALED_KEY}"
    value = parse_json(converted.metadata_props.get(SCALED_KEY, "[]"), where, ModelError)
    records = check(_RECORDS, value, where, ModelError)
    scaled = {each for record in records for each in record["layers"]}
    layers = [entry for entry in find_layers(model) if isinstance(entry, Layer) and not entry.in_subgraph]
    readings = {r.tensor.name: r for r in find_readings([each for each in layers if each.name in scaled])}
    moves: dict[Reading, NDArray[np.float32]] = {}
    for record in records:
        reading, tensor = readings.get(record["tensor"]), shown(record["tensor"])
        if reading is None or sorted(each.name for each in reading.layers) != sorted(record["layers"]):
            raise ModelError(
                f"{where}: {tensor}: found scales of channels that no layer of the float model takes, wanted "
                "the model from which it was converted"
            )
        exponents = np.frombuffer(record["exponents"], np.int8)
        reader = reading.layers[0]
        channels = reader.shape[reader.group_axis]
        if exponents.size != channels or np.abs(exponents.astype(int)).max() > _LARGEST_EXPONENT:
            raise ModelError(
                f"{where}: {tensor}: exponents: found {exponents.size} from {exponents.min(initial=0)} to "
                f"{exponents.max(initial=0)}, wanted {channels} within +-{_LARGEST_EXPONENT}"
            )
        if reading in moves:
            raise ModelError(f"{where}: {tensor}: found scales of its channels twice, wanted them once")
        moves[reading] = np.ldexp(np.float32(1), exponents).astype(np.float32)
    try:
        with np.errstate(over="raise"):
            MoveScales(moves)(model)
    except FloatingPointError:
        raise ModelError(
            f"{where}: found scales that the float model's weights overflow with, wanted the model from "
            "which it was converted"
        ) from None


def _record(reading: Reading, scales: NDArray[np.float32]) -> dict[str, object]:
    mantissas, exponents = np.frexp(scales)
    assert (mantissas == 0.5).all()  # powers of two
    return {
        "tensor": str(reading.tensor.name),
        "layers": [layer.name for layer in reading.layers],
        "exponents": b64encode((exponents - 1).astype(np.int8).tobytes()).decode("ascii"),
    }


def _channel_axis(layer: Layer) -> int | None:
    """Return where the channels lie in what a layer reads; None where it does not sum over all of them."""
    attributes = layer.node.attributes
    match layer.op_type:
        case "Conv":
            return 1 if attributes.get_int("group", 1) == 1 else None
        case "Gemm":
            return -1 if not attributes.get_int("transA", 0) else None
        case _:
            return -1 if layer.weight_index == 1 else None


def _parameters(tensor: ir.Value, axis: int) -> tuple[Parameter, ...] | None:
    """Return the constants in proportion to which the channels of a tensor are."""
    node = tensor.producer()
    if node is None or node.domain != "" or any(output.uses() for output in node.outputs[1:]):
        return None
    operator, operand = node.op_type, node.inputs[0]
    if operator in _HOMOGENEOUS and operand is not None and sole_reader(operand) is node:
        return _parameters(operand, axis)
    if operator == "Conv" and axis == 1:
        return _constants(node, {1: 0, 2: 0})
    if axis == 1:
        return None
    if operator == "LayerNormalization" and node.attributes.get_int("axis", -1) == -1:
        return _constants(node, {1: 0, 2: 0})
    if operator == "Gemm":
        return _constants(node, {1: 0 if node.attributes.get_int("transB", 0) else 1, 2: 0})
    if operator == "MatMul":
        weight = constant(node.inputs[1])
        return None if weight is None or weight.ndim < 2 else (Parameter(node, 1, weight.ndim - 1),)
    if operator in ("Add", "Mul"):
        return _affine(node)
    return None


def _constants(node: ir.Node, axes: Mapping[int, int]) -> tuple[Parameter, ...] | None:
    """Return the inputs of a node that are there, by their places; None where one is not constant."""
    present = [place for place in axes if place < len(node.inputs) and node.inputs[place] is not None]
    if any(constant(node.inputs[place]) is None for place in present):
        return None
    return tuple(Parameter(node, place, axes[place]) for place in present)


def _affine(node: ir.Node) -> tuple[Parameter, ...] | None:
    """Return the vector of an Add or Mul and, for an Add, the constants of what it is added to."""
    places = [place for place, value in enumerate(node.inputs) if constant(value) is not None]
    if len(places) != 1:
        return None
    (place,) = places
    vector, other = constant(node.inputs[place]), node.inputs[1 - place]
    width = None if other is None or other.shape is None else other.shape[-1]
    if vector is None or vector.ndim != 1 or vector.size != width or other is None:
        return None
    own = Parameter(node, place, 0)
    if node.op_type == "Mul":
        return (own,)
    before = _parameters(other, -1) if sole_reader(other) is node else None
    return None if before is None else (own, *before)


def _insert_mul(names: Names, reading: Reading, factors: NDArray[np.float32]) -> None:
    tensor = reading.tensor
    graph, name = names.graph, names.new(f"{tensor.name}_scaled")
    node = ir.node("Mul", [tensor, add_initializer(names, f"{name}.factors", factors)], name=name)
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, tensor.type, tensor.shape
    producer = tensor.producer()
    if producer is None:
        graph.insert_before(graph[0], [node])
    else:
        graph.insert_after(producer, [node])
    for layer in reading.layers:
        layer.node.replace_input_with(1 - layer.weight_index, node.outputs[0])
