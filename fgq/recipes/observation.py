"""What calibration data show of one layer: what it reads now, and what it should give."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.config import Step
from fgq.converters.float_layers import Layer
from fgq.graph.queries import constant, sole_reader
from fgq.quantization.weights import as_rows
from fgq.recipes.moments import Collector, Float, Moments, Single
from fgq.recipes.pieces import Piece, Prefix, Shelf
from fgq.recipes.reductions import conv_groups, input_rows, output_rows

POSITIONS_PER_INPUT = 32
LEAST_POSITIONS = 1 << 15
"""Of a convolution so many positions are looked at, drawn from all batches: neighbours are much alike."""

HELD_OUT_EVERY = 5
"""Every fifth batch is held out: it judges what the others propose. Of fewer it is the last."""


PRIOR_PARTS = 16
"""What all outputs say of the variance of a mean weighs as much as this many parts that speak for one."""

LEAST_PARTS = 10
"""Fewer batches than these do not tell a mean from chance: the result of a MatMul keeps its own."""


class Parts(NamedTuple):
    """Sums over each part of the data by itself: a batch, or half of the only one.

    Parameters
    ----------
    positions : ndarray of float64, shape (parts,)
    inputs : ndarray of float64, shape (parts, C, K)
    outputs : ndarray of float64, shape (parts, C, M)
    """

    positions: Float
    inputs: Float
    outputs: Float

    def mean_variance(self, weights: Float) -> Float:
        """Return the variance, from part to part, of the mean of ``y - V x`` over all of them.

        Few parts tell little of one output's variance, and are drawn to what all outputs have in units of
        their weights' square.

        Parameters
        ----------
        weights : ndarray of float64, shape (C, M, K)

        Returns
        -------
        ndarray of float64, shape (C, M)
            Infinite where there is one part alone.
        """
        count, total = len(self.positions), self.positions.sum()
        if count < 2:
            return np.full(weights.shape[:2], np.inf)
        sums = self.outputs - np.einsum("cmk,pck->pcm", weights, self.inputs)
        apart = sums - self.positions[:, None, None] * (sums.sum(0) / total)
        own = np.square(apart / total).sum(0) * count / (count - 1)
        unit = np.maximum(np.square(weights).sum(2), np.finfo(np.float64).tiny)
        every = unit * (own / unit).mean()
        found: Float = ((count - 1) * own + PRIOR_PARTS * every) / (count - 1 + PRIOR_PARTS)
        return found


class Observed(NamedTuple):
    """What was seen of a layer.

    Parameters
    ----------
    train, held_out : Moments
        Of what it reads with what it should give, the residual's loss included.
    parts : Parts
        The same, part by part.
    wanted : list of ndarray of float32
        What it gives in the float network, batch by batch.
    inputs : list of ndarray of float32
        What it reads in the quantized network, batch by batch. A network whose sizes follow from its values
        may have other ones there; of such a batch it is what the layer reads in the float network.
    residual : tuple of str, or None
        The value that its result is added to, as the quantized and as the float network call it.
    """

    train: Moments
    held_out: Moments
    parts: Parts
    wanted: list[NDArray[Any]]
    inputs: list[NDArray[Any]]
    residual: tuple[str, str] | None

    @property
    def is_finite(self) -> bool:
        """Whether nothing infinite was seen."""
        return all(np.isfinite(sums).all() for part in (self.train, self.held_out) for sums in part[1:])


def observe_layer(
    layer: Layer,
    float_model: ir.Model,
    float_node: ir.Node,
    quantized: Prefix,
    exact: Prefix,
    without: Collection[Step],
) -> Observed:
    """Collect the moments of what a layer reads now and of what it should give.

    Parameters
    ----------
    layer : Layer
        In the graph with quantizers.
    float_model : onnx_ir.Model
    float_node : onnx_ir.Node
        The same layer's node there.
    quantized, exact : Prefix
        Of the two networks, advanced to the layer.
    without : collection of Step
        Steps to leave out.
    """
    name = str(float_node.outputs[0].name)
    run = Piece(float_model, [float_node], [name])
    residual = None if Step.RESIDUAL in without else _residual(layer, quantized, exact)
    weights = as_rows(layer.weight_array, layer.group_axis, layer.channel_axis)
    C = conv_groups(layer)
    train, held_out = (Collector(C, weights.shape[0] // C, weights[0].size) for _ in range(2))
    rng = np.random.default_rng(0)
    limit = max(LEAST_POSITIONS, POSITIONS_PER_INPUT * weights[0].size) // len(exact.batches) + 1
    inputs = _inputs(layer, float_node, quantized, exact)
    filled = [index for index, x in enumerate(inputs) if x.size]
    every = min(HELD_OUT_EVERY, len(filled))
    shelf, outputs = Shelf(), list[NDArray[Any]]()
    parts = list[tuple[int, Single, Single]]()

    def add(collector: Collector, x: Single, y: Single) -> None:
        collector.add(x, y)
        if x.shape[1]:
            parts.append((x.shape[1], x.sum(1), y.sum(1)))

    for index, (wanted, given) in enumerate(zip(exact.batches, quantized.batches, strict=True)):
        y = run(wanted)[name]
        outputs.append(shelf.hold({name: y})[name])
        if index not in filled:
            continue
        y = (y + lost_beside(residual, wanted, given, y.shape)).astype(np.float32, copy=False)
        count = y.size // weights.shape[0]
        picked = None
        if layer.op_type == "Conv" and count > limit:
            picked = np.sort(rng.choice(count, limit, replace=False))
        x = input_rows(layer, inputs[index], picked)
        rows = output_rows(layer, y, picked)
        if len(filled) == 1:  # the second half judges: neighbours are too much alike
            half = -(-x.shape[1] // 2)
            add(train, x[:, :half], rows[:, :half])
            add(held_out, x[:, half:], rows[:, half:])
            continue
        place = filled.index(index)
        add(held_out if place % every == every - 1 else train, x, rows)
    sums = (
        Parts(*(np.array(fields, np.float64) for fields in zip(*parts, strict=True))) if parts else _NO_PARTS
    )
    return Observed(train.moments(), held_out.moments(), sums, outputs, inputs, residual)


def _inputs(layer: Layer, float_node: ir.Node, quantized: Prefix, exact: Prefix) -> list[NDArray[Any]]:
    place = [value is layer.activation for value in layer.node.inputs].index(True)
    other = float_node.inputs[place]
    assert other is not None
    found = []
    for given, wanted in zip(quantized.batches, exact.batches, strict=True):
        x, y = given[str(layer.activation.name)], wanted[str(other.name)]
        found.append(x if x.shape == y.shape else y)
    return found


_NO_PARTS = Parts(np.zeros(0), np.zeros((0, 0, 0)), np.zeros((0, 0, 0)))


def lost_beside(
    residual: tuple[str, str] | None,
    wanted: dict[str, NDArray[Any]],
    given: dict[str, NDArray[Any]],
    shape: Sequence[int],
) -> Single | float:
    """Return what the value that a result is added to has lost, where it has the result's shape; else 0."""
    if residual is None:
        return 0.0
    found, exact = given[residual[0]], wanted[residual[1]]
    if not found.shape == exact.shape == tuple(shape):
        return 0.0
    lost: Single = exact - found
    return lost


def _residual(layer: Layer, quantized: Prefix, exact: Prefix) -> tuple[str, str] | None:
    """Return what the layer's result is added to, as the quantized and the float network call it.

    What the sum has lost so far, the layer can make up for. None where the result is not added to a value
    that both networks have at hand.
    """
    value = layer.output
    while (node := sole_reader(value)) is not None and node.domain == "":
        if node.op_type == "Add":
            other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
            if other is None or other is value:
                return None
            if constant(other) is None:
                names = str(other.name), str(_behind_quantizers(other).name)
                at_hand = names[0] in quantized.batches[0] and names[1] in exact.batches[0]
                return names if at_hand else None
        elif node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Identity"):
            return None
        value = node.outputs[0]
    return None


def _behind_quantizers(value: ir.Value) -> ir.Value:
    while (node := value.producer()) is not None and node.op_type in (
        "QuantizeLinear",
        "DequantizeLinear",
        "Clip",
    ):
        source = node.inputs[0]
        assert source is not None
        if node.op_type == "Clip" and source.dtype != ir.DataType.UINT8:
            break
        value = source
    return value
