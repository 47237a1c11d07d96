"""What the layers of a network make of its outputs, on all calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from fgq.data.samples import Feed
from fgq.quantization.tensor import QuantizedTensor
from fgq.recipes.layerwise import Task
from fgq.recipes.moments import Float
from fgq.recipes.pieces import Piece, Replacement
from fgq.recipes.reconstruct.training import squared_errors


def output_errors(
    model: ir.Model,
    float_model: ir.Model,
    tasks: Sequence[Task],
    weights: Mapping[ir.Node, QuantizedTensor],
    feeds: Sequence[Feed],
) -> Float:
    """Return ``sum (y' - y)^2`` of each sample and each real output of a network.

    Parameters
    ----------
    model : onnx_ir.Model
        With quantizers inserted.
    float_model : onnx_ir.Model
        The same before quantizers were inserted.
    tasks : sequence of Task
    weights : mapping of onnx_ir.Node to QuantizedTensor
        What the tasks' layers read in place of float weights.
    feeds : sequence of feed

    Returns
    -------
    ndarray of float64, shape (samples, outputs)
    """
    replaced = {
        task.layer.node: Replacement(task.layer.weight_index, weights[task.layer.node].dequantize())
        for task in tasks
    }
    found, exact = _outputs(model, replaced), _outputs(float_model, {})
    parts = []
    for feed in feeds:
        pairs = zip(found(dict(feed)).values(), exact(dict(feed)).values(), strict=True)
        real = [(y, y0) for y, y0 in pairs if isinstance(y0, np.ndarray) and y0.dtype.kind == "f"]
        parts.append(squared_errors(real))
    return np.concatenate(parts)


def _outputs(model: ir.Model, replaced: Mapping[ir.Node, Replacement]) -> Piece:
    names = [str(value.name) for value in model.graph.outputs if value.producer() is not None]
    return Piece(model, list(model.graph), names, replaced)


class Inputs:
    """What the nodes of a graph read at one time, to go back to.

    Parameters
    ----------
    graph : onnx_ir.Graph
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._read = {node: tuple(node.inputs) for node in graph}

    def restore(self) -> None:
        """Let the nodes read these values again."""
        for node, values in self._read.items():
            node.resize_inputs(len(values))
            for place, value in enumerate(values):
                node.replace_input_with(place, value)
