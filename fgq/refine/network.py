"""Refining the weights of a network, layer by layer, on the prefix that is already quantized.

The network runs twice, side by side: as it was, which says what a layer should give, and with the weights
and activations quantized so far, which says what the layer will read. Both keep the values at the place
that was reached (`fgq.refine.pieces`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from fgq.config import Recipe, Step
from fgq.container import constant
from fgq.converters.biases import Bias, find_bias
from fgq.converters.layers import Layer
from fgq.converters.rewriting import sole_consumer
from fgq.data import Feed
from fgq.qtensor import QuantizedTensor
from fgq.quantize import as_rows, assemble, largest_bias
from fgq.refine import recipes
from fgq.refine.checkpoint import Checkpoint, Finished
from fgq.refine.moments import Collector, Float, Moments, Single
from fgq.refine.pieces import Piece, Prefix, Replacement
from fgq.refine.problem import solve
from fgq.refine.reductions import conv_groups, input_rows, output_rows
from fgq.refine.rows import Grouping, Rows, nearest
from fgq.scheme import WeightScheme

POSITIONS_PER_INPUT = 32
LEAST_POSITIONS = 1 << 15
"""Of a convolution so many positions are looked at, drawn from all batches: neighbours are much alike."""

HELD_OUT_EVERY = 5
"""Every fifth batch is held out: it judges what the others propose. Of fewer it is the last."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """A layer to refine.

    Parameters
    ----------
    layer : Layer
        In the graph whose activations are quantized.
    scheme : WeightScheme
    input_scale : float or None
        The scale of its quantized input; None where that stays float.
    least : ndarray of float64, shape (M,), or None
        Lower bounds on its row scales.
    """

    layer: Layer
    scheme: WeightScheme
    input_scale: float | None
    least: Float | None


class Refined(NamedTuple):
    """What became of a network.

    Parameters
    ----------
    weights : dict of onnx_ir.Node to QuantizedTensor
        The weight of each layer.
    warnings : list of str
        For whom the data were too few.
    """

    weights: dict[ir.Node, QuantizedTensor]
    warnings: list[str]


def refine_network(
    model: ir.Model,
    float_model: ir.Model,
    tasks: Sequence[Task],
    feeds: Sequence[Feed],
    recipe: Recipe,
    progress: Callable[[int, int], None],
    checkpoint: Checkpoint | None = None,
    without: Collection[Step] = (),
) -> Refined:
    """Quantize the weights of layers, and correct the biases of a model in place.

    Parameters
    ----------
    model : onnx_ir.Model
        With quantizers inserted and float weights.
    float_model : onnx_ir.Model
        The same before quantizers were inserted; nodes have the same names.
    tasks : sequence of Task
        In graph order.
    feeds : sequence of feed
        Calibration data.
    recipe : Recipe
    progress : callable
        Called as ``progress(done, total)``.
    checkpoint : Checkpoint, optional
        Where finished layers are kept, and found if they were finished before.
    without : collection of Step
        Steps to leave out.

    Returns
    -------
    Refined
    """
    float_nodes = {node.name: node for node in float_model.graph}
    replaced: dict[ir.Node, Replacement] = {}
    quantized, exact = Prefix(model, feeds, replaced), Prefix(float_model, feeds, {})
    found = Refined({}, [])
    for _, stage in groupby(tasks, key=lambda task: task.layer.activation):
        members = list(stage)
        # Past finished layers too, in the same pieces: onnxruntime rounds otherwise in others.
        quantized.advance(members[0].layer.node)
        exact.advance(float_nodes[members[0].layer.name])
        for task in members:
            progress(len(found.weights), len(tasks))
            layer = task.layer
            finished = None if checkpoint is None else checkpoint.read(layer, task.scheme)
            if finished is None:
                observed = _observe(layer, float_model, float_nodes[layer.name], quantized, exact, without)
                finished = _refine(task, observed, recipe, without)
                if checkpoint is not None:
                    checkpoint.write(layer, finished)
            bias = find_bias(layer)
            if bias is not None and finished.bias is not None:
                bias.write(model.graph, finished.bias)
            found.warnings.extend(finished.warnings)
            found.weights[layer.node] = finished.weight
            replaced[layer.node] = Replacement(layer.weight_index, finished.weight.dequantize())
    return found


class _Observed(NamedTuple):
    """What was seen of a layer."""

    train: Moments
    held_out: Moments


def _observe(
    layer: Layer,
    float_model: ir.Model,
    float_node: ir.Node,
    quantized: Prefix,
    exact: Prefix,
    without: Collection[Step],
) -> _Observed:
    """Collect the moments of what the layer reads now and of what it should give."""
    name = str(float_node.outputs[0].name)
    run = Piece(float_model, [float_node], [name])
    residual = None if Step.RESIDUAL in without else _residual(layer, quantized, exact)
    weights = as_rows(layer.weight_array, layer.group_axis, layer.channel_axis)
    C = conv_groups(layer)
    train, held_out = (Collector(C, weights.shape[0] // C, weights[0].size) for _ in range(2))
    rng = np.random.default_rng(0)
    limit = max(LEAST_POSITIONS, POSITIONS_PER_INPUT * weights[0].size) // len(exact.batches) + 1
    for index, (wanted, given) in enumerate(zip(exact.batches, quantized.batches, strict=True)):
        y = run(wanted)[name]
        if residual is not None and wanted[residual[1]].shape == y.shape:
            y = y + (wanted[residual[1]] - given[residual[0]])
        count = y.size // weights.shape[0]
        picked = None
        if layer.op_type == "Conv" and count > limit:
            picked = np.sort(rng.choice(count, limit, replace=False))
        x = input_rows(layer, given[str(layer.activation.name)], picked)
        rows = output_rows(layer, y, picked)
        if len(exact.batches) == 1:  # every other position judges
            train.add(x[:, ::2], rows[:, ::2])
            held_out.add(x[:, 1::2], rows[:, 1::2])
            continue
        every = min(HELD_OUT_EVERY, len(exact.batches))
        (held_out if index % every == every - 1 else train).add(x, rows)
    return _Observed(train.moments(), held_out.moments())


def _complaints(layer: Layer, observed: _Observed) -> Iterator[str]:
    K = observed.train.gram.shape[1]
    if observed.train.positions < K:
        yield (
            f"{layer.name}: calibrated on {observed.train.positions} positions for {K} inputs; "
            "more samples would serve it better"
        )
    dead = int(np.count_nonzero(np.diagonal(observed.train.gram, axis1=1, axis2=2) == 0))
    if dead:
        yield f"{layer.name}: {dead} of its inputs were always zero; their weights were not calibrated"


def _refine(task: Task, observed: _Observed, recipe: Recipe, without: Collection[Step]) -> Finished:
    """Return a layer's weight and corrected bias."""
    layer = task.layer
    warnings = tuple(_complaints(layer, observed))
    bias = None if Step.BIAS in without else find_bias(layer)
    if recipe is Recipe.FGQ and layer.op_type != "Conv":  # statistics are those of batch normalization
        bias = None
    if not observed.held_out.positions:  # one position says nothing of others
        recipe, bias = Recipe.FGQ, None
    judged = observed if bias is None else _Observed(*(moments.centred() for moments in observed))
    weight = as_rows(layer.weight_array, layer.group_axis, layer.channel_axis).astype(np.float64)
    M, E, L = weight.shape
    C = conv_groups(layer)
    grouping = Grouping.of(task.scheme, E, L)
    matrices = weight.reshape(C, M // C, E * L)
    least = [None] * C if task.least is None else np.split(task.least, C)
    parts = _quantize_rows(
        matrices, judged, grouping, task.scheme, least, recipe, without, statistics=bias is not None
    )
    rows = Rows(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))
    tensor = assemble(
        rows.codes,
        np.ones(1, np.uint8) if task.scheme.alpha_limit == 1 else rows.alpha,
        rows.row_scale[0] if grouping.shared else rows.row_scale,
        task.scheme,
        shape=layer.shape,
        group_axis=layer.group_axis,
        channel_axis=layer.channel_axis,
    )
    corrected = None
    if bias is not None:
        weights = rows.weights(grouping).reshape(matrices.shape)
        corrected = _corrected_bias(task, bias, observed, weights, rows.row_scale)
    return Finished(tensor, corrected, warnings)


