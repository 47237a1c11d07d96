"""Reconstruct a network block by block, each on the prefix that is already quantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from fgq.converters.biases import Bias
from fgq.converters.layers import Layer, find_layers
from fgq.data import Feed
from fgq.qtensor import QuantizedTensor
from fgq.quantize import largest_bias
from fgq.reconstruct import training
from fgq.reconstruct.blocks import Stretch, find_blocks
from fgq.reconstruct.module import Block, Place, Trained, vectors
from fgq.reconstruct.training import Example, relative_error, train
from fgq.reconstruct.weights import TrainedVector, TrainedWeight
from fgq.refine.moments import Single
from fgq.refine.network import HELD_OUT_EVERY, Refined, Task
from fgq.refine.pieces import Piece, Prefix, Replacement


def reconstruct_network(
    model: ir.Model,
    float_model: ir.Model,
    tasks: Sequence[Task],
    refined: Refined,
    feeds: Sequence[Feed],
    progress: Callable[[int, int], None],
) -> Refined:
    """Train the weights of layers, and change biases and normalizations of a model in place.

    A block is kept as it was where training does not lower its error on held-out data.

    Parameters
    ----------
    model : onnx_ir.Model
        With quantizers inserted, float weights and corrected biases.
    float_model : onnx_ir.Model
        The same before quantizers were inserted; nodes have the same names.
    tasks : sequence of Task
        In graph order.
    refined : Refined
        Where the weights start from.
    feeds : sequence of feed
        Calibration data.
    progress : callable
        Called as ``progress(done, total)``.

    Returns
    -------
    Refined
    """
    by_name = {task.layer.name: task for task in tasks}
    layers = [
        layer for layer in find_layers(float_model) if isinstance(layer, Layer) and layer.name in by_name
    ]
    blocks, warnings = find_blocks(float_model.graph, layers)
    found = Refined(dict(refined.weights), [*refined.warnings, *warnings])
    if len(feeds) < 2:
        found.warnings.append(
            "reconstruction: found one batch of data, wanted two at least; nothing was trained"
        )
        return found
    replaced = {
        task.layer.node: Replacement(task.layer.weight_index, found.weights[task.layer.node].dequantize())
        for task in tasks
    }
    quantized, exact = Prefix(model, feeds, replaced), Prefix(float_model, feeds, {})
    for done, block in enumerate(blocks):

        def advance(share: float, done: int = done) -> None:
            progress(round(100 * (done + share)), 100 * len(blocks))

        advance(0.0)
        nodes = _counterparts(model.graph, block)
        quantized.advance(nodes[0])
        exact.advance(block.nodes[0])
        members = [by_name[layer.name] for layer in block.layers]
        better = _reconstruct(nodes, members, _examples(float_model, block, quantized, exact), found, advance)
        if better is None:
            found.warnings.append(
                f"{block.layers[0].name}: reconstruction of its block did not lower the error on held-out "
                "data; it stays as calibrated"
            )
            continue
        for task, tensor in zip(members, better.weights, strict=True):
            found.weights[task.layer.node] = tensor
            replaced[task.layer.node] = Replacement(task.layer.weight_index, tensor.dequantize())
        for (node, place), values in better.vectors.items():
            Bias(node, place, values).write(model.graph, values)
    return found


class _Better(NamedTuple):
    """What a block was given: the weights of its layers, and its vectors."""

    weights: list[QuantizedTensor]
    vectors: dict[Place, Single]

    def constants(self, tasks: Sequence[Task]) -> dict[Place, Tensor]:
        """Return what the nodes of a block read, as `Block` takes it."""
        weights = {
            (task.layer.node, task.layer.weight_index): torch.from_numpy(tensor.dequantize())
            for task, tensor in zip(tasks, self.weights, strict=True)
        }
        return weights | {place: torch.tensor(values) for place, values in self.vectors.items()}


def _counterparts(graph: ir.Graph, block: Stretch) -> list[ir.Node]:
    """Return the nodes of a block in the graph with quantizers, these included."""
    nodes = {node.name: node for node in graph}
    members = [nodes[node.name] for node in block.nodes]
    if not block.whole:
        return members
    every = list(graph)
    return every[every.index(members[0]) : every.index(members[-1]) + 1]


def _examples(float_model: ir.Model, block: Stretch, quantized: Prefix, exact: Prefix) -> list[Example]:
    name = str(block.nodes[-1].outputs[0].name)
    run = Piece(float_model, block.nodes, [name])
    return [
        Example(given, run(wanted)[name])
        for given, wanted in zip(quantized.batches, exact.batches, strict=True)
    ]


def _reconstruct(
    nodes: Sequence[ir.Node],
    tasks: Sequence[Task],
    examples: Sequence[Example],
    found: Refined,
    progress: Callable[[float], None],
) -> _Better | None:
    """Train a block, first scales alone, then codes too; None where held-out data like neither better."""
    before = _Better([found.weights[task.layer.node] for task in tasks], vectors(nodes))
    trained = Trained(
        {
            (task.layer.node, task.layer.weight_index): TrainedWeight(tensor, task.layer.weight_array)
            for task, tensor in zip(tasks, before.weights, strict=True)
        },
        {place: TrainedVector(values) for place, values in before.vectors.items()},
    )
    block = Block(nodes, trained)
    every = min(HELD_OUT_EVERY, len(examples))
    seen = [example for index, example in enumerate(examples) if index % every != every - 1]
    held_out = examples[every - 1 :: every]
    best, least = None, relative_error(block, before.constants(tasks), held_out)
    total = training.SCALE_STEPS + training.CODE_STEPS
    for first, steps in ((0, training.SCALE_STEPS), (training.SCALE_STEPS, training.CODE_STEPS)):

        def advance(share: float, first: int = first, steps: int = steps) -> None:
            progress((first + share * steps) / total)

        if not train(block, trained, seen, steps, advance, keep_codes=first == 0):
            break
        after = _harden(tasks, trained)
        error = relative_error(block, after.constants(tasks), held_out)
        if error < least:
            best, least = after, error
    return best


def _harden(tasks: Sequence[Task], trained: Trained) -> _Better:
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
    return _Better(weights, values)
