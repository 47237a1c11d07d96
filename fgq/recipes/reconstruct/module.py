"""A block of an ONNX graph as a PyTorch module with trained weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from fgq.graph.queries import constant
from fgq.recipes.pieces import Values
from fgq.recipes.reconstruct.operators import OPERATORS
from fgq.recipes.reconstruct.weights import TrainedVector, TrainedWeight

Place = tuple[ir.Node, int]
"""A node, and which of its inputs."""

_VECTORS = {"Add": (0, 1), "Conv": (2,), "Gemm": (2,), "LayerNormalization": (1, 2)}
"""Where operators hold constant vectors worth training: biases, and the scales of normalizations."""


def vectors(nodes: Sequence[ir.Node]) -> dict[Place, np.ndarray]:
    """Find the constant vectors of a block that can be trained.

    Parameters
    ----------
    nodes : sequence of onnx_ir.Node

    Returns
    -------
    dict of (onnx_ir.Node, int) to ndarray of float32
    """
    found = {}
    for node in nodes:
        for place in _VECTORS.get(node.op_type, ()):
            array = constant(node.inputs[place]) if len(node.inputs) > place else None
            if array is not None and array.dtype == np.float32 and array.ndim == 1 and array.any():
                found[node, place] = array
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What replaces constants of a block while it is trained.

    Parameters
    ----------
    weights : dict of (onnx_ir.Node, int) to TrainedWeight
    vectors : dict of (onnx_ir.Node, int) to TrainedVector
    """

    weights: dict[Place, TrainedWeight]
    vectors: dict[Place, TrainedVector]

    def modules(self) -> list[nn.Module]:
        """List all of them."""
        return [*self.weights.values(), *self.vectors.values()]


class Block(nn.Module):
    """The nodes of a block as a function of the values that they read.

    Parameters
    ----------
    nodes : sequence of onnx_ir.Node
        In graph order; `unsupported` holds for none of them.
    outputs : sequence of str
        The values that it gives.
    trained : Trained
        What some inputs of nodes read in place of constants.
    """

    def __init__(self, nodes: Sequence[ir.Node], outputs: Sequence[str], trained: Trained) -> None:
        super().__init__()
        self._nodes = list(nodes)
        self.outputs = list(outputs)
        self._trained = trained
        self._members = nn.ModuleList(trained.modules())
        self._constants: dict[str, Tensor] = {}
        made = {value for node in nodes for value in node.outputs}
        self.inputs: set[str] = set()
        for node in nodes:
            for value in node.inputs:
                if value is None or value in made:
                    continue
                array = constant(value)
                if array is None:
                    self.inputs.add(str(value.name))
                else:
                    self._constants[str(value.name)] = torch.tensor(array)

    def constants(self) -> dict[Place, Tensor]:
        """Return the weights and vectors as their parameters are now."""
        return {
            place: module()
            for modules in (self._trained.weights, self._trained.vectors)
            for place, module in modules.items()
        }

    def forward(self, values: Values, trained: Mapping[Place, Tensor]) -> list[Tensor]:
        """Compute the block's outputs.

        Parameters
        ----------
        values : dict of str to ndarray
            What the nodes read, among other values.
        trained : mapping of (onnx_ir.Node, int) to Tensor
            What `constants` returned; it serves for several calls.
        """
        known = self._constants | {
            name: torch.from_numpy(np.asarray(values[name])) for name in self.inputs if name in values
        }
        for node in self._nodes:
            inputs = [
                trained[node, place]
                if (node, place) in trained
                else None
                if value is None
                else known[str(value.name)]
                for place, value in enumerate(node.inputs)
            ]
            known[str(node.outputs[0].name)] = OPERATORS[node.op_type](node, inputs)
        return [known[name] for name in self.outputs]
