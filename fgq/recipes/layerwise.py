"""Refining the weights of a network, layer by layer, on the prefix that is already quantized.

The network runs twice, side by side: as it was, which says what a layer should give, and with the weights
and activations quantized so far, which says what the layer will read. Both keep the values at the place
that was reached (`fgq.recipes.pieces`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from fgq.config import Recipe, Step
from fgq.converters.biases import find_bias
from fgq.converters.float_layers import Layer, find_layers
from fgq.data.feed import Feed
from fgq.quantization.tensor import QuantizedTensor
from fgq.recipes.checkpoint import Checkpoint, Finished
from fgq.recipes.fitting import Fitting, Task
from fgq.recipes.guard import Distance, distance
from fgq.recipes.moments import Float
from fgq.recipes.observation import Observed, observe_layer
from fgq.recipes.pieces import Prefix, Replacement
from fgq.recipes.registered import load_recipe
from fgq.report import LayerCheck

NOTED = 1.01
"""Outputs that go back to what ``fgq`` has are warned of where a layer's error was this much larger."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Network:
    """A network whose weights data choose.

    Parameters
    ----------
    model : onnx_ir.Model
        With quantizers inserted and float weights; its biases are changed in place.
    float_model : onnx_ir.Model
        The same before quantizers were inserted; nodes have the same names.
    tasks : sequence of Task
        In graph order.
    feeds : sequence of feed
        Calibration data.
    without : collection of Step
        Steps of the recipe to leave out.
    """

    model: ir.Model
    float_model: ir.Model
    tasks: Sequence[Task]
    feeds: Sequence[Feed]
    without: Collection[Step] = ()


class Refined(NamedTuple):
    """What became of a network.

    Parameters
    ----------
    weights : dict of onnx_ir.Node to QuantizedTensor
        The weight of each layer.
    warnings : list of str
        For whom the data were too few.
    checks : dict of onnx_ir.Node to LayerCheck
        How near layers are to the float network, beside the recipe ``fgq``; none of what that recipe made.
    """

    weights: dict[ir.Node, QuantizedTensor]
    warnings: list[str]
    checks: dict[ir.Node, LayerCheck]


def refine_network(
    network: Network,
    recipe: Recipe,
    progress: Callable[[int, int], None],
    checkpoint: Checkpoint | None = None,
    given: Mapping[ir.Node, QuantizedTensor] | None = None,
) -> Refined:
    """Quantize the weights of layers, and correct the biases of a model in place.

    Parameters
    ----------
    network : Network
    recipe : Recipe
    progress : callable
        Called as ``progress(done, total)``.
    checkpoint : Checkpoint, optional
        Where finished layers are kept, and found if they were finished before.
    given : mapping of onnx_ir.Node to QuantizedTensor, optional
        Weights that the recipe has found already, and the model's biases with them: they are only held
        against those of the recipe ``fgq``.

    Returns
    -------
    Refined
    """
    floats = {layer.name: layer for layer in find_layers(network.float_model) if isinstance(layer, Layer)}
    originals = {name: find_bias(layer) for name, layer in floats.items()}
    float_nodes = {node.name: node for node in network.float_model.graph}
    replaced: dict[ir.Node, Replacement] = {}
    quantized = Prefix(network.model, network.feeds, replaced)
    exact = Prefix(network.float_model, network.feeds, {})
    refined = Refined({}, [], {})
    for _, stage in groupby(network.tasks, key=lambda task: task.layer.activation):
        members = list(stage)
        # Past finished layers too, in the same pieces: onnxruntime rounds otherwise in others.
        quantized.advance(members[0].layer.node)
        exact.advance(float_nodes[members[0].layer.name])
        for task in members:
            progress(len(refined.weights), len(network.tasks))
            layer = task.layer
            finished = None if checkpoint is None else checkpoint.read(layer, task.scheme)
            if finished is None:
                observed = observe_layer(
                    layer, network.float_model, float_nodes[layer.name], quantized, exact, network.without
                )
                measure = partial(distance, network.model, layer, quantized, exact, observed)
                fitting = Fitting(task, observed, network.without, originals[layer.name])
                finished = _refine(fitting, recipe, measure, None if given is None else given[layer.node])
                if checkpoint is not None:
                    checkpoint.write(layer, finished)
            _take(network.model, layer, finished, refined)
            replaced[layer.node] = Replacement(layer.weight_index, finished.weight.dequantize())
    return refined


