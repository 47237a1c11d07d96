"""Reconstruct a network block by block, each on the prefix that is already quantized, then all together.

Blocks alone are trained towards what the float network has at their ends, with no say in what the next makes
of it; trained together (as in the second phase of EfficientQAT, Chen et al. 2024, arXiv 2407.11062), each
serves all ends behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from fgq.config import Recipe
from fgq.converters.biases import Bias
from fgq.converters.float_layers import Layer, find_layers
from fgq.quantization.tensor import QuantizedTensor
from fgq.quantization.weights import largest_bias
from fgq.recipes.fitting import Task
from fgq.recipes.layerwise import Network, Refined, refine_network
from fgq.recipes.moments import Single
from fgq.recipes.observation import HELD_OUT_EVERY
from fgq.recipes.pieces import Piece, Prefix, Replacement, Shelf
from fgq.recipes.reconstruct.blocks import Stretch, find_blocks, find_spans
from fgq.recipes.reconstruct.module import Block, Place, Trained, vectors
from fgq.recipes.reconstruct.outcome import Inputs, output_errors
from fgq.recipes.reconstruct.training import (
    CODES,
    JOINT,
    SCALES,
    Example,
    Stage,
    block_errors,
    is_worse,
    train,
)
from fgq.recipes.reconstruct.weights import TrainedVector, TrainedWeight


def reconstruct_network(network: Network, refined: Refined, progress: Callable[[int, int], None]) -> Refined:
    """Train the weights of layers, and change biases and normalizations of a model in place.

    What training gives is taken where held-out data do not find it worse; outputs of layers that are then
    farther from the float network's than by the recipe ``fgq`` are as that has them.

    Parameters
    ----------
    network : Network
        With corrected biases.
    refined : Refined
        Where the weights start from.
    progress : callable
        Called as ``progress(done, total)``.

    Returns
    -------
    Refined
    """
    model, feeds = network.model, network.feeds
    names = {task.layer.name for task in network.tasks}
    layers = [
        layer
        for layer in find_layers(network.float_model)
        if isinstance(layer, Layer) and layer.name in names
    ]
    blocks, warnings = find_blocks(network.float_model.graph, layers)
    warnings = [*refined.warnings, *warnings]
    if len(feeds) < 2:
        warnings.append("reconstruction: found one batch of data, wanted two at least; nothing was trained")
        return refined._replace(warnings=warnings)
    calibrated = Inputs(model.graph)
    weights = dict(refined.weights)
    warnings += _train_blocks(network, blocks, weights, progress)
    # Blocks were judged by their ends; each of their layers is judged by its own.
    held = refine_network(network, Recipe.RECONSTRUCT, progress, given=weights)
    if any(check.reverted for check in held.checks.values()):
        # Layers behind those that went back were trained on what these no longer give.
        trained = Inputs(model.graph)
        errors = output_errors(network, held.weights)
        calibrated.restore()
        if is_worse(errors, output_errors(network, refined.weights)):
            warnings.append(
                "reconstruction: the network's outputs were nearer to the float network's before it; all "
                "layers stay as calibrated"
            )
            return refined._replace(warnings=warnings)
        trained.restore()
    return held._replace(warnings=[*warnings, *held.warnings])


def _train_blocks(
    network: Network,
    blocks: Sequence[Stretch],
    weights: dict[ir.Node, QuantizedTensor],
    progress: Callable[[int, int], None],
) -> Iterator[str]:
    """Train blocks one by one, then together, and change `weights`; yield warnings of what was not taken."""
    model, float_model, feeds = network.model, network.float_model, network.feeds
    trainer = _Trainer(model, float_model, network.tasks, weights)
    separate, together = SCALES.steps + CODES.steps, JOINT.steps
    spans = find_spans(float_model.graph, blocks)
    total = len(blocks) * separate + sum(len(span.ends) for span in spans) * together
    done = 0

    def advance(steps: int, blocks: int = 1) -> None:
        progress(done + blocks * steps, total)

    quantized, exact = Prefix(model, feeds, trainer.replaced), Prefix(float_model, feeds, {})
    for block in blocks:
        if not trainer.train(block, (SCALES, CODES), quantized, exact, advance):
            yield (
                f"{block.layers[0].name}: reconstruction of its block raised the error on held-out data; it "
                "stays as calibrated"
            )
        done += separate
    for span in spans:
        ends = len(span.ends)
        quantized, exact = Prefix(model, feeds, trainer.replaced), Prefix(float_model, feeds, {})
        if not trainer.train(span, (JOINT,), quantized, exact, partial(advance, blocks=ends)):
            yield (
                f"{span.layers[0].name}: training its block and the {ends - 1} that follow together raised "
                "the error on held-out data; they stay as each was left"
            )
        done += ends * together


class _State(NamedTuple):
    """The weights of a stretch's layers, and its vectors."""

    weights: list[QuantizedTensor]
    vectors: dict[Place, Single]

    def constants(self, tasks: Sequence[Task]) -> dict[Place, Tensor]:
        """Return what the nodes read, as `Block` takes it."""
        weights = {
            (task.layer.node, task.layer.weight_index): torch.from_numpy(tensor.dequantize())
            for task, tensor in zip(tasks, self.weights, strict=True)
        }
        return weights | {place: torch.tensor(values) for place, values in self.vectors.items()}


