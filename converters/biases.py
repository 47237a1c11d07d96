"""The constant that is added to each output channel of a layer, wherever the graph keeps it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.converters.float_layers import Layer
from fgq.converters.rewriting import Names, add_initializer
from fgq.graph.queries import constant, sole_reader


class Bias(NamedTuple):
    """Where the bias of a layer stands.

    Parameters
    ----------
    node : onnx_ir.Node
        The layer itself, or the Add that alone reads its result.
    place : int
        Which of the node's inputs holds the bias; it may be missing.
    values : ndarray of float32, shape (M,)
    """

    node: ir.Node
    place: int
    values: NDArray[np.float32]

    def write(self, graph: ir.Graph, values: NDArray[np.float32]) -> None:
        """Let the node read another bias.

        Parameters
        ----------
        graph : onnx_ir.Graph
            The main graph.
        values : ndarray of float32, shape (M,)
        """
        if len(self.node.inputs) <= self.place:
            self.node.resize_inputs(self.place + 1)
        old = self.node.inputs[self.place]
        name = f"{self.node.name}.bias" if old is None else str(old.name)
        self.node.replace_input_with(self.place, add_initializer(Names(graph), name, values))


def find_bias(layer: Layer) -> Bias | None:
    """Find the bias of a layer; None where it has no place for one.

    A Conv or Gemm has a place of its own. A MatMul has one where its result is read by an Add of a constant
    vector alone, and its channels are the last axis.

    Parameters
    ----------
    layer : Layer
    """
    channels = layer.shape[layer.channel_axis]
    if layer.op_type in ("Conv", "Gemm"):
        values = layer.bias_array
        return Bias(layer.node, 2, np.zeros(channels, np.float32) if values is None else values)
    reader = sole_reader(layer.output)
    if layer.weight_index != 1 or reader is None or reader.op_type != "Add" or reader.domain != "":
        return None
    for index, value in enumerate(reader.inputs):
        values = constant(value)
        if values is not None and values.shape == (channels,):
            return Bias(reader, index, values)
    return None