def _take(model: ir.Model, layer: Layer, finished: Finished, refined: Refined) -> None:
    """Put a finished layer's bias into the model, and the rest into the result."""
    bias = find_bias(layer)
    if bias is not None and finished.bias is not None:
        bias.write(model.graph, finished.bias)
    refined.warnings.extend(finished.warnings)
    refined.weights[layer.node] = finished.weight
    if finished.check is not None:
        refined.checks[layer.node] = finished.check


def _complaints(layer: Layer, observed: Observed) -> Iterator[str]:
    K = observed.train.gram.shape[1]
    if observed.train.positions < K:
        yield (
            f"{layer.name}: calibrated on {observed.train.positions} positions for {K} inputs; "
            "more samples would serve it better"
        )
    dead = int(np.count_nonzero(np.diagonal(observed.train.gram, axis1=1, axis2=2) == 0))
    if dead:
        yield f"{layer.name}: {dead} of its inputs were always zero; their weights were not calibrated"
    elif observed.train.is_constant:
        yield f"{layer.name}: its inputs were always the same; its weights were not calibrated"


def _obstacle(observed: Observed) -> str | None:
    """Return what keeps data from choosing weights, if anything does."""
    if not observed.is_finite:
        return "its inputs or outputs are too large for sums of their squares"
    if not observed.train.positions:
        return "no values reached it"
    if not observed.held_out.positions:
        return "one position says nothing of others"
    return None


def _refine(
    fitting: Fitting,
    recipe: Recipe,
    measure: Callable[[QuantizedTensor, Float], Distance],
    given: QuantizedTensor | None,
) -> Finished:
    """Return a layer's weight and corrected bias, no output of which is farther than by the recipe fgq."""
    name = fitting.layer.name
    warnings = [] if given is not None else list(_complaints(fitting.layer, fitting.observed))
    obstacle = _obstacle(fitting.observed)
    if obstacle is not None:
        if recipe is not Recipe.FGQ:
            warnings.append(f"{name}: its weights stay the nearest: {obstacle}")
        return Finished(fitting.tensor(fitting.nearest().rows), fitting.original, tuple(warnings), None)
    plain = fitting.plain()
    if recipe is Recipe.FGQ:
        return Finished(fitting.tensor(plain.rows), plain.bias, tuple(warnings), None)
    chosen = fitting.fit(load_recipe(recipe).propose) if given is None else fitting.as_it_is(given)
    found, other = (measure(fitting.tensor(fit.rows), fitting.shift(fit)) for fit in (chosen, plain))
    # Weights that were trained together lose what they gained row by row.
    farther = found.is_farther(other, together=fitting.grouping.shared or given is not None)
    kept = fitting.mixed(chosen, farther, plain)
    power = float(found.power.sum()) or 1.0
    before, after = float(found.own.sum()), float(np.where(farther, other.own, found.own).sum())
    if farther.any() and before > NOTED * after:
        warnings.append(
            f"{name}: {np.count_nonzero(farther)} of its {len(farther)} outputs are as the recipe fgq has "
            f"them, since {recipe} was farther from the float network's on all calibration data: the "
            f"layer's relative squared error is {after / power:.2g}, and was {before / power:.2g}"
        )
    check = LayerCheck(
        error=after / power,
        nearest_error=float(other.own.sum()) / power,
        reverted=int(np.count_nonzero(farther)),
    )
    return Finished(fitting.tensor(kept.rows), kept.bias, tuple(warnings), check)