class _Trainer:
    """Trains blocks of a network, and keeps what it found in the network.

    Parameters
    ----------
    model, float_model : onnx_ir.Model
    tasks : sequence of Task
    weights : dict of onnx_ir.Node to QuantizedTensor
        Of all layers; changed in place.

    Attributes
    ----------
    replaced : dict of onnx_ir.Node to Replacement
        What the layers read in place of float weights.
    """

    def __init__(
        self,
        model: ir.Model,
        float_model: ir.Model,
        tasks: Sequence[Task],
        weights: dict[ir.Node, QuantizedTensor],
    ) -> None:
        self._model, self._float_model = model, float_model
        self._tasks = {task.layer.name: task for task in tasks}
        self._nodes = {node.name: node for node in model.graph}
        self._weights = weights
        self.replaced: dict[ir.Node, Replacement] = {}
        for task in tasks:
            self._take(task, weights[task.layer.node])

    def train(
        self,
        stretch: Stretch,
        stages: Sequence[Stage],
        quantized: Prefix,
        exact: Prefix,
        progress: Callable[[int], None],
    ) -> bool:
        """Train a stretch, and tell whether one of the results is no worse on held-out data.

        Parameters
        ----------
        stretch : Stretch
        stages : sequence of Stage
        quantized, exact : Prefix
            Of the network with quantizers and of the float one; advanced to the stretch.
        progress : callable
            Called with the number of steps that are done.
        """
        progress(0)
        nodes = self._counterparts(stretch)
        quantized.advance(nodes[0])
        exact.advance(stretch.nodes[0])
        run = Piece(self._float_model, stretch.nodes, [str(end.outputs[0].name) for end in stretch.ends])
        shelf = Shelf()
        examples = [
            Example(given, list(shelf.hold(run(wanted)).values()))
            for given, wanted in zip(quantized.batches, exact.batches, strict=True)
        ]
        tasks = [self._tasks[layer.name] for layer in stretch.layers]
        before = _State([self._weights[task.layer.node] for task in tasks], vectors(nodes))
        ends = [str(self._nodes[end.name].outputs[0].name) for end in stretch.ends]
        better = _train(nodes, ends, tasks, before, examples, stages, progress)
        if better is None:
            return False
        for task, tensor in zip(tasks, better.weights, strict=True):
            self._take(task, tensor)
        for (node, place), values in better.vectors.items():
            Bias(node, place, values).write(self._model.graph, values)
        return True

    def _take(self, task: Task, tensor: QuantizedTensor) -> None:
        self._weights[task.layer.node] = tensor
        self.replaced[task.layer.node] = Replacement(task.layer.weight_index, tensor.dequantize())

    def _counterparts(self, stretch: Stretch) -> list[ir.Node]:
        """Return the nodes of a stretch in the graph with quantizers, these included."""
        members = [self._nodes[node.name] for node in stretch.nodes]
        if not stretch.whole:
            return members
        every = list(self._model.graph)
        return every[every.index(members[0]) : every.index(members[-1]) + 1]


def _train(
    nodes: Sequence[ir.Node],
    ends: Sequence[str],
    tasks: Sequence[Task],
    before: _State,
    examples: Sequence[Example],
    stages: Sequence[Stage],
    progress: Callable[[int], None],
) -> _State | None:
    """Train a stretch in stages; None where held-out data find the result of each worse."""
    trained = Trained(
        {
            (task.layer.node, task.layer.weight_index): TrainedWeight(tensor, task.layer.weight_array)
            for task, tensor in zip(tasks, before.weights, strict=True)
        },
        {place: TrainedVector(values) for place, values in before.vectors.items()},
    )
    block = Block(nodes, ends, trained)
    every = min(HELD_OUT_EVERY, len(examples))
    seen = [example for index, example in enumerate(examples) if index % every != every - 1]
    held_out = examples[every - 1 :: every]
    best, least = None, block_errors(block, before.constants(tasks), held_out)
    done = 0
    for stage in stages:
        if not train(block, trained, seen, stage, partial(_later, progress, done)):
            break
        done += stage.steps
        after = _harden(tasks, trained)
        errors = block_errors(block, after.constants(tasks), held_out)
        if not is_worse(errors, least):
            best, least = after, errors
    return best


def _later(progress: Callable[[int], None], before: int, steps: int) -> None:
    progress(before + steps)


def _harden(tasks: Sequence[Task], trained: Trained) -> _State:
    """Return what a file will hold; biases stay where an int32 holds them."""
    weights = [
        weight.harden(task.least) for task, weight in zip(tasks, trained.weights.values(), strict=True)
    ]
    values = {place: vector.harden() for place, vector in trained.vectors.items()}
    for task, tensor in zip(tasks, weights, strict=True):
        place = task.layer.node, 2
        if place in values and task.input_scale is not None:
            bound = largest_bias(task.input_scale, tensor.row_scale, task.layer.products)
            values[place] = np.clip(values[place], -bound, bound).astype(np.float32)
    return _State(weights, values)
