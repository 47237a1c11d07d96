"""What the layers of a network make of its outputs, on all calibration data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from fgq.quantization.tensor import QuantizedTensor
from fgq.recipes.layerwise import Network
from fgq.recipes.moments import Float
from fgq.recipes.pieces import Piece, Replacement
from fgq.recipes.reconstruct.training import squared_errors


def output_errors(network: Network, weights: Mapping[ir.Node, QuantizedTensor]) -> Float:
    """Return ``sum (y' - y)^2`` of each sample and each real output of a network.

    Parameters
    ----------
    network : Network
    weights : mapping of onnx_ir.Node to QuantizedTensor
        What the layers read in place of float weights.

    Returns
    -------
    ndarray of float64, shape (samples, outputs)
    """
    replaced = {
        task.layer.node: Replacement(task.layer.weight_index, weights[task.layer.node].dequantize())
        for task in network.tasks
    }
    found, exact = _outputs(network.model, replaced), _outputs(network.float_model, {})
    parts = []
    for feed in network.feeds:
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