def _quantize_rows(
    matrices: Float,
    observed: _Observed,
    grouping: Grouping,
    scheme: WeightScheme,
    least: Sequence[Float | None],
    recipe: Recipe,
    without: Collection[Step],
    *,
    statistics: bool,
) -> Iterator[Rows]:
    """Yield the rows of each reduction of a layer."""
    if recipe is Recipe.FGQ:
        for c, (weights, bound) in enumerate(zip(matrices, least, strict=True)):
            rows = nearest(weights, scheme, grouping, bound)
            yield recipes.matched(rows, observed.train.of(c), grouping, bound) if statistics else rows
        return
    propose = {Recipe.CALIBRATED: recipes.calibrated, Recipe.OMSE: recipes.rescaled}[recipe]
    problems = solve(matrices, observed.train, observed.held_out, keep_weights=Step.TARGET in without)
    for c, (weights, problem, bound) in enumerate(zip(matrices, problems, least, strict=True)):
        rows = nearest(weights, scheme, grouping, bound)
        proposals = propose(problem, grouping, scheme, bound, without)
        yield recipes.best_of(rows, proposals, observed.held_out.of(c), grouping)


def _corrected_bias(task: Task, bias: Bias, observed: _Observed, weights: Float, row_scale: Float) -> Single:
    """Return a bias that makes each output's mean what it should be, where held-out data agree."""
    layer = task.layer
    train, held_out = (moments.mean_error(weights).reshape(-1) for moments in observed)
    share = observed.train.positions / (observed.train.positions + observed.held_out.positions)
    every = share * train + (1 - share) * held_out
    # The outputs of a Conv or Gemm hold its bias, those of a MatMul do not.
    own = bias.node is layer.node
    before = bias.values if own else np.zeros_like(bias.values)
    better = np.abs(held_out - train) <= np.abs(held_out - before)
    values = np.where(better, every if own else bias.values + every, bias.values)
    if own and task.input_scale is not None:
        bound = largest_bias(task.input_scale, row_scale, layer.products)
        values = np.clip(values, -bound, bound)
    corrected: Single = values.astype(np.float32)
    return corrected


def _residual(layer: Layer, quantized: Prefix, exact: Prefix) -> tuple[str, str] | None:
    """Return what the layer's result is added to, as the quantized and the float network call it.

    What the sum has lost so far, the layer can make up for. None where the result is not added to a value
    that both networks have at hand.
    """
    value = layer.output
    while (node := sole_consumer(value)) is not None and node.domain == "":
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
